//! Adjoint matching: the policy's control is regressed on the optimal control for the present adjoint.

use super::adjoint::{Adjoint, AdjointIndex, lean_adjoint};
use super::cost::{Terminal, terminal_gradient};
use super::guidance::{Fields, Guidance};
use super::intensity::{control_norms, norms};
use super::loss::{Loss, MatchingOptions, fenchel_young_matching, velocity_matching};
use super::method::{Batch, Method, MethodState, Trace, Update};
use super::regularizer::{Norm, Regularizer};
use super::selection::Selection;
use super::truncation::{Adaptive, Measure, Truncation};
use crate::flow::{Grid, RolloutOptions, Trajectory, Velocity, rollout};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::profile::phase;
use amscript_tensor::check::read;
use amscript_tensor::grad::{deferred, segment};
use amscript_tensor::op::cast;
use amscript_tensor::sample::norm_per_sample;
use amscript_tensor::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// The velocity changes that the policy should have over the base at the active steps.
///
/// Deterministic steps: the optimal control `-(f')^{-1}(|a|) a / |a|` of `min_u int f(|u|) dt - lambda r(X_1)`, `dX = (v_base + u) dt`
/// (arXiv:2605.06583, Theorem 3.1). Steps with noise: `sigma / (1 + rho)` times that of `sigma a`; for the quadratic penalty `-G a` with
/// `G = w / (1 + rho)` (Appendix D.2's noise levels `w`).
pub fn control_target(adjoint: &Adjoint, regularizer: &Regularizer, norm: Norm) -> Result<Vec<Tensor>> {
    let scaled = adjoint.values.iter().zip(&adjoint.dynamics).map(|(a, step)| match step.w {
        None => Ok(a.clone()),
        Some(_) => Ok((a * step.sigma())?),
    });
    let controls = regularizer.controls_by(&scaled.collect::<Result<Vec<_>>>()?, norm)?;
    let velocities = controls.into_iter().zip(&adjoint.dynamics).map(|(u, step)| match step.w {
        None => Ok(u),
        Some(_) => Ok((u * step.control_gain())?),
    });
    velocities.collect()
}

/// `mean over batch of sum over k of |v_policy - v_base - u_k|^2` at the kept states (arXiv:2605.06583, Algorithm 1).
pub fn matching_loss(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    path: &Trajectory,
    targets: &[Tensor],
    options: &MatchingOptions,
) -> Result<Tensor> {
    let bases: Vec<Tensor> = velocities(base, path)?.iter().map(Tensor::constant).collect();
    velocity_matching(&velocities(policy, path)?, &bases, targets, path, options)
}

/// `v(X_k, t_k)` at the kept steps, with whatever graph the field has.
pub fn velocities(field: &dyn Velocity, path: &Trajectory) -> Result<Vec<Tensor>> {
    path.window().map(|k| velocity(field, path, k)).collect()
}

pub(crate) fn velocity(field: &dyn Velocity, path: &Trajectory, k: usize) -> Result<Tensor> {
    field.velocity(path.state(k)?, &path.time(k)?, &path.condition)
}

/// Truncated adjoint matching at its least cost: deterministic (arXiv:2605.06583, Algorithm 1) or, with a stochastic sampler,
/// stochastic (arXiv:2409.08861 with any noise).
///
/// N policy forwards: the rollout keeps the graph of its K active steps for the loss. K base forwards: those of the adjoint's
/// products serve the loss too. K base and K policy backwards. The numbers are those of the separate functions. Where another
/// field is rolled out, or carries the adjoint, K forwards more of the policy, or of the base; so too, over all N steps, in an
/// update that measures the control for [`Truncation::Adaptive`]. With `checkpoint_steps`, K forwards more of the policy in the backward.
#[derive(Clone)]
pub struct AdjointMatching {
    /// Grid, sampler, its noise and progress; what is kept and tracked follows from `truncate`.
    pub rollout: RolloutOptions,
    pub truncate: Truncation,
    pub regularizer: Regularizer,
    /// What the penalty takes as the size of a control.
    pub norm: Norm,
    pub index: AdjointIndex,
    pub loss: Loss,
    pub loss_options: MatchingOptions,
    /// The active steps that enter the loss, drawn for each update; where it draws, in the place of `loss_options.steps`.
    pub loss_steps: Selection,
    /// Take the terminal gradient at the end of a last step without noise, `X_{N-1} + h v_base` (arXiv:2409.08861).
    pub noise_free_end: bool,
    pub guidance: Guidance,
    /// What is rolled out instead of the policy.
    pub rollout_policy: Option<Arc<dyn Velocity>>,
    /// What carries the adjoint instead of the base.
    pub adjoint_model: Option<Arc<dyn Velocity>>,
    /// The policy runs again in the loss's backward, at one active step after the other: the memory of one graph instead of K.
    pub checkpoint_steps: bool,
}

impl AdjointMatching {
    /// The paper's choices on `grid`: every step active, quadratic penalty.
    pub fn new(grid: Grid) -> Self {
        Self {
            rollout: RolloutOptions::new(grid),
            truncate: Truncation::Full,
            regularizer: Regularizer::quadratic(),
            norm: Norm::default(),
            index: AdjointIndex::default(),
            loss: Loss::default(),
            loss_options: MatchingOptions::default(),
            loss_steps: Selection::All,
            noise_free_end: false,
            guidance: Guidance::default(),
            rollout_policy: None,
            adjoint_model: None,
            checkpoint_steps: false,
        }
    }
}

impl Method for AdjointMatching {
    fn name(&self) -> &str {
        "adjoint_matching"
    }

    fn update(
        &self,
        policy: &dyn Velocity,
        base: &dyn Velocity,
        batch: &Batch,
        state: &mut MethodState,
    ) -> Result<Update> {
        let fields = Fields::new(policy, base, &self.guidance)?;
        let fields = fields.with(&self.rollout_policy, &self.adjoint_model, &self.guidance)?;
        let rerun = if self.checkpoint_steps { Some(Rerun::of(fields.policy(), self.name())?) } else { None };
        let steps = self.rollout.grid.steps();
        let window = self.truncate.window(steps, state)?;
        let loss = self.loss_on(steps - window.keep..steps, batch)?;
        // The rollout's velocities are the loss's, and so are their graphs, unless the policy runs again.
        let reused = fields.rollout().is_none() && window.measures.is_none();
        let tracked = reused && rerun.is_none();
        let track = if tracked { loss.active(steps - window.keep..steps) } else { Vec::new() };

        let options = RolloutOptions { keep: window.keep, track, ..batch.rollout(&self.rollout) };
        let rolled_out = fields.rollout().unwrap_or(fields.policy());
        let path = rollout(rolled_out, &batch.x0, &batch.condition, &options)?;
        let end = self.end(&fields, &path, batch)?;
        let (mut path, adjoint) = self.adjoint(&fields, path, &end, (window.measures, batch), state)?;
        if !tracked {
            retrack(&mut path, fields.policy(), &loss, rerun.as_ref(), reused)?;
        }
        let loss = self.regression(&path, &adjoint, &loss)?;

        let mut update = Update::new(loss, &end.reward);
        if matches!(self.truncate, Truncation::Adaptive(_)) {
            let active = Tensor::new(path.window().len() as f64, &Device::Cpu)?;
            update.measured.insert("active".into(), active);
        }
        let sizes = control_norms(&path.velocities, &adjoint.base_velocities)?.to_dtype(DType::F64)?;
        update.measured.insert("control".into(), sizes.mean_all()?);
        update.measured.insert("intensity".into(), sizes.mean(1)?);
        // The graph stays with the loss alone, so that it is freed with it.
        path.velocities = path.velocities.iter().map(Tensor::constant).collect();
        update.trace = Some(Trace { path, end: Some(end), adjoint: Some(adjoint) });
        Ok(update)
    }
}

/// The phases of an update behind its rollout.
impl AdjointMatching {
    /// The choices of the loss, with the steps of `window` that enter this time.
    fn loss_on(&self, window: Range<usize>, batch: &Batch) -> Result<MatchingOptions> {
        let mut loss = self.loss_options.clone();
        if self.loss_steps != Selection::All {
            let stream = batch.stream("adjoint_matching: random_steps")?;
            loss.steps = stream.draw(|rng| self.loss_steps.draw(window, rng))?;
        }
        Ok(loss)
    }

    /// `a(1)` at the end of the path.
    fn end(&self, fields: &Fields, path: &Trajectory, batch: &Batch) -> Result<Terminal> {
        match self.noise_free_end {
            false => terminal_gradient(&*batch.cost, path.last()),
            true => {
                let field = fields.adjoint().unwrap_or(fields.base());
                terminal_gradient(&*batch.cost, &noise_free_end(field, path)?)
            }
        }
    }

    /// The adjoint along the active steps, with the base's velocities there. An update that measures finds these steps and keeps no others.
    fn adjoint(
        &self,
        fields: &Fields,
        path: Trajectory,
        end: &Terminal,
        (measures, batch): (Option<Adaptive>, &Batch),
        state: &mut MethodState,
    ) -> Result<(Trajectory, Adjoint)> {
        let field = fields.adjoint().unwrap_or(fields.base());
        let mut adjoint = phase("adjoint", || lean_adjoint(field, &path, &end.gradient, self.index))?;
        if adjoint.dynamics.iter().all(|step| step.control_gain() == 0.0) {
            bail!(
                Value, "adjoint_matching: a stochastic sampler must have noise at an active step, got none, so that no control can act";
                hint: "make more steps active: the last step of gddim(eta) is free of noise"
            );
        }
        let mut path = path;
        if let Some(adaptive) = measures {
            let masses = match adaptive.measure {
                Measure::Control => control_mass(&adjoint, &self.regularizer, self.norm)?,
                Measure::Objective => objective_mass(&adjoint, &self.regularizer, self.norm)?,
            };
            let active = adaptive.settle(&of_whole(&masses, batch)?, state);
            (path, adjoint) = (path.narrow(active), adjoint.narrow(active));
        }
        if fields.adjoint().is_some() {
            adjoint.base_velocities = velocities(fields.base(), &path)?.iter().map(Tensor::constant).collect();
        }
        Ok((path, adjoint))
    }

    /// The loss of the path's velocities, whose graphs it takes.
    fn regression(&self, path: &Trajectory, adjoint: &Adjoint, loss: &MatchingOptions) -> Result<Tensor> {
        match self.loss.squared(&self.regularizer, adjoint) {
            true => {
                let targets = control_target(adjoint, &self.regularizer, self.norm)?;
                velocity_matching(&path.velocities, &adjoint.base_velocities, &targets, path, loss)
            }
            false if self.norm != Norm::Sample => {
                bail!(Value, "adjoint_matching: fenchel_young() needs the size of a control to be sample_norm()")
            }
            false => fenchel_young_matching(&path.velocities, adjoint, &self.regularizer, path, loss),
        }
    }
}

/// The mean of the masses of a batch's parts, by their samples; a row for each sample, as all parts are told of one another.
fn of_whole(masses: &[f64], batch: &Batch) -> Result<Vec<f64>> {
    let (samples, steps) = (batch.x0.dim(0)?, masses.len());
    let all = batch.whole(&masses.repeat(samples))?;
    let mean = |k: usize| all.iter().skip(k).step_by(steps).sum::<f64>() / (all.len() / steps) as f64;
    match batch.part {
        Some(_) => Ok((0..steps).map(mean).collect()),
        None => Ok(masses.to_vec()),
    }
}

/// Gives the velocities that enter the loss their graph, where the rollout did not; it has their values if `reused`.
fn retrack(
    path: &mut Trajectory,
    policy: &dyn Velocity,
    loss: &MatchingOptions,
    rerun: Option<&Rerun>,
    reused: bool,
) -> Result<()> {
    for k in loss.active(path.window()) {
        let i = k - path.first;
        path.velocities[i] = match rerun {
            Some(rerun) => rerun.velocity(path, k, reused.then_some(&path.velocities[i]))?,
            None => velocity(policy, path, k)?,
        };
    }
    Ok(())
}

/// A policy that runs again at one active step after the other: K forwards more, the memory of one graph.
pub(crate) struct Rerun {
    policy: Arc<dyn Velocity>,
    variables: Vec<Tensor>,
}

impl Rerun {
    pub fn of(policy: &dyn Velocity, method: &str) -> Result<Self> {
        let needs = "checkpoint_steps needs a policy whose trained numbers it can name, got one without";
        let unknown = || Error::new(Kind::Type, format!("{method}: {needs}"));
        let rerun = policy.rerun().filter(|(_, variables)| !variables.is_empty());
        let (policy, variables) = rerun.ok_or_else(|| {
            unknown().hint("make the policy with base.lora(..) or base.trainable(), or leave checkpoint_steps out")
        })?;
        Ok(Self { policy, variables })
    }

    /// `v(X_k, t_k)`, whose graph is made in the backward; `known` is its value, where the rollout has it.
    pub fn velocity(&self, path: &Trajectory, k: usize, known: Option<&Tensor>) -> Result<Tensor> {
        let (policy, x, t, condition) =
            (self.policy.clone(), path.state(k)?.clone(), path.time(k)?, path.condition.clone());
        let run = move |_: &[Tensor]| cast(&policy.velocity(&x, &t, &condition)?, x.dtype());
        match known {
            Some(value) => deferred(value, &[], &self.variables, run),
            None => segment(&[], &self.variables, run),
        }
    }
}

/// `X_{N-1} + h v(X_{N-1})`.
fn noise_free_end(field: &dyn Velocity, path: &Trajectory) -> Result<Tensor> {
    let k = path.steps() - 1;
    let x = path.state(k)?;
    x + (velocity(field, path, k)?.constant().to_dtype(x.dtype())? * path.grid.width(k))?
}

/// The control that an adjoint asks for at each step, `h_k` times its mean size over the batch, in units of control.
pub fn control_mass(adjoint: &Adjoint, regularizer: &Regularizer, norm: Norm) -> Result<Vec<f64>> {
    let sizes = norms(&control_target(adjoint, regularizer, norm)?)?.mean(1)?;
    let mass = |(size, step): (f64, &crate::flow::Dynamics)| match step.control_gain() {
        0.0 => 0.0,
        unit => step.h * size / unit,
    };
    Ok(read(&sizes)?.into_iter().zip(&adjoint.dynamics).map(mass).collect())
}

/// What control at each step adds to the objective that can be attained, to first order in the reward scale: `h_k` times the mean of
/// `f*(sigma |a_k|) + f(0)` over the batch, with the penalty's conjugate `f*`; up to a factor that all steps share.
pub fn objective_mass(adjoint: &Adjoint, regularizer: &Regularizer, norm: Norm) -> Result<Vec<f64>> {
    let size = |(a, step): (&Tensor, &crate::flow::Dynamics)| {
        let a = (a.constant().to_dtype(DType::F64)? * step.sigma())?;
        match norm {
            Norm::Sample => norm_per_sample(&a),
            Norm::Rms => norm_per_sample(&a)? / (a.elem_count() as f64 / a.dim(0)? as f64).sqrt(),
            Norm::Entry => a.abs()?.flatten_all(),
        }
    };
    let sizes = adjoint.values.iter().zip(&adjoint.dynamics).map(size).collect::<Result<Vec<_>>>()?;
    let values = regularizer.gain(&read(&Tensor::cat(&sizes, 0)?)?)?;
    let steps = values.chunks(values.len() / sizes.len()).zip(&adjoint.dynamics);
    Ok(steps.map(|(of_step, step)| step.h * of_step.iter().sum::<f64>() / of_step.len() as f64).collect())
}
