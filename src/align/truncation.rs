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
    /// How many of `steps` steps are active.
    pub fn active(self, steps: usize) -> Result<usize> {
        match self {
            Truncation::Full => Ok(steps),
            Truncation::Last(k) if (1..=steps).contains(&k) => Ok(k),
            Truncation::Last(k) => bail!(Value, "last: k must lie in 1..={steps}, the steps of the grid, got {k}"),
        }
    }
}
