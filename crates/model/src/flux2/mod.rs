//! FLUX.2-Klein as a diffusers folder or a single file: transformer, autoencoder with normalised latents, Qwen3 prompts.

pub mod names;
pub mod network;

use super::codec::{self, ImageCodec};
use super::families::{Opener, Opening};
use super::parts::{self, Conditioner, Names, Parts};
use super::text::TextEncoder;
use amscript_align::flow::{Condition, Velocity};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_nn::opener::{Field, Found, Takes, field};
use amscript_nn::source::{Component, Folder};
use amscript_nn::weights::Weights;
use amscript_tensor::{DType, Tensor};
use network::{Flux2Config, Transformer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// FLUX.2 in the table of families.
pub const OPENER: Opener = Opener {
    name: "flux2",
    repositories: &[
        ("flux2", "black-forest-labs/FLUX.2-klein-base-4B"),
        ("flux2-distilled", "black-forest-labs/FLUX.2-klein-4B"),
    ],
    recognises,
    options: OPTIONS,
    open,
};

const OPTIONS: &[Field] = &[
    field("size", Takes::Size, "Image side in pixels, or `[height, width]`; () means the model's."),
    codec::VAE,
    field("text_encoder", Takes::Path, "Folder of the text encoder, likewise."),
    field("tokenizer", Takes::Path, "Folder of the tokenizer, likewise."),
    field(
        "max_sequence_length",
        Takes::Count,
        "Tokens that a prompt is padded or cut to; () means the recorded or published number.",
    ),
    field("text_encoder_out_layers", Takes::Counts, "The text encoder's hidden states that make the features."),
    parts::NUM_HEADS,
    field("axes_dims_rope", Takes::Counts, "Dimensions of a head that rotate along each axis."),
    field("rope_theta", Takes::Number, "Base of the rotation's frequencies."),
    codec::NORM_NUM_GROUPS,
    field(
        "deviation",
        Takes::Number,
        "All matrices of a new transformer are normal with this deviation; () means as training begins, with a zero output.",
    ),
];

/// File names of the autoencoder that comes with a transformer in a single file.
const VAE_FILES: [&str; 3] = ["ae.safetensors", "flux2-vae.safetensors", "flux2_ae.safetensors"];

const NAMES: Names = Names {
    file: "transformer/diffusion_pytorch_model.safetensors",
    lora_target: names::lora_target,
    block_linear: names::block_linear,
    alias: names::alias,
    ..Names::USUAL
};

/// By the sizes of a new transformer, the blocks in a single file, or the pipeline that a folder says it is.
fn recognises(found: &Found) -> bool {
    if found.is_told() {
        return ["num_single_layers", "joint_attention_dim", "num_layers"].iter().any(|key| found.sizes_have(key))
            || ["transformer_blocks.", "double_blocks.", "single_blocks."].iter().any(|part| found.holds(part));
    }
    let index = found.folder.as_ref().and_then(|folder| folder.json::<Value>("model_index.json").ok());
    let other = |index: Value| index["_class_name"].as_str().is_some_and(|class| !class.starts_with("Flux2"));
    (found.has("model_index.json") || found.has("transformer")) && !index.is_some_and(other)
}

/// What a diffusers folder does not record: `amscript.json` beside `model_index.json`; the published values by default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Defaults {
    pub max_sequence_length: usize,
    pub text_encoder_out_layers: Vec<usize>,
    /// Image height and width in pixels; by default 256, or less for an autoencoder made for less.
    pub size: Option<Size>,
    pub steps: usize,
    pub guidance: f64,
}

/// Height and width, or one side of a square.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    Square(usize),
    Sides([usize; 2]),
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            max_sequence_length: 512,
            text_encoder_out_layers: vec![9, 18, 27],
            size: None,
            steps: 50,
            guidance: 4.0,
        }
    }
}

/// Parts come from where options say, else from the model's own folder, else from the published one.
fn open(opening: &Opening) -> Result<(Parts, Weights)> {
    let (name, home, device) = (opening.name, opening.found.home()?, opening.device);
    let mut recorded = Map::new();
    if home.has("model_index.json") && home.json::<Value>("model_index.json")?["is_distilled"] == true {
        recorded.extend([("steps".into(), 4.into()), ("guidance".into(), 1.0.into())]);
    }
    if home.has("amscript.json") {
        recorded.extend(home.json::<Map<String, Value>>("amscript.json")?);
    }
    recorded.extend(opening.choices.options.0.clone());
    let defaults: Defaults = serde_json::from_value(Value::Object(recorded))
        .map_err(|e| Error::new(Kind::Option, format!("{name}: amscript.json or options: {e}")))?;
    let vae = autoencoder(opening)?;
    let (config, weights) = network(opening)?;
    let weights = opening.held(weights);
    let latents = codec::open(&vae, opening.option("norm_num_groups")?, opening.choices.trace.as_ref(), device)?;
    let (encoder, tokenizer) = (part(opening, "text_encoder")?, part(opening, "tokenizer")?);
    let (tokens, states) = (defaults.max_sequence_length, &defaults.text_encoder_out_layers);
    let text = TextEncoder::open(&encoder, &tokenizer, tokens, states, opening.choices, device)?;
    let checkpoint_blocks = opening.checkpoint_blocks(&weights);
    latents.serve(name, config.in_channels)?;
    if config.joint_attention_dim != text.features() {
        bail!(
            Value,
            "{name}: the transformer's joint_attention_dim must be the {} features of the prompts, got {}",
            text.features(),
            config.joint_attention_dim;
            hint: "text_encoder_out_layers says which hidden states make the features"
        );
    }
    let size = match defaults.size.unwrap_or(Size::Square(latents.config.sample_size.min(256))) {
        Size::Square(side) => [side; 2],
        Size::Sides(sides) => sides,
    };
    let codec = Arc::new(ImageCodec::new(name, latents.checkpointed(checkpoint_blocks), size)?);
    Ok((parts(config, codec, Arc::new(text), &defaults, checkpoint_blocks)?, weights))
}

fn parts(
    config: Flux2Config,
    codec: Arc<ImageCodec>,
    prompts: Arc<TextEncoder>,
    defaults: &Defaults,
    checkpoint_blocks: bool,
) -> Result<Parts> {
    let recorded = record(&config);
    let around = vec![prompts.part()?, codec.latents.part()];
    Ok(Parts {
        network: Box::new(move |weights| {
            Ok(Arc::new(Network(weights.build(|w| Transformer::new(&config, w, checkpoint_blocks))?)))
        }),
        prompts,
        codec,
        names: NAMES,
        config: recorded,
        defaults: parts::Defaults { steps: defaults.steps, guidance: defaults.guidance },
        guide_channels: None,
        around,
    })
}

/// One of the folders of the pipeline.
fn part(opening: &Opening, which: &str) -> Result<Folder> {
    let (name, home) = (opening.name, opening.found.home()?);
    match opening.option::<String>(which)? {
        Some(path) if file::is_folder(Path::new(&path)) => Ok(Folder::disk(path)),
        Some(path) => bail!(Missing, "{name}: option `{which}`: expected a folder, got \"{path}\""),
        None if home.has(which) => home.sub(which),
        None => opening.sources.named("flux2").and_then(|folder| folder.sub(which)).map_err(|e| {
            Error::new(Kind::Missing, format!("{name}: no `{which}` in {}; {}", home.origin(), e.message))
                .hint(format!("give its folder: flow(.., #{{ {which}: path }})"))
        }),
    }
}

fn autoencoder(opening: &Opening) -> Result<Component> {
    let home = opening.found.home()?;
    if let Some(vae) = opening.option::<String>("vae")? {
        return codec::named(&vae, opening.sources);
    }
    match (home.path(), VAE_FILES.iter().find(|file| home.has(file))) {
        (Some(folder), Some(file)) if !home.has("vae") => Ok(Component::File(folder.join(file))),
        _ => part(opening, "vae").map(Component::Folder),
    }
}

/// The transformer's sizes and weights: new ones, or those stored, all used and none missing.
fn network(opening: &Opening) -> Result<(Flux2Config, Weights)> {
    let choices = opening.choices;
    if let Some((config, rng)) = opening.fresh::<Flux2Config>()? {
        let (dtype, device) = (choices.dtype.unwrap_or(DType::F32), opening.device);
        return Ok(match opening.option("deviation")? {
            Some(deviation) => (config, Weights::noise(&rng, deviation, dtype, device)),
            None => (config, Weights::random(&rng, dtype, device)),
        });
    }
    let stored = match &opening.found.weights {
        Some(path) => Component::at(path)?,
        None => Component::Folder(opening.found.home()?.sub("transformer")?),
    };
    let archives = stored.archives()?;
    let dtype = choices.dtype.unwrap_or_else(|| Weights::usual_dtype(&archives));
    let weights =
        Weights::open_as(archives, &names::layout, &names::FIRST, dtype, opening.device)?.computing(choices.compute);
    let mut config: Flux2Config = stored.config()?.map_or_else(|| Flux2Config::of(&weights), Ok)?;
    if let Some(heads) = opening.option::<usize>("num_heads")? {
        (config.num_attention_heads, config.attention_head_dim) = (heads, config.width() / heads.max(1));
    }
    config.axes_dims_rope = opening.option("axes_dims_rope")?.unwrap_or(config.axes_dims_rope);
    config.rope_theta = opening.option("rope_theta")?.unwrap_or(config.rope_theta);
    weights.verify(|w| Transformer::new(&config, w, false))?;
    Ok((config, weights))
}

struct Network(Transformer);

impl Velocity for Network {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        self.0.velocity(x, t, condition.need(Condition::EMBEDDINGS)?)
    }
}

impl Conditioner for TextEncoder {
    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        self.encode(prompts)
    }

    /// The empty prompt, through the same template and encoder.
    fn unconditional(&self, rows: usize) -> Result<Condition> {
        self.encode(&vec![String::new(); rows])
    }

    fn unload(&self) {
        self.unload();
    }
}

/// `transformer/config.json` in the diffusers layout.
fn record(c: &Flux2Config) -> Value {
    json!({
        "_class_name": "Flux2Transformer2DModel", "patch_size": 1, "in_channels": c.in_channels, "out_channels": null,
        "num_layers": c.num_layers, "num_single_layers": c.num_single_layers,
        "attention_head_dim": c.attention_head_dim, "num_attention_heads": c.num_attention_heads,
        "joint_attention_dim": c.joint_attention_dim, "timestep_guidance_channels": c.timestep_guidance_channels,
        "mlp_ratio": c.mlp_ratio, "axes_dims_rope": c.axes_dims_rope, "rope_theta": c.rope_theta, "eps": c.eps,
        "guidance_embeds": false,
    })
}
