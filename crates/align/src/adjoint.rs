//! The lean adjoint: the terminal gradient carried back along a trajectory by the base model.

use crate::flow::{Dynamics, Trajectory, Velocity};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::progress::Progress;
use amscript_tensor::Tensor;
use amscript_tensor::check::require_finite;
use amscript_tensor::grad::vjp;
use amscript_tensor::op::cast;

/// Which adjoint a step's control target takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdjointIndex {
    /// `a_k`, as the papers write it.
    #[default]
    Same,
    /// `a_{k+1}`, the exact gradient of the discrete problem; needs one vector-Jacobian product less.
    Next,
}

/// Adjoints along the active steps, and the base velocities that their forward passes gave.
#[derive(Clone)]
pub struct Adjoint {
    pub index: AdjointIndex,
    /// First active step; the active steps are `first..N`.
    pub first: usize,
    /// For each active step `k` the adjoint of its target: `a_k` or `a_{k+1}`, by `index`.
    pub values: Vec<Tensor>,
    /// `v_base(X_k, t_k)` for each active step.
    pub base_velocities: Vec<Tensor>,
    /// What each active step does.
    pub dynamics: Vec<Dynamics>,
}

impl Adjoint {
    /// The same adjoints of the last `k` steps only.
    pub fn narrow(mut self, k: usize) -> Self {
        let cut = self.values.len().saturating_sub(k);
        self.first += cut;
        self.values.drain(..cut);
        self.base_velocities.drain(..cut);
        self.dynamics.drain(..cut);
        self
    }

    /// The adjoints of `factor` times the terminal gradient, in which they are linear.
    pub fn scaled(mut self, factor: f64) -> Result<Self> {
        self.values = self.values.iter().map(|a| a * factor).collect::<amscript_base::error::Result<_>>()?;
        Ok(self)
    }
}

/// `a_k = a_{k+1} + h_k (d b / dx (X_k, t_k))^T a_{k+1}` from `a_N` back over the kept steps of `path`, with the base's drift
/// `b = (1 + rho) v_base - mean_reversion x`, which is `v_base` where steps are deterministic
/// (arXiv:2605.06583, Algorithm 1; the Euler form of the lean adjoint equation of arXiv:2409.08861).
///
/// Between Gaussians its size over time is that of Propositions 4.1 and C.3, with noise that of C.1 (`stdlib/gaussian`).
/// Adjoints have the states' dtype, whatever the model computes in.
pub fn lean_adjoint(base: &dyn Velocity, path: &Trajectory, end: &Tensor, index: AdjointIndex) -> Result<Adjoint> {
    if end.dims() != path.last().dims() {
        let (expected, got) = (path.last().dims(), end.dims());
        bail!(Shape, "lean_adjoint: the terminal gradient must have the state's shape {expected:?}, got {got:?}");
    }
    let mut a = end.to_dtype(path.last().dtype())?.constant();
    let (mut values, mut base_velocities) = (Vec::new(), Vec::new());
    let progress = Progress::new("adjoint", 0, path.window().len());
    for k in path.window().rev() {
        progress.tick(path.steps() - 1 - k);
        let (x, t) = (path.state(k)?, path.time(k)?);
        if index == AdjointIndex::Next {
            values.push(a.clone());
            if k == path.first {
                base_velocities.push(base.velocity(x, &t, &path.condition)?.constant().to_dtype(x.dtype())?);
                break;
            }
        }
        let velocity = |x: &Tensor| cast(&base.velocity(x, &t, &path.condition)?, x.dtype());
        let (v, pulled) = vjp(velocity, x, &a)?;
        a = path.dynamics(k)?.pull_back(&a, &pulled)?;
        let t = path.grid.times()[k];
        require_finite(&a, move |sample| {
            bail!(
                Numeric,
                "lean_adjoint: adjoints must be finite, got NaN or infinity in sample {sample} at step {k} (t = {t:.4})"
            )
        })?;
        if index == AdjointIndex::Same {
            values.push(a.clone());
        }
        base_velocities.push(v);
    }
    values.reverse();
    base_velocities.reverse();
    let dynamics = path.window().map(|k| path.dynamics(k)).collect::<Result<_>>()?;
    Ok(Adjoint { index, first: path.first, values, base_velocities, dynamics })
}
