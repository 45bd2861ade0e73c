//! Graphs of models, decoders, rewards and losses hold none of candle's own operations, so that `tape` walks them back.
#![allow(clippy::unwrap_used)]

use amscript::align::{DraftOptions, Truncation};
use amscript::align::{MatchingOptions, RewardCost, TerminalCost, adjoint_matching, draft, refl};
use amscript::flow::{RolloutOptions, Velocity, uniform};
use amscript::model::adapter::Targets;
use amscript::model::{Choices, Flow, open};
use amscript::nn::opener::Found;
use amscript::nn::source::Sources;
use amscript::reward::trunk::Shelf;
use amscript::reward::{self, Judge};
use amscript::tensor::check::{as_on_a_device, reads};
use amscript::tensor::grad::is_ours;
use amscript::tensor::{Device, Rng, Tensor};
use candle_core::Var;

const REWARDS: [&str; 5] = ["tiny/hpsv2", "tiny/pickscore", "tiny/clip", "tiny/aesthetic", "tiny/imagereward"];

fn judge(name: &str) -> Judge {
    let sources = Sources::default();
    let found = Found::in_folder(name, sources.find(name).unwrap());
    reward::open::open(&found, &Default::default(), &Shelf::default(), &sources, &Device::Cpu).unwrap()
}

fn models() -> [Flow; 2] {
    ["tiny/flux2", "tiny/sit"].map(|name| open(name, &Sources::default(), &Choices::default(), &Device::Cpu).unwrap())
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
        let x = Var::from_tensor(&flow.noise(1, None, &mut Rng::new(0)).unwrap()).unwrap().into_inner();
        let t = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let v = flow.velocity(&x, &t, &condition(&flow)).unwrap();
        assert!(v.track_op() && is_ours(&v), "velocity of {flow}");
        let images = flow.decode(&v).unwrap();
        assert!(images.track_op() && is_ours(&images), "images of {flow}");
        for name in REWARDS {
            let score = judge(name).score(&images, &["a red ring".to_string()]).unwrap();
            assert!(score.track_op() && is_ours(&score), "{name} of {flow}");
        }
    }
}

#[test]
fn losses_of_every_method() {
    for base in models() {
        let policy = base.lora(2, 1.0, &Targets::default(), &Rng::new(1)).unwrap();
        let (x0, c) = (base.noise(1, None, &mut Rng::new(0)).unwrap(), condition(&base));
        let (flow, scorer) = (base.clone(), judge(REWARDS[0]));
        let cost = RewardCost::new(move |x| scorer.score(&flow.decode(x)?, &["a red ring".to_string()]), 1.0).unwrap();
        assert!(cost.scale() == 1.0);
        let rollout = RolloutOptions::new(uniform(2).unwrap());
        let matching = MatchingOptions::new(uniform(2).unwrap());
        let draft_options = DraftOptions { rollout: rollout.clone(), truncate: Truncation::Full, renoised: 0 };
        let losses = [
            adjoint_matching(&policy, &base, &x0, &c, &cost, &matching).unwrap().loss,
            draft(&policy, &x0, &c, &cost, &draft_options).unwrap().loss,
            refl(&policy, &x0, &c, &cost, &rollout, 1).unwrap().loss,
        ];
        for (i, loss) in losses.iter().enumerate() {
            assert!(loss.track_op() && is_ours(loss), "loss {i} of {base}");
        }
    }
}

/// Until its loss is there, an update waits for a device once: what is checked on the way is read together.
#[test]
fn an_update_reads_numbers_once() {
    let base = models()[0].clone();
    let policy = base.lora(2, 1.0, &Targets::default(), &Rng::new(1)).unwrap();
    let (x0, c) = (base.noise(2, None, &mut Rng::new(0)).unwrap(), base.encode(&vec!["a red ring".into(); 2]).unwrap());
    let (flow, scorer) = (base.clone(), judge(REWARDS[0]));
    let prompts = vec!["a red ring".to_string(); 2];
    let cost = RewardCost::new(move |x| scorer.score(&flow.decode(x)?, &prompts), 1.0).unwrap();
    let rollout = RolloutOptions::new(uniform(3).unwrap());
    let count = |f: &dyn Fn() -> Tensor| {
        let before = reads();
        assert!(as_on_a_device(f).track_op());
        reads() - before
    };
    let matching = MatchingOptions { truncate: Truncation::Last(2), ..MatchingOptions::new(rollout.grid.clone()) };
    assert_eq!(count(&|| adjoint_matching(&policy, &base, &x0, &c, &cost, &matching).unwrap().loss), 1);
    let options = DraftOptions { rollout: rollout.clone(), truncate: Truncation::Last(1), renoised: 0 };
    assert_eq!(count(&|| draft(&policy, &x0, &c, &cost, &options).unwrap().loss), 1);
    assert_eq!(count(&|| refl(&policy, &x0, &c, &cost, &rollout, 1).unwrap().loss), 1);
}
