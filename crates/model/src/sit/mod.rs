//! SiT: class labels to images, with a Stable Diffusion autoencoder.
//!
//! The output channels that are never read are dropped when the network is built, by a view, not in its file.

pub mod network;

use super::codec::{self, ImageCodec};
use super::families::{Opener, Opening};
use super::parts::{self, Conditioner, Defaults, Names, Parts};
use amscript_align::flow::{Condition, Velocity};
use amscript_base::error::{Error, Kind, Result, nearest};
use amscript_base::{bail, memory};
use amscript_nn::archive::Archive;
use amscript_nn::data::class::{class_names, prompts_of};
use amscript_nn::layout;
use amscript_nn::opener::{Field, Found, Takes, field};
use amscript_nn::source::{Component, Folder};
use amscript_nn::weights::Weights;
use amscript_tensor::{DType, Tensor};
use network::{SitConfig, Transformer};
use serde_json::json;
use std::sync::Arc;

/// SiT in the table of families.
pub const OPENER: Opener =
    Opener { name: "sit", repositories: &[("sit", "nyu-visionx/SiT-collections")], recognises, options: OPTIONS, open };

const OPTIONS: &[Field] = &[
    codec::VAE,
    parts::NUM_HEADS,
    codec::NORM_NUM_GROUPS,
    field(
        "classes",
        Takes::Texts,
        "The sentences of the classes, by label, that rewards judge by; () means those of `classes.txt` beside the weights.",
    ),
    field("guide_channels", Takes::Count, "Guidance acts on this many channels, 3 in SiT's own code; () means all."),
];

/// What embeds the latents: by it the network is found below any prefix.
const FIRST: &str = "x_embedder.proj.weight";

/// The autoencoder that the published models were trained with.
const PUBLISHED_VAE: &str = "stabilityai/sd-vae-ft-ema";

const NAMES: Names = Names {
    lora_target: network::lora_target,
    block_linear: network::lora_target,
    trained: network::trained,
    ..Names::USUAL
};

/// By the sizes of a new transformer, or by the label's embedding in the file of weights; one that cannot be read is refused later.
fn recognises(found: &Found) -> bool {
    if found.is_told() {
        return found.sizes_have("num_classes") || found.holds("y_embedder");
    }
    let Some(folder) = found.folder.as_ref().filter(|_| !found.has("model_index.json") && !found.has("transformer"))
    else {
        return false;
    };
    let embeds = |archive: Archive| archive.entries().keys().any(|name| name.contains("y_embedder"));
    match weights_file(folder) {
        Ok(Some(file)) => folder.archive(&file).map_or(true, embeds),
        Ok(None) => false,
        Err(_) => true,
    }
}

fn open(opening: &Opening) -> Result<(Parts, Weights)> {
    let (name, home, choices) = (opening.name, opening.found.home()?, opening.choices);
    let (config, weights) = match opening.fresh::<SitConfig>()? {
        Some((config, rng)) => {
            let dtype = choices.dtype.unwrap_or(DType::F32);
            let weights = match &choices.trace {
                Some(trace) => Weights::meta(dtype, trace),
                None => network::random(&config, &rng, dtype, opening.device)?,
            };
            (config, weights)
        }
        None => stored(opening)?,
    };
    let vae = match opening.option::<String>("vae")? {
        Some(vae) => codec::named(&vae, opening.sources),
        None if home.has("vae") => home.sub("vae").map(Component::Folder),
        None => opening.sources.named(PUBLISHED_VAE).map(Component::Folder),
    };
    let vae = vae.map_err(|e| e.within(format!("{name}: autoencoder")))?;
    let sentences = opening.option("classes")?.map_or_else(|| sentences(home, config.num_classes), Ok)?;
    if sentences.len() != config.num_classes {
        bail!(Value, "{name}: expected {} sentences, one per class, got {}", config.num_classes, sentences.len());
    }
    let weights = opening.held(weights);
    let checkpoint_blocks = opening.checkpoint_blocks(&weights);
    let latents = codec::open(&vae, opening.option("norm_num_groups")?, choices.trace.as_ref(), opening.device)?;
    latents.serve(name, config.in_channels)?;
    let latents = latents.checkpointed(checkpoint_blocks);
    let size = [config.input_size * latents.pixels(); 2];
    let codec = Arc::new(ImageCodec::new(name, latents, size)?);
    let (config_json, around) = (json!(config), vec![codec.latents.part()]);
    let parts = Parts {
        network: Box::new(move |weights| {
            Ok(Arc::new(Network(weights.build(|w| Transformer::new(&config, w, checkpoint_blocks))?)))
        }),
        prompts: Arc::new(Classes { sentences }),
        codec,
        names: NAMES,
        config: config_json,
        defaults: Defaults::default(),
        guide_channels: opening.option("guide_channels")?,
        around,
    };
    Ok((parts, weights))
}

/// The weights of a SiT, all used and none missing, and its sizes: from its config, else from the tensors.
fn stored(opening: &Opening) -> Result<(SitConfig, Weights)> {
    let (home, choices) = (opening.found.home()?, opening.choices);
    let archive = match &opening.found.weights {
        Some(file) => Archive::open(file)?,
        None => match weights_file(home)? {
            Some(file) => home.archive(&file)?,
            None => {
                let message = format!("{}: expected the weights of a SiT, got none", home.origin());
                return Err(home.with_download(Error::new(Kind::Missing, message)));
            }
        },
    };
    let archives = vec![archive];
    let dtype = choices.dtype.unwrap_or_else(|| Weights::usual_dtype(&archives));
    let weights =
        Weights::open_as(archives, &layout::same, &[FIRST], dtype, opening.device)?.computing(choices.compute);
    let heads = opening.option("num_heads")?;
    let mut config: SitConfig =
        if home.has("config.json") { home.json("config.json")? } else { SitConfig::of(&weights, heads)? };
    config.num_heads = heads.unwrap_or(config.num_heads);
    weights.verify(|w| Transformer::new(&config, w, false))?;
    Ok((config, weights))
}

/// The sentences of `classes.txt`, one per line; without that file, those of ImageNet for its number of classes.
pub fn sentences(folder: &Folder, classes: usize) -> Result<Vec<String>> {
    let labels: Vec<usize> = (0..classes).collect();
    match folder.has("classes.txt") {
        true => {}
        false if classes == class_names().len() => return prompts_of(&labels),
        false => return Ok(labels.iter().map(|label| format!("class {label}")).collect()),
    }
    Ok(folder.text("classes.txt")?.lines().map(|line| line.trim().to_string()).collect())
}

struct Network(Transformer);

impl Velocity for Network {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let Some(labels) = &condition.labels else {
            bail!(Value, "velocity: expected a condition with class labels, got none"; hint: "make one with flow.encode([3, 7])");
        };
        self.0.velocity(x, t, labels)
    }
}

/// Class labels, and the sentence of each class, which rewards judge by.
struct Classes {
    sentences: Vec<String>,
}

impl Conditioner for Classes {
    /// The classes whose sentences these are.
    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        let label = |prompt: &String| match self.sentences.iter().position(|class| class == prompt) {
            Some(label) => Ok(label as u32),
            None => {
                let near = nearest(prompt, self.sentences.iter().map(String::as_str)).unwrap_or("a label");
                bail!(Value, "encode: expected labels or the sentence of a class, got `{prompt}`"; hint: "the nearest is `{near}`")
            }
        };
        self.encode_labels(&prompts.iter().map(label).collect::<Result<Vec<_>>>()?)
    }

    fn encode_labels(&self, labels: &[u32]) -> Result<Condition> {
        let null = self.sentences.len();
        let text = |label: &u32| match self.sentences.get(*label as usize) {
            Some(sentence) => Ok(sentence.clone()),
            None if *label as usize == null => Ok(String::new()),
            None => bail!(Value, "encode: labels must be below {null}, or {null} for the null class, got {label}"),
        };
        if labels.is_empty() {
            bail!(Value, "encode: expected at least one label, got none");
        }
        let longest = self.sentences.iter().map(String::len).max().unwrap_or(0);
        memory::room(memory::bytes(&[labels.len(), longest + 64], 1), || format!("encode: {} labels", labels.len()))?;
        let text = labels.iter().map(text).collect::<Result<_>>()?;
        Ok(Condition { text, labels: Some(labels.to_vec()), ..Condition::default() })
    }

    /// The null class.
    fn unconditional(&self, rows: usize) -> Result<Condition> {
        self.encode_labels(&vec![self.sentences.len() as u32; rows])
    }

    fn classes(&self) -> &[String] {
        &self.sentences
    }
}

/// Files of weights by preference, where a folder holds several.
const PREFERRED: [&str; 3] = ["model.safetensors", "SiT-XL-2-256.pt", "SiT-XL-2-256x256.pt"];

/// The file of weights in a folder, if there is one.
fn weights_file(folder: &Folder) -> Result<Option<String>> {
    let ends = [".safetensors", ".pt"];
    let names: Vec<String> = folder.names().into_iter().filter(|n| ends.iter().any(|end| n.ends_with(end))).collect();
    if let Some(name) = PREFERRED.iter().find(|name| names.iter().any(|n| n == *name)) {
        return Ok(Some(name.to_string()));
    }
    if names.len() > 1 {
        bail!(File, "{}: expected one file of weights, got {}", folder.origin(), names.join(", ");
            hint: "give the path of the file itself");
    }
    Ok(names.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_utf8_with_or_without_a_mark() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &[u8]| {
            std::fs::write(folder.path().join("classes.txt"), text).unwrap();
            sentences(&Folder::disk(folder.path()), 2)
        };
        assert_eq!(read(b"\xef\xbb\xbfa cat\r\na dog\n").unwrap(), ["a cat", "a dog"]);
        for text in [&b"caf\xe9\n"[..], b"\xff\xfea\0"] {
            let error = read(text).unwrap_err();
            assert!(error.message.contains("classes.txt: it is not text in UTF-8"), "{error}");
        }
    }
}
