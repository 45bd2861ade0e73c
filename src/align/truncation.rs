//! Which steps of a rollout are active: only the last few carry control.

use crate::bail;
use crate::error::Result;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;

/// The active steps; control on earlier ones is taken as zero.
#[derive(Debug, Clone)]
pub enum Truncation {
    /// The last `k` steps.
    Last(usize),
    /// Every step.
    Full,
    /// As many as measured control asks for.
    Adaptive(Adaptive),
}

/// The fewest last steps that hold a share of the control, measured over all steps every few updates.
///
/// Clones share what was measured.
#[derive(Debug, Clone)]
pub struct Adaptive {
    /// The share, in (0, 1].
    pub mass: f64,
    /// Updates between measurements.
    pub every: usize,
    state: Arc<Mutex<State>>,
}

/// What was measured so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct State {
    /// Updates since the start.
    pub updates: usize,
    /// Active steps; 0 before the first measurement.
    pub active: usize,
}

impl Adaptive {
    pub fn new(mass: f64, every: usize) -> Result<Self> {
        if !(mass > 0.0 && mass <= 1.0) {
            bail!(Value, "adaptive: the share of the control must lie in (0, 1], got {mass}");
        }
        if every == 0 {
            bail!(Value, "adaptive: `every` must be at least 1 update, got 0");
        }
        Ok(Self { mass, every, state: Arc::default() })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Counts an update; true where it is one that measures.
    pub fn due(&self) -> bool {
        let mut state = self.state();
        state.updates += 1;
        (state.updates - 1).is_multiple_of(self.every) || state.active == 0
    }

    /// Takes the control mass of every step, first to last; gives the number of active steps.
    pub fn measure(&self, masses: &[f64]) -> usize {
        let active = last_steps(masses, self.mass);
        self.state().active = active;
        active
    }
}

/// The fewest last steps that hold `share` of the sum of `masses`, at least one.
pub fn last_steps(masses: &[f64], share: f64) -> usize {
    // A little less than the share, so that rounding of the sum does not ask for one step more.
    let wanted = share * masses.iter().sum::<f64>() * (1.0 - 1e-12);
    let mut held = 0.0;
    let reached = masses.iter().rev().position(|mass| {
        held += mass;
        held >= wanted
    });
    reached.map_or(masses.len(), |before| before + 1).max(1)
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
    pub fn active(&self, steps: usize) -> Result<usize> {
        match self {
            Truncation::Full => Ok(steps),
            Truncation::Adaptive(adaptive) => match adaptive.state().active {
                0 => Ok(steps),
                k => Ok(k.min(steps)),
            },
            Truncation::Last(k) if (1..=steps).contains(k) => Ok(*k),
            Truncation::Last(k) => bail!(Value, "last: k must lie in 1..={steps}, the steps of the grid, got {k}"),
        }
    }
}

/// Updates between measurements, unless told otherwise: at K = 3 of 20 steps they then cost 4 % of an update on average.
pub const EVERY: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_last_steps_hold_the_share() {
        let masses = [1.0, 1.0, 2.0, 4.0];
        for (share, steps) in [(0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (1.0, 4)] {
            assert_eq!(last_steps(&masses, share), steps, "{share}");
        }
        assert_eq!(last_steps(&[0.1; 10], 0.3), 3);
        assert_eq!(last_steps(&[0.0, 0.0], 0.9), 1);
    }

    #[test]
    fn it_measures_at_first_and_then_now_and_again() {
        let adaptive = Adaptive::new(0.5, 3).unwrap();
        let truncation = Truncation::Adaptive(adaptive.clone());
        assert_eq!(truncation.active(4).unwrap(), 4);
        let due: Vec<bool> = (0..7)
            .map(|_| {
                let due = adaptive.due();
                if due {
                    adaptive.measure(&[1.0, 1.0, 1.0, 1.0]);
                }
                due
            })
            .collect();
        assert_eq!(due, [true, false, false, true, false, false, true]);
        assert_eq!(truncation.active(4).unwrap(), 2);
        assert!(Adaptive::new(0.0, 3).is_err() && Adaptive::new(1.1, 3).is_err() && Adaptive::new(0.5, 0).is_err());
    }
}
