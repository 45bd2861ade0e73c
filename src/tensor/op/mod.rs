//! Differentiable ops. Each is one node with a hand-written backward (`custom_vjp`), in f32 or f64 on the CPU; elsewhere the
//! same composition of candle ops that the tests compare with.

mod activation;
mod attention;
mod cast;
mod conv;
mod linear;
mod norm;
mod pool;
mod resize;
mod rope;
mod shape;
mod unit;

pub use activation::{clamp_through, gelu_erf, gelu_tanh, quick_gelu, relu, sigmoid, silu, softplus, swiglu};
pub use attention::{attention, self_attention, softmax};
pub use cast::cast;
pub use conv::{CACHED, WIDE, conv2d, upsample_nearest2x, upsampled_conv2d};
pub use linear::{Lora, linear};
pub use norm::{gated_add, group_norm, group_norm_silu, layer_norm, modulated_norm, rms_norm};
pub use pool::{avg_pool2d, max_pool2d};
pub use resize::{Filter, resize};
pub use rope::{rope_halves, rope_pairs};
pub use shape::{add, affine, broadcast_add, broadcast_scale, cat, chunk, combine, narrow, permute, reshape, sum};
pub use unit::unit_channels;
