//! Samplers: one step of `dX = v(X, t) dt`, or of an SDE with the same marginals.

use super::grid::Grid;
use super::noise::{Dynamics, Noise};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::op::combine;
use std::sync::Arc;

/// A velocity at a state and a time, its condition fixed.
pub type VelocityFn<'a> = dyn FnMut(&Tensor, f64) -> Result<Tensor> + 'a;

/// One method of stepping from a time to the next.
pub trait Solver: Send + Sync {
    /// What step `k` of the grid does.
    fn dynamics(&self, grid: &Grid, k: usize) -> Result<Dynamics> {
        Ok(Dynamics::deterministic(grid.width(k)))
    }

    /// What a step from `t`, `h` wide, does, on whatever grid.
    fn dynamics_at(&self, t: f64, h: f64) -> Result<Dynamics> {
        let (grid, k) = around(t, h)?;
        self.dynamics(&grid, k)
    }

    /// The state after step `k` without its noise, given the state `x` and the velocity `v` there; `field` gives further stages.
    fn step(&self, _field: &mut VelocityFn, x: &Tensor, v: &Tensor, grid: &Grid, k: usize) -> Result<Tensor> {
        self.dynamics(grid, k)?.advance(x, v)
    }

    /// Whether steps draw noise.
    fn stochastic(&self) -> bool {
        false
    }

    /// Whether a step asks for the velocity at its beginning alone, and so is what [`dynamics`](Self::dynamics) says.
    fn one_stage(&self) -> bool {
        true
    }

    /// Refuses a grid whose step `k` the method does not fit.
    fn check_step(&self, _grid: &Grid, _k: usize) -> Result<()> {
        Ok(())
    }

    /// Refuses a grid that the method does not fit.
    fn check(&self, grid: &Grid) -> Result<()> {
        (0..grid.steps()).try_for_each(|k| self.check_step(grid, k))
    }
}

/// Euler's method: `x + h v`. Order 1, one velocity per step.
#[derive(Debug, Clone, Copy)]
pub struct Euler;

/// Heun's method: the mean of the velocities at both ends. Order 2, two velocities per step.
#[derive(Debug, Clone, Copy)]
pub struct Heun;

/// Euler and Maruyama's method for the SDE with some noise; with `last`, in the last so many steps only, Euler's before.
#[derive(Clone)]
pub struct Sde {
    pub noise: Noise,
    pub last: Option<usize>,
}

/// The implicit sampler with stochasticity `eta` (arXiv:2206.05564): 0 is Euler's method, 1 ancestral sampling.
///
/// From `t` to `s`: `x' = s x1 + sqrt((1-s)^2 - var) e + sqrt(var) z` with `x1 = x + (1-t) v`, `e = x - t v` and
/// `var = (1-s)^2 [1 - ((1-s) t / (s (1-t)))^(2 eta^2)]`. It keeps the marginals at any step width
/// where the prediction `x1` of the data is exact, and in the limit of narrow steps.
#[derive(Debug, Clone, Copy)]
pub struct Gddim {
    pub eta: f64,
}

impl Gddim {
    pub fn new(eta: f64) -> Result<Self> {
        if !(eta >= 0.0 && eta.is_finite()) {
            bail!(Value, "gddim: eta must be at least 0, got {eta}");
        }
        Ok(Self { eta })
    }
}

/// A grid with the step from `t`, `h` wide, and the number of that step.
fn around(t: f64, h: f64) -> Result<(Grid, usize)> {
    if !((0.0..1.0).contains(&t) && h > 0.0 && t + h <= 1.0 + 1e-12) {
        bail!(Value, "step: a step must lie between the times 0 and 1, got one from {t}, {h} wide");
    }
    let times = [0.0, t, t + h].into_iter().filter(|time| *time < 1.0 - 1e-12).chain([1.0]);
    let mut times: Vec<f64> = times.collect();
    times.dedup();
    let grid = Grid::new(times)?;
    let k = grid.times().iter().rposition(|time| *time <= t).unwrap_or(0);
    Ok((grid, k))
}

/// The sampler that keeps the coefficients of data and noise (Flow-CPS, arXiv:2509.05952): `eta` in [0, 1] is how much of the noise that
/// is left is drawn anew, as an angle. 0 is Euler's method; the last step is free of noise.
#[derive(Debug, Clone, Copy)]
pub struct Cps {
    pub eta: f64,
}

impl Cps {
    pub fn new(eta: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&eta) {
            bail!(Value, "cps: eta must lie in [0, 1], got {eta}");
        }
        Ok(Self { eta })
    }
}

/// A sampler at some steps, Euler's method at the others.
#[derive(Clone)]
pub struct AtSteps {
    pub solver: Arc<dyn Solver>,
    pub steps: Vec<usize>,
}

impl AtSteps {
    fn at(&self, k: usize) -> &dyn Solver {
        if self.steps.contains(&k) { &*self.solver } else { &Euler }
    }
}

/// `x' = s x1 + q e + sqrt(var) z` with the predictions `x1 = x + (1-t) v` of the data and `e = x - t v` of the noise, from `t` to `s`.
fn implicit([t, s]: [f64; 2], q: f64, var: f64) -> Dynamics {
    let h = s - t;
    Dynamics { h, rho: (s * (1.0 - t) - q * t) / h - 1.0, mean_reversion: (1.0 - s - q) / h, w: Some(var / h) }
}

impl Solver for Euler {}

impl Solver for Heun {
    fn step(&self, field: &mut VelocityFn, x: &Tensor, v: &Tensor, grid: &Grid, k: usize) -> Result<Tensor> {
        let h = grid.width(k);
        let ahead = field(&combine((x, 1.0), (v, h))?, grid.times()[k + 1])?;
        combine((&combine((x, 1.0), (v, 0.5 * h))?, 1.0), (&ahead, 0.5 * h))
    }

    fn one_stage(&self) -> bool {
        false
    }
}

impl Solver for Sde {
    fn dynamics(&self, grid: &Grid, k: usize) -> Result<Dynamics> {
        match self.last {
            Some(last) if k + last < grid.steps() => Euler.dynamics(grid, k),
            _ => self.noise.dynamics(grid.times()[k], grid.width(k)),
        }
    }

    fn dynamics_at(&self, t: f64, h: f64) -> Result<Dynamics> {
        match self.last {
            Some(k) => {
                bail!(Value, "step: a sampler with noise in its last {k} steps needs the grid, got a time"; hint: "step(grid, k)")
            }
            None => around(t, h).and_then(|_| self.noise.dynamics(t, h)),
        }
    }

    fn stochastic(&self) -> bool {
        true
    }

    fn check_step(&self, grid: &Grid, k: usize) -> Result<()> {
        match self.last {
            Some(last) if !(1..=grid.steps()).contains(&last) => {
                bail!(Value, "sde: `last` must lie in 1..={}, the steps of the grid, got {last}", grid.steps())
            }
            Some(last) if k + last < grid.steps() => Ok(()),
            _ => self.noise.check_step(grid, k),
        }
    }
}

impl Solver for Gddim {
    fn dynamics(&self, grid: &Grid, k: usize) -> Result<Dynamics> {
        let (t, s) = (grid.times()[k], grid.times()[k + 1]);
        if self.eta == 0.0 {
            return Euler.dynamics(grid, k);
        }
        let ratio = (1.0 - s) * t / (s * (1.0 - t));
        let kept = ratio.powf(2.0 * self.eta * self.eta);
        Ok(implicit([t, s], (1.0 - s) * kept.sqrt(), (1.0 - s).powi(2) * (1.0 - kept)))
    }

    fn stochastic(&self) -> bool {
        self.eta > 0.0
    }
}

impl Solver for Cps {
    fn dynamics(&self, grid: &Grid, k: usize) -> Result<Dynamics> {
        let (t, s) = (grid.times()[k], grid.times()[k + 1]);
        if self.eta == 0.0 {
            return Euler.dynamics(grid, k);
        }
        let (sin, cos) = (self.eta * std::f64::consts::FRAC_PI_2).sin_cos();
        Ok(implicit([t, s], (1.0 - s) * cos, ((1.0 - s) * sin).powi(2)))
    }

    fn stochastic(&self) -> bool {
        self.eta > 0.0
    }
}

impl Solver for AtSteps {
    fn dynamics(&self, grid: &Grid, k: usize) -> Result<Dynamics> {
        self.at(k).dynamics(grid, k)
    }

    fn dynamics_at(&self, _: f64, _: f64) -> Result<Dynamics> {
        bail!(Value, "step: a sampler with noise at some steps needs the grid, got a time"; hint: "step(grid, k)")
    }

    fn step(&self, field: &mut VelocityFn, x: &Tensor, v: &Tensor, grid: &Grid, k: usize) -> Result<Tensor> {
        self.at(k).step(field, x, v, grid, k)
    }

    fn stochastic(&self) -> bool {
        self.solver.stochastic() && !self.steps.is_empty()
    }

    fn one_stage(&self) -> bool {
        self.solver.one_stage()
    }

    fn check_step(&self, grid: &Grid, k: usize) -> Result<()> {
        if let Some(k) = self.steps.iter().find(|k| **k >= grid.steps()) {
            bail!(Value, "at_steps: steps must be below {}, the steps of the grid, got {k}", grid.steps());
        }
        self.at(k).check_step(grid, k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::uniform;
    use amscript_tensor::Device;

    /// Error at t = 1 for dx/dt = x cos(3 t) from x(0) = 1.
    fn error(solver: &dyn Solver, steps: usize) -> f64 {
        let mut field = |x: &Tensor, t: f64| x * (3.0 * t).cos();
        let mut x = Tensor::new(&[1f64], &Device::Cpu).unwrap();
        let grid = uniform(steps).unwrap();
        for k in 0..steps {
            let v = field(&x, grid.times()[k]).unwrap();
            x = solver.step(&mut field, &x, &v, &grid, k).unwrap();
        }
        (x.to_vec1::<f64>().unwrap()[0] - (3f64.sin() / 3.0).exp()).abs()
    }

    #[test]
    fn samplers_converge_with_their_order() {
        for (solver, order) in [(&Euler as &dyn Solver, 1.0), (&Heun, 2.0)] {
            let slope = (error(solver, 512) / error(solver, 1024)).log2();
            assert!((slope - order).abs() < 0.05, "order {slope}, not {order}");
        }
    }

    #[test]
    fn a_step_by_itself_is_that_of_a_grid() {
        let grid = uniform(5).unwrap();
        let sde = Sde { noise: Noise::LinearDecay(1.0), last: None };
        for solver in [&Euler as &dyn Solver, &Heun, &sde, &Gddim::new(1.0).unwrap(), &Cps::new(0.5).unwrap()] {
            for k in 0..5 {
                let (t, h) = (grid.times()[k], grid.width(k));
                let (alone, of_grid) = (solver.dynamics_at(t, h).unwrap(), solver.dynamics(&grid, k).unwrap());
                let numbers = |d: Dynamics| [d.h, d.rho, d.mean_reversion, d.w.unwrap_or(-1.0)];
                assert!(
                    numbers(alone).iter().zip(numbers(of_grid)).all(|(a, b)| (a - b).abs() < 1e-12),
                    "{alone:?} {of_grid:?}"
                );
            }
            assert!(solver.dynamics_at(1.0, 0.1).is_err() && solver.dynamics_at(0.5, 0.6).is_err());
        }
        assert!(Sde { noise: Noise::LinearDecay(1.0), last: Some(2) }.dynamics_at(0.5, 0.1).is_err());
        // Ancestral sampling, from t to s: the variance b_s^2 (1 - (b_s a_t / (a_s b_t))^2) with a = t, b = 1 - t.
        let step = Gddim::new(1.0).unwrap().dynamics_at(0.4, 0.2).unwrap();
        let exact = 0.4f64.powi(2) * (1.0 - (0.4 * 0.4 / (0.6 * 0.6f64)).powi(2));
        assert!((step.noise_std().powi(2) - exact).abs() < 1e-12);
    }

    #[test]
    fn noise_is_checked_where_there_is_some() {
        let grid = uniform(20).unwrap();
        let steep = |last| Sde { noise: Noise::Schedule(Arc::new(|t| Ok(2.0 * (1.0 - t) / t))), last };
        assert!(steep(None).check(&grid).unwrap_err().message.contains("got inf at t = 0.0000 (step 0)"));
        steep(Some(3)).check(&grid).unwrap();
        AtSteps { solver: Arc::new(steep(None)), steps: vec![8, 9] }.check(&grid).unwrap();
        assert!(AtSteps { solver: Arc::new(steep(None)), steps: vec![0] }.check(&grid).is_err());
        assert!(steep(Some(21)).check(&grid).unwrap_err().message.contains("must lie in 1..=20"));
    }

    #[test]
    fn other_steps_than_those_named_are_eulers() {
        let (grid, solver) = (uniform(4).unwrap(), Arc::new(Cps::new(0.8).unwrap()));
        let some = AtSteps { solver: solver.clone(), steps: vec![1] };
        for k in 0..4 {
            let other = if k == 1 { solver.dynamics(&grid, k) } else { Euler.dynamics(&grid, k) };
            assert_eq!(some.dynamics(&grid, k).unwrap(), other.unwrap());
        }
        assert!(some.dynamics_at(0.25, 0.25).is_err());
        assert!(some.stochastic() && !AtSteps { steps: vec![], ..some.clone() }.stochastic());
        let message = AtSteps { steps: vec![1, 4], ..some }.check(&grid).unwrap_err().message;
        assert_eq!(message, "at_steps: steps must be below 4, the steps of the grid, got 4");
        assert_eq!(Cps::new(1.5).unwrap_err().message, "cps: eta must lie in [0, 1], got 1.5");
    }

    #[test]
    fn gddim_without_noise_is_euler_and_its_last_step_is_free_of_noise() {
        let grid = uniform(5).unwrap();
        for k in 0..5 {
            assert_eq!(Gddim::new(0.0).unwrap().dynamics(&grid, k).unwrap(), Euler.dynamics(&grid, k).unwrap());
            // The limit of little noise is Euler's step too.
            let near = Gddim::new(1e-5).unwrap().dynamics(&grid, k).unwrap();
            assert!(k == 0 || (near.rho.abs() < 1e-8 && near.mean_reversion.abs() < 1e-8), "{near:?}");
        }
        let last = Gddim::new(1.0).unwrap().dynamics(&grid, 4).unwrap();
        assert_eq!((last.w, last.mean_reversion), (Some(0.0), 0.0));
        assert!(Gddim::new(-1.0).is_err());
    }
}
