//! The Frechet distance between two sets of features (arXiv:1706.08500), report-only.

use crate::bail;
use crate::error::Result;
use crate::tensor::{DType, Device, Tensor};

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
    // with S1 = L L^T the roots of S1 S2's eigenvalues are those of the symmetric L^T S2 L
    let factor = Tensor::from_vec(factor(s1.flatten_all()?.to_vec1()?, d), (d, d), &Device::Cpu)?;
    let product = factor.t()?.matmul(&s2)?.matmul(&factor)?;
    let roots: f64 = eigenvalues(product.flatten_all()?.to_vec1()?, d)?.into_iter().map(|v| v.max(0.0).sqrt()).sum();
    let trace = |s: &Tensor| -> Result<f64> {
        Ok((s * Tensor::eye(d, DType::F64, &Device::Cpu)?)?.sum_all()?.to_scalar::<f64>()?)
    };
    Ok((means + trace(&s1)? + trace(&s2)? - 2.0 * roots).max(0.0))
}

/// Mean `[d]` and covariance `[d, d]`, by n - 1.
fn moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, d) = x.dims2().unwrap_or_default();
    if n < 2 || d == 0 {
        bail!(Shape, "frechet_distance: features must be [n, features] with n at least 2, got {:?}", x.dims());
    }
    let x = x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    if !x.sum_all()?.to_scalar::<f64>()?.is_finite() {
        bail!(Numeric, "frechet_distance: features must be finite, got NaN or infinity");
    }
    let mean = x.mean(0)?;
    let x = x.broadcast_sub(&mean)?;
    Ok((mean, (x.t()?.matmul(&x)? / (n - 1) as f64)?))
}

/// `L` with `L L^T = s` of a positive semidefinite matrix, by Cholesky with pivots; rows stay in their order.
fn factor(mut s: Vec<f64>, d: usize) -> Vec<f64> {
    let mut l = vec![0.0; d * d];
    let tiny = 1e-14 * (0..d).map(|i| s[i * d + i]).fold(0.0, f64::max);
    for column in 0..d {
        let Some(p) = (0..d).max_by(|&i, &j| s[i * d + i].total_cmp(&s[j * d + j])) else { break };
        let pivot = s[p * d + p];
        if pivot <= tiny {
            break;
        }
        let v: Vec<f64> = (0..d).map(|i| s[i * d + p] / pivot.sqrt()).collect();
        for i in 0..d {
            l[i * d + column] = v[i];
            s[i * d..(i + 1) * d].iter_mut().zip(&v).for_each(|(s, u)| *s -= v[i] * u);
        }
    }
    l
}

/// Eigenvalues of a symmetric matrix: Householder's tridiagonal form, then QL steps with implicit shifts.
fn eigenvalues(mut a: Vec<f64>, d: usize) -> Result<Vec<f64>> {
    let mut beside = vec![0.0; d];
    for k in 0..d.saturating_sub(2) {
        let mut v: Vec<f64> = (0..d).map(|i| if i > k { a[i * d + k] } else { 0.0 }).collect();
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt().copysign(v[k + 1]);
        v[k + 1] += length;
        let square: f64 = v.iter().map(|x| x * x).sum();
        if square == 0.0 {
            continue;
        }
        // A - v w^T - w v^T with w = 2 (A v - v (v A v) / |v|^2) / |v|^2
        let times: Vec<f64> = a.chunks(d).map(|row| row.iter().zip(&v).map(|(a, v)| a * v).sum()).collect();
        let along = v.iter().zip(&times).map(|(v, t)| v * t).sum::<f64>() / square;
        let w: Vec<f64> = times.iter().zip(&v).map(|(t, v)| 2.0 * (t - along * v) / square).collect();
        for (i, row) in a.chunks_mut(d).enumerate().skip(k) {
            row.iter_mut().zip(v.iter().zip(&w)).for_each(|(a, (vj, wj))| *a -= v[i] * wj + w[i] * vj);
        }
    }
    let mut diagonal: Vec<f64> = (0..d).map(|i| a[i * d + i]).collect();
    (1..d).for_each(|i| beside[i - 1] = a[i * d + i - 1]);
    for first in 0..d {
        for round in 0.. {
            let small = |m: &usize| beside[*m].abs() <= f64::EPSILON * (diagonal[*m].abs() + diagonal[*m + 1].abs());
            let last = (first..d - 1).find(small).unwrap_or(d - 1);
            if last == first {
                break;
            }
            if round == 60 {
                bail!(Numeric, "frechet_distance: the eigenvalues of the covariances do not settle");
            }
            ql_step(&mut diagonal, &mut beside, first, last);
        }
    }
    Ok(diagonal)
}

/// One implicit QL step on rows `first..=last` of a tridiagonal matrix.
fn ql_step(diagonal: &mut [f64], beside: &mut [f64], first: usize, last: usize) {
    let g = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    let mut g = diagonal[last] - diagonal[first] + beside[first] / (g + g.hypot(1.0).copysign(g));
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (first..last).rev() {
        let (f, b) = (s * beside[i], c * beside[i]);
        let r = f.hypot(g);
        beside[i + 1] = r;
        if r == 0.0 {
            diagonal[i + 1] -= p;
            beside[last] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = diagonal[i + 1] - p;
        let r = (diagonal[i] - g) * s + 2.0 * c * b;
        p = s * r;
        diagonal[i + 1] = g + p;
        g = c * r - b;
    }
    diagonal[first] -= p;
    beside[first] = g;
    beside[last] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    fn normal(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn eigenvalues_of_a_known_matrix() {
        // second differences: 2 - 2 cos(pi j / (d + 1)); turned by a reflection so that nothing is tridiagonal
        let d = 9;
        let band = |i: usize, j: usize| {
            if i == j {
                2.0
            } else if i.abs_diff(j) == 1 {
                -1.0
            } else {
                0.0
            }
        };
        let s: Vec<f64> = (0..d * d).map(|at| band(at / d, at % d)).collect();
        let s = Tensor::from_vec(s, (d, d), &Device::Cpu).unwrap();
        let v = normal(&[d, 1], 1);
        let turn = (v.matmul(&v.t().unwrap()).unwrap()
            * (2.0 / v.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()))
        .unwrap();
        let turn = (Tensor::eye(d, DType::F64, &Device::Cpu).unwrap() - turn).unwrap();
        let full = turn.matmul(&s).unwrap().matmul(&turn).unwrap();
        let mut got = eigenvalues(full.flatten_all().unwrap().to_vec1().unwrap(), d).unwrap();
        got.sort_by(f64::total_cmp);
        for (j, got) in got.into_iter().enumerate() {
            let expected = 2.0 - 2.0 * (std::f64::consts::PI * (j + 1) as f64 / (d + 1) as f64).cos();
            assert!((got - expected).abs() < 1e-12, "{j}: {got} {expected}");
        }
        let l =
            Tensor::from_vec(factor(full.flatten_all().unwrap().to_vec1().unwrap(), d), (d, d), &Device::Cpu).unwrap();
        let error = (l.matmul(&l.t().unwrap()).unwrap() - full).unwrap().abs().unwrap().max_all().unwrap();
        assert!(error.to_scalar::<f64>().unwrap() < 1e-12);
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
