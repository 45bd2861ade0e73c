//! How much control a policy exerts, step by step.

use crate::error::Result;
use crate::flow::Trajectory;
use crate::model::Velocity;
use crate::tensor::Tensor;
use crate::tensor::sample::norm_per_sample;

/// `|v_policy - v_base|` at every kept step and sample of `path`: `[steps, batch]`.
pub fn control_intensity(policy: &dyn Velocity, base: &dyn Velocity, path: &Trajectory) -> Result<Tensor> {
    let at = |field: &dyn Velocity| -> Result<Vec<Tensor>> {
        path.window().map(|k| Ok(field.velocity(path.state(k)?, &path.time(k)?, &path.condition)?.detach())).collect()
    };
    control_norms(&at(policy)?, &at(base)?)
}

/// `|v_policy - v_base|` of given velocities, per step and sample: `[steps, batch]`.
pub fn control_norms(policy: &[Tensor], base: &[Tensor]) -> Result<Tensor> {
    let norms = policy.iter().zip(base).map(|(v, b)| norm_per_sample(&(v.detach() - b)?));
    Ok(Tensor::stack(&norms.collect::<Result<Vec<_>>>()?, 0)?)
}
