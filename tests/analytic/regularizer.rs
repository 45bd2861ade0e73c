//! A penalty that is not quadratic, under noise, where the adjoint of a state is random: the discrete problem by dynamic
//! programming, at whose control Fenchel's condition holds on average and the squared distance is not smallest.

use crate::analytic::toy::{Gaussian, adjoint_matching, numbers};
use amscript::align::{AdjointIndex, AdjointMatching, Loss, Regularizer, RewardCost, lean_adjoint, terminal_gradient};
use amscript::flow::{Condition, Draw, Dynamics, Noise, RolloutOptions, Sde, Solver, Velocity, rollout, uniform};
use amscript::tensor::grad::gradients;
use amscript::tensor::{DType, Device, Rng, Tensor};
use std::sync::{Arc, Mutex};

const STEPS: usize = 10;
const LAMBDA: f64 = 3.0;
const GOAL: f64 = 0.7;
const BASE: Gaussian = Gaussian { means: [0.0, -0.3], deviations: [1.0, 0.8] };

/// `lambda r(x) = -lambda (x - goal)^2 / 2`.
fn cost() -> RewardCost {
    RewardCost::new(|x| ((x - GOAL)?.sqr()? * -0.5)?.sum(1), LAMBDA).unwrap()
}

fn solver() -> Arc<dyn Solver> {
    Arc::new(Sde { noise: Noise::LinearDecay(2.0), last: None })
}

fn dynamics(k: usize) -> Dynamics {
    solver().dynamics(&uniform(STEPS).unwrap(), k).unwrap()
}

/// `(f')^-1` of the penalty `|u|^4 / 4`.
fn root(y: f64) -> f64 {
    y.signum() * y.abs().cbrt()
}

/// A function that is linear between its knots, and beyond them.
struct Line {
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Line {
    fn at(&self, x: f64) -> f64 {
        let i = self.x.partition_point(|knot| *knot < x).clamp(1, self.x.len() - 1);
        let share = (x - self.x[i - 1]) / (self.x[i] - self.x[i - 1]);
        self.y[i - 1] + share * (self.y[i] - self.y[i - 1])
    }
}

/// The optimal control of every step, by dynamic programming backwards from the end.
///
/// For a mean `y` of the next state, `m(y) = E[V'(y + sqrt(h w) z)]` gives `u = -root(sigma m)`, and with it the state `x`
/// from which the step has that mean; there `V'(x) = (d step / dx) m` by the envelope theorem. So no equation is solved.
fn optimum() -> Vec<Line> {
    let grid: Vec<f64> = (0..=4000).map(|i| -8.0 + i as f64 * 0.004).collect();
    let nodes: Vec<f64> = (-80..=80).map(|i| i as f64 * 0.075).collect();
    let weights: Vec<f64> = nodes.iter().map(|z| (-z * z / 2.0).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut slope = Line { x: grid.clone(), y: grid.iter().map(|x| LAMBDA * (x - GOAL)).collect() };
    let mut controls = Vec::new();
    for k in (0..STEPS).rev() {
        let step = dynamics(k);
        let drift = |x: f64| {
            let state = Tensor::new(&[[x]], &Device::Cpu).unwrap();
            let time = Tensor::new(&[k as f64 / STEPS as f64], &Device::Cpu).unwrap();
            numbers(&step.advance(&state, &BASE.velocity(&state, &time, &Condition::default()).unwrap()).unwrap())[0]
        };
        let (offset, factor) = (drift(0.0), drift(1.0) - drift(0.0));
        let mean =
            |y: &f64| nodes.iter().zip(&weights).map(|(z, w)| w * slope.at(y + step.noise_std() * z)).sum::<f64>();
        let mean: Vec<f64> = grid.iter().map(|y| mean(y) / total).collect();
        let u: Vec<f64> = mean.iter().map(|m| -root(step.sigma() * m)).collect();
        let x: Vec<f64> = grid.iter().zip(&u).map(|(y, u)| (y - offset - step.h * step.sigma() * u) / factor).collect();
        assert!(x.windows(2).all(|pair| pair[0] < pair[1]), "the value is convex, so states follow their means");
        slope = Line { x: x.clone(), y: mean.iter().map(|m| factor * m).collect() };
        controls.insert(0, Line { x, y: u });
    }
    controls
}

/// The base with the optimal control, moved by a parameter for each step.
struct Optimal {
    controls: Vec<Line>,
    shift: Tensor,
}

impl Velocity for Optimal {
    fn velocity(&self, x: &Tensor, t: &Tensor, c: &Condition) -> amscript::Result<Tensor> {
        let k = (t.to_vec1::<f64>()?[0] * STEPS as f64).round() as usize;
        let u: Vec<f64> = numbers(x).iter().map(|x| self.controls[k].at(*x)).collect();
        let u = Tensor::new(u, x.device())?.reshape(x.dims())?.broadcast_add(&self.shift.get(k)?)?;
        BASE.velocity(x, t, c)? + (u * dynamics(k).control_gain())?
    }
}

fn policy() -> Optimal {
    Optimal { controls: optimum(), shift: Tensor::zeros(STEPS, DType::F64, &Device::Cpu).unwrap().leaf() }
}

fn noisy(seed: u64) -> RolloutOptions {
    let stream = Arc::new(Mutex::new(Rng::new(seed)));
    let draw: Draw = Arc::new(move |_, x| stream.lock().unwrap().normal(x.dims(), x.dtype(), x.device()));
    RolloutOptions { solver: solver(), draw: Some(draw), ..RolloutOptions::new(uniform(STEPS).unwrap()) }
}

/// The mean of some numbers in units of its standard error.
fn errors(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    mean / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

#[test]
fn the_lean_adjoint_of_the_next_step_is_right_on_average() {
    let policy = policy();
    for start in [-1.5, -0.4, 0.3, 1.2] {
        let x0 = Tensor::full(start, (40_000, 1), &Device::Cpu).unwrap();
        let path = rollout(&policy, &x0, &Condition::default(), &noisy(1)).unwrap();
        let end = terminal_gradient(&cost(), path.last()).unwrap().gradient;
        let adjoint = numbers(&lean_adjoint(&BASE, &path, &end, AdjointIndex::Next).unwrap().values[0]);
        let (u, sigma) = (policy.controls[0].at(start), dynamics(0).sigma());
        // f'(|u|) u / |u| = -sigma E[a]
        let condition: Vec<f64> = adjoint.iter().map(|a| u.powi(3) + sigma * a).collect();
        assert!(errors(&condition).abs() < 4.0, "from {start}: {}", errors(&condition));
        let distance: Vec<f64> = adjoint.iter().map(|a| u + root(sigma * a)).collect();
        assert!(errors(&distance).abs() > 10.0, "from {start}: {}", errors(&distance));
    }
}

#[test]
fn only_fenchels_loss_has_its_least_mean_at_the_optimum() {
    let policy = policy();
    let mut rng = Rng::new(2);
    let mut of = |loss: Loss| {
        let options = AdjointMatching {
            rollout: noisy(3),
            regularizer: Regularizer::power(4.0).unwrap(),
            index: AdjointIndex::Next,
            loss,
            ..AdjointMatching::new(uniform(STEPS).unwrap())
        };
        let slopes: Vec<Vec<f64>> = (0..40)
            .map(|_| {
                // From one side, where the controls have one sign.
                let x0 = (rng.normal(&[500, 1], DType::F64, &Device::Cpu).unwrap() * 0.3).unwrap();
                let x0 = (x0 - 1.5).unwrap();
                let cost = cost();
                let update = adjoint_matching(&policy, &BASE, &x0, &Condition::default(), &cost, &options).unwrap();
                numbers(&gradients(&update.losses[0], std::slice::from_ref(&policy.shift)).unwrap()[0])
            })
            .collect();
        (0..STEPS).map(|k| errors(&slopes.iter().map(|g| g[k]).collect::<Vec<_>>())).collect::<Vec<_>>()
    };
    let (fenchel, squared) = (of(Loss::FenchelYoung), of(Loss::Squared));
    assert!(fenchel.iter().all(|z| z.abs() < 4.0), "{fenchel:?}");
    // Less so at the last step: its adjoint is random by that step's noise alone.
    assert!(squared[..STEPS - 1].iter().all(|z| z.abs() > 10.0), "{squared:?}");
}
