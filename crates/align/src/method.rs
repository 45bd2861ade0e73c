//! What a method of alignment is: from a batch to losses, and the work around it that is the same for all.

use super::adjoint::Adjoint;
use super::cost::{Terminal, TerminalCost};
use super::parts::Part;
use crate::flow::{Condition, RolloutOptions, Trajectory, Velocity, draws};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_tensor::check::deferred_checks;
use amscript_tensor::{Stream, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one update starts from.
#[derive(Clone)]
pub struct Batch {
    /// Noise `[batch, ..]`.
    pub x0: Tensor,
    /// One row per sample.
    pub condition: Condition,
    /// What end states are judged by.
    pub cost: Arc<dyn TerminalCost>,
    /// Further judges, which methods may ask how far the first is to be trusted.
    pub auxiliary: Vec<Arc<dyn TerminalCost>>,
    /// How many samples each prompt has; they follow one another.
    pub per_prompt: usize,
    /// What the update draws from: a sampler's noise, the steps that it chooses.
    pub rng: Option<Stream>,
    /// Which part of a batch this is, where it is one: see [`crate::parts`].
    pub part: Option<Part>,
}

impl Batch {
    /// Samples of a prompt each, for updates that draw nothing.
    pub fn new(x0: &Tensor, condition: &Condition, cost: impl TerminalCost + 'static) -> Self {
        let (cost, auxiliary) = (Arc::new(cost), Vec::new());
        Self { x0: x0.clone(), condition: condition.clone(), cost, auxiliary, per_prompt: 1, rng: None, part: None }
    }

    /// The random stream that `what` needs.
    pub fn stream(&self, what: &str) -> Result<&Stream> {
        let missing = || Error::new(Kind::Missing, format!("{what} needs a random stream, got none"));
        self.rng.as_ref().ok_or_else(|| missing().hint("give one as `rng`, such as `rng: run.rng(\"steps\")`"))
    }

    /// These options with this batch's noise, unless they have a draw of their own.
    pub fn rollout(&self, options: &RolloutOptions) -> RolloutOptions {
        let draw = options.draw.clone().or_else(|| self.rng.clone().map(draws));
        RolloutOptions { draw, ..options.clone() }
    }
}

/// What a method asks of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A reward that can be differentiated.
    pub gradient: bool,
    /// Several samples of each prompt, whose rewards are compared.
    pub groups: bool,
}

/// What a method keeps from one update of a run to the next, under names of its own. A run's checkpoints hold it as a whole.
#[derive(Clone, Debug, Default)]
pub struct MethodState {
    pub numbers: BTreeMap<String, f64>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl MethodState {
    /// A number of that name; 0 where there is none yet.
    pub fn number(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or_default()
    }
}

/// Gives the next update of the same batch, for the policy as an optimizer's step has left it.
pub type Next = Arc<dyn Fn(&dyn Velocity) -> Result<Update> + Send + Sync>;

/// What an update found.
#[derive(Clone)]
pub struct Update {
    /// Scalars with their graphs, which the optimizer's step takes the sum of.
    pub losses: Vec<Tensor>,
    /// Rewards `[batch]`.
    pub reward: Tensor,
    /// Further numbers for the log, by name.
    pub measured: BTreeMap<String, Tensor>,
    pub trace: Option<Trace>,
    /// How many samples the losses are means over, where these are not all of the batch.
    pub weight: Option<f64>,
    /// Methods that take several steps from one batch: the next one.
    pub next: Option<Next>,
}

impl Update {
    /// A loss with its graph, and the rewards that it came from.
    pub fn new(loss: Tensor, reward: &Tensor) -> Self {
        let (losses, measured) = (vec![loss], BTreeMap::new());
        Self { losses, reward: reward.constant(), measured, trace: None, weight: None, next: None }
    }

    /// The sum of the losses.
    pub fn loss(&self) -> Result<Tensor> {
        match &self.losses[..] {
            [loss] => Ok(loss.clone()),
            losses => Tensor::stack(losses, 0)?.sum_all(),
        }
    }
}

/// What an update passed on its way, without graphs.
#[derive(Clone)]
pub struct Trace {
    pub path: Trajectory,
    /// Its end, judged.
    pub end: Option<Terminal>,
    pub adjoint: Option<Adjoint>,
}

/// A way to align a policy: from a batch to what is to be minimised. [`update`] is how it is called.
pub trait Method: Send + Sync {
    /// As errors call it.
    fn name(&self) -> &str;

    fn needs(&self) -> Needs {
        Needs { gradient: true, groups: false }
    }

    /// The losses of one batch, each a mean over its samples, with their graphs to the policy. The optimizer's step is the caller's.
    ///
    /// The batch may be a part of a larger one: what depends on other samples than a prompt's asks for [`Batch::whole`].
    fn update(
        &self,
        policy: &dyn Velocity,
        base: &dyn Velocity,
        batch: &Batch,
        state: &mut MethodState,
    ) -> Result<Update>;
}

/// One update of any method: the batch is checked first, what is computed on the way is checked together at the end, and an
/// update that fails leaves the state as it was.
pub fn update(
    method: &dyn Method,
    policy: &dyn Velocity,
    base: &dyn Velocity,
    batch: &Batch,
    state: &mut MethodState,
) -> Result<Update> {
    let (name, samples) = (method.name(), batch.x0.dims().first().copied().unwrap_or_default());
    usable(method, batch, samples)?;
    let mut next = state.clone();
    let update = deferred_checks(|| method.update(policy, base, batch, &mut next))?;
    if update.reward.dims() != [samples] {
        bail!(Shape, "{name}: rewards must be of shape [{samples}], got {:?}", update.reward.dims());
    }
    if update.losses.is_empty() || update.losses.iter().any(|loss| loss.rank() != 0) {
        let got: Vec<_> = update.losses.iter().map(|loss| loss.dims()).collect();
        bail!(Shape, "{name}: losses must be one scalar or more, got shapes {got:?}");
    }
    *state = next;
    Ok(update)
}

/// Refuses a batch that the method cannot use.
fn usable(method: &dyn Method, batch: &Batch, samples: usize) -> Result<()> {
    let (name, needs, group) = (method.name(), method.needs(), batch.per_prompt);
    if needs.gradient && !batch.cost.differentiable() {
        bail!(
            Value, "{name}: the reward must be differentiable, got one that has no gradient";
            hint: "take a method that only compares rewards, or a reward with a gradient"
        );
    }
    if group == 0 || !samples.is_multiple_of(group) {
        bail!(Value, "{name}: `per_prompt` must divide the {samples} samples of the batch, got {group}");
    }
    if needs.groups && group < 2 {
        bail!(
            Value, "{name}: there must be several samples of each prompt, got {group}";
            hint: "draw groups with `per_prompt`, such as `per_prompt: 8`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RewardCost;
    use amscript_tensor::sample::sum_per_sample;
    use amscript_tensor::{DType, Device};

    /// `v = 0`, whatever the state.
    struct Still;

    impl Velocity for Still {
        fn velocity(&self, x: &Tensor, _: &Tensor, _: &Condition) -> Result<Tensor> {
            x.zeros_like()
        }
    }

    /// Rewards above their group's mean, two losses, and a count of updates; fails where the noise is not finite.
    struct Compared;

    impl Method for Compared {
        fn name(&self) -> &str {
            "compared"
        }

        fn needs(&self) -> Needs {
            Needs { groups: true, gradient: false }
        }

        fn update(&self, _: &dyn Velocity, _: &dyn Velocity, batch: &Batch, state: &mut MethodState) -> Result<Update> {
            *state.numbers.entry("updates".into()).or_default() += 1.0;
            let reward = super::super::rewards(&*batch.cost, &batch.x0, self.name())?;
            let groups = reward.reshape(((), batch.per_prompt))?;
            let above = groups.broadcast_sub(&groups.mean_keepdim(1)?)?.sqr()?.mean_all()?;
            Ok(Update { losses: vec![above.clone(), (above * 2.0)?], ..Update::new(groups.mean_all()?, &reward) })
        }
    }

    fn batch(numbers: &[f64], per_prompt: usize) -> Batch {
        let x0 = Tensor::new(numbers, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let cost = RewardCost::new(sum_per_sample, 1.0).unwrap();
        Batch { per_prompt, ..Batch::new(&x0, &Condition::default(), cost) }
    }

    fn message(batch: &Batch, state: &mut MethodState) -> String {
        super::update(&Compared, &Still, &Still, batch, state).map(|_| ()).unwrap_err().message
    }

    #[test]
    fn losses_are_summed_and_a_failed_update_leaves_the_state() {
        let mut state = MethodState::default();
        let update = super::update(&Compared, &Still, &Still, &batch(&[1.0, 3.0, 0.0, 0.0], 2), &mut state).unwrap();
        assert_eq!(update.loss().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap(), 1.5);
        assert_eq!(
            message(&batch(&[1.0, f64::NAN], 2), &mut state),
            "compared: the reward must be finite, got NaN or infinity for sample 1 at t = 1"
        );
        assert_eq!(state.number("updates"), 1.0);
    }

    #[test]
    fn a_batch_that_cannot_serve_is_refused_before_the_update() {
        let mut state = MethodState::default();
        assert_eq!(
            message(&batch(&[1.0, 2.0], 1), &mut state),
            "compared: there must be several samples of each prompt, got 1"
        );
        assert_eq!(
            message(&batch(&[1.0, 2.0, 3.0], 2), &mut state),
            "compared: `per_prompt` must divide the 3 samples of the batch, got 2"
        );
        assert!(state.numbers.is_empty());
    }
}
