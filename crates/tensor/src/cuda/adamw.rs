//! One step of AdamW in place, one pass over memory.

use super::{Arg, File, Grid, Unit, launch, plain};
use crate::Array;
use amscript_base::error::Result;
use candle_core::DType;

/// What the kernel takes beside the tensors: the factor on the gradient, both decays, the rate over the first correction, the second
/// correction, epsilon, and the decay of the value.
pub type Numbers = [f64; 7];

/// Whether this variable is stepped here.
pub fn takes(value: &Array, gradient: &Array) -> bool {
    value.dtype() == DType::F32 && super::takes(gradient) && value.is_contiguous()
}

/// Changes `value` and both moments, f32, where they are.
pub fn step(gradient: &Array, value: &Array, first: &Array, second: &Array, numbers: Numbers) -> Result<()> {
    let gradient = plain(gradient, gradient.dtype())?;
    let n = value.elem_count();
    let tensors = [Arg::Tensor(&gradient), Arg::Tensor(value), Arg::Tensor(first), Arg::Tensor(second), Arg::Long(n)];
    let args: Vec<Arg> = tensors.into_iter().chain(numbers.map(Arg::Float)).collect();
    launch(value.device(), &Unit::new(File::Points, &gradient, 1), "adamw", Grid::each(n), &args)
}
