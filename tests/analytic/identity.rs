//! Identities between methods, and the count of forwards.

use crate::analytic::toy::{Counted, Mlp, adjoint_matching, draft, golden, load, numbers, relative, reward};
use amscript::align::{
    self, Adaptive, AdjointIndex, AdjointMatching, Batch, Draft, MatchingOptions, MethodState, Norm, Reduction, Refl,
    Regularizer, RewardCost, TerminalCost, Truncation, control_intensity, control_mass, control_target, lean_adjoint,
    matching_loss, terminal_gradient,
};
use amscript::flow::{Condition, Grid, RolloutOptions, Velocity, rollout, uniform};
use amscript::tensor::grad::{gradients, value_and_grad};
use amscript::tensor::sample::norm_per_sample;
use amscript::tensor::{Rng, Tensor};
use std::sync::Arc;

const STEPS: usize = 8;

fn networks() -> (Mlp, Mlp) {
    let (_, base, tuned) = golden();
    (base, tuned)
}

fn start() -> Tensor {
    load("adjoint/expected.safetensors")["in.x0"].clone()
}

fn cost(scale: f64) -> RewardCost {
    reward(&load("adjoint/expected.safetensors")["in.reward_c"], scale)
}

fn options(k: usize) -> AdjointMatching {
    AdjointMatching { truncate: Truncation::Last(k), ..AdjointMatching::new(uniform(STEPS).unwrap()) }
}

#[test]
fn the_fused_update_equals_the_separate_functions_to_the_bit() {
    let (base, tuned) = networks();
    let condition = Condition::default();
    for (index, p, k) in [(AdjointIndex::Same, 4.0, 3), (AdjointIndex::Next, 2.0, 8), (AdjointIndex::Same, 2.0, 1)] {
        let loss = MatchingOptions {
            weighted: k == 3,
            reduction: if k == 1 { Reduction::Mean } else { Reduction::Sum },
            ..Default::default()
        };
        let options = AdjointMatching {
            index,
            regularizer: Regularizer::power(p).unwrap(),
            loss_options: loss.clone(),
            ..options(k)
        };
        let fused = adjoint_matching(&tuned, &base, &start(), &condition, &cost(5.0), &options).unwrap();

        let path =
            rollout(&tuned, &start(), &condition, &RolloutOptions { keep: k, ..options.rollout.clone() }).unwrap();
        let end = terminal_gradient(&cost(5.0), path.last()).unwrap();
        let adjoint = lean_adjoint(&base, &path, &end.gradient, index).unwrap();
        let targets = control_target(&adjoint, &options.regularizer, Norm::Sample).unwrap();
        let separate = matching_loss(&tuned, &base, &path, &targets, &loss).unwrap();

        assert_eq!(numbers(&fused.losses[0]), numbers(&separate));
        let fused = gradients(&fused.losses[0], &tuned.params()).unwrap();
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
            let options = AdjointMatching { index, ..options(k) };
            let update =
                adjoint_matching(&policy, &frozen, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
            gradients(&update.losses[0], &tuned.params()).unwrap();
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
        let options = AdjointMatching { index: AdjointIndex::Next, ..options(k) };
        let update = adjoint_matching(&policy, &base, &start(), &condition, &cost(5.0), &options).unwrap();
        let matched = gradients(&(&update.losses[0] * 0.5).unwrap(), &policy.params()).unwrap();

        let draft_options = Draft { truncate: options.truncate, ..Draft::new(uniform(STEPS).unwrap()) };
        let direct = draft(&policy, &start(), &condition, &cost(5.0), &draft_options).unwrap();
        let direct = gradients(&(&direct.losses[0] * STEPS as f64).unwrap(), &policy.params()).unwrap();
        for (a, b) in matched.iter().zip(&direct) {
            assert!(relative(a, b) < 1e-12, "K = {k}: {}", relative(a, b));
        }
    }
}

#[test]
fn no_reward_means_no_gradient() {
    let ((base, _), (policy, _)) = (networks(), networks());
    let update = adjoint_matching(&policy, &base, &start(), &Condition::default(), &cost(0.0), &options(3)).unwrap();
    assert_eq!(numbers(&update.losses[0]), [0.0]);
    for gradient in gradients(&update.losses[0], &policy.params()).unwrap() {
        assert!(numbers(&gradient).iter().all(|g| *g == 0.0));
    }
}

#[test]
fn order_two_is_plain_adjoint_matching() {
    let (base, tuned) = networks();
    let options = options(4);
    let update = adjoint_matching(&tuned, &base, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
    let adjoint = update.trace.unwrap().adjoint.unwrap();
    let targets = control_target(&adjoint, &options.regularizer, Norm::Sample).unwrap();
    for (u, a) in targets.iter().zip(&adjoint.values) {
        assert_eq!(numbers(u), numbers(&a.neg().unwrap()));
    }
    let closure = Regularizer::Penalty(Arc::new(|r: &Tensor| r.sqr()? * 0.5));
    let options = AdjointMatching { regularizer: closure, ..options };
    let other = adjoint_matching(&tuned, &base, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
    assert!(relative(&other.losses[0].reshape(1).unwrap(), &update.losses[0].reshape(1).unwrap()) < 1e-12);
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
    let f = |r: &Tensor| -> amscript::Result<Tensor> { (r.exp()? - r)? + r.powf(3.0)? };
    let penalty = Regularizer::Penalty(Arc::new(f));
    let u = penalty.controls(std::slice::from_ref(&a)).unwrap().remove(0);
    let objective = |u: &Tensor| f(&norm_per_sample(u)?)?.sum_all()? + (u * &a)?.sum_all()?;
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

#[test]
fn draft_is_the_unrolled_gradient_of_the_golden_case() {
    let (base, _) = networks();
    let expected = load("adjoint/expected.safetensors");
    let flat = |gradients: Vec<Tensor>| {
        Tensor::cat(&gradients.iter().map(|g| g.flatten_all().unwrap()).collect::<Vec<_>>(), 0).unwrap()
    };
    for name in ["uniform", "nonuniform"] {
        let grid = Grid::new(numbers(&expected[&format!("in.grid.{name}")])).unwrap();
        for k in [1, 3, 10] {
            let options = Draft { truncate: Truncation::Last(k), ..Draft::new(grid.clone()) };
            let update = draft(&base, &start(), &Condition::default(), &cost(3.0), &options).unwrap();
            let gradient = flat(gradients(&update.losses[0], &base.params()).unwrap());
            let error = relative(&gradient, &expected[&format!("out.ode.{name}.direct_grad.K{k}")]);
            assert!(error < 1e-10, "{name} K = {k}: {error:e}");
        }
    }
}

#[test]
fn refl_at_the_last_step_is_draft_and_predicts_the_data_before() {
    let (base, _) = networks();
    let condition = Condition::default();
    let rollout = RolloutOptions::new(uniform(STEPS).unwrap());
    let options = Draft::new(uniform(STEPS).unwrap());
    let refl = Refl::new(uniform(STEPS).unwrap());
    let batch = Batch::new(&start(), &condition, cost(3.0));
    let direct = draft(&base, &start(), &condition, &cost(3.0), &options).unwrap();
    let last = refl.at(&base, &batch, STEPS - 1).unwrap();
    assert!(relative(&last.losses[0], &direct.losses[0]) < 1e-14);
    let m = 5;
    let path = amscript::flow::rollout(&base, &start(), &condition, &rollout).unwrap();
    let (x, t) = (path.state(m).unwrap(), path.grid.times()[m]);
    let predicted = (x + (&path.velocities[m] * (1.0 - t)).unwrap()).unwrap();
    let reward = TerminalCost::evaluate(&cost(3.0), &predicted).unwrap();
    let early = refl.at(&base, &batch, m).unwrap();
    assert!(relative(&early.reward, &reward) < 1e-14);
}

#[test]
fn draft_with_noise_drawn_again_averages_ends() {
    // A draw that gives back the noise of the path itself, (X_N - t x_1) / (1 - t) around X_N, ends where its own step does.
    let (base, _) = networks();
    let (condition, grid) = (Condition::default(), uniform(STEPS).unwrap());
    let t = grid.times()[STEPS - 1];
    let plain = RolloutOptions::new(grid);
    let path = amscript::flow::rollout(&base, &start(), &condition, &plain).unwrap();
    let (before, end) = (path.state(STEPS - 1).unwrap().clone(), path.last().clone());
    let noise = ((before - (&end * t).unwrap()).unwrap() / (1.0 - t)).unwrap();
    let rollout = RolloutOptions { draw: Some(Arc::new(move |_, _: &Tensor| Ok(noise.clone()))), ..plain };
    let update = |renoised| {
        let options = Draft { rollout: rollout.clone(), renoised, ..Draft::new(uniform(STEPS).unwrap()) };
        let update = draft(&base, &start(), &condition, &cost(3.0), &options).unwrap();
        gradients(&update.losses[0], &base.params()).unwrap()
    };
    for (a, b) in update(2).iter().zip(&update(0)) {
        assert!(relative(a, b) < 1e-12);
    }
}

#[test]
fn steps_and_clipping_choose_what_enters_the_loss() {
    let (base, tuned) = networks();
    let loss_of = |loss: MatchingOptions| {
        let options = AdjointMatching { loss_options: loss, ..options(4) };
        let update = adjoint_matching(&tuned, &base, &start(), &Condition::default(), &cost(5.0), &options).unwrap();
        let gradient = gradients(&update.losses[0], &tuned.params()).unwrap();
        (numbers(&update.losses[0])[0], gradient, update.trace.unwrap().path.velocities.len())
    };
    let one = |k: usize| loss_of(MatchingOptions { steps: Some(vec![k]), ..Default::default() });
    let (whole, gradient, kept) = loss_of(MatchingOptions::default());
    assert_eq!(kept, 4);
    let parts: Vec<_> = (STEPS - 4..STEPS).map(one).collect();
    assert!((parts.iter().map(|p| p.0).sum::<f64>() / whole - 1.0).abs() < 1e-12);
    for (i, g) in gradient.iter().enumerate() {
        let sum = parts.iter().skip(1).fold(parts[0].1[i].clone(), |s, p| (s + &p.1[i]).unwrap());
        assert!(relative(&sum, g) < 1e-12);
    }
    // Everything above the bound counts as the bound, without a gradient.
    let (clipped, gradient, _) = loss_of(MatchingOptions { clip: Some(1e-9), ..Default::default() });
    assert!((clipped - 4e-9).abs() < 1e-20, "{clipped:e}");
    assert!(gradient.iter().all(|g| numbers(g).iter().all(|g| *g == 0.0)));
    let unbounded = loss_of(MatchingOptions { clip: Some(1e9), ..Default::default() }).0;
    assert!((unbounded / whole - 1.0).abs() < 1e-12);
}

#[test]
fn adaptive_truncation_is_the_fixed_one_it_finds() {
    let (base, tuned) = networks();
    let mut state = MethodState::default();
    let mut update = |truncate: Truncation| {
        let (options, batch) =
            (AdjointMatching { truncate, ..options(1) }, Batch::new(&start(), &Condition::default(), cost(5.0)));
        let update = align::update(&options, &tuned, &base, &batch, &mut state).unwrap();
        let trace = update.trace.unwrap();
        (numbers(&update.losses[0]), trace.path.window().len(), trace.adjoint.unwrap())
    };
    let (_, _, whole) = update(Truncation::Full);
    let masses = control_mass(&whole, &Regularizer::quadratic(), Norm::Sample).unwrap();
    let adaptive = Truncation::Adaptive(Adaptive::new(0.4, 100).unwrap());
    let (first, k, _) = update(adaptive);
    assert!(masses[STEPS - k..].iter().sum::<f64>() >= 0.4 * masses.iter().sum::<f64>());
    assert!(masses[STEPS - k + 1..].iter().sum::<f64>() < 0.4 * masses.iter().sum::<f64>());
    assert!(k > 1 && k < STEPS, "{k}");
    assert_eq!(first, update(Truncation::Last(k)).0);
    assert_eq!(update(adaptive).0, first);
}
