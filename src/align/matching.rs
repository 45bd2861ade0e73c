//! Adjoint matching: the policy's control is regressed on the optimal control for the present adjoint.

use super::adjoint::{Adjoint, AdjointIndex, lean_adjoint};
use super::cost::{Terminal, TerminalCost, terminal_gradient};
use super::intensity::norms;
use super::loss::{Criterion, MatchingLoss, fenchel_matching, velocity_matching};
use super::regularizer::{Norm, Regularizer};
use super::truncation::Truncation;
use crate::bail;
use crate::error::Result;
use crate::flow::{Condition, Grid, RolloutOptions, Trajectory, Velocity, rollout};
use crate::profile::phase;
use crate::tensor::Tensor;
use crate::tensor::check::{read, together};
use crate::tensor::grad::{deferred, segment};
use crate::tensor::op::cast;
use std::sync::Arc;

/// The velocity changes that the policy should have over the base at the active steps.
///
/// Deterministic steps: the optimal control `-(f')^{-1}(|a|) a / |a|` (arXiv:2605.06583, Theorem 3.1). Steps with noise:
/// `sigma / (1 + rho)` times that of `sigma a`; for the quadratic penalty `-G a` with `G = w / (1 + rho)`.
pub fn control_target(adjoint: &Adjoint, regularizer: &Regularizer, norm: Norm) -> Result<Vec<Tensor>> {
    let scaled = adjoint.values.iter().zip(&adjoint.dynamics).map(|(a, step)| match step.w {
        None => Ok(a.clone()),
        Some(_) => Ok((a * step.sigma())?),
    });
    let controls = regularizer.controls_by(&scaled.collect::<Result<Vec<_>>>()?, norm)?;
    let velocities = controls.into_iter().zip(&adjoint.dynamics).map(|(u, step)| match step.w {
        None => Ok(u),
        Some(_) => Ok((u * step.velocity_per_control())?),
    });
    velocities.collect()
}

/// `mean over batch of sum over k of |v_policy - v_base - u_k|^2` at the kept states (arXiv:2605.06583, Algorithm 1).
pub fn matching_loss(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    path: &Trajectory,
    targets: &[Tensor],
    options: &MatchingLoss,
) -> Result<Tensor> {
    let bases: Vec<Tensor> = velocities(base, path)?.iter().map(Tensor::detach).collect();
    velocity_matching(&velocities(policy, path)?, &bases, targets, path, options)
}

/// `v(X_k, t_k)` at the kept steps, with whatever graph the field has.
pub fn velocities(field: &dyn Velocity, path: &Trajectory) -> Result<Vec<Tensor>> {
    path.window().map(|k| velocity(field, path, k)).collect()
}

fn velocity(field: &dyn Velocity, path: &Trajectory, k: usize) -> Result<Tensor> {
    field.velocity(path.state(k)?, &path.time(k)?, &path.condition)
}

/// Everything that one update of [`adjoint_matching`] chooses.
#[derive(Clone)]
pub struct MatchingOptions {
    /// Grid, sampler, its noise and progress; what is kept and tracked follows from `truncate`.
    pub rollout: RolloutOptions,
    pub truncate: Truncation,
    pub regularizer: Regularizer,
    /// What the penalty takes as the size of a control.
    pub norm: Norm,
    pub index: AdjointIndex,
    pub criterion: Criterion,
    pub loss: MatchingLoss,
    /// Take the terminal gradient at the end of a last step without noise, `X_{N-1} + h v_base` (arXiv:2409.08861).
    pub noise_free_end: bool,
    /// What is rolled out instead of the policy, such as the policy with guidance.
    pub rolled: Option<Arc<dyn Velocity>>,
    /// What carries the adjoint instead of the base.
    pub carrying: Option<Arc<dyn Velocity>>,
    /// The policy once more, to run again in the loss's backward instead of keeping its graphs.
    pub recompute: Option<Recomputed>,
}

/// A policy and the variables in it. It runs again at one active step after the other: K forwards more, the memory of one graph.
#[derive(Clone)]
pub struct Recomputed {
    pub policy: Arc<dyn Velocity>,
    pub variables: Vec<Tensor>,
}

impl Recomputed {
    /// `v(X_k, t_k)`, whose graph is made in the backward; `known` is its value, where the rollout has it.
    fn velocity(&self, path: &Trajectory, k: usize, known: Option<&Tensor>) -> Result<Tensor> {
        let (policy, x, t, condition) =
            (self.policy.clone(), path.state(k)?.clone(), path.time(k)?, path.condition.clone());
        let run = move |_: &[Tensor]| cast(&policy.velocity(&x, &t, &condition)?, x.dtype());
        match known {
            Some(value) => deferred(value, &[], &self.variables, run),
            None => segment(&[], &self.variables, run),
        }
    }
}

impl MatchingOptions {
    /// The paper's choices on `grid`: every step active, quadratic penalty.
    pub fn new(grid: Grid) -> Self {
        Self {
            rollout: RolloutOptions::new(grid),
            truncate: Truncation::Full,
            regularizer: Regularizer::quadratic(),
            norm: Norm::default(),
            index: AdjointIndex::default(),
            criterion: Criterion::default(),
            loss: MatchingLoss::default(),
            noise_free_end: false,
            rolled: None,
            carrying: None,
            recompute: None,
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
    pub path: Trajectory,
}

/// One update of truncated adjoint matching at its least cost: deterministic (arXiv:2605.06583, Algorithm 1) or, with a
/// stochastic sampler, stochastic (arXiv:2409.08861 with any noise).
///
/// N policy forwards: the rollout keeps the graph of its K active steps for the loss. K base forwards: those of the adjoint's
/// products serve the loss too. K base and K policy backwards. The numbers are those of the separate functions. Where another
/// field is rolled out, or carries the adjoint, K forwards more of the policy, or of the base; so too, over all N steps, in an
/// update that measures the control for [`Truncation::Adaptive`]. With `recompute`, K forwards more of the policy in the backward.
pub fn adjoint_matching(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &dyn TerminalCost,
    options: &MatchingOptions,
) -> Result<Matched> {
    together(|| matched(policy, base, x0, condition, cost, options))
}

fn matched(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &dyn TerminalCost,
    options: &MatchingOptions,
) -> Result<Matched> {
    let steps = options.rollout.grid.steps();
    let measuring = match &options.truncate {
        Truncation::Adaptive(adaptive) if adaptive.due() => Some(adaptive),
        _ => None,
    };
    let keep = if measuring.is_some() { steps } else { options.truncate.active(steps)? };
    let reused = options.rolled.is_none() && measuring.is_none();
    let tracked = reused && options.recompute.is_none();
    let track = if tracked { options.loss.active(steps - keep..steps) } else { Vec::new() };
    let rollout_options = RolloutOptions { keep, track, ..options.rollout.clone() };
    let mut path = rollout(options.rolled.as_deref().unwrap_or(policy), x0, condition, &rollout_options)?;
    let carrying = options.carrying.as_deref().unwrap_or(base);
    let terminal = match options.noise_free_end {
        false => terminal_gradient(cost, path.last())?,
        true => terminal_gradient(cost, &noise_free_end(carrying, &path)?)?,
    };
    let mut adjoint = phase("adjoint", || lean_adjoint(carrying, &path, &terminal.gradient, options.index))?;
    if adjoint.dynamics.iter().all(|step| step.velocity_per_control() == 0.0) {
        bail!(
            Value, "adjoint_matching: a stochastic sampler must have noise at an active step, got none, so that no control can act";
            hint: "make more steps active: the last step of gddim(eta) is free of noise"
        );
    }
    if let Some(adaptive) = measuring {
        let active = adaptive.measure(&control_mass(&adjoint, &options.regularizer, options.norm)?);
        (path, adjoint) = (path.narrow(active), adjoint.narrow(active));
    }
    if options.carrying.is_some() {
        adjoint.base_velocities = velocities(base, &path)?.iter().map(Tensor::detach).collect();
    }
    if !tracked {
        retrack(&mut path, policy, options, reused)?;
    }
    let (own, bases) = (&path.velocities, &adjoint.base_velocities);
    let loss = match options.criterion.squared(&options.regularizer, &adjoint) {
        true => {
            let targets = control_target(&adjoint, &options.regularizer, options.norm)?;
            velocity_matching(own, bases, &targets, &path, &options.loss)?
        }
        false if options.norm != Norm::Sample => {
            bail!(Value, "adjoint_matching: fenchel() needs the size of a control to be sample_norm()")
        }
        false => fenchel_matching(own, &adjoint, &options.regularizer, &path, &options.loss)?,
    };
    // The graph stays with the loss alone, so that it is freed with it.
    let velocities = path.velocities.iter().map(Tensor::detach).collect();
    Ok(Matched { loss, terminal, adjoint, path: Trajectory { velocities, ..path } })
}

/// Gives the velocities that enter the loss their graph, where the rollout did not; it has their values if `reused`.
fn retrack(path: &mut Trajectory, policy: &dyn Velocity, options: &MatchingOptions, reused: bool) -> Result<()> {
    for k in options.loss.active(path.window()) {
        let i = k - path.first;
        path.velocities[i] = match &options.recompute {
            Some(again) => again.velocity(path, k, reused.then_some(&path.velocities[i]))?,
            None => velocity(policy, path, k)?,
        };
    }
    Ok(())
}

/// `X_{N-1} + h v(X_{N-1})`.
fn noise_free_end(field: &dyn Velocity, path: &Trajectory) -> Result<Tensor> {
    let k = path.steps() - 1;
    let x = path.state(k)?;
    Ok((x + (velocity(field, path, k)?.detach().to_dtype(x.dtype())? * path.grid.width(k))?)?)
}

/// The control that an adjoint asks for at each step, `h_k` times its mean size over the batch, in units of control.
pub fn control_mass(adjoint: &Adjoint, regularizer: &Regularizer, norm: Norm) -> Result<Vec<f64>> {
    let sizes = norms(&control_target(adjoint, regularizer, norm)?)?.mean(1)?;
    let mass = |(size, step): (f64, &crate::flow::Dynamics)| match step.velocity_per_control() {
        0.0 => 0.0,
        unit => step.h * size / unit,
    };
    Ok(read(&sizes)?.into_iter().zip(&adjoint.dynamics).map(mass).collect())
}
