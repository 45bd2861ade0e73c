//! The Frechet distance between two sets of features (arXiv:1706.08500), report-only.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::{DType, Device, Tensor, interrupt};
use nalgebra::{DMatrix, SymmetricEigen};

/// Most features of a sample.
const MOST_FEATURES: usize = 1 << 13;

/// `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` of the means and covariances of features `[n, d]` and `[m, d]`.
///
/// The estimate is too large for few samples, the more so the longer the features: compare only numbers from equally many,
/// ten thousand or more of each for features of length 2048. It has no gradient.
pub fn frechet_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let ((m1, s1), (m2, s2)) = (moments(a)?, moments(b)?);
    if m1.dims() != m2.dims() {
        bail!(
            Shape,
            "frechet_distance: both sets must have features of one length, got {:?} and {:?}",
            a.dims(),
            b.dims()
        );
    }
    let d = m1.elem_count();
    let means = (m1 - m2)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    // the eigenvalues of S1 S2 are those of the symmetric R S2 R with R R = S1
    let matrix = |s: &Tensor| -> Result<DMatrix<f64>> { Ok(DMatrix::from_vec(d, d, s.flatten_all()?.to_vec1()?)) };
    let (one, other) = (matrix(&s1)?, matrix(&s2)?);
    let roots = interrupt::beside(move || {
        let SymmetricEigen { eigenvectors, eigenvalues } = one.symmetric_eigen();
        let lengths = DMatrix::from_diagonal(&eigenvalues.map(|v| v.max(0.0).sqrt()));
        let root = &eigenvectors * lengths * eigenvectors.transpose();
        let product = &root * other * &root;
        product.symmetric_eigenvalues().iter().map(|v| v.max(0.0).sqrt()).sum::<f64>()
    })?;
    let trace =
        |s: &Tensor| -> Result<f64> { (s * Tensor::eye(d, DType::F64, &Device::Cpu)?)?.sum_all()?.to_scalar::<f64>() };
    Ok((means + trace(&s1)? + trace(&s2)? - 2.0 * roots).max(0.0))
}

/// Mean `[d]` and covariance `[d, d]`, by n - 1.
fn moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, d) = x.dims2().unwrap_or_default();
    if n < 2 || d == 0 {
        bail!(Shape, "frechet_distance: features must be [n, features] with n at least 2, got {:?}", x.dims());
    }
    if d > MOST_FEATURES {
        bail!(Limit, "frechet_distance: expected at most {MOST_FEATURES} features, got {d}"; hint: "its time grows with their cube");
    }
    let x = x.constant().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    if !x.sum_all()?.to_scalar::<f64>()?.is_finite() {
        bail!(Numeric, "frechet_distance: features must be finite, got NaN or infinity");
    }
    let mean = x.mean(0)?;
    let x = x.broadcast_sub(&mean)?;
    Ok((mean, (x.t()?.matmul(&x)? / (n - 1) as f64)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Rng;

    fn normal(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
    }

    /// Scaling and shifting one set: |shift|^2 + (scale - 1)^2 tr S.
    #[test]
    fn closed_form_of_a_scaled_copy() {
        let x = normal(&[200, 6], 1);
        let y = ((&x * 1.5).unwrap() + 0.25).unwrap();
        let (mean, s) = moments(&x).unwrap();
        let shift =
            ((mean * 0.5).unwrap() + 0.25).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let trace: f64 = (0..6).map(|i| s.get(i).unwrap().get(i).unwrap().to_scalar::<f64>().unwrap()).sum();
        let got = frechet_distance(&x, &y).unwrap();
        assert!((got - shift - 0.25 * trace).abs() < 1e-10, "{got}");
        assert!(frechet_distance(&x, &x).unwrap() < 1e-10);
    }

    /// Covariances that do not commute: for 2 x 2, tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt(det S1 det S2)).
    #[test]
    fn closed_form_in_two_dimensions_and_few_samples() {
        let x = normal(&[50, 2], 1).matmul(&Tensor::new(&[[2.0, 1.0], [0.0, 0.3]], &Device::Cpu).unwrap()).unwrap();
        let y = normal(&[70, 2], 2);
        let ((m1, s1), (m2, s2)) = (moments(&x).unwrap(), moments(&y).unwrap());
        let rows = |s: &Tensor| s.to_vec2::<f64>().unwrap();
        let det = |s: &Tensor| rows(s)[0][0] * rows(s)[1][1] - rows(s)[0][1] * rows(s)[1][0];
        let trace = |s: &Tensor| rows(s)[0][0] + rows(s)[1][1];
        let root = (trace(&s1.matmul(&s2).unwrap()) + 2.0 * (det(&s1) * det(&s2)).sqrt()).sqrt();
        let means = (m1 - m2).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let expected = means + trace(&s1) + trace(&s2) - 2.0 * root;
        assert!((frechet_distance(&x, &y).unwrap() - expected).abs() < 1e-10);
        // fewer samples than features: covariances are singular
        let few = normal(&[5, 12], 3);
        assert!(frechet_distance(&few, &few).unwrap() < 1e-6);
        assert!(frechet_distance(&few, &x).unwrap_err().message.contains("one length"));
    }
}
