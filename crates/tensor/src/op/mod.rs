//! Differentiable ops: what each computes, its gradient, what it keeps and what it costs (`call.rs`). Elementary ones are candle's
//! operations on every device; the others have kernels for the processor and for cards, and are composed of other ops elsewhere.
//!
//! Decisions:
//! * **A kernel keeps its input and nothing else** where it can compute the rest again in one pass: norms keep no normalised rows,
//!   attention keeps a number per row of scores, frozen linear layers keep nothing. An input that was cast is kept as it came.
//! * **Attention keeps heads in third place**, `[batch, tokens, heads, head]`, so that no transpose is copied; scores exist for 128 queries
//!   at a time. Where one layer makes queries, keys and values, they stay beside each other (`self_attention`).
//! * **A product is one fork**: bias, product and adapter of a part of the output by one thread, one part per thread (`product/`).
//! * **Convolutions read contiguously**: images are cut by stride before patches are unrolled, enough lines at a time for a product to be
//!   fast; where lines keep their length, a block is one piece, moved. From 32 channels on, 3 x 3 kernels are Winograd's tiles, which take
//!   4/9 of the multiplications (`conv/winograd.rs`). Of a doubled image `upsampled_conv2d` makes four 2 x 2
//!   convolutions of the small one.

mod activation;
mod attention;
pub mod call;
#[cfg(test)]
mod cases;
mod cast;
mod conv;
pub(super) mod elementary;
mod elementwise;
mod gate;
mod layout;
mod linear;
mod norm;
mod pool;
mod product;
mod reduce;
mod resize;
mod rope;
mod softmax;
mod unit;

pub use activation::{Activation, cat_swiglu, gelu_erf, gelu_tanh, quick_gelu, relu, sigmoid, silu, softplus, swiglu};
pub(super) use attention::AttentionShape;
pub use attention::{attention, self_attention};
pub use cast::cast;
pub(super) use conv::ConvShape;
pub use conv::{CACHED, WIDE, conv2d, upsample_nearest2x, upsampled_conv2d};
pub use elementwise::{Operand, clamp_through, combine};
pub use gate::gated_add;
pub use layout::{cat, chunk, narrow, permute, reshape};
pub use linear::{Lora, linear};
pub(super) use norm::{Groups, Rows};
pub use norm::{group_norm, group_norm_silu, layer_norm, modulated_norm, rms_norm, rms_norm_rope};
pub(super) use pool::PoolShape;
pub use pool::{avg_pool2d, max_pool2d};
pub use resize::{Filter, resize};
pub use rope::{rope_halves, rope_pairs};
pub use softmax::softmax;
pub use unit::unit_channels;
