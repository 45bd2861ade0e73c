//! Tensors: device and dtype, seeded random streams, differentiable ops, vector-Jacobian products, gradient check.

pub mod array;
pub mod check;
pub(crate) mod cuda;
pub mod file;
pub mod grad;
mod graph;
pub mod interrupt;
pub(crate) mod kernel;
pub mod meta;
pub mod op;
pub mod place;
pub mod random;
mod raw;
pub mod sample;
pub mod show;
mod value;

/// Numbers without a graph: candle's tensor, whose own gradients are not used.
pub use candle_core::Tensor as Array;
pub use candle_core::{D, DType, Device, Shape};
pub use random::{Rng, Stream};
pub use value::Tensor;
