//! Direct fine-tuning: the reward's gradient through the last steps of sampling (DRaFT-K, DRaFT-LV, arXiv:2309.17400).

use super::cost::{TerminalCost, differentiable};
use super::truncation::Truncation;
use crate::bail;
use crate::error::Result;
use crate::flow::{Condition, RolloutOptions, Velocity, Walk, interpolant, time_tensor};
use crate::profile::phase;
use crate::tensor::check::{finite, together};
use crate::tensor::grad::composed;
use crate::tensor::{Tensor, op};

/// One update of a method that follows the reward's own gradient.
#[derive(Clone)]
pub struct Direct {
    /// Scalar `-scale * mean reward`, with its graph.
    pub loss: Tensor,
    /// Rewards `[batch]` of the images that were judged first.
    pub reward: Tensor,
}

/// Choices of DRaFT.
#[derive(Clone)]
pub struct DraftOptions {
    /// Grid, sampler, its noise and progress.
    pub rollout: RolloutOptions,
    /// The last steps that the gradient goes through, K.
    pub truncate: Truncation,
    /// Further ends per sample, each from a last step at noise newly drawn by the rollout's `draw` (DRaFT-LV).
    pub renoised: usize,
}

/// `-scale * mean r(X_N)` with the graph of the last K steps, through the network's input and parameters.
///
/// With `renoised = n` (K = 1): the mean over the end and n ends more, each `x' + h v(x')` from `x' = t X_N + (1 - t) z`, `t` the time of
/// the last step.
pub fn draft(
    policy: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &dyn TerminalCost,
    options: &DraftOptions,
) -> Result<Direct> {
    together(|| differentiated(policy, x0, condition, cost, options))
}

fn differentiated(
    policy: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &dyn TerminalCost,
    options: &DraftOptions,
) -> Result<Direct> {
    let (grid, steps) = (&options.rollout.grid, options.rollout.grid.steps());
    let active = options.truncate.active(steps)?;
    if options.renoised > 0 && active != 1 {
        bail!(Value, "draft: low_variance goes with truncate: last(1), got {active} active steps");
    }
    let walk = Walk::new(policy, x0, condition, &options.rollout)?;
    let mut x = phase("rollout", || walk.reach(x0, steps - active))?;
    for k in steps - active..steps {
        walk.before(k)?;
        let v = walk.velocity(&x, grid.times()[k], true)?;
        x = walk.next(k, &x, &v)?;
    }
    let first = judged(cost, &x, "draft")?;
    let mut rewards = vec![first.clone()];
    let (t, end) = (grid.times()[steps - 1], x.detach());
    for _ in 0..options.renoised {
        let Some(draw) = &options.rollout.draw else {
            bail!(Missing, "draft: low_variance needs a random stream, got none"; hint: "give one as `rng`");
        };
        let z = draw(steps - 1, &end)?;
        let again = interpolant::interpolate(&z, &end, &time_tensor(t, &end)?)?;
        let v = walk.velocity(&again, t, true)?;
        let reached = op::combine((&again, 1.0), (&v, grid.width(steps - 1)))?;
        rewards.push(judged(cost, &reached, "draft")?);
    }
    let loss = composed(&rewards.iter().collect::<Vec<_>>(), |rewards| {
        Ok((Tensor::cat(rewards, 0)?.mean_all()? * -cost.scale())?)
    })?;
    Ok(Direct { loss, reward: first.detach() })
}

/// Rewards `[batch]` of tracked states, finite and differentiable.
pub fn judged(cost: &dyn TerminalCost, x1: &Tensor, function: &str) -> Result<Tensor> {
    let (reward, batch) = (cost.evaluate(x1)?, x1.dim(0)?);
    if reward.dims() != [batch] {
        bail!(Shape, "{function}: rewards must be of shape [{batch}], got {:?}", reward.dims());
    }
    let place = function.to_string();
    finite(&reward, move |sample| {
        bail!(Numeric, "{place}: the reward must be finite, got NaN or infinity for sample {sample}")
    })?;
    differentiable(&reward, function)?;
    Ok(reward)
}
