//! Methods of the forward process: ends are judged, noised anew, and the error of the velocity there is weighed by how good the end is.

use super::advantage::Advantage;
use super::ends::{Ends, Noised, Times, noised};
use super::explore::pairs;
use super::follow::{Follow, Follower};
use super::pass::{Passes, Reference, following, value};
use super::regression::{Errors, Regression};
use crate::flow::{Condition, Grid, RolloutOptions, Velocity, rollout};
use crate::guidance::guided;
use crate::{Batch, Method, MethodState, Needs, Update, rewards};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::Tensor;
use amscript_tensor::check::read;
use std::sync::Arc;

/// What weighs an end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowWeight {
    /// Its advantage, divided by a number.
    Advantage(Advantage, f64),
    /// `exp(scale r)` over its mean: the flow of the law tilted by the reward (RWR).
    Tilt,
    /// `scale r`, which must not be negative (RAM).
    Reward,
}

/// Regression at noised ends, for all methods that need a reward's value and no path.
///
/// N forwards for the ends; each pass T forwards of the policy, T the times of an end, and T of the old policy and of the reference where the loss
/// has them. Pairs leave all but two samples of a prompt out.
#[derive(Clone)]
pub struct Forward {
    /// Grid and sampler of the ends, progress.
    pub rollout: RolloutOptions,
    pub ends: Ends,
    pub weight: RowWeight,
    pub loss: Regression,
    /// Weight of the squared distance from the reference.
    pub anchor: f64,
    pub reference: Reference,
    /// How the old policy follows.
    pub old: Follow,
    /// Times of an end in a pass.
    pub times: usize,
    pub law: Times,
    /// The latest time.
    pub until: f64,
    /// Optimizer steps of a batch, each with new noise.
    pub passes: usize,
    /// Scale of classifier-free guidance of the ends; 1 means none.
    pub guidance: f64,
}

/// The copy of the policy in a method's state.
const OLD: &str = "old";

impl Forward {
    /// A loss of ends by the policy, weighed by advantages, on `grid`.
    pub fn new(grid: Grid, weight: RowWeight, loss: Regression) -> Self {
        Self {
            rollout: RolloutOptions::new(grid),
            ends: Ends::Policy,
            weight,
            loss,
            anchor: 0.0,
            reference: Reference::Base,
            old: Follow::Decay(0.0),
            times: 1,
            law: Times::Uniform,
            until: 1.0,
            passes: 1,
            guidance: 1.0,
        }
    }

    fn check(&self) -> Result<()> {
        self.old.check()?;
        if self.times == 0 || self.passes == 0 {
            bail!(
                Value,
                "forward_process: `times` and `passes` must be at least 1, got {} and {}",
                self.times,
                self.passes
            );
        }
        // Rewards as weights are checked when they are known.
        let range = match self.weight {
            _ if matches!(self.loss, Regression::Pairs { .. }) => [1.0, 1.0],
            RowWeight::Advantage(advantage, divided) => {
                let most = advantage.clip.unwrap_or(f64::INFINITY) / divided;
                [-most, most]
            }
            RowWeight::Tilt => [f64::MIN_POSITIVE, f64::INFINITY],
            RowWeight::Reward => [f64::MIN_POSITIVE; 2],
        };
        self.loss.check(range, self.anchor)?;
        if !self.needs_reference() && !matches!(self.reference, Reference::Base) {
            bail!(
                Value, "forward_process: a `reference` goes with an anchor or a loss that is held against it, got anchor: 0.0";
                hint: "give an `anchor` above 0, or leave it out"
            );
        }
        Ok(())
    }

    fn needs_old(&self) -> bool {
        self.ends == Ends::Old || self.loss.needs_old()
    }

    fn needs_reference(&self) -> bool {
        self.anchor != 0.0 || self.loss.needs_reference()
    }

    /// Ends `[n, ..]` of a batch.
    fn ends(&self, [policy, base]: [&dyn Velocity; 2], batch: &Batch, state: &MethodState) -> Result<Tensor> {
        let options = RolloutOptions { keep: 0, ..batch.rollout(&self.rollout) };
        let roll = |field: &dyn Velocity| {
            let guided = guided(field, self.guidance)?;
            Ok(rollout(guided.as_deref().unwrap_or(field), &batch.x0, &batch.condition, &options)?.last().clone())
        };
        match self.ends {
            Ends::Policy => roll(policy),
            Ends::Base => roll(base),
            Ends::Old => Follower::new(OLD, policy)?.with(state, roll),
        }
    }

    /// The rows that are learnt from, their weights, how many of a prompt follow one another, and which share of the batch counts.
    fn weigh(&self, reward: &[f64], batch: &Batch, state: &mut MethodState) -> Result<Weighed> {
        let all = (0..reward.len() as u32).collect::<Vec<_>>();
        if let Regression::Pairs { .. } = self.loss {
            let rows = pairs(reward, batch.per_prompt);
            // A batch without a preference has no gradient: a pair of one sample with itself.
            let rows = if rows.is_empty() { vec![0, 0] } else { rows };
            let weights = vec![1.0; rows.len()];
            return Ok(Weighed { rows, weights, group: 2, effective: None });
        }
        let scale = batch.cost.scale();
        let mut effective = None;
        let weights = match &self.weight {
            RowWeight::Advantage(advantage, divided) => {
                let found = advantage.of_batch(reward, batch, state)?;
                found.into_iter().map(|a| a / divided).collect()
            }
            RowWeight::Tilt => {
                let reward = batch.whole(reward)?;
                let most = reward.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let raw: Vec<f64> = reward.iter().map(|r| (scale * (r - most)).exp()).collect();
                let mean = raw.iter().sum::<f64>() / raw.len() as f64;
                effective = Some(raw.len() as f64 * mean * mean / raw.iter().map(|w| w * w).sum::<f64>());
                batch.own(raw.into_iter().map(|w| w / mean).collect())
            }
            RowWeight::Reward => {
                let weights: Vec<f64> = reward.iter().map(|r| scale * r).collect();
                let range = [f64::min, f64::max].map(|pick| weights.iter().copied().reduce(pick).unwrap_or_default());
                self.loss.check(range, self.anchor)?;
                weights
            }
        };
        Ok(Weighed { rows: all, weights, group: batch.per_prompt, effective })
    }

    /// What all passes read of the rows, with old and reference velocities.
    fn draw(
        &self,
        [policy, base]: [&dyn Velocity; 2],
        rows: &Rows,
        batch: &Batch,
        state: &MethodState,
    ) -> Result<Vec<Vec<At>>> {
        let stream = batch.stream("forward_process")?;
        let draw = || noised(&rows.ends, self.law, self.until, self.loss.share(rows.group), stream);
        let drawn = (0..self.passes * self.times).map(|_| draw()).collect::<Result<Vec<_>>>()?;
        let values = |field: &dyn Velocity| {
            drawn.iter().map(|n| value(field, &n.x, &n.t, &rows.condition).map(Some)).collect::<Result<Vec<_>>>()
        };
        let none = || vec![None; drawn.len()];
        let old = if self.loss.needs_old() { Follower::new(OLD, policy)?.with(state, values)? } else { none() };
        let reference =
            if self.needs_reference() { self.reference.with([policy, base], 1.0, state, values)? } else { none() };
        let at = drawn.into_iter().zip(old).zip(reference).map(|((at, old), reference)| At { at, old, reference });
        let at: Vec<At> = at.collect();
        Ok(at.chunks(self.times).map(<[At]>::to_vec).collect())
    }
}

impl Method for Forward {
    fn name(&self) -> &str {
        "forward_process"
    }

    fn needs(&self) -> Needs {
        let groups = match (&self.loss, &self.weight) {
            (Regression::Pairs { .. }, _) => true,
            (_, RowWeight::Advantage(advantage, _)) => advantage.groups(),
            _ => false,
        };
        Needs { gradient: false, groups }
    }

    fn update(
        &self,
        policy: &dyn Velocity,
        base: &dyn Velocity,
        batch: &Batch,
        state: &mut MethodState,
    ) -> Result<Update> {
        self.check()?;
        if self.needs_old() {
            Follower::new(OLD, policy)?.follow(&self.old, state)?;
        }
        if self.needs_reference() {
            self.reference.follow(policy, state)?;
        }
        let ends = self.ends([policy, base], batch, state)?;
        let reward = phase("reward", || rewards(&*batch.cost, &ends, self.name()))?.constant();
        let Weighed { rows, weights, group, effective } = self.weigh(&read(&reward)?, batch, state)?;
        let learnt = rows.len() as f64;
        let chosen = Tensor::new(&rows[..], ends.device())?;
        let rows = Rows {
            ends: ends.index_select(&chosen, 0)?,
            condition: batch.condition.rows(&rows)?,
            weights: Tensor::new(weights, ends.device())?.to_dtype(ends.dtype())?,
            group,
        };
        let draws = phase("reference", || self.draw([policy, base], &rows, batch, state))?;
        let judged = Arc::new(Judged { loss: self.loss, anchor: self.anchor, rows, draws, reward });
        let mut update = judged.pass(0, policy)?;
        if let Some(share) = effective {
            update.measured.insert("effective".into(), Tensor::new(share, &amscript_tensor::Device::Cpu)?);
        }
        Ok(Update { next: following(&judged, 1), weight: Some(learnt), ..update })
    }
}

/// What weighs the ends.
struct Weighed {
    rows: Vec<u32>,
    weights: Vec<f64>,
    group: usize,
    effective: Option<f64>,
}

/// The ends that are learnt from.
struct Rows {
    ends: Tensor,
    condition: Condition,
    weights: Tensor,
    group: usize,
}

/// Noised ends, and what others than the policy say there.
#[derive(Clone)]
struct At {
    at: Noised,
    old: Option<Tensor>,
    reference: Option<Tensor>,
}

/// A batch's ends, judged: what all passes read.
struct Judged {
    loss: Regression,
    anchor: f64,
    rows: Rows,
    /// By pass, then time.
    draws: Vec<Vec<At>>,
    reward: Tensor,
}

impl Passes for Judged {
    fn count(&self) -> usize {
        self.draws.len()
    }

    fn pass(&self, i: usize, policy: &dyn Velocity) -> Result<Update> {
        let times = &self.draws[i];
        let losses = times.iter().map(|drawn| {
            let v = drawn.at.velocity(policy, &self.rows.condition)?;
            let errors = Errors {
                at: &drawn.at,
                policy: &v,
                old: drawn.old.as_ref(),
                reference: drawn.reference.as_ref(),
                weight: &self.rows.weights,
                group: self.rows.group,
            };
            phase("loss", || self.loss.loss(&errors, self.anchor)? * (1.0 / times.len() as f64))
        });
        let losses = losses.collect::<Result<Vec<_>>>()?;
        Ok(Update { losses: losses.clone(), ..Update::new(losses[0].clone(), &self.reward) })
    }
}
