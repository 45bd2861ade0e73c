//! Opening a model by name or path: what its folder holds decides the family.

use super::Flow;
use super::flux2::{self, Transformer};
use super::flux2_names;
use super::klein::{Defaults, Klein};
use super::labelled::{Sit, sentences, weights_file};
use super::latents::Latents;
use super::sit;
use crate::nn::source::{Component, Folder, Sources};
use super::text::TextEncoder;
use crate::bail;
use crate::error::{Error, Kind, Result};
use crate::nn::archive::Archive;
use crate::nn::weights::{LARGE, Weights};
use crate::tensor::{DType, Device, Rng};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What can be chosen when a model is opened.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// Sizes of a new network, drawn from this seed, instead of the stored one.
    pub fresh: Option<(Value, u64)>,
    /// All matrices of a new network are normal with this deviation; none: they begin as training wants them.
    pub deviation: Option<f64>,
    /// The type the weights are held in; none: see [`Weights::usual_dtype`].
    pub dtype: Option<DType>,
    /// The type the network computes in; none: the weights' type, but f32 for half precision on the CPU.
    pub compute: Option<DType>,
    /// Blocks run again in the backward instead of keeping what they computed; none: those of large networks do.
    pub recompute: Option<bool>,
    /// File or folder of the network's weights, for a named model whose network lies elsewhere.
    pub weights: Option<PathBuf>,
    /// Name or path of an autoencoder, for weights that have none beside them.
    pub vae: Option<String>,
    /// Folder of the text encoder.
    pub text_encoder: Option<PathBuf>,
    /// Folder of the tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// Call-time values by their name in `amscript.json`, and sizes that single files do not record.
    pub settings: serde_json::Map<String, Value>,
    /// The sentences of the classes, by label, instead of those beside the weights.
    pub classes: Option<Vec<String>>,
    /// Guidance acts on this many channels, the first; none: on all.
    pub guide_channels: Option<usize>,
    /// From headers alone, only to be measured.
    pub hollow: bool,
}

impl Choices {
    fn setting<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let wrong = |e: serde_json::Error| Error::new(Kind::Option, format!("flow: option `{name}`: {e}"));
        self.settings.get(name).map(|value| serde_json::from_value(value.clone()).map_err(wrong)).transpose()
    }
}

/// The autoencoder that the published SiT models were trained with.
const SIT_VAE: &str = "stabilityai/sd-vae-ft-ema";

/// File names of the autoencoder that comes with a FLUX.2 transformer in a single file.
const FLUX2_VAE: [&str; 3] = ["ae.safetensors", "flux2-vae.safetensors", "flux2_ae.safetensors"];

/// A model by name (see [`Sources::named`]), the path of its folder, or the path of a file of weights.
pub fn open(name: &str, sources: &Sources, choices: &Choices, device: &Device) -> Result<Flow> {
    let file = sources.file(name);
    let (home, file) = match file.as_deref().and_then(Path::parent) {
        Some(folder) if folder.as_os_str().is_empty() => (Folder::disk("."), file.as_deref()),
        Some(folder) => (Folder::disk(folder), file.as_deref()),
        None => (sources.find(name)?, None),
    };
    let network = choices.weights.as_deref().or(file);
    let labelled = match (&choices.fresh, network) {
        (Some((sizes, _)), _) => sizes.get("num_classes").is_some(),
        (None, Some(file)) if file.is_file() => {
            Archive::open(file)?.entries().keys().any(|name| name.contains("y_embedder"))
        }
        _ => !home.has("model_index.json") && !home.has("transformer"),
    };
    if !labelled {
        return open_klein(name, &home, network, sources, choices, device);
    }
    let archive = match (&choices.fresh, network) {
        (Some(_), _) => None,
        (None, Some(file)) => Some(Archive::open(file)?),
        (None, None) => weights_file(&home)?.map(|file| home.archive(&file)).transpose()?,
    };
    open_sit(name, &home, archive, sources, choices, device)
}

/// Parts come from where `choices` says, else from the model's own folder, else from the published one.
fn open_klein(
    name: &str,
    home: &Folder,
    network: Option<&Path>,
    sources: &Sources,
    choices: &Choices,
    device: &Device,
) -> Result<Flow> {
    let part = |which: &str, chosen: Option<&Path>| -> Result<Folder> {
        match chosen {
            Some(path) if path.is_dir() => Ok(Folder::disk(path)),
            Some(path) => bail!(Missing, "{name}: option `{which}`: expected a folder, got \"{}\"", path.display()),
            None if home.has(which) => home.sub(which),
            None => sources.named("flux2").and_then(|folder| folder.sub(which)).map_err(|e| {
                Error::new(Kind::Missing, format!("{name}: no `{which}` in {}; {}", home.origin(), e.message))
                    .hint(format!("give its folder: flow(.., #{{ {which}: path }})"))
            }),
        }
    };
    let vae = match &choices.vae {
        Some(vae) if Path::new(vae).exists() => Component::at(Path::new(vae))?,
        Some(vae) => Component::Folder(sources.find(vae)?),
        None => match (home.path(), FLUX2_VAE.iter().find(|file| home.has(file))) {
            (Some(folder), Some(file)) if !home.has("vae") => Component::File(folder.join(file)),
            _ => Component::Folder(part("vae", None)?),
        },
    };
    let mut recorded: serde_json::Map<String, Value> =
        if home.has("amscript.json") { home.json("amscript.json")? } else { Default::default() };
    recorded.extend(choices.settings.clone());
    let defaults: Defaults = serde_json::from_value(Value::Object(recorded))
        .map_err(|e| Error::new(Kind::Option, format!("{name}: amscript.json or options: {e}")))?;
    let (config, weights) = match (&choices.fresh, network) {
        (Some((sizes, seed)), _) => {
            let (rng, dtype) = (Rng::new(*seed), choices.dtype.unwrap_or(DType::F32));
            let weights = match choices.deviation {
                Some(deviation) => Weights::noise(&rng, deviation, dtype, device),
                None => Weights::random(&rng, dtype, device),
            };
            (sizes_of(sizes)?, weights.computing(choices.compute))
        }
        (None, Some(path)) => transformer(&Component::at(path)?, choices, device)?,
        (None, None) => transformer(&Component::Folder(home.sub("transformer")?), choices, device)?,
    };
    let weights = if choices.hollow { weights.hollow().computing(choices.compute) } else { weights };
    let latents = latents(&vae, choices, device)?;
    let encoder = part("text_encoder", choices.text_encoder.as_deref())?;
    let tokenizer = part("tokenizer", choices.tokenizer.as_deref())?;
    let (tokens, states) = (defaults.max_sequence_length, &defaults.text_encoder_out_layers);
    let text = TextEncoder::open(&encoder, &tokenizer, tokens, states, choices.dtype, device)?;
    let recompute = choices.recompute.unwrap_or_else(|| weights.stored() > LARGE);
    Flow::of_family(Arc::new(Klein::new(name, config, latents, text, defaults.size, recompute)?), weights)
}

/// The transformer's weights, all used and none missing, and its sizes: from its config, else from the tensors.
fn transformer(part: &Component, choices: &Choices, device: &Device) -> Result<(flux2::Config, Weights)> {
    let archives = part.archives()?;
    let dtype = choices.dtype.unwrap_or_else(|| Weights::usual_dtype(&archives));
    let weights = Weights::open_as(archives, &flux2_names::layout, dtype, device)?.computing(choices.compute);
    let mut config: flux2::Config = part.config()?.map_or_else(|| flux2::Config::of(&weights), Ok)?;
    if let Some(heads) = choices.setting::<usize>("num_heads")? {
        (config.num_attention_heads, config.attention_head_dim) = (heads, config.width() / heads.max(1));
    }
    config.axes_dims_rope = choices.setting("axes_dims_rope")?.unwrap_or(config.axes_dims_rope);
    config.rope_theta = choices.setting("rope_theta")?.unwrap_or(config.rope_theta);
    weights.verify(|w| Transformer::new(&config, w, false))?;
    Ok((config, weights))
}

fn open_sit(
    name: &str,
    home: &Folder,
    archive: Option<Archive>,
    sources: &Sources,
    choices: &Choices,
    device: &Device,
) -> Result<Flow> {
    let (config, weights) = match (&choices.fresh, archive) {
        (Some((sizes, seed)), _) => {
            let config = sizes_of(sizes)?;
            let dtype = choices.dtype.unwrap_or(DType::F32);
            let weights = match choices.hollow {
                true => Weights::outline(dtype),
                false => sit::random(&config, &Rng::new(*seed), dtype, device)?,
            };
            (config, weights.computing(choices.compute))
        }
        (None, Some(archive)) => sit_weights(home, archive, choices, device)?,
        (None, None) => {
            bail!(
                Missing,
                "{}: expected a model_index.json, or the weights of a SiT, got {}",
                home.origin(),
                home.names().into_iter().take(4).collect::<Vec<_>>().join(", ")
            )
        }
    };
    let vae = match &choices.vae {
        Some(vae) if Path::new(vae).exists() => Component::at(Path::new(vae)),
        Some(vae) => sources.find(vae).map(Component::Folder),
        None if home.has("vae") => home.sub("vae").map(Component::Folder),
        None => sources.named(SIT_VAE).map(Component::Folder),
    };
    let vae = vae.map_err(|e| e.within(format!("{name}: autoencoder")))?;
    let classes = match &choices.classes {
        Some(classes) => classes.clone(),
        None => sentences(home, config.num_classes)?,
    };
    let weights = if choices.hollow { weights.hollow().computing(choices.compute) } else { weights };
    let latents = latents(&vae, choices, device)?;
    let recompute = choices.recompute.unwrap_or_else(|| weights.stored() > LARGE);
    let sit = Sit::new(name, config, latents, classes, recompute)?;
    Flow::of_family(Arc::new(sit.guiding(choices.guide_channels)), weights)
}

/// The weights of a SiT, all used and none missing, and its sizes: from its config, else from the tensors.
fn sit_weights(home: &Folder, archive: Archive, choices: &Choices, device: &Device) -> Result<(sit::Config, Weights)> {
    let archives = vec![archive];
    let dtype = choices.dtype.unwrap_or_else(|| Weights::usual_dtype(&archives));
    let weights = Weights::open(archives, dtype, device)?.computing(choices.compute);
    let heads = choices.setting("num_heads")?;
    let config = if home.has("config.json") { home.json("config.json")? } else { sit::Config::of(&weights, heads)? };
    weights.verify(|w| sit::Transformer::new(&config, w, false))?;
    Ok((config, weights))
}

/// The autoencoder in a folder or file.
fn latents(vae: &Component, choices: &Choices, device: &Device) -> Result<Latents> {
    let groups = choices.setting("norm_num_groups")?;
    match choices.hollow {
        true => Latents::outline(vae, groups, DType::F32),
        false => Latents::open(vae, groups, DType::F32, device),
    }
}

fn sizes_of<T: DeserializeOwned>(sizes: &Value) -> Result<T> {
    serde_json::from_value(sizes.clone())
        .map_err(|e| Error::new(Kind::Option, format!("flow: transformer: config: {e}")))
}
