//! Sizes of a CLIP: from `open_clip_config.json`, from the `config.json` of transformers, or from the tensors themselves.

use crate::preprocess::Preprocess;
use crate::vit::{Activation, TowerConfig};
use crate::weights::Weights;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_tensor::op::Filter;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How tensors are named and shaped in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    OpenClip,
    Transformers,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipConfig {
    pub layout: Layout,
    /// Width of the common features.
    pub embed: usize,
    /// Side of the images that the tower sees.
    pub image_size: usize,
    pub patch: usize,
    pub vision: TowerConfig,
    /// Most tokens of a text.
    pub context: usize,
    pub vocabulary: usize,
    pub text: TowerConfig,
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
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Of a tower's keys, those that change numbers without changing tensors, and so must be at open_clip's defaults.
const FIXED: [&str; 7] = [
    "pool_type",
    "no_causal_mask",
    "norm_kwargs",
    "act_kwargs",
    "final_ln_after_pool",
    "no_ln_pre",
    "attentional_pool",
];

#[derive(Deserialize, Default)]
#[serde(default)]
struct OpenClipPixels {
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

/// Of open_clip's text towers of any width.
const TEXT_HEADS: usize = 8;

fn ratio() -> f64 {
    4.0
}

fn head_width() -> usize {
    64
}

/// `config.json` of transformers' `CLIPModel`, which may leave out what is its default.
#[derive(Deserialize)]
struct TransformersFile {
    model_type: Option<String>,
    projection_dim: Option<usize>,
    #[serde(default)]
    text_config: TransformersTower,
    #[serde(default)]
    vision_config: TransformersTower,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TransformersTower {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    vocab_size: Option<usize>,
}

fn eps() -> f64 {
    1e-5
}

fn refused(e: serde_json::Error) -> Error {
    Error::new(Kind::File, format!("clip config: {e}"))
}

impl OpenClipTower {
    /// Refuses what is not done here; `pool` is how open_clip pools this tower unless told otherwise.
    fn check(&self, tower: &str, pool: &str) -> Result<()> {
        let is_usual = |name: &str, given: &Value| match given {
            Value::String(given) => name == "pool_type" && given == pool,
            Value::Object(given) => name.ends_with("_kwargs") && given.is_empty(),
            Value::Bool(false) => true,
            Value::Null => name != "pool_type",
            _ => false,
        };
        for name in FIXED {
            if let Some(given) = self.others.get(name).filter(|given| !is_usual(name, given)) {
                let usual = if name == "pool_type" { format!("`{pool}`") } else { "open_clip's default".into() };
                bail!(Value, "clip config: {tower}: expected {usual} for `{name}`, got {given}");
            }
        }
        Ok(())
    }

    fn sizes(&self, heads: usize, activation: Activation) -> TowerConfig {
        let hidden = (self.mlp_ratio * self.width as f64) as usize;
        TowerConfig { width: self.width, layers: self.layers, heads, hidden, eps: eps(), activation }
    }
}

impl TransformersTower {
    /// With these for the width, the MLP's width and the heads where the file is silent; 12 layers, QuickGELU.
    fn sizes(&self, [width, hidden, heads]: [usize; 3]) -> Result<TowerConfig> {
        let activation = match self.hidden_act.as_deref() {
            None | Some("quick_gelu") => Activation::QuickGelu,
            Some("gelu") => Activation::Gelu,
            Some(other) => bail!(Value, "clip config: expected activation `gelu` or `quick_gelu`, got `{other}`"),
        };
        Ok(TowerConfig {
            width: self.hidden_size.unwrap_or(width),
            layers: self.num_hidden_layers.unwrap_or(12),
            heads: self.num_attention_heads.unwrap_or(heads),
            hidden: self.intermediate_size.unwrap_or(hidden),
            eps: self.layer_norm_eps.unwrap_or(eps()),
            activation,
        })
    }
}

impl ClipConfig {
    /// From `open_clip_config.json`, with how its images are prepared.
    pub fn open_clip(value: Value) -> Result<(Self, Preprocess)> {
        let file: OpenClipFile = serde_json::from_value(value).map_err(refused)?;
        let (m, pixels) = (&file.model_cfg, file.preprocess_cfg);
        let (vision, text) = (&m.vision_cfg, &m.text_cfg);
        let activation = if m.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
        vision.check("vision_cfg", "tok")?;
        text.check("text_cfg", "argmax")?;
        let config = Self {
            layout: Layout::OpenClip,
            embed: m.embed_dim,
            image_size: vision.image_size,
            patch: vision.patch_size,
            vision: vision.sizes(vision.width / vision.head_width.max(1), activation),
            context: text.context_length,
            vocabulary: text.vocab_size,
            text: text.sizes(text.heads.unwrap_or(TEXT_HEADS), activation),
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
        if let Some(other) = file.model_type.filter(|model| model != "clip") {
            bail!(Value, "clip config: expected a model_type `clip`, got `{other}`"; hint: "give the folder of a CLIP");
        }
        Ok(Self {
            layout: Layout::Transformers,
            embed: file.projection_dim.unwrap_or(512),
            image_size: vision.image_size.unwrap_or(224),
            patch: vision.patch_size.unwrap_or(32),
            vision: vision.sizes([768, 3072, 12])?,
            context: text.max_position_embeddings.unwrap_or(77),
            vocabulary: text.vocab_size.unwrap_or(49408),
            text: text.sizes([512, 2048, 8])?,
        })
    }

    /// From open_clip's tensors, as published: heads 64 wide, or 80 in a tower of width 1280; the exact GELU.
    pub fn of_tensors(w: &Weights) -> Result<Self> {
        let shape = |name: &str, rank: usize| match w.shape(name) {
            Some(shape) if shape.len() == rank => Ok(shape),
            Some(shape) => {
                bail!(Shape, "clip: {}: tensor `{name}` must have {rank} dimensions, got shape {shape:?}", w.origin())
            }
            None => {
                bail!(Missing, "clip: expected open_clip's tensors, among them `{name}`, got none of that name in {}", w.origin();
                hint: "files of transformers need their `config.json` beside them")
            }
        };
        let layers = |prefix: &str| {
            (0..).take_while(|i| w.has(&format!("{prefix}transformer.resblocks.{i}.ln_1.weight"))).count()
        };
        let sizes = |prefix: &str, width: usize| -> Result<TowerConfig> {
            let hidden = shape(&format!("{prefix}transformer.resblocks.0.mlp.c_fc.weight"), 2)?[0];
            let heads = width / if width == 1280 { 80 } else { 64 };
            Ok(TowerConfig { width, layers: layers(prefix), heads, hidden, eps: eps(), activation: Activation::Gelu })
        };
        let (patches, projection) = (shape("visual.conv1.weight", 4)?, shape("visual.proj", 2)?);
        let (tokens, embedding) = (shape("visual.positional_embedding", 2)?[0], shape("token_embedding.weight", 2)?);
        Ok(Self {
            layout: Layout::OpenClip,
            embed: projection[1],
            image_size: (tokens.saturating_sub(1)).isqrt() * patches[2],
            patch: patches[2],
            vision: sizes("visual.", patches[0])?,
            context: shape("positional_embedding", 2)?[0],
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
        let ratio = |z: &TowerConfig| z.hidden as f64 / z.width as f64;
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
        let tower = |z: &TowerConfig| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::{Device, Tensor};

    #[test]
    fn what_a_config_leaves_out_is_the_default_of_its_library() {
        let b32 = ClipConfig::transformers(json!({})).unwrap();
        assert_eq!((b32.vision.width, b32.vision.heads, b32.patch, b32.text.width, b32.embed), (768, 12, 32, 512, 512));
        assert_eq!(b32.vision.activation, Activation::QuickGelu);
        let (config, pixels) = ClipConfig::open_clip(json!({ "model_cfg": { "embed_dim": 1024,
            "vision_cfg": { "image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14 },
            "text_cfg": { "context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24 } } }))
        .unwrap();
        assert_eq!((config.vision.heads, config.text.heads, config.vision.hidden), (16, 16, 5120));
        assert_eq!(pixels, Preprocess::clip(224));
        for config in [config, b32] {
            let (name, written) = config.file(&pixels);
            let read = match name {
                "config.json" => ClipConfig::transformers(written).unwrap(),
                _ => ClipConfig::open_clip(written).unwrap().0,
            };
            assert_eq!(read, config);
        }
    }

    #[test]
    fn towers_of_open_clip_are_the_usual_ones() {
        let open = |tower: &str, key: &str, value: Value| {
            let sizes = json!({ "width": 128, "layers": 1 });
            let mut file = json!({ "model_cfg": { "embed_dim": 4, "vision_cfg": sizes, "text_cfg": sizes } });
            file["model_cfg"][tower][key] = value;
            ClipConfig::open_clip(file).map(|(config, _)| config.text.heads).map_err(|e| e.message)
        };
        for (tower, key, value, usual) in [
            ("vision_cfg", "pool_type", json!("avg"), "`tok`"),
            ("vision_cfg", "pool_type", Value::Null, "`tok`"),
            ("text_cfg", "pool_type", json!("last"), "`argmax`"),
            ("text_cfg", "no_causal_mask", json!(true), "open_clip's default"),
            ("vision_cfg", "norm_kwargs", json!({"eps":1e-6}), "open_clip's default"),
            ("text_cfg", "act_kwargs", json!({"approximate":"tanh"}), "open_clip's default"),
            ("vision_cfg", "final_ln_after_pool", json!(true), "open_clip's default"),
            ("vision_cfg", "no_ln_pre", json!(true), "open_clip's default"),
            ("vision_cfg", "attentional_pool", json!("parallel"), "open_clip's default"),
        ] {
            let message = format!("clip config: {tower}: expected {usual} for `{key}`, got {value}");
            assert_eq!(open(tower, key, value), Err(message));
        }
        for (tower, key, value) in [
            ("vision_cfg", "pool_type", json!("tok")),
            ("text_cfg", "pool_type", json!("argmax")),
            ("text_cfg", "norm_kwargs", json!({})),
            ("text_cfg", "act_kwargs", Value::Null),
            ("vision_cfg", "attentional_pool", json!(false)),
            ("text_cfg", "hf_tokenizer_name", json!("any")),
        ] {
            assert_eq!(open(tower, key, value), Ok(8));
        }
    }

    #[test]
    fn tensors_of_another_rank_are_refused() {
        let number = Tensor::new(1f32, &Device::Cpu).unwrap();
        let tensors = [("visual.conv1.weight".to_string(), number)].into();
        let error = ClipConfig::of_tensors(&Weights::from_tensors("F", tensors)).unwrap_err();
        assert_eq!(error.message, "clip: F: tensor `visual.conv1.weight` must have 4 dimensions, got shape []");
    }

    #[test]
    fn unknown_choices_are_refused() {
        let act = json!({ "text_config": { "hidden_act": "relu" } });
        assert!(ClipConfig::transformers(act).unwrap_err().message.contains("got `relu`"));
        assert!(
            ClipConfig::transformers(json!({ "model_type": "siglip" })).unwrap_err().message.contains("got `siglip`")
        );
        let tower = json!({ "width": 8, "layers": 1 });
        let file = json!({ "model_cfg": { "embed_dim": 4, "vision_cfg": tower, "text_cfg": tower },
            "preprocess_cfg": { "resize_mode": "longest" } });
        assert!(ClipConfig::open_clip(file).unwrap_err().message.contains("got `longest`"));
    }
}
