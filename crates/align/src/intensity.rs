//! How much control a policy exerts, step by step.

use super::matching::velocities;
use crate::flow::{Trajectory, Velocity};
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::sample::norm_per_sample;

/// `|v_policy - v_base|` at every kept step and sample of `path`: `[steps, batch]` (arXiv:2605.06583, Figure 13; between Gaussians,
/// under penalties `r^p / p`, the profile of Propositions 4.2 and C.4).
pub fn control_intensity(policy: &dyn Velocity, base: &dyn Velocity, path: &Trajectory) -> Result<Tensor> {
    control_norms(&velocities(policy, path)?, &velocities(base, path)?)
}

/// `|v_policy - v_base|` of given velocities, per step and sample: `[steps, batch]`.
pub fn control_norms(policy: &[Tensor], base: &[Tensor]) -> Result<Tensor> {
    let controls = policy.iter().zip(base).map(|(v, b)| v.constant() - b.constant());
    norms(&controls.collect::<amscript_base::error::Result<Vec<_>>>()?)
}

/// `|x|` of tensors `[batch, ..]`, one per step: `[steps, batch]`.
pub fn norms(steps: &[Tensor]) -> Result<Tensor> {
    Tensor::stack(&steps.iter().map(norm_per_sample).collect::<Result<Vec<_>>>()?, 0)
}
