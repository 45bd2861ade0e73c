//! Identities between methods, and the count of forwards.

use crate::toy::{Counted, Mlp, load, numbers, relative, reward};
use amscript::align::{
    AdjointIndex, MatchingLoss, MatchingOptions, Reduction, Regularizer, RewardCost, Truncation, adjoint_matching,
    control_intensity, control_target, lean_adjoint, matching_loss, terminal_gradient,
};
use amscript::flow::{RolloutOptions, rollout, uniform};
use amscript::model::{Condition, Velocity};
use amscript::tensor::grad::{gradients, value_and_grad};
use amscript::tensor::sample::norm_per_sample;
use amscript::tensor::{Rng, Tensor};
use std::sync::Arc;

const STEPS: usize = 8;

fn networks() -> (Mlp, Mlp) {
    let weights = load("adjoint/weights.safetensors");
    (Mlp::load(&weights, "base"), Mlp::load(&weights, "tuned"))
}

fn start() -> Tensor {
    load("adjoint/expected.safetensors")["in.x0"].clone()
}

fn cost(scale: f64) -> RewardCost {
    reward(&load("adjoint/expected.safetensors")["in.reward_c"], scale)
}

fn options(k: usize) -> MatchingOptions {
    MatchingOptions { truncate: Truncation::Last(k), ..MatchingOptions::new(uniform(STEPS).unwrap()) }
}

#[test]
fn the_fused_update_equals_the_separate_functions_to_the_bit() {
    let (base, tuned) = networks();
    let condition = Condition::default();
    for (index, p, k) in [(AdjointIndex::Same, 4.0, 3), (AdjointIndex::Next, 2.0, 8), (AdjointIndex::Same, 2.0, 1)] {
        let loss = MatchingLoss { weighted: k == 3, reduction: if k == 1 { Reduction::Mean } else { Reduction::Sum } };
        let options = MatchingOptions { index, regularizer: Regularizer::power(p).unwrap(), loss, ..options(k) };
        let fused = adjoint_matching(&tuned, &base, &start(), &condition, &cost(5.0), &options).unwrap();

        let path =
            rollout(&tuned, &start(), &condition, &RolloutOptions { keep: k, ..options.rollout.clone() }).unwrap();
        let end = terminal_gradient(&cost(5.0), path.last()).unwrap();
        let adjoint = lean_adjoint(&base, &path, &end.gradient, index).unwrap();
        let targets = control_target(&adjoint, &options.regularizer).unwrap();
        let separate = matching_loss(&tuned, &base, &path, &targets, loss).unwrap();

        assert_eq!(numbers(&fused.loss), numbers(&separate));
        let fused = gradients(&fused.loss, &tuned.params()).unwrap();
        let separate = gradients(&separate, &tuned.params()).unwrap();
        assert!(fused.iter().zip(&separate).all(|(a, b)| numbers(a) == numbers(b)));
    }
}

#[test]
fn an_update_costs_n_policy_and_k_base_forwards() {
    let (base, tuned) = networks();
    for index in [AdjointIndex::Same, AdjointIndex::Next] {
        for k in [1, 3, STEPS] {
            let (policy, frozen) = (Counted::new(&tuned), Counted::new(&base));
            let options = MatchingOptions { index, ..options(k) };
            let update =
                adjoint_matching(&policy, &frozen, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
            gradients(&update.loss, &tuned.params()).unwrap();
            assert_eq!((policy.calls(), frozen.calls()), (STEPS, k));
        }
    }
}

#[test]
fn matching_the_next_adjoint_at_the_base_is_draft() {
    // arXiv:2309.17400: the reward's gradient through the last K steps, unrolled; here over h, since all widths are equal.
    let (base, _) = networks();
    let (policy, _) = networks();
    let condition = Condition::default();
    for k in [1, 3, STEPS] {
        let options = MatchingOptions { index: AdjointIndex::Next, ..options(k) };
        let update = adjoint_matching(&policy, &base, &start(), &condition, &cost(5.0), &options).unwrap();
        let matched = gradients(&(update.loss * 0.5).unwrap(), &policy.params()).unwrap();

        let mut x = update.path.states[0].clone();
        for step in update.path.window() {
            let v = policy.velocity(&x, &update.path.time(step).unwrap(), &condition).unwrap();
            x = (&x + (v * update.path.grid.width(step)).unwrap()).unwrap();
        }
        let r = amscript::align::TerminalCost::evaluate(&cost(5.0), &x).unwrap();
        let direct = gradients(&(r.mean_all().unwrap() * (-5.0 * STEPS as f64)).unwrap(), &policy.params()).unwrap();
        for (a, b) in matched.iter().zip(&direct) {
            assert!(relative(a, b) < 1e-12, "K = {k}: {}", relative(a, b));
        }
    }
}

#[test]
fn no_reward_means_no_gradient() {
    let ((base, _), (policy, _)) = (networks(), networks());
    let update = adjoint_matching(&policy, &base, &start(), &Condition::default(), &cost(0.0), &options(3)).unwrap();
    assert_eq!(numbers(&update.loss), [0.0]);
    for gradient in gradients(&update.loss, &policy.params()).unwrap() {
        assert!(numbers(&gradient).iter().all(|g| *g == 0.0));
    }
}

#[test]
fn order_two_is_plain_adjoint_matching() {
    let (base, tuned) = networks();
    let options = options(4);
    let update = adjoint_matching(&tuned, &base, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
    for (u, a) in update.targets.iter().zip(&update.adjoint.values) {
        assert_eq!(numbers(u), numbers(&a.neg().unwrap()));
    }
    let closure = Regularizer::Penalty(Arc::new(|r: &Tensor| Ok((r.sqr()? * 0.5)?)));
    let options = MatchingOptions { regularizer: closure, ..options };
    let other = adjoint_matching(&tuned, &base, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
    assert!(relative(&other.loss.reshape(1).unwrap(), &update.loss.reshape(1).unwrap()) < 1e-12);
}

#[test]
fn the_next_adjoint_is_the_sensitivity_to_a_control() {
    // d cost / d u_k = h a_{k+1}, by central differences in one entry of the control at step k.
    let (base, _) = networks();
    let condition = Condition::default();
    let grid = uniform(STEPS).unwrap();
    let path = rollout(&base, &start(), &condition, &RolloutOptions::new(grid.clone())).unwrap();
    let end = terminal_gradient(&cost(5.0), path.last()).unwrap();
    let adjoint = lean_adjoint(&base, &path, &end.gradient, AdjointIndex::Next).unwrap();
    for k in [0, 3, STEPS - 1] {
        let total = |delta: f64| {
            let mut x = path.states[k].clone();
            for j in k..STEPS {
                let mut v = base.velocity(&x, &path.time(j).unwrap(), &condition).unwrap();
                if j == k {
                    v = (v + Tensor::new(&[[delta, 0.0, 0.0, 0.0, 0.0]], x.device())
                        .unwrap()
                        .broadcast_as(x.dims())
                        .unwrap())
                    .unwrap();
                }
                x = (&x + (v * grid.width(j)).unwrap()).unwrap();
            }
            numbers(&amscript::align::TerminalCost::evaluate(&cost(5.0), &x).unwrap())
        };
        let (up, down) = (total(1e-5), total(-1e-5));
        for sample in 0..3 {
            let slope = -5.0 * (up[sample] - down[sample]) / 2e-5;
            let expected = grid.width(k) * adjoint.values[k].to_vec2::<f64>().unwrap()[sample][0];
            assert!((slope - expected).abs() < 1e-8, "step {k}, sample {sample}: {slope} {expected}");
        }
    }
}

#[test]
fn the_target_is_where_penalty_and_adjoint_balance() {
    // Theorem 3.1: u minimises f(|u|) + <a, u>, so f'(|u|) u / |u| = -a.
    let a = Rng::new(3).normal(&[4, 6], amscript::tensor::DType::F64, &amscript::tensor::Device::Cpu).unwrap();
    let f = |r: &Tensor| -> amscript::Result<Tensor> { Ok((r.exp()? - r + r.powf(3.0)?)?) };
    let penalty = Regularizer::Penalty(Arc::new(f));
    let u = penalty.controls(std::slice::from_ref(&a)).unwrap().remove(0);
    let objective = |u: &Tensor| Ok((f(&norm_per_sample(u)?)?.sum_all()? + (u * &a)?.sum_all()?)?);
    let (_, slope) = value_and_grad(objective, &u).unwrap();
    assert!(numbers(&slope).iter().all(|g| g.abs() < 1e-11), "{slope}");
}

#[test]
fn control_intensity_is_the_distance_of_the_velocities() {
    let (base, tuned) = networks();
    let path = rollout(&tuned, &start(), &Condition::default(), &options(3).rollout).unwrap();
    let intensity = control_intensity(&tuned, &base, &path).unwrap();
    assert_eq!(intensity.dims(), [STEPS, 3]);
    let at = |field: &Mlp, k: usize| field.velocity(&path.states[k], &path.time(k).unwrap(), &path.condition).unwrap();
    for k in [0, 5] {
        let expected = norm_per_sample(&(at(&tuned, k) - at(&base, k)).unwrap()).unwrap();
        assert_eq!(numbers(&intensity.get(k).unwrap()), numbers(&expected));
    }
    assert_eq!(numbers(&control_intensity(&base, &base, &path).unwrap()), vec![0.0; 3 * STEPS]);
}
