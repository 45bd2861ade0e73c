//! Chapter `align`: costs, lean adjoint, losses, control intensity.

use super::flow::Trajectory;
use super::penalty::Penalty;
use super::reward::texts;
use super::*;
use crate::{options, script_value};
use amscript_align as solver;
use amscript_align::{AdjointIndex, MatchingOptions, Reduction, RewardCost, Units};
use amscript_base::bail;
use amscript_model::Flow;
use amscript_reward::RewardModel;
use amscript_tensor::check::deferred_checks;
use amscript_tensor::{DType, Tensor};
use std::ops::Range;

script_value!(Flow, "a flow such as `flow(\"tiny/flux2\")`");
script_value!(Cost, "a cost such as `reward_cost(judge, prompts, 1)`", |cost| format!(
    "reward_cost(.., {})",
    cost.scale
));

type Score = dyn Fn(&Tensor, Option<&Range<usize>>) -> Result<Tensor> + Send + Sync;

/// A reward or cost of decoded images, and its scale.
#[derive(Clone)]
pub struct Cost {
    score: Arc<Score>,
    scale: f64,
}

impl Cost {
    /// `score` gives `[batch]` rewards of images, differentiably; the cost is `-scale` times that. It is told which of a batch's samples
    /// the images are of, where not all.
    pub fn new(
        score: impl Fn(&Tensor, Option<&Range<usize>>) -> Result<Tensor> + Send + Sync + 'static,
        scale: f64,
    ) -> Self {
        Self { score: Arc::new(score), scale }
    }

    /// The cost of end states of `flow`.
    pub fn of_states(&self, flow: &Flow) -> Result<RewardCost> {
        let (flow, score) = (flow.clone(), self.score.clone());
        RewardCost::by_row(move |x, rows| score(&flow.decode(x)?, rows), self.scale)
    }

    /// The cost of some of a batch's samples.
    pub fn of_rows(&self, rows: Range<usize>) -> Self {
        let score = self.score.clone();
        Self { score: Arc::new(move |images, _| score(images, Some(&rows))), ..*self }
    }
}

/// The prompts of `n` images, which may be some of a batch's.
fn prompts_of(prompts: Dynamic, n: usize, rows: Option<&Range<usize>>) -> Result<Vec<String>> {
    let texts = texts(prompts, n, "reward_cost: prompts")?;
    match rows {
        Some(rows) if texts.len() > n && texts.len() >= rows.end => Ok(texts[rows.clone()].to_vec()),
        _ => Ok(texts),
    }
}

options! {
    /// Choices of the adjoint.
    pub struct AdjointOptions {
        /// The adjoint of a step's target: `a_k` as the papers, or `a_{k+1}`, the exact gradient of the discrete problem.
        index: AdjointIndex = AdjointIndex::Same,
    }
}

options! {
    /// Choices of the loss.
    pub struct LossOptions {
        /// Sum or mean of the errors over steps and latent entries.
        reduction: Reduction = Reduction::Sum,
        /// Errors of the velocity, or of the control that noise carries.
        units: Units = Units::Velocity,
        /// Weight each step with its width in time.
        weighted: bool = false,
        /// The most that one sample counts at one step; () means no bound.
        clip: Option<f64> = None,
    }
}

impl LossOptions {
    fn core(self) -> MatchingOptions {
        let Self { reduction, units, weighted, clip } = self;
        MatchingOptions { reduction, units, weighted, clip, steps: None }
    }
}

/// Size of the policy's control at every step and sample of a path, `[steps, batch]`, beside the adjoint along it.
fn control_sizes(path: &amscript_align::flow::Trajectory, adjoint: &solver::Adjoint) -> Result<Tensor> {
    let (steps, active) = (path.window(), adjoint.first..adjoint.first + adjoint.values.len());
    if steps != active {
        bail!(Shape, "control_norms: the adjoint must be one along the path's steps {steps:?}, got steps {active:?}");
    }
    solver::control_norms(&path.velocities, &adjoint.base_velocities)
}

/// Mean over kept steps and samples of `|v_policy - v_base|`, from velocities at hand.
pub fn mean_control(path: &amscript_align::flow::Trajectory, adjoint: &solver::Adjoint) -> Result<f64> {
    control_sizes(path, adjoint)?.to_dtype(DType::F64)?.mean_all()?.to_scalar()
}

/// The loss of given targets, from the base's velocities.
fn matched(policy: &Flow, bases: &[Tensor], path: &Trajectory, targets: Array, options: Map) -> Result<Tensor> {
    let options = LossOptions::parse("matching_loss", options)?.core();
    let targets: Vec<Tensor> = option::list(targets, "matching_loss: targets")?;
    let policy = solver::velocities(policy, &path.path)?;
    solver::velocity_matching(&policy, bases, &targets, &path.path, &options)
}

/// Costs, the lean adjoint, the losses of adjoint matching, control intensity.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod align {
    use super::*;

    pub type Adjoint = solver::Adjoint;
    pub type Terminal = solver::Terminal;
    pub type Cost = super::Cost;

    /// A cost of images, as a closure that gives one number per image; lower is better.
    ///
    /// ```rhai
    /// let dark = terminal_cost(|images| (images * images).sum(1));
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0, 2.0]]), (), #{ grid: uniform(1) });
    /// path.terminal_gradient(dark).to_array()   //=> [[4.0, 8.0]]
    /// ```
    pub fn terminal_cost(context: NativeCallContext, closure: FnPtr) -> Cost {
        let callback = Callback::new(&context, "terminal_cost", closure);
        Cost::new(move |images, _| callback.call::<Tensor>((images.clone(),))?.neg(), 1.0)
    }

    /// The cost `-scale * reward` of images; `prompts` are texts, a prompt set, or the condition that was encoded from them.
    ///
    /// The larger the scale, the further the policy moves for the reward.
    ///
    /// ```rhai
    /// let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// reward_cost(bright, "a red circle", 100)   //=> reward_cost(.., 100)
    /// reward_cost(bright, 3, 100)                //=> error: expected texts
    /// ```
    #[rhai_fn(return_raw)]
    pub fn reward_cost(reward: RewardModel, prompts: Dynamic, scale: f64) -> RhaiResultOf<Cost> {
        let _ = texts(prompts.clone(), 1, "reward_cost: prompts")?;
        let score = move |images: &Tensor, rows: Option<&Range<usize>>| {
            reward.score(images, &prompts_of(prompts.clone(), images.dim(0)?, rows)?)
        };
        Ok(Cost::new(score, scale))
    }

    /// The cost `[batch]` of images, or of the end states of a flow without a decoder.
    ///
    /// ```rhai
    /// terminal_cost(|x| x.sum(1) * 3).of(tensor([[1.0], [2.0]])).to_array()                       //=> [3.0, 6.0]
    /// let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// reward_cost(bright, "a red circle", 100).of(full([2, 3, 4, 4], 0.5)).to_array()   //=> [-50.0, -50.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn of(cost: Cost, images: Tensor) -> RhaiResultOf<Tensor> {
        Ok(((cost.score)(&images, None)? * -cost.scale)?.constant())
    }

    /// The end of a trajectory, judged: its `reward` `[batch]` and the `gradient` of the cost, per sample.
    ///
    /// A reward or gradient that is not finite is an error that names the sample.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0], [2.0]]), (), #{ grid: uniform(1) });
    /// let end = path.terminal(terminal_cost(|x| x.sum(1) * 3));
    /// end.gradient.to_array()   //=> [[3.0], [3.0]]
    /// end.reward.to_array()     //=> [-6.0, -12.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn terminal(path: Trajectory, cost: Cost) -> RhaiResultOf<Terminal> {
        let cost = cost.of_states(&path.flow)?;
        Ok(deferred_checks(|| solver::terminal_gradient(&cost, path.path.last()))?)
    }

    /// The terminal condition of the adjoint: the gradient of the cost at the end states, per sample.
    ///
    /// `terminal` gives the rewards with it.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0], [2.0]]), (), #{ grid: uniform(1) });
    /// path.terminal_gradient(terminal_cost(|x| x.sum(1) * 3)).to_array()   //=> [[3.0], [3.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn terminal_gradient(path: Trajectory, cost: Cost) -> RhaiResultOf<Tensor> {
        Ok(terminal(path, cost)?.gradient)
    }

    /// The rewards `[batch]` of a trajectory's end.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0]]), (), #{ grid: uniform(1) });
    /// path.terminal(terminal_cost(|x| x.sum(1))).reward.to_array()   //=> [-2.0]
    /// ```
    #[rhai_fn(get = "reward", pure)]
    pub fn reward_of(end: &mut Terminal) -> Tensor {
        end.reward.clone()
    }

    /// The gradient of the cost at a trajectory's end, where the adjoint begins.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0]]), (), #{ grid: uniform(1) });
    /// path.terminal(terminal_cost(|x| 5 * x.sum(1))).gradient.to_array()   //=> [[5.0]]
    /// ```
    #[rhai_fn(get = "gradient", pure)]
    pub fn gradient_of(end: &mut Terminal) -> Tensor {
        end.gradient.clone()
    }

    /// Carries the terminal gradient back along the kept steps of a trajectory by the base flow's Jacobian.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// adjoint.values.map(|a| a.item())   //=> [9.0, 6.0]
    /// lean_adjoint(base, path, tensor([[4.0]]), #{ index: discrete_adjoint() }).values.map(|a| a.item())   //=> [6.0, 4.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn lean_adjoint(
        base: Flow,
        path: Trajectory,
        terminal_gradient: Tensor,
        options: Map,
    ) -> RhaiResultOf<Adjoint> {
        let options = AdjointOptions::parse("lean_adjoint", options)?;
        Ok(deferred_checks(|| solver::lean_adjoint(&base, &path.path, &terminal_gradient, options.index))?)
    }

    /// The adjoints of the active steps, one for each step's target.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2), truncate: last(1) });
    /// lean_adjoint(base, path, tensor([[4.0]])).values.len()   //=> 1
    /// ```
    #[rhai_fn(get = "values", pure)]
    pub fn values(adjoint: &mut Adjoint) -> Array {
        adjoint.values.iter().cloned().map(Dynamic::from).collect()
    }

    /// The sizes of the adjoints, `[steps, batch]`.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0], [2.0]]), (), #{ grid: uniform(2) });
    /// lean_adjoint(base, path, tensor([[4.0], [-8.0]])).norms.to_array()   //=> [[9.0, 18.0], [6.0, 12.0]]
    /// ```
    #[rhai_fn(get = "norms", pure, return_raw)]
    pub fn norms(adjoint: &mut Adjoint) -> RhaiResultOf<Tensor> {
        Ok(solver::norms(&adjoint.values)?)
    }

    /// The adjoint for a cost that is some factor larger, in which it is linear: another reward scale without another walk back.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// (adjoint * 10).values.map(|a| a.item())   //=> [90.0, 60.0]
    /// ```
    #[rhai_fn(name = "*", return_raw)]
    pub fn scaled(adjoint: Adjoint, factor: f64) -> RhaiResultOf<Adjoint> {
        Ok(adjoint.scaled(factor)?)
    }

    /// The adjoint matching loss: mean over the batch of the squared distance of the policy's control from its target.
    ///
    /// With the adjoint along the trajectory in the base's place, the base's velocities that it found are used again.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let policy = velocity_field(|x, t, c| x + 1);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(4), truncate: last(2) });
    /// matching_loss(policy, base, path, [tensor([[1.0]]), tensor([[4.0]])]).item()   //=> 9.0
    /// let adjoint = lean_adjoint(base, path, tensor([[1.0]]));
    /// matching_loss(policy, adjoint, path, [tensor([[1.0]]), tensor([[4.0]])]).item()   //=> 9.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn matching_loss(
        policy: Flow,
        base: Flow,
        path: Trajectory,
        targets: Array,
        options: Map,
    ) -> RhaiResultOf<Tensor> {
        let bases: Vec<Tensor> = solver::velocities(&base, &path.path)?.iter().map(Tensor::constant).collect();
        Ok(matched(&policy, &bases, &path, targets, options)?)
    }

    #[rhai_fn(name = "matching_loss", return_raw)]
    pub fn matching_loss_beside(
        policy: Flow,
        adjoint: Adjoint,
        path: Trajectory,
        targets: Array,
        options: Map,
    ) -> RhaiResultOf<Tensor> {
        Ok(matched(&policy, &adjoint.base_velocities, &path, targets, options)?)
    }

    /// The loss whose least mean is at the optimal control of any penalty, also where noise makes the adjoint random.
    ///
    /// `2 (f(|u|) + f*(sigma |a|) + sigma a . u)` for the policy's control `u`, in units of velocity: at least 0, and the squared distance of
    /// `matching_loss` for the quadratic penalty. `adjoint` comes from `lean_adjoint` on the same trajectory.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let policy = velocity_field(|x, t, c| x + 1);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(4), truncate: last(1) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// let squared = matching_loss(policy, base, path, control_target(adjoint, quadratic()));
    /// assert_close(fenchel_young_loss(policy, path, adjoint, quadratic()).item(), squared.item(), 1e-4);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn fenchel_young_loss(
        policy: Flow,
        path: Trajectory,
        adjoint: Adjoint,
        penalty: Penalty,
        options: Map,
    ) -> RhaiResultOf<Tensor> {
        let options = LossOptions::parse("fenchel_young_loss", options)?.core();
        let policy = solver::velocities(&policy, &path.path)?;
        Ok(solver::fenchel_young_matching(&policy, &adjoint, penalty.core(), &path.path, &options)?)
    }

    /// Mean size of the control over the kept steps and samples of a trajectory, from the adjoint of the base along it.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(velocity_field(|x, t, c| x + 3), tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// control_norm(path, lean_adjoint(base, path, tensor([[1.0]])))   //=> 3.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_norm(path: Trajectory, adjoint: Adjoint) -> RhaiResultOf<f64> {
        Ok(mean_control(&path.path, &adjoint)?)
    }

    /// The same at each kept step, `[steps]`: the mean over samples.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(velocity_field(|x, t, c| 3 * x), tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// let adjoint = lean_adjoint(base, path, tensor([[1.0]]));
    /// control_norms(path, adjoint).to_array()   //=> [2.0, 5.0]
    /// let short = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2), truncate: last(1) });
    /// control_norms(short, adjoint)             //=> error: the adjoint must be one along the path's steps 1..2, got steps 0..2
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_norms(path: Trajectory, adjoint: Adjoint) -> RhaiResultOf<Tensor> {
        Ok(control_sizes(&path.path, &adjoint)?.mean(1)?)
    }

    /// The first step of an adjoint; the active steps are this one and all behind it.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(5), truncate: last(2) });
    /// lean_adjoint(base, path, tensor([[4.0]])).first   //=> 3
    /// ```
    #[rhai_fn(get = "first", pure)]
    pub fn first(adjoint: &mut Adjoint) -> i64 {
        adjoint.first as i64
    }

    /// The size of the control at every kept step and sample of a trajectory, `[steps, batch]`.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// control_intensity(velocity_field(|x, t, c| 3 * x), base, path).to_array()   //=> [[2.0], [3.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_intensity(policy: Flow, base: Flow, path: Trajectory) -> RhaiResultOf<Tensor> {
        Ok(solver::control_intensity(&policy, &base, &path.path)?)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_adjoint(adjoint: &mut Adjoint) -> String {
        let shape = adjoint.values.first().map_or(&[][..], |a| a.dims());
        format!("adjoint(steps {}..{}, of states {shape:?})", adjoint.first, adjoint.first + adjoint.values.len())
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_terminal(end: &mut Terminal) -> String {
        format!("terminal(rewards {:?}, gradient {:?})", end.reward.dims(), end.gradient.dims())
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_cost(cost: &mut Cost) -> String {
        option::FromScript::show(cost)
    }
}
