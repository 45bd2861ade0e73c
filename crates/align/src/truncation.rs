//! Which steps of a rollout are active: only the last few carry control.

use super::method::MethodState;
use amscript_base::bail;
use amscript_base::error::Result;

/// The active steps; control on earlier ones is taken as zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Truncation {
    /// The last `k` steps.
    Last(usize),
    /// Every step.
    Full,
    /// As many as measured control asks for.
    Adaptive(Adaptive),
}

/// What a share is a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Measure {
    /// The control: the integral of its size.
    #[default]
    Control,
    /// The objective that it attains, the integral of `f*(|a|)`: to first order in the reward scale, the reward gained has the same share.
    Objective,
}

/// The fewest last steps that hold a share of the control or of the objective, measured over all steps every few updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    /// The share, in (0, 1].
    pub mass: f64,
    /// Updates between measurements.
    pub every: usize,
    pub measure: Measure,
}

/// Names in a method's state: updates so far, and the active steps that the last measurement found.
const UPDATES: &str = "updates";
const ACTIVE: &str = "active";

impl Adaptive {
    pub fn new(mass: f64, every: usize) -> Result<Self> {
        if !(mass > 0.0 && mass <= 1.0) {
            bail!(Value, "adaptive: the share of the control must lie in (0, 1], got {mass}");
        }
        if every == 0 {
            bail!(Value, "adaptive: `every` must be at least 1 update, got 0");
        }
        Ok(Self { mass, every, measure: Measure::Control })
    }

    /// Takes the mass of every step, first to last; gives the number of active steps and notes it.
    pub fn settle(&self, masses: &[f64], state: &mut MethodState) -> usize {
        let active = last_steps(masses, self.mass);
        state.numbers.insert(ACTIVE.into(), active as f64);
        active
    }
}

/// The last steps that an update keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    pub keep: usize,
    /// They are all, because this update measures how many are enough.
    pub measures: Option<Adaptive>,
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

    /// The steps of an update that knows what its run has measured; counts the update.
    pub fn window(&self, steps: usize, state: &mut MethodState) -> Result<Window> {
        let Truncation::Adaptive(adaptive) = self else {
            return Ok(Window { keep: self.active(steps)?, measures: None });
        };
        let (updates, active) = (state.number(UPDATES) as usize, state.number(ACTIVE) as usize);
        state.numbers.insert(UPDATES.into(), (updates + 1) as f64);
        Ok(match active == 0 || updates.is_multiple_of(adaptive.every) {
            true => Window { keep: steps, measures: Some(*adaptive) },
            false => Window { keep: active.min(steps), measures: None },
        })
    }

    /// How many of `steps` steps are active, for what measures no control.
    pub fn active(&self, steps: usize) -> Result<usize> {
        match self {
            Truncation::Full => Ok(steps),
            Truncation::Adaptive(_) => bail!(
                Value, "truncate: adaptive(..) measures the control of adjoint matching, which there is none of here";
                hint: "take `last(k)` or `full()`"
            ),
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
        let (truncation, mut state) = (Truncation::Adaptive(adaptive), MethodState::default());
        let mut window = || {
            let window = truncation.window(4, &mut state).unwrap();
            if window.measures.is_some() {
                adaptive.settle(&[1.0, 1.0, 1.0, 1.0], &mut state);
            }
            (window.keep, window.measures.is_some())
        };
        let seen: Vec<_> = (0..7).map(|_| window()).collect();
        let (all, some) = ((4, true), (2, false));
        assert_eq!(seen, [all, some, some, all, some, some, all]);
        assert!(truncation.active(4).unwrap_err().message.starts_with("truncate: adaptive(..) measures the control"));
        assert!(Adaptive::new(0.0, 3).is_err() && Adaptive::new(1.1, 3).is_err() && Adaptive::new(0.5, 0).is_err());
    }
}
