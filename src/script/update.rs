//! Chapter `update`: the methods with their choices.

use super::align::Cost;
use super::flow::{condition, watched};
use super::method::{Batch, BatchOptions, Method, Update};
use super::penalty::Penalty;
use super::sampler::Sampler;
use super::*;
use crate::options;
use amscript_align::flow::{Grid, RolloutOptions, Velocity};
use amscript_align::{
    self as solver, AdjointIndex, Loss, MatchingOptions, Norm, Reduction, Selection, Truncation, Units,
};
use amscript_model::Flow;
use amscript_tensor::{Stream, Tensor};

pub fn grid() -> Grid {
    super::flow::RolloutOptions::default().grid
}

pub fn euler() -> Sampler {
    super::flow::RolloutOptions::default().solver
}

options! {
    /// Choices of one update of adjoint matching.
    pub struct UpdateOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step from one time to the next; with noise, the update is one of stochastic adjoint matching.
        solver: Sampler = euler(),
        /// The random stream of a stochastic sampler and of `random_steps`; () means the batch's.
        rng: Option<Stream> = None,
        /// The active steps.
        truncate: Truncation = Truncation::Full,
        /// The penalty on the control.
        penalty: Penalty = Penalty::default(),
        /// What the penalty takes as the size of a control.
        norm: Norm = Norm::Sample,
        /// The adjoint of a step's target: `a_k` as the papers, or `a_{k+1}`, the exact gradient of the discrete problem.
        index: AdjointIndex = AdjointIndex::Same,
        /// How far a control is from the one the adjoint asks for.
        loss: Loss = Loss::Automatic,
        /// Sum or mean of the errors over steps and latent entries.
        reduction: Reduction = Reduction::Sum,
        /// Errors of the velocity, or of the control that noise carries.
        units: Units = Units::Velocity,
        /// Weight each step with its width in time.
        weighted: bool = false,
        /// The active steps that enter the loss.
        loss_steps: Selection = Selection::All,
        /// The most that one sample counts at one step; () means no bound.
        clip: Option<f64> = None,
        /// Take the reward's gradient at the end of a last step of the base without noise.
        noise_free_end: bool = false,
        /// Classifier-free guidance and where it acts; a number is the scale, of what is rolled out alone.
        guidance: Guidance = Guidance::default(),
        /// What is rolled out, such as `policy.strength(0.5)`; () means the policy. Another flow than the policy costs K forwards more.
        rollout_policy: Option<Flow> = None,
        /// What carries the adjoint back; () means the base. Another flow costs K forwards more.
        adjoint_model: Option<Flow> = None,
        /// Run the policy again in the loss's backward, at one active step after the other, instead of keeping the graphs of all: K
        /// forwards more, the memory of one step.
        checkpoint_steps: bool = false,
    }
}

options! {
    /// Where an update of adjoint matching is guided.
    pub struct GuidanceOptions {
        /// 1 means none.
        scale: f64 = 1.0,
        /// Of what is rolled out.
        rollout: bool = true,
        /// Of the base that carries the adjoint.
        adjoint: bool = false,
        /// Of policy and base in the control that is matched.
        control: bool = false,
    }
}

/// Guidance as scripts give it: a scale, or a map with the places too.
#[derive(Clone, Copy, Default)]
pub struct Guidance(solver::Guidance);

impl option::FromScript for Guidance {
    fn expected() -> String {
        "a scale such as `4`, or `#{ scale: 4, rollout: true, adjoint: false, control: false }`".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        let chosen = match f64::from_script(value.clone()) {
            Some(scale) => GuidanceOptions { scale, ..GuidanceOptions::default() },
            None => GuidanceOptions::parse("guidance", Map::from_script(value)?).ok()?,
        };
        let GuidanceOptions { scale, rollout, adjoint, control } = chosen;
        Some(Self(solver::Guidance { scale, rollout, adjoint, control }))
    }
    fn show(&self) -> String {
        let solver::Guidance { scale, rollout, adjoint, control } = self.0;
        match (rollout, adjoint, control) {
            (true, false, false) => scale.show(),
            _ => format!("#{{ scale: {scale:?}, rollout: {rollout}, adjoint: {adjoint}, control: {control} }}"),
        }
    }
}

options! {
    /// Choices of one update of DRaFT.
    pub struct DraftOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step from one time to the next.
        solver: Sampler = euler(),
        /// The last steps that the gradient goes through.
        truncate: Truncation = Truncation::Last(1),
        /// Further ends per sample, from the last step at new noise (DRaFT-LV).
        low_variance: usize = 0,
        /// Scale of the policy's classifier-free guidance; 1 means none.
        guidance: f64 = 1.0,
        /// The random stream of `low_variance` and of a stochastic sampler; () means the batch's.
        rng: Option<Stream> = None,
    }
}

options! {
    /// Choices of one update of ReFL.
    pub struct ReflOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step from one time to the next.
        solver: Sampler = euler(),
        /// The last steps, of which one is drawn for each update.
        truncate: Truncation = Truncation::Last(5),
        /// Scale of the policy's classifier-free guidance; 1 means none.
        guidance: f64 = 1.0,
        /// The random stream that the step is drawn from; () means the batch's.
        rng: Option<Stream> = None,
    }
}

impl UpdateOptions {
    fn method(self, context: &NativeCallContext) -> Method {
        let (text, rng) = (written("adjoint_matching", self.changed()), self.rng.clone());
        let field = |flow: Option<Flow>| flow.map(|flow| Arc::new(flow) as Arc<dyn Velocity>);
        let (reduction, units, weighted, clip) = (self.reduction, self.units, self.weighted, self.clip);
        let core = solver::AdjointMatching {
            rollout: rolling(context, self.grid, self.solver),
            truncate: self.truncate,
            regularizer: self.penalty.core().clone(),
            norm: self.norm,
            index: self.index,
            loss: self.loss,
            loss_options: MatchingOptions { reduction, units, weighted, clip, steps: None },
            loss_steps: self.loss_steps,
            noise_free_end: self.noise_free_end,
            guidance: self.guidance.0,
            rollout_policy: field(self.rollout_policy),
            adjoint_model: field(self.adjoint_model),
            checkpoint_steps: self.checkpoint_steps,
        };
        Method::new(Arc::new(core), text).drawing_from(rng)
    }
}

impl DraftOptions {
    fn method(self, context: &NativeCallContext) -> Method {
        let (text, rng) = (written("draft", self.changed()), self.rng.clone());
        let core = solver::Draft {
            rollout: rolling(context, self.grid, self.solver),
            truncate: self.truncate,
            renoised: self.low_variance,
            guidance: self.guidance,
        };
        Method::new(Arc::new(core), text).drawing_from(rng)
    }
}

impl ReflOptions {
    fn method(self, context: &NativeCallContext) -> Method {
        let (text, rng) = (written("refl", self.changed()), self.rng.clone());
        let core = solver::Refl {
            rollout: rolling(context, self.grid, self.solver),
            truncate: self.truncate,
            guidance: self.guidance,
        };
        Method::new(Arc::new(core), text).drawing_from(rng)
    }
}

pub fn rolling(context: &NativeCallContext, grid: Grid, solver: Sampler) -> RolloutOptions {
    RolloutOptions { solver: solver.0, on_step: Some(watched(context)), ..RolloutOptions::new(grid) }
}

/// A method as a script writes it, with the choices that are not the usual ones.
pub fn written(name: &str, changed: Vec<(&'static str, String)>) -> String {
    let choices: Vec<String> =
        changed.into_iter().filter(|(key, _)| *key != "rng").map(|(key, value)| format!("{key}: {value}")).collect();
    if choices.is_empty() { format!("{name}(#{{}})") } else { format!("{name}(#{{ {} }})", choices.join(", ")) }
}

/// A batch that stands in a call.
fn once(x0: Tensor, given: Dynamic, cost: Cost, function: &str) -> Result<Batch> {
    Ok(Batch { x0, condition: condition(given, function)?, cost, options: BatchOptions::default() })
}

/// The methods: each with its choices alone is a value with `update`; with a policy, noise, condition and cost it is one update.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod update {
    use super::*;

    /// Truncated adjoint matching at its least cost: deterministic, or with a stochastic `solver` stochastic.
    ///
    /// With options alone it is a method: `method.update(policy, base, batch)`. With a policy and what it starts from it is that update.
    /// Gives `loss` for the optimizer, `reward`, `measured` for the log, `path`, the trajectory, and `adjoint`. The numbers are those of
    /// `rollout`, `terminal`, `lean_adjoint`, `control_target` and `matching_loss` in turn; the rollout's velocities and the
    /// adjoint's base velocities are computed once.
    ///
    /// ```rhai
    /// let shift = param(tensor([0.0]));
    /// let base = velocity_field(|x, t, c| -x);
    /// let policy = velocity_field(|x, t, c| -x + shift);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let options = #{ grid: uniform(2), truncate: last(1) };
    /// let update = adjoint_matching(policy, base, tensor([[1.0]]), (), cost, options);
    /// update.loss.item()                           //=> 0.25
    /// control_norm(update.path, update.adjoint)    //=> 0.0
    /// adjoint_matching(#{ truncate: last(3) })     //=> adjoint_matching(#{ truncate: last(3) })
    /// options.solver = sde(linear_decay());
    /// adjoint_matching(policy, base, tensor([[1.0]]), (), cost, options)   //=> error: needs a random stream
    /// ```
    #[allow(clippy::too_many_arguments)] // the six of the contract and the context
    #[rhai_fn(return_raw)]
    pub fn adjoint_matching(
        context: NativeCallContext,
        policy: Flow,
        base: Flow,
        x0: Tensor,
        condition: Dynamic,
        cost: Cost,
        options: Map,
    ) -> RhaiResultOf<Update> {
        let method = UpdateOptions::parse("adjoint_matching", options)?.method(&context);
        let batch = once(x0, condition, cost, "adjoint_matching")?;
        Ok(method.run(&Session::of(&context), policy, &base, &batch)?)
    }

    #[rhai_fn(name = "adjoint_matching", return_raw)]
    pub fn adjoint_matching_method(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        Ok(UpdateOptions::parse("adjoint_matching", options)?.method(&context))
    }

    /// DRaFT-K: the reward's own gradient through the last K steps of sampling (arXiv:2309.17400).
    ///
    /// With options alone it is a method: `method.update(policy, base, batch)`. With a policy and what it starts from it is that update.
    /// The loss is the mean cost of the ends. With `low_variance: n`, K = 1, it is the mean over n ends more, from the last step at new noise.
    ///
    /// ```rhai
    /// let shift = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| -x + shift);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = draft(policy, tensor([[1.0]]), (), cost, #{ grid: uniform(2) });
    /// update.loss.item()                                             //=> 0.25
    /// gradients(update.loss, [shift])[0].to_array()                  //=> [0.5]
    /// draft(#{ truncate: last(2) })                                  //=> draft(#{ truncate: last(2) })
    /// draft(policy, tensor([[1.0]]), (), terminal_cost(|x| x.detach().sum(1)), #{ grid: uniform(2) })   //=> error: must be differentiable
    /// ```
    #[rhai_fn(return_raw)]
    pub fn draft(
        context: NativeCallContext,
        policy: Flow,
        x0: Tensor,
        condition: Dynamic,
        cost: Cost,
        options: Map,
    ) -> RhaiResultOf<Update> {
        let method = DraftOptions::parse("draft", options)?.method(&context);
        Ok(method.run(&Session::of(&context), policy.clone(), &policy, &once(x0, condition, cost, "draft")?)?)
    }

    #[rhai_fn(name = "draft", return_raw)]
    pub fn draft_method(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        Ok(DraftOptions::parse("draft", options)?.method(&context))
    }

    /// ReFL-K: the cost of the data that one velocity predicts, at a step drawn from the last K (arXiv:2304.05977).
    ///
    /// With options alone it is a method: `method.update(policy, base, batch)`. With a policy and what it starts from it is that update.
    ///
    /// ```rhai
    /// let shift = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| -x + shift);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// refl(policy, tensor([[1.0]]), (), cost, #{ grid: uniform(2), truncate: last(1), rng: rng(0) }).loss.item()   //=> 0.25
    /// refl(policy, tensor([[1.0]]), (), cost, #{ truncate: last(5) })                                             //=> error: needs a random stream
    /// ```
    #[rhai_fn(return_raw)]
    pub fn refl(
        context: NativeCallContext,
        policy: Flow,
        x0: Tensor,
        condition: Dynamic,
        cost: Cost,
        options: Map,
    ) -> RhaiResultOf<Update> {
        let method = ReflOptions::parse("refl", options)?.method(&context);
        Ok(method.run(&Session::of(&context), policy.clone(), &policy, &once(x0, condition, cost, "refl")?)?)
    }

    #[rhai_fn(name = "refl", return_raw)]
    pub fn refl_method(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        Ok(ReflOptions::parse("refl", options)?.method(&context))
    }
}
