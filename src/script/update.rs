//! Chapter `update`: one update of each method.

use super::align::{Cost, mean_control};
use super::flow::{Trajectory, condition, watched};
use super::penalty::Penalty;
use super::sampler::{Sampler, draws};
use super::*;
use crate::align::{
    self as solver, AdjointIndex, Criterion, MatchingLoss, MatchingOptions, Norm, Recomputed, Reduction, Selection,
};
use crate::align::{Truncation, Units};
use crate::flow::{Grid, RolloutOptions, Velocity};
use crate::model::Flow;
use crate::nn::module::Module as _;
use crate::run::plan::{Method, Planner};
use crate::tensor::{Stream, Tensor};
use crate::{bail, options};

/// One update as scripts hold it.
#[derive(Clone)]
pub struct Update {
    loss: Tensor,
    reward: Tensor,
    /// Of adjoint matching only.
    path: Option<Trajectory>,
    /// Active steps, where they change from update to update.
    active: Option<usize>,
}

fn grid() -> Grid {
    super::flow::RolloutOptions::default().grid
}

fn euler() -> Sampler {
    super::flow::RolloutOptions::default().solver
}

options! {
    /// Choices of one update of adjoint matching.
    pub struct UpdateOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step from one time to the next; with noise, the update is one of stochastic adjoint matching.
        solver: Sampler = euler(),
        /// The random stream of a stochastic sampler and of `some_steps`.
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
        criterion: Criterion = Criterion::Fitting,
        /// Sum or mean of the errors over steps and latent entries.
        reduction: Reduction = Reduction::Sum,
        /// Errors of the velocity, or of the control that noise carries.
        units: Units = Units::Velocity,
        /// Weight each step with its width in time.
        weighted: bool = false,
        /// The active steps that enter the loss.
        matched: Selection = Selection::All,
        /// The most that one sample counts at one step; () means no bound.
        clip: Option<f64> = None,
        /// Take the reward's gradient at the end of a last step of the base without noise.
        noise_free_end: bool = false,
        /// What is rolled out, such as `guided(policy, 4)`; () means the policy. Another flow than the policy costs K forwards more.
        rolled: Option<Flow> = None,
        /// What carries the adjoint back, such as `guided(base, 4)`; () means the base. Another flow costs K forwards more.
        carrying: Option<Flow> = None,
        /// Run the policy again in the loss's backward, at one active step after the other, instead of keeping the graphs of all: K
        /// forwards more, the memory of one step.
        recompute: bool = false,
    }
}

impl UpdateOptions {
    /// Notes an update of a policy and its base.
    fn planned(&self, planner: &Planner, [policy, base]: [&Flow; 2], x0: &Tensor, cost: &Cost) -> Result<Error> {
        let steps = self.grid.steps();
        let flows = plan::Flows {
            rolled: self.rolled.as_ref().unwrap_or(policy),
            policy,
            carrying: self.carrying.as_ref().unwrap_or(base),
            base,
        };
        Ok(plan::fused(planner, &flows, x0, [steps, self.truncate.active(steps)?], self.recompute, cost))
    }

    fn core(self, context: &NativeCallContext, policy: &Flow, base: &Flow) -> Result<MatchingOptions> {
        let unless = |flow: Option<Flow>, own: &Flow| {
            flow.filter(|flow| !flow.is(own)).map(|flow| Arc::new(flow) as Arc<dyn Velocity>)
        };
        let recompute = self.recompute.then(|| recomputed(policy)).transpose()?;
        let steps = self.selected()?;
        let (reduction, units, weighted, clip) = (self.reduction, self.units, self.weighted, self.clip);
        Ok(MatchingOptions {
            rollout: rolling(context, self.grid, self.solver, self.rng),
            truncate: self.truncate,
            regularizer: self.penalty.core().clone(),
            norm: self.norm,
            index: self.index,
            criterion: self.criterion,
            loss: MatchingLoss { reduction, units, weighted, clip, steps },
            noise_free_end: self.noise_free_end,
            rolled: unless(self.rolled, policy),
            carrying: unless(self.carrying, base),
            recompute,
        })
    }

    /// The steps that enter the loss this time.
    fn selected(&self) -> Result<Option<Vec<usize>>> {
        if self.matched == Selection::All {
            return Ok(None);
        }
        let n = self.grid.steps();
        let window = n - self.truncate.active(n)?..n;
        stream(&self.rng, "adjoint_matching: some_steps")?.draw(|r| self.matched.draw(window, r))
    }
}

fn recomputed(policy: &Flow) -> Result<Recomputed> {
    let variables: Vec<Tensor> = policy.params().into_iter().map(|(_, variable)| variable).collect();
    if variables.is_empty() {
        bail!(Type, "adjoint_matching: recompute needs a policy whose trained numbers it can name, got {policy}";
            hint: "make the policy with base.lora(..) or base.trainable(), or leave recompute out");
    }
    Ok(Recomputed { policy: Arc::new(policy.clone()), variables })
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
        /// The random stream of `low_variance` and of a stochastic sampler.
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
        /// The random stream that the step is drawn from.
        rng: Option<Stream> = None,
    }
}

fn rolling(context: &NativeCallContext, grid: Grid, solver: Sampler, rng: Option<Stream>) -> RolloutOptions {
    let on_step = Some(watched(context));
    RolloutOptions { solver: solver.0, draw: draws(rng), on_step, ..RolloutOptions::new(grid) }
}

/// The stream that a draw needs.
fn stream<'a>(rng: &'a Option<Stream>, what: &str) -> Result<&'a Stream> {
    let missing = || Error::new(Kind::Missing, format!("{what} needs a random stream, got none"));
    rng.as_ref().ok_or_else(|| missing().hint("give one as `rng`, such as `rng: run.rng(\"steps\")`"))
}

impl From<solver::Direct> for Update {
    fn from(direct: solver::Direct) -> Self {
        Self { loss: direct.loss, reward: direct.reward, path: None, active: None }
    }
}

/// One update of each method: its loss, for the optimizer, and what was measured on the way.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod update {
    use super::*;

    pub type Update = super::Update;

    /// One update of truncated adjoint matching at its least cost: deterministic, or with a stochastic `solver` stochastic.
    ///
    /// Gives `loss` for the optimizer, `reward`, `measured` for the log, and `path`, the trajectory. The numbers are those of `rollout`,
    /// `terminal_gradient`, `lean_adjoint`, `control_target` and `matching_loss` in turn; the rollout's velocities and the
    /// adjoint's base velocities are computed once.
    ///
    /// ```rhai
    /// let shift = param(tensor([0.0]));
    /// let base = velocity_field(|x, t, c| -x);
    /// let policy = velocity_field(|x, t, c| -x + shift);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let options = #{ grid: uniform(2), truncate: last(1) };
    /// let update = adjoint_matching(policy, base, tensor([[1.0]]), (), cost, options);
    /// update.loss.item()               //=> 0.25
    /// update.path.control_norm()       //=> 0.0
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
        let condition = super::condition(condition, "adjoint_matching")?;
        let options = UpdateOptions::parse("adjoint_matching", options)?;
        if let Some(planner) = Session::of(&context).planner() {
            return Err(options.planned(planner, [&policy, &base], &x0, &cost)?.into());
        }
        let adaptive = matches!(options.truncate, Truncation::Adaptive(_));
        let options = options.core(&context, &policy, &base)?;
        let cost = cost.of_states(&policy)?;
        let update = solver::adjoint_matching(&policy, &base, &x0, &condition, &cost, &options)?;
        let active = adaptive.then_some(update.path.window().len());
        let (path, reward) = (Trajectory::new(policy, update.path), update.terminal.reward);
        path.measured().reward = Some(reward.clone());
        path.measured().base = Some((base, update.adjoint.base_velocities));
        Ok(Update { loss: update.loss, reward, path: Some(path), active })
    }

    /// One update of DRaFT-K: the reward's own gradient through the last K steps of sampling (arXiv:2309.17400).
    ///
    /// The loss is the mean cost of the ends. With `low_variance: n`, K = 1, it is the mean over n ends more, from the last step at new noise.
    ///
    /// ```rhai
    /// let shift = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| -x + shift);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = draft(policy, tensor([[1.0]]), (), cost, #{ grid: uniform(2) });
    /// update.loss.item()                                             //=> 0.25
    /// gradients(update.loss, [shift])[0].to_array()                  //=> [0.5]
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
        let condition = super::condition(condition, "draft")?;
        let options = DraftOptions::parse("draft", options)?;
        let steps = options.grid.steps();
        if let Some(planner) = Session::of(&context).planner() {
            let (n, k) = (steps + options.low_variance, options.truncate.active(steps)? + options.low_variance);
            return Err(plan::direct(planner, Method::Draft, &policy, &x0, [n, k], &cost).into());
        }
        let options = solver::DraftOptions {
            rollout: rolling(&context, options.grid, options.solver, options.rng),
            truncate: options.truncate,
            renoised: options.low_variance,
        };
        Ok(solver::draft(&policy, &x0, &condition, &cost.of_states(&policy)?, &options)?.into())
    }

    /// One update of ReFL-K: the cost of the data that one velocity predicts, at a step drawn from the last K (arXiv:2304.05977).
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
        let condition = super::condition(condition, "refl")?;
        let options = ReflOptions::parse("refl", options)?;
        let steps = options.grid.steps();
        let active = options.truncate.active(steps)?;
        if let Some(planner) = Session::of(&context).planner() {
            // On average the step lies in the middle of the last K.
            return Err(plan::direct(planner, Method::Refl, &policy, &x0, [steps - active / 2, 1], &cost).into());
        }
        let m = steps - 1 - stream(&options.rng, "refl")?.draw(|r| r.integers(1, active))[0];
        let rollout = rolling(&context, options.grid, options.solver, options.rng);
        Ok(solver::refl(&policy, &x0, &condition, &cost.of_states(&policy)?, &rollout, m)?.into())
    }

    /// The loss of an update, for the optimizer.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(1) });
    /// update.loss.item()   //=> 4.0
    /// ```
    #[rhai_fn(get = "loss", pure)]
    pub fn loss(update: &mut Update) -> Tensor {
        update.loss.clone()
    }

    /// The rewards `[batch]` that an update saw.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(1) }).reward.to_array()   //=> [-2.0]
    /// ```
    #[rhai_fn(get = "reward", pure)]
    pub fn reward(update: &mut Update) -> Tensor {
        update.reward.clone()
    }

    /// What an update measured, for `run.log`: loss and reward; of adjoint matching the mean size of the control at the active steps too,
    /// and their number where `adaptive` chooses it.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(1), truncate: adaptive(1) });
    /// update.measured.keys()   //=> ["active", "control", "loss", "reward"]
    /// ```
    #[rhai_fn(get = "measured", pure, return_raw)]
    pub fn measured(update: &mut Update) -> RhaiResultOf<Map> {
        let mut map = Map::new();
        map.insert("loss".into(), Dynamic::from(update.loss.detach()));
        map.insert("reward".into(), Dynamic::from(update.reward.clone()));
        if let Some(path) = &update.path {
            map.insert("control".into(), mean_control(path)?.into());
        }
        if let Some(active) = update.active {
            map.insert("active".into(), (active as i64).into());
        }
        Ok(map)
    }

    /// The trajectory of an update of adjoint matching, with its rewards and control; `()` for other methods.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(1) });
    /// [update.path.last.item(), update.path.reward.item(), update.path.control_norm()]   //=> [2.0, -2.0, 0.0]
    /// ```
    #[rhai_fn(get = "path", pure)]
    pub fn path(update: &mut Update) -> Dynamic {
        update.path.clone().map_or(Dynamic::UNIT, Dynamic::from)
    }
}
