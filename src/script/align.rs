//! Chapter `align`: costs, penalties, lean adjoint, matching.

use super::flow::{Sampler, Trajectory, condition, watched};
use super::reward::texts;
use super::*;
use crate::align as solver;
use crate::align::{AdjointIndex, MatchingLoss, MatchingOptions, Reduction, RewardCost};
use crate::model::{Flow, estimate};
use crate::reward::Judge;
use crate::run::plan::Planner;
use crate::tensor::{DType, Tensor};
use crate::{options, script_value};
use std::fmt;

script_value!(Flow, "a flow such as `flow(\"tiny/flux2\")`");
script_value!(Penalty, "a control penalty such as `power(4)`");
script_value!(Index, "an adjoint index such as `same_step()`");
script_value!(Reduce, "a reduction such as `sum_errors()`");

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
    pub fn work(&self, fused: bool) -> estimate::Cost {
        self.judge.as_ref().map(|judge| judge.work(fused)).unwrap_or_default()
    }

    /// The cost of end states of `flow`.
    fn of_states(&self, flow: &Flow) -> Result<RewardCost> {
        let (flow, score) = (flow.clone(), self.score.clone());
        RewardCost::new(move |x| score(&flow.decode(x)?), self.scale)
    }
}

/// A control penalty with the name it goes by.
#[derive(Clone)]
pub struct Penalty {
    penalty: solver::Regularizer,
    name: String,
}

impl fmt::Display for Penalty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An [`AdjointIndex`] that a script can hold.
#[derive(Clone, Copy)]
pub struct Index(AdjointIndex);

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == AdjointIndex::Same { "same_step()" } else { "next_step()" })
    }
}

/// A [`Reduction`] that a script can hold.
#[derive(Clone, Copy)]
pub struct Reduce(Reduction);

impl fmt::Display for Reduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == Reduction::Sum { "sum_errors()" } else { "mean_errors()" })
    }
}

/// One fused update as scripts hold it.
#[derive(Clone)]
pub struct Update {
    loss: Tensor,
    path: Trajectory,
}

options! {
    /// Choices of the adjoint.
    pub struct AdjointOptions {
        /// The adjoint of a step's target: `a_k` as the papers, or `a_{k+1}`, the exact gradient of the discrete problem.
        index: Index = Index(AdjointIndex::Same),
    }
}

options! {
    /// Choices of the loss.
    pub struct LossOptions {
        /// Sum or mean of the squared errors over steps and latent entries.
        reduction: Reduce = Reduce(Reduction::Sum),
        /// Weight each step with its width in time.
        weighted: bool = false,
    }
}

options! {
    /// Choices of one fused update.
    pub struct UpdateOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: crate::flow::Grid = super::flow::RolloutOptions::default().grid,
        /// How to step from one time to the next.
        solver: Sampler = super::flow::RolloutOptions::default().solver,
        /// The active steps.
        truncate: solver::Truncation = solver::Truncation::Full,
        /// The penalty on the control.
        penalty: Penalty = Penalty { penalty: solver::Regularizer::quadratic(), name: "quadratic()".into() },
        /// The adjoint of a step's target: `a_k` as the papers, or `a_{k+1}`, the exact gradient of the discrete problem.
        index: Index = Index(AdjointIndex::Same),
        /// Sum or mean of the squared errors over steps and latent entries.
        reduction: Reduce = Reduce(Reduction::Sum),
        /// Weight each step with its width in time.
        weighted: bool = false,
        /// What is rolled out, such as `guided(policy, 4)`; () means the policy. Another flow than the policy costs K forwards more.
        rolled: Option<Flow> = None,
        /// What carries the adjoint back, such as `guided(base, 4)`; () means the base. Another flow costs K forwards more.
        carrying: Option<Flow> = None,
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
        Ok(plan::fused(planner, &flows, x0, [steps, self.truncate.active(steps)?], cost))
    }

    fn core(self, context: &NativeCallContext, policy: &Flow, base: &Flow) -> MatchingOptions {
        let unless = |flow: Option<Flow>, own: &Flow| {
            flow.filter(|flow| !flow.is(own)).map(|flow| Arc::new(flow) as Arc<dyn crate::model::Velocity>)
        };
        let mut options = MatchingOptions::new(self.grid);
        options.rollout.solver = self.solver.0;
        options.rollout.on_step = Some(watched(context));
        options.truncate = self.truncate;
        options.rolled = unless(self.rolled, policy);
        options.carrying = unless(self.carrying, base);
        options.regularizer = self.penalty.penalty;
        options.index = self.index.0;
        options.loss = MatchingLoss { reduction: self.reduction.0, weighted: self.weighted };
        options
    }
}

/// Mean over kept steps and samples of `|v_policy - v_base|`, from velocities at hand.
fn mean_control(path: &Trajectory) -> Result<f64> {
    let norms = solver::control_norms(&path.path.velocities, &path.base_velocities()?)?;
    Ok(norms.to_dtype(DType::F64)?.mean_all()?.to_scalar()?)
}

/// Costs, control penalties, the lean adjoint and adjoint matching.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod align {
    use super::*;

    pub type Truncation = solver::Truncation;
    pub type Adjoint = solver::Adjoint;
    pub type Penalty = super::Penalty;
    pub type Index = super::Index;
    pub type Reduce = super::Reduce;
    pub type Cost = super::Cost;
    pub type Update = super::Update;

    /// Only the last `k` steps are active.
    ///
    /// ```rhai
    /// last(3)   //=> last(3)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn last(k: i64) -> RhaiResultOf<Truncation> {
        Ok(Truncation::last(option::convert(k.into(), "last")?)?)
    }

    /// Every step is active.
    ///
    /// ```rhai
    /// full()   //=> full()
    /// ```
    pub fn full() -> Truncation {
        Truncation::Full
    }

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

    /// The penalty `r^2 / 2` of plain adjoint matching.
    ///
    /// ```rhai
    /// control_target(tensor([[3.0, 4.0]]), quadratic()).to_array()   //=> [[-3.0, -4.0]]
    /// ```
    pub fn quadratic() -> Penalty {
        Penalty { penalty: solver::Regularizer::quadratic(), name: "quadratic()".into() }
    }

    /// The penalty `r^p / p`: the larger `p`, the more evenly the control spreads over time and samples.
    ///
    /// ```rhai
    /// control_target(tensor([[0.0, 8.0]]), power(4)).to_array()   //=> [[-0.0, -2.0]]
    /// power(1)                                                    //=> error: must be above 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn power(p: f64) -> RhaiResultOf<Penalty> {
        Ok(Penalty { penalty: solver::Regularizer::power(p)?, name: format!("power({p})") })
    }

    /// Any increasing, convex penalty of the norm of the control, as a closure.
    ///
    /// The closure gets a vector of norms and gives the penalty of each. Its derivative and the inverse of that are found
    /// numerically; where it does not increase or is not convex on the range met, that is an error.
    ///
    /// ```rhai
    /// let f = penalty(|r| r * r * r * r / 4);
    /// assert_close(control_target(tensor([[8.0]]), f).item(), -2, 1e-6);
    /// control_target(tensor([[8.0]]), penalty(|r| -r))   //=> error: f must be increasing
    /// ```
    pub fn penalty(context: NativeCallContext, closure: FnPtr) -> Penalty {
        let callback = Callback::new(&context, "penalty", closure);
        let f = move |r: &Tensor| callback.call::<Tensor>((r.clone(),));
        Penalty { penalty: solver::Regularizer::Penalty(Arc::new(f)), name: "penalty(|r| ..)".into() }
    }

    /// The target of step `k` comes from the adjoint at step `k`, as the papers write it.
    ///
    /// ```rhai
    /// same_step()   //=> same_step()
    /// ```
    pub fn same_step() -> Index {
        Index(AdjointIndex::Same)
    }

    /// The target of step `k` comes from the adjoint at step `k + 1`: the exact gradient of the discrete problem.
    ///
    /// ```rhai
    /// next_step()   //=> next_step()
    /// ```
    pub fn next_step() -> Index {
        Index(AdjointIndex::Next)
    }

    /// Squared errors are summed over active steps and latent entries, as in the paper.
    ///
    /// ```rhai
    /// sum_errors()   //=> sum_errors()
    /// ```
    pub fn sum_errors() -> Reduce {
        Reduce(Reduction::Sum)
    }

    /// Squared errors are averaged over active steps and latent entries.
    ///
    /// ```rhai
    /// mean_errors()   //=> mean_errors()
    /// ```
    pub fn mean_errors() -> Reduce {
        Reduce(Reduction::Mean)
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
        let adjoint = solver::lean_adjoint(&base, &path.path, &terminal_gradient, options.index.0)?;
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

    /// The optimal controls for an adjoint under a penalty `f`: `-(f')^-1(|a|) a / |a|`, one for each active step.
    ///
    /// For one step's adjoint, a tensor `[batch, ..]`, it gives that step's control.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// control_target(adjoint, quadratic()).map(|u| u.item())   //=> [-9.0, -6.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_target(adjoint: Adjoint, penalty: Penalty) -> RhaiResultOf<Array> {
        let targets = solver::control_target(&adjoint, &penalty.penalty)?;
        Ok(targets.into_iter().map(Dynamic::from).collect())
    }

    #[rhai_fn(name = "control_target", return_raw)]
    pub fn control_target_of(adjoint: Tensor, penalty: Penalty) -> RhaiResultOf<Tensor> {
        Ok(penalty.penalty.controls(&[adjoint])?.remove(0))
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
        let options = LossOptions::parse("matching_loss", options)?;
        let options = MatchingLoss { reduction: options.reduction.0, weighted: options.weighted };
        let targets: Vec<Tensor> = option::list(targets, "matching_loss: targets")?;
        let known = match &path.measured().base {
            Some((flow, velocities)) if flow.is(&base) => velocities.clone(),
            _ => solver::velocities(&base, &path.path)?.iter().map(Tensor::detach).collect(),
        };
        let policy = solver::velocities(&policy, &path.path)?;
        Ok(solver::velocity_matching(&policy, &known, &targets, &path.path, options)?)
    }

    /// One update of truncated deterministic adjoint matching at its least cost.
    ///
    /// Gives `loss` for the optimizer and `path` with its `reward` and `control_norm()`. The numbers are those of `rollout`,
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
        let options = options.core(&context, &policy, &base);
        let cost = cost.of_states(&policy)?;
        let update = solver::adjoint_matching(&policy, &base, &x0, &condition, &cost, &options)?;
        let path = Trajectory::new(policy, update.path);
        path.measured().reward = Some(update.terminal.reward);
        path.measured().base = Some((base, update.adjoint.base_velocities));
        Ok(Update { loss: update.loss, path })
    }

    /// The loss of a fused update, for the optimizer.
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

    /// The trajectory of a fused update, with its rewards and control.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(1) });
    /// [update.path.last.item(), update.path.reward.item(), update.path.control_norm()]   //=> [2.0, -2.0, 0.0]
    /// ```
    #[rhai_fn(get = "path", pure)]
    pub fn path(update: &mut Update) -> Trajectory {
        update.path.clone()
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
    pub fn show_truncation(truncation: &mut Truncation) -> String {
        truncation.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_cost(cost: &mut Cost) -> String {
        format!("reward_cost(.., {})", cost.scale)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_penalty(penalty: &mut Penalty) -> String {
        penalty.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_index(index: &mut Index) -> String {
        index.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_reduce(reduce: &mut Reduce) -> String {
        reduce.to_string()
    }
}
