//! A velocity with something added to it: guidance by a reward, a control found elsewhere, a network beside the flow.

use super::{Condition, Velocity};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::op::cast;
use std::sync::Arc;

/// What is added at a state, a time `[batch]` and a condition, given the velocity there; of the state's shape.
pub type Steer = dyn Fn(&Tensor, &Tensor, &Condition, &Tensor) -> Result<Tensor> + Send + Sync;

/// `v + steer(x, t, c, v)`.
pub struct Steered {
    pub field: Arc<dyn Velocity>,
    pub steer: Arc<Steer>,
}

impl Steered {
    fn of(&self, field: Arc<dyn Velocity>) -> Arc<dyn Velocity> {
        Arc::new(Self { field, steer: self.steer.clone() })
    }
}

impl Velocity for Steered {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let v = self.field.velocity(x, t, condition)?;
        let change = (self.steer)(x, t, condition, &v)?;
        if change.dims() != v.dims() {
            bail!(Shape, "steered: the closure must give the velocity's shape {:?}, got {:?}", v.dims(), change.dims());
        }
        &v + cast(&change, v.dtype())?
    }

    fn frozen(&self) -> Result<Option<Arc<dyn Velocity>>> {
        Ok(self.field.frozen()?.map(|field| self.of(field)))
    }

    /// Guidance of what is steered.
    fn with_guidance(&self, scale: f64) -> Result<Arc<dyn Velocity>> {
        Ok(self.of(self.field.with_guidance(scale)?))
    }
}
