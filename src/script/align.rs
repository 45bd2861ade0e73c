//! Chapter `align`: costs, lean adjoint, losses, control intensity.

use super::flow::Trajectory;
use super::penalty::Penalty;
use super::reward::texts;
use super::*;
use crate::align as solver;
use crate::align::{AdjointIndex, MatchingLoss, Reduction, RewardCost, Units};
use crate::model::Flow;
use crate::reward::Judge;
use crate::tensor::{DType, Tensor};
use crate::{options, script_value};

script_value!(Flow, "a flow such as `flow(\"tiny/flux2\")`");

type Score = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// A reward or cost of decoded images, and its scale.
#[derive(Clone)]
pub struct Cost {
    score: Arc<Score>,
    scale: f64,
    judge: Option<Judge>,
}

impl Cost {
    /// `score` gives `[batch]` rewards of images, differentiably; the cost is `-scale` times that.
    pub fn new(score: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static, scale: f64) -> Self {
        Self { score: Arc::new(score), scale, judge: None }
    }

    /// The work of judging one image; nothing is known of a closure's.
    pub fn work(&self, cpu: bool) -> crate::nn::cost::Cost {
        self.judge.as_ref().map(|judge| judge.work(cpu)).unwrap_or_default()
    }

    /// The cost of end states of `flow`.
    pub fn of_states(&self, flow: &Flow) -> Result<RewardCost> {
        let (flow, score) = (flow.clone(), self.score.clone());
        RewardCost::new(move |x| score(&flow.decode(x)?), self.scale)
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
    fn core(self) -> MatchingLoss {
        let Self { reduction, units, weighted, clip } = self;
        MatchingLoss { reduction, units, weighted, clip, steps: None }
    }
}

/// Mean over kept steps and samples of `|v_policy - v_base|`, from velocities at hand.
pub fn mean_control(path: &Trajectory) -> Result<f64> {
    let norms = solver::control_norms(&path.path.velocities, &path.base_velocities()?)?;
    Ok(norms.to_dtype(DType::F64)?.mean_all()?.to_scalar()?)
}

/// Costs, the lean adjoint, the losses of adjoint matching, control intensity.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod align {
    use super::*;

    pub type Adjoint = solver::Adjoint;
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
        Cost::new(move |images| Ok(callback.call::<Tensor>((images.clone(),))?.neg()?), 1.0)
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
    pub fn reward_cost(reward: Judge, prompts: Dynamic, scale: f64) -> RhaiResultOf<Cost> {
        let _ = texts(prompts.clone(), 1, "reward_cost: prompts")?;
        let judge = Some(reward.clone());
        let score = move |images: &Tensor| {
            reward.score(images, &texts(prompts.clone(), images.dim(0)?, "reward_cost: prompts")?)
        };
        Ok(Cost { judge, ..Cost::new(score, scale) })
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
        Ok(core((cost.score)(&images)?.detach() * -cost.scale)?)
    }

    /// The terminal condition of the adjoint: the gradient of the cost at the end states, per sample.
    ///
    /// A reward or gradient that is not finite is an error that names the sample.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0], [2.0]]), (), #{ grid: uniform(1) });
    /// path.terminal_gradient(terminal_cost(|x| x.sum(1) * 3)).to_array()   //=> [[3.0], [3.0]]
    /// path.reward.to_array()                                               //=> [-6.0, -12.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn terminal_gradient(context: NativeCallContext, path: Trajectory, cost: Cost) -> RhaiResultOf<Tensor> {
        if let Some(planner) = Session::of(&context).planner() {
            return Ok(plan::judged(planner, &path, &cost)?);
        }
        let end = solver::terminal_gradient(&cost.of_states(&path.flow)?, path.path.last())?;
        path.measured().reward = Some(end.reward);
        Ok(end.gradient)
    }

    /// The rewards `[batch]` that `terminal_gradient` found at the end of a trajectory.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0], [2.0]]), (), #{ grid: uniform(1) });
    /// path.reward                                  //=> error: the end states must have been judged
    /// path.terminal_gradient(terminal_cost(|x| x.sum(1)));
    /// path.reward.to_array()                       //=> [-2.0, -4.0]
    /// ```
    #[rhai_fn(get = "reward", pure, return_raw)]
    pub fn reward_of(path: &mut Trajectory) -> RhaiResultOf<Tensor> {
        Ok(path.reward()?)
    }

    /// Carries the terminal gradient back along the kept steps of a trajectory by the base flow's Jacobian.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// adjoint.values.map(|a| a.item())   //=> [9.0, 6.0]
    /// lean_adjoint(base, path, tensor([[4.0]]), #{ index: next_step() }).values.map(|a| a.item())   //=> [6.0, 4.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn lean_adjoint(
        context: NativeCallContext,
        base: Flow,
        path: Trajectory,
        terminal_gradient: Tensor,
        options: Map,
    ) -> RhaiResultOf<Adjoint> {
        let options = AdjointOptions::parse("lean_adjoint", options)?;
        if let Some(planner) = Session::of(&context).planner() {
            return Err(plan::separate(planner, &path, &base).into());
        }
        let adjoint = solver::lean_adjoint(&base, &path.path, &terminal_gradient, options.index)?;
        path.measured().base = Some((base, adjoint.base_velocities.clone()));
        Ok(adjoint)
    }

    /// The adjoints of the active steps, one for each step's target.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2), keep: last(1) });
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
    /// Base velocities that `lean_adjoint` found on the same trajectory are used again.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let policy = velocity_field(|x, t, c| x + 1);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(4), keep: last(2) });
    /// matching_loss(policy, base, path, [tensor([[1.0]]), tensor([[4.0]])]).item()   //=> 9.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn matching_loss(
        policy: Flow,
        base: Flow,
        path: Trajectory,
        targets: Array,
        options: Map,
    ) -> RhaiResultOf<Tensor> {
        let options = LossOptions::parse("matching_loss", options)?.core();
        let targets: Vec<Tensor> = option::list(targets, "matching_loss: targets")?;
        let known = match &path.measured().base {
            Some((flow, velocities)) if flow.is(&base) => velocities.clone(),
            _ => solver::velocities(&base, &path.path)?.iter().map(Tensor::detach).collect(),
        };
        let policy = solver::velocities(&policy, &path.path)?;
        Ok(solver::velocity_matching(&policy, &known, &targets, &path.path, &options)?)
    }

    /// The loss whose least mean is at the optimal control of any penalty, also where noise makes the adjoint random.
    ///
    /// `2 (f(|u|) + f*(sigma |a|) + sigma a . u)` for the policy's control `u`, in units of velocity: at least 0, and the squared distance of
    /// `matching_loss` for the quadratic penalty. `adjoint` comes from `lean_adjoint` on the same trajectory.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let policy = velocity_field(|x, t, c| x + 1);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(4), keep: last(1) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// let squared = matching_loss(policy, base, path, control_target(adjoint, quadratic()));
    /// assert_close(fenchel_loss(policy, path, adjoint, quadratic()).item(), squared.item(), 1e-4);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn fenchel_loss(
        policy: Flow,
        path: Trajectory,
        adjoint: Adjoint,
        penalty: Penalty,
        options: Map,
    ) -> RhaiResultOf<Tensor> {
        let options = LossOptions::parse("fenchel_loss", options)?.core();
        let policy = solver::velocities(&policy, &path.path)?;
        Ok(solver::fenchel_matching(&policy, &adjoint, penalty.core(), &path.path, &options)?)
    }

    /// Mean size of the control over the kept steps and samples of a trajectory, after `lean_adjoint`.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(velocity_field(|x, t, c| x + 3), tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// path.control_norm()                          //=> error: lean_adjoint must have run
    /// lean_adjoint(base, path, tensor([[1.0]]));
    /// path.control_norm()                          //=> 3.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_norm(path: Trajectory) -> RhaiResultOf<f64> {
        Ok(mean_control(&path)?)
    }

    /// The same at each kept step, `[steps]`: the mean over samples.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(velocity_field(|x, t, c| 3 * x), tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// lean_adjoint(base, path, tensor([[1.0]]));
    /// path.control_norms().to_array()              //=> [2.0, 5.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_norms(path: Trajectory) -> RhaiResultOf<Tensor> {
        let norms = solver::control_norms(&path.path.velocities, &path.base_velocities()?)?;
        Ok(core(norms.mean(1))?)
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
    pub fn show_cost(cost: &mut Cost) -> String {
        format!("reward_cost(.., {})", cost.scale)
    }
}
