//! Changes of float type. Norms, attention and rotations of half-precision numbers are computed in f32.

use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{DType, Tensor};

/// The same numbers in another float type; the gradient comes back in the first.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let own = x.dtype();
    if own == dtype {
        return Ok(x.clone());
    }
    custom_vjp(&[x], x.detach().to_dtype(dtype)?, move |grad, _| Ok(vec![Some(grad.to_dtype(own)?)]))
}

pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// `f` of the inputs in the first one's type; in f32, with the result rounded, where that is half precision.
pub(super) fn wide<const N: usize>(
    inputs: [&Tensor; N],
    f: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    let own = inputs[0].dtype();
    let dtype = if is_half(own) { DType::F32 } else { own };
    if inputs.iter().all(|x| x.dtype() == dtype) {
        return f(inputs);
    }
    let mut cast_inputs = inputs.map(Tensor::clone);
    for x in &mut cast_inputs {
        *x = cast(x, dtype)?;
    }
    cast(&f(cast_inputs.each_ref())?, own)
}
