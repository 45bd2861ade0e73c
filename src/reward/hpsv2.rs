//! HPSv2 (arXiv:2306.09341): the cosine of a CLIP's image and text features.

use crate::bail;
use crate::data::write_whole;
use crate::error::{Error, Kind, Result};
use crate::model::estimate::{self, Cost, Ops, Part};
use crate::model::source::{Folder, Sources};
use crate::model::tokenizer::Tokenizer;
use crate::nn::clip::{Clip, Config, unit};
use crate::nn::weights::Weights;
use crate::reward::Reward;
use crate::tensor::{DType, Device, Rng, Tensor};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Files that may hold the weights, the newest version first.
const FILES: [&str; 4] =
    ["open_clip_model.safetensors", "HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt", "open_clip_pytorch_model.bin"];
/// Where the full CLIP tokenizer is found when none lies beside the weights.
const TOKENIZERS: [&str; 2] = ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openai/clip-vit-large-patch14"];

/// A CLIP whose cosine is a preference.
pub struct Hpsv2 {
    name: String,
    clip: Clip,
    weights: Weights,
    tokenizer: Arc<Tokenizer>,
    /// Unit text features `[embed]` by prompt; not used while training.
    cache: Mutex<HashMap<String, Tensor>>,
}

/// What a folder does not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The weight file in the folder.
    pub weights: Option<String>,
    /// A folder with a `tokenizer.json`.
    pub tokenizer: Option<String>,
    /// From headers alone, only to be measured; every score is zero.
    pub hollow: bool,
}

impl Hpsv2 {
    /// From a folder with weights, an `open_clip_config.json` (else the published ViT-H-14) and a `tokenizer.json`.
    pub fn open(name: &str, folder: &Folder, options: &Options, sources: &Sources, device: &Device) -> Result<Self> {
        let config: Config = match folder.has("open_clip_config.json") {
            true => folder.json("open_clip_config.json")?,
            false => Config::vit_h_14(),
        };
        let file = match &options.weights {
            Some(file) => file.clone(),
            None => weight_file(folder)?,
        };
        let weights = Weights::open(vec![folder.archive(&file)?], DType::F32, device)?;
        let weights = if options.hollow { weights.hollow() } else { weights };
        let tokenizer = match &options.tokenizer {
            Some(place) => Tokenizer::open(&sources.find(place)?)?,
            None if folder.has("tokenizer.json") => Tokenizer::open(folder)?,
            None => match TOKENIZERS.iter().find_map(|name| sources.find(name).ok()) {
                Some(folder) => Tokenizer::open(&folder)?,
                None => {
                    bail!(Missing, "reward: a `tokenizer.json` beside the weights is needed, got none in {}", folder.origin();
                    hint: "copy CLIP's, fetch {} into the Hugging Face cache, or give `tokenizer: folder`", TOKENIZERS[0])
                }
            },
        };
        Self::new(name, weights, &config, Arc::new(tokenizer))
    }

    /// A random CLIP with a tokenizer trained on `texts`, to be trained; `config`'s vocabulary size is set to the tokenizer's.
    pub fn random(texts: &[String], mut config: Config, rng: &Rng, device: &Device) -> Result<Self> {
        let tokenizer = Tokenizer::train_clip(texts)?;
        config.model_cfg.text_cfg.vocab_size = tokenizer.size();
        Self::new("random clip", Weights::random(rng, DType::F32, device), &config, Arc::new(tokenizer))
    }

    fn new(name: &str, weights: Weights, config: &Config, tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let clip = Clip::new(&weights, config)?;
        let (held, known) = (tokenizer.size(), config.model_cfg.text_cfg.vocab_size);
        if held > known {
            bail!(Value, "reward: the tokenizer has {held} tokens, the model {known}");
        }
        Ok(Self { name: name.into(), clip, weights, tokenizer, cache: Mutex::default() })
    }

    /// Unit image features `[b, embed]`.
    fn image_rows(&self, images: &Tensor) -> Result<Tensor> {
        unit(&self.clip.image_features(&self.clip.preprocess(images)?)?)
    }

    /// Unit text features `[n, embed]`.
    fn texts(&self, prompts: &[&String]) -> Result<Tensor> {
        let end = self.tokenizer.id("<|endoftext|>")?;
        let limit = self.clip.config.model_cfg.text_cfg.context_length;
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let mut row = self.tokenizer.ids(prompt, true)?;
            row.truncate(limit);
            row.last_mut().into_iter().for_each(|last| *last = end);
            ends.push(row.len().saturating_sub(1));
            row.resize(limit, 0);
            ids.extend(row);
        }
        let ids = Tensor::from_vec(ids, (prompts.len(), limit), self.clip.device())?;
        unit(&self.clip.text_features(&ids, &ends)?)
    }

    /// One row of text features per prompt; equal prompts are computed once, and once for all calls when weights are fixed.
    fn text_rows(&self, prompts: &[String]) -> Result<Tensor> {
        let mut fresh: Vec<&String> = Vec::new();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for prompt in prompts {
            if !cache.contains_key(prompt) && !fresh.contains(&prompt) {
                fresh.push(prompt);
            }
        }
        if !self.weights.params().is_empty() {
            let rows: Vec<u32> =
                prompts.iter().map(|p| fresh.iter().position(|f| *f == p).unwrap_or_default() as u32).collect();
            return Ok(self.texts(&fresh)?.index_select(&Tensor::new(rows, self.clip.device())?, 0)?);
        }
        for chunk in fresh.chunks(64) {
            let rows = self.texts(chunk)?;
            for (i, prompt) in chunk.iter().enumerate() {
                cache.insert(prompt.to_string(), rows.get(i)?);
            }
        }
        let rows: Vec<&Tensor> = prompts.iter().filter_map(|prompt| cache.get(prompt)).collect();
        Ok(Tensor::stack(&rows, 0)?)
    }
}

/// The one file that can hold the weights.
fn weight_file(folder: &Folder) -> Result<String> {
    let names = folder.names();
    if let Some(file) = FILES.iter().find(|file| names.contains(**file)) {
        return Ok(file.to_string());
    }
    let others: Vec<&String> = names.iter().filter(|n| n.ends_with(".pt") || n.ends_with(".safetensors")).collect();
    match others.as_slice() {
        [file] => Ok(file.to_string()),
        _ => {
            bail!(Missing, "reward: expected one of {} in {}, got {} other weight files", FILES.join(", "), folder.origin(),
            others.len(); hint: "say which with `weights: file`")
        }
    }
}

impl Reward for Hpsv2 {
    fn compute(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        if self.weights.is_hollow() {
            return Ok(Tensor::zeros(images.dim(0)?, images.dtype(), images.device())?);
        }
        let cosine = (self.image_rows(images)? * self.text_rows(prompts)?)?.sum(1)?;
        Ok(cosine.to_dtype(images.dtype())?)
    }

    fn similarities(&self, images: &Tensor, prompts: &[String]) -> Result<Tensor> {
        let cosine = self.image_rows(images)?.matmul(&self.text_rows(prompts)?.t()?)?;
        Ok(cosine.to_dtype(images.dtype())?)
    }

    fn describe(&self) -> String {
        format!("hpsv2 {}", self.name)
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part::of(&format!("{}: reward", self.name), &self.weights)]
    }

    fn work(&self, fused: bool) -> Cost {
        estimate::clip(&self.clip.config.model_cfg.vision_cfg, Ops { dtype: self.weights.dtype(), fused })
    }

    fn trainable(&self) -> Result<Arc<dyn Reward>> {
        let weights = self.weights.trainable(|name| name != "logit_scale")?;
        Ok(Arc::new(Self::new(&self.name, weights, &self.clip.config, self.tokenizer.clone())?))
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.weights.params()
    }

    /// As `open_clip_model.safetensors` in f16, `open_clip_config.json` and `tokenizer.json`.
    fn save(&self, folder: &Path) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("{}: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(refused)?;
        self.weights.save(&folder.join(FILES[0]), Some(DType::F16))?;
        let config =
            serde_json::to_string_pretty(&self.clip.config).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        write_whole(&folder.join("open_clip_config.json"), config.as_bytes()).map_err(refused)?;
        self.tokenizer.save(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::clip::{ModelConfig, Preprocess, TextConfig, VisionConfig};
    use crate::tensor::grad::{gradients, value_and_grad};

    fn small() -> Config {
        let vision_cfg =
            VisionConfig { image_size: 8, layers: 1, width: 8, head_width: 4, patch_size: 4, mlp_ratio: 2.0 };
        let text_cfg = TextConfig { context_length: 6, vocab_size: 0, width: 8, heads: 2, layers: 1, mlp_ratio: 2.0 };
        let model_cfg = ModelConfig { embed_dim: 5, quick_gelu: false, vision_cfg, text_cfg };
        Config { model_cfg, preprocess_cfg: Preprocess::default() }
    }

    fn prompts() -> Vec<String> {
        ["a red ring", "a blue square", "a red ring"].map(String::from).to_vec()
    }

    #[test]
    fn saved_and_read_back_it_scores_the_same() {
        let reward = Hpsv2::random(&prompts(), small(), &Rng::new(0), &Device::Cpu).unwrap();
        let images = Rng::new(1).uniform(&[3, 3, 10, 12], DType::F32, &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        reward.save(folder.path()).unwrap();
        let place = Folder::disk(folder.path());
        let read = Hpsv2::open("x", &place, &Options::default(), &Sources::default(), &Device::Cpu).unwrap();
        let scores = |r: &dyn Reward| r.score(&images, &prompts()).unwrap().to_vec1::<f32>().unwrap();
        let pairs = scores(&reward).into_iter().zip(scores(&read)).collect::<Vec<_>>();
        assert!(pairs.iter().all(|(a, b)| (a - b).abs() < 2e-3 && a.abs() <= 1.0), "{pairs:?}");
        assert_eq!(scores(&read), scores(&read)); // from the cache
        let all = read.similarities(&images, &prompts()).unwrap().to_vec2::<f32>().unwrap();
        assert!(scores(&read).iter().enumerate().all(|(i, s)| (s - all[i][i]).abs() < 1e-6));
        std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        let error = Hpsv2::open("x", &place, &Options::default(), &Sources::default(), &Device::Cpu).err().unwrap();
        assert!(error.message.starts_with("reward: a `tokenizer.json` beside the weights is needed"), "{error}");
    }

    #[test]
    fn every_weight_and_the_pixels_get_a_gradient() {
        let reward = Hpsv2::random(&prompts(), small(), &Rng::new(0), &Device::Cpu).unwrap().trainable().unwrap();
        let images = Rng::new(1).uniform(&[3, 3, 8, 8], DType::F32, &Device::Cpu).unwrap();
        let params: Vec<Tensor> = reward.params().into_iter().map(|(_, t)| t).collect();
        let loss = |x: &Tensor| Ok(reward.score(x, &prompts())?.sum_all()?);
        for gradient in gradients(&loss(&images).unwrap(), &params).unwrap() {
            assert!(gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
        let (_, gradient) = value_and_grad(loss, &images).unwrap();
        assert!(gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }
}
