//! Rewards: images and prompts to one number per image, differentiable to the pixels.

pub mod clamped;
pub mod head;
pub mod hpsv2;
pub mod scripted;
pub mod sum;

use crate::bail;
use crate::error::Result;
use crate::model::estimate::{Cost, Part};
use crate::tensor::Tensor;
use crate::tensor::sample::first_non_finite;
use std::path::Path;
use std::sync::Arc;

/// What judges images. Cheap to share; `score` is what callers use.
pub trait Reward: Send + Sync {
    /// One number per image; see [`Reward::score`], which checks what goes in and comes out.
    fn compute(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor>;

    /// Name and parts, one line.
    fn describe(&self) -> String;

    /// Scores `[b]` of images `[b, 3, h, w]` in `[0, 1]`, one prompt each; differentiable in the images.
    fn score(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        let dims = images.dims();
        if dims.len() != 4 || dims[1] != 3 {
            bail!(Shape, "score: expected images [batch, 3, height, width], got {dims:?}");
        }
        if prompts.len() != dims[0] {
            bail!(Shape, "score: expected one prompt per image, got {} prompts for {} images", prompts.len(), dims[0]);
        }
        let scores = self.compute(images, prompts)?;
        if scores.dims() != [dims[0]] {
            bail!(
                Shape,
                "score: expected one number per image, [{}], got {:?} from {}",
                dims[0],
                scores.dims(),
                self.describe()
            );
        }
        if let Some(sample) = first_non_finite(&scores)? {
            bail!(
                Numeric,
                "score: rewards must be finite, got NaN or infinity for sample {sample} (`{}`) from {}",
                prompts[sample],
                self.describe()
            );
        }
        Ok(scores)
    }

    /// Scores of all images (rows) against all prompts (columns), `[b, n]`, where a reward compares features.
    fn similarities(&self, _images: &Tensor, _prompts: &[String]) -> Result<Tensor> {
        bail!(Value, "similarities: {} does not compare features of images and texts", self.describe())
    }

    /// Its weights.
    fn parts(&self) -> Vec<Part> {
        Vec::new()
    }

    /// The work of judging one image, on a device with fused kernels (the CPU) or another; none is known of closures.
    fn work(&self, _fused: bool) -> Cost {
        Cost::default()
    }

    /// The same reward with variables for weights.
    fn trainable(&self) -> Result<Arc<dyn Reward>> {
        bail!(Value, "trainable: {} has no weights", self.describe())
    }

    /// The variables, by name.
    fn params(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Writes weights and config into a folder that `reward(folder)` reads.
    fn save(&self, _folder: &Path) -> Result<()> {
        bail!(Value, "save: {} has no weights", self.describe())
    }
}

/// A shared reward as scripts hold it.
#[derive(Clone)]
pub struct Judge(pub Arc<dyn Reward>);

impl Judge {
    pub fn new(reward: impl Reward + 'static) -> Self {
        Self(Arc::new(reward))
    }
}

impl std::ops::Deref for Judge {
    type Target = dyn Reward;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl std::fmt::Display for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "reward({})", self.describe())
    }
}
