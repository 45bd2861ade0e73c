//! Classifier-free guidance: a flow that points away from its unconditional self.

use super::{Flow, Model, Parts};
use amscript_align::flow::{Condition, Velocity};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::{Tensor, op};
use std::sync::Arc;

impl Flow {
    /// The same model, its velocity `v_u + scale (v - v_u)` with `v_u` that of the empty prompt or class (arXiv:2207.12598): two
    /// forwards in place of one. At scale 1 the flow itself.
    pub fn guided(&self, scale: f64) -> Result<Self> {
        let model = self.model("guided")?;
        if !scale.is_finite() {
            bail!(Value, "guided: the scale must be finite, got {scale}");
        }
        if model.guidance.is_some() {
            bail!(Value, "guided: expected a flow without guidance, got {self}");
        }
        if scale == 1.0 {
            return Ok(self.clone());
        }
        Self::of_model(Model { guidance: Some(scale), ..model.clone() })?.around(self)
    }
}

pub(super) struct Guided {
    pub parts: Arc<Parts>,
    pub network: Arc<dyn Velocity>,
    pub scale: f64,
}

impl Velocity for Guided {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let conditional = self.network.velocity(x, t, condition)?;
        let unconditional = self.network.velocity(x, t, &self.parts.prompts.unconditional(x.dim(0)?)?)?;
        guide(&conditional, &unconditional, self.scale, self.parts.guide_channels)
    }
}

/// `v_u + scale (v - v_u)` in the first `channels` (dimension 1) or in all; the other channels keep `v`.
fn guide(conditional: &Tensor, unconditional: &Tensor, scale: f64, channels: Option<usize>) -> Result<Tensor> {
    let mix = |v: &Tensor, u: &Tensor| op::combine((v, scale), (u, 1.0 - scale));
    let Some(guided) = channels.filter(|n| conditional.dims().get(1).is_some_and(|all| n < all)) else {
        return mix(conditional, unconditional);
    };
    let first = |v: &Tensor| op::narrow(v, 1, 0, guided);
    let rest = op::narrow(conditional, 1, guided, conditional.dim(1)? - guided)?;
    op::cat(&[&mix(&first(conditional)?, &first(unconditional)?)?, &rest], 1)
}
