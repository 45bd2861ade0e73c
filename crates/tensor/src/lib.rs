//! Tensors: device and dtype, seeded random streams, differentiable ops, vector-Jacobian products, gradient check.
//!
//! Decisions:
//! * **Gradients are ours.** candle is storage, layout, devices and kernels; its own gradients are not used: they vanish in its fused ops,
//!   are computed for frozen weights too, and are wrong for two ops. A tensor is an array and the node that made it (`value.rs`,
//!   `graph.rs`). A node is made only where an input leads to a variable; one walk, without recursion, hands gradients on and adds where
//!   a tensor was used twice. What a script computes has the same nodes as a model.
//! * **An op is one description** (`op/call.rs`): what it computes, its gradient, what it keeps and what it costs. It becomes a node in one
//!   function, which checks, casts, profiles, counts and traces.
//! * **Plans are traced, not estimated** (`meta.rs`). The update itself runs on tensors that have a shape and no numbers: every op says what
//!   it computes and what its node keeps, and what lives at once is the memory. A new op, model or method is planned for nothing.
//! * **Nobody waits for a device on the way** (`check.rs`): checks of finiteness are put off to the end of the function that asked first, and
//!   read together.
//! * **Random numbers** are ChaCha12 by seed, name of the stream and a counter, made on the host: the same on every device, and a resumed
//!   run needs only the counter.
//! * **Ctrl-C is seen by every op** (`interrupt.rs`), forward and on the walk back. Who asked decides whether a step may end first.

pub mod adamw;
pub mod array;
pub mod bytes;
pub mod check;
mod cuda;
pub mod eigen;
pub mod file;
pub mod grad;
mod graph;
pub mod interrupt;
mod kernel;
pub mod meta;
mod normal;
pub mod op;
pub mod place;
mod product;
pub mod random;
mod raw;
pub mod sample;
pub mod show;
mod value;

/// Numbers without a graph: candle's tensor, whose own gradients are not used.
pub use candle_core::Tensor as Array;
pub use candle_core::{D, DType, Device, Shape};
pub use product::rate;
pub use random::{Rng, Rows, Stream};
pub use value::Tensor;
