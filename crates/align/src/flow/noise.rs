//! Noise levels `w(t) = sigma(t)^2` of the stochastic flow (arXiv:2605.06583, Appendix D.2).
//!
//! With `eta = (1 - t) / t` and `kappa = 1 / t`, the SDE `dX = [(1 + rho) v - rho kappa X] dt + sqrt(w) dB`, `rho = w / (2 eta)`, has
//! the flow's marginals for every `w`.

use super::grid::Grid;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::op::combine;
use std::sync::Arc;

/// `w` as a function of time.
pub type Level = dyn Fn(f64) -> Result<f64> + Send + Sync;

/// How much noise a stochastic sampler adds at each time.
#[derive(Clone)]
pub enum Noise {
    /// `2 (1 - t) / t`: end and start are independent. Clipped to `2 (1 - t + o) / (t + o)` with `kappa = 1 / (t + o)`
    /// (arXiv:2409.08861, Appendix G); the offset `o` is the step's width where none is given.
    Memoryless { offset: Option<f64> },
    /// `c`.
    Constant(f64),
    /// `c (1 - t)`.
    LinearDecay(f64),
    /// `c sin^2(pi t)`.
    SineSquared(f64),
    /// `a^2 (1 - t) / t`, and `a^2 / h` at `t = 0`, `h` the step's width: Flow-GRPO's (arXiv:2505.05470), `a^2 / 2` times memoryless.
    FlowGrpo(f64),
    /// Any level.
    Schedule(Arc<Level>),
}

/// What a step does to state, velocity and a standard normal draw `z`:
/// `x' = x + h [(1 + rho) v - mean_reversion x] + sqrt(h w) z`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dynamics {
    /// Width of the step.
    pub h: f64,
    pub rho: f64,
    /// `rho kappa`.
    pub mean_reversion: f64,
    /// Noise level; none for a deterministic step, whose control is penalised in units of velocity.
    pub w: Option<f64>,
}

impl Dynamics {
    /// Euler's step of the flow itself.
    pub fn deterministic(h: f64) -> Self {
        Self { h, rho: 0.0, mean_reversion: 0.0, w: None }
    }

    /// `x + h [(1 + rho) v - mean_reversion x]`: a step without its noise.
    pub fn advance(&self, x: &Tensor, v: &Tensor) -> Result<Tensor> {
        combine((x, 1.0 - self.h * self.mean_reversion), (v, self.h * (1.0 + self.rho)))
    }

    /// `a + h [(1 + rho) J^T a - mean_reversion a]`, given `J^T a` of the velocity: the adjoint of [`advance`](Self::advance).
    pub fn pull_back(&self, a: &Tensor, pulled: &Tensor) -> Result<Tensor> {
        self.advance(a, pulled)
    }

    /// `sqrt(h w)`, the size of a step's noise.
    pub fn noise_std(&self) -> f64 {
        self.w.map_or(0.0, |w| (self.h * w).sqrt())
    }

    /// `sigma = sqrt(w)`, the reach of a unit of control; 1 without noise.
    pub fn sigma(&self) -> f64 {
        self.w.map_or(1.0, f64::sqrt)
    }

    /// `h (1 + rho)`: how far a unit of velocity moves the step's end.
    pub fn reach(&self) -> f64 {
        self.h * (1.0 + self.rho)
    }

    /// `sigma / (1 + rho)`: the change of velocity that is one unit of control.
    pub fn control_gain(&self) -> f64 {
        self.sigma() / (1.0 + self.rho)
    }
}

impl Noise {
    /// The step from `t`, `h` wide, of the SDE with this noise.
    pub fn dynamics(&self, t: f64, h: f64) -> Result<Dynamics> {
        if let Noise::Memoryless { offset } = self {
            let o = offset.unwrap_or(h);
            return Ok(Dynamics { h, rho: 1.0, mean_reversion: 1.0 / (t + o), w: Some(2.0 * (1.0 - t + o) / (t + o)) });
        }
        let w = match self {
            Noise::FlowGrpo(a) if t == 0.0 => a * a / h,
            _ => self.level(t)?,
        };
        Ok(Dynamics { h, rho: w * t / (2.0 * (1.0 - t)), mean_reversion: w / (2.0 * (1.0 - t)), w: Some(w) })
    }

    fn level(&self, t: f64) -> Result<f64> {
        match self {
            Noise::Memoryless { offset } => {
                let o = offset.unwrap_or(0.0);
                Ok(2.0 * (1.0 - t + o) / (t + o))
            }
            Noise::Constant(c) => Ok(*c),
            Noise::LinearDecay(c) => Ok(c * (1.0 - t)),
            Noise::SineSquared(c) => Ok(c * (std::f64::consts::PI * t).sin().powi(2)),
            Noise::FlowGrpo(a) => Ok(a * a * (1.0 - t) / t),
            Noise::Schedule(level) => level(t),
        }
    }

    /// Refuses noise that is negative or infinite at step `k` of a grid, or with which a step of Euler-Maruyama overshoots.
    pub fn check_step(&self, grid: &Grid, k: usize) -> Result<()> {
        let t = grid.times()[k];
        let step = self.dynamics(t, grid.width(k))?;
        let w = step.w.unwrap_or_default();
        if !(w.is_finite() && w >= 0.0 && step.mean_reversion.is_finite()) {
            bail!(
                Value, "sde: the noise w(t) must be finite and not negative on the grid, got {w} at t = {t:.4} (step {k})";
                hint: "memoryless() clips the noise that diverges at t = 0; bound a schedule of your own"
            );
        }
        if step.h * step.mean_reversion > 2.0 {
            let (h, most) = (step.h, w * 2.0 / (step.h * step.mean_reversion));
            bail!(
                Value, "sde: the noise must be at most {most:.4} at t = {t:.4}, where a step is {h:.4} wide, got {w:.4}";
                hint: "a stronger one makes the step overshoot and states grow: use less noise or a finer grid"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::uniform;

    #[test]
    fn levels_and_gains_are_the_tables() {
        // w and G = w / (1 + rho) at t = 0.1, 0.5, 0.9, with eta = (1 - t) / t.
        let cases: [(Noise, [(f64, f64); 3]); 4] = [
            (Noise::Memoryless { offset: Some(1e-12) }, [(18.0, 9.0), (2.0, 1.0), (0.2222, 0.1111)]),
            (Noise::LinearDecay(1.0), [(0.9, 0.8571), (0.5, 0.4), (0.1, 0.0690)]),
            (Noise::LinearDecay(2.0), [(1.8, 1.6364), (1.0, 0.6667), (0.2, 0.1053)]),
            (Noise::SineSquared(1.0), [(0.0955, 0.0950), (1.0, 0.6667), (0.0955, 0.0668)]),
        ];
        for (noise, rows) in cases {
            for (t, (w, gain)) in [0.1, 0.5, 0.9].iter().zip(rows) {
                let step = noise.dynamics(*t, 0.02).unwrap();
                let found = (step.w.unwrap(), step.sigma() * step.control_gain());
                assert!((found.0 - w).abs() < 6e-5 && (found.1 - gain).abs() < 6e-5, "{rows:?} {t}: {found:?}");
                let eta = (1.0 - t) / t;
                assert!((found.1 - 2.0 * eta * found.0 / (2.0 * eta + found.0)).abs() < 1e-9, "{rows:?} {t}");
            }
        }
    }

    #[test]
    fn noise_that_diverges_on_the_grid_is_refused() {
        let grid = uniform(20).unwrap();
        let check = |noise: Noise| (0..20).try_for_each(|k| noise.check_step(&grid, k));
        let message = |noise: Noise| check(noise).unwrap_err().message;
        assert_eq!(
            message(Noise::Memoryless { offset: Some(0.0) }),
            "sde: the noise w(t) must be finite and not negative on the grid, got inf at t = 0.0000 (step 0)"
        );
        assert!(message(Noise::Constant(-1.0)).contains("got -1 at t = 0.0000"));
        assert_eq!(
            message(Noise::Constant(5.0)),
            "sde: the noise must be at most 4.0000 at t = 0.9500, where a step is 0.0500 wide, got 5.0000"
        );
        for noise in [Noise::Memoryless { offset: None }, Noise::Constant(1.0), Noise::SineSquared(2.0)] {
            check(noise).unwrap();
        }
    }
}
