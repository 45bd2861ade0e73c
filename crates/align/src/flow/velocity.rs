//! Velocity fields: all that samplers and alignment methods know of a model.

use super::Condition;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use std::sync::Arc;

/// A velocity field `v(x, t, c)`, differentiable in `x` and in its trainable parameters.
///
/// `x`: states `[batch, ..]` of any rank, f32 or f64; `t`: `[batch]`, 0 noise, 1 data, in `x`'s dtype. Returns the shape of `x`.
pub trait Velocity: Send + Sync {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor>;

    /// The same field, sharing its parameters, that keeps no graph to them; none where this one keeps none anyway.
    fn frozen(&self) -> Result<Option<Arc<dyn Velocity>>> {
        Ok(None)
    }

    /// The same field with classifier-free guidance of that scale.
    fn with_guidance(&self, scale: f64) -> Result<Arc<dyn Velocity>> {
        bail!(
            Type, "guidance: a scale of {scale} needs a model that knows its velocity without a condition, got a field";
            hint: "leave guidance out, or take a model such as flow(\"tiny/flux2\")"
        )
    }

    /// The field to hold on to and its variables, for a backward that runs it again; none where the field cannot say.
    fn rerun(&self) -> Option<(Arc<dyn Velocity>, Vec<Tensor>)> {
        None
    }
}
