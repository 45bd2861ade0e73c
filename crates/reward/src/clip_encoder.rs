//! A CLIP with what it needs to judge: weights, tokenizer, preprocessing, and text features that are kept by prompt.

use crate::{Batch, Reward};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, warn_once};
use amscript_base::file;
use amscript_base::progress::Progress;
use amscript_nn::clip::{Clip, unit};
use amscript_nn::clip_config::{ClipConfig, Layout};
use amscript_nn::clip_text::clean;
use amscript_nn::cost::Part;
use amscript_nn::preprocess::Preprocess;
use amscript_nn::source::Folder;
use amscript_nn::tokenizer::{Tokenizer, check_prompt};
use amscript_nn::weights::Weights;
use amscript_tensor::meta::Trace;
use amscript_tensor::{DType, Device, Rng, Tensor, op};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Files that may hold the weights of open_clip's layout, the newest version first.
const OPEN_CLIP: [&str; 4] =
    ["open_clip_model.safetensors", "HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt", "open_clip_pytorch_model.bin"];

/// A CLIP that rewards stand on.
pub struct ClipEncoder {
    /// Where it came from, as the user said it.
    pub name: String,
    /// The file of its weights.
    pub file: Option<(Folder, String)>,
    pub clip: Clip,
    pub weights: Weights,
    pub preprocess: Preprocess,
    tokenizer: Arc<Tokenizer>,
    /// Unit text features `[embed]` by text; not used while training.
    cache: Mutex<HashMap<String, Tensor>>,
    hash: OnceLock<Option<String>>,
    /// How many batches the image tower has seen.
    seen: AtomicUsize,
}

/// What a folder does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClipOptions {
    /// The weight file in the folder.
    pub weights: Option<String>,
    pub resize: Option<String>,
    pub antialias: Option<bool>,
    pub crop: Option<String>,
    /// From headers alone, for a run without numbers.
    pub trace: Option<Arc<Trace>>,
}

impl ClipEncoder {
    /// From a folder in open_clip's or transformers' layout; `tokenizer` is a folder to read it from, else what lies beside the
    /// weights, else CLIP's published one.
    pub fn open(
        name: &str,
        folder: &Folder,
        tokenizer: Option<&Folder>,
        choices: &ClipOptions,
        device: &Device,
    ) -> Result<Self> {
        let transformers = folder.has("config.json");
        let file = match &choices.weights {
            Some(file) => file.clone(),
            None if transformers => transformers_file(folder)?,
            None => open_clip_file(folder)?,
        };
        let archives = match file.ends_with(".index.json") {
            true => folder.archives("model")?, // in shards
            false => vec![folder.archive(&file)?],
        };
        let weights = Weights::open(archives, DType::F32, device)?;
        let (config, pixels) = match (transformers, folder.has("open_clip_config.json")) {
            (true, _) => {
                let config = ClipConfig::transformers(folder.json("config.json")?)?;
                (config, transformers_pixels(folder, config.image_size)?)
            }
            (_, true) => ClipConfig::open_clip(folder.json("open_clip_config.json")?)?,
            _ => {
                let config = ClipConfig::of_tensors(&weights)?;
                (config, Preprocess::clip(config.image_size))
            }
        };
        let pixels = pixels.with(choices.resize.as_deref(), choices.antialias, choices.crop.as_deref())?;
        let tokenizer = match tokenizer {
            Some(folder) => Arc::new(Tokenizer::open(folder)?),
            // what may lie beside is for transformers, whose names of the ends are others
            None if !transformers && config.vocabulary == Tokenizer::CLIP_SIZE => Tokenizer::open_clip()?,
            None if folder.has("tokenizer.json") => Arc::new(Tokenizer::open(folder)?),
            None if config.vocabulary == Tokenizer::CLIP_SIZE => Tokenizer::clip()?,
            None => bail!(
                Missing,
                "reward: a `tokenizer.json` beside the weights is needed for a vocabulary of {}, got none in {}",
                config.vocabulary,
                folder.origin()
            ),
        };
        let weights = choices.trace.as_ref().map_or_else(|| weights.clone(), |trace| weights.traced(trace));
        Ok(Self { file: Some((folder.clone(), file)), ..Self::new(name, weights, config, pixels, tokenizer)? })
    }

    /// A random CLIP with a tokenizer trained on `texts`, to be trained; `config`'s vocabulary is set to the tokenizer's.
    pub fn random(texts: &[String], config: ClipConfig, rng: &Rng, device: &Device) -> Result<Self> {
        Self::random_as(texts, config, rng, DType::F32, device)
    }

    pub(crate) fn random_as(
        texts: &[String],
        mut config: ClipConfig,
        rng: &Rng,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::train_clip(texts)?;
        config.vocabulary = tokenizer.size();
        let weights = Weights::random(rng, dtype, device);
        Self::new("random", weights, config, Preprocess::clip(config.image_size), Arc::new(tokenizer))
    }

    fn new(
        name: &str,
        weights: Weights,
        config: ClipConfig,
        preprocess: Preprocess,
        tokenizer: Arc<Tokenizer>,
    ) -> Result<Self> {
        let clip = weights.build(|w| Clip::new(w, &config))?;
        let (held, known) = (tokenizer.size(), config.vocabulary);
        if held > known {
            bail!(Value, "reward: the tokenizer has {held} tokens, the model {known}");
        }
        let (cache, hash, seen) = (Mutex::default(), OnceLock::new(), AtomicUsize::new(0));
        Ok(Self { name: name.into(), file: None, clip, weights, preprocess, tokenizer, cache, hash, seen })
    }

    /// The same with variables for weights.
    pub fn trainable(&self) -> Result<Self> {
        let weights = self.weights.trainable(|name| name != "logit_scale")?;
        Self::new(&self.name, weights, self.clip.config, self.preprocess, self.tokenizer.clone())
    }

    /// Unit image features `[b, embed]`, once per batch.
    pub fn image_rows(self: &Arc<Self>, batch: &Batch) -> Result<Tensor> {
        batch.check_range()?;
        batch.features(Arc::as_ptr(self) as usize, || {
            self.seen.fetch_add(1, Ordering::Relaxed);
            let images = op::cast(batch.images, self.clip.dtype())?;
            unit(&self.clip.image_features(&self.preprocess.apply(&images)?)?)
        })
    }

    /// How many batches the image tower has seen.
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// Unit text features `[n, embed]`; equal texts are computed once, and once for all calls when weights are fixed.
    pub fn text_rows(&self, texts: &[String]) -> Result<Tensor> {
        let mut fresh: Vec<&String> = Vec::new();
        let mut cache = self.cache.lock();
        for text in texts {
            if !cache.contains_key(text) && !fresh.contains(&text) {
                fresh.push(text);
            }
        }
        if !self.weights.params().is_empty() {
            let rows: Vec<u32> =
                texts.iter().map(|t| fresh.iter().position(|f| *f == t).unwrap_or_default() as u32).collect();
            return self.encode(&fresh)?.index_select(&Tensor::new(rows, self.clip.device())?, 0);
        }
        let progress = Progress::new("prompts", 0, fresh.len());
        for (done, chunk) in fresh.chunks(64).enumerate() {
            progress.tick(done * 64);
            let rows = self.encode(chunk)?;
            for (i, text) in chunk.iter().enumerate() {
                cache.insert(text.to_string(), rows.get(i)?);
            }
        }
        let rows: Vec<&Tensor> = texts.iter().filter_map(|text| cache.get(text)).collect();
        Tensor::stack(&rows, 0)
    }

    fn encode(&self, texts: &[&String]) -> Result<Tensor> {
        let config = &self.clip.config;
        // open_clip cleans and fills with 0; transformers does neither, and fills with the end token, which changes nothing
        let cleaned = |text: &&String| {
            check_prompt(text)?;
            Ok(if config.layout == Layout::OpenClip { clean(text) } else { text.to_string() })
        };
        let texts = texts.iter().map(cleaned).collect::<Result<Vec<String>>>()?;
        let (ids, ends) = self.tokenizer.clip_rows(&texts, config.context, 0)?;
        let ids = Tensor::from_vec(ids, (texts.len(), config.context), self.clip.device())?;
        unit(&self.clip.text_features(&ids, &ends)?)
    }

    /// Hash of the weights and preprocessing.
    pub fn details(&self) -> String {
        let hash = self.hash.get_or_init(|| self.file.as_ref().and_then(|(folder, file)| folder.hash(file)));
        let hash = hash.as_ref().map_or(String::new(), |hash| format!("sha256 {}, ", &hash[..12]));
        format!("{hash}{}", self.preprocess.describe())
    }

    pub fn part(&self) -> Part {
        Part::of(&format!("{}: reward", self.name), &self.weights)
    }

    /// Weights (in f16 unless told otherwise), config and tokenizer, in the published layout; transformers' folders also say which reward they are.
    pub fn save(&self, folder: &Path, kind: &str, dtype: Option<DType>) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("{}: {e}", folder.display()));
        file::make_folder(folder).map_err(refused)?;
        let open_clip = self.clip.config.layout == Layout::OpenClip;
        let file = folder.join(if open_clip { OPEN_CLIP[0] } else { "model.safetensors" });
        self.weights.save(&file, dtype.or(Some(DType::F16)))?;
        let (name, config) = self.clip.config.file(&self.preprocess);
        file::write_whole(&folder.join(name), format!("{config:#}\n").as_bytes()).map_err(refused)?;
        if !open_clip {
            let pixels = self.preprocess.transformers_file();
            file::write_whole(&folder.join(PIXELS), format!("{pixels:#}\n").as_bytes()).map_err(refused)?;
        }
        let own = serde_json::json!({ "reward": kind });
        file::write_whole(&folder.join("amscript.json"), format!("{own:#}\n").as_bytes()).map_err(refused)?;
        self.tokenizer.save(folder)
    }
}

/// What transformers' folders say of their images beside the config.
const PIXELS: &str = "preprocessor_config.json";

/// The same below `image_processor`, from transformers 5 on.
const PROCESSOR: &str = "processor_config.json";

/// By one of these files where there is one; what it says and is not done is told.
fn transformers_pixels(folder: &Folder, size: usize) -> Result<Preprocess> {
    let (name, said) = match (folder.has(PIXELS), folder.has(PROCESSOR)) {
        (true, _) => (PIXELS, folder.json(PIXELS)?),
        (_, true) => (PROCESSOR, folder.json::<Value>(PROCESSOR)?["image_processor"].clone()),
        _ => return Ok(Preprocess::clip(size)),
    };
    let place = format!("{}/{name}", folder.origin());
    let (pixels, departures) = Preprocess::transformers(size, &said).map_err(|e| e.within(&place))?;
    if !departures.is_empty() {
        let message = format!("{place}: {} not followed; it is {}", departures.join(", "), pixels.describe());
        warn_once(&place, &message);
    }
    Ok(pixels)
}

fn transformers_file(folder: &Folder) -> Result<String> {
    let files = ["model.safetensors", "pytorch_model.bin"];
    let names = folder.names(); // a link whose download has not ended is there, and will say so
    match files.iter().find(|file| names.contains(**file)) {
        Some(file) => Ok(file.to_string()),
        None if folder.has("model.safetensors.index.json") => Ok("model.safetensors.index.json".into()),
        None => {
            let message = format!("reward: expected one of {} in {}, got none", files.join(", "), folder.origin());
            Err(folder.with_download(Error::new(Kind::Missing, message)))
        }
    }
}

/// The one file that can hold the weights.
fn open_clip_file(folder: &Folder) -> Result<String> {
    let names = folder.names();
    if let Some(file) = OPEN_CLIP.iter().find(|file| names.contains(**file)) {
        return Ok(file.to_string());
    }
    let others: Vec<&String> = names.iter().filter(|n| n.ends_with(".pt") || n.ends_with(".safetensors")).collect();
    match others.as_slice() {
        [file] => Ok(file.to_string()),
        _ => {
            let (known, place, others) = (OPEN_CLIP.join(", "), folder.origin(), others.len());
            let message = format!("reward: expected one of {known} in {place}, got {others} other weight files");
            let error = Error::new(Kind::Missing, message).hint("say which with `weights: file`");
            Err(folder.with_download(error))
        }
    }
}

/// Rewards that are open, and their encoders, so that those on the same file and preprocessing share one.
#[derive(Default)]
pub struct ClipCache {
    encoders: Mutex<BTreeMap<String, Weak<ClipEncoder>>>,
    rewards: Mutex<Vec<Weak<dyn Reward>>>,
}

impl ClipCache {
    /// The encoder of that key, opened when none is at hand.
    pub fn take(&self, key: String, open: impl FnOnce() -> Result<ClipEncoder>) -> Result<Arc<ClipEncoder>> {
        let mut open_ones = self.encoders.lock();
        if let Some(encoder) = open_ones.get(&key).and_then(Weak::upgrade) {
            return Ok(encoder);
        }
        let encoder = Arc::new(open()?);
        open_ones.insert(key, Arc::downgrade(&encoder));
        Ok(encoder)
    }

    /// Notes a reward, for the record of a run.
    pub fn note(&self, reward: &Arc<dyn Reward>) {
        self.rewards.lock().push(Arc::downgrade(reward));
    }

    /// Details of the rewards that are still in use.
    pub fn details(&self) -> Vec<String> {
        let rewards = self.rewards.lock();
        rewards.iter().filter_map(Weak::upgrade).map(|reward| reward.details()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_are_prepared_as_the_processor_says() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::disk(place.path());
        let write = |name: &str, value: Value| std::fs::write(place.path().join(name), value.to_string()).unwrap();
        let mean = || transformers_pixels(&folder, 8).map(|pixels| pixels.mean).map_err(|e| e.message);
        let usual = Preprocess::clip(8).mean;
        assert_eq!(mean(), Ok(usual));
        write(PROCESSOR, json!({ "processor_class": "CLIPProcessor" }));
        assert_eq!(mean(), Ok(usual));
        write(PROCESSOR, json!({ "image_processor": { "image_mean": [0.1, 0.2, 0.3] } }));
        assert_eq!(mean(), Ok([0.1, 0.2, 0.3]));
        write(PROCESSOR, json!({ "image_processor": { "image_mean": 1 } }));
        assert!(mean().unwrap_err().contains("processor_config.json: `image_mean`"));
        write(PIXELS, json!({ "image_mean": [0.5, 0.5, 0.5] }));
        assert_eq!(mean(), Ok([0.5; 3]));
    }
}
