//! CLIP in the open_clip layout: an image tower, differentiable to the pixels, and a text tower.

use crate::bail;
use crate::error::Result;
use crate::nn::preprocess;
use crate::nn::vit::{self, Activation, Block, Norm, Sizes, Vit};
use crate::nn::weights::{Init, Weights};
use crate::tensor::op;
use crate::tensor::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;

/// `open_clip_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub model_cfg: ModelConfig,
    #[serde(default)]
    pub preprocess_cfg: Preprocess,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub embed_dim: usize,
    /// `x sigmoid(1.702 x)` in place of the exact GELU.
    #[serde(default)]
    pub quick_gelu: bool,
    pub vision_cfg: VisionConfig,
    pub text_cfg: TextConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    pub image_size: usize,
    pub layers: usize,
    pub width: usize,
    #[serde(default = "VisionConfig::head_width")]
    pub head_width: usize,
    pub patch_size: usize,
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    pub context_length: usize,
    pub vocab_size: usize,
    pub width: usize,
    pub heads: usize,
    pub layers: usize,
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
}

impl ModelConfig {
    fn activation(&self) -> Activation {
        if self.quick_gelu { Activation::QuickGelu } else { Activation::Gelu }
    }
}

impl VisionConfig {
    fn head_width() -> usize {
        64
    }
}

fn mlp_ratio() -> f64 {
    4.0
}

/// How images become the tower's pixels; open_clip's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preprocess {
    pub mean: [f64; 3],
    pub std: [f64; 3],
    /// `bicubic` or `bilinear`, both with antialias.
    pub interpolation: String,
    /// `shortest`: shorter side to the input size, then centre crop; `squash`: both sides.
    pub resize_mode: String,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self {
            mean: preprocess::CLIP_MEAN,
            std: preprocess::CLIP_STD,
            interpolation: "bicubic".into(),
            resize_mode: "shortest".into(),
        }
    }
}

impl Config {
    /// ViT-H-14, the size of the published HPSv2 and PickScore.
    pub fn vit_h_14() -> Self {
        let (image_size, patch_size, mlp_ratio) = (224, 14, 4.0);
        let vision_cfg = VisionConfig { image_size, layers: 32, width: 1280, head_width: 80, patch_size, mlp_ratio };
        let text_cfg =
            TextConfig { context_length: 77, vocab_size: 49408, width: 1024, heads: 16, layers: 24, mlp_ratio };
        let model_cfg = ModelConfig { embed_dim: 1024, quick_gelu: false, vision_cfg, text_cfg };
        Self { model_cfg, preprocess_cfg: Preprocess::default() }
    }

    /// What `preprocess_cfg` says, with antialias, at the image tower's size.
    pub fn preprocess(&self) -> Result<preprocess::Preprocess> {
        let config = &self.preprocess_cfg;
        let crop = if config.resize_mode == "squash" { "squash" } else { "center" };
        let of_size = preprocess::Preprocess::clip(self.model_cfg.vision_cfg.image_size);
        let named = preprocess::Preprocess { mean: config.mean, std: config.std, ..of_size };
        named.with(Some(&config.interpolation), None, Some(crop))
    }

    fn check(&self) -> Result<()> {
        let (vision, text) = (&self.model_cfg.vision_cfg, &self.model_cfg.text_cfg);
        let divides = |a: usize, b: usize| b > 0 && a > 0 && a.is_multiple_of(b);
        if !divides(vision.width, vision.head_width) || !divides(text.width, text.heads) {
            bail!(
                Value,
                "clip: expected an image width divisible by the head width and a text width by the heads, got {} by {} and {} by {}",
                vision.width,
                vision.head_width,
                text.width,
                text.heads
            );
        }
        if !divides(vision.image_size, vision.patch_size) {
            bail!(
                Value,
                "clip: expected an image size divisible by the patch size, got {} and {}",
                vision.image_size,
                vision.patch_size
            );
        }
        let preprocess = &self.preprocess_cfg;
        if !["shortest", "squash"].contains(&preprocess.resize_mode.as_str()) {
            bail!(Value, "clip: expected resize mode `shortest` or `squash`, got `{}`", preprocess.resize_mode);
        }
        if !["bicubic", "bilinear"].contains(&preprocess.interpolation.as_str()) {
            bail!(Value, "clip: expected interpolation `bicubic` or `bilinear`, got `{}`", preprocess.interpolation);
        }
        Ok(())
    }
}

struct Text {
    embedding: Tensor,
    positions: Tensor,
    norm: Norm,
    blocks: Vec<Block>,
    /// `[embed, width]`
    projection: Tensor,
}

/// Both towers; features are as projected, not normalised.
pub struct Clip {
    pub config: Config,
    vision: Vit,
    /// `[embed, width]`
    projection: Tensor,
    text: Text,
    logit_scale: Tensor,
}

impl Clip {
    /// From open_clip's tensor names; refuses tensors that are not part of the model.
    pub fn new(w: &Weights, config: &Config) -> Result<Self> {
        config.check()?;
        let m = &config.model_cfg;
        let (c, visual) = (&m.vision_cfg, w.pp("visual"));
        let sizes = Sizes {
            width: c.width,
            layers: c.layers,
            heads: c.width / c.head_width,
            hidden: (c.mlp_ratio * c.width as f64) as usize,
            eps: EPS,
            activation: m.activation(),
        };
        let std = Init::Normal((c.width as f64).powf(-0.5));
        let clip = Self {
            config: config.clone(),
            vision: Vit::new(&visual, c.image_size, c.patch_size, &sizes, &vit::OPEN_CLIP)?,
            projection: visual.get("proj", &[c.width, m.embed_dim], std)?.t()?,
            text: Text::new(w, m)?,
            logit_scale: w.get("logit_scale", &[], Init::Constant((1.0 / 0.07_f64).ln()))?,
        };
        w.finish()?;
        Ok(clip)
    }

    /// Images `[b, 3, h, w]` in `[0, 1]` to the tower's pixels `[b, 3, size, size]`.
    pub fn preprocess(&self, images: &Tensor) -> Result<Tensor> {
        self.config.preprocess()?.apply(&images.to_dtype(self.dtype())?)
    }

    /// Pixels from [`Clip::preprocess`] to features `[b, embed]`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let class = self.vision.tokens(pixels)?.narrow(1, 0, 1)?.squeeze(1)?;
        op::linear(&self.vision.normed(&class)?, &self.projection, None, None)
    }

    /// Token ids `[b, n]` to features `[b, embed]`; `ends[i]` is the position of the end token in row i, what follows is ignored.
    pub fn text_features(&self, ids: &Tensor, ends: &[usize]) -> Result<Tensor> {
        self.text.forward(ids, ends)
    }

    /// The factor that was trained with the features, `exp(logit_scale)`.
    pub fn logit_scale(&self) -> Result<Tensor> {
        Ok(self.logit_scale.exp()?)
    }

    pub fn dtype(&self) -> DType {
        self.logit_scale.dtype()
    }

    pub fn device(&self) -> &Device {
        self.logit_scale.device()
    }
}

/// Rows of `x [b, n]` over their Euclidean norm.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}

impl Text {
    fn new(w: &Weights, m: &ModelConfig) -> Result<Self> {
        let c = &m.text_cfg;
        let sizes = Sizes {
            width: c.width,
            layers: c.layers,
            heads: c.heads,
            hidden: (c.mlp_ratio * c.width as f64) as usize,
            eps: EPS,
            activation: m.activation(),
        };
        let std = (c.width as f64).powf(-0.5);
        Ok(Self {
            embedding: w.get("token_embedding.weight", &[c.vocab_size, c.width], Init::Normal(0.02))?,
            positions: w.get("positional_embedding", &[c.context_length, c.width], Init::Normal(0.01))?,
            norm: Norm::new(&w.pp("ln_final"), c.width, EPS)?,
            blocks: Block::tower(w, &sizes, &vit::OPEN_CLIP)?,
            projection: w.get("text_projection", &[c.width, m.embed_dim], Init::Normal(std))?.t()?,
        })
    }

    fn forward(&self, ids: &Tensor, ends: &[usize]) -> Result<Tensor> {
        let (batch, _) = ids.dims2()?;
        // the mask is causal, so nothing behind the last end token matters
        let tokens = ends.iter().max().map_or(0, |end| end + 1);
        let width = self.positions.dim(1)?;
        let ids = ids.narrow(1, 0, tokens)?.contiguous()?.flatten_all()?;
        let x = self.embedding.index_select(&ids, 0)?.reshape((batch, tokens, width))?;
        let mut x = x.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mask = causal(tokens, x.dtype(), x.device())?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&mask))?;
        }
        let at: Vec<u32> = ends.iter().enumerate().map(|(row, end)| (row * tokens + end) as u32).collect();
        let at = Tensor::new(at, x.device())?;
        let last = self.norm.forward(&x.reshape((batch * tokens, width))?.index_select(&at, 0)?)?;
        op::linear(&last, &self.projection, None, None)
    }
}

/// Additive mask `[1, 1, n, n]` that hides later tokens.
fn causal(tokens: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let hidden = |n: usize| if n % tokens > n / tokens { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..tokens * tokens).map(hidden).collect();
    Ok(Tensor::from_vec(values, (1, 1, tokens, tokens), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;
    use crate::tensor::grad::{gradcheck, value_and_grad};
    use std::collections::HashMap;
    use std::path::PathBuf;

    fn largest(t: &Tensor) -> f64 {
        t.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }

    fn assert_near(got: &Tensor, wanted: &Tensor, tolerance: f64) {
        let error = largest(&(got - wanted).unwrap());
        assert!(error < tolerance, "largest difference {error}");
    }

    /// Case `clip_openclip`: published HPSv2 layout, values and pixel gradients from open_clip.
    #[test]
    fn golden_features_scores_and_pixel_gradients() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip_openclip"));
        let config: Config =
            serde_json::from_slice(&std::fs::read(folder.join("open_clip_config.json")).unwrap()).unwrap();
        let weights = Weights::load(&folder.join("HPS_tiny_compressed.pt"), DType::F32, &Device::Cpu).unwrap();
        let clip = Clip::new(&weights, &config).unwrap();
        let golden: HashMap<String, Tensor> =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids = golden["out.token_ids"].to_vec2::<i64>().unwrap();
        let ends: Vec<usize> = ids.iter().map(|row| row.iter().position(|id| *id == 49407).unwrap()).collect();
        let ids = golden["out.token_ids"].to_dtype(DType::U32).unwrap();
        let text = clip.text_features(&ids, &ends).unwrap();
        assert_near(&text, &golden["out.text_features_raw"], 1e-5);
        let text = unit(&text).unwrap();
        assert_near(&clip.logit_scale().unwrap().reshape(1).unwrap(), &golden["out.logit_scale_exp"], 1e-4);
        for i in 0..3 {
            let score = |images: &Tensor| -> Result<Tensor> {
                let image = unit(&clip.image_features(&clip.preprocess(images)?)?)?;
                Ok((image * text.narrow(0, i, 1)?)?.sum_all()?)
            };
            let image = &golden[&format!("in.image.{i}")];
            let row = |name: &str| golden[name].narrow(0, i, 1).unwrap();
            assert_near(&clip.preprocess(image).unwrap(), &row("out.pixels"), 1e-5);
            let features = clip.image_features(&clip.preprocess(image).unwrap()).unwrap();
            assert_near(&features, &row("out.image_features_raw"), 1e-5);
            let (value, gradient) = value_and_grad(score, image).unwrap();
            assert_near(&value.reshape(1).unwrap(), &row("out.score"), 1e-5);
            let wanted = &golden[&format!("out.score_grad.{i}")];
            assert_near(&gradient, wanted, 1e-4 * largest(wanted));
        }
    }

    fn small() -> Config {
        let vision_cfg =
            VisionConfig { image_size: 8, layers: 2, width: 12, head_width: 6, patch_size: 4, mlp_ratio: 2.0 };
        let text_cfg = TextConfig { context_length: 6, vocab_size: 9, width: 8, heads: 2, layers: 1, mlp_ratio: 2.0 };
        let model_cfg = ModelConfig { embed_dim: 5, quick_gelu: true, vision_cfg, text_cfg };
        Config { model_cfg, preprocess_cfg: Preprocess::default() }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let weights = Weights::random(&Rng::new(0), DType::F64, &Device::Cpu);
        let clip = Clip::new(&weights, &small()).unwrap();
        let images = Rng::new(1).uniform(&[2, 3, 11, 9], DType::F64, &Device::Cpu).unwrap();
        let score = |x: &Tensor| unit(&clip.image_features(&clip.preprocess(x)?)?);
        let error = gradcheck(score, &images, 0).unwrap();
        assert!(error < 1e-5, "{error}");
        // towards a weight of the text tower
        let ids = Tensor::new(&[[1u32, 2, 8, 0, 0, 0], [1, 3, 4, 5, 8, 0]], &Device::Cpu).unwrap();
        let at = "transformer.resblocks.0.attn.in_proj_weight";
        let loss = |x: &Tensor| {
            let replaced = weights.map(|name, t| Ok(if name == at { x.clone() } else { t.clone() }))?;
            Clip::new(&replaced, &small())?.text_features(&ids, &[2, 4])
        };
        let weight = weights.tensors().unwrap()[at].clone();
        let error = gradcheck(loss, &weight, 0).unwrap();
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn what_follows_the_end_token_is_ignored() {
        let weights = Weights::random(&Rng::new(0), DType::F64, &Device::Cpu);
        let clip = Clip::new(&weights, &small()).unwrap();
        let row = |ids: [u32; 6]| clip.text_features(&Tensor::new(&[ids], &Device::Cpu).unwrap(), &[2]).unwrap();
        assert_near(&row([1, 2, 8, 0, 0, 0]), &row([1, 2, 8, 7, 3, 8]), 1e-12);
    }

    #[test]
    fn bad_configs_and_extra_tensors_are_refused() {
        let weights = Weights::random(&Rng::new(0), DType::F32, &Device::Cpu);
        Clip::new(&weights, &small()).unwrap();
        let mut tensors = weights.tensors().unwrap();
        tensors.insert("extra".into(), Tensor::new(0f32, &Device::Cpu).unwrap());
        let stored = Weights::from_tensors("file", tensors);
        assert!(Clip::new(&stored, &small()).err().unwrap().message.contains("the first is `extra`"));
        let mut config = small();
        config.preprocess_cfg.resize_mode = "longest".into();
        assert!(Clip::new(&weights, &config).err().unwrap().message.contains("got `longest`"));
        config.model_cfg.vision_cfg.patch_size = 3;
        assert!(Clip::new(&weights, &config).err().unwrap().message.contains("divisible by the patch size"));
    }
}
