//! Per-sample arithmetic: the first dimension of a tensor is the batch.

use crate::bail;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// `values` `[batch]` reshaped to `[batch, 1, ..]`, in `x`'s dtype, to broadcast against `x` `[batch, ..]`.
pub fn spread(values: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = values.elem_count();
    Ok(values.to_dtype(x.dtype())?.reshape(shape)?)
}

/// Sum over everything but the batch: `[batch, ..]` to `[batch]`.
pub fn sum_per_sample(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        0 => bail!(Shape, "sum_per_sample: the tensor must have a batch dimension, got shape []"),
        1 => Ok(x.clone()),
        _ => Ok(x.flatten_from(1)?.sum(1)?),
    }
}

/// Euclidean norm over everything but the batch: `[batch, ..]` to `[batch]`.
pub fn norm_per_sample(x: &Tensor) -> Result<Tensor> {
    Ok(sum_per_sample(&x.sqr()?)?.sqrt()?)
}

/// The first sample that holds a NaN or an infinity.
pub fn first_non_finite(x: &Tensor) -> Result<Option<usize>> {
    // x * 0 is 0 where x is finite and NaN elsewhere, so one sum per sample answers for all of it.
    let zeros = sum_per_sample(&(x.detach() * 0.0)?)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(zeros.iter().position(|z| z.is_nan()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    #[test]
    fn samples_are_reduced_apart() {
        let x = Tensor::new(&[[[3f64], [4.0]], [[0.0], [2.0]]], &Device::Cpu).unwrap();
        assert_eq!(norm_per_sample(&x).unwrap().to_vec1::<f64>().unwrap(), [5.0, 2.0]);
        let scale = Tensor::new(&[1f64, 10.0], &Device::Cpu).unwrap();
        let y = x.broadcast_mul(&spread(&scale, &x).unwrap()).unwrap();
        assert_eq!(sum_per_sample(&y).unwrap().to_vec1::<f64>().unwrap(), [7.0, 20.0]);
    }

    #[test]
    fn a_bad_sample_is_found() {
        let find = |v: [f32; 4]| first_non_finite(&Tensor::new(&v, &Device::Cpu).unwrap().reshape((2, 2)).unwrap());
        assert_eq!(find([f32::MAX, f32::MAX, -1.0, 0.0]).unwrap(), None);
        assert_eq!(find([1.0, 2.0, f32::NEG_INFINITY, 0.0]).unwrap(), Some(1));
        assert_eq!(find([f32::NAN, 2.0, 0.0, 0.0]).unwrap(), Some(0));
    }
}
