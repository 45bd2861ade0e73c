//! Gaussian source and target, where everything has a closed form (arXiv:2605.06583, Propositions 4.1 and 4.2).

use super::toy::{Gaussian, load, numbers};
use amscript::align::{
    AdjointIndex, Norm, Regularizer, RewardCost, control_mass, control_target, lean_adjoint, objective_mass,
    terminal_gradient,
};
use amscript::flow::{Condition, Euler, Heun, RolloutOptions, Solver, Trajectory, Velocity, rollout, uniform};
use amscript::tensor::{Device, Tensor};
use std::sync::Arc;

const PAIRS: [[f64; 2]; 3] = [[1.0, 0.3], [2.0, 1.0], [1.0, 2.0]];
const STEPS: usize = 2000;

fn path(field: &dyn Velocity, x0: &Tensor, steps: usize) -> Trajectory {
    rollout(field, x0, &Condition::default(), &RolloutOptions::new(uniform(steps).unwrap())).unwrap()
}

fn start() -> Tensor {
    Tensor::new(&[[0.3f64], [-1.1]], &Device::Cpu).unwrap()
}

fn field(pair: [f64; 2]) -> Gaussian {
    Gaussian { means: [0.0, 0.4], deviations: pair }
}

/// `lambda r(x) = lambda x`: a terminal gradient of `-lambda` everywhere.
fn linear_reward(lambda: f64) -> RewardCost {
    RewardCost::new(|x| x.sum(1), lambda).unwrap()
}

/// First sample's `|a_k|`, or `|u_k|`, along the grid.
fn sizes(rows: &[Tensor]) -> Vec<f64> {
    rows.iter().map(|a| numbers(a)[0].abs()).collect()
}

fn adjoints(pair: [f64; 2], steps: usize) -> amscript::align::Adjoint {
    let field = field(pair);
    let path = path(&field, &start(), steps);
    let end = terminal_gradient(&linear_reward(0.7), path.last()).unwrap().gradient;
    lean_adjoint(&field, &path, &end, AdjointIndex::Same).unwrap()
}

#[test]
fn the_adjoint_is_s1_over_the_root_of_the_variance() {
    for pair in PAIRS {
        let sizes = sizes(&adjoints(pair, STEPS).values);
        for (k, size) in sizes.iter().enumerate() {
            let expected = 0.7 * pair[1] / field(pair).variance(k as f64 / STEPS as f64).sqrt();
            assert!((size / expected - 1.0).abs() < 6e-3, "{pair:?} {k}: {size} {expected}");
        }
        let peak = (0..STEPS).max_by(|a, b| sizes[*a].total_cmp(&sizes[*b])).unwrap() as f64 / STEPS as f64;
        let t_star = pair[0].powi(2) / (pair[0].powi(2) + pair[1].powi(2));
        assert!((peak - t_star).abs() < 3e-3, "{pair:?}: {peak} {t_star}");
    }
}

#[test]
fn the_euler_adjoint_is_exact_on_a_coarse_grid() {
    let expected = load("adjoint/expected.safetensors");
    for (i, pair) in PAIRS.iter().enumerate() {
        let golden = numbers(&expected[&format!("out.gauss.{i}.euler_adjoint")]);
        for (size, expected) in sizes(&adjoints(*pair, 10).values).iter().zip(golden) {
            assert!((size / 0.7 - expected).abs() < 1e-12 * expected.max(1.0), "{pair:?}: {size} {expected}");
        }
    }
}

#[test]
fn higher_orders_spread_the_control_over_time() {
    // R_p(t) = (s0^2 s1^2 / (s0^2 + s1^2) / S(t))^(1 / (2 (p - 1)))
    for pair in PAIRS {
        let adjoint = adjoints(pair, STEPS);
        let least = 1.0 / (pair[0].powi(-2) + pair[1].powi(-2));
        for p in [2.0, 4.0, 6.0] {
            let u = sizes(&control_target(&adjoint, &Regularizer::power(p).unwrap(), Norm::Sample).unwrap());
            let most = u.iter().copied().fold(0.0, f64::max);
            for (k, size) in u.iter().enumerate() {
                let variance = field(pair).variance(k as f64 / STEPS as f64);
                let ratio = (least / variance).powf(0.5 / (p - 1.0));
                assert!((size / most / ratio - 1.0).abs() < 6e-3, "{pair:?} {p} {k}");
            }
        }
    }
}

#[test]
fn the_optimal_control_shifts_the_mean_by_lambda_s1_pi_over_2_s0() {
    struct Controlled<'a>(&'a Gaussian, &'a [Tensor]);
    impl Velocity for Controlled<'_> {
        fn velocity(&self, x: &Tensor, t: &Tensor, c: &Condition) -> amscript::Result<Tensor> {
            let k = (t.to_vec1::<f64>()?[0] * STEPS as f64).round() as usize;
            self.0.velocity(x, t, c)? + &self.1[k]
        }
    }
    let expected = load("adjoint/expected.safetensors");
    for (i, pair) in PAIRS.iter().enumerate() {
        let targets = control_target(&adjoints(*pair, STEPS), &Regularizer::quadratic(), Norm::Sample).unwrap();
        let field = field(*pair);
        let free = path(&field, &start(), STEPS);
        let moved = path(&Controlled(&field, &targets), &start(), STEPS);
        let shift = numbers(&(moved.last() - free.last()).unwrap())[0] / 0.7;
        let exact = pair[1] * std::f64::consts::PI / (2.0 * pair[0]);
        assert!((shift / exact - 1.0).abs() < 6e-3, "{pair:?}: {shift} {exact}");
        assert!((numbers(&expected[&format!("out.gauss.{i}.mean_shift")])[0] - exact).abs() < 1e-12);
    }
}

#[test]
fn the_objective_has_another_share_than_the_control() {
    // Shares of steps from t = 0.5 on, for s1 = 0.6, by the closed form integrated: of int f*(|a|), and of int |u|.
    let adjoint = adjoints([1.0, 0.6], STEPS);
    for (p, objective, control) in [(2.0, 0.6560, 0.5828), (4.0, 0.6084, 0.5285), (6.0, 0.5983, 0.5172)] {
        let penalty = Regularizer::power(p).unwrap();
        let share = |masses: Vec<f64>| masses[STEPS / 2..].iter().sum::<f64>() / masses.iter().sum::<f64>();
        let found = share(objective_mass(&adjoint, &penalty, Norm::Sample).unwrap());
        assert!((found - objective).abs() < 1e-3, "{p}: {found} {objective}");
        let found = share(control_mass(&adjoint, &penalty, Norm::Sample).unwrap());
        assert!((found - control).abs() < 1e-3, "{p}: {found} {control}");
    }
}

#[test]
fn samplers_reach_the_target_with_their_order() {
    // The flow maps x0 to m1 + s1 / s0 (x0 - m0).
    let field = Gaussian { means: [0.2, -0.5], deviations: [1.0, 0.6] };
    let error = |solver: Arc<dyn Solver>, n: usize| {
        let options = RolloutOptions { solver, ..RolloutOptions::new(uniform(n).unwrap()) };
        let path = rollout(&field, &start(), &Condition::default(), &options).unwrap();
        (numbers(path.last())[1] - (-0.5 + 0.6 * (-1.1 - 0.2))).abs()
    };
    for (solver, order) in [(Arc::new(Euler) as Arc<dyn Solver>, 1.0), (Arc::new(Heun), 2.0)] {
        let slope = (error(solver.clone(), 400) / error(solver.clone(), 800)).log2();
        assert!((slope - order).abs() < 0.1, "{order}: {slope}");
    }
}
