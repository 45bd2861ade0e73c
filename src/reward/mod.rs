//! Rewards: images and prompts to one number per image, differentiable to the pixels.

pub mod aesthetic;
pub mod batch;
pub mod clamped;
pub mod head;
pub mod imagereward;
pub mod open;
pub mod scripted;
pub mod similarity;
pub mod sum;
pub mod trunk;

pub use batch::Batch;

use crate::bail;
use crate::error::Result;
use crate::model::estimate::{Cost, Part};
use crate::profile::phase;
use crate::tensor::Tensor;
use crate::tensor::check::finite;
use std::path::Path;
use std::sync::Arc;

/// What judges images. Cheap to share; `score` is what callers use.
pub trait Reward: Send + Sync {
    /// One number per image; see [`Reward::score`], which checks what goes in and comes out.
    fn compute(&self, batch: &Batch) -> Result<Tensor>;

    /// Name and parts, in few words.
    fn describe(&self) -> String;

    /// Model, version, hash of its weights, preprocessing and scale, one line; may read the weight file.
    fn details(&self) -> String {
        self.describe()
    }

    /// Scores `[b]` of images `[b, 3, h, w]` in `[0, 1]`, one prompt each; differentiable in the images.
    fn score(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        self.judge(&Batch::new(images, prompts)?)
    }

    /// Scores `[b]` of a batch that other rewards may judge too.
    fn judge(&self, batch: &Batch) -> Result<Tensor> {
        let scores = phase("reward", || self.compute(batch))?;
        let count = batch.images.dim(0)?;
        if scores.dims() != [count] {
            let (got, name) = (scores.dims(), self.describe());
            bail!(Shape, "score: expected one number per image, [{count}], got {got:?} from {name}");
        }
        let (prompts, name) = (batch.prompts.to_vec(), self.describe());
        finite(&scores, move |sample| {
            bail!(
                Numeric,
                "score: rewards must be finite, got NaN or infinity for sample {sample} (`{}`) from {name}",
                prompts[sample]
            )
        })?;
        Ok(scores)
    }

    /// Scores of all images (rows) against all prompts (columns), `[b, n]`, where a reward looks at each image once.
    fn similarities(&self, _images: &Tensor, _prompts: &[String]) -> Result<Tensor> {
        bail!(Value, "similarities: {} gives no scores for pairs of images and texts", self.describe())
    }

    /// Unit image features `[b, d]` of images `[b, 3, h, w]`, of a reward that stands on a CLIP.
    fn features(&self, _images: &Tensor) -> Result<Tensor> {
        bail!(Value, "clip_features: {} has no CLIP", self.describe(); hint: "give a reward such as `reward(\"tiny/clip\")`")
    }

    /// The CLIP that it stands on.
    fn trunk(&self) -> Option<&Arc<trunk::Trunk>> {
        None
    }

    /// The terms of a sum.
    fn as_sum(&self) -> Option<&sum::Sum> {
        None
    }

    /// Its weights.
    fn parts(&self) -> Vec<Part> {
        Vec::new()
    }

    /// The work of judging one image, on the CPU or another device; none is known of closures.
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

/// Scores of several rewards for one batch; those that stand on the same CLIP run its image tower once.
pub fn score_all(rewards: &[Arc<dyn Reward>], images: &Tensor, prompts: &[String]) -> Result<Vec<Tensor>> {
    let batch = Batch::new(images, prompts)?;
    rewards.iter().map(|reward| reward.judge(&batch)).collect()
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
        write!(f, "reward({})", self.details())
    }
}
