//! How much control a policy exerts, step by step.

use super::matching::velocities;
use crate::error::Result;
use crate::flow::{Trajectory, Velocity};
use crate::tensor::Tensor;
use crate::tensor::sample::norm_per_sample;

/// `|v_policy - v_base|` at every kept step and sample of `path`: `[steps, batch]`.
pub fn control_intensity(policy: &dyn Velocity, base: &dyn Velocity, path: &Trajectory) -> Result<Tensor> {
    control_norms(&velocities(policy, path)?, &velocities(base, path)?)
}

/// `|v_policy - v_base|` of given velocities, per step and sample: `[steps, batch]`.
pub fn control_norms(policy: &[Tensor], base: &[Tensor]) -> Result<Tensor> {
    let controls = policy.iter().zip(base).map(|(v, b)| v.detach() - b.detach());
    norms(&controls.collect::<candle_core::Result<Vec<_>>>()?)
}

/// `|x|` of tensors `[batch, ..]`, one per step: `[steps, batch]`.
pub fn norms(steps: &[Tensor]) -> Result<Tensor> {
    Ok(Tensor::stack(&steps.iter().map(norm_per_sample).collect::<Result<Vec<_>>>()?, 0)?)
}
