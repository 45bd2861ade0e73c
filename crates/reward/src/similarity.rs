//! Rewards that are the cosine of a CLIP's image and text features: HPSv2 (arXiv:2306.09341), PickScore (arXiv:2305.01569),
//! CLIPScore (arXiv:2104.08718).

use crate::clip_encoder::ClipEncoder;
use crate::open::{ANTIALIAS, CROP, Opener, Opening, RESIZE, TOKENIZER};
use crate::{Batch, Reward, RewardModel, aesthetic, imagereward};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::cost::Part;
use amscript_nn::module::Module;
use amscript_nn::opener::{Field, Found, Takes, field};
use amscript_tensor::{DType, Tensor};
use std::path::Path;
use std::sync::Arc;

/// HPSv2 in the table of rewards.
pub const HPSV2: Opener = Opener {
    name: "hpsv2",
    repositories: &[("hpsv2", "xswu/HPSv2")],
    recognises: |found| {
        let weights =
            |name: &str| name.starts_with("open_clip") || name.ends_with(".pt") || name.ends_with(".safetensors");
        !of_others(found) && !found.has("config.json") && found.any(weights)
    },
    options: &[
        field("version", Takes::Text, "`v2.0` or `v2.1`; the newest there is."),
        TOKENIZER,
        RESIZE,
        ANTIALIAS,
        CROP,
        SCALE,
        PREFIX,
        POSITIVE,
    ],
    open: |opening| open(opening, SimilarityKind::Hpsv2),
};

const PICKSCORES: &[(&str, &str)] = &[("pickscore", "yuvalkirstain/PickScore_v1")];
const CLIPS: &[(&str, &str)] =
    &[("clipscore", "openai/clip-vit-base-patch32"), ("clipscore-l14", "openai/clip-vit-large-patch14")];

/// PickScore in the table of rewards.
pub const PICKSCORE: Opener = Opener {
    name: "pickscore",
    repositories: PICKSCORES,
    recognises: |found| is_clip(found) && !is_published(found, CLIPS),
    options: OPTIONS,
    open: |opening| open(opening, SimilarityKind::PickScore),
};

/// CLIPScore in the table of rewards.
pub const CLIPSCORE: Opener = Opener {
    name: "clipscore",
    repositories: CLIPS,
    recognises: |found| is_clip(found) && !is_pickscore(found),
    options: OPTIONS,
    open: |opening| open(opening, SimilarityKind::ClipScore),
};

const SCALE: Field = field(
    "scale",
    Takes::Number,
    "What the cosine is multiplied by; PickScore's own is `exp(logit_scale)`, about 100, that of others 1.",
);
const PREFIX: Field =
    field("prefix", Takes::Text, "What stands before each prompt; CLIPScore's paper has `A photo depicts `.");
const POSITIVE: Field = field("positive", Takes::Flag, "Negative cosines become zero.");
const OPTIONS: &[Field] = &[TOKENIZER, RESIZE, ANTIALIAS, CROP, SCALE, PREFIX, POSITIVE];

fn of_others(found: &Found) -> bool {
    imagereward::recognises(found) || aesthetic::recognises(found)
}

/// A CLIP in transformers' layout.
fn is_clip(found: &Found) -> bool {
    let config = found.folder.as_ref().and_then(|folder| folder.json::<serde_json::Value>("config.json").ok());
    let clip = |config: serde_json::Value| config["model_type"].as_str().is_none_or(|model| model == "clip");
    !of_others(found) && config.is_some_and(clip)
}

/// Whether it was named by the published name, or repository, of one of these.
fn is_published(found: &Found, repositories: &[(&str, &str)]) -> bool {
    let name = found.name.split_once('@').map_or(found.name.as_str(), |(name, _)| name);
    repositories.iter().any(|(short, repository)| name == *short || name == *repository)
}

/// By its published name or by what its own README says. Its tensors and config are those of any CLIP, so that without either it may be
/// both, and the user is asked.
fn is_pickscore(found: &Found) -> bool {
    let readme = found.folder.as_ref().and_then(|folder| folder.bytes("README.md").ok());
    let told = readme.is_some_and(|text| String::from_utf8_lossy(&text).to_lowercase().contains("pickscore"));
    is_published(found, PICKSCORES) || told
}

fn open(opening: &Opening, kind: SimilarityKind) -> Result<RewardModel> {
    let mut clip = opening.clip()?;
    if let (Some(version), None) = (opening.option::<String>("version")?, &clip.weights) {
        clip.weights = Some(match version.as_str() {
            "v2.0" | "2.0" => "HPS_v2_compressed.pt".into(),
            "v2.1" | "2.1" => "HPS_v2.1_compressed.pt".into(),
            other => bail!(Value, "reward: expected `v2.0` or `v2.1` for `version`, got `{other}`"),
        });
    }
    let choices = SimilarityOptions {
        scale: opening.option("scale")?,
        prefix: opening.option("prefix")?.unwrap_or_default(),
        positive: opening.option("positive")?.unwrap_or_default(),
    };
    let encoder = opening.encoder(&opening.found.name, opening.found.home()?, &clip)?;
    Ok(RewardModel::new(Similarity::new(kind, encoder, choices)?))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SimilarityKind {
    /// The cosine.
    Hpsv2,
    /// `exp(logit_scale)` times the cosine.
    PickScore,
    /// The cosine; the paper's is `2.5 max(cosine, 0)` of captions behind `A photo depicts `.
    ClipScore,
}

impl SimilarityKind {
    pub const ALL: [(&'static str, SimilarityKind); 3] = [
        ("hpsv2", SimilarityKind::Hpsv2),
        ("pickscore", SimilarityKind::PickScore),
        ("clipscore", SimilarityKind::ClipScore),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// What may differ from the reference.
#[derive(Clone, Debug, Default)]
pub struct SimilarityOptions {
    /// In place of the kind's own factor.
    pub scale: Option<f64>,
    /// Before each prompt.
    pub prefix: String,
    /// Negative cosines become zero, and have no gradient.
    pub positive: bool,
}

pub struct Similarity {
    kind: SimilarityKind,
    encoder: Arc<ClipEncoder>,
    choices: SimilarityOptions,
    scale: f64,
}

impl Similarity {
    pub fn new(kind: SimilarityKind, encoder: Arc<ClipEncoder>, choices: SimilarityOptions) -> Result<Self> {
        let own = match kind {
            SimilarityKind::PickScore if !encoder.weights.is_meta() => {
                f64::from(encoder.clip.logit_scale()?.to_dtype(amscript_tensor::DType::F32)?.to_scalar::<f32>()?)
            }
            _ => 1.0,
        };
        let scale = choices.scale.unwrap_or(own);
        if !scale.is_finite() {
            bail!(Value, "reward: option `scale` must be finite, got {scale}");
        }
        Ok(Self { kind, encoder, choices, scale })
    }

    fn texts(&self, prompts: &[String]) -> Result<Tensor> {
        match self.choices.prefix.as_str() {
            "" => self.encoder.text_rows(prompts),
            prefix => self.encoder.text_rows(&prompts.iter().map(|p| format!("{prefix}{p}")).collect::<Vec<_>>()),
        }
    }

    fn scaled(&self, cosine: Tensor, images: &Tensor) -> Result<Tensor> {
        let cosine = if self.choices.positive { cosine.relu()? } else { cosine };
        let scores = if self.scale == 1.0 { cosine } else { (cosine * self.scale)? };
        scores.to_dtype(images.dtype())
    }

    /// The version of a published HPSv2, by its file.
    fn version(&self) -> Option<&'static str> {
        let (_, file) = self.encoder.file.as_ref()?;
        match (file.starts_with("HPS_v2.1"), file.starts_with("HPS_v2")) {
            (true, _) => Some("v2.1"),
            (_, true) => Some("v2.0"),
            _ => None,
        }
    }
}

impl Reward for Similarity {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let (images, texts) = (self.encoder.image_rows(batch)?, self.texts(batch.prompts)?);
        self.scaled((images * texts)?.sum(1)?, batch.images)
    }

    fn similarities(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        let batch = Batch::grid(images, prompts)?;
        let (rows, texts) = (self.encoder.image_rows(&batch)?, self.texts(prompts)?);
        self.scaled(rows.matmul(&texts.t()?)?, images)
    }

    fn encoder(&self) -> Option<&Arc<ClipEncoder>> {
        Some(&self.encoder)
    }

    fn describe(&self) -> String {
        let version = self.version().map_or(String::new(), |version| format!(" {version}"));
        format!("{}{version} {}", self.kind.name(), self.encoder.name)
    }

    fn details(&self) -> String {
        let mut text = format!("{}: {}", self.describe(), self.encoder.details());
        if self.scale != 1.0 {
            text += &format!(", times {}", amscript_tensor::show::number(self.scale));
        }
        if self.choices.positive {
            text += ", negative cosines as zero";
        }
        if !self.choices.prefix.is_empty() {
            text += &format!(", prompts behind `{}`", self.choices.prefix);
        }
        text
    }

    fn module(&self) -> Option<&dyn Module<Trained = RewardModel>> {
        Some(self)
    }
}

impl Module for Similarity {
    type Trained = RewardModel;

    fn trainable(&self) -> Result<RewardModel> {
        let encoder = Arc::new(self.encoder.trainable()?);
        Ok(RewardModel::new(Self { kind: self.kind, encoder, choices: self.choices.clone(), scale: self.scale }))
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.encoder.weights.params()
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![self.encoder.part()])
    }

    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        self.encoder.save(folder, self.kind.name(), dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip_encoder::ClipCache;
    use crate::{aesthetic::Aesthetic, open, score_all};
    use amscript_nn::clip_config::{ClipConfig, Layout};
    use amscript_nn::source::{Folder, Sources};
    use amscript_nn::vit::{Activation, TowerConfig};
    use amscript_tensor::grad::{gradcheck, gradients};
    use amscript_tensor::{DType, Device, Rng};

    fn encoder(layout: Layout, dtype: DType) -> Arc<ClipEncoder> {
        let sizes =
            |width| TowerConfig { width, layers: 1, heads: 2, hidden: 16, eps: 1e-5, activation: Activation::Gelu };
        let (vision, text) = (sizes(8), sizes(8));
        let config = ClipConfig { layout, embed: 5, image_size: 8, patch: 4, vision, context: 6, vocabulary: 0, text };
        Arc::new(ClipEncoder::random_as(&prompts(), config, &Rng::new(0), dtype, &Device::Cpu).unwrap())
    }

    fn prompts() -> Vec<String> {
        ["a red ring", "a blue square", "a red ring"].map(String::from).to_vec()
    }

    fn reward(kind: SimilarityKind, layout: Layout, dtype: DType) -> Similarity {
        Similarity::new(kind, encoder(layout, dtype), SimilarityOptions::default()).unwrap()
    }

    fn images(dtype: DType) -> Tensor {
        Rng::new(1).uniform(&[3, 3, 10, 12], dtype, &Device::Cpu).unwrap()
    }

    fn opened(folder: &Path) -> Result<RewardModel> {
        let found = Found::in_folder("here", Folder::disk(folder));
        open::open(&found, &open::RewardOptions::default(), &ClipCache::default(), &Sources::default(), &Device::Cpu)
    }

    #[test]
    fn scores_have_the_gradient_of_finite_differences() {
        for (_, kind) in SimilarityKind::ALL {
            let reward_model = reward(kind, Layout::Transformers, DType::F64);
            let error = gradcheck(|x| reward_model.score(x, &prompts()), &images(DType::F64), 0).unwrap();
            assert!(error < 1e-6, "{kind:?}: {error}");
        }
        let reward_model =
            Aesthetic::random(encoder(Layout::OpenClip, DType::F64), [4, 4, 3, 2], &Rng::new(0)).unwrap();
        let error = gradcheck(|x| reward_model.score(x, &prompts()), &images(DType::F64), 0).unwrap();
        assert!(error < 1e-6, "aesthetic: {error}");
    }

    #[test]
    fn saved_and_read_back_it_scores_the_same() {
        let scores = |r: &dyn Reward| r.score(&images(DType::F32), &prompts()).unwrap().to_vec1::<f32>().unwrap();
        for (layout, kind) in
            [(Layout::OpenClip, SimilarityKind::Hpsv2), (Layout::Transformers, SimilarityKind::PickScore)]
        {
            let (folder, reward_model) = (tempfile::tempdir().unwrap(), reward(kind, layout, DType::F32));
            reward_model.save(folder.path(), None).unwrap();
            let read = opened(folder.path()).unwrap();
            assert!(read.describe() == format!("{} here", kind.name()), "{}", read.describe());
            assert!(read.details().contains("sha256 "), "{}", read.details());
            let pairs = scores(&reward_model).into_iter().zip(scores(&*read)).collect::<Vec<_>>();
            assert!(pairs.iter().all(|(a, b)| (a - b).abs() < 2e-3 * reward_model.scale as f32), "{pairs:?}");
            assert_eq!(scores(&*read), scores(&*read)); // from the cache
            assert!(opened(&folder.path().join("nowhere")).is_err());
            if layout == Layout::Transformers {
                std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"image_mean": [0.5, 0.5, 0.2]}"#)
                    .unwrap();
                assert_ne!(scores(&*opened(folder.path()).unwrap()), scores(&*read));
            }
        }
    }

    #[test]
    fn what_is_no_clip_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |config: &str| {
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            opened(folder.path()).err().unwrap().message
        };
        assert!(refused("").ends_with("config.json: expected a text, got 0 bytes"));
        assert!(refused(r#"{"model_type": "siglip"}"#).ends_with("got a siglip"));
        let revision = Found { name: "pickscore@abcd".into(), ..Found::default() };
        assert!(is_pickscore(&revision) && !is_published(&revision, CLIPS));
    }

    #[test]
    fn an_image_tower_runs_once_for_all_rewards_on_it() {
        let encoder = encoder(Layout::OpenClip, DType::F32);
        let similar =
            Similarity::new(SimilarityKind::ClipScore, encoder.clone(), SimilarityOptions::default()).unwrap();
        let doubled = SimilarityOptions { scale: Some(2.0), ..SimilarityOptions::default() };
        let twice = Similarity::new(SimilarityKind::ClipScore, encoder.clone(), doubled).unwrap();
        let aesthetic = Aesthetic::random(encoder.clone(), [4, 4, 3, 2], &Rng::new(0)).unwrap();
        let all: [Arc<dyn Reward>; 3] = [Arc::new(similar), Arc::new(twice), Arc::new(aesthetic)];
        let scores = score_all(&all, &images(DType::F32), &prompts()).unwrap();
        assert_eq!(encoder.seen(), 1);
        let rows = |t: &Tensor| t.to_vec1::<f32>().unwrap();
        assert!(rows(&scores[0]).iter().zip(rows(&scores[1])).all(|(a, b)| (2.0 * a - b).abs() < 1e-6));
        score_all(&all, &images(DType::F32), &prompts()).unwrap();
        assert_eq!(encoder.seen(), 2);
    }

    #[test]
    fn every_weight_gets_a_gradient() {
        let reward_model = reward(SimilarityKind::Hpsv2, Layout::Transformers, DType::F32).trainable().unwrap();
        let params: Vec<Tensor> = reward_model.params().into_iter().map(|(_, t)| t).collect();
        let loss = reward_model.score(&images(DType::F32), &prompts()).unwrap().sum_all().unwrap();
        for gradient in gradients(&loss, &params).unwrap() {
            assert!(gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
    }

    #[test]
    fn images_out_of_range_are_refused() {
        let reward_model = reward(SimilarityKind::Hpsv2, Layout::OpenClip, DType::F32);
        let error = reward_model.score(&(images(DType::F32) * 255.0).unwrap(), &prompts()).err().unwrap();
        assert!(error.message.starts_with("score: images must lie in [0, 1], got values from 0."), "{error}");
        let four = Tensor::zeros((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap();
        let error = reward_model.score(&four, &prompts()[..1]).err().unwrap();
        assert_eq!(error.message, "score: expected images [batch, 3, height, width], got [1, 4, 8, 8]");
    }
}
