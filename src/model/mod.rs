//! Velocity fields and what surrounds them: encoders, decoders, conditions. One file per real model.
//!
//! Conventions of one model (time direction, sign, token order) are converted in that model's file and nowhere else.

pub mod qwen3;
pub mod source;
pub mod tokenizer;

use crate::error::Result;
use candle_core::Tensor;

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
