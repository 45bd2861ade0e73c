//! Classifier-free guidance: a flow that points away from its unconditional self.

use super::{Condition, Family, Flow, Model, Velocity};
use crate::bail;
use crate::error::Result;
use crate::tensor::Tensor;
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
        Self::of_model(Model { guidance: Some(scale), ..model.clone() })
    }
}

pub(super) struct Guided {
    pub family: Arc<dyn Family>,
    pub network: Arc<dyn Velocity>,
    pub scale: f64,
}

impl Velocity for Guided {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let conditional = self.network.velocity(x, t, condition)?;
        let unconditional = self.network.velocity(x, t, &self.family.unconditional(x.dim(0)?)?)?;
        self.family.guide(&conditional, &unconditional, self.scale)
    }
}
