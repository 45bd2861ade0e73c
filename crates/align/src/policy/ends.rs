//! Noised ends: what methods of the forward process learn from.

use crate::flow::{Velocity, interpolant};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::check::read;
use amscript_tensor::{DType, Device, Stream, Tensor};

/// Whose ends are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ends {
    #[default]
    Policy,
    /// A copy that follows the policy.
    Old,
    Base,
}

/// The law of the times that ends are noised to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Times {
    #[default]
    Uniform,
    /// The logistic function of a standard normal number.
    LogitNormal,
    /// Uniform noise levels `1 - t`, moved towards the noise end by a factor, as [`crate::flow::shifted`] moves a grid.
    Shifted(f64),
}

impl Times {
    fn draw(self, n: usize, until: f64, stream: &Stream) -> Result<Vec<f64>> {
        let uniform = || read(&stream.draw_rows(n, |rng| rng.uniform(&[n], DType::F64, &Device::Cpu))?);
        let times: Vec<f64> = match self {
            Times::Uniform => uniform()?,
            Times::LogitNormal => {
                let normal = read(&stream.draw_rows(n, |rng| rng.normal(&[n], DType::F64, &Device::Cpu))?)?;
                normal.into_iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect()
            }
            Times::Shifted(f) if f > 0.0 => uniform()?.into_iter().map(|s| s / (s + f * (1.0 - s))).collect(),
            Times::Shifted(f) => bail!(Value, "shifted_times: the factor must be above 0, got {f}"),
        };
        Ok(times.into_iter().map(|t| t * until).collect())
    }
}

/// Ends at drawn times, each on a line of its own from new noise.
#[derive(Clone)]
pub struct Noised {
    /// `(1 - t) x_0 + t x_1`, `[n, ..]`.
    pub x: Tensor,
    /// `[n]`.
    pub t: Tensor,
    /// `x_1 - x_0`.
    pub target: Tensor,
}

/// Noises ends `x1` `[n, ..]` to times up to `until`; `share` rows that follow one another have the same noise and time.
pub fn noised(x1: &Tensor, times: Times, until: f64, share: usize, stream: &Stream) -> Result<Noised> {
    let n = x1.dim(0)?;
    if share == 0 || !n.is_multiple_of(share) {
        bail!(Value, "noised: `share` must divide the {n} ends, got {share}");
    }
    if !(until > 0.0 && until <= 1.0) {
        bail!(Value, "noised: `until` must lie in (0, 1], got {until}");
    }
    let (mut dims, x1) = (x1.dims().to_vec(), x1.constant());
    dims[0] = n / share;
    let repeated = Tensor::new((0..n).map(|i| (i / share) as u32).collect::<Vec<_>>(), x1.device())?;
    let x0 =
        stream.draw_rows(n / share, |rng| rng.normal(&dims, x1.dtype(), x1.device()))?.index_select(&repeated, 0)?;
    let t = Tensor::new(times.draw(n / share, until, stream)?, x1.device())?
        .to_dtype(x1.dtype())?
        .index_select(&repeated, 0)?;
    Ok(Noised { x: interpolant::interpolate(&x0, &x1, &t)?, target: interpolant::velocity(&x0, &x1)?, t })
}

impl Noised {
    /// A field's velocities there, with whatever graph it has.
    pub fn velocity(&self, field: &dyn Velocity, condition: &crate::flow::Condition) -> Result<Tensor> {
        field.velocity(&self.x, &self.t, condition)?.to_dtype(self.x.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Rng;

    #[test]
    fn rows_that_share_have_one_noise_and_time() {
        let stream = Stream::new(Rng::new(3));
        let x1 = Rng::new(1).normal(&[4, 3], DType::F64, &Device::Cpu).unwrap();
        let some = noised(&x1, Times::LogitNormal, 1.0, 2, &stream).unwrap();
        let t = some.t.to_vec1::<f64>().unwrap();
        assert!(t[0] == t[1] && t[2] == t[3] && t[1] != t[2] && t.iter().all(|t| (0.0..1.0).contains(t)));
        let x0 = (&x1 - &some.target).unwrap().to_vec2::<f64>().unwrap();
        assert!(x0[0].iter().zip(&x0[1]).all(|(a, b)| (a - b).abs() < 1e-15) && x0[1] != x0[2]);
        assert!(noised(&x1, Times::Uniform, 1.0, 3, &stream).is_err());
        let early = noised(&x1, Times::Shifted(3.0), 0.6, 1, &stream).unwrap().t.to_vec1::<f64>().unwrap();
        assert!(early.iter().all(|t| *t < 0.6));
    }
}
