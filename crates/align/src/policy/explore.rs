//! Choosing samples before a method learns from them.

use crate::flow::{Grid, RolloutOptions, Velocity, rollout};
use crate::{Batch, Method, MethodState, Needs, Update, rewards};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::Tensor;
use amscript_tensor::check::read;
use std::sync::Arc;

/// Which candidates of a prompt are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kept {
    /// Half the best, half the worst (Sol-RL, DanceGRPO).
    #[default]
    BestWorst,
    /// Those whose rewards are furthest from the mean.
    FarFromMean,
    Best,
}

/// The best and the worst sample of each group in turn; groups whose rewards are all the same have none.
pub fn pairs(rewards: &[f64], group: usize) -> Vec<u32> {
    let pair = |(g, rows): (usize, &[f64])| {
        let extreme = |sign: f64| (0..rows.len()).max_by(|a, b| (sign * rows[*a]).total_cmp(&(sign * rows[*b])));
        let both = [extreme(1.0), extreme(-1.0)].map(|i| i.unwrap_or_default());
        let differ = rows[both[0]] > rows[both[1]];
        both.into_iter().filter(move |_| differ).map(move |i| (g * group + i) as u32)
    };
    rewards.chunks(group.max(1)).enumerate().flat_map(pair).collect()
}

/// The rows of `keep` samples of each group, rising.
pub fn select(rewards: &[f64], group: usize, keep: usize, how: Kept) -> Result<Vec<u32>> {
    if group == 0 || !rewards.len().is_multiple_of(group) || !(1..=group).contains(&keep) {
        bail!(
            Value,
            "select: groups must divide the {} rewards and be at least as large as what is kept, got groups of {group}, {keep} kept",
            rewards.len()
        );
    }
    let chosen = |(g, rows): (usize, &[f64])| {
        let mean = rows.iter().sum::<f64>() / rows.len() as f64;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|a, b| rows[*b].total_cmp(&rows[*a]));
        match how {
            Kept::Best => order.truncate(keep),
            Kept::BestWorst => drop(order.drain(keep / 2..group - (keep - keep / 2))),
            Kept::FarFromMean => {
                order.sort_by(|a, b| (rows[*b] - mean).abs().total_cmp(&(rows[*a] - mean).abs()));
                order.truncate(keep);
            }
        }
        order.sort_unstable();
        order.into_iter().map(move |i| (g * group + i) as u32)
    };
    Ok(rewards.chunks(group).enumerate().flat_map(chosen).collect())
}

/// Explore cheaply, then train (Sol-RL, arXiv:2604.06916): many noises of each prompt are drawn, rolled out on a coarse grid and judged, and a method
/// starts from the batch's number of them.
///
/// M n forwards more than the method's, for M candidates a prompt over n coarse steps.
#[derive(Clone)]
pub struct Explore {
    pub method: Arc<dyn Method>,
    /// Grid and sampler of the preview, progress.
    pub preview: RolloutOptions,
    /// Noises of a prompt.
    pub candidates: usize,
    pub kept: Kept,
}

impl Explore {
    /// So many candidates, seen over `grid`.
    pub fn new(method: Arc<dyn Method>, grid: Grid, candidates: usize) -> Self {
        Self { method, preview: RolloutOptions::new(grid), candidates, kept: Kept::default() }
    }

    /// The batch that the method starts from.
    pub fn chosen(&self, policy: &dyn Velocity, batch: &Batch) -> Result<Batch> {
        let (samples, group, all) = (batch.x0.dim(0)?, batch.per_prompt, self.candidates);
        if all == 0 || !all.is_multiple_of(group) {
            bail!(Value, "explore: candidates must be a multiple of the samples of a prompt, {group}, got {all}");
        }
        let (mut dims, prompts) = (batch.x0.dims().to_vec(), samples / group);
        dims[0] = prompts * all;
        let draw = |rng: &mut amscript_tensor::Rng| rng.normal(&dims, batch.x0.dtype(), batch.x0.device());
        let x0 = batch.stream("explore")?.draw(draw)?;
        let options = RolloutOptions { keep: 0, ..batch.rollout(&self.preview) };
        let mut found = vec![0.0; prompts * all];
        // As many at a time as the batch has, whose rows the cost knows the prompts of.
        for first in (0..all).step_by(group) {
            let of_prompt = |p: usize| (first..first + group).map(move |c| (p * all + c) as u32);
            let rows: Vec<u32> = (0..prompts).flat_map(of_prompt).collect();
            let some = x0.index_select(&Tensor::new(&rows[..], x0.device())?, 0)?;
            let ends = rollout(policy, &some, &batch.condition, &options)?.last().clone();
            let judged = read(&rewards(&*batch.cost, &ends, "explore")?)?;
            rows.iter().zip(judged).for_each(|(row, reward)| found[*row as usize] = reward);
        }
        let rows = Tensor::new(select(&found, all, group, self.kept)?, x0.device())?;
        Ok(Batch { x0: x0.index_select(&rows, 0)?, ..batch.clone() })
    }
}

impl Method for Explore {
    fn name(&self) -> &str {
        "explore"
    }

    fn needs(&self) -> Needs {
        Needs { groups: true, ..self.method.needs() }
    }

    fn update(
        &self,
        policy: &dyn Velocity,
        base: &dyn Velocity,
        batch: &Batch,
        state: &mut MethodState,
    ) -> Result<Update> {
        let batch = phase("explore", || self.chosen(policy, batch))?;
        self.method.update(policy, base, &batch, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_kept_in_the_order_of_the_samples() {
        let r = [3.0, 1.0, 2.0, 5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0];
        assert_eq!(pairs(&r, 5), [3, 1]);
        assert_eq!(pairs(&[1.0, 2.0, 2.0, 0.0], 2), [1, 0, 2, 3]);
        assert_eq!(select(&r[..5], 5, 3, Kept::BestWorst).unwrap(), [1, 2, 3]);
        assert_eq!(select(&r[..5], 5, 2, Kept::Best).unwrap(), [3, 4]);
        assert_eq!(select(&r, 5, 2, Kept::FarFromMean).unwrap()[..2], [1, 3]);
        assert_eq!(select(&r, 5, 5, Kept::BestWorst).unwrap().len(), 10);
        assert!(select(&r, 3, 2, Kept::Best).is_err() && select(&r, 5, 6, Kept::Best).is_err());
    }
}
