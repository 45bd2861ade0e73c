//! The golden case `adjoint`: states, adjoints, targets, losses and gradients of a small network.

use super::toy::{Mlp, Tensors, golden, relative, reward};
use amscript::align::{
    Adjoint, AdjointIndex, MatchingOptions, Norm, Regularizer, control_target, lean_adjoint, matching_loss,
    terminal_gradient,
};
use amscript::flow::{Condition, Grid, RolloutOptions, Trajectory, Velocity, klein_grid, rollout};
use amscript::tensor::Tensor;
use amscript::tensor::grad::gradients;

const LAMBDA: f64 = 3.0;
const STEPS: usize = 10;

struct Case {
    expected: Tensors,
    base: Mlp,
    tuned: Mlp,
    grid: String,
}

impl Case {
    fn new(grid: &str) -> Self {
        let (expected, base, tuned) = golden();
        Self { expected, base, tuned, grid: grid.into() }
    }

    fn input(&self, name: &str) -> &Tensor {
        &self.expected[&format!("in.{name}")]
    }

    fn check(&self, name: &str, got: &Tensor, tolerance: f64) {
        let error = relative(got, &self.expected[&format!("out.ode.{}.{name}", self.grid)]);
        assert!(error < tolerance, "{} {name}: {error:e}", self.grid);
    }

    fn path(&self, field: &dyn Velocity, keep: usize) -> Trajectory {
        let grid = Grid::new(self.input(&format!("grid.{}", self.grid)).to_vec1().unwrap()).unwrap();
        let options = RolloutOptions { keep, ..RolloutOptions::new(grid) };
        rollout(field, self.input("x0"), &Condition::default(), &options).unwrap()
    }

    fn adjoint(&self, path: &Trajectory, index: AdjointIndex) -> Adjoint {
        let end = terminal_gradient(&reward(self.input("reward_c"), LAMBDA), path.last()).unwrap();
        lean_adjoint(&self.base, path, &end.gradient, index).unwrap()
    }
}

fn stack(rows: &[Tensor]) -> Tensor {
    Tensor::stack(rows, 0).unwrap()
}

fn flat(gradients: Vec<Tensor>) -> Tensor {
    Tensor::cat(&gradients.iter().map(|g| g.flatten_all().unwrap()).collect::<Vec<_>>(), 0).unwrap()
}

const INDICES: [(&str, AdjointIndex); 2] = [("same", AdjointIndex::Same), ("next", AdjointIndex::Next)];

#[test]
fn states_and_adjoints() {
    for grid in ["uniform", "nonuniform"] {
        let case = Case::new(grid);
        for (field, states, adjoints) in
            [(&case.tuned, "states", "adjoint"), (&case.base, "base_states", "base_adjoint")]
        {
            let path = case.path(field, STEPS);
            case.check(states, &stack(&path.states), 1e-11);
            let end = terminal_gradient(&reward(case.input("reward_c"), LAMBDA), path.last()).unwrap();
            if states == "states" {
                case.check("reward", &end.reward, 1e-11);
            }
            let mut rows = case.adjoint(&path, AdjointIndex::Same).values;
            rows.push(end.gradient);
            case.check(adjoints, &stack(&rows), 1e-11);
            let next = case.adjoint(&path, AdjointIndex::Next).values;
            assert_eq!(relative(&stack(&next), &stack(&rows[1..])), 0.0);
        }
    }
}

#[test]
fn targets_losses_and_gradients() {
    for grid in ["uniform", "nonuniform"] {
        let case = Case::new(grid);
        for (index, p, k) in INDICES.iter().flat_map(|i| [2, 4, 6].map(|p| [1, 3, 10].map(|k| (i, p, k)))).flatten() {
            let path = case.path(&case.tuned, k);
            let regularizer = Regularizer::power(p as f64).unwrap();
            let targets = control_target(&case.adjoint(&path, index.1), &regularizer, Norm::Sample).unwrap();
            let name = format!("{}.p{p}", index.0);
            if k == STEPS {
                case.check(&format!("target.{name}"), &stack(&targets), 1e-11);
            }
            for (suffix, weighted) in [("", false), ("_h", true)] {
                let options = MatchingOptions { weighted, ..Default::default() };
                let loss = matching_loss(&case.tuned, &case.base, &path, &targets, &options).unwrap();
                case.check(&format!("loss{suffix}.{name}.K{k}"), &loss.reshape(1).unwrap(), 1e-11);
                let gradient = flat(gradients(&loss, &case.tuned.params()).unwrap());
                case.check(&format!("grad{suffix}.{name}.K{k}"), &gradient, 1e-10);
            }
        }
    }
}

#[test]
fn direct_gradient_is_half_the_weighted_matching_gradient_at_the_base() {
    // Adjoint matching with a_{k+1} is DRaFT-K: the golden gradient was made by unrolling the last K steps.
    for grid in ["uniform", "nonuniform"] {
        let case = Case::new(grid);
        for k in [1, 3, 10] {
            let path = case.path(&case.base, k);
            let targets =
                control_target(&case.adjoint(&path, AdjointIndex::Next), &Regularizer::quadratic(), Norm::Sample)
                    .unwrap();
            let options = MatchingOptions { weighted: true, ..Default::default() };
            let (_, twin, _) = golden();
            let loss = (matching_loss(&twin, &case.base, &path, &targets, &options).unwrap() * 0.5).unwrap();
            case.check(&format!("direct_grad.K{k}"), &flat(gradients(&loss, &twin.params()).unwrap()), 1e-10);
        }
    }
}

#[test]
fn klein_grids() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/klein_grid/sigmas.json");
    let cases: std::collections::BTreeMap<String, Vec<f64>> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (name, sigmas) in cases {
        let numbers: Vec<usize> = name.split(['x', '.']).map(|n| n.parse().unwrap()).collect();
        let grid = klein_grid(numbers[2], numbers[0] / 16 * (numbers[1] / 16)).unwrap();
        assert_eq!(grid.times().len(), sigmas.len());
        for (t, sigma) in grid.times().iter().zip(sigmas) {
            assert!((1.0 - t - sigma).abs() < 2e-7, "{name}: {t} {sigma}");
        }
    }
}
