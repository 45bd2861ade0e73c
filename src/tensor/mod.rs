//! Tensors: device and dtype, seeded random streams, differentiable ops, vector-Jacobian products, gradient check.

pub mod array;
pub mod check;
pub(crate) mod cuda;
pub mod grad;
pub mod interrupt;
pub(crate) mod kernel;
pub mod op;
pub mod place;
pub mod random;
pub mod sample;
pub mod show;
mod tape;

pub use candle_core::{D, DType, Device, Tensor};
pub use random::{Rng, Stream};
