//! Rewards that are the cosine of a CLIP's image and text features: HPSv2 (arXiv:2306.09341), PickScore (arXiv:2305.01569),
//! CLIPScore (arXiv:2104.08718).

use crate::bail;
use crate::error::Result;
use crate::model::estimate::{Cost, Part};
use crate::reward::trunk::Trunk;
use crate::reward::{Batch, Reward};
use crate::tensor::Tensor;
use crate::tensor::grad::composed;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The cosine.
    Hpsv2,
    /// `exp(logit_scale)` times the cosine.
    PickScore,
    /// The cosine; the paper's is `2.5 max(cosine, 0)` of captions behind `A photo depicts `.
    ClipScore,
}

impl Kind {
    pub const ALL: [(&'static str, Kind); 3] =
        [("hpsv2", Kind::Hpsv2), ("pickscore", Kind::PickScore), ("clipscore", Kind::ClipScore)];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// What may differ from the reference.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// In place of the kind's own factor.
    pub scale: Option<f64>,
    /// Before each prompt.
    pub prefix: String,
    /// Negative cosines become zero, and have no gradient.
    pub positive: bool,
}

pub struct Similarity {
    kind: Kind,
    trunk: Arc<Trunk>,
    choices: Choices,
    scale: f64,
}

impl Similarity {
    pub fn new(kind: Kind, trunk: Arc<Trunk>, choices: Choices) -> Result<Self> {
        let own = match kind {
            Kind::PickScore if !trunk.weights.is_hollow() => {
                f64::from(trunk.clip.logit_scale()?.to_dtype(crate::tensor::DType::F32)?.to_scalar::<f32>()?)
            }
            _ => 1.0,
        };
        let scale = choices.scale.unwrap_or(own);
        if !scale.is_finite() {
            bail!(Value, "reward: option `scale` must be finite, got {scale}");
        }
        Ok(Self { kind, trunk, choices, scale })
    }

    fn texts(&self, prompts: &[String]) -> Result<Tensor> {
        match self.choices.prefix.as_str() {
            "" => self.trunk.text_rows(prompts),
            prefix => self.trunk.text_rows(&prompts.iter().map(|p| format!("{prefix}{p}")).collect::<Vec<_>>()),
        }
    }

    fn scaled(&self, cosine: Tensor, images: &Tensor) -> Result<Tensor> {
        let cosine = if self.choices.positive { cosine.relu()? } else { cosine };
        let scores = if self.scale == 1.0 { cosine } else { (cosine * self.scale)? };
        Ok(scores.to_dtype(images.dtype())?)
    }

    /// The version of a published HPSv2, by its file.
    fn version(&self) -> Option<&'static str> {
        let (_, file) = self.trunk.file.as_ref()?;
        match (file.starts_with("HPS_v2.1"), file.starts_with("HPS_v2")) {
            (true, _) => Some("v2.1"),
            (_, true) => Some("v2.0"),
            _ => None,
        }
    }
}

impl Reward for Similarity {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let (images, texts) = (self.trunk.image_rows(batch)?, self.texts(batch.prompts)?);
        composed(&[&images, &texts], |rows| self.scaled((&rows[0] * &rows[1])?.sum(1)?, batch.images))
    }

    fn similarities(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        let batch = Batch::grid(images, prompts)?;
        let (rows, texts) = (self.trunk.image_rows(&batch)?, self.texts(prompts)?);
        composed(&[&rows, &texts], |i| self.scaled(i[0].matmul(&i[1].t()?)?, images))
    }

    fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.trunk.image_rows(&Batch::of_images(images, &[])?)
    }

    fn trunk(&self) -> Option<&Arc<Trunk>> {
        Some(&self.trunk)
    }

    fn describe(&self) -> String {
        let version = self.version().map_or(String::new(), |version| format!(" {version}"));
        format!("{}{version} {}", self.kind.name(), self.trunk.name)
    }

    fn details(&self) -> String {
        let mut text = format!("{}: {}", self.describe(), self.trunk.details());
        if self.scale != 1.0 {
            text += &format!(", times {}", crate::tensor::show::number(self.scale));
        }
        if self.choices.positive {
            text += ", negative cosines as zero";
        }
        if !self.choices.prefix.is_empty() {
            text += &format!(", prompts behind `{}`", self.choices.prefix);
        }
        text
    }

    fn parts(&self) -> Vec<Part> {
        vec![self.trunk.part()]
    }

    fn work(&self, cpu: bool) -> Cost {
        self.trunk.work(cpu)
    }

    fn trainable(&self) -> Result<Arc<dyn Reward>> {
        let trunk = Arc::new(self.trunk.trainable()?);
        Ok(Arc::new(Self { kind: self.kind, trunk, choices: self.choices.clone(), scale: self.scale }))
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.trunk.weights.params()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.trunk.save(folder, self.kind.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::source::{Folder, Sources};
    use crate::nn::clip_config::{Config, Layout};
    use crate::nn::vit::{Activation, Sizes};
    use crate::reward::trunk::Shelf;
    use crate::reward::{Judge, aesthetic::Aesthetic, open, score_all};
    use crate::tensor::grad::{gradcheck, gradients};
    use crate::tensor::{DType, Device, Rng};

    fn trunk(layout: Layout, dtype: DType) -> Arc<Trunk> {
        let sizes = |width| Sizes { width, layers: 1, heads: 2, hidden: 16, eps: 1e-5, activation: Activation::Gelu };
        let (vision, text) = (sizes(8), sizes(8));
        let config = Config { layout, embed: 5, image_size: 8, patch: 4, vision, context: 6, vocabulary: 0, text };
        Arc::new(Trunk::random_as(&prompts(), config, &Rng::new(0), dtype, &Device::Cpu).unwrap())
    }

    fn prompts() -> Vec<String> {
        ["a red ring", "a blue square", "a red ring"].map(String::from).to_vec()
    }

    fn reward(kind: Kind, layout: Layout, dtype: DType) -> Similarity {
        Similarity::new(kind, trunk(layout, dtype), Choices::default()).unwrap()
    }

    fn images(dtype: DType) -> Tensor {
        Rng::new(1).uniform(&[3, 3, 10, 12], dtype, &Device::Cpu).unwrap()
    }

    fn opened(folder: &Path) -> Result<Judge> {
        let (shelf, sources) = (Shelf::default(), Sources::default());
        open::open("here", &Folder::disk(folder), open::Options::default(), &shelf, &sources, &Device::Cpu)
    }

    #[test]
    fn scores_have_the_gradient_of_finite_differences() {
        for (_, kind) in Kind::ALL {
            let judge = reward(kind, Layout::Transformers, DType::F64);
            let error = gradcheck(|x| judge.score(x, &prompts()), &images(DType::F64), 0).unwrap();
            assert!(error < 1e-6, "{kind:?}: {error}");
        }
        let judge = Aesthetic::random(trunk(Layout::OpenClip, DType::F64), [4, 4, 3, 2], &Rng::new(0)).unwrap();
        let error = gradcheck(|x| judge.score(x, &prompts()), &images(DType::F64), 0).unwrap();
        assert!(error < 1e-6, "aesthetic: {error}");
    }

    #[test]
    fn saved_and_read_back_it_scores_the_same() {
        let scores = |r: &dyn Reward| r.score(&images(DType::F32), &prompts()).unwrap().to_vec1::<f32>().unwrap();
        for (layout, kind) in [(Layout::OpenClip, Kind::Hpsv2), (Layout::Transformers, Kind::PickScore)] {
            let (folder, judge) = (tempfile::tempdir().unwrap(), reward(kind, layout, DType::F32));
            judge.save(folder.path()).unwrap();
            let read = opened(folder.path()).unwrap();
            assert!(read.describe() == format!("{} here", kind.name()), "{}", read.describe());
            assert!(read.details().contains("sha256 "), "{}", read.details());
            let pairs = scores(&judge).into_iter().zip(scores(&*read)).collect::<Vec<_>>();
            assert!(pairs.iter().all(|(a, b)| (a - b).abs() < 2e-3 * judge.scale as f32), "{pairs:?}");
            assert_eq!(scores(&*read), scores(&*read)); // from the cache
            assert!(opened(&folder.path().join("nowhere")).is_err());
        }
    }

    #[test]
    fn an_image_tower_runs_once_for_all_rewards_on_it() {
        let trunk = trunk(Layout::OpenClip, DType::F32);
        let similar = Similarity::new(Kind::ClipScore, trunk.clone(), Choices::default()).unwrap();
        let doubled = Choices { scale: Some(2.0), ..Choices::default() };
        let twice = Similarity::new(Kind::ClipScore, trunk.clone(), doubled).unwrap();
        let aesthetic = Aesthetic::random(trunk.clone(), [4, 4, 3, 2], &Rng::new(0)).unwrap();
        let all: [Arc<dyn Reward>; 3] = [Arc::new(similar), Arc::new(twice), Arc::new(aesthetic)];
        let scores = score_all(&all, &images(DType::F32), &prompts()).unwrap();
        assert_eq!(trunk.seen(), 1);
        let rows = |t: &Tensor| t.to_vec1::<f32>().unwrap();
        assert!(rows(&scores[0]).iter().zip(rows(&scores[1])).all(|(a, b)| (2.0 * a - b).abs() < 1e-6));
        score_all(&all, &images(DType::F32), &prompts()).unwrap();
        assert_eq!(trunk.seen(), 2);
    }

    #[test]
    fn every_weight_gets_a_gradient() {
        let judge = reward(Kind::Hpsv2, Layout::Transformers, DType::F32).trainable().unwrap();
        let params: Vec<Tensor> = judge.params().into_iter().map(|(_, t)| t).collect();
        let loss = judge.score(&images(DType::F32), &prompts()).unwrap().sum_all().unwrap();
        for gradient in gradients(&loss, &params).unwrap() {
            assert!(gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
    }

    #[test]
    fn images_out_of_range_are_refused() {
        let judge = reward(Kind::Hpsv2, Layout::OpenClip, DType::F32);
        let error = judge.score(&(images(DType::F32) * 255.0).unwrap(), &prompts()).err().unwrap();
        assert!(error.message.starts_with("score: images must lie in [0, 1], got values from 0."), "{error}");
        let four = Tensor::zeros((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap();
        let error = judge.score(&four, &prompts()[..1]).err().unwrap();
        assert_eq!(error.message, "score: expected images [batch, 3, height, width], got [1, 4, 8, 8]");
    }
}
