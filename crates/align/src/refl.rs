//! Reward feedback learning: one step's prediction of the data, judged (ReFL-K, arXiv:2304.05977).

use super::cost::mean_cost;
use super::guidance;
use super::method::{Batch, Method, MethodState, Update};
use super::truncation::Truncation;
use crate::flow::{Grid, RolloutOptions, Stepper, Velocity};
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::op;

/// ReFL-K.
#[derive(Clone)]
pub struct Refl {
    /// Grid, sampler, its noise and progress.
    pub rollout: RolloutOptions,
    /// The last steps, K, of which each update draws one.
    pub truncate: Truncation,
    /// Scale of the policy's classifier-free guidance; 1 means none.
    pub guidance: f64,
}

impl Refl {
    /// ReFL-5 on `grid`.
    pub fn new(grid: Grid) -> Self {
        Self { rollout: RolloutOptions::new(grid), truncate: Truncation::Last(5), guidance: 1.0 }
    }

    /// `-scale * mean r(x + (1 - t_m) v(x, t_m))` at the state before step `m`, with the graph of that one velocity.
    pub fn at(&self, policy: &dyn Velocity, batch: &Batch, m: usize) -> Result<Update> {
        let (guided, options) = (guidance::guided(policy, self.guidance)?, batch.rollout(&self.rollout));
        let stepper = Stepper::new(guided.as_deref().unwrap_or(policy), &batch.x0, &batch.condition, &options)?;
        let (x, t) = (phase("rollout", || stepper.advance_to(&batch.x0, m))?, options.grid.times()[m]);
        stepper.notify(m)?;
        let v = stepper.velocity(&x, t, true)?;
        let (loss, rewards) = mean_cost(&*batch.cost, &[op::combine((&x, 1.0), (&v, 1.0 - t))?], "refl")?;
        Ok(Update::new(loss, &rewards[0]))
    }
}

impl Method for Refl {
    fn name(&self) -> &str {
        "refl"
    }

    fn update(&self, policy: &dyn Velocity, _: &dyn Velocity, batch: &Batch, _: &mut MethodState) -> Result<Update> {
        let steps = self.rollout.grid.steps();
        let active = self.truncate.active(steps)?;
        let m = steps - 1 - batch.stream("refl")?.draw(|rng| rng.integers(1, active))[0];
        self.at(policy, batch, m)
    }
}
