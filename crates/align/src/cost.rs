//! Terminal costs `g(x_1) = -scale * reward(x_1)`.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::Tensor;
use amscript_tensor::check::require_finite;
use amscript_tensor::grad::value_and_grad;
use std::ops::Range;
use std::sync::Arc;

/// What the end state is judged by.
pub trait TerminalCost: Send + Sync {
    /// Rewards `[batch]` of end states `[batch, ..]`; each sample's own matter. [`rewards`] is how methods ask for them.
    fn evaluate(&self, x1: &Tensor) -> Result<Tensor>;

    /// Whether rewards have a gradient to the states.
    fn differentiable(&self) -> bool {
        true
    }

    /// Factor on the reward.
    fn scale(&self) -> f64 {
        1.0
    }

    /// The cost of some samples of a batch alone; none where it is the same for all samples.
    fn of_rows(&self, _rows: &Range<usize>) -> Option<Arc<dyn TerminalCost>> {
        None
    }
}

type RewardFn = dyn Fn(&Tensor, Option<&Range<usize>>) -> Result<Tensor> + Send + Sync;

/// A reward given as a function of the end state.
#[derive(Clone)]
pub struct RewardCost {
    reward: Arc<RewardFn>,
    scale: f64,
    /// The samples that end states are of, where not all.
    rows: Option<Range<usize>>,
}

impl RewardCost {
    pub fn new(reward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static, scale: f64) -> Result<Self> {
        Self::by_row(move |x, _| reward(x), scale)
    }

    /// Of a reward that is told which of the batch's samples the states are of, where not all.
    pub fn by_row(
        reward: impl Fn(&Tensor, Option<&Range<usize>>) -> Result<Tensor> + Send + Sync + 'static,
        scale: f64,
    ) -> Result<Self> {
        if !scale.is_finite() {
            bail!(Value, "reward_cost: the scale must be finite, got {scale}");
        }
        Ok(Self { reward: Arc::new(reward), scale, rows: None })
    }
}

impl TerminalCost for RewardCost {
    fn evaluate(&self, x1: &Tensor) -> Result<Tensor> {
        (self.reward)(x1, self.rows.as_ref())
    }

    fn scale(&self) -> f64 {
        self.scale
    }

    fn of_rows(&self, rows: &Range<usize>) -> Option<Arc<dyn TerminalCost>> {
        Some(Arc::new(Self { rows: Some(rows.clone()), ..self.clone() }))
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

/// `a(1) = -lambda grad r(X_1)`, the end of the lean adjoint (arXiv:2605.06583, Algorithm 1), per sample.
///
/// A reward or gradient that is not finite is an error naming the sample.
pub fn terminal_gradient(cost: &dyn TerminalCost, x1: &Tensor) -> Result<Terminal> {
    let mut reward = None;
    // The sum's gradient holds each sample's own, for a sample's reward depends on that sample only.
    let total = |x: &Tensor| {
        let rewards = rewards(cost, x, "terminal_gradient")?;
        differentiable(&rewards, "terminal_gradient")?;
        reward = Some(rewards.constant());
        rewards.sum_all()
    };
    let (_, gradient) = phase("gradient of the reward", || value_and_grad(total, x1))?;
    let Some(reward) = reward else {
        bail!(Internal, "terminal_gradient: the reward must be evaluated, got no value");
    };
    finite_at_the_end(&gradient, "terminal_gradient", "reward's gradient")?;
    Ok(Terminal { gradient: (gradient.to_dtype(x1.dtype())? * -cost.scale())?, reward })
}

/// Rewards `[batch]` of end states, finite, with whatever graph they have.
pub fn rewards(cost: &dyn TerminalCost, x1: &Tensor, function: &str) -> Result<Tensor> {
    let (reward, batch) = (cost.evaluate(x1)?, x1.dim(0)?);
    if reward.dims() != [batch] {
        bail!(Shape, "{function}: rewards must be of shape [{batch}], got {:?}", reward.dims());
    }
    finite_at_the_end(&reward, function, "reward")?;
    Ok(reward)
}

/// `-scale * mean reward` of tracked end states with its graph, and the rewards.
pub(super) fn mean_cost(cost: &dyn TerminalCost, ends: &[Tensor], function: &str) -> Result<(Tensor, Vec<Tensor>)> {
    let scored = |x: &Tensor| {
        let rewards = rewards(cost, x, function)?;
        differentiable(&rewards, function)?;
        Ok(rewards)
    };
    let rewards = ends.iter().map(scored).collect::<Result<Vec<_>>>()?;
    Ok(((Tensor::cat(&rewards, 0)?.mean_all()? * -cost.scale())?, rewards))
}

fn finite_at_the_end(x: &Tensor, function: &str, what: &'static str) -> Result<()> {
    let function = function.to_string();
    require_finite(x, move |sample| {
        bail!(Numeric, "{function}: the {what} must be finite, got NaN or infinity for sample {sample} at t = 1")
    })
}

/// Refuses a reward of tracked states that has lost its graph.
fn differentiable(reward: &Tensor, function: &str) -> Result<()> {
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
    use amscript_tensor::Device;
    use amscript_tensor::sample::sum_per_sample;

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
            message(|x| x.narrow(1, 0, 1)?.flatten_all()?.recip()),
            "terminal_gradient: the reward must be finite, got NaN or infinity for sample 1 at t = 1"
        );
        assert_eq!(
            message(|x| x.narrow(1, 0, 1)?.flatten_all()?.sqrt()),
            "terminal_gradient: the reward's gradient must be finite, got NaN or infinity for sample 1 at t = 1"
        );
        assert_eq!(
            message(|x| sum_per_sample(&x.constant())),
            "terminal_gradient: the reward must be differentiable, got one without a gradient to the end states"
        );
        assert_eq!(message(|x| x.mean_all()), "terminal_gradient: rewards must be of shape [2], got []");
    }
}
