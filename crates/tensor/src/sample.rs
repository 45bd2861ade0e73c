//! Per-sample arithmetic: the first dimension of a tensor is the batch.

use crate::Tensor;
use amscript_base::bail;
use amscript_base::error::Result;

/// `values` `[batch]` reshaped to `[batch, 1, ..]`, in `x`'s dtype, to broadcast against `x` `[batch, ..]`.
pub fn spread(values: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = values.elem_count();
    values.to_dtype(x.dtype())?.reshape(shape)
}

/// Sum over everything but the batch: `[batch, ..]` to `[batch]`.
pub fn sum_per_sample(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        0 => bail!(Shape, "sum_per_sample: the tensor must have a batch dimension, got shape []"),
        1 => Ok(x.clone()),
        _ => x.flatten_from(1)?.sum(1),
    }
}

/// Euclidean norm over everything but the batch: `[batch, ..]` to `[batch]`.
pub fn norm_per_sample(x: &Tensor) -> Result<Tensor> {
    sum_per_sample(&x.sqr()?)?.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn samples_are_reduced_apart() {
        let x = Tensor::new(&[[[3f64], [4.0]], [[0.0], [2.0]]], &Device::Cpu).unwrap();
        assert_eq!(norm_per_sample(&x).unwrap().to_vec1::<f64>().unwrap(), [5.0, 2.0]);
        let scale = Tensor::new(&[1f64, 10.0], &Device::Cpu).unwrap();
        let y = x.broadcast_mul(&spread(&scale, &x).unwrap()).unwrap();
        assert_eq!(sum_per_sample(&y).unwrap().to_vec1::<f64>().unwrap(), [7.0, 20.0]);
    }
}
