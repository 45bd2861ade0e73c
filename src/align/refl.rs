//! Reward feedback learning: one step's prediction of the data, judged (ReFL-K, arXiv:2304.05977).

use super::cost::TerminalCost;
use super::draft::{Direct, judged};
use crate::error::Result;
use crate::flow::{Condition, RolloutOptions, Velocity, Walk};
use crate::profile::phase;
use crate::tensor::check::together;
use crate::tensor::grad::composed;
use crate::tensor::{Tensor, op};

/// `-scale * mean r(x + (1 - t_m) v(x, t_m))` at the state before step `m`, with the graph of that one velocity.
///
/// ReFL-K draws `m` from the last K steps for each update.
pub fn refl(
    policy: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &dyn TerminalCost,
    options: &RolloutOptions,
    m: usize,
) -> Result<Direct> {
    together(|| {
        let walk = Walk::new(policy, x0, condition, options)?;
        let (x, t) = (phase("rollout", || walk.reach(x0, m))?, options.grid.times()[m]);
        walk.before(m)?;
        let v = walk.velocity(&x, t, true)?;
        let reward = judged(cost, &op::combine((&x, 1.0), (&v, 1.0 - t))?, "refl")?;
        let loss = composed(&[&reward], |reward| Ok((reward[0].mean_all()? * -cost.scale())?))?;
        Ok(Direct { loss, reward: reward.detach() })
    })
}
