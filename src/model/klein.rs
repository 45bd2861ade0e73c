//! FLUX.2-Klein as a diffusers folder: transformer, autoencoder with normalised latents, Qwen3 prompts.

use super::flux2::{self, Transformer};
use super::source::Folder;
use super::text::TextEncoder;
use super::vae::{self, Autoencoder};
use super::{Condition, Family, Velocity};
use crate::bail;
use crate::error::Result;
use crate::nn::weights::{Init, Weights};
use crate::tensor::op::clamp_through;
use crate::tensor::{DType, Device, Tensor};
use serde::Deserialize;
use std::sync::Arc;

/// What a diffusers folder does not record: `amscript.json` beside `model_index.json`; the published values by default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Defaults {
    pub max_sequence_length: usize,
    pub text_encoder_out_layers: Vec<usize>,
    /// Image side in pixels; by default 256, or less for an autoencoder made for less.
    pub size: Option<usize>,
    pub steps: usize,
    pub guidance: f64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            max_sequence_length: 512,
            text_encoder_out_layers: vec![9, 18, 27],
            size: None,
            steps: 20,
            guidance: 1.0,
        }
    }
}

/// The autoencoder and the statistics that normalise its latents: patches of 2 x 2, each channel to zero mean and unit deviation.
pub struct Latents {
    pub config: vae::Config,
    autoencoder: Autoencoder,
    mean: Tensor,
    variance: Tensor,
}

impl Latents {
    pub fn new(config: &vae::Config, w: &Weights) -> Result<Self> {
        let (channels, bn) = (4 * config.latent_channels, w.pp("bn"));
        bn.skip("num_batches_tracked");
        let autoencoder = Autoencoder::new(config, w)?;
        Ok(Self {
            config: config.clone(),
            autoencoder,
            mean: bn.get("running_mean", &[channels], Init::Zeros)?,
            variance: bn.get("running_var", &[channels], Init::Ones)?,
        })
    }

    /// From a `vae` folder.
    pub fn open(folder: &Folder, dtype: DType, device: &Device) -> Result<Self> {
        let weights = folder.weights("diffusion_pytorch_model", dtype, device)?;
        let latents = Self::new(&folder.json("config.json")?, &weights)?;
        weights.finish()?;
        Ok(latents)
    }

    /// Mean and log-variance `[batch, c, h, w]` of raw latents of images in [0, 1].
    pub fn moments(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        self.autoencoder.moments(&images.affine(2.0, -1.0)?)
    }

    /// Images, nominally in [0, 1] and not clamped, of raw latents `[batch, c, h, w]`.
    pub fn reconstruct(&self, raw: &Tensor) -> Result<Tensor> {
        Ok(self.autoencoder.decode(raw)?.affine(0.5, 0.5)?)
    }

    /// Normalised latents `[batch, 4 c, h, w]` of images in [0, 1]: the mean, without sampling.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, h, w) = images.dims4()?;
        let side = self.pixels();
        if channels != 3 || h % side != 0 || w % side != 0 {
            bail!(
                Shape,
                "encode_image: expected images [batch, 3, h, w] with sides that are multiples of {side}, got {:?}",
                images.dims()
            );
        }
        let (mean, deviation) = self.statistics()?;
        Ok(patchify(&self.moments(images)?.0)?.broadcast_sub(&mean)?.broadcast_div(&deviation)?)
    }

    /// Images, nominally in [0, 1] and not clamped, of normalised latents `[batch, 4 c, h, w]`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (mean, deviation) = self.statistics()?;
        self.reconstruct(&unpatchify(&latents.broadcast_mul(&deviation)?.broadcast_add(&mean)?)?)
    }

    /// Pixels per side of one latent.
    pub fn pixels(&self) -> usize {
        1 << self.config.block_out_channels.len()
    }

    fn statistics(&self) -> Result<(Tensor, Tensor)> {
        let deviation = (&self.variance + self.config.batch_norm_eps)?.sqrt()?;
        Ok((self.mean.reshape((1, (), 1, 1))?, deviation.reshape((1, (), 1, 1))?))
    }
}

/// `[b, c, 2 h, 2 w]` to `[b, 4 c, h, w]`, channel = 4 c + 2 row + column.
pub fn patchify(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape((b, c, h / 2, 2, w / 2, 2))?.permute((0, 1, 3, 5, 2, 4))?;
    Ok(x.contiguous()?.reshape((b, 4 * c, h / 2, w / 2))?)
}

/// The inverse of [`patchify`].
pub fn unpatchify(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape((b, c / 4, 2, 2, h, w))?.permute((0, 1, 4, 2, 5, 3))?;
    Ok(x.contiguous()?.reshape((b, c / 4, 2 * h, 2 * w))?)
}

/// The parts of the pipeline that alignment does not change, and how to build the one it does.
pub struct Klein {
    name: String,
    config: flux2::Config,
    latents: Latents,
    text: TextEncoder,
    defaults: Defaults,
}

impl Klein {
    /// From a pipeline folder; `config` replaces `transformer/config.json` when a new transformer is to be made.
    pub fn open(name: &str, folder: &Folder, config: Option<flux2::Config>, device: &Device) -> Result<Self> {
        let defaults: Defaults =
            if folder.has("amscript.json") { folder.json("amscript.json")? } else { Defaults::default() };
        let config = match config {
            Some(config) => config,
            None => folder.sub("transformer")?.json("config.json")?,
        };
        let latents = Latents::open(&folder.sub("vae")?, DType::F32, device)?;
        if config.in_channels != 4 * latents.config.latent_channels {
            bail!(
                Value,
                "{name}: the transformer's in_channels must be 4 x the {} latent channels of the vae, got {}",
                latents.config.latent_channels,
                config.in_channels
            );
        }
        let (tokens, states) = (defaults.max_sequence_length, &defaults.text_encoder_out_layers);
        let text = TextEncoder::open(folder, tokens, states, DType::F32, device)?;
        Ok(Self { name: name.to_string(), config, latents, text, defaults })
    }

    pub fn latents(&self) -> &Latents {
        &self.latents
    }

    /// The transformer's weights in the folder, all used and none missing.
    pub fn weights(&self, folder: &Folder, device: &Device) -> Result<Weights> {
        let weights = folder.sub("transformer")?.weights("diffusion_pytorch_model", DType::F32, device)?;
        Transformer::new(&self.config, &weights)?;
        weights.finish()?;
        Ok(weights)
    }
}

struct Network(Transformer);

impl Velocity for Network {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let Some(text) = &condition.embeddings else {
            bail!(Value, "velocity: expected a condition with prompt embeddings, got none"; hint: "make one with flow.encode(prompts)");
        };
        self.0.velocity(x, t, text)
    }
}

impl Family for Klein {
    fn name(&self) -> &str {
        &self.name
    }

    fn network(&self, weights: &Weights) -> Result<Arc<dyn Velocity>> {
        Ok(Arc::new(Network(Transformer::new(&self.config, weights)?)))
    }

    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        self.text.encode(prompts)
    }

    /// Pixels are clamped to [0, 1]; the gradient passes the clamp, so that an out-of-range pixel can be pulled back.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        clamp_through(&self.latents.decode(latents)?, 0.0, 1.0)
    }

    fn encode_image(&self, images: &Tensor) -> Result<Tensor> {
        self.latents.encode(images)
    }

    fn latent_shape(&self) -> [usize; 3] {
        let size = self.defaults.size.unwrap_or(self.latents.config.sample_size.min(256));
        let side = size / self.latents.pixels();
        [self.config.in_channels, side, side]
    }

    fn lora_target(&self, module: &str) -> bool {
        flux2::lora_target(module)
    }

    fn component(&self) -> &str {
        "transformer"
    }

    fn config(&self) -> serde_json::Value {
        let c = &self.config;
        serde_json::json!({
            "_class_name": "Flux2Transformer2DModel", "patch_size": 1, "in_channels": c.in_channels, "out_channels": null,
            "num_layers": c.num_layers, "num_single_layers": c.num_single_layers,
            "attention_head_dim": c.attention_head_dim, "num_attention_heads": c.num_attention_heads,
            "joint_attention_dim": c.joint_attention_dim, "timestep_guidance_channels": c.timestep_guidance_channels,
            "mlp_ratio": c.mlp_ratio, "axes_dims_rope": c.axes_dims_rope, "rope_theta": c.rope_theta, "eps": c.eps,
            "guidance_embeds": false,
        })
    }
}
