//! Rewards: images and prompts to one number per image, differentiable to the pixels.
//!
//! Decisions:
//! * **Rewards judge a batch** (`batch.rs`): what several need of the images, features by CLIP and the check of the range, belongs to that batch
//!   and goes with it. A session opens a CLIP once for all rewards on the same file and preprocessing.
//! * **One image transformer** (`nn/vit.rs`) under a table of names for each layout; queries, keys and values are rows of one weight where they
//!   are stored as one.

pub mod metric;

pub mod aesthetic;
pub mod batch;
pub mod clamped;
pub mod clip_encoder;
pub mod head;
pub mod imagereward;
pub mod judge;
pub mod open;
pub mod scripted;
pub mod similarity;
pub mod sum;

pub use batch::Batch;
pub use open::{Opener, Opening, REWARDS, Rewards, rewards};

use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::profile::phase;
use amscript_nn::cost::Part;
use amscript_nn::module::Module;
use amscript_tensor::check::require_finite;
use amscript_tensor::{DType, Tensor};
use std::path::Path;
use std::sync::Arc;

/// What judges images. Cheap to share; `score` is what callers use. What is made of weights is a [`Module`] too.
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
        self.score_batch(&Batch::new(images, prompts)?)
    }

    /// Scores `[b]` of a batch that other rewards may judge too.
    fn score_batch(&self, batch: &Batch) -> Result<Tensor> {
        let scores = phase("reward", || self.compute(batch))?;
        let count = batch.images.dim(0)?;
        if scores.dims() != [count] {
            let (got, name) = (scores.dims(), self.describe());
            bail!(Shape, "score: expected one number per image, [{count}], got {got:?} from {name}");
        }
        let (prompts, name) = (batch.prompts.to_vec(), self.describe());
        require_finite(&scores, move |sample| {
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
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        if let Some(encoder) = self.encoder() {
            return encoder.image_rows(&Batch::of_images(images, &[])?);
        }
        bail!(Value, "clip_features: {} has no CLIP", self.describe(); hint: "give a reward such as `reward(\"tiny/clip\")`")
    }

    /// The CLIP that it stands on.
    fn encoder(&self) -> Option<&Arc<clip_encoder::ClipEncoder>> {
        None
    }

    /// How many rewards it is of when written out, and how deep they stand inside one another.
    fn extent(&self) -> (usize, usize) {
        (1, 1)
    }

    /// The terms of a sum.
    fn as_sum(&self) -> Option<&sum::Sum> {
        None
    }

    /// Its weights; none of a reward without.
    fn module(&self) -> Option<&dyn Module<Trained = RewardModel>> {
        None
    }
}

/// Scores of several rewards for one batch; those that stand on the same CLIP run its image tower once.
pub fn score_all(rewards: &[Arc<dyn Reward>], images: &Tensor, prompts: &[String]) -> Result<Vec<Tensor>> {
    let batch = Batch::new(images, prompts)?;
    rewards.iter().map(|reward| reward.score_batch(&batch)).collect()
}

/// A shared reward as scripts hold it.
#[derive(Clone)]
pub struct RewardModel(pub Arc<dyn Reward>);

/// Most rewards that one is of when written out: doubled again and again, one would never be scored or shown.
const MOST_TERMS: usize = 10_000;

/// Most rewards inside one another, each of which takes stack when it is scored.
const MOST_DEEP: usize = 100;

impl RewardModel {
    pub fn new(reward: impl Reward + 'static) -> Self {
        Self(Arc::new(reward))
    }

    /// One that is made of others.
    pub fn of_others(reward: impl Reward + 'static) -> Result<Self> {
        let (terms, depth) = reward.extent();
        if terms > MOST_TERMS || depth > MOST_DEEP {
            bail!(
                Limit,
                "a reward made of others: expected at most {MOST_TERMS} when written out and {MOST_DEEP} inside one another, \
                    got {terms} and {depth}";
                hint: "`scripted_reward` computes the same of tensors"
            );
        }
        Ok(Self::new(reward))
    }

    fn weights(&self, verb: &str) -> Result<&dyn Module<Trained = RewardModel>> {
        let none = || Error::new(Kind::Value, format!("{verb}: {} has no weights", self.describe()));
        self.module().ok_or_else(none)
    }
}

impl Module for RewardModel {
    type Trained = Self;

    fn trainable(&self) -> Result<Self> {
        self.weights("trainable")?.trainable()
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.module().map(|module| module.params()).unwrap_or_default()
    }

    fn parts(&self) -> Result<Vec<Part>> {
        self.module().map_or(Ok(Vec::new()), |module| module.parts())
    }

    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        self.weights("save")?.save(folder, dtype)
    }
}

impl std::ops::Deref for RewardModel {
    type Target = dyn Reward;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl std::fmt::Display for RewardModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "reward({})", self.details())
    }
}
