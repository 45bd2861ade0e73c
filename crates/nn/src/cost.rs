//! What a model or reward consists of, for lists and plans.

use super::weights::Weights;
use serde::Serialize;

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
