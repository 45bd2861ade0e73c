//! VGG-Flow (arXiv:2512.05116) without its value network: the velocity is regressed on the base's and a multiple of the reward's gradient at the
//! data that it predicts.

use super::pass::{mean_per_sample, value};
use crate::flow::{Grid, RolloutOptions, Velocity, rollout};
use crate::guidance::guided;
use crate::{Batch, Method, MethodState, Selection, Update, terminal_gradient};
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::op::combine;
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
    /// Scale of the policy's classifier-free guidance; 1 means none.
    pub guidance: f64,
}

impl VggFlow {
    /// The published multiple, `t^2`, at every step of `grid`.
    pub fn new(grid: Grid) -> Self {
        Self { rollout: RolloutOptions::new(grid), steps: Selection::All, eta: Arc::new(|t| Ok(t * t)), guidance: 1.0 }
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
        let guided = guided(policy, self.guidance)?;
        let options = RolloutOptions { track: at.clone(), ..batch.rollout(&self.rollout) };
        let path = rollout(guided.as_deref().unwrap_or(policy), &batch.x0, &batch.condition, &options)?;
        let mut losses = Vec::new();
        for k in &at {
            let (x, t, v) = (path.state(*k)?, path.grid.times()[*k], &path.velocities[*k]);
            let data = combine((x, 1.0), (&v.constant(), 1.0 - t))?;
            let pull = terminal_gradient(&*batch.cost, &data)?.gradient;
            let old = phase("reference", || value(base, x, &path.time(*k)?, &path.condition))?;
            let target = combine((&old, 1.0), (&pull, -(self.eta)(t)?))?;
            losses.push((mean_per_sample(&(v - target)?.sqr()?)?.mean_all()? * (1.0 / at.len() as f64))?);
        }
        let reward = crate::rewards(&*batch.cost, path.last(), self.name())?;
        Ok(Update { losses: losses.clone(), ..Update::new(losses[0].clone(), &reward) })
    }
}
