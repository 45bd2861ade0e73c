//! Policy gradients on a stochastic path: the samplers' laws, the ratio and its gradient, the pull to a reference.

use super::*;

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
    let [_, width] = moments(&noisy, 10);
    assert!((whole - 0.70074).abs() < 6e-6 && (width - 0.47964).abs() < 6e-6, "{whole} {width}");
    let found = gradient(&grpo(flow(), Scale::One), &batch(n, n, 1));
    assert!((found + whole / 9.0).abs() < 4.0 * 1.1 / 9.0 / (n as f64).sqrt(), "{found}");
    // Over the deviation of the rewards, as published.
    assert!((whole / width / 9.0 - 0.16233).abs() < 6e-6);
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
    let flow = [(0.70074, 0.62813), (0.16991, 0.69541), (1.6991, 0.69541), (0.11420, 0.6491)];
    let ours = [(0.68619, 0.64665), (0.17005, 0.63284), (1.70054, 0.63284), (0.10678, 0.46921)];
    for (seed, (solver, known)) in [(sde(Noise::FlowGrpo(0.7)), flow), (cps, ours)].into_iter().enumerate() {
        let at = AtSteps { solver: solver.clone(), steps: (0..9).collect() };
        let (p, width, grid) = (parts(&at), moments(&at, 10)[1], uniform(10).unwrap());
        let weights: [fn(f64) -> f64; 4] = [|_| 1.0, |s| s, |s| s / 0.1, |s| 2.0 * s * s];
        let kinds = [
            (Normalise::Plain, StepWeight::Equal),
            (Normalise::Guard, StepWeight::Equal),
            (Normalise::Guard, StepWeight::PerWidth),
            (Normalise::Unscaled, StepWeight::Equal),
        ];
        for ((weigh, (normalise, weight)), (expected, signal)) in weights.into_iter().zip(kinds).zip(known) {
            let step = |k| at.dynamics(&grid, k).unwrap();
            let exact: f64 = (0..9).map(|k| p[k] * weigh(step(k).noise_std())).sum();
            assert!((exact / expected - 1.0).abs() < 6e-5, "{normalise:?}: {exact} {expected}");
            // The product of a sample's end and score, which are Gaussian together: its mean over its deviation.
            let score = |k| weigh(step(k).noise_std()) * step(k).reach() / step(k).noise_std();
            let spread = width * (0..9).map(|k| score(k).powi(2)).sum::<f64>().sqrt();
            assert!(
                (exact / spread.hypot(exact) - signal).abs() < 6e-5,
                "{normalise:?}: {}",
                exact / spread.hypot(exact)
            );
            let method = Grpo { normalise, weight, ..grpo(solver.clone(), Scale::One) };
            let policy = Moved(Tensor::full(0.0, (n, 1), &Device::Cpu).unwrap().variable().unwrap());
            let loss = update(&method, &policy, &batch(n, n, 10 + seed as u64)).loss().unwrap();
            let rows = numbers(&gradients(&loss, std::slice::from_ref(&policy.0)).unwrap()[0]);
            let found = -mean(rows.iter().map(|x| x * 9.0 * n as f64));
            let apart = mean(rows.iter().map(|x| (x * 9.0 * n as f64 + found).powi(2))).sqrt();
            let error = 4.0 * exact / signal / (n as f64).sqrt();
            assert!((found - exact).abs() < error, "{normalise:?}: {found} {exact}");
            assert!((found / apart - signal).abs() < 0.01, "{normalise:?}: {} {signal}", found / apart);
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
    // what a clip range is to be held against: the deviation of the log-ratio, sqrt(delta / D)
    let logs = numbers(&transition.log_ratio(Normalise::Plain).unwrap());
    let middle = super::mean(logs.iter().copied());
    let spread = super::mean(logs.iter().map(|x| (x - middle).powi(2))).sqrt();
    assert!((spread / (delta / width as f64).sqrt() - 1.0).abs() < 4.0 / (2.0 * n as f64).sqrt(), "{spread}");
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

/// What a sum over `n` steps tends to, of values at `n`, `2 n` and `4 n`.
fn limit(at: impl Fn(usize) -> f64, n: usize) -> f64 {
    let [a, b, c] = [n, 2 * n, 4 * n].map(at);
    let (ab, bc) = (2.0 * b - a, 2.0 * c - b);
    bc + (bc - ab) / 3.0
}

/// `d v / d x` of the exact flow from N(0, 1) to data of deviation `s`.
fn slope_to(s: f64, t: f64) -> f64 {
    (t * s * s - (1.0 - t)) / ((1.0 - t).powi(2) + t * t * s * s)
}

/// How a step of a sampler carries a difference on, and how far it moves by a change of the velocity.
fn carried(step: &Dynamics, slope: f64) -> [f64; 2] {
    [1.0 - step.h * step.mean_reversion + step.reach() * slope, step.reach()]
}

#[test]
fn the_gap_between_samplers_is_the_closed_form() {
    // D_p = (1 + p) s^(1 + p) int delta t^p S^(-(1 + p) / 2), the shift of the end of w = 2 p (1 - t) / t.
    let shift = |solver: &dyn Solver, s: f64, delta: &dyn Fn(f64) -> f64| {
        let by_steps = |n: usize| {
            let grid = uniform(n).unwrap();
            (0..n).fold(0.0, |d, k| {
                let t = grid.times()[k];
                let [kept, moved] = carried(&solver.dynamics(&grid, k).unwrap(), slope_to(s, t));
                d * kept + moved * delta(t)
            })
        };
        limit(by_steps, 500)
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
            assert!((got - expected).abs() < 5.1e-6, "{s}: {got} {expected}");
            // A control that is the tilt's moves every sampler's end alike.
            let tilt = shift(&**solver, s, &|t| (1.0 - t) / ((1.0 - t).powi(2) + t * t * s * s));
            assert!((tilt - 1.0).abs() < 5e-6, "{s}: {tilt}");
        }
    }
}

#[test]
fn a_wrong_start_is_forgotten_the_more_noise_there_is() {
    // A variance-exploding process with eta times its noise is the flow's at t = 1 / (1 + u) with w = 2 eta^2 (1 - t) / t. From N(0, T^2) at u = T
    // it ends short of the tilt's mean, lambda s^2, by lambda s^2 (s^2 / (s^2 + T^2))^((1 + eta^2) / 2); variance-preserving at T^2 = e^B - 1.
    let error = |eta: f64, s: f64, span: f64| {
        let (solver, start) = (sde(Noise::FlowGrpo(2f64.sqrt() * eta)), 1.0 / (1.0 + span));
        let by_steps = |n: usize| {
            let later = (0..=n).map(|k| start + (1.0 - start) * k as f64 / n as f64);
            let mut times: Vec<f64> = std::iter::once(0.0).chain(later).collect();
            times[n + 1] = 1.0;
            let grid = Grid::new(times).unwrap();
            let kept = |k| carried(&solver.dynamics(&grid, k).unwrap(), slope_to(s, grid.times()[k]))[0];
            start * s * s * (1..=n).map(kept).product::<f64>()
        };
        limit(by_steps, 2000)
    };
    let preserving = |b: f64| (b.exp() - 1.0).sqrt();
    for (s, span, expected) in [
        (1.0, 10.0, [0.09950, 0.00990]),
        (0.5, 10.0, [0.01248, 0.00062]),
        (1.0, preserving(5.0), [0.08208, 0.00674]),
        (1.0, preserving(10.0), [0.00674, 0.0000454]),
    ] {
        for (eta, expected) in [0.0, 1.0].into_iter().zip(expected) {
            let (got, last) = (error(eta, s, span), if expected < 1e-4 { 6e-8 } else { 5.1e-6 });
            assert!((got - expected).abs() < last, "{s}, {span}, {eta}: {got} {expected}");
            // between them the paper's gap, about s^3 / T
            let exact = s * s * (s * s / (s * s + span * span)).powf((1.0 + eta * eta) / 2.0);
            assert!((got / exact - 1.0).abs() < 1e-3, "{s}, {span}, {eta}: {got} {exact}");
        }
    }
}

#[test]
fn a_step_sees_a_change_of_velocity_as_so_many_of_its_deviations() {
    let grid = uniform(10).unwrap();
    let of = |solver: &dyn Solver, what: fn(&Dynamics) -> f64| -> Vec<f64> {
        (0..10).map(|k| what(&solver.dynamics(&grid, k).unwrap())).collect()
    };
    let near = |found: &[f64], expected: &[f64]| {
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 5.1e-4, "{found:?} {expected:?}");
    };
    let (flow, cps) = (sde(Noise::FlowGrpo(0.7)), Cps::new(0.8).unwrap());
    let g = |step: &Dynamics| step.reach() / step.noise_std();
    near(&of(&*flow, g), &[0.143, 0.187, 0.281, 0.368, 0.459, 0.562, 0.689, 0.859, 1.125, 1.687]);
    near(&of(&cps, g)[..9], &[0.117, 0.204, 0.296, 0.393, 0.501, 0.626, 0.786, 1.034, 1.633]);
    assert_eq!(cps.dynamics(&grid, 9).unwrap().noise_std(), 0.0);
    let dance = of(&*sde(Noise::Constant(0.09)), g);
    near(&[dance[0], dance[9]], &[1.054, 1.481]);
    near(&of(&*flow, Dynamics::noise_std)[..9], &[0.7, 0.664, 0.443, 0.338, 0.271, 0.221, 0.181, 0.145, 0.111]);
    near(&parts(&*flow)[..6], &[0.017, 0.033, 0.045, 0.059, 0.075, 0.094]);
    // of the noise at the end, about as much from each step
    let shares: Vec<f64> = parts(&*flow).iter().zip(of(&*flow, g)).map(|(p, g)| p / g).collect();
    near(&shares, &[0.116, 0.177, 0.161, 0.16, 0.164, 0.167, 0.163, 0.147, 0.116, 0.074]);
    let late = AtSteps { solver: Arc::new(cps), steps: (0..9).collect() };
    near(&parts(&late)[..9], &[0.0002, 0.0009, 0.004, 0.0146, 0.0436, 0.0996, 0.165, 0.194, 0.164]);
    // with noise in a window alone, all ten steps move the end by
    let window: f64 = parts(&AtSteps { solver: flow, steps: vec![1, 2, 3] }).iter().sum();
    near(&[window], &[0.8044]);
}
