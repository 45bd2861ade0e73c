//! What networks cost, in closed form from their sizes: floating-point operations, and memory that a graph holds.
//!
//! A multiplication and an addition are two operations. Memory follows what the ops in `tensor::op` keep for their backward: a
//! node keeps its output. Everything is per sample.

use super::weights::Weights;
use super::{bert, vit};
use crate::tensor::DType;
use serde::Serialize;
use std::ops::AddAssign;

/// One part of a model or reward: its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub name: String,
    pub tensors: usize,
    pub parameters: u64,
    /// In memory, once it is read.
    pub bytes: f64,
    /// Whether it can be freed when all prompts are encoded.
    pub passing: bool,
}

impl Part {
    /// What a network built from these weights asked for.
    pub fn of(name: &str, weights: &Weights) -> Self {
        let (tensors, numbers) = weights.count();
        let bytes = (numbers * weights.dtype().size_in_bytes()) as f64;
        Self { name: name.into(), tensors, parameters: numbers as u64, bytes, passing: false }
    }
}

/// One network at work on one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Operations of a forward.
    pub forward: f64,
    /// Operations of the gradient to the input, weights frozen, without the forward.
    pub vjp: f64,
    /// Bytes that a forward with a graph keeps until its backward.
    pub kept: f64,
    /// The same when blocks keep only their inputs and run again in the backward.
    pub outline: f64,
    /// Bytes that one block keeps, the largest.
    pub block: f64,
    /// Bytes that one op needs beside its inputs and outputs, the largest.
    pub scratch: f64,
}

impl AddAssign for Cost {
    /// One network after the other.
    fn add_assign(&mut self, next: Self) {
        self.forward += next.forward;
        self.vjp += next.vjp;
        self.kept += next.kept;
        self.outline += next.outline;
        self.block = self.block.max(next.block);
        self.scratch = self.scratch.max(next.scratch);
    }
}

/// How ops keep things: the type a network computes in, and whether the device is the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Ops {
    pub dtype: DType,
    pub cpu: bool,
}

impl Ops {
    /// Bytes of a number.
    pub fn own(self) -> f64 {
        self.dtype.size_in_bytes() as f64
    }

    /// A number that a norm or attention makes. On the CPU half precision goes through f32: cast there, computed, cast back.
    pub fn wide(self) -> f64 {
        let cast = self.cpu && self.dtype.size_in_bytes() == 2;
        self.own() + if cast { 2.0 * 4.0 } else { 0.0 }
    }
}

/// Operations of a matrix product of `rows` by a weight `[out, inner]`.
pub fn product(rows: f64, inner: f64, out: f64) -> f64 {
    2.0 * rows * inner * out
}

/// An image tower, for square images of side `image_size` in patches of side `patch`.
pub fn vit(image_size: usize, patch: usize, sizes: &vit::Sizes, ops: Ops) -> Cost {
    let (d, layers, own) = (sizes.width as f64, sizes.layers as f64, ops.own());
    let ratio = sizes.hidden as f64 / d;
    let patches = (image_size / patch).pow(2) as f64;
    let (tokens, pixels) = (patches + 1.0, 3.0 * (image_size as f64).powi(2));
    let block = product(tokens, d, d) * (4.0 + 2.0 * ratio);
    let (scores, embed) = (4.0 * tokens * tokens * d, product(patches, 3.0 * (patch as f64).powi(2), d));
    let kept = tokens * d * (3.0 * ops.wide() + (7.0 + 2.0 * ratio) * own);
    Cost {
        forward: layers * (block + scores) + embed,
        vjp: layers * (block + 2.0 * scores) + embed,
        kept: layers * kept + 4.0 * pixels * own + 2.0 * tokens * d * own,
        outline: layers * kept,
        block: kept,
        scratch: tokens * d * ratio * own,
    }
}

/// A BERT on a prompt of `tokens` that looks at `seen` image tokens in every layer.
pub fn bert(config: &bert::Config, tokens: usize, seen: usize, ops: Ops) -> Cost {
    let (d, layers, own) = (config.hidden_size as f64, config.num_hidden_layers as f64, ops.own());
    let (n, seen) = (tokens as f64, seen as f64);
    let ratio = config.intermediate_size as f64 / d;
    // q, k, v and out of the text; q and out to the image; the MLP; keys and values of the image
    let block = product(n, d, d) * (6.0 + 2.0 * ratio) + product(seen, config.encoder_width as f64, 2.0 * d);
    let scores = 4.0 * n * (n + seen) * d;
    let kept = d * (n * (5.0 * ops.wide() + (10.0 + 2.0 * ratio) * own) + 2.0 * seen * own);
    Cost {
        forward: layers * (block + scores),
        vjp: layers * (block + 2.0 * scores),
        kept: layers * kept,
        outline: layers * kept,
        block: kept,
        scratch: seen * d * own,
    }
}
