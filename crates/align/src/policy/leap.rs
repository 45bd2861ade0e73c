//! LeapAlign (arXiv:2604.15311): the reward's gradient through two leaps between states of a path. The reading is ours, from a re-implementation.

use crate::cost::mean_cost;
use crate::flow::{Grid, RolloutOptions, Stepper, Velocity, rollout};
use crate::guidance::guided;
use crate::{Batch, Method, MethodState, Update};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::op::combine;

/// Two states of a path are drawn; one-step leaps from the first to the second and from there to the end take the path's own states as their values,
/// and their own gradients. N forwards and two more.
#[derive(Clone)]
pub struct LeapAlign {
    /// Grid, sampler, its noise and progress.
    pub rollout: RolloutOptions,
    /// How much of the gradient passes the second leap's input.
    pub alpha: f64,
    /// Scale of the policy's classifier-free guidance; 1 means none.
    pub guidance: f64,
}

/// `value`, with the gradient of `scale * x`.
fn straight(value: &Tensor, x: &Tensor, scale: f64) -> Result<Tensor> {
    value.constant() + ((x - x.constant())? * scale)?
}

impl LeapAlign {
    pub fn new(grid: Grid) -> Self {
        Self { rollout: RolloutOptions::new(grid), alpha: 0.3, guidance: 1.0 }
    }

    /// `-scale * mean r` of the end with the gradient of leaps from the states before steps `first` and `second`.
    pub fn at(&self, policy: &dyn Velocity, batch: &Batch, [first, second]: [usize; 2]) -> Result<Update> {
        let guided = guided(policy, self.guidance)?;
        let (field, options) = (guided.as_deref().unwrap_or(policy), batch.rollout(&self.rollout));
        let path = rollout(field, &batch.x0, &batch.condition, &options)?;
        let stepper = Stepper::new(field, &batch.x0, &batch.condition, &options)?;
        let (t, s) = (options.grid.times()[first], options.grid.times()[second]);
        let leap = combine((path.state(first)?, 1.0), (&stepper.velocity(path.state(first)?, t, true)?, s - t))?;
        let middle = straight(path.state(second)?, &leap, 1.0)?;
        let v = stepper.velocity(&straight(path.state(second)?, &middle, self.alpha)?, s, true)?;
        let end = straight(path.last(), &combine((&middle, 1.0), (&v, 1.0 - s))?, 1.0)?;
        let (loss, rewards) = mean_cost(&*batch.cost, &[end], "leap_align")?;
        Ok(Update::new(loss, &rewards[0]))
    }
}

impl Method for LeapAlign {
    fn name(&self) -> &str {
        "leap_align"
    }

    fn update(&self, policy: &dyn Velocity, _: &dyn Velocity, batch: &Batch, _: &mut MethodState) -> Result<Update> {
        let steps = self.rollout.grid.steps();
        if steps < 2 {
            bail!(Value, "leap_align: the grid must have at least 2 steps, got {steps}");
        }
        let mut two = batch.stream("leap_align")?.draw(|rng| rng.distinct(2, steps));
        two.sort_unstable();
        self.at(policy, batch, [two[0], two[1]])
    }
}
