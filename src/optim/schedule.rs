//! Learning-rate schedules: a rate for each step, counted from 0.

use crate::bail;
use crate::error::Result;

/// A learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    Constant { rate: f64 },
    Cosine { rate: f64, steps: usize, warmup: usize },
}

/// The same rate at every step.
pub fn constant_rate(rate: f64) -> Result<Schedule> {
    check("constant_rate", rate)?;
    Ok(Schedule::Constant { rate })
}

/// A linear rise over `warmup` steps, then half a cosine down to 0 at `steps`.
pub fn cosine(rate: f64, steps: usize, warmup: usize) -> Result<Schedule> {
    check("cosine", rate)?;
    if steps == 0 || warmup > steps {
        bail!(Value, "cosine: warmup must lie in 0..=steps and steps above 0, got warmup {warmup} and steps {steps}");
    }
    Ok(Schedule::Cosine { rate, steps, warmup })
}

fn check(function: &str, rate: f64) -> Result<()> {
    if !(rate.is_finite() && rate >= 0.0) {
        bail!(Value, "{function}: the rate must be a number of at least 0, got {rate}");
    }
    Ok(())
}

impl Schedule {
    /// The rate of step `step`; the first step of a warm-up is already above 0.
    pub fn rate(&self, step: usize) -> f64 {
        match *self {
            Schedule::Constant { rate } => rate,
            Schedule::Cosine { rate, warmup, .. } if step < warmup => rate * (step + 1) as f64 / warmup as f64,
            Schedule::Cosine { rate, steps, warmup } => {
                let done = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
                rate * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
            }
        }
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Schedule::Constant { rate } => write!(f, "constant_rate({rate:?})"),
            Schedule::Cosine { rate, steps, warmup } => write!(f, "cosine({rate:?}, {steps}, {warmup})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_rises_then_falls_to_zero() {
        let s = cosine(2.0, 110, 10).unwrap();
        let expected = [(0, 0.2), (9, 2.0), (10, 2.0), (60, 1.0), (110, 0.0), (500, 0.0)];
        for (step, rate) in expected {
            assert!((s.rate(step) - rate).abs() < 1e-12, "step {step}: {}", s.rate(step));
        }
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert_eq!(
            cosine(1e-3, 5, 9).unwrap_err().message,
            "cosine: warmup must lie in 0..=steps and steps above 0, got warmup 9 and steps 5"
        );
        assert!(constant_rate(f64::NAN).is_err() && constant_rate(-1.0).is_err());
    }
}
