//! Direct fine-tuning: the reward's gradient through the last steps of sampling (DRaFT-K, DRaFT-LV, arXiv:2309.17400).

use super::cost::mean_cost;
use super::guidance;
use super::method::{Batch, Method, MethodState, Update};
use super::truncation::Truncation;
use crate::flow::{Grid, RolloutOptions, Stepper, Velocity, interpolant, time_tensor};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::op;

/// DRaFT-K, and DRaFT-LV.
#[derive(Clone)]
pub struct Draft {
    /// Grid, sampler, its noise and progress.
    pub rollout: RolloutOptions,
    /// The last steps that the gradient goes through, K.
    pub truncate: Truncation,
    /// Further ends per sample, each from a last step at noise newly drawn (DRaFT-LV).
    pub renoised: usize,
    /// Scale of the policy's classifier-free guidance; 1 means none.
    pub guidance: f64,
}

impl Draft {
    /// DRaFT-1 on `grid`.
    pub fn new(grid: Grid) -> Self {
        Self { rollout: RolloutOptions::new(grid), truncate: Truncation::Last(1), renoised: 0, guidance: 1.0 }
    }
}

impl Method for Draft {
    fn name(&self) -> &str {
        "draft"
    }

    /// `-scale * mean r(X_N)` with the graph of the last K steps, through the network's input and parameters.
    ///
    /// With `renoised = n` (K = 1): the mean over the end and n ends more, each `x' + h v(x')` from `x' = t X_N + (1 - t) z`, `t` the
    /// time of the last step.
    fn update(&self, policy: &dyn Velocity, _: &dyn Velocity, batch: &Batch, _: &mut MethodState) -> Result<Update> {
        let (grid, steps) = (&self.rollout.grid, self.rollout.grid.steps());
        let active = self.truncate.active(steps)?;
        if self.renoised > 0 && active != 1 {
            bail!(Value, "draft: low_variance goes with truncate: last(1), got {active} active steps");
        }
        let (guided, options) = (guidance::guided(policy, self.guidance)?, batch.rollout(&self.rollout));
        let stepper = Stepper::new(guided.as_deref().unwrap_or(policy), &batch.x0, &batch.condition, &options)?;
        let mut x = phase("rollout", || stepper.advance_to(&batch.x0, steps - active))?;
        for k in steps - active..steps {
            stepper.notify(k)?;
            let v = stepper.velocity(&x, grid.times()[k], true)?;
            x = stepper.next(k, &x, &v)?;
        }
        let (t, end) = (grid.times()[steps - 1], x.constant());
        let mut ends = vec![x];
        for _ in 0..self.renoised {
            let Some(draw) = &options.draw else {
                bail!(Missing, "draft: low_variance needs a random stream, got none"; hint: "give one as `rng`");
            };
            let z = draw(steps - 1, &end)?;
            let again = interpolant::interpolate(&z, &end, &time_tensor(t, &end)?)?;
            let v = stepper.velocity(&again, t, true)?;
            ends.push(op::combine((&again, 1.0), (&v, grid.width(steps - 1)))?);
        }
        let (loss, rewards) = mean_cost(&*batch.cost, &ends, "draft")?;
        Ok(Update::new(loss, &rewards[0]))
    }
}
