//! Opening a model by name or path: what its folder holds decides the family.

use super::Flow;
use super::klein::Klein;
use super::labelled::{Sit, sentences, weights_file};
use super::latents::Latents;
use super::source::{Folder, Sources};
use crate::bail;
use crate::error::{Error, Kind, Result};
use crate::nn::weights::Weights;
use crate::tensor::{DType, Device, Rng};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// What can be chosen when a model is opened.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// Sizes of a new network, drawn from this seed, instead of the stored one.
    pub fresh: Option<(Value, u64)>,
    /// Name or path of an autoencoder's folder, for weights that have none beside them.
    pub vae: Option<String>,
    /// The sentences of the classes, by label, instead of those beside the weights.
    pub classes: Option<Vec<String>>,
    /// Guidance acts on this many channels, the first; none: on all.
    pub guide_channels: Option<usize>,
}

/// The autoencoder that the published SiT models were trained with.
const SIT_VAE: &str = "stabilityai/sd-vae-ft-ema";

/// A model by name (see [`Sources::named`]), the path of its folder, or the path of a file of weights.
pub fn open(name: &str, sources: &Sources, choices: &Choices, device: &Device) -> Result<Flow> {
    if let Some(path) = sources.file(name)
        && let (Some(folder), Some(file)) = (path.parent(), path.file_name().and_then(|file| file.to_str()))
    {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        return open_sit(name, &Folder::disk(folder), Some(file.to_string()), sources, choices, device);
    }
    let folder = sources.find(name)?;
    let labelled = match &choices.fresh {
        Some((sizes, _)) => sizes.get("num_classes").is_some(),
        None => !folder.has("model_index.json") && !folder.has("transformer"),
    };
    if labelled {
        let file = weights_file(&folder)?;
        return open_sit(name, &folder, file, sources, choices, device);
    }
    let config = choices.fresh.as_ref().map(|(sizes, _)| sizes_of(sizes)).transpose()?;
    let klein = Klein::open(name, &folder, config, device)?;
    let weights = match &choices.fresh {
        Some((_, seed)) => Weights::random(&Rng::new(*seed), DType::F32, device),
        None => klein.weights(&folder, device)?,
    };
    Flow::of_family(Arc::new(klein), weights)
}

fn open_sit(
    name: &str,
    folder: &Folder,
    file: Option<String>,
    sources: &Sources,
    choices: &Choices,
    device: &Device,
) -> Result<Flow> {
    let (config, weights) = match (&choices.fresh, file) {
        (Some((sizes, seed)), _) => {
            let config = sizes_of(sizes)?;
            let weights = Sit::random(&config, &Rng::new(*seed), device)?;
            (config, weights)
        }
        (None, Some(file)) => Sit::weights(folder, &file, device)?,
        (None, None) => {
            bail!(
                Missing,
                "{}: expected a model_index.json, or the weights of a SiT, got {}",
                folder.origin(),
                folder.names().into_iter().take(4).collect::<Vec<_>>().join(", ")
            )
        }
    };
    let vae = match &choices.vae {
        Some(vae) => sources.find(vae),
        None if folder.has("vae") => folder.sub("vae"),
        None => sources.named(SIT_VAE),
    };
    let vae = vae.map_err(|e| e.within(format!("{name}: autoencoder")))?;
    let classes = match &choices.classes {
        Some(classes) => classes.clone(),
        None => sentences(folder, config.num_classes)?,
    };
    let sit = Sit::new(name, config, Latents::open(&vae, DType::F32, device)?, classes)?;
    Flow::of_family(Arc::new(sit.guiding(choices.guide_channels)), weights)
}

fn sizes_of<T: DeserializeOwned>(sizes: &Value) -> Result<T> {
    serde_json::from_value(sizes.clone())
        .map_err(|e| Error::new(Kind::Option, format!("flow: transformer: config: {e}")))
}
