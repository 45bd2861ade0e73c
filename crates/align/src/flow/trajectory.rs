//! Rollouts of a velocity field and what is kept of them.

use super::grid::Grid;
use super::noise::Dynamics;
use super::sample::{Euler, Solver};
use crate::flow::{Condition, Velocity};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::phase;
use amscript_base::progress::Progress;
use amscript_tensor::check::require_finite;
use amscript_tensor::op::{cast, combine};
use amscript_tensor::{DType, Stream, Tensor};
use std::sync::Arc;

/// Called before step `k` of `n` with the two numbers; an error ends the rollout.
pub type OnStep = Arc<dyn Fn(usize, usize) -> Result<()> + Send + Sync>;

/// A standard normal draw for step `k`, in the shape of the state.
pub type Draw = Arc<dyn Fn(usize, &Tensor) -> Result<Tensor> + Send + Sync>;

/// Standard normal numbers from a stream.
pub fn draws(stream: Stream) -> Draw {
    Arc::new(move |_, x| stream.draw(|rng| rng.normal(x.dims(), x.dtype(), x.device())))
}

/// How to roll out and what to keep.
#[derive(Clone)]
pub struct RolloutOptions {
    pub grid: Grid,
    pub solver: Arc<dyn Solver>,
    /// Noise of a stochastic solver.
    pub draw: Option<Draw>,
    /// How many last steps are kept: their states, velocities, and the end state.
    pub keep: usize,
    /// Kept steps whose velocity keeps its graph to the parameters (never to the states).
    pub track: Vec<usize>,
    /// Keep the noise of the kept steps too.
    pub noises: bool,
    pub on_step: Option<OnStep>,
}

impl RolloutOptions {
    /// Euler's method, every step kept, no graph.
    pub fn new(grid: Grid) -> Self {
        let (keep, solver) = (grid.steps(), Arc::new(Euler));
        Self { keep, grid, solver, draw: None, track: Vec::new(), noises: false, on_step: None }
    }
}

/// The kept window of a rollout: steps `first..N`. States are constants; only `velocities` may carry a graph.
#[derive(Clone)]
pub struct Trajectory {
    pub grid: Grid,
    pub solver: Arc<dyn Solver>,
    /// Index of the first kept state.
    pub first: usize,
    /// `X_first ..= X_N`.
    pub states: Vec<Tensor>,
    /// `v(X_k, t_k)` for `k` in `first..N`.
    pub velocities: Vec<Tensor>,
    /// The unit noise `z` of each kept step, none where a step has none; empty unless it was asked for.
    pub noises: Vec<Option<Tensor>>,
    pub condition: Condition,
}

impl Trajectory {
    /// Number of steps N of the whole rollout.
    pub fn steps(&self) -> usize {
        self.grid.steps()
    }

    /// The kept steps.
    pub fn window(&self) -> std::ops::Range<usize> {
        self.first..self.steps()
    }

    /// `X_k` of a kept `k`.
    pub fn state(&self, k: usize) -> Result<&Tensor> {
        match k.checked_sub(self.first).and_then(|i| self.states.get(i)) {
            Some(state) => Ok(state),
            None => bail!(Value, "trajectory: the state must be one of {}..={}, got {k}", self.first, self.steps()),
        }
    }

    /// The end state `X_N`.
    pub fn last(&self) -> &Tensor {
        &self.states[self.states.len() - 1]
    }

    /// Times `t_first ..= t_N` of the kept states.
    pub fn times(&self) -> &[f64] {
        &self.grid.times()[self.first..]
    }

    /// What step `k` did.
    pub fn dynamics(&self, k: usize) -> Result<Dynamics> {
        self.solver.dynamics(&self.grid, k)
    }

    /// The same trajectory, of which only the last `k` steps are kept.
    pub fn narrow(mut self, k: usize) -> Self {
        let cut = self.window().len().saturating_sub(k);
        self.first += cut;
        self.states.drain(..cut);
        self.velocities.drain(..cut);
        self.noises.drain(..cut.min(self.noises.len()));
        self
    }

    /// `t_k` as the `[batch]` tensor that velocities take.
    pub fn time(&self, k: usize) -> Result<Tensor> {
        time_tensor(self.grid.times()[k], self.last())
    }
}

/// The number `t` for every sample of `x`: `[batch]` in `x`'s dtype.
pub fn time_tensor(t: f64, x: &Tensor) -> Result<Tensor> {
    Tensor::full(t, x.dim(0)?, x.device())?.to_dtype(x.dtype())
}

/// Steps of a rollout, one at a time.
pub struct Stepper<'a> {
    velocity: &'a dyn Velocity,
    /// The same field without a graph to its parameters.
    frozen: Option<Arc<dyn Velocity>>,
    condition: &'a Condition,
    options: &'a RolloutOptions,
    progress: Progress,
}

impl<'a> Stepper<'a> {
    /// Checks what can be checked before the first step from `x0`.
    pub fn new(
        velocity: &'a dyn Velocity,
        x0: &Tensor,
        condition: &'a Condition,
        options: &'a RolloutOptions,
    ) -> Result<Self> {
        if !matches!(x0.dtype(), DType::F32 | DType::F64) || x0.rank() < 2 {
            let (dtype, shape) = (x0.dtype(), x0.dims());
            bail!(Shape, "rollout: x0 must be f32 or f64 of shape [batch, ..], got {dtype:?} of shape {shape:?}");
        }
        let (n, keep) = (options.grid.steps(), options.keep);
        if keep > n {
            bail!(Value, "rollout: keep must be at most the {n} steps of the grid, got {keep}");
        }
        options.solver.check(&options.grid)?;
        if options.solver.stochastic() && options.draw.is_none() {
            bail!(
                Missing, "rollout: the sampler needs a random stream for its noise, got none";
                hint: "give one as `rng`, such as `rng: run.rng(\"path\")`"
            );
        }
        let progress = Progress::new("rollout", 0, n);
        Ok(Self { velocity, frozen: velocity.frozen()?, condition, options, progress })
    }

    /// `v(x, t)`; with its graph to the parameters, or without any.
    pub fn velocity(&self, x: &Tensor, t: f64, tracked: bool) -> Result<Tensor> {
        let constant = self.frozen.as_deref().unwrap_or(self.velocity);
        let field = if tracked { self.velocity } else { constant };
        let v = field.velocity(x, &time_tensor(t, x)?, self.condition)?;
        if v.dims() != x.dims() {
            bail!(Shape, "rollout: the velocity must have the state's shape {:?}, got {:?}", x.dims(), v.dims());
        }
        let v = cast(&v, x.dtype())?;
        Ok(if tracked { v } else { v.constant() })
    }

    /// The state after step `k`, from the state and the velocity before it; keeps whatever graph these have.
    pub fn next(&self, k: usize, x: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.next_by(k, x, v, self.noise(k, x)?.as_ref())
    }

    /// The unit noise of step `k`, where it has any.
    fn noise(&self, k: usize, x: &Tensor) -> Result<Option<Tensor>> {
        let noisy = self.options.solver.dynamics(&self.options.grid, k)?.noise_std() > 0.0;
        self.options.draw.as_ref().filter(|_| noisy).map(|draw| draw(k, x)?.to_dtype(x.dtype())).transpose()
    }

    fn next_by(&self, k: usize, x: &Tensor, v: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (grid, solver) = (&self.options.grid, &self.options.solver);
        let mut next = solver.step(&mut |x, t| self.velocity(x, t, x.requires_grad()), x, v, grid, k)?;
        if let Some(z) = noise {
            next = combine((&next, 1.0), (z, solver.dynamics(grid, k)?.noise_std()))?;
        }
        let t = grid.times()[k + 1];
        require_finite(&next, move |sample| {
            bail!(
                Numeric,
                "rollout: states must be finite, got NaN or infinity in sample {sample} after step {k} (t = {t:.4})"
            )
        })?;
        Ok(next)
    }

    /// The state after the first `k` steps from `x`, without a graph.
    pub fn advance_to(&self, x: &Tensor, k: usize) -> Result<Tensor> {
        (0..k).try_fold(x.constant(), |x, k| {
            self.notify(k)?;
            self.next(k, &x, &self.velocity(&x, self.options.grid.times()[k], false)?)
        })
    }

    /// To be called before step `k`.
    pub fn notify(&self, k: usize) -> Result<()> {
        self.progress.tick(k);
        self.options.on_step.as_ref().map_or(Ok(()), |on_step| on_step(k, self.options.grid.steps()))
    }
}

/// Integrates `dX = v(X, t) dt`, or an SDE with the same marginals, from `x0` at time 0 to time 1.
///
/// No graph is kept outside the tracked steps, and none from one state to the next.
pub fn rollout(
    velocity: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    options: &RolloutOptions,
) -> Result<Trajectory> {
    phase("rollout", || {
        let stepper = Stepper::new(velocity, x0, condition, options)?;
        let (n, grid, solver) = (options.grid.steps(), options.grid.clone(), options.solver.clone());
        let first = n - options.keep;
        let mut x = stepper.advance_to(x0, first)?;
        let (mut states, mut velocities) = (Vec::with_capacity(n - first + 1), Vec::with_capacity(n - first));
        let mut noises = Vec::new();
        for k in first..n {
            stepper.notify(k)?;
            let v = stepper.velocity(&x, grid.times()[k], options.track.contains(&k))?;
            let z = stepper.noise(k, &x)?;
            let next = stepper.next_by(k, &x, &v.constant(), z.as_ref())?;
            states.push(std::mem::replace(&mut x, next));
            velocities.push(v);
            if options.noises {
                noises.push(z);
            }
        }
        states.push(x);
        Ok(Trajectory { grid, solver, first, states, velocities, noises, condition: condition.clone() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Heun, uniform};
    use amscript_tensor::Device;

    /// v = w (t - x), with w a variable.
    struct Pull(Tensor);

    impl Velocity for Pull {
        fn velocity(&self, x: &Tensor, t: &Tensor, _: &Condition) -> Result<Tensor> {
            t.reshape((t.elem_count(), 1))?.broadcast_sub(x)?.broadcast_mul(&self.0)
        }
    }

    fn pull(w: f64) -> Pull {
        Pull(Tensor::new(&[[w]], &Device::Cpu).unwrap().leaf())
    }

    #[test]
    fn only_the_window_is_kept_and_tracked() {
        let x0 = Tensor::new(&[[1f64], [2.0]], &Device::Cpu).unwrap();
        let mut options = RolloutOptions::new(uniform(5).unwrap());
        let whole = rollout(&pull(0.7), &x0, &Condition::default(), &options).unwrap();
        assert_eq!((whole.states.len(), whole.velocities.len(), whole.window()), (6, 5, 0..5));
        options.keep = 2;
        options.track = vec![3, 4];
        let path = rollout(&pull(0.7), &x0, &Condition::default(), &options).unwrap();
        assert_eq!((path.states.len(), path.velocities.len(), path.first), (3, 2, 3));
        assert_eq!(path.times(), &whole.times()[3..]);
        assert!(path.state(2).is_err());
        for k in 3..=5 {
            let same = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(same(path.state(k).unwrap()), same(whole.state(k).unwrap()));
        }
        assert!(path.velocities.iter().all(|v| v.requires_grad()) && path.states.iter().all(|x| !x.requires_grad()));
        assert!(whole.velocities.iter().all(|v| !v.requires_grad()));
    }

    #[test]
    fn a_state_that_explodes_is_named() {
        let x0 = Tensor::new(&[[0f64], [1e150]], &Device::Cpu).unwrap();
        let options = RolloutOptions { solver: Arc::new(Heun), ..RolloutOptions::new(uniform(4).unwrap()) };
        let error = rollout(&pull(1e100), &x0, &Condition::default(), &options).map(|_| ()).unwrap_err();
        assert_eq!(
            error.message,
            "rollout: states must be finite, got NaN or infinity in sample 1 after step 0 (t = 0.2500)"
        );
    }

    #[test]
    fn a_callback_can_end_it() {
        let stop: OnStep = Arc::new(|k, n| if k == 2 { bail!(Interrupt, "stopped at {k} of {n}") } else { Ok(()) });
        let options = RolloutOptions { on_step: Some(stop), ..RolloutOptions::new(uniform(4).unwrap()) };
        let x0 = Tensor::new(&[[1f64]], &Device::Cpu).unwrap();
        let error = rollout(&pull(1.0), &x0, &Condition::default(), &options).map(|_| ()).unwrap_err();
        assert_eq!(error.message, "stopped at 2 of 4");
    }
}
