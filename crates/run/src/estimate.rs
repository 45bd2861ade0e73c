//! Means with standard errors.

use amscript_base::{bail, error::Result};
use std::fmt;

/// Mean of independent values, its standard error `s / sqrt(n)`, and their count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    /// NaN for fewer than two values.
    pub error: f64,
    pub count: usize,
}

impl Estimate {
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let error = if values.len() < 2 { f64::NAN } else { (squares / (n - 1.0) / n).sqrt() };
        Self { mean, error, count: values.len() }
    }

    /// `after - before` of the same items, item by item.
    pub fn paired(before: &[f64], after: &[f64]) -> Result<Self> {
        if before.len() != after.len() {
            bail!(Shape, "paired: needs one value per item on both sides, got {} and {}", before.len(), after.len());
        }
        let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
        Ok(Self::of(&differences))
    }

    /// The mean in standard errors.
    pub fn sigmas(&self) -> f64 {
        self.mean / self.error
    }
}

/// `0.5312 ± 0.0041`: as many digits as the error deserves.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !(self.error > 0.0 && self.error.is_finite()) {
            return write!(f, "{}", amscript_tensor::show::number(self.mean));
        }
        let digits = (1.0 - self.error.log10().floor()).clamp(0.0, 9.0) as usize;
        match f.sign_plus() {
            true => write!(f, "{:+.digits$} ± {:.digits$}", self.mean, self.error),
            false => write!(f, "{:.digits$} ± {:.digits$}", self.mean, self.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        let e = Estimate::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!((e.mean, e.count), (2.5, 4));
        assert!((e.error - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        let d = Estimate::paired(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0]).unwrap();
        assert_eq!((d.mean, d.error), (1.0, 0.0));
        assert!(Estimate::of(&[1.0]).error.is_nan());
        assert!(Estimate::paired(&[1.0], &[]).is_err());
    }

    #[test]
    fn digits_follow_the_error() {
        let e = Estimate { mean: 0.531234, error: 0.00412, count: 9 };
        assert_eq!((e.to_string(), format!("{e:+}")), ("0.5312 ± 0.0041".into(), "+0.5312 ± 0.0041".into()));
        assert_eq!(Estimate { mean: 1234.5, error: 21.0, count: 3 }.to_string(), "1234 ± 21");
        assert_eq!(Estimate { mean: 0.25, error: f64::NAN, count: 1 }.to_string(), "0.25");
    }
}
