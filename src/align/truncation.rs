//! Which steps of a rollout are active: only the last few carry control.

use crate::bail;
use crate::error::Result;

/// The active steps; control on earlier ones is taken as zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Truncation {
    /// The last `k` steps.
    Last(usize),
    /// Every step.
    Full,
}

impl Truncation {
    /// The last `k` steps, at least one.
    pub fn last(k: usize) -> Result<Self> {
        if k == 0 {
            bail!(Value, "last: there must be at least 1 active step, got 0");
        }
        Ok(Truncation::Last(k))
    }

    /// How many of `steps` steps are active.
    pub fn active(self, steps: usize) -> Result<usize> {
        match self {
            Truncation::Full => Ok(steps),
            Truncation::Last(k) if (1..=steps).contains(&k) => Ok(k),
            Truncation::Last(k) => bail!(Value, "last: k must lie in 1..={steps}, the steps of the grid, got {k}"),
        }
    }
}

impl std::fmt::Display for Truncation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Truncation::Last(k) => write!(f, "last({k})"),
            Truncation::Full => write!(f, "full()"),
        }
    }
}
