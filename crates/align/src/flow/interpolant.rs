//! The linear interpolant `x_t = (1 - t) x_0 + t x_1` and its four parametrisations (arXiv:2605.06583, Table 1).
//!
//! `x_0` is noise, `x_1` data; `t` is `[batch]`.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::sample::spread;
use amscript_tensor::{DType, Tensor};

/// `x_t = (1 - t) x_0 + t x_1`.
pub fn interpolate(x0: &Tensor, x1: &Tensor, t: &Tensor) -> Result<Tensor> {
    let t = spread(t, x0)?;
    x0.broadcast_mul(&one_minus(&t)?)? + x1.broadcast_mul(&t)?
}

/// `v = x_1 - x_0`, the velocity of the straight line.
pub fn velocity(x0: &Tensor, x1: &Tensor) -> Result<Tensor> {
    x1 - x0
}

/// `x_1 = x + (1 - t) v`.
pub fn data_from_velocity(v: &Tensor, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    x + v.broadcast_mul(&one_minus(&spread(t, x)?)?)?
}

/// `x_0 = x - t v`.
pub fn noise_from_velocity(v: &Tensor, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    x - v.broadcast_mul(&spread(t, x)?)?
}

/// `s = (t v - x) / (1 - t)`, for `t < 1`.
pub fn score_from_velocity(v: &Tensor, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    below_one("score_from_velocity", t)?;
    let t = spread(t, x)?;
    (v.broadcast_mul(&t)? - x)?.broadcast_div(&one_minus(&t)?)
}

/// `v = (x_1 - x) / (1 - t)`, for `t < 1`.
pub fn velocity_from_data(x1: &Tensor, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    below_one("velocity_from_data", t)?;
    (x1 - x)?.broadcast_div(&one_minus(&spread(t, x)?)?)
}

/// `v = (x - x_0) / t`, for `t > 0`.
pub fn velocity_from_noise(x0: &Tensor, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    above_zero("velocity_from_noise", t)?;
    (x - x0)?.broadcast_div(&spread(t, x)?)
}

/// `v = (x + (1 - t) s) / t`, for `t > 0`.
pub fn velocity_from_score(score: &Tensor, x: &Tensor, t: &Tensor) -> Result<Tensor> {
    above_zero("velocity_from_score", t)?;
    let t = spread(t, x)?;
    (x + score.broadcast_mul(&one_minus(&t)?)?)?.broadcast_div(&t)
}

fn one_minus(t: &Tensor) -> Result<Tensor> {
    t.affine(-1.0, 1.0)
}

fn times(t: &Tensor) -> Result<Vec<f64>> {
    t.constant().flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

fn below_one(function: &str, t: &Tensor) -> Result<()> {
    match times(t)?.into_iter().find(|t| *t >= 1.0) {
        Some(t) => bail!(Value, "{function}: the time must be below 1, where it divides by 1 - t, got {t}"),
        None => Ok(()),
    }
}

fn above_zero(function: &str, t: &Tensor) -> Result<()> {
    match times(t)?.into_iter().find(|t| *t <= 0.0) {
        Some(t) => bail!(Value, "{function}: the time must be above 0, where it divides by t, got {t}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::{Device, Rng};

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn conversions_invert_each_other_on_the_line() {
        let mut rng = Rng::new(2);
        let mut draw = || rng.normal(&[3, 4, 2], DType::F64, &Device::Cpu).unwrap();
        let (x0, x1) = (draw(), draw());
        let t = Tensor::new(&[0.1f64, 0.5, 0.93], &Device::Cpu).unwrap();
        let (x, v) = (interpolate(&x0, &x1, &t).unwrap(), velocity(&x0, &x1).unwrap());
        assert!(distance(&data_from_velocity(&v, &x, &t).unwrap(), &x1) < 1e-14);
        assert!(distance(&noise_from_velocity(&v, &x, &t).unwrap(), &x0) < 1e-14);
        assert!(distance(&velocity_from_data(&x1, &x, &t).unwrap(), &v) < 1e-13);
        assert!(distance(&velocity_from_noise(&x0, &x, &t).unwrap(), &v) < 1e-13);
        // The score of x_t given x_1 is -(x - t x_1) / (1 - t)^2 = -x_0 / (1 - t).
        let score = score_from_velocity(&v, &x, &t).unwrap();
        let expected = x0.broadcast_div(&spread(&t.affine(-1.0, 1.0).unwrap(), &x0).unwrap()).unwrap().neg().unwrap();
        assert!(distance(&score, &expected) < 1e-12);
        assert!(distance(&velocity_from_score(&score, &x, &t).unwrap(), &v) < 1e-12);
    }

    #[test]
    fn singular_ends_are_refused() {
        let x = Tensor::zeros((1, 2), DType::F64, &Device::Cpu).unwrap();
        let at = |t: f64| Tensor::new(&[t], &Device::Cpu).unwrap();
        let message = velocity_from_data(&x, &x, &at(1.0)).unwrap_err().message;
        assert_eq!(message, "velocity_from_data: the time must be below 1, where it divides by 1 - t, got 1");
        assert!(velocity_from_score(&x, &x, &at(0.0)).is_err() && velocity_from_score(&x, &x, &at(1.0)).is_ok());
    }
}
