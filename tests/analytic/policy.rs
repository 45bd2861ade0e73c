//! Policy gradients, losses at noised ends and preferences, between Gaussians, where all of them have closed forms. The policy is the exact flow from
//! N(0, 1) to N(1, 0.5^2) and a constant `theta` more.

use super::toy::{Counted, Gaussian, Mlp, golden, load, numbers};
use amscript::Result;
use amscript::align::policy::{
    Advantage, Ends, Errors, Explore, Follow, Forward, Gamma, Grpo, Kept, LeapAlign, Noised, Normalise, Reference,
    Regression, RowWeight, Scale, StepWeight, Times, Trained, Transition, Trust, VggFlow, noised,
};
use amscript::align::{self, Batch, Method, MethodState, Reduction, RewardCost, Selection, Update, norms};
use amscript::flow::{
    AtSteps, Condition, Cps, Dynamics, Euler, Gddim, Noise, RolloutOptions, Sde, Solver, Velocity, rollout, uniform,
};
use amscript::tensor::grad::gradients;
use amscript::tensor::{DType, Device, Rng, Stream, Tensor};
use std::sync::Arc;

const WIDTH: f64 = 0.5;

fn gaussian() -> Gaussian {
    Gaussian { means: [0.0, 1.0], deviations: [1.0, WIDTH] }
}

fn variance(t: f64) -> f64 {
    gaussian().variance(t)
}

/// `d v / d x` of the exact flow.
fn slope(t: f64) -> f64 {
    (t * WIDTH * WIDTH - (1.0 - t)) / variance(t)
}

/// The exact flow, moved.
#[derive(Clone)]
struct Moved(Tensor);

impl Moved {
    fn new(theta: f64) -> Self {
        Self(Tensor::new(&[theta], &Device::Cpu).unwrap().variable().unwrap())
    }
}

impl Velocity for Moved {
    fn velocity(&self, x: &Tensor, t: &Tensor, c: &Condition) -> Result<Tensor> {
        gaussian().velocity(x, t, c)?.broadcast_add(&self.0)
    }

    fn rerun(&self) -> Option<(Arc<dyn Velocity>, Vec<Tensor>)> {
        Some((Arc::new(self.clone()), vec![self.0.clone()]))
    }
}

fn stream(seed: u64) -> Stream {
    Stream::new(Rng::new(seed))
}

fn normal(n: usize, seed: u64) -> Tensor {
    Rng::new(seed).normal(&[n, 1], DType::F64, &Device::Cpu).unwrap()
}

/// `r(x) = sum x`, which scripts could not differentiate.
fn reward(scale: f64) -> RewardCost {
    RewardCost::new(|x| x.constant().sum(1), scale).unwrap()
}

fn batch(n: usize, group: usize, seed: u64) -> Batch {
    let plain = Batch::new(&normal(n, seed), &Condition::default(), reward(1.0));
    Batch { per_prompt: group, rng: Some(stream(seed + 100)), ..plain }
}

fn sde(noise: Noise) -> Arc<dyn Solver> {
    Arc::new(Sde { noise, last: None })
}

fn grpo(solver: Arc<dyn Solver>, scale: Scale) -> Grpo {
    let plain = Grpo::new(uniform(10).unwrap());
    let advantage = Advantage { scale, clip: None };
    Grpo { rollout: RolloutOptions { solver, ..plain.rollout.clone() }, advantage, trust: Trust::Clip(0.1), ..plain }
}

fn update(method: &dyn Method, policy: &dyn Velocity, batch: &Batch) -> Update {
    align::update(method, policy, &gaussian(), batch, &mut MethodState::default()).unwrap()
}

fn message(method: &dyn Method, batch: &Batch) -> String {
    let policy = Moved::new(0.0);
    align::update(method, &policy, &gaussian(), batch, &mut MethodState::default()).map(|_| ()).unwrap_err().message
}

fn derivative(loss: &Tensor, theta: &Tensor) -> f64 {
    numbers(&gradients(loss, std::slice::from_ref(theta)).unwrap()[0])[0]
}

/// `d loss / d theta` of an update at `theta = 0`.
fn gradient(method: &dyn Method, batch: &Batch) -> f64 {
    let policy = Moved::new(0.0);
    derivative(&update(method, &policy, batch).loss().unwrap(), &policy.0)
}

/// Mean and deviation of a sampler's ends, by recursion.
fn moments(solver: &dyn Solver, n: usize) -> [f64; 2] {
    let grid = uniform(n).unwrap();
    let (mut mean, mut var) = (0.0, 1.0);
    for k in 0..n {
        let (step, t) = (solver.dynamics(&grid, k).unwrap(), grid.times()[k]);
        let c = 1.0 - step.h * step.mean_reversion + step.reach() * slope(t);
        mean = c * mean + step.reach() * (1.0 - slope(t) * t);
        var = c * c * var + step.noise_std().powi(2);
    }
    [mean, var.sqrt()]
}

#[test]
fn ends_of_samplers_are_as_wide_as_their_recursion_says() {
    let cases: [(Arc<dyn Solver>, [f64; 2]); 7] = [
        (Arc::new(Euler), [0.43078, 0.47120]),
        (sde(Noise::FlowGrpo(0.7)), [0.47954, 0.49384]),
        (sde(Noise::Constant(0.09)), [0.44156, 0.47560]),
        (Arc::new(Cps::new(0.8).unwrap()), [0.35179, 0.37831]),
        (Arc::new(Cps::new(0.5).unwrap()), [0.40022, 0.43389]),
        (Arc::new(Gddim::new(1.0).unwrap()), [0.38646, 0.44414]),
        (Arc::new(Gddim::new(2.0).unwrap()), [0.32642, 0.38625]),
    ];
    for (i, (solver, widths)) in cases.iter().enumerate() {
        for (n, width) in [10, 25].into_iter().zip(widths) {
            let [mean, got] = moments(&**solver, n);
            assert!((mean - 1.0).abs() < 1e-12 && (got - width).abs() < 6e-6, "{i}, {n}: {mean} {got} {width}");
        }
    }
    for (n, expected) in [(10, [1.06394, 0.57586]), (25, [1.02892, 0.53501])] {
        let got = moments(&*sde(Noise::Memoryless { offset: None }), n);
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 6e-6), "{n}: {got:?}");
    }
}

/// How far each step's velocity moves the end: `d E[x_N] / d theta_k`.
fn parts(solver: &dyn Solver) -> Vec<f64> {
    let grid = uniform(10).unwrap();
    let step = |k| solver.dynamics(&grid, k).unwrap();
    let carry = |j: usize| {
        let next: Dynamics = step(j);
        1.0 - next.h * next.mean_reversion + next.reach() * slope(grid.times()[j])
    };
    (0..10).map(|k| step(k).reach() * (k + 1..10).map(carry).product::<f64>()).collect()
}

#[test]
fn the_first_gradient_is_the_derivative_of_the_mean_reward() {
    let n = 200_000;
    let flow = || sde(Noise::FlowGrpo(0.7));
    let noisy = AtSteps { solver: flow(), steps: (0..9).collect() };
    let whole: f64 = parts(&noisy)[..9].iter().sum();
    assert!((whole - 0.70074).abs() < 6e-6, "{whole}");
    let found = gradient(&grpo(flow(), Scale::One), &batch(n, n, 1));
    assert!((found + whole / 9.0).abs() < 4.0 * 1.1 / 9.0 / (n as f64).sqrt(), "{found}");
    // Over the deviation of the rewards, as published.
    let found = gradient(&grpo(flow(), Scale::Group { ddof: 0, floor: 0.0 }), &batch(n, n, 2));
    assert!((found + 0.16233).abs() < 0.0022, "{found}");
    // A window gives the derivative through its steps alone.
    let window = AtSteps { solver: flow(), steps: vec![1, 2, 3] };
    let some: f64 = parts(&window)[1..4].iter().sum();
    assert!((some - 0.20025).abs() < 6e-6, "{some}");
    let mix = Grpo { steps: Trained::Only(vec![1, 2, 3]), ..grpo(flow(), Scale::One) };
    let found = gradient(&mix, &batch(n, n, 3));
    assert!((found + some / 3.0).abs() < 4.0 * 0.5 / (n as f64).sqrt(), "{found} {some}");
}

#[test]
fn centring_by_the_group_takes_one_part_in_its_size() {
    let (n, group) = (200_000, 8);
    let mix = Grpo { steps: Trained::Only(vec![1, 2, 3]), ..grpo(sde(Noise::FlowGrpo(0.7)), Scale::One) };
    let found = gradient(&mix, &batch(n, group, 4));
    assert!((found + 0.20025 / 3.0 * 0.875).abs() < 4.0 * 0.5 / (n as f64).sqrt(), "{found}");
}

#[test]
fn normalisations_weigh_the_steps() {
    let n = 200_000;
    let cps: Arc<dyn Solver> = Arc::new(Cps::new(0.8).unwrap());
    for (seed, (solver, sums)) in
        [(sde(Noise::FlowGrpo(0.7)), [0.70074, 0.16991, 1.6991, 0.11420]), (cps, [0.68619, 0.17005, 1.70054, 0.10678])]
            .into_iter()
            .enumerate()
    {
        let at = AtSteps { solver: solver.clone(), steps: (0..9).collect() };
        let (p, grid) = (parts(&at), uniform(10).unwrap());
        let weights: [fn(f64) -> f64; 4] = [|_| 1.0, |s| s, |s| s / 0.1, |s| 2.0 * s * s];
        let kinds = [
            (Normalise::Plain, StepWeight::Equal),
            (Normalise::Guard, StepWeight::Equal),
            (Normalise::Guard, StepWeight::PerWidth),
            (Normalise::Unscaled, StepWeight::Equal),
        ];
        for ((weigh, (normalise, weight)), expected) in weights.into_iter().zip(kinds).zip(sums) {
            let noise = |k| weigh(at.dynamics(&grid, k).unwrap().noise_std());
            let exact: f64 = (0..9).map(|k| p[k] * noise(k)).sum();
            assert!((exact / expected - 1.0).abs() < 6e-5, "{normalise:?}: {exact} {expected}");
            let method = Grpo { normalise, weight, ..grpo(solver.clone(), Scale::One) };
            let found = -9.0 * gradient(&method, &batch(n, n, 10 + seed as u64));
            // A sample's signal is 0.47 of its noise or more.
            assert!((found - exact).abs() < 4.0 * exact / 0.47 / (n as f64).sqrt(), "{normalise:?}: {found} {exact}");
        }
    }
}

/// A path of three steps in `[4, 5]` that kept its noise, and what another velocity makes of its second step.
fn changed(
    solver: Arc<dyn Solver>,
    change: f64,
    reduction: Reduction,
) -> (align::policy::Transition, Tensor, Dynamics) {
    let x0 = Rng::new(5).normal(&[4, 5], DType::F64, &Device::Cpu).unwrap();
    let draw = Some(amscript::flow::draws(stream(6)));
    let options = RolloutOptions { solver, draw, noises: true, ..RolloutOptions::new(uniform(3).unwrap()) };
    let path = rollout(&gaussian(), &x0, &Condition::default(), &options).unwrap();
    let velocity = (path.velocities[1].clone()
        + (Rng::new(7).normal(&[4, 5], DType::F64, &Device::Cpu).unwrap() * change).unwrap())
    .unwrap();
    let (step, next) = (path.dynamics(1).unwrap(), path.states[2].clone());
    let off = |v: &Tensor| {
        let mean = step.advance(&path.states[1], v).unwrap();
        ((&next - mean).unwrap().sqr().unwrap().sum(1).unwrap() / (-2.0 * step.noise_std().powi(2))).unwrap()
    };
    let densities = (off(&velocity) - off(&path.velocities[1])).unwrap();
    (Transition::new(&path, 1, &velocity, reduction).unwrap(), densities, step)
}

#[test]
fn the_log_ratio_is_that_of_two_gaussian_densities() {
    let solvers: [Arc<dyn Solver>; 3] =
        [sde(Noise::FlowGrpo(0.7)), Arc::new(Cps::new(0.8).unwrap()), Arc::new(Gddim::new(1.0).unwrap())];
    for solver in solvers {
        let (step, densities, dynamics) = changed(solver.clone(), 0.3, Reduction::Sum);
        let log = numbers(&step.log_ratio(Normalise::Plain).unwrap());
        for (got, expected) in log.iter().zip(numbers(&densities)) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
        let size = numbers(&norms(std::slice::from_ref(&step.change)).unwrap());
        let g = dynamics.reach() / dynamics.noise_std();
        for (got, size) in numbers(&step.divergence().unwrap()).iter().zip(size) {
            assert!((got - (g * size).powi(2) / 2.0).abs() < 1e-12);
        }
        // Without a change it is 0 to the bit, whatever it is measured in.
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let step = changed(solver.clone(), 0.0, reduction).0;
            for normalise in [Normalise::Plain, Normalise::Guard, Normalise::Unscaled] {
                let ratio = step.log_ratio(normalise).unwrap().exp().unwrap();
                assert_eq!(numbers(&ratio), [1.0; 4], "{normalise:?}");
            }
        }
    }
}

#[test]
fn the_mean_of_an_averaged_ratio_is_below_one() {
    // E[ratio] = exp(-(delta / 2)(1 - 1 / D)), of GRPO-Guard's exp(mean (h (1 + rho) dv)^2 / 2 D).
    let (n, width, change) = (100_000, 4, 0.5);
    let x0 = Rng::new(8).normal(&[n, width], DType::F64, &Device::Cpu).unwrap();
    let draw = Some(amscript::flow::draws(stream(9)));
    let solver = sde(Noise::Constant(1.0));
    let options = RolloutOptions { solver, draw, noises: true, ..RolloutOptions::new(uniform(4).unwrap()) };
    let path = rollout(&gaussian(), &x0, &Condition::default(), &options).unwrap();
    let step = path.dynamics(1).unwrap();
    let transition = Transition::new(&path, 1, &(&path.velocities[1] + change).unwrap(), Reduction::Mean).unwrap();
    let mean = |kind| numbers(&transition.log_ratio(kind).unwrap().exp().unwrap().mean_all().unwrap())[0];
    let delta = (step.reach() / step.noise_std() * change).powi(2);
    let expected = (-delta / 2.0 * (1.0 - 1.0 / width as f64)).exp();
    let error = 4.0 * (delta / width as f64).sqrt() / (n as f64).sqrt();
    assert!((mean(Normalise::Plain) - expected).abs() < error, "{} {expected}", mean(Normalise::Plain));
    let guard = ((step.reach() * change).powi(2) / (2.0 * width as f64)).exp();
    assert!((mean(Normalise::Guard) - guard).abs() < error, "{} {guard}", mean(Normalise::Guard));
}

/// A network whose numbers, in and out, are rounded to another type.
struct Rounded(Mlp, DType);

impl Velocity for Rounded {
    fn velocity(&self, x: &Tensor, t: &Tensor, c: &Condition) -> Result<Tensor> {
        let round = |x: &Tensor| x.to_dtype(self.1)?.to_dtype(DType::F32);
        let inner = Mlp(self.0.0.iter().map(round).collect::<Result<_>>()?);
        inner.velocity(&round(x)?, &round(t)?, c)?.to_dtype(self.1)
    }
}

#[test]
fn the_ratio_of_an_unchanged_policy_is_one_to_the_bit() {
    let x0 = load("adjoint/expected.safetensors")["in.x0"].to_dtype(DType::F32).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let policy = Rounded(golden().2, dtype);
        let start =
            Batch { per_prompt: 3, rng: Some(stream(0)), ..Batch::new(&x0, &Condition::default(), reward(1.0)) };
        let solvers: [Arc<dyn Solver>; 3] =
            [sde(Noise::FlowGrpo(0.7)), Arc::new(Cps::new(0.8).unwrap()), Arc::new(Gddim::new(1.0).unwrap())];
        for solver in solvers {
            for minibatches in [1, 3] {
                let method = Grpo { passes: 2, minibatches, ..grpo(solver.clone(), Scale::Batch { floor: 1e-4 }) };
                let mut found = update(&method, &policy, &start);
                for pass in 0..2 * minibatches {
                    let ratio = found.measured["ratio"].to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
                    // The mean over nine steps rounds; each step's own ratio is below.
                    assert!((ratio - 1.0).abs() < 1e-6, "{dtype:?}, pass {pass}: {ratio}");
                    let next = found.next.clone();
                    assert_eq!(next.is_some(), pass + 1 < 2 * minibatches);
                    if let Some(next) = next {
                        found = next(&policy).unwrap();
                    }
                }
            }
        }
        let options = RolloutOptions {
            solver: sde(Noise::FlowGrpo(0.7)),
            draw: Some(amscript::flow::draws(stream(1))),
            noises: true,
            ..RolloutOptions::new(uniform(5).unwrap())
        };
        let path = rollout(&policy, &x0, &Condition::default(), &options).unwrap();
        for k in 0..5 {
            let again = policy.velocity(path.state(k).unwrap(), &path.time(k).unwrap(), &path.condition).unwrap();
            let step = Transition::new(&path, k, &again, Reduction::Mean).unwrap();
            let ratio = step.log_ratio(Normalise::Plain).unwrap().exp().unwrap().to_dtype(DType::F64).unwrap();
            assert!(numbers(&ratio).iter().all(|r| *r == 1.0), "{dtype:?}, step {k}");
        }
    }
}

#[test]
fn the_pull_has_a_gradient_off_the_reference_and_none_at_it() {
    let still = RewardCost::new(|x| x.zeros_like()?.sum(1), 1.0).unwrap();
    let start = Batch { cost: Arc::new(still), ..batch(8, 4, 20) };
    let method = Grpo { kl: 0.5, ..grpo(sde(Noise::FlowGrpo(0.7)), Scale::One) };
    let at = |theta: f64| {
        let policy = Moved::new(theta);
        let found = update(&method, &policy, &start);
        derivative(&found.loss().unwrap(), &policy.0)
    };
    // mean over steps of kl |theta|^2
    assert!((at(0.3) - 2.0 * 0.5 * 0.3).abs() < 1e-12 && at(0.0) == 0.0, "{} {}", at(0.3), at(0.0));
    assert_eq!(numbers(&update(&method, &Moved::new(0.3), &start).measured["kl"]).len(), 1);
    // towards a copy of the policy itself there is nothing to pull
    let copy = Grpo { reference: Reference::Copy(Follow::Every(15)), ..method.clone() };
    let policy = Moved::new(0.3);
    assert_eq!(derivative(&update(&copy, &policy, &start).loss().unwrap(), &policy.0), 0.0);
}

#[test]
fn updates_cost_the_forwards_that_they_state() {
    let (base, policy) = (gaussian(), Moved::new(0.1));
    let count = |method: &dyn Method, passes: usize| {
        let (asked, frozen) = (Counted::new(&policy), Counted::new(&base));
        let cost = Arc::new(RewardCost::new(|x| x.sum(1), 1.0).unwrap());
        let start = Batch { cost, ..batch(8, 4, 30) };
        let mut next = align::update(method, &asked, &frozen, &start, &mut MethodState::default()).unwrap().next;
        let mut more = 0;
        while let Some(again) = next {
            next = again(&asked).unwrap().next;
            more += 1;
        }
        assert_eq!(more + 1, passes);
        [asked.calls(), frozen.calls()]
    };
    let flow = || grpo(sde(Noise::FlowGrpo(0.7)), Scale::One);
    assert_eq!(count(&flow(), 1), [10, 0]);
    assert_eq!(count(&Grpo { kl: 0.1, ..flow() }, 1), [10, 9]);
    assert_eq!(count(&Grpo { kl: 0.1, passes: 3, ..flow() }, 3), [10 + 2 * 9, 9]);
    assert_eq!(count(&Grpo { steps: Trained::Only(vec![1, 2]), passes: 2, ..flow() }, 2), [12, 0]);
    let weight = RowWeight::Advantage(Advantage { scale: Scale::Rms, clip: Some(1.0) }, 1.0);
    let forward = |loss| Forward { times: 3, ..Forward::new(uniform(10).unwrap(), weight, loss) };
    assert_eq!(count(&Forward { anchor: 2.0, ..forward(Regression::Quadratic(Gamma::Number(0.0))) }, 1), [13, 3]);
    assert_eq!(count(&Forward { passes: 2, ..forward(Regression::Pairs { beta: 1.0 }) }, 2), [16, 6]);
    assert_eq!(count(&VggFlow { steps: Selection::All, ..VggFlow::new(uniform(10).unwrap()) }, 1), [10, 10]);
    assert_eq!(count(&LeapAlign::new(uniform(10).unwrap()), 1), [12, 0]);
    let explore = Explore::new(Arc::new(flow()), uniform(3).unwrap(), 16);
    assert_eq!(count(&explore, 1), [10 + 3 * 16 / 4, 0]); // of the batch's size
}

/// Ends that could have led to `x` at `t`, and the noised ends that they are.
fn posterior(x: f64, t: f64, n: usize) -> (Vec<f64>, Noised) {
    let s2 = WIDTH * WIDTH;
    let (mean, sd) = (1.0 + t * s2 / variance(t) * (x - t), (1.0 - t) * WIDTH / variance(t).sqrt());
    let x1: Vec<f64> = Rng::new(40).normals(n).into_iter().map(|z| mean + sd * z).collect();
    let column = |rows: Vec<f64>| Tensor::from_vec(rows, (n, 1), &Device::Cpu).unwrap();
    let target = column(x1.iter().map(|x1| (x1 - x) / (1.0 - t)).collect());
    let at = Noised { x: column(vec![x; n]), t: Tensor::new(vec![t; n], &Device::Cpu).unwrap(), target };
    (x1, at)
}

/// The loss's derivative by a velocity that all rows share, at `v`.
fn pulled(loss: Regression, at: &Noised, weight: &[f64], [v, old, reference]: [f64; 3], anchor: f64) -> f64 {
    let n = weight.len();
    let shared = Tensor::new(&[v], &Device::Cpu).unwrap().variable().unwrap();
    let rows = |x: f64| Tensor::full(x, (n, 1), &Device::Cpu).unwrap();
    let (policy, old, reference) = (shared.broadcast_as((n, 1)).unwrap(), rows(old), rows(reference));
    let weight = Tensor::new(weight.to_vec(), &Device::Cpu).unwrap();
    let errors =
        Errors { at, policy: &policy, old: Some(&old), reference: Some(&reference), weight: &weight, group: n };
    derivative(&loss.loss(&errors, anchor).unwrap(), &shared)
}

fn mean(x: impl IntoIterator<Item = f64>) -> f64 {
    let x: Vec<f64> = x.into_iter().collect();
    x.iter().sum::<f64>() / x.len() as f64
}

#[test]
fn a_weighted_error_is_least_at_the_weighted_mean_of_what_it_is_held_to() {
    let n = 400_000;
    for (x, t, flow, nft) in [(0.2, 0.3, 1.560495, 1.365854), (0.8, 0.7, 1.431378, 1.411765)] {
        let (x1, at) = posterior(x, t, n);
        let advantage: Vec<f64> = x1.iter().map(|x1| (x1 - 1.0) / WIDTH).collect();
        let clipped: Vec<f64> = advantage.iter().map(|a| a.clamp(-1.0, 1.0)).collect();
        let u: Vec<f64> = x1.iter().map(|x1| (x1 - x) / (1.0 - t)).collect();
        let old = 1.0 + slope(t) * (x - t);
        let product = |a: &[f64]| mean(a.iter().zip(&u).map(|(a, u)| a * u));
        let covariance = |a: &[f64]| product(a) - mean(a.iter().copied()) * mean(u.iter().copied());

        // AdvantageFlow, AWM, RAM: v = (E[A u] + gamma v_old + lambda v_ref) / E[A + gamma + lambda]
        for (gamma, anchor, reference) in [(1.1, 0.0, 0.0), (1.0, 0.5, 0.7), (0.0, 1.2, -0.4)] {
            let v = (product(&clipped) + gamma * old + anchor * reference) / (mean(clipped.clone()) + gamma + anchor);
            let loss = Regression::Quadratic(Gamma::Number(gamma));
            assert!(pulled(loss, &at, &clipped, [v, old, reference], anchor).abs() < 1e-10);
            assert!(pulled(loss, &at, &clipped, [v + 0.1, old, reference], anchor) > 1e-3);
            assert!(anchor != 0.0 || (v - flow).abs() < 0.01, "AdvantageFlow: {v} {flow}");
        }
        // DiffusionNFT without adaptive weights: v - v_old = Cov(2 r - 1, u) / beta, an exact tilt for Gaussians
        let share: Vec<f64> = advantage.iter().map(|a| a.clamp(-5.0, 5.0) / 5.0).collect();
        let own = mean(u.iter().copied());
        let v = own + covariance(&share) / 0.1;
        assert!(pulled(Regression::Quadratic(Gamma::Less(0.1)), &at, &share, [v, own, 0.0], 0.0).abs() < 1e-10);
        assert!(
            (v - own - nft).abs() < 0.02 && (nft - 0.5 * (1.0 - t) / variance(t) / 0.5).abs() < 2e-6,
            "{}",
            v - own
        );
        // First gradients at v_old: AWM -2 Cov, CRD twice that, DGPO half of AWM's
        let first = |loss, weight: &[f64]| pulled(loss, &at, weight, [own, own, own], 0.0);
        let awm = first(Regression::Quadratic(Gamma::Number(1.0)), &clipped);
        let exact = -2.0 * product(&clipped) + 2.0 * mean(clipped.clone()) * own;
        assert!((awm - exact).abs() < 1e-10, "{awm} {exact}");
        let crd = first(Regression::Crd { beta: 1.0 }, &clipped);
        assert!((crd + 4.0 * covariance(&clipped)).abs() < 1e-10, "{crd}");
        let dgpo = first(Regression::Dgpo { beta: 1.0 }, &clipped);
        assert!((dgpo - awm / 2.0).abs() < 1e-10, "{dgpo} {awm}");
        if x == 0.2 {
            assert!((awm + 0.94699).abs() < 0.01 && (crd + 1.89399).abs() < 0.02, "{awm} {crd}");
        }
    }
}

#[test]
fn nft_with_equal_weights_is_the_balanced_quadratic() {
    let (x1, at) = posterior(0.2, 0.3, 7);
    let a: Vec<f64> = x1.iter().map(|x| (x - 1.0).clamp(-1.0, 1.0)).collect();
    for (beta, v) in [(0.1, 0.4), (0.5, -0.3), (1.0, 2.0)] {
        let old = 0.9;
        let err = |f: f64, u: f64| (f - u).powi(2);
        let by_hand = |v: f64| {
            mean(a.iter().zip(numbers(&at.target)).map(|(a, u)| {
                let (r, up, down) = (0.5 + a / 2.0, beta * v + (1.0 - beta) * old, (1.0 + beta) * old - beta * v);
                (r * err(up, u) + (1.0 - r) * err(down, u)) / beta
            }))
        };
        let slope = (by_hand(v + 1e-5) - by_hand(v - 1e-5)) / 2e-5;
        let got = pulled(Regression::Quadratic(Gamma::Less(beta)), &at, &a, [v, old, 0.0], 0.0);
        assert!((got - slope).abs() < 1e-7, "{beta}: {got} {slope}");
    }
    // as published: each error of the data over its own mean size, times 5 / beta
    let one = |a: f64| pulled(Regression::Nft { beta: 1.0 }, &posterior(0.2, 0.3, 1).1, &[a], [0.4, 0.9, 0.0], 0.0);
    let u = numbers(&posterior(0.2, 0.3, 1).1.target)[0];
    // of a good end 5 |x1 - x1_hat|^2 / |x1 - x1_hat|, whose slope counts the upper part alone
    assert!((one(1.0) - 5.0 * 2.0 * 0.7 * (0.4 - u).signum()).abs() < 1e-12, "{} {u}", one(1.0));
}

#[test]
fn a_preference_begins_at_ln_2_and_shares_its_noise() {
    let both = Tensor::new(&[[1.5f64], [0.2], [0.9], [1.1]], &Device::Cpu).unwrap();
    let at = noised(&both, Times::Uniform, 1.0, 2, &stream(2)).unwrap();
    let loss = |rows: &[u32]| {
        let at = Noised {
            target: at.target.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap(),
            ..at.clone()
        };
        pulled(Regression::Pairs { beta: 2.0 }, &at, &[1.0; 4], [0.3, 0.0, 0.3], 0.0)
    };
    // the gradient is beta / 4 of that of e_w - e_l, and a swap turns it round
    let u = numbers(&at.target);
    let expected = mean([0, 2].map(|i| 0.5 * (2.0 * (0.3 - u[i]) - 2.0 * (0.3 - u[i + 1]))));
    assert!((loss(&[0, 1, 2, 3]) - expected).abs() < 1e-12 && (loss(&[1, 0, 3, 2]) + expected).abs() < 1e-12);
    let weight = RowWeight::Advantage(Advantage { scale: Scale::One, clip: Some(1.0) }, 1.0);
    let dpo = Forward::new(uniform(5).unwrap(), weight, Regression::Pairs { beta: 100.0 });
    let first = numbers(&update(&dpo, &Moved::new(0.0), &batch(8, 4, 50)).loss().unwrap())[0];
    assert!((first - std::f64::consts::LN_2).abs() < 1e-15, "{first}");
}

#[test]
fn rewards_weighed_by_their_exponential_give_the_tilt() {
    let n = 200_000;
    let (x1, at) = posterior(0.5, 0.6, n);
    let weights: Vec<f64> = x1.iter().map(|x| x.exp()).collect();
    let tilt = Gaussian { means: [0.0, 1.25], deviations: [1.0, WIDTH] };
    let column = |x: f64| Tensor::new(&[[x]], &Device::Cpu).unwrap();
    let t = Tensor::new(&[0.6f64], &Device::Cpu).unwrap();
    let v = numbers(&tilt.velocity(&column(0.5), &t, &Condition::default()).unwrap())[0];
    let rwr = Regression::Quadratic(Gamma::Number(0.0));
    assert!((pulled(rwr, &at, &weights, [v, 0.0, 0.0], 0.0) / mean(weights)).abs() < 0.03);
    // The share of samples that count, exp(-s^2 / tau^2).
    let method = Forward { ends: Ends::Base, ..Forward::new(uniform(400).unwrap(), RowWeight::Tilt, rwr) };
    let share =
        update(&method, &Moved::new(0.0), &batch(20_000, 1, 60)).measured["effective"].to_scalar::<f64>().unwrap();
    assert!((share - 0.7788).abs() < 0.012, "{share}");
}

#[test]
fn leaps_have_the_gradients_of_their_two_steps() {
    let n = 25;
    let differentiable = RewardCost::new(|x| x.sum(1), 1.0).unwrap();
    let start = Batch::new(&normal(1, 3), &Condition::default(), differentiable);
    for (alpha, expected) in [(1.0, 0.6280), (0.3, 0.6737), (0.0, 0.6933)] {
        let method = LeapAlign { alpha, ..LeapAlign::new(uniform(n).unwrap()) };
        let pairs = (0..n).flat_map(|k| (k + 1..n).map(move |j| [k, j]));
        let found = mean(pairs.map(|pair| {
            let policy = Moved::new(0.0);
            let found = method.at(&policy, &start, pair).unwrap();
            -derivative(&found.loss().unwrap(), &policy.0)
        }));
        assert!((found - expected).abs() < 6e-5, "{alpha}: {found} {expected}");
    }
}

#[test]
fn the_value_gradients_target_is_met_by_the_flow_that_has_it() {
    struct Pulled;
    impl Velocity for Pulled {
        fn velocity(&self, x: &Tensor, t: &Tensor, c: &Condition) -> Result<Tensor> {
            let t0 = t.to_vec1::<f64>()?[0];
            gaussian().velocity(x, t, c)? + 3.0 * t0 * t0
        }
    }
    let start = Batch::new(&normal(3, 4), &Condition::default(), RewardCost::new(|x| x.sum(1), 3.0).unwrap());
    let method = VggFlow::new(uniform(8).unwrap());
    let loss = |policy: &dyn Velocity| numbers(&update(&method, policy, &start).loss().unwrap())[0];
    assert!(loss(&Pulled) < 1e-25, "{}", loss(&Pulled));
    let expected = mean((0..8).map(|k| 9.0 * (k as f64 / 8.0).powi(4)));
    assert!((loss(&gaussian()) - expected).abs() < 1e-12);
}

#[test]
fn explored_starts_are_candidates_to_the_bit() {
    let explore = Explore {
        kept: Kept::Best,
        ..Explore::new(Arc::new(grpo(sde(Noise::FlowGrpo(0.7)), Scale::One)), uniform(3).unwrap(), 24)
    };
    let start = batch(8, 4, 70);
    let chosen = numbers(&explore.chosen(&gaussian(), &start).unwrap().x0);
    let drawn = stream(170).draw(|rng| rng.normals(48));
    // The flow keeps the order of one-dimensional starts, so the best ends are those of the largest.
    for (p, own) in chosen.chunks(4).enumerate() {
        let mut all = drawn[24 * p..24 * (p + 1)].to_vec();
        all.sort_by(f64::total_cmp);
        assert!(own.iter().all(|x| all[20..].contains(x)), "{own:?} {all:?}");
    }
}

#[test]
fn a_copy_follows_and_the_policy_is_as_before() {
    let policy = Moved::new(1.0);
    let weight = RowWeight::Advantage(Advantage { scale: Scale::Rms, clip: Some(1.0) }, 1.0);
    let loss = Regression::Quadratic(Gamma::Number(1.1));
    let method =
        Forward { ends: Ends::Old, old: Follow::Decay(0.75), ..Forward::new(uniform(4).unwrap(), weight, loss) };
    let mut state = MethodState::default();
    let mut run = |theta: f64| {
        policy.0.set(&Tensor::new(&[theta], &Device::Cpu).unwrap()).unwrap();
        align::update(&method, &policy, &gaussian(), &batch(4, 2, 80), &mut state).unwrap();
        assert_eq!(numbers(&policy.0), [theta]);
        numbers(&state.tensors["old 0000"])[0]
    };
    assert_eq!([run(1.0), run(2.0), run(2.0)], [1.0, 1.25, 1.4375]);
    let plain = align::update(&method, &gaussian(), &gaussian(), &batch(4, 2, 80), &mut MethodState::default());
    assert!(plain.map(|_| ()).unwrap_err().message.contains("whose trained numbers it can name"));
}

#[test]
fn the_gap_between_samplers_is_the_closed_form() {
    // D_p = (1 + p) s^(1 + p) int delta t^p S^(-(1 + p) / 2), the shift of the end of w = 2 p (1 - t) / t.
    let n = 4000;
    let shift = |solver: &dyn Solver, s: f64, delta: &dyn Fn(f64) -> f64| {
        let grid = uniform(n).unwrap();
        (0..n).fold(0.0, |d, k| {
            let (step, t) = (solver.dynamics(&grid, k).unwrap(), grid.times()[k]);
            let slope = (t * s * s - (1.0 - t)) / ((1.0 - t).powi(2) + t * t * s * s);
            d * (1.0 - step.h * step.mean_reversion + step.reach() * slope) + step.reach() * delta(t)
        })
    };
    let solvers: [Arc<dyn Solver>; 4] = [
        Arc::new(Euler),
        sde(Noise::FlowGrpo(0.7)),
        sde(Noise::FlowGrpo(2f64.sqrt())),
        sde(Noise::FlowGrpo(8f64.sqrt())),
    ];
    let table = [
        (1.0, [1.24645, 1.32707, std::f64::consts::FRAC_PI_2, 2.39140]),
        (0.5, [0.86082, 0.88417, 0.97938, 1.37216]),
        (0.3, [0.63635, 0.63406, 0.66584, 0.88105]),
    ];
    for (s, row) in table {
        for (solver, expected) in solvers.iter().zip(row) {
            let got = shift(&**solver, s, &|_| 1.0);
            assert!((got / expected - 1.0).abs() < 2e-3, "{s}: {got} {expected}");
            // A control that is the tilt's moves every sampler's end alike.
            let tilt = shift(&**solver, s, &|t| (1.0 - t) / ((1.0 - t).powi(2) + t * t * s * s));
            assert!((tilt - 1.0).abs() < 5e-3, "{s}: {tilt}");
        }
    }
}

#[test]
fn what_cannot_serve_is_refused_by_name() {
    let plain = |solver| grpo(solver, Scale::One);
    assert!(message(&plain(Arc::new(Euler)), &batch(4, 2, 0)).starts_with("grpo: the sampler must draw noise"));
    let flow = || plain(sde(Noise::FlowGrpo(0.7)));
    assert_eq!(message(&flow(), &batch(4, 1, 0)), "grpo: there must be several samples of each prompt, got 1");
    assert_eq!(message(&flow(), &batch(4, 3, 0)), "grpo: `per_prompt` must divide the 4 samples of the batch, got 3");
    let odd = Grpo { minibatches: 3, ..flow() };
    assert!(message(&odd, &batch(4, 2, 0)).contains("`minibatches` divide the 4 samples, got 1 and 3"));
    let last = Grpo { steps: Trained::Only(vec![9]), ..plain(Arc::new(Cps::new(0.8).unwrap())) };
    assert!(message(&last, &batch(4, 2, 0)).contains("step 9 must have noise that was kept"));
    assert!(message(&Grpo { trust: Trust::Clip(0.0), ..flow() }, &batch(4, 2, 0)).contains("must be above 0, got 0"));
    let gated = Grpo { gate: Some(0.5), kl: 1.0, ..flow() };
    assert!(message(&gated, &batch(4, 2, 0)).contains("a gate needs further judges"));
    let weight = RowWeight::Advantage(Advantage { scale: Scale::Rms, clip: Some(1.0) }, 1.0);
    let low = Forward::new(uniform(4).unwrap(), weight, Regression::Quadratic(Gamma::Number(0.9)));
    assert!(message(&low, &batch(4, 2, 0)).contains("weights + gamma + anchor must be above 0, got -1 + 0.9"));
    // rewards below -1 have no least value beside an anchor of 1
    let ram = Forward {
        anchor: 1.0,
        ..Forward::new(uniform(4).unwrap(), RowWeight::Reward, Regression::Quadratic(Gamma::Number(0.0)))
    };
    let low =
        Batch { cost: Arc::new(RewardCost::new(|x| x.zeros_like()?.sum(1)? - 2.0, 1.0).unwrap()), ..batch(4, 1, 0) };
    assert!(message(&ram, &low).contains("must be above 0, got -2"));
    // a tied group moves nothing
    let tied = Batch { cost: Arc::new(RewardCost::new(|x| x.zeros_like()?.sum(1), 1.0).unwrap()), ..batch(4, 2, 0) };
    assert_eq!(gradient(&flow(), &tied), 0.0);
    assert_eq!(
        numbers(&update(&flow(), &Moved::new(0.0), &tied).measured["silent"].to_dtype(DType::F64).unwrap()),
        [1.0]
    );
}
