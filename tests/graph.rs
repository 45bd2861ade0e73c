//! Graphs of models, decoders, rewards and losses hold none of candle's own operations, so that `tape` walks them back.
#![allow(clippy::unwrap_used)]

use amscript::align::{self, AdjointMatching, Batch, Draft, Method, MethodState, Refl, RewardCost, Truncation};
use amscript::flow::{Velocity, uniform};
use amscript::model::adapter::Targets;
use amscript::model::{Flow, ModelOptions, open};
use amscript::nn::opener::Found;
use amscript::nn::source::Sources;
use amscript::reward::clip_encoder::ClipCache;
use amscript::reward::{self, RewardModel};
use amscript::tensor::check::{as_on_a_device, reads};
use amscript::tensor::{Device, Rng, Stream, Tensor};

const REWARDS: [&str; 5] = ["tiny/hpsv2", "tiny/pickscore", "tiny/clip", "tiny/aesthetic", "tiny/imagereward"];

fn reward_model(name: &str) -> RewardModel {
    let sources = Sources::default();
    let found = Found::in_folder(name, sources.find(name).unwrap());
    reward::open::open(&found, &Default::default(), &ClipCache::default(), &sources, &Device::Cpu).unwrap()
}

fn models() -> [Flow; 2] {
    ["tiny/flux2", "tiny/sit"]
        .map(|name| open(name, &Sources::default(), &ModelOptions::default(), &Device::Cpu).unwrap())
}

fn condition(flow: &Flow) -> amscript::flow::Condition {
    match flow.classes().is_empty() {
        true => flow.encode(&["a red ring".to_string()]).unwrap(),
        false => flow.encode_labels(&[3]).unwrap(),
    }
}

#[test]
fn velocities_images_and_scores() {
    for flow in models() {
        let x = flow.noise(1, None, &mut Rng::new(0)).unwrap().variable().unwrap();
        let t = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let v = flow.velocity(&x, &t, &condition(&flow)).unwrap();
        assert!(v.requires_grad(), "velocity of {flow}");
        let images = flow.decode(&v).unwrap();
        assert!(images.requires_grad(), "images of {flow}");
        for name in REWARDS {
            let score = reward_model(name).score(&images, &["a red ring".to_string()]).unwrap();
            assert!(score.requires_grad(), "{name} of {flow}");
        }
    }
}

fn methods(steps: usize, truncate: Truncation) -> [Box<dyn Method>; 3] {
    let grid = uniform(steps).unwrap();
    [
        Box::new(AdjointMatching { truncate, ..AdjointMatching::new(grid.clone()) }),
        Box::new(Draft { truncate, ..Draft::new(grid.clone()) }),
        Box::new(Refl { truncate, ..Refl::new(grid) }),
    ]
}

#[test]
fn losses_of_every_method() {
    for base in models() {
        let policy = base.lora(2, 1.0, &Targets::default(), &Rng::new(1)).unwrap();
        let (x0, c) = (base.noise(1, None, &mut Rng::new(0)).unwrap(), condition(&base));
        let (flow, scorer) = (base.clone(), reward_model(REWARDS[0]));
        let cost = RewardCost::new(move |x| scorer.score(&flow.decode(x)?, &["a red ring".to_string()]), 1.0).unwrap();
        let batch = Batch { rng: Some(Stream::new(Rng::new(0))), ..Batch::new(&x0, &c, cost) };
        for method in methods(2, Truncation::Full) {
            let update = align::update(&*method, &policy, &base, &batch, &mut MethodState::default()).unwrap();
            let loss = update.loss().unwrap();
            assert!(loss.requires_grad(), "loss of {} of {base}", method.name());
        }
    }
}

/// Until its loss is there, an update waits for a device once: what is checked on the way is read together.
#[test]
fn an_update_reads_numbers_once() {
    let base = models()[0].clone();
    let policy = base.lora(2, 1.0, &Targets::default(), &Rng::new(1)).unwrap();
    let (x0, c) = (base.noise(2, None, &mut Rng::new(0)).unwrap(), base.encode(&vec!["a red ring".into(); 2]).unwrap());
    let (flow, scorer) = (base.clone(), reward_model(REWARDS[0]));
    let prompts = vec!["a red ring".to_string(); 2];
    let cost = RewardCost::new(move |x| scorer.score(&flow.decode(x)?, &prompts), 1.0).unwrap();
    let batch = Batch { rng: Some(Stream::new(Rng::new(0))), ..Batch::new(&x0, &c, cost) };
    for method in methods(3, Truncation::Last(2)) {
        let before = reads();
        let update =
            as_on_a_device(|| align::update(&*method, &policy, &base, &batch, &mut MethodState::default()).unwrap());
        assert!(update.loss().unwrap().requires_grad());
        assert_eq!(reads() - before, 1, "{}", method.name());
    }
}
