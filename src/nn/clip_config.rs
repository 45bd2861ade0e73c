//! Sizes of a CLIP: from `open_clip_config.json`, from the `config.json` of transformers, or from the tensors themselves.

use crate::bail;
use crate::error::{Error, Kind, Result};
use crate::nn::preprocess::Preprocess;
use crate::nn::vit::{Activation, Sizes};
use crate::nn::weights::Weights;
use crate::tensor::op::Filter;
use serde::Deserialize;
use serde_json::{Value, json};

/// How tensors are named and shaped in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    OpenClip,
    Transformers,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub layout: Layout,
    /// Width of the common features.
    pub embed: usize,
    /// Side of the images that the tower sees.
    pub image_size: usize,
    pub patch: usize,
    pub vision: Sizes,
    /// Most tokens of a text.
    pub context: usize,
    pub vocabulary: usize,
    pub text: Sizes,
}

/// `open_clip_config.json`, with open_clip's defaults.
#[derive(Deserialize)]
struct OpenClipFile {
    model_cfg: OpenClipModel,
    #[serde(default)]
    preprocess_cfg: OpenClipPixels,
}

#[derive(Deserialize)]
struct OpenClipModel {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: OpenClipTower,
    text_cfg: OpenClipTower,
}

#[derive(Deserialize)]
struct OpenClipTower {
    layers: usize,
    width: usize,
    #[serde(default = "ratio")]
    mlp_ratio: f64,
    #[serde(default)]
    image_size: usize,
    #[serde(default)]
    patch_size: usize,
    #[serde(default = "head_width")]
    head_width: usize,
    #[serde(default)]
    heads: Option<usize>,
    #[serde(default)]
    context_length: usize,
    #[serde(default)]
    vocab_size: usize,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OpenClipPixels {
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

fn ratio() -> f64 {
    4.0
}

fn head_width() -> usize {
    64
}

/// `config.json` of transformers' `CLIPModel`, with its defaults.
#[derive(Deserialize)]
struct TransformersFile {
    #[serde(default = "embed")]
    projection_dim: usize,
    text_config: TransformersTower,
    vision_config: TransformersTower,
}

#[derive(Deserialize)]
struct TransformersTower {
    hidden_size: usize,
    #[serde(default)]
    intermediate_size: Option<usize>,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "quick")]
    hidden_act: String,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(default = "image_size")]
    image_size: usize,
    #[serde(default)]
    patch_size: usize,
    #[serde(default = "context")]
    max_position_embeddings: usize,
    #[serde(default = "vocabulary")]
    vocab_size: usize,
}

fn embed() -> usize {
    512
}

fn quick() -> String {
    "quick_gelu".into()
}

fn eps() -> f64 {
    1e-5
}

fn image_size() -> usize {
    224
}

fn context() -> usize {
    77
}

fn vocabulary() -> usize {
    49408
}

fn refused(e: serde_json::Error) -> Error {
    Error::new(Kind::File, format!("clip config: {e}"))
}

impl OpenClipTower {
    fn sizes(&self, heads: usize, activation: Activation) -> Sizes {
        let hidden = (self.mlp_ratio * self.width as f64) as usize;
        Sizes { width: self.width, layers: self.layers, heads, hidden, eps: eps(), activation }
    }
}

impl TransformersTower {
    fn sizes(&self) -> Result<Sizes> {
        let activation = match self.hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            other => bail!(Value, "clip config: expected activation `gelu` or `quick_gelu`, got `{other}`"),
        };
        let (width, hidden) = (self.hidden_size, self.intermediate_size.unwrap_or(4 * self.hidden_size));
        let (layers, heads) = (self.num_hidden_layers, self.num_attention_heads);
        Ok(Sizes { width, layers, heads, hidden, eps: self.layer_norm_eps, activation })
    }
}

impl Config {
    /// From `open_clip_config.json`, with how its images are prepared.
    pub fn open_clip(value: Value) -> Result<(Self, Preprocess)> {
        let file: OpenClipFile = serde_json::from_value(value).map_err(refused)?;
        let (m, pixels) = (&file.model_cfg, file.preprocess_cfg);
        let (vision, text) = (&m.vision_cfg, &m.text_cfg);
        let activation = if m.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
        let heads = |tower: &OpenClipTower| tower.heads.unwrap_or(tower.width / tower.head_width.max(1));
        let config = Self {
            layout: Layout::OpenClip,
            embed: m.embed_dim,
            image_size: vision.image_size,
            patch: vision.patch_size,
            vision: vision.sizes(vision.width / vision.head_width.max(1), activation),
            context: text.context_length,
            vocabulary: text.vocab_size,
            text: text.sizes(heads(text), activation),
        };
        let mut prepared = Preprocess::clip(config.image_size);
        prepared.mean = pixels.mean.unwrap_or(prepared.mean);
        prepared.std = pixels.std.unwrap_or(prepared.std);
        let crop = match pixels.resize_mode.as_deref() {
            None | Some("shortest") => "center",
            Some("squash") => "squash",
            Some(other) => bail!(Value, "clip: expected resize mode `shortest` or `squash`, got `{other}`"),
        };
        let prepared = prepared.with(pixels.interpolation.as_deref(), None, Some(crop))?;
        Ok((config, prepared))
    }

    /// From the `config.json` of transformers.
    pub fn transformers(value: Value) -> Result<Self> {
        let file: TransformersFile = serde_json::from_value(value).map_err(refused)?;
        let (vision, text) = (&file.vision_config, &file.text_config);
        Ok(Self {
            layout: Layout::Transformers,
            embed: file.projection_dim,
            image_size: vision.image_size,
            patch: vision.patch_size,
            vision: vision.sizes()?,
            context: text.max_position_embeddings,
            vocabulary: text.vocab_size,
            text: text.sizes()?,
        })
    }

    /// From open_clip's tensors, as published: heads 64 wide, or 80 in a tower of width 1280; the exact GELU.
    pub fn of_tensors(w: &Weights) -> Result<Self> {
        let shape = |name: &str| match w.shape(name) {
            Some(shape) => Ok(shape),
            None => {
                bail!(Missing, "clip: expected open_clip's tensors, among them `{name}`, got none of that name in {}", w.origin();
                hint: "files of transformers need their `config.json` beside them")
            }
        };
        let layers = |prefix: &str| {
            (0..).take_while(|i| w.has(&format!("{prefix}transformer.resblocks.{i}.ln_1.weight"))).count()
        };
        let sizes = |prefix: &str, width: usize| -> Result<Sizes> {
            let hidden = shape(&format!("{prefix}transformer.resblocks.0.mlp.c_fc.weight"))?[0];
            let heads = width / if width == 1280 { 80 } else { 64 };
            Ok(Sizes { width, layers: layers(prefix), heads, hidden, eps: eps(), activation: Activation::Gelu })
        };
        let (patches, projection) = (shape("visual.conv1.weight")?, shape("visual.proj")?);
        let (tokens, embedding) = (shape("visual.positional_embedding")?[0], shape("token_embedding.weight")?);
        Ok(Self {
            layout: Layout::OpenClip,
            embed: projection[1],
            image_size: (tokens.saturating_sub(1)).isqrt() * patches[2],
            patch: patches[2],
            vision: sizes("visual.", patches[0])?,
            context: shape("positional_embedding")?[0],
            vocabulary: embedding[0],
            text: sizes("", embedding[1])?,
        })
    }

    /// Name and contents of the config file of its layout.
    pub fn file(&self, pixels: &Preprocess) -> (&'static str, Value) {
        match self.layout {
            Layout::OpenClip => ("open_clip_config.json", self.open_clip_file(pixels)),
            Layout::Transformers => ("config.json", self.transformers_file()),
        }
    }

    fn open_clip_file(&self, pixels: &Preprocess) -> Value {
        let (v, t) = (&self.vision, &self.text);
        let ratio = |z: &Sizes| z.hidden as f64 / z.width as f64;
        let interpolation = if matches!(pixels.filter, Filter::Bilinear { .. }) { "bilinear" } else { "bicubic" };
        json!({
            "model_cfg": {
                "embed_dim": self.embed,
                "quick_gelu": v.activation == Activation::QuickGelu,
                "vision_cfg": { "image_size": self.image_size, "layers": v.layers, "width": v.width,
                    "head_width": v.width / v.heads, "patch_size": self.patch, "mlp_ratio": ratio(v) },
                "text_cfg": { "context_length": self.context, "vocab_size": self.vocabulary, "width": t.width,
                    "heads": t.heads, "layers": t.layers, "mlp_ratio": ratio(t) },
            },
            "preprocess_cfg": { "mean": pixels.mean, "std": pixels.std, "interpolation": interpolation,
                "resize_mode": if pixels.squash { "squash" } else { "shortest" } },
        })
    }

    fn transformers_file(&self) -> Value {
        let tower = |z: &Sizes| {
            let activation = if z.activation == Activation::QuickGelu { "quick_gelu" } else { "gelu" };
            json!({ "hidden_size": z.width, "intermediate_size": z.hidden, "num_hidden_layers": z.layers,
                "num_attention_heads": z.heads, "hidden_act": activation, "layer_norm_eps": z.eps, "projection_dim": self.embed })
        };
        let (mut vision, mut text) = (tower(&self.vision), tower(&self.text));
        (vision["image_size"], vision["patch_size"]) = (self.image_size.into(), self.patch.into());
        (text["max_position_embeddings"], text["vocab_size"]) = (self.context.into(), self.vocabulary.into());
        // the end token is the largest id, and the start token lies before it
        let end = self.vocabulary.saturating_sub(1);
        (text["bos_token_id"], text["eos_token_id"]) = (end.saturating_sub(1).into(), end.into());
        json!({ "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": self.embed,
            "text_config": text, "vision_config": vision })
    }
}
