//! Changes of float type. On the processor, half-precision numbers are computed in f32.

use crate::{DType, Tensor};
use amscript_base::error::Result;

/// The same numbers in another float type; the gradient comes back in the first.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    x.to_dtype(dtype)
}

/// Bytes of a number that the processor computes for one of this type.
pub(super) fn computed_bytes(dtype: DType) -> usize {
    dtype.size_in_bytes().max(size_of::<f32>())
}
