//! Learning-rate schedules: a rate for each step, counted from 0.

use amscript_base::bail;
use amscript_base::error::Result;

/// A learning rate as a function of the step. What it leaves open is filled in by [`Schedule::over`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    Constant { rate: f64, warmup: Option<usize> },
    Cosine { rate: f64, steps: Option<usize>, warmup: Option<usize> },
}

/// The same rate at every step.
pub fn constant_rate(rate: f64) -> Result<Schedule> {
    check("constant_rate", rate)?;
    Ok(Schedule::Constant { rate, warmup: None })
}

/// Half a cosine down to 0 over a run whose length is not known yet.
pub fn open_cosine(rate: f64) -> Result<Schedule> {
    check("cosine", rate)?;
    Ok(Schedule::Cosine { rate, steps: None, warmup: None })
}

/// A linear rise over `warmup` steps, then half a cosine down to 0 at `steps`.
pub fn cosine(rate: f64, steps: usize, warmup: usize) -> Result<Schedule> {
    open_cosine(rate)?.over(steps, warmup)
}

fn check(function: &str, rate: f64) -> Result<()> {
    if !(rate.is_finite() && rate >= 0.0) {
        bail!(Value, "{function}: the rate must be a number of at least 0, got {rate}");
    }
    Ok(())
}

impl Schedule {
    /// The same schedule for a run of `steps` steps that begins with a linear rise over `warmup` of them; what it says itself stays.
    pub fn over(self, steps: usize, warmup: usize) -> Result<Self> {
        match self {
            Schedule::Constant { rate, warmup: own } => Ok(Schedule::Constant { rate, warmup: own.or(Some(warmup)) }),
            Schedule::Cosine { rate, steps: length, warmup: own } => {
                let (steps, warmup) = (length.unwrap_or(steps), own.unwrap_or(warmup));
                if steps == 0 || warmup > steps {
                    bail!(
                        Value,
                        "cosine: warmup must lie in 0..=steps and steps above 0, got warmup {warmup} and steps {steps}"
                    );
                }
                Ok(Schedule::Cosine { rate, steps: Some(steps), warmup: Some(warmup) })
            }
        }
    }

    /// Whether it needs a length that it does not have.
    pub fn is_open(&self) -> bool {
        matches!(self, Schedule::Cosine { steps: None, .. })
    }

    /// The rate of step `step`; the first step of a warm-up is already above 0. A cosine without a length does not fall.
    pub fn rate(&self, step: usize) -> f64 {
        let (Schedule::Constant { rate, warmup } | Schedule::Cosine { rate, warmup, .. }) = *self;
        let warmup = warmup.unwrap_or(0);
        match *self {
            _ if step < warmup => rate * (step + 1) as f64 / warmup as f64,
            Schedule::Cosine { steps: Some(steps), .. } => {
                let done = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
                rate * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
            }
            _ => rate,
        }
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Schedule::Constant { rate, warmup: None } => write!(f, "constant_rate({rate:?})"),
            Schedule::Constant { rate, warmup: Some(warmup) } => write!(f, "constant_rate({rate:?}, {warmup})"),
            Schedule::Cosine { rate, steps: Some(steps), warmup } => {
                write!(f, "cosine({rate:?}, {steps}, {})", warmup.unwrap_or(0))
            }
            Schedule::Cosine { rate, steps: None, .. } => write!(f, "cosine({rate:?})"),
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
    fn what_is_left_open_is_filled_in() {
        let open = open_cosine(2.0).unwrap();
        assert!(open.is_open() && open.rate(7) == 2.0);
        assert_eq!(open.over(110, 10).unwrap(), cosine(2.0, 110, 10).unwrap());
        assert_eq!(cosine(2.0, 110, 10).unwrap().over(5, 1).unwrap(), cosine(2.0, 110, 10).unwrap());
        let constant = constant_rate(2.0).unwrap().over(5, 4).unwrap();
        assert_eq!([0, 3, 4, 1000].map(|step| constant.rate(step)), [0.5, 2.0, 2.0, 2.0]);
        assert_eq!(format!("{open} {constant}"), "cosine(2.0) constant_rate(2.0, 4)");
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
