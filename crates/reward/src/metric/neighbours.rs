//! Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797) of two sets of features, as prdc 0.2
//! counts them. Report-only: they count, so they have no gradient.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::progress::Progress;
use amscript_tensor::{DType, Device, Tensor, interrupt};
use rayon::prelude::*;

/// Rows of distances held at once.
const BLOCK: usize = 256;

/// What of each set lies in the neighbourhoods of the other, sample by sample; the metrics are the means.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifold {
    /// Of each fake, 1 inside the ball of at least one real, else 0.
    pub precision: Vec<f64>,
    /// Of each real, 1 inside the ball of at least one fake, else 0.
    pub recall: Vec<f64>,
    /// Of each fake, the number of reals' balls that hold it, over k; 1 is expected of equal distributions, more is possible.
    pub density: Vec<f64>,
    /// Of each real, 1 where its ball holds a fake, else 0.
    pub coverage: Vec<f64>,
}

/// Rows of features in f64 and their squared lengths.
struct Rows {
    x: Tensor,
    squares: Vec<f64>,
}

impl Rows {
    fn new(place: &str, x: &Tensor, k: usize) -> Result<Self> {
        let Ok((n, _)) = x.dims2() else {
            bail!(Shape, "{place}: features must be [n, features], got {:?}", x.dims(); hint: "flatten what is behind the first dimension");
        };
        if k == 0 || n < k + 2 {
            bail!(Value, "{place}: `k` must be at least 1 and each set hold k + 2 samples or more, got k = {k} and {n} samples";
                hint: "take a smaller k, or more samples: a thousand or more of each are usual");
        }
        let x = x.constant().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?;
        let squares = x.sqr()?.sum(1)?.to_vec1::<f64>()?;
        if let Some(row) = squares.iter().position(|v| !v.is_finite()) {
            bail!(Numeric, "{place}: features must be finite, got NaN or infinity in row {row}");
        }
        Ok(Self { x, squares })
    }

    fn len(&self) -> usize {
        self.squares.len()
    }

    /// Calls `f(first row, squared distances)` for blocks of these rows to all of `other`, row by row.
    ///
    /// Rows nearer than a millionth of their length count as equal: nearer ones a product of matrices does not tell apart.
    fn blocks(&self, other: &Self, mut f: impl FnMut(usize, &mut [f64])) -> Result<()> {
        let columns = other.x.t()?;
        let progress = Progress::new("neighbours", 0, self.len());
        for first in (0..self.len()).step_by(BLOCK) {
            progress.tick(first);
            interrupt::check()?;
            let rows = BLOCK.min(self.len() - first);
            let mut distances = self.x.narrow(0, first, rows)?.matmul(&columns)?.flatten_all()?.to_vec1::<f64>()?;
            distances.par_chunks_mut(other.len()).enumerate().for_each(|(i, row)| {
                let own = self.squares[first + i];
                for (d, square) in row.iter_mut().zip(&other.squares) {
                    let squared = own + square - 2.0 * *d;
                    *d = if squared > 1e-12 * (own + square) { squared } else { 0.0 };
                }
            });
            f(first, &mut distances);
        }
        Ok(())
    }

    /// Squared distance of each row to its k-th nearest other.
    fn radii(&self, k: usize) -> Result<Vec<f64>> {
        let mut radii = Vec::with_capacity(self.len());
        self.blocks(self, |first, distances| {
            radii.par_extend(distances.par_chunks_mut(self.len()).enumerate().map(|(i, row)| {
                row[first + i] = 0.0;
                *row.select_nth_unstable_by(k, f64::total_cmp).1
            }));
        })?;
        Ok(radii)
    }
}

/// Distance of each row of `[n, features]` to its k-th nearest other row.
pub fn radii(x: &Tensor, k: usize) -> Result<Vec<f64>> {
    Ok(Rows::new("radii", x, k)?.radii(k)?.into_iter().map(f64::sqrt).collect())
}

/// All four in one pass, Euclidean distance, strict inequalities.
///
/// Distances are made in blocks, so memory is a few hundred rows of them whatever the number of samples.
pub fn manifold(real: &Tensor, fake: &Tensor, k: usize) -> Result<Manifold> {
    let (real, fake) = (Rows::new("manifold", real, k)?, Rows::new("manifold", fake, k)?);
    if real.x.dim(1)? != fake.x.dim(1)? {
        let (a, b) = (real.x.dims(), fake.x.dims());
        bail!(Shape, "manifold: both sets must have features of one length, got {a:?} and {b:?}");
    }
    let (around_real, around_fake) = (real.radii(k)?, fake.radii(k)?);
    let mut hits = vec![0usize; fake.len()]; // reals whose ball holds this fake
    let (mut recall, mut coverage) = (Vec::with_capacity(real.len()), Vec::with_capacity(real.len()));
    let flag = |yes: bool| if yes { 1.0 } else { 0.0 };
    real.blocks(&fake, |first, distances| {
        for (row, radius) in distances.chunks(fake.len()).zip(&around_real[first..]) {
            hits.iter_mut().zip(row).for_each(|(hits, d)| *hits += usize::from(d < radius));
            recall.push(flag(row.iter().zip(&around_fake).any(|(d, radius)| d < radius)));
            coverage.push(flag(row.iter().any(|d| d < radius)));
        }
    })?;
    let precision = hits.iter().map(|hits| flag(*hits > 0)).collect();
    let density = hits.iter().map(|hits| *hits as f64 / k as f64).collect();
    Ok(Manifold { precision, recall, density, coverage })
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Rng;

    fn normal(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F32, &Device::Cpu).unwrap()
    }

    fn numbers(m: Manifold) -> [f64; 4] {
        [m.precision, m.recall, m.density, m.coverage].map(|rows| rows.iter().sum::<f64>() / rows.len() as f64)
    }

    #[test]
    fn counts_and_radii_are_prdcs() {
        let g = amscript_tensor::file::load("../../tests/golden/prdc/expected.safetensors", &Device::Cpu).unwrap();
        let close = |got: &[f64], name: &str, tolerance: f64| {
            let expected = g[name].to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(got.len(), expected.len());
            let error = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < tolerance, "{name}: {error}");
        };
        for k in [3, 5] {
            let (real, fake) = (&g["in.real"], &g["in.fake"]);
            close(&numbers(manifold(real, fake, k).unwrap()), &format!("out.k{k}"), 1e-6);
            close(&radii(real, k).unwrap(), &format!("out.k{k}.radius_real"), 1e-5);
            close(&radii(fake, k).unwrap(), &format!("out.k{k}.radius_fake"), 1e-5);
        }
    }

    #[test]
    fn equal_sets_constant_sets_and_blocks() {
        let x = normal(&[600, 5], 1);
        assert_eq!(numbers(manifold(&x, &x, 5).unwrap())[..2], [1.0, 1.0]);
        assert_eq!(manifold(&x, &x, 5).unwrap().coverage, [1.0; 600]);
        let far = (&x + 100.0).unwrap();
        assert_eq!(numbers(manifold(&x, &far, 5).unwrap()), [0.0; 4]);
        let constant = Tensor::full(0.1f32, (40, 7), &Device::Cpu).unwrap();
        assert_eq!(numbers(manifold(&constant, &constant, 5).unwrap()), [0.0; 4]);
        // a large common offset does not blur small distances
        let offset = (x.to_dtype(DType::F64).unwrap() + 1e3).unwrap();
        let (a, b) = (radii(&x, 3).unwrap(), radii(&offset, 3).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{:?}", (a[0], b[0]));
    }

    #[test]
    fn too_few_samples_are_refused() {
        let message = |n: usize, k: usize| manifold(&normal(&[n, 3], 1), &normal(&[9, 3], 2), k).unwrap_err().message;
        assert!(manifold(&normal(&[7, 3], 1), &normal(&[9, 3], 2), 5).is_ok());
        assert!(message(6, 5).contains("got k = 5 and 6 samples"), "{}", message(6, 5));
        assert!(message(9, 0).contains("at least 1"));
        let wide = manifold(&normal(&[9, 4], 1), &normal(&[9, 3], 2), 3).unwrap_err().message;
        assert!(wide.contains("got [9, 4] and [9, 3]"), "{wide}");
    }
}
