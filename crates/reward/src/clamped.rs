//! Rewards held between bounds: `relu(2 - r)` as in ReFL (arXiv:2304.05977), `clamp(r, low, high)`.

use crate::{Batch, Reward};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use std::sync::Arc;

/// `min(max(reward, low), high)`; the gradient is zero where a bound holds.
pub struct Clamped {
    inner: Arc<dyn Reward>,
    low: f64,
    high: f64,
    /// Kept, so that asking for it goes no deeper.
    extent: (usize, usize),
}

impl Clamped {
    /// Bounds may be infinite.
    pub fn new(inner: Arc<dyn Reward>, low: f64, high: f64) -> Result<Self> {
        if low >= high || low.is_nan() || high.is_nan() {
            bail!(Value, "clamp: the lower bound must be below the upper, got {low} and {high}");
        }
        let (terms, depth) = inner.extent();
        Ok(Self { inner, low, high, extent: (terms, depth.saturating_add(1)) })
    }
}

impl Reward for Clamped {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let scores = self.inner.score_batch(batch)?;
        // a product with 0 or 1 has the gradient of what is inside, also on candle's own ops
        let inside = (scores.gt(self.low)? * scores.lt(self.high)?)?.to_dtype(scores.dtype())?;
        let held = scores.constant().clamp(self.low, self.high)?;
        (&scores * &inside)? + (held * (1.0 - inside)?)?
    }

    fn describe(&self) -> String {
        let inner = self.inner.describe();
        match self.low == 0.0 && self.high == f64::INFINITY {
            true => format!("relu({inner})"),
            false => format!("clamp({inner}, {}, {})", self.low, self.high),
        }
    }

    fn extent(&self) -> (usize, usize) {
        self.extent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::Scripted;
    use amscript_tensor::grad::value_and_grad;
    use amscript_tensor::{DType, Device};

    #[test]
    fn bounds_hold_values_and_stop_gradients() {
        let images = Tensor::new(&[-1f64, 0.25, 3.0], &Device::Cpu).unwrap().reshape((3, 1, 1, 1)).unwrap();
        let images = images.broadcast_as((3, 3, 1, 1)).unwrap().contiguous().unwrap();
        let prompts = ["a", "b", "c"].map(String::from);
        let mean: Arc<dyn Reward> = Arc::new(Scripted::new(|x, _| x.mean((1, 2, 3))));
        let held = Clamped::new(mean.clone(), 0.0, 1.0).unwrap();
        assert_eq!(held.score(&images, &prompts).unwrap().to_vec1::<f64>().unwrap(), [0.0, 0.25, 1.0]);
        let (_, gradient) = value_and_grad(|x| held.score(x, &prompts)?.sum_all(), &images).unwrap();
        let rows = gradient.sum((1, 2, 3)).unwrap().to_vec1::<f64>().unwrap();
        assert!(rows.iter().zip([0.0, 1.0, 0.0]).all(|(got, wanted)| (got - wanted).abs() < 1e-12), "{rows:?}");
        assert_eq!(held.describe(), "clamp(scripted, 0, 1)");
        let message = Clamped::new(mean, 1.0, 1.0).err().map(|e| e.message).unwrap_or_default();
        assert_eq!(message, "clamp: the lower bound must be below the upper, got 1 and 1");
        assert_eq!(images.dtype(), DType::F64);
    }
}
