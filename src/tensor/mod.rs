//! Tensors: device and dtype, seeded random streams, differentiable ops, vector-Jacobian products, gradient check.

pub mod array;
pub mod check;
pub(crate) mod cuda;
pub mod file;
pub mod grad;
pub mod interrupt;
pub(crate) mod kernel;
pub mod op;
pub mod place;
pub mod random;
pub mod sample;
pub mod show;
mod graph;
pub mod meta;
mod raw;
mod value;

pub use candle_core::{D, DType, Device, Shape};
/// Numbers without a graph: candle's tensor, whose own gradients are not used.
pub use candle_core::Tensor as Array;
pub use random::{Rng, Stream};
pub use value::Tensor;
