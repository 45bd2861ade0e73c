//! Policy gradients, losses at noised ends and preferences, between Gaussians, where all of them have closed forms. The policy is the exact flow from
//! N(0, 1) to N(1, 0.5^2) and a constant `theta` more.

mod ends;
mod path;

use super::toy::{Counted, Gaussian, Mlp, golden, load, numbers};
use amscript::Result;
use amscript::align::policy::{
    Advantage, Ends, Errors, Explore, Follow, Forward, Gamma, Grpo, Kept, LeapAlign, Noised, Normalise, Reference,
    Regression, RowWeight, Scale, StepWeight, Times, Trained, Transition, Trust, VggFlow, noised,
};
use amscript::align::{self, Batch, Method, MethodState, Reduction, RewardCost, Selection, Update, norms};
use amscript::flow::{
    AtSteps, Condition, Cps, Dynamics, Euler, Gddim, Grid, Noise, RolloutOptions, Sde, Solver, Velocity, rollout,
    uniform,
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

fn mean(x: impl IntoIterator<Item = f64>) -> f64 {
    let x: Vec<f64> = x.into_iter().collect();
    x.iter().sum::<f64>() / x.len() as f64
}

/// `d loss / d theta` of an update at `theta = 0`.
fn gradient(method: &dyn Method, batch: &Batch) -> f64 {
    let policy = Moved::new(0.0);
    derivative(&update(method, &policy, batch).loss().unwrap(), &policy.0)
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
    let idle = Grpo { kl: 0.0, ..gated };
    assert!(message(&idle, &batch(4, 2, 0)).contains("go with a pull to it, got kl: 0.0"));
    let five = |divided| {
        let weight = RowWeight::Advantage(Advantage { scale: Scale::Rms, clip: Some(5.0) }, divided);
        Forward::new(uniform(4).unwrap(), weight, Regression::Nft { beta: 1.0 })
    };
    assert!(message(&five(1.0), &batch(4, 2, 0)).contains("weights of nft_loss must lie in [-1, 1], got up to 5"));
    update(&five(5.0), &Moved::new(0.0), &batch(4, 2, 0));
    let idle = Forward { reference: Reference::Copy(Follow::Every(9)), ..five(5.0) };
    assert!(message(&idle, &batch(4, 2, 0)).contains("got anchor: 0.0"));
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
