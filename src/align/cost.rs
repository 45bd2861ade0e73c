//! Terminal costs `g(x_1) = -scale * reward(x_1)`.

use crate::bail;
use crate::error::Result;
use crate::profile::phase;
use crate::tensor::Tensor;
use crate::tensor::check::{finite, together};
use crate::tensor::grad::value_and_grad;
use std::sync::{Arc, Mutex};

/// What the end state is judged by.
pub trait TerminalCost: Send + Sync {
    /// Rewards `[batch]` of end states `[batch, ..]`, differentiable; each sample's own matter.
    fn evaluate(&self, x1: &Tensor) -> Result<Tensor>;

    /// Factor on the reward.
    fn scale(&self) -> f64 {
        1.0
    }
}

type RewardFn = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// A reward given as a function of the end state.
#[derive(Clone)]
pub struct RewardCost {
    reward: Arc<RewardFn>,
    scale: f64,
}

impl RewardCost {
    pub fn new(reward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static, scale: f64) -> Result<Self> {
        if !scale.is_finite() {
            bail!(Value, "reward_cost: the scale must be finite, got {scale}");
        }
        Ok(Self { reward: Arc::new(reward), scale })
    }
}

impl TerminalCost for RewardCost {
    fn evaluate(&self, x1: &Tensor) -> Result<Tensor> {
        (self.reward)(x1)
    }

    fn scale(&self) -> f64 {
        self.scale
    }
}

/// The terminal condition of the adjoint, and the rewards that it came from.
#[derive(Clone)]
pub struct Terminal {
    /// `a_N = -scale * d reward / d x_1`, per sample: the shape of `x_1`.
    pub gradient: Tensor,
    /// Rewards `[batch]`.
    pub reward: Tensor,
}

/// `a(1) = -lambda grad r(X_1)` (arXiv:2605.06583, Algorithm 1), per sample.
///
/// A reward or gradient that is not finite is an error naming the sample.
pub fn terminal_gradient(cost: &dyn TerminalCost, x1: &Tensor) -> Result<Terminal> {
    together(|| at_the_end(cost, x1))
}

fn at_the_end(cost: &dyn TerminalCost, x1: &Tensor) -> Result<Terminal> {
    let (batch, seen) = (x1.dim(0)?, Mutex::new(None));
    // The sum's gradient holds each sample's own, for a sample's reward depends on that sample only.
    let total = |x: &Tensor| {
        let reward = cost.evaluate(x)?;
        if reward.dims() != [batch] {
            bail!(Shape, "terminal_gradient: rewards must be of shape [{batch}], got {:?}", reward.dims());
        }
        differentiable(&reward, "terminal_gradient")?;
        *seen.lock().unwrap_or_else(|e| e.into_inner()) = Some(reward.constant());
        reward.sum_all()
    };
    let checked = |name: &'static str, x: &Tensor| {
        finite(x, move |sample| {
            bail!(
                Numeric,
                "terminal_gradient: the {name} must be finite, got NaN or infinity for sample {sample} at t = 1"
            )
        })
    };
    let (_, gradient) = phase("gradient of the reward", || value_and_grad(total, x1))?;
    let Some(reward) = seen.into_inner().unwrap_or_else(|e| e.into_inner()) else {
        bail!(Internal, "terminal_gradient: the reward must be evaluated, got no value");
    };
    checked("reward", &reward)?;
    checked("reward's gradient", &gradient)?;
    Ok(Terminal { gradient: (gradient.to_dtype(x1.dtype())? * -cost.scale())?, reward })
}

/// Refuses a reward of tracked states that has lost its graph.
pub fn differentiable(reward: &Tensor, function: &str) -> Result<()> {
    if !reward.requires_grad() {
        bail!(
            Value, "{function}: the reward must be differentiable, got one without a gradient to the end states";
            hint: "an operation on the way cuts the gradient, such as `detach()` or `item()`, or the states are not used"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;
    use crate::tensor::sample::sum_per_sample;

    fn states() -> Tensor {
        Tensor::new(&[[1f64, 2.0], [0.0, 3.0]], &Device::Cpu).unwrap()
    }

    #[test]
    fn gradient_is_per_sample_and_scaled() {
        let cost = RewardCost::new(|x| sum_per_sample(&x.sqr()?), 3.0).unwrap();
        let end = terminal_gradient(&cost, &states()).unwrap();
        assert_eq!(end.reward.to_vec1::<f64>().unwrap(), [5.0, 9.0]);
        assert_eq!(end.gradient.to_vec2::<f64>().unwrap(), [[-6.0, -12.0], [0.0, -18.0]]);
    }

    #[test]
    fn bad_rewards_name_the_sample() {
        let message = |f: fn(&Tensor) -> Result<Tensor>| {
            let cost = RewardCost::new(f, 1.0).unwrap();
            terminal_gradient(&cost, &states()).map(|_| ()).unwrap_err().message
        };
        assert_eq!(
            message(|x| Ok(x.narrow(1, 0, 1)?.flatten_all()?.recip()?)),
            "terminal_gradient: the reward must be finite, got NaN or infinity for sample 1 at t = 1"
        );
        assert_eq!(
            message(|x| Ok(x.narrow(1, 0, 1)?.flatten_all()?.sqrt()?)),
            "terminal_gradient: the reward's gradient must be finite, got NaN or infinity for sample 1 at t = 1"
        );
        assert_eq!(
            message(|x| sum_per_sample(&x.constant())),
            "terminal_gradient: the reward must be differentiable, got one without a gradient to the end states"
        );
        assert_eq!(message(|x| Ok(x.mean_all()?)), "terminal_gradient: rewards must be of shape [2], got []");
    }
}
