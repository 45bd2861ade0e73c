//! Adjoint matching: the policy's control is regressed on the optimal control for the present adjoint.

use super::adjoint::{Adjoint, AdjointIndex, lean_adjoint};
use super::cost::{Terminal, TerminalCost, terminal_gradient};
use super::regularizer::Regularizer;
use super::truncation::Truncation;
use crate::bail;
use crate::error::Result;
use crate::flow::{Grid, RolloutOptions, Trajectory, rollout};
use crate::model::{Condition, Velocity};
use crate::tensor::Tensor;
use std::sync::Arc;

/// How squared errors are put together over active steps and latent entries; over the batch it is always the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// Sums, as in the paper.
    #[default]
    Sum,
    /// Means: the loss does not grow with the number of active steps or with the latent.
    Mean,
}

/// Choices in the matching loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatchingLoss {
    pub reduction: Reduction,
    /// Weight each step with its width `h_k`, so that the sum is an integral over time.
    pub weighted: bool,
}

/// Optimal controls `u_k = -(f')^{-1}(|a|) a / |a|` for the active steps (arXiv:2605.06583, Theorem 3.1).
pub fn control_target(adjoint: &Adjoint, regularizer: &Regularizer) -> Result<Vec<Tensor>> {
    regularizer.controls(&adjoint.values)
}

/// `mean over batch of sum over k of |v_policy - v_base - u_k|^2` at the kept states (arXiv:2605.06583, Algorithm 1).
pub fn matching_loss(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    path: &Trajectory,
    targets: &[Tensor],
    options: MatchingLoss,
) -> Result<Tensor> {
    let bases: Vec<Tensor> = velocities(base, path)?.iter().map(Tensor::detach).collect();
    velocity_matching(&velocities(policy, path)?, &bases, targets, path, options)
}

/// `v(X_k, t_k)` at the kept steps, with whatever graph the field has.
pub fn velocities(field: &dyn Velocity, path: &Trajectory) -> Result<Vec<Tensor>> {
    path.window().map(|k| field.velocity(path.state(k)?, &path.time(k)?, &path.condition)).collect()
}

/// The same loss from velocities at hand; gradients flow to `policy` only.
pub fn velocity_matching(
    policy: &[Tensor],
    base: &[Tensor],
    targets: &[Tensor],
    path: &Trajectory,
    options: MatchingLoss,
) -> Result<Tensor> {
    let steps = path.window().len();
    if [policy.len(), base.len(), targets.len()] != [steps; 3] {
        let got = (policy.len(), base.len(), targets.len());
        bail!(
            Shape,
            "matching_loss: there must be one velocity and one target for each of {steps} kept steps, got {got:?}"
        );
    }
    let mut loss: Option<Tensor> = None;
    for (i, k) in path.window().enumerate() {
        let x = path.state(k)?;
        if targets[i].dims() != x.dims() {
            let (expected, got) = (x.dims(), targets[i].dims());
            bail!(Shape, "matching_loss: targets must have the state's shape {expected:?}, got {got:?}");
        }
        let goal = (base[i].detach().to_dtype(x.dtype())? + targets[i].detach().to_dtype(x.dtype())?)?;
        let error = (policy[i].to_dtype(x.dtype())? - goal)?.sqr()?.sum_all()?;
        let error = if options.weighted { (error * path.grid.width(k))? } else { error };
        loss = Some(match loss {
            Some(sum) => (sum + error)?,
            None => error,
        });
    }
    let Some(loss) = loss else {
        bail!(Value, "matching_loss: there must be an active step, got a trajectory that keeps none");
    };
    let (batch, entries) = (path.last().dim(0)? as f64, path.last().elem_count() as f64);
    let divisor = match options.reduction {
        Reduction::Sum => batch,
        Reduction::Mean => entries * if options.weighted { 1.0 } else { steps as f64 },
    };
    Ok((loss / divisor)?)
}

/// Everything that one update of [`adjoint_matching`] chooses.
#[derive(Clone)]
pub struct MatchingOptions {
    /// Grid, sampler and progress; what is kept and tracked follows from `truncate`.
    pub rollout: RolloutOptions,
    pub truncate: Truncation,
    pub regularizer: Regularizer,
    pub index: AdjointIndex,
    pub loss: MatchingLoss,
    /// What is rolled out instead of the policy, such as the policy with guidance.
    pub rolled: Option<Arc<dyn Velocity>>,
    /// What carries the adjoint instead of the base.
    pub carrying: Option<Arc<dyn Velocity>>,
}

impl MatchingOptions {
    /// The paper's choices on `grid`: every step active, quadratic penalty.
    pub fn new(grid: Grid) -> Self {
        Self {
            rollout: RolloutOptions::new(grid),
            truncate: Truncation::Full,
            regularizer: Regularizer::quadratic(),
            index: AdjointIndex::default(),
            loss: MatchingLoss::default(),
            rolled: None,
            carrying: None,
        }
    }
}

/// One update's loss, to be differentiated once, and what was measured on the way.
#[derive(Clone)]
pub struct Matched {
    /// Scalar, with the graph of the active steps.
    pub loss: Tensor,
    pub terminal: Terminal,
    pub adjoint: Adjoint,
    pub targets: Vec<Tensor>,
    pub path: Trajectory,
}

/// One update of truncated deterministic adjoint matching (arXiv:2605.06583, Algorithm 1) at its least cost.
///
/// N policy forwards: the rollout keeps the graph of its K active steps for the loss. K base forwards: those of the adjoint's
/// products serve the loss too. K base and K policy backwards. The numbers are those of the separate functions. Where another
/// field is rolled out, or carries the adjoint, K forwards more of the policy, or of the base.
pub fn adjoint_matching(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &dyn TerminalCost,
    options: &MatchingOptions,
) -> Result<Matched> {
    let keep = options.truncate.active(options.rollout.grid.steps())?;
    let rollout_options = RolloutOptions { keep, track: options.rolled.is_none(), ..options.rollout.clone() };
    let mut path = rollout(options.rolled.as_deref().unwrap_or(policy), x0, condition, &rollout_options)?;
    if options.rolled.is_some() {
        path.velocities = velocities(policy, &path)?;
    }
    let terminal = terminal_gradient(cost, path.last())?;
    let carrying = options.carrying.as_deref();
    let mut adjoint = lean_adjoint(carrying.unwrap_or(base), &path, &terminal.gradient, options.index)?;
    if carrying.is_some() {
        adjoint.base_velocities = velocities(base, &path)?.iter().map(Tensor::detach).collect();
    }
    let targets = control_target(&adjoint, &options.regularizer)?;
    let loss = velocity_matching(&path.velocities, &adjoint.base_velocities, &targets, &path, options.loss)?;
    // The graph stays with the loss alone, so that it is freed with it.
    let velocities = path.velocities.iter().map(Tensor::detach).collect();
    Ok(Matched { loss, terminal, adjoint, targets, path: Trajectory { velocities, ..path } })
}
