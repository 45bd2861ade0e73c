//! Losses of adjoint matching, from velocities at hand.

use super::adjoint::Adjoint;
use super::regularizer::Regularizer;
use crate::flow::{Dynamics, Trajectory};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_tensor::check::read;
use amscript_tensor::sample::{norm_per_sample, sum_per_sample};
use amscript_tensor::{DType, Tensor};
use std::ops::Range;

/// How errors are put together over active steps and latent entries; over the batch it is always the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// Sums, as in the paper.
    #[default]
    Sum,
    /// Means: the loss does not grow with the number of active steps or with the latent.
    Mean,
}

/// What errors are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Units {
    /// Velocity: `|v_policy - v_base + G a|^2`.
    #[default]
    Velocity,
    /// Control, `u = (1 + rho) / sigma (v_policy - v_base)`: `|u + sigma a|^2`. The same without noise.
    Control,
}

/// How far a control is from the one an adjoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loss {
    /// Squared where that has the right mean: without noise, or with the quadratic penalty. Else that of Fenchel and Young.
    #[default]
    Automatic,
    /// The squared distance from the control target.
    Squared,
    /// `f(|u|) + f*(sigma |a|) + sigma a . u`, which is smallest on average at the control for the adjoint's mean.
    FenchelYoung,
}

impl Loss {
    /// Whether the squared distance is taken.
    pub fn squared(self, regularizer: &Regularizer, adjoint: &Adjoint) -> bool {
        let exact = regularizer.is_quadratic() || adjoint.dynamics.iter().all(|step| step.w.is_none());
        self == Loss::Squared || (self == Loss::Automatic && exact)
    }
}

/// Choices in the matching loss.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MatchingOptions {
    pub reduction: Reduction,
    pub units: Units,
    /// Weight each step with its width `h_k`, so that the sum is an integral over time.
    pub weighted: bool,
    /// The active steps that enter; none means all.
    pub steps: Option<Vec<usize>>,
    /// The most that one sample counts at one step; what is above has no gradient (arXiv:2409.08861).
    pub clip: Option<f64>,
}

impl MatchingOptions {
    /// The steps of `window` that enter the loss.
    pub fn active(&self, window: Range<usize>) -> Vec<usize> {
        window.filter(|k| self.steps.as_ref().is_none_or(|steps| steps.contains(k))).collect()
    }
}

/// `mean over batch of sum over k of |v_policy - v_base - u_k|^2` (arXiv:2605.06583, Algorithm 1); gradients flow to `policy` only.
pub fn velocity_matching(
    policy: &[Tensor],
    base: &[Tensor],
    targets: &[Tensor],
    path: &Trajectory,
    options: &MatchingOptions,
) -> Result<Tensor> {
    let steps = path.window().len();
    if [policy.len(), base.len(), targets.len()] != [steps; 3] {
        let got = (policy.len(), base.len(), targets.len());
        bail!(
            Shape,
            "matching_loss: there must be one velocity and one target for each of {steps} kept steps, got {got:?}"
        );
    }
    phase("loss", || {
        accumulate(path, options, |i, x| {
            if targets[i].dims() != x.dims() {
                let (expected, got) = (x.dims(), targets[i].dims());
                bail!(Shape, "matching_loss: targets must have the state's shape {expected:?}, got {got:?}");
            }
            let goal = (base[i].constant().to_dtype(x.dtype())? + targets[i].constant().to_dtype(x.dtype())?)?;
            (policy[i].to_dtype(x.dtype())? - goal)?.sqr()
        })
    })
}

/// `mean over batch of sum over k of 2 [f(|u|) + f*(sigma |a|) + sigma a . u]` with the policy's control `u`: by Fenchel and Young
/// at least 0, and 0 at `u = -(f')^{-1}(sigma |a|) a / |a|`; for `f = r^2 / 2` the squared distance.
///
/// It is linear in `a`, so noise in the adjoint averages out for every penalty; steps that have no noise at all on a
/// stochastic path have no control and are left out.
pub fn fenchel_young_matching(
    policy: &[Tensor],
    adjoint: &Adjoint,
    regularizer: &Regularizer,
    path: &Trajectory,
    options: &MatchingOptions,
) -> Result<Tensor> {
    let steps = path.window().len();
    if [policy.len(), adjoint.values.len()] != [steps; 2] {
        let got = (policy.len(), adjoint.values.len());
        bail!(
            Shape,
            "fenchel_young_loss: there must be one velocity and one adjoint for each of {steps} kept steps, got {got:?}"
        );
    }
    let scaled = |i: usize| -> Result<Tensor> { adjoint.values[i].constant() * adjoint.dynamics[i].sigma() };
    let slope = |i: usize| norm_per_sample(&scaled(i)?.to_dtype(DType::F64)?);
    let slopes = read(&Tensor::cat(&(0..steps).map(slope).collect::<Result<Vec<_>>>()?, 0)?)?;
    phase("loss", || {
        accumulate(path, options, |i, x| {
            let unit = adjoint.dynamics[i].control_gain();
            if unit == 0.0 {
                return Tensor::zeros(x.dim(0)?, x.dtype(), x.device());
            }
            let (a, batch) = (scaled(i)?, x.dim(0)?);
            let u = ((policy[i].to_dtype(x.dtype())? - adjoint.base_velocities[i].constant().to_dtype(x.dtype())?)?
                / unit)?;
            let conjugate = regularizer.conjugate(&slopes[i * batch..(i + 1) * batch])?;
            let conjugate = Tensor::new(conjugate, x.device())?.to_dtype(x.dtype())?;
            // The root has no gradient at 0, where the control is at first.
            let size = (sum_per_sample(&u.sqr()?)? + 1e-24)?.sqrt()?;
            let gap = ((regularizer.value(&size)? + conjugate)? + sum_per_sample(&(u * a)?)?)?;
            gap * (2.0 * unit * unit)
        })
    })
}

/// Sums errors `[batch, ..]` of the steps, given in units of velocity squared.
fn accumulate(
    path: &Trajectory,
    options: &MatchingOptions,
    error: impl Fn(usize, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let active = options.active(path.window());
    let mut loss: Option<Tensor> = None;
    for &k in &active {
        let error = match error(k - path.first, path.state(k)?)? {
            error if options.units == Units::Velocity => error,
            error => (error * control_weight(&path.dynamics(k)?, k)?)?,
        };
        let error = match options.clip {
            None => error.sum_all()?,
            Some(most) => clipped(&sum_per_sample(&error)?, most)?,
        };
        let error = if options.weighted { (error * path.grid.width(k))? } else { error };
        loss = Some(match loss {
            Some(sum) => (sum + error)?,
            None => error,
        });
    }
    let Some(loss) = loss else {
        bail!(Value, "matching_loss: there must be an active step, got a trajectory that keeps none");
    };
    let (batch, entries) = (path.last().dim(0)? as f64, path.last().elem_count() as f64);
    let divisor = match options.reduction {
        Reduction::Sum => batch,
        Reduction::Mean => entries * if options.weighted { 1.0 } else { active.len() as f64 },
    };
    loss / divisor
}

/// `((1 + rho) / sigma)^2`.
fn control_weight(step: &Dynamics, k: usize) -> Result<f64> {
    match step.control_gain() {
        0.0 => bail!(
            Value, "matching_loss: control_units() needs noise at every step that enters, got none at step {k}";
            hint: "use velocity_units(), which do not divide by the noise"
        ),
        unit => Ok(1.0 / (unit * unit)),
    }
}

/// Sum of errors `[batch]`, each at most `most`.
fn clipped(errors: &Tensor, most: f64) -> Result<Tensor> {
    let within = errors.constant().le(most)?;
    let ceiling = errors.zeros_like()?.affine(0.0, most)?;
    within.where_cond(errors, &ceiling)?.sum_all()
}
