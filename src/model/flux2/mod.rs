//! FLUX.2-Klein as a diffusers folder: transformer, autoencoder with normalised latents, Qwen3 prompts.

use super::estimate::{self, Ops, Part, Work};
use super::flux2::{self, Transformer};
use super::flux2_names;
use super::latents::Latents;
use super::text::TextEncoder;
use super::{Condition, Family, Velocity};
use crate::bail;
use crate::error::Result;
use crate::nn::lora::Alias;
use crate::nn::weights::Weights;
use crate::tensor::Tensor;
use serde::Deserialize;
use std::sync::Arc;

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
            steps: 20,
            guidance: 1.0,
        }
    }
}

/// The parts of the pipeline that alignment does not change, and how to build the one it does.
pub struct Klein {
    name: String,
    config: flux2::Config,
    latents: Latents,
    text: TextEncoder,
    /// Height and width of the images, in pixels.
    size: [usize; 2],
    recompute: bool,
}

impl Klein {
    /// `size` in pixels; `recompute`: see [`Transformer::new`] and [`Latents::recomputing`].
    pub fn new(
        name: &str,
        config: flux2::Config,
        latents: Latents,
        text: TextEncoder,
        size: Option<Size>,
        recompute: bool,
    ) -> Result<Self> {
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
        let size = match size.unwrap_or(Size::Square(latents.config.sample_size.min(256))) {
            Size::Square(side) => [side; 2],
            Size::Sides(sides) => sides,
        };
        let (name, pixels) = (name.to_string(), latents.pixels());
        if size.iter().any(|side| *side == 0 || side % pixels != 0) {
            bail!(Value, "{name}: height and width must be multiples of {pixels}, got {size:?}");
        }
        Ok(Self { name, config, latents: latents.recomputing(recompute), text, size, recompute })
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
        Ok(Arc::new(Network(weights.build(|w| Transformer::new(&self.config, w, self.recompute))?)))
    }

    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        self.text.encode(prompts)
    }

    /// The empty prompt, through the same template and encoder.
    fn unconditional(&self, rows: usize) -> Result<Condition> {
        self.text.encode(&vec![String::new(); rows])
    }

    fn latents(&self) -> &Latents {
        &self.latents
    }

    fn latent_shape(&self) -> [usize; 3] {
        let [h, w] = self.size.map(|side| side / self.latents.pixels());
        [self.config.in_channels, h, w]
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![self.text.part()?, self.latents.part()])
    }

    fn work(&self, weights: &Weights, h: usize, w: usize, cpu: bool) -> Work {
        let (encode, prompt) = self.text.work();
        let ops = Ops { dtype: weights.compute_on(cpu), cpu };
        Work {
            network: estimate::flux2(&self.config, self.text.tokens(), h * w, ops),
            recompute: self.recompute,
            passes: 1.0,
            decode: self.latents.work(h, w, cpu),
            encode,
            prompt,
        }
    }

    fn unload_text_encoder(&self) {
        self.text.unload();
    }

    fn lora_target(&self, module: &str) -> bool {
        flux2_names::lora_target(module)
    }

    fn block_linear(&self, module: &str) -> bool {
        flux2_names::block_linear(module)
    }

    fn alias(&self, module: &str) -> Option<Alias> {
        flux2_names::alias(module)
    }

    fn component(&self) -> &str {
        "transformer"
    }

    fn file(&self) -> &str {
        "transformer/diffusion_pytorch_model.safetensors"
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
