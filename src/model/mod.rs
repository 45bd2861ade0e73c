//! Velocity fields and what surrounds them: encoders, decoders, conditions. One file per real model.
//!
//! Conventions of one model (time direction, sign, token order) are converted in that model's file and nowhere else.

pub mod qwen3;
pub mod source;
pub mod text;
pub mod tokenizer;

use crate::error::Result;
use candle_core::Tensor;
use std::sync::Arc;

/// What a velocity is conditioned on; one row per sample.
#[derive(Clone, Default)]
pub struct Condition {
    /// Prompts as given.
    pub text: Vec<String>,
    /// Token ids `[batch, tokens]`, u32.
    pub ids: Option<Tensor>,
    /// Prompt embeddings `[batch, tokens, features]`.
    pub embeddings: Option<Tensor>,
    /// Class labels.
    pub labels: Option<Vec<u32>>,
}

/// A velocity field `v(x, t, c)`, differentiable in `x` and in its trainable parameters.
///
/// `x`: `[batch, channels, height, width]` latents (or any `[batch, ..]`), f32 or f64; `t`: `[batch]`, 0 noise, 1 data, in `x`'s
/// dtype. Returns the shape of `x`.
pub trait Velocity: Send + Sync {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor>;
}

/// Turns end states into images `[batch, 3, height, width]` in `[0, 1]`, differentiably.
pub trait Decode: Send + Sync {
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

/// A flow model as scripts hold it: a velocity and what surrounds it. Clones share everything.
#[derive(Clone)]
pub struct Flow {
    name: String,
    velocity: Arc<dyn Velocity>,
    decoder: Option<Arc<dyn Decode>>,
}

impl Flow {
    /// A flow in data space: its end states are what rewards see.
    pub fn new(name: impl Into<String>, velocity: Arc<dyn Velocity>) -> Self {
        Self { name: name.into(), velocity, decoder: None }
    }

    /// A flow in the latent space of `decoder`.
    pub fn with_decoder(self, decoder: Arc<dyn Decode>) -> Self {
        Self { decoder: Some(decoder), ..self }
    }

    /// The images of end states; the states themselves where there is no decoder.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.as_ref().map_or_else(|| Ok(latents.clone()), |d| d.decode(latents))
    }

    /// Whether both are clones of one flow.
    pub fn is(&self, other: &Flow) -> bool {
        Arc::ptr_eq(&self.velocity, &other.velocity)
    }
}

impl Velocity for Flow {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        self.velocity.velocity(x, t, condition)
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "flow({})", self.name)
    }
}
