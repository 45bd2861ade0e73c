//! What one call of scoring sees, and what rewards with one encoder share during it.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::check::require;
use amscript_tensor::{DType, Tensor};
use parking_lot::Mutex;
use std::sync::OnceLock;

/// Images with a prompt each.
pub struct Batch<'a> {
    pub images: &'a Tensor,
    pub prompts: &'a [String],
    features: Mutex<Vec<(usize, Tensor)>>,
    checked: OnceLock<()>,
}

impl<'a> Batch<'a> {
    /// Images `[b, 3, h, w]` with `b` prompts.
    pub fn new(images: &'a Tensor, prompts: &'a [String]) -> Result<Self> {
        let dims = images.dims();
        if prompts.len() != dims.first().copied().unwrap_or(0) {
            let count = dims.first().copied().unwrap_or(0);
            bail!(Shape, "score: expected one prompt per image, got {} prompts for {count} images", prompts.len());
        }
        Self::of_images(images, prompts)
    }

    /// Images, all of them with all prompts.
    pub fn grid(images: &'a Tensor, prompts: &'a [String]) -> Result<Self> {
        if prompts.is_empty() {
            bail!(Value, "similarities: expected at least one prompt, got none");
        }
        Self::of_images(images, prompts)
    }

    /// Images alone, or with prompts that are not theirs.
    pub fn of_images(images: &'a Tensor, prompts: &'a [String]) -> Result<Self> {
        let dims = images.dims();
        if dims.len() != 4 || dims[1] != 3 || dims[0] == 0 {
            bail!(Shape, "score: expected images [batch, 3, height, width], got {dims:?}");
        }
        Ok(Self { images, prompts, features: Mutex::default(), checked: OnceLock::new() })
    }

    /// Refuses images that leave `[0, 1]` by more than rounding and overshoot; trained networks have never seen such.
    pub fn check_range(&self) -> Result<()> {
        if self.checked.get().is_some() {
            return Ok(());
        }
        let images = self.images.constant().to_dtype(DType::F32)?;
        require(&Tensor::stack(&[images.min_all()?, images.max_all()?], 0)?, |ends| {
            let (low, high) = (ends[0] as f32, ends[1] as f32);
            if low < -0.01 || high > 1.01 {
                bail!(Value, "score: images must lie in [0, 1], got values from {low} to {high}";
                    hint: "`decode` gives that range; images in [-1, 1] become it by `x / 2 + 0.5`, bytes by `x / 255`");
            }
            Ok(())
        })?;
        self.checked.get_or_init(|| ());
        Ok(())
    }

    /// Features of the images, computed once for all rewards with the same `encoder` (any number that is its own).
    pub fn features(&self, encoder: usize, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let mut known = self.features.lock();
        if let Some((_, features)) = known.iter().find(|(owner, _)| *owner == encoder) {
            return Ok(features.clone());
        }
        let features = compute()?;
        known.push((encoder, features.clone()));
        Ok(features)
    }
}
