//! The solver on the golden pipeline's FLUX.2 with LoRA, in f32.

use crate::analytic::toy::{Counted, adjoint_matching};
use amscript::Result;
use amscript::align::policy::VggFlow;
use amscript::align::{
    AdjointMatching, Batch, Guidance, Method, MethodState, Norm, RewardCost, Truncation, control_target, lean_adjoint,
    matching_loss, terminal_gradient,
};
use amscript::flow::{Condition, RolloutOptions, Velocity, klein_grid, rollout};
use amscript::model::adapter::Targets;
use amscript::model::{Flow, ModelOptions, open};
use amscript::nn::module::Module;
use amscript::nn::source::Sources;
use amscript::optim::{AdamW, OptimizerOptions, Params, StepOptions, constant_rate};
use amscript::tensor::grad::gradients;
use amscript::tensor::{Device, Rng, Tensor};
use std::sync::Arc;

const STEPS: usize = 4;

struct Case {
    base: Flow,
    policy: Flow,
    condition: Condition,
    x0: Tensor,
}

impl Case {
    fn new() -> Self {
        let base = open("tests/golden/flux2", &Sources::default(), &ModelOptions::default(), &Device::Cpu).unwrap();
        let policy = base.lora(4, 1.0, &Targets::Usual, &Rng::new(7)).unwrap();
        let condition = base.encode(&["a red cat".into(), "a blue dog".into()]).unwrap();
        let x0 = base.noise(2, None, &mut Rng::new(1)).unwrap();
        Self { base, policy, condition, x0 }
    }

    /// Brightness of the decoded images.
    fn cost(&self, scale: f64) -> RewardCost {
        let base = self.base.clone();
        RewardCost::new(move |x| base.decode(x)?.flatten_from(1)?.mean(1), scale).unwrap()
    }

    fn options(k: usize) -> AdjointMatching {
        AdjointMatching { truncate: Truncation::Last(k), ..AdjointMatching::new(klein_grid(STEPS, 16).unwrap()) }
    }

    fn optimizer(&self) -> AdamW {
        let rate = constant_rate(1e-2).unwrap();
        AdamW::new(Params::new(self.policy.params()).unwrap(), OptimizerOptions { rate, ..Default::default() }).unwrap()
    }

    /// Rewards before each of `n` updates towards high latents.
    fn train(&self, n: usize) -> Vec<f32> {
        let mut optimizer = self.optimizer();
        let step = |_| {
            let high = RewardCost::new(|x| x.flatten_from(1)?.mean(1), 300.0).unwrap();
            let options = Self::options(2);
            let update =
                adjoint_matching(&self.policy, &self.base, &self.x0, &self.condition, &high, &options).unwrap();
            optimizer.step(&update.losses[0], &StepOptions { clip: Some(1.0), ..StepOptions::default() }).unwrap();
            update.reward.mean_all().unwrap().to_scalar().unwrap()
        };
        (0..n).map(step).collect()
    }

    /// The loss from the separate functions: the policy that is rolled out and the one that is matched, the base that carries
    /// the adjoint and the one that is matched.
    fn separate(&self, [rolled, policy]: [&Flow; 2], [carrying, base]: [&Flow; 2]) -> Tensor {
        let options = Case::options(2);
        let keep = RolloutOptions { keep: 2, ..options.rollout.clone() };
        let path = rollout(rolled, &self.x0, &self.condition, &keep).unwrap();
        let end = terminal_gradient(&self.cost(300.0), path.last()).unwrap();
        let adjoint = lean_adjoint(carrying, &path, &end.gradient, options.index).unwrap();
        let targets = control_target(&adjoint, &options.regularizer, Norm::Sample).unwrap();
        matching_loss(policy, base, &path, &targets, &options.loss_options).unwrap()
    }

    fn bits(&self) -> Vec<Vec<f32>> {
        self.policy.params().iter().map(|(_, t)| t.flatten_all().unwrap().to_vec1().unwrap()).collect()
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f32 {
    values(a).iter().zip(values(b)).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn lora_learns_the_reward_and_repeats_to_the_byte() {
    let (first, second) = (Case::new(), Case::new());
    let rewards = first.train(8);
    assert!(rewards[7] > rewards[0] + 0.05, "{rewards:?}");
    assert_eq!(rewards, second.train(8));
    assert_eq!(first.bits(), second.bits());
}

#[test]
fn fused_and_separate_updates_agree_to_the_bit() {
    let case = Case::new();
    case.train(2);
    let Case { base, policy, condition, x0 } = &case;
    let (counted, frozen) = (Counted::new(policy), Counted::new(base));
    let options = Case::options(2);
    let fused = adjoint_matching(&counted, &frozen, x0, condition, &case.cost(300.0), &options).unwrap();
    assert_eq!((counted.calls(), frozen.calls()), (STEPS, 2));

    let separate = case.separate([policy, policy], [base, base]);
    assert_eq!(values(&fused.losses[0]), values(&separate));
    let wanted: Vec<Tensor> = policy.params().into_iter().map(|(_, t)| t).collect();
    let both = gradients(&fused.losses[0], &wanted).unwrap().into_iter().zip(gradients(&separate, &wanted).unwrap());
    both.for_each(|(a, b)| assert_eq!(values(&a), values(&b)));
}

/// A counted policy that can name its variables.
struct Held(Arc<Counted<'static>>, Vec<Tensor>);

impl Velocity for Held {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        self.0.velocity(x, t, condition)
    }

    fn rerun(&self) -> Option<(Arc<dyn Velocity>, Vec<Tensor>)> {
        Some((self.0.clone(), self.1.clone()))
    }
}

/// The policy runs again in the backward, K times: the same loss to the bit, the same gradients.
#[test]
fn a_policy_that_runs_again_takes_the_same_update() {
    let case = Case::new();
    case.train(2);
    let Case { base, policy, condition, x0 } = &case;
    let wanted: Vec<Tensor> = policy.params().into_iter().map(|(_, t)| t).collect();
    let guided: Arc<dyn Velocity> = Arc::new(policy.guided(3.0).unwrap());
    for (rolled, calls) in [(None, [STEPS, STEPS + 3]), (Some(guided), [3, 6])] {
        let counted = Arc::new(Counted::new(Box::leak(Box::new(policy.clone()))));
        let kept = AdjointMatching { rollout_policy: rolled, ..Case::options(3) };
        let again = AdjointMatching { checkpoint_steps: true, ..kept.clone() };
        let held = Held(counted.clone(), wanted.clone());
        let update = |options| adjoint_matching(&held, base, x0, condition, &case.cost(300.0), options).unwrap();
        let expected = update(&kept);
        let before = counted.calls();
        let loss = update(&again).losses.remove(0);
        let after_rollout = counted.calls();
        let gradients = [gradients(&expected.losses[0], &wanted).unwrap(), gradients(&loss, &wanted).unwrap()];
        assert_eq!([after_rollout - before, counted.calls() - before], calls);
        assert_eq!(values(&loss), values(&expected.losses[0]));
        // A factor that two layers share is summed in another order.
        gradients[0]
            .iter()
            .zip(&gradients[1])
            .for_each(|(a, b)| assert!(apart(a, b) < 1e-6 * apart(a, &a.zeros_like().unwrap())));
    }
}

/// Guidance in the rollout, the carrying of the adjoint, the control: each a choice of its own.
#[test]
fn guidance_is_chosen_in_three_places() {
    let case = Case::new();
    case.train(2);
    let Case { base, policy, condition, x0 } = &case;
    let (guided_policy, guided_base) = (policy.guided(3.0).unwrap(), base.guided(3.0).unwrap());
    let mut losses = Vec::new();
    for [in_rollout, in_adjoint, in_control] in
        [[false; 3], [true, false, false], [true, true, false], [true, false, true], [true; 3]]
    {
        let pick = |guided: bool| if guided { [&guided_policy, &guided_base] } else { [policy, base] };
        let ([rolled, _], [_, carrying], [p, b]) = (pick(in_rollout), pick(in_adjoint), pick(in_control));
        let guidance = Guidance { scale: 3.0, rollout: in_rollout, adjoint: in_adjoint, control: in_control };
        let options = AdjointMatching { guidance, ..Case::options(2) };
        let fused = adjoint_matching(policy, base, x0, condition, &case.cost(300.0), &options).unwrap();
        let separate = case.separate([rolled, p], [carrying, b]);
        assert_eq!(values(&fused.losses[0]), values(&separate));
        let wanted: Vec<Tensor> = policy.params().into_iter().map(|(_, t)| t).collect();
        let both =
            gradients(&fused.losses[0], &wanted).unwrap().into_iter().zip(gradients(&separate, &wanted).unwrap());
        both.for_each(|(a, b)| assert_eq!(values(&a), values(&b)));
        losses.push(values(&fused.losses[0])[0]);
    }
    losses.sort_by(f32::total_cmp);
    assert!(losses.windows(2).all(|pair| pair[0] < pair[1]), "{losses:?}");

    // fields in the place of policy and base are guided where those would be
    let loss = |options| adjoint_matching(policy, base, x0, condition, &case.cost(300.0), &options).unwrap().losses;
    let field = |flow: &Flow| Some(Arc::new(flow.clone()) as Arc<dyn Velocity>);
    let guidance = Guidance { scale: 3.0, rollout: true, adjoint: true, control: false };
    let given = |rollout_policy, adjoint_model| AdjointMatching { rollout_policy, adjoint_model, ..Case::options(2) };
    let told = loss(AdjointMatching { guidance, ..given(field(policy), field(base)) });
    assert_eq!(values(&told[0]), values(&loss(given(field(&guided_policy), field(&guided_base)))[0]));
    assert_ne!(values(&told[0]), values(&loss(given(field(policy), field(base)))[0]));
}

/// A policy that is its base and a reward of nothing: nothing to learn, whatever the guidance.
#[test]
fn vgg_flow_guides_policy_and_base_alike() {
    let Case { base, policy, condition, x0 } = &Case::new();
    let nothing = |scale| RewardCost::new(|x| x.flatten_from(1)?.mean(1), scale).unwrap();
    let update = |scale, method: VggFlow| {
        let batch = Batch::new(x0, condition, nothing(scale));
        values(method.update(policy, base, &batch, &mut MethodState::default()).unwrap().losses.last().unwrap())[0]
    };
    let method = |guidance| VggFlow { guidance, ..VggFlow::new(klein_grid(STEPS, 16).unwrap()) };
    for guidance in [1.0, 4.0] {
        assert_eq!(update(0.0, method(guidance)), 0.0);
    }
    // The mean has the gradient 1 / n in each of n numbers: a norm of 1 / sqrt(n), bounded by a hundredth of that.
    let all = update(300.0, method(1.0));
    let norm = 300.0 / (x0.elem_count() as f64 / 2.0).sqrt();
    for (bound, left) in [(2.0 * norm, 1.0), (0.01 * norm, 1e-4)] {
        let bounded = update(300.0, VggFlow { gradient_clip: Some(bound), ..method(1.0) });
        assert!((f64::from(bounded / all) - left).abs() < 1e-3 * left, "{bounded} of {all}");
    }
}

#[test]
fn fresh_adapters_change_nothing_and_learn_from_their_second_factor_first() {
    let case = Case::new();
    let Case { base, policy, condition, x0 } = &case;
    let update = |scale| adjoint_matching(policy, base, x0, condition, &case.cost(scale), &Case::options(3)).unwrap();
    assert_eq!(values(&update(0.0).losses[0]), [0.0]);
    for (name, gradient) in policy
        .params()
        .iter()
        .zip(case.optimizer().gradients(&update(9.0).losses[0]).unwrap())
        .map(|((n, _), g)| (n, g))
    {
        let zero = values(&gradient).iter().all(|g| *g == 0.0);
        assert_eq!(zero, name.ends_with("lora_A.weight"), "{name}");
    }
}

#[test]
fn a_rollout_that_keeps_no_graph_asks_a_frozen_policy() {
    let case = Case::new();
    let options = RolloutOptions::new(klein_grid(STEPS, 16).unwrap());
    let path = rollout(&case.policy, &case.x0, &case.condition, &options).unwrap();
    let frozen = amscript::flow::Velocity::frozen(&case.policy).unwrap().unwrap();
    let v = frozen.velocity(&path.states[1], &path.time(1).unwrap(), &case.condition).unwrap();
    assert!(!v.requires_grad());
    assert_eq!(values(&v), values(&path.velocities[1]));
}
