//! VGG-Flow (arXiv:2512.05116) without its value network: the velocity is regressed on the base's and a multiple of the reward's gradient at the
//! data that it predicts.

use super::pass::{mean_per_sample, value};
use crate::flow::{Grid, RolloutOptions, Velocity, rollout};
use crate::guidance::guided;
use crate::{Batch, Method, MethodState, Selection, Update, terminal_gradient};
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::Tensor;
use amscript_tensor::op::combine;
use amscript_tensor::sample::{norm_per_sample, spread};
use std::sync::Arc;

/// A multiple as a function of time.
pub type Eta = Arc<dyn Fn(f64) -> Result<f64> + Send + Sync>;

/// `mean |v - (v_base + eta(t) scale grad r(x_t + (1 - t) v))|^2` at some steps of the policy's path, the gradient past the network.
///
/// N policy forwards, K base forwards and K gradients of the reward, at K steps.
#[derive(Clone)]
pub struct VggFlow {
    /// Grid, sampler, its noise and progress.
    pub rollout: RolloutOptions,
    pub steps: Selection,
    pub eta: Eta,
    /// The largest norm of a sample's gradient of the scaled reward.
    pub gradient_clip: Option<f64>,
    /// Scale of classifier-free guidance, of policy and base; 1 means none.
    pub guidance: f64,
}

impl VggFlow {
    /// The published multiple, `t^2`, at every step of `grid`.
    pub fn new(grid: Grid) -> Self {
        let rollout = RolloutOptions::new(grid);
        Self { rollout, steps: Selection::All, eta: Arc::new(|t| Ok(t * t)), gradient_clip: None, guidance: 1.0 }
    }

    /// The gradient of the cost at `data`, no sample's longer than the bound.
    fn pull(&self, batch: &Batch, data: &Tensor) -> Result<Tensor> {
        let pull = terminal_gradient(&*batch.cost, data)?.gradient;
        let Some(most) = self.gradient_clip else { return Ok(pull) };
        let factor = (norm_per_sample(&pull)?.clamp(most, f64::MAX)?.recip()? * most)?;
        pull.broadcast_mul(&spread(&factor, &pull)?)
    }
}

impl Method for VggFlow {
    fn name(&self) -> &str {
        "vgg_flow"
    }

    fn update(&self, policy: &dyn Velocity, base: &dyn Velocity, batch: &Batch, _: &mut MethodState) -> Result<Update> {
        let steps = self.rollout.grid.steps();
        let drawn = match self.steps {
            Selection::All => None,
            some => batch.stream("vgg_flow: random_steps")?.draw(|rng| some.draw(0..steps, rng))?,
        };
        let at = drawn.unwrap_or_else(|| (0..steps).collect());
        let [field, reference] = [guided(policy, self.guidance)?, guided(base, self.guidance)?];
        let (field, reference) = (field.as_deref().unwrap_or(policy), reference.as_deref().unwrap_or(base));
        let options = RolloutOptions { track: at.clone(), ..batch.rollout(&self.rollout) };
        let path = rollout(field, &batch.x0, &batch.condition, &options)?;
        let mut losses = Vec::new();
        for k in &at {
            let (x, t, v) = (path.state(*k)?, path.grid.times()[*k], &path.velocities[*k]);
            let data = combine((x, 1.0), (&v.constant(), 1.0 - t))?;
            let pull = self.pull(batch, &data)?;
            let old = phase("reference", || value(reference, x, &path.time(*k)?, &path.condition))?;
            let target = combine((&old, 1.0), (&pull, -(self.eta)(t)?))?;
            losses.push((mean_per_sample(&(v - target)?.sqr()?)?.mean_all()? * (1.0 / at.len() as f64))?);
        }
        let reward = crate::rewards(&*batch.cost, path.last(), self.name())?;
        Ok(Update { losses: losses.clone(), ..Update::new(losses[0].clone(), &reward) })
    }
}
