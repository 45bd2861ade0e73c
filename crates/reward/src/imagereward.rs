//! ImageReward (arXiv:2304.05977): a BERT reads the prompt and looks at the image in every layer; a linear head judges its first state.

use crate::clip_encoder::ClipOptions;
use crate::head::{HIDDEN, Head};
use crate::open::{ANTIALIAS, CROP, Opener, Opening, RESIZE, TOKENIZER};
use crate::{Batch, Reward, RewardModel};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_nn::bert::{self, Bert};
use amscript_nn::cost::Part;
use amscript_nn::module::Module;
use amscript_nn::opener::Found;
use amscript_nn::preprocess::Preprocess;
use amscript_nn::source::{Folder, Sources};
use amscript_nn::tokenizer::{Tokenizer, warn_of_cut};
use amscript_nn::vit::{Activation, TIMM, TowerConfig, Vit};
use amscript_nn::weights::Weights;
use amscript_tensor::{DType, Device, Rng, Tensor, op};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Files that may hold the weights.
const FILES: [&str; 2] = ["ImageReward.safetensors", "ImageReward.pt"];
/// Where BERT's tokenizer is found when none lies beside the weights.
const TOKENIZERS: [&str; 2] = ["google-bert/bert-base-uncased", "bert-base-uncased"];
/// Most tokens of a prompt, with both ends.
pub const TOKENS: usize = 35;
/// Mean and deviation of the published head's scores.
const MEAN: f64 = 0.16717362830052426;
const DEVIATION: f64 = 1.0333394966054072;

/// ImageReward in the table of rewards.
pub const OPENER: Opener = Opener {
    name: "imagereward",
    repositories: &[("imagereward", "THUDM/ImageReward")],
    recognises,
    options: &[TOKENIZER, RESIZE, ANTIALIAS, CROP],
    open,
};

pub(super) fn recognises(found: &Found) -> bool {
    found.any(|name| name.starts_with("ImageReward") || name == "med_config.json")
}

fn open(opening: &Opening) -> Result<RewardModel> {
    let (name, folder, vocabulary) = (&opening.found.name, opening.found.home()?, opening.tokenizer()?);
    let choices = opening.clip()?;
    let reward = ImageReward::open(name, folder, vocabulary.as_ref(), &choices, opening.sources, opening.device)?;
    Ok(RewardModel::new(reward))
}

/// `vit_config.json`, the sizes of the image tower, which the published file leaves to its code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VitConfig {
    pub image_size: usize,
    pub patch_size: usize,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
}

impl VitConfig {
    /// ViT-L/16, as published.
    pub fn vit_l_16() -> Self {
        Self { image_size: 224, patch_size: 16, width: 1024, layers: 24, heads: 16 }
    }

    fn sizes(&self) -> TowerConfig {
        let (width, layers, heads) = (self.width, self.layers, self.heads);
        TowerConfig { width, layers, heads, hidden: 4 * width, eps: 1e-6, activation: Activation::Gelu }
    }
}

/// Sizes of the parts.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRewardConfig {
    pub vit: VitConfig,
    pub bert: bert::BertConfig,
    pub hidden: [usize; 4],
}

impl ImageRewardConfig {
    /// What a folder says, else the published sizes.
    fn read(folder: &Folder) -> Result<Self> {
        Ok(Self {
            vit: if folder.has("vit_config.json") { folder.json("vit_config.json")? } else { VitConfig::vit_l_16() },
            bert: if folder.has("med_config.json") {
                folder.json("med_config.json")?
            } else {
                bert::BertConfig::base()
            },
            hidden: HIDDEN,
        })
    }
}

/// An image tower, a BERT that looks at it, and a head.
pub struct ImageReward {
    name: String,
    file: Option<(Folder, String)>,
    hash: OnceLock<Option<String>>,
    config: ImageRewardConfig,
    preprocess: Preprocess,
    vit: Vit,
    bert: Bert,
    head: Head,
    weights: Weights,
    tokenizer: Arc<Tokenizer>,
}

impl ImageReward {
    /// From a folder with weights, `med_config.json` and `vit_config.json` (else the published sizes), and BERT's vocabulary,
    /// which may lie in another folder.
    pub fn open(
        name: &str,
        folder: &Folder,
        vocabulary: Option<&Folder>,
        choices: &ClipOptions,
        sources: &Sources,
        device: &Device,
    ) -> Result<Self> {
        let file = match (&choices.weights, FILES.iter().find(|file| folder.has(file))) {
            (Some(file), _) => file.clone(),
            (_, Some(file)) => file.to_string(),
            _ => {
                let message = format!("reward: expected one of {} in {}, got none", FILES.join(", "), folder.origin());
                let error = Error::new(Kind::Missing, message).hint("say which file with `weights: file`");
                return Err(folder.with_download(error));
            }
        };
        let weights = Weights::open(vec![folder.archive(&file)?], DType::F32, device)?;
        let weights = choices.trace.as_ref().map_or_else(|| weights.clone(), |trace| weights.traced(trace));
        let config = ImageRewardConfig::read(folder)?;
        let preprocess = Preprocess::clip(config.vit.image_size).with(
            choices.resize.as_deref(),
            choices.antialias,
            choices.crop.as_deref(),
        )?;
        let tokenizer = match vocabulary {
            Some(folder) => Tokenizer::open_bert(folder)?,
            None => tokenizer(folder, sources)?,
        };
        let file = Some((folder.clone(), file));
        Ok(Self { file, preprocess, ..Self::new(name, weights, config, Arc::new(tokenizer))? })
    }

    /// A random one with a tokenizer made for `texts`, to be trained; the vocabulary's size is set to the tokenizer's.
    pub fn random(texts: &[String], mut config: ImageRewardConfig, rng: &Rng, device: &Device) -> Result<Self> {
        let tokenizer = Tokenizer::train_bert(texts)?;
        config.bert.vocab_size = tokenizer.size();
        Self::new("random image reward", Weights::random(rng, DType::F32, device), config, Arc::new(tokenizer))
    }

    fn new(name: &str, weights: Weights, mut config: ImageRewardConfig, tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let (held, known) = (tokenizer.size(), config.bert.vocab_size);
        if held > known {
            bail!(Value, "reward: the tokenizer has {held} tokens, the model {known}");
        }
        config.bert.encoder_width = config.vit.width;
        let (blip, c) = (weights.pp("blip"), &config);
        let (vit, bert, head) = weights.build(|w| {
            let (sees, reads) = (w.pp("blip.visual_encoder"), w.pp("blip.text_encoder"));
            Ok((
                Vit::new(&sees, c.vit.image_size, c.vit.patch_size, &c.vit.sizes(), &TIMM)?,
                Bert::new(&reads, &c.bert, c.vit.width)?,
                Head::new(&w.pp("mlp"), c.bert.hidden_size, c.hidden)?,
            ))
        })?;
        for part in ["vision_proj", "text_proj"] {
            // towards BLIP's contrastive features, which the score does not use
            ["weight", "bias"].iter().for_each(|name| blip.pp(part).skip(name));
        }
        weights.finish()?;
        let preprocess = Preprocess::clip(c.vit.image_size);
        let (file, hash) = (None, OnceLock::new());
        Ok(Self { name: name.into(), file, hash, config, preprocess, vit, bert, head, weights, tokenizer })
    }

    /// Ids of a prompt, both ends included; of a long one the beginning.
    fn tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.ids(prompt, true)?;
        if let (Some(end), true) = (ids.last().copied(), ids.len() > TOKENS) {
            warn_of_cut(prompt, ids.len(), TOKENS);
            ids.truncate(TOKENS - 1);
            ids.push(end);
        }
        Ok(ids)
    }

    /// Rewards `[b k]` of pixels `[b, 3, size, size]`: k texts in a row belong to one image.
    fn scores(&self, pixels: &Tensor, texts: &[Vec<u32>]) -> Result<Tensor> {
        let image = self.vit.normed(&self.vit.tokens(pixels)?)?;
        let scores = self.head.forward(&self.bert.first_states(texts, &image)?)?;
        scores.affine(1.0 / DEVIATION, -MEAN / DEVIATION)
    }

    /// Rewards `[b k]` of images `[b, 3, h, w]` in `[0, 1]` for texts in the order of [`ImageReward::scores`].
    fn rewards(&self, batch: &Batch, texts: &[Vec<u32>]) -> Result<Tensor> {
        batch.check_range()?;
        let images = batch.images;
        let pixels = self.preprocess.apply(&op::cast(images, self.weights.dtype())?)?;
        op::cast(&self.scores(&pixels, texts)?, images.dtype())
    }
}

/// The folder's, else the cached bert-base-uncased.
fn tokenizer(folder: &Folder, sources: &Sources) -> Result<Tokenizer> {
    if folder.has("vocab.txt") || folder.has("tokenizer.json") {
        return Tokenizer::open_bert(folder);
    }
    match TOKENIZERS.iter().find_map(|name| sources.find(name).ok()) {
        Some(folder) => Tokenizer::open_bert(&folder),
        None => {
            bail!(Missing, "reward: BERT's `vocab.txt` beside the weights is needed, got none in {}", folder.origin();
            hint: "copy it, fetch {} into the Hugging Face cache, or give `tokenizer: folder`", TOKENIZERS[0])
        }
    }
}

impl Reward for ImageReward {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        self.rewards(batch, &batch.prompts.iter().map(|prompt| self.tokens(prompt)).collect::<Result<Vec<_>>>()?)
    }

    /// The image tower sees each image once, whatever the number of prompts.
    fn similarities(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        let batch = Batch::grid(images, prompts)?;
        let texts = prompts.iter().map(|prompt| self.tokens(prompt)).collect::<Result<Vec<_>>>()?;
        let rows = images.dim(0)?;
        let all: Vec<_> = (0..rows).flat_map(|_| texts.iter().cloned()).collect();
        op::reshape(&self.rewards(&batch, &all)?, (rows, prompts.len()))
    }

    fn describe(&self) -> String {
        format!("imagereward {}", self.name)
    }

    fn details(&self) -> String {
        let hash = self.hash.get_or_init(|| self.file.as_ref().and_then(|(folder, file)| folder.hash(file)));
        let hash = hash.as_ref().map_or(String::new(), |hash| format!("sha256 {}, ", &hash[..12]));
        format!("{}: {hash}{}", self.describe(), self.preprocess.describe())
    }

    fn module(&self) -> Option<&dyn Module<Trained = RewardModel>> {
        Some(self)
    }
}

impl Module for ImageReward {
    type Trained = RewardModel;

    fn trainable(&self) -> Result<RewardModel> {
        let weights = self.weights.trainable(|_| true)?;
        let fresh = Self::new(&self.name, weights, self.config.clone(), self.tokenizer.clone())?;
        Ok(RewardModel::new(Self { preprocess: self.preprocess, ..fresh }))
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.weights.params()
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![Part::of(&format!("{}: reward", self.name), &self.weights)])
    }

    /// As `ImageReward.safetensors`, in f16 unless told otherwise, `med_config.json`, `vit_config.json` and `tokenizer.json`.
    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("{}: {e}", folder.display()));
        file::make_folder(folder).map_err(refused)?;
        self.weights.save(&folder.join(FILES[0]), dtype.or(Some(DType::F16)))?;
        let write = |name: &str, text: serde_json::Result<String>| {
            let text = text.map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
            file::write_whole(&folder.join(name), text.as_bytes()).map_err(refused)
        };
        write("med_config.json", serde_json::to_string_pretty(&self.config.bert))?;
        write("vit_config.json", serde_json::to_string_pretty(&self.config.vit))?;
        self.tokenizer.save(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::grad::{gradcheck, gradients, value_and_grad};
    use std::collections::HashMap;
    use std::path::PathBuf;

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/imagereward")
    }

    fn largest(x: &Tensor) -> f64 {
        x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }

    fn assert_near(got: &Tensor, wanted: &Tensor, tolerance: f64) {
        let error = largest(&(got - wanted).unwrap());
        assert!(error < tolerance, "largest difference {error}");
    }

    fn captions() -> Vec<String> {
        ["a red ring", "a blue square at the left", "a red ring"].map(String::from).to_vec()
    }

    fn opened(folder: &Path) -> Result<ImageReward> {
        let folder = Folder::disk(folder);
        ImageReward::open("x", &folder, None, &ClipOptions::default(), &Sources::default(), &Device::Cpu)
    }

    /// Case `imagereward`: the published layout, values and gradients from the image-reward package.
    #[test]
    fn golden_tokens_states_rewards_and_gradients() {
        let weights = Weights::load(&golden().join("ImageReward.pt"), DType::F32, &Device::Cpu).unwrap();
        let tokenizer = Arc::new(Tokenizer::train_bert(&captions()).unwrap());
        let reward =
            ImageReward::new("x", weights, ImageRewardConfig::read(&Folder::disk(golden())).unwrap(), tokenizer)
                .unwrap();
        let golden: HashMap<String, Tensor> =
            amscript_tensor::file::load(golden().join("expected.safetensors"), &Device::Cpu).unwrap();
        let (ids, mask) =
            (golden["in.token_ids"].to_vec2::<i64>().unwrap(), golden["in.mask"].to_vec2::<i64>().unwrap());
        let text = |(ids, mask): (&Vec<i64>, &Vec<i64>)| {
            ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect::<Vec<u32>>()
        };
        let texts: Vec<Vec<u32>> = ids.iter().zip(&mask).map(text).collect();
        let pixels = &golden["in.pixels"];
        let image = reward.vit.normed(&reward.vit.tokens(pixels).unwrap()).unwrap();
        assert_near(&image, &golden["out.image_tokens"], 2e-5);
        let states = reward.bert.first_states(&texts, &image).unwrap();
        assert_near(&states, &golden["out.text_state"], 2e-5);
        assert_near(&reward.scores(pixels, &texts).unwrap(), &golden["out.reward"], 2e-5);
        let (_, gradient) = value_and_grad(|x| reward.scores(x, &texts)?.sum_all(), pixels).unwrap();
        assert_near(&gradient, &golden["out.pixels_grad"], 1e-4 * largest(&golden["out.pixels_grad"]));
        let whole = |x: &Tensor| reward.scores(&reward.preprocess.apply(x)?, &texts[1..2]);
        let (value, gradient) = value_and_grad(|x| whole(x)?.sum_all(), &golden["in.image.0"]).unwrap();
        assert_near(&value.reshape(1).unwrap(), &golden["out.image_reward.0"], 2e-5);
        assert_near(&gradient, &golden["out.image_grad.0"], 1e-4 * largest(&golden["out.image_grad.0"]));
    }

    fn small() -> ImageRewardConfig {
        let vit = VitConfig { image_size: 8, patch_size: 4, width: 12, layers: 2, heads: 2 };
        let bert = bert::BertConfig {
            hidden_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 16,
            max_position_embeddings: TOKENS,
            ..bert::BertConfig::base()
        };
        ImageRewardConfig { vit, bert, hidden: [8, 6, 5, 4] }
    }

    /// Numbers of the published file without BLIP's two unused projections.
    #[test]
    fn the_published_size_is_known_without_a_file() {
        let config = ImageRewardConfig { vit: VitConfig::vit_l_16(), bert: bert::BertConfig::base(), hidden: HIDDEN };
        let tokenizer = Arc::new(Tokenizer::train_bert(&captions()).unwrap());
        let trace = amscript_tensor::meta::Trace::new(false);
        let reward = ImageReward::new("x", Weights::meta(DType::F32, &trace), config, tokenizer).unwrap();
        assert_eq!(reward.weights.count(), (294 + 316 + 10, 303_301_632 + 141_977_088 + 927_969));
        assert_eq!(reward.parts().unwrap()[0].parameters, 446_206_689);
        let images = Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(reward.score(&images, &captions()[..1]).unwrap().to_vec1::<f32>().unwrap(), [0.0]);
        assert!(trace.work() as f64 > 2.0 * 197.0 * 303e6);
    }

    #[test]
    fn gradients_from_pixels_to_scores_match_finite_differences() {
        let mut config = small();
        let tokenizer = Arc::new(Tokenizer::train_bert(&captions()).unwrap());
        config.bert.vocab_size = tokenizer.size();
        let weights = Weights::random(&Rng::new(0), DType::F64, &Device::Cpu);
        let reward = ImageReward::new("x", weights, config, tokenizer).unwrap();
        let images = Rng::new(1).uniform(&[3, 3, 11, 9], DType::F64, &Device::Cpu).unwrap();
        let error = gradcheck(|x: &Tensor| reward.score(x, &captions()), &images, 0).unwrap();
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn saved_and_read_back_it_scores_the_same() {
        let reward = ImageReward::random(&captions(), small(), &Rng::new(0), &Device::Cpu).unwrap();
        let images = Rng::new(1).uniform(&[3, 3, 10, 12], DType::F32, &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        reward.save(folder.path(), None).unwrap();
        let read = opened(folder.path()).unwrap();
        let scores = |r: &dyn Reward| r.score(&images, &captions()).unwrap();
        assert_near(&scores(&reward), &scores(&read), 1e-2);
        let all = read.similarities(&images, &captions()).unwrap().to_vec2::<f32>().unwrap();
        let own = scores(&read).to_vec1::<f32>().unwrap();
        assert!(own.iter().enumerate().all(|(i, s)| (s - all[i][i]).abs() < 1e-5), "{own:?} {all:?}");
        // half of the tensors under another name
        let weights = Weights::load(&folder.path().join(FILES[0]), DType::F32, &Device::Cpu).unwrap();
        let tensors = weights.tensors().unwrap().into_iter();
        let renamed = tensors.map(|(name, t)| (name.replace("crossattention", "cross_attention"), t)).collect();
        Weights::from_tensors("file", renamed).save(&folder.path().join(FILES[0]), None).unwrap();
        let error = opened(folder.path()).err().unwrap();
        assert!(error.message.contains("tensor `blip.text_encoder.encoder.layer.0.crossattention."), "{error}");
        std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        let error = opened(folder.path()).err().unwrap();
        assert!(error.message.starts_with("reward: BERT's `vocab.txt` beside the weights is needed"), "{error}");
        std::fs::rename(folder.path().join(FILES[0]), folder.path().join("IR.safetensors")).unwrap();
        assert!(recognises(&Found::in_folder("x", Folder::disk(folder.path()))));
        let error = opened(folder.path()).err().unwrap();
        assert!(error.message.starts_with("reward: expected one of ImageReward.safetensors, "), "{error}");
    }

    #[test]
    fn long_prompts_keep_their_beginning_and_their_end_token() {
        let reward = ImageReward::random(&captions(), small(), &Rng::new(0), &Device::Cpu).unwrap();
        let ids = reward.tokens(&"red ".repeat(50)).unwrap();
        assert_eq!((ids.len(), ids[0], ids[34]), (35, 2, 3));
        assert!(ids[1..34].iter().all(|id| *id == ids[1]));
        assert_eq!(reward.tokens("").unwrap(), [2, 3]);
    }

    #[test]
    fn every_weight_gets_a_gradient() {
        let reward = ImageReward::random(&captions(), small(), &Rng::new(0), &Device::Cpu).unwrap();
        let reward = reward.trainable().unwrap();
        let images = Rng::new(1).uniform(&[3, 3, 8, 8], DType::F32, &Device::Cpu).unwrap();
        let (names, params): (Vec<String>, Vec<Tensor>) = reward.params().into_iter().unzip();
        let loss = reward.score(&images, &captions()).unwrap().sqr().unwrap().sum_all().unwrap();
        for (name, gradient) in names.iter().zip(gradients(&loss, &params).unwrap()) {
            let size = largest(&gradient);
            // a bias of keys moves all scores of a query alike
            assert!(size.is_finite() && (size > 0.0 || name.ends_with("key.bias")), "{name}");
        }
    }
}
