//! Group relative policy optimisation on a stochastic path (arXiv:2505.05470), and its relatives.

use super::advantage::{Advantage, Scale, diversity, nearest, win_rates};
use super::pass::{Passes, Reference, following, mean_per_sample, value};
use super::steps::{StepWeight, Trained};
use super::transition::{Normalise, Transition};
use super::trust::Trust;
use crate::flow::{AtSteps, Draw, Dynamics, Grid, Noise, RolloutOptions, Sde, Trajectory, Velocity, rollout};
use crate::guidance::guided;
use crate::matching::{Rerun, velocity};
use crate::{Batch, Method, MethodState, Needs, Reduction, Update, rewards};
use amscript_base::bail;
use amscript_base::error::{Result, warn_once};
use amscript_base::profile::phase;
use amscript_tensor::check::read;
use amscript_tensor::{DType, Tensor};
use std::sync::Arc;

/// How far the policy is from the reference, per sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Divergence {
    /// `mean |v - v_ref|^2`, which depends on no grid or sampler.
    #[default]
    Velocity,
    /// That of the steps' means over twice the noise level, `mean |m - m_ref|^2 / 2 w`, as Flow-GRPO has it.
    Mean,
}

/// A policy gradient from the likelihood of stochastic steps: `max(-A q, -A clip(q))` with the ratio `q` of new to old policy at each trained
/// step, mean over samples and trained steps, and a pull to a reference.
///
/// N policy forwards for a rollout: the first pass takes its velocities with their graphs. Each later pass K forwards of its samples, K the trained
/// steps. K reference forwards where there is a pull. With `checkpoint_steps` K forwards more in each backward.
#[derive(Clone)]
pub struct Grpo {
    /// Grid, a stochastic sampler, progress.
    pub rollout: RolloutOptions,
    pub steps: Trained,
    pub advantage: Advantage,
    /// Multiply advantages above 0 by how far the end is from the nearest of its group (GARDO).
    pub diversity: bool,
    pub trust: Trust,
    pub normalise: Normalise,
    /// Whether log-ratios are averages over a sample's entries, as everywhere published, or sums, as of the Gaussians.
    pub reduction: Reduction,
    pub weight: StepWeight,
    /// Weight of the pull to the reference.
    pub kl: f64,
    pub divergence: Divergence,
    /// The pull is for this share of the samples alone, those whose reward the batch's further judges trust least (GARDO).
    pub gate: Option<f64>,
    pub reference: Reference,
    /// How often a rollout's samples are gone through.
    pub passes: usize,
    /// Optimizer steps of a pass, each with its part of the samples.
    pub minibatches: usize,
    /// One initial noise for all samples of a prompt.
    pub same_noise: bool,
    /// Scale of classifier-free guidance, of rollout, ratio and reference; 1 means none.
    pub guidance: f64,
    /// The policy runs again in the loss's backward, at one step after the other: the memory of one graph instead of K.
    pub checkpoint_steps: bool,
}

impl Grpo {
    /// Flow-GRPO's choices on `grid`, without its pull.
    pub fn new(grid: Grid) -> Self {
        let solver = Arc::new(Sde { noise: Noise::FlowGrpo(0.7), last: None });
        Self {
            rollout: RolloutOptions { solver, ..RolloutOptions::new(grid) },
            steps: Trained::All,
            advantage: Advantage { scale: Scale::Batch { floor: 1e-4 }, clip: Some(5.0) },
            diversity: false,
            trust: Trust::PerDimension(1e-4),
            normalise: Normalise::Plain,
            reduction: Reduction::Mean,
            weight: StepWeight::Equal,
            kl: 0.0,
            divergence: Divergence::Velocity,
            gate: None,
            reference: Reference::Base,
            passes: 1,
            minibatches: 1,
            same_noise: false,
            guidance: 1.0,
            checkpoint_steps: false,
        }
    }

    fn check(&self, samples: usize) -> Result<()> {
        self.trust.check()?;
        if !self.rollout.solver.stochastic() {
            bail!(
                Value, "grpo: the sampler must draw noise, got one that draws none, so that no step has a likelihood";
                hint: "take `sde(flow_grpo_noise(0.7))`, `cps(0.8)` or `gddim(1)`"
            );
        }
        if self.minibatches == 0 || self.passes == 0 || !samples.is_multiple_of(self.minibatches) {
            bail!(
                Value,
                "grpo: `passes` must be at least 1 and `minibatches` divide the {samples} samples, got {} and {}",
                self.passes,
                self.minibatches
            );
        }
        if self.kl == 0.0 && (self.gate.is_some() || !matches!(self.reference, Reference::Base)) {
            bail!(
                Value, "grpo: a `gate` and a `reference` go with a pull to it, got kl: 0.0";
                hint: "give a `kl` above 0, or leave them out"
            );
        }
        Ok(())
    }

    /// The paths of the parts of a batch; those of the first keep the graphs of the trained steps.
    fn roll(
        &self,
        policy: &dyn Velocity,
        batch: &Batch,
        noisy: Vec<usize>,
        trained: &[usize],
    ) -> Result<Vec<Trajectory>> {
        let samples = batch.x0.dim(0)?;
        let size = samples / self.minibatches;
        let solver = Arc::new(AtSteps { solver: self.rollout.solver.clone(), steps: noisy });
        let noise = batch.rng.clone().map(|stream| -> Draw {
            Arc::new(move |_, x| stream.draw_rows(x.dims()[0], |rng| rng.normal(x.dims(), x.dtype(), x.device())))
        });
        let draw = self.rollout.draw.clone().or(noise);
        let options = RolloutOptions { solver, draw, noises: true, ..self.rollout.clone() };
        let first =
            |i: usize| if self.same_noise { (i / batch.per_prompt * batch.per_prompt) as u32 } else { i as u32 };
        let part = |p: usize| {
            let rows: Vec<usize> = (p * size..(p + 1) * size).collect();
            let starts = Tensor::new(rows.iter().map(|i| first(*i)).collect::<Vec<_>>(), batch.x0.device())?;
            let own = rows.iter().map(|i| *i as u32).collect::<Vec<_>>();
            let condition = if size == samples { batch.condition.clone() } else { batch.condition.rows(&own)? };
            let track = if p == 0 && !self.checkpoint_steps { trained.to_vec() } else { Vec::new() };
            let options = RolloutOptions { track, ..options.clone() };
            rollout(policy, &batch.x0.index_select(&starts, 0)?, &condition, &options)
        };
        (0..self.minibatches).map(part).collect()
    }

    /// Advantages of the batch's ends, per sample.
    fn judge(&self, found: &[f64], ends: &Tensor, batch: &Batch, state: &mut MethodState) -> Result<Vec<f64>> {
        let advantages = self.advantage.of_batch(found, batch, state)?;
        if ends.trace().is_none() && advantages.iter().all(|a| *a == 0.0) {
            warn_once(
                "grpo constant",
                "grpo: all rewards of each prompt are the same, so that the update moves nothing",
            );
        }
        match self.diversity {
            true => Ok(diversity(&advantages, &nearest(ends, batch.per_prompt)?, batch.per_prompt)),
            false => Ok(advantages),
        }
    }

    /// 1 for the samples that are pulled to the reference, else 0.
    fn pulled(&self, found: &[f64], ends: &Tensor, batch: &Batch) -> Result<Vec<f64>> {
        let Some(share) = self.gate else { return Ok(vec![1.0; found.len()]) };
        if batch.auxiliary.is_empty() {
            bail!(
                Missing, "grpo: a gate needs further judges in the batch, got none";
                hint: "give some as `auxiliary`, or leave the gate out; experiments give the rewards of `watch`"
            );
        }
        let others = batch
            .auxiliary
            .iter()
            .map(|judge| Ok(win_rates(&batch.whole(&read(&rewards(&**judge, ends, "grpo: auxiliary")?)?)?)));
        let others = others.collect::<Result<Vec<_>>>()?;
        let own = win_rates(&batch.whole(found)?);
        let distrust = |i: usize| own[i] - others.iter().map(|rates| rates[i]).sum::<f64>() / others.len() as f64;
        let mut order: Vec<usize> = (0..own.len()).collect();
        order.sort_by(|a, b| distrust(*b).total_cmp(&distrust(*a)));
        let mut gate = vec![0.0; own.len()];
        order.iter().take((share * own.len() as f64).ceil() as usize).for_each(|i| gate[*i] = 1.0);
        Ok(batch.own(gate))
    }
}

impl Method for Grpo {
    fn name(&self) -> &str {
        "grpo"
    }

    fn needs(&self) -> Needs {
        Needs { gradient: false, groups: self.advantage.groups() }
    }

    fn update(
        &self,
        policy: &dyn Velocity,
        base: &dyn Velocity,
        batch: &Batch,
        state: &mut MethodState,
    ) -> Result<Update> {
        self.check(batch.x0.dim(0)?)?;
        let count = state.number("updates") as usize;
        state.numbers.insert("updates".into(), (count + 1) as f64);
        let stream = || batch.stream("grpo: a choice of steps").cloned();
        let [noisy, trained] = self.steps.draw(self.rollout.grid.steps(), count, stream)?;
        if self.kl > 0.0 {
            self.reference.follow(policy, state)?;
        }
        let guided = guided(policy, self.guidance)?;
        let field = guided.as_deref().unwrap_or(policy);
        let mut paths = self.roll(field, batch, noisy, &trained)?;
        let tracked =
            (!self.checkpoint_steps).then(|| trained.iter().map(|k| paths[0].velocities[*k].clone()).collect());
        paths[0].velocities = paths[0].velocities.iter().map(Tensor::constant).collect();

        let ends = Tensor::cat(&paths.iter().map(|path| path.last().clone()).collect::<Vec<_>>(), 0)?;
        let reward = phase("reward", || rewards(&*batch.cost, &ends, "grpo"))?.constant();
        let found = read(&reward)?;
        let row = |numbers: Vec<f64>| Tensor::new(numbers, batch.x0.device())?.to_dtype(batch.x0.dtype());
        let advantages = row(self.judge(&found, &ends, batch, state)?)?;
        let gate = if self.kl > 0.0 { Some(row(self.pulled(&found, &ends, batch)?)?) } else { None };
        let references = match self.kl > 0.0 {
            false => Vec::new(),
            true => phase("reference", || {
                self.reference.with([policy, base], self.guidance, state, |field| {
                    let at = |path: &Trajectory| {
                        trained
                            .iter()
                            .map(|k| value(field, path.state(*k)?, &path.time(*k)?, &path.condition))
                            .collect()
                    };
                    paths.iter().map(at).collect::<Result<Vec<Vec<_>>>>()
                })
            })?,
        };
        let dynamics = trained.iter().map(|k| paths[0].dynamics(*k)).collect::<Result<Vec<_>>>()?;
        let weights = self.weight.of(&trained, &*self.rollout.solver, &self.rollout.grid)?;
        let rolled = Arc::new(Rolled {
            method: self.clone(),
            paths,
            trained,
            dynamics,
            weights,
            advantages,
            gate,
            references,
            reward,
        });
        Ok(Update { next: following(&rolled, 1), ..rolled.loss(0, policy, tracked)? })
    }
}

/// A batch's paths, judged: what all passes read.
struct Rolled {
    method: Grpo,
    paths: Vec<Trajectory>,
    trained: Vec<usize>,
    dynamics: Vec<Dynamics>,
    weights: Vec<f64>,
    /// Of the whole batch, as are `gate` and `reward`.
    advantages: Tensor,
    gate: Option<Tensor>,
    /// By part and trained step.
    references: Vec<Vec<Tensor>>,
    reward: Tensor,
}

impl Passes for Rolled {
    fn count(&self) -> usize {
        self.method.passes * self.method.minibatches
    }

    fn pass(&self, i: usize, policy: &dyn Velocity) -> Result<Update> {
        self.loss(i, policy, None)
    }
}

impl Rolled {
    /// The loss of pass `i`; `known` are its velocities, where the rollout has them.
    fn loss(&self, i: usize, policy: &dyn Velocity, known: Option<Vec<Tensor>>) -> Result<Update> {
        let (method, p) = (&self.method, i % self.paths.len());
        let path = &self.paths[p];
        let (size, numbers) = (path.last().dim(0)?, path.last().elem_count() / path.last().dim(0)?.max(1));
        let advantages = self.advantages.narrow(0, p * size, size)?;
        let guided = guided(policy, method.guidance)?;
        let field = guided.as_deref().unwrap_or(policy);
        let rerun = if method.checkpoint_steps { Some(Rerun::of(field, method.name())?) } else { None };
        let mut parts = Vec::new();
        let (mut ratios, mut beyond, mut pulls) = (Vec::new(), Vec::new(), Vec::new());
        for (j, k) in self.trained.iter().enumerate() {
            let v = match (&known, &rerun) {
                (Some(known), _) => known[j].clone(),
                (None, Some(rerun)) => rerun.velocity(path, *k, (i == 0).then_some(&path.velocities[*k]))?,
                (None, None) => velocity(field, path, *k)?,
            };
            let step = Transition::new(path, *k, &v, method.reduction)?;
            let (ratio, divergence) = (step.log_ratio(method.normalise)?.exp()?, step.divergence()?);
            let objective = method.trust.objective(&ratio, &divergence, &advantages, numbers)?;
            parts.push((objective.mean_all()? * self.weights[j])?);
            beyond.push(method.trust.beyond(&ratio, &divergence, numbers, i > 0)?);
            ratios.push(ratio.constant().mean_all()?);
            if let Some(gate) = &self.gate {
                let away = mean_per_sample(&(v.to_dtype(path.last().dtype())? - &self.references[p][j])?.sqr()?)?;
                let away = match method.divergence {
                    Divergence::Velocity => away,
                    Divergence::Mean => (away * self.pull(j))?,
                };
                let pull = (away * gate.narrow(0, p * size, size)?)?.mean_all()?;
                pulls.push(pull.constant());
                parts.push((pull * method.kl)?);
            }
        }
        let over = |parts: &[Tensor]| Tensor::stack(parts, 0)?.sum_all()? * (1.0 / self.trained.len() as f64);
        let mut update = Update::new(over(&parts)?, &self.reward);
        update.measured.insert("ratio".into(), over(&ratios)?);
        update.measured.insert("clipped".into(), over(&beyond)?);
        if self.gate.is_some() {
            update.measured.insert("kl".into(), over(&pulls)?);
        }
        let silent = self.advantages.eq(0.0)?.to_dtype(DType::F32)?.mean_all()?;
        update.measured.insert("silent".into(), silent);
        Ok(update)
    }

    /// `(h (1 + rho))^2 / 2 w`.
    fn pull(&self, j: usize) -> f64 {
        let step = &self.dynamics[j];
        step.reach().powi(2) / (2.0 * step.w.unwrap_or(f64::INFINITY))
    }
}
