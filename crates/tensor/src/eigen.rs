//! Eigenvalues of symmetric matrices, by nalgebra.

use crate::{DType, Device, Tensor, interrupt};
use amscript_base::bail;
use amscript_base::error::Result;
use nalgebra::DMatrix;

/// Eigenvalues `[n]`, the smallest first, and eigenvectors `[n, n]`, a column each, of a symmetric matrix, in f64 where the matrix is,
/// found on the processor. They have no gradient.
pub fn symmetric_eigen(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let n = match x.dims() {
        [n, m] if n == m && *n > 0 => *n,
        dims => bail!(Shape, "symmetric_eigen: expected a square matrix, got shape {dims:?}"),
    };
    let numbers = x.constant().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let a = DMatrix::from_row_slice(n, n, &numbers);
    let largest = a.amax();
    if !largest.is_finite() || (&a - a.transpose()).amax() > 1e-6 * largest {
        bail!(Value, "symmetric_eigen: expected a symmetric matrix of finite numbers, got {}", crate::show::show(x));
    }
    let found = interrupt::beside(move || a.symmetric_eigen())?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| found.eigenvalues[*i].total_cmp(&found.eigenvalues[*j]));
    let values: Vec<f64> = order.iter().map(|i| found.eigenvalues[*i]).collect();
    let vectors = found.eigenvectors.select_columns(&order).transpose();
    let vectors = Tensor::from_vec(vectors.as_slice().to_vec(), (n, n), x.device())?;
    Ok((Tensor::from_vec(values, n, x.device())?, vectors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rng, op};

    fn far(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_matrix_is_made_of_its_eigenvectors() {
        let x = Rng::new(1).normal(&[6, 6], DType::F64, &Device::Cpu).unwrap();
        let x = (&x + x.t().unwrap()).unwrap();
        let (values, vectors) = symmetric_eigen(&x).unwrap();
        let scaled = vectors.broadcast_mul(&values).unwrap();
        assert!(far(&scaled.matmul(&vectors.t().unwrap()).unwrap(), &x) < 1e-12);
        let one = Tensor::eye(6, DType::F64, &Device::Cpu).unwrap();
        assert!(far(&vectors.matmul(&vectors.t().unwrap()).unwrap(), &one) < 1e-12);
        assert!(values.to_vec1::<f64>().unwrap().is_sorted());
        assert!(symmetric_eigen(&op::narrow(&x, 1, 0, 5).unwrap()).is_err());
    }
}
