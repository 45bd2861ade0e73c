//! A program that adds its own family of models and its own reward to a host, and aligns the one to the other from a script.
//! Nothing in the crate changes: a family is a record of parts, a reward is a trait with two methods.
//!
//! `cargo run --example extend`
#![allow(clippy::print_stdout)]

use amscript::flow::{Condition, Velocity};
use amscript::model::{self, Codec, Conditioner, Opening, Parts};
use amscript::nn::linear::Linear;
use amscript::nn::opener::{Takes, field};
use amscript::nn::weights::Weights;
use amscript::reward::{self, Batch, Reward, RewardModel};
use amscript::script::{Host, Request, Session};
use amscript::tensor::{DType, Rng, Tensor, op};
use amscript::{Error, Kind, Result};
use std::sync::Arc;

/// A flow over colours `[batch, 3]`: one hidden layer that reads the colour, the time, and what a prompt asks for.
struct Network {
    hidden: Linear,
    out: Linear,
}

impl Network {
    fn new(w: &Weights, width: usize) -> Result<Self> {
        Ok(Self { hidden: w.pp("hidden").linear(3 + 1 + 3, width, true)?, out: w.pp("out").linear(width, 3, true)? })
    }
}

impl Velocity for Network {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let seen = op::cat(&[x, &op::reshape(t, (t.elem_count(), 1))?, condition.need("colour")?], 1)?;
        self.out.forward(&op::silu(&self.hidden.forward(&seen)?)?)
    }
}

/// The colour that a prompt names, as a tensor of the condition; `Condition` holds any number of them by name.
struct Colours;

impl Conditioner for Colours {
    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        let rows =
            prompts.iter().flat_map(|prompt| ["red", "green", "blue"].map(|c| f32::from(prompt.contains(c) as u8)));
        let colours = Tensor::from_vec(rows.collect::<Vec<f32>>(), (prompts.len(), 3), &amscript::tensor::Device::Cpu)?;
        Ok(Condition::of_text(prompts).with("colour", colours))
    }

    fn unconditional(&self, rows: usize) -> Result<Condition> {
        self.encode(&vec![String::new(); rows])
    }
}

/// A colour as an image of one pixel, and back.
struct Pixel;

impl Codec for Pixel {
    fn latent_shape(&self, _size: Option<&[usize]>) -> Result<Vec<usize>> {
        Ok(vec![3])
    }

    fn encode(&self, images: &Tensor) -> Result<Tensor> {
        images.mean((2, 3))?.affine(2.0, -1.0)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let pixels = op::reshape(&latents.affine(0.5, 0.5)?, (latents.dim(0)?, 3, 1, 1))?;
        op::clamp_through(&pixels, 0.0, 1.0)
    }
}

/// Parts and weights of `flow("colours")`: here a network at random; a family with files reads them from `opening.found`.
fn open(opening: &Opening) -> Result<(Parts, Weights)> {
    let width = opening.option("width")?.unwrap_or(32);
    let weights = Weights::random(&Rng::new(0), opening.choices.dtype.unwrap_or(DType::F32), opening.device);
    let network = move |w: &Weights| Ok(Arc::new(Network::new(w, width)?) as Arc<dyn Velocity>);
    Ok((Parts::new(network, Colours, Pixel), weights))
}

pub const FAMILY: model::Opener = model::Opener {
    name: "colours",
    repositories: &[],
    recognises: |found| found.name == "colours",
    options: &[field("width", Takes::Count, "Width of the hidden layer.")],
    open,
};

/// How much more red than blue an image is.
struct Warmth;

impl Reward for Warmth {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let channel = |c| op::narrow(batch.images, 1, c, 1);
        (channel(0)? - channel(2)?)?.mean((1, 2, 3))
    }

    fn describe(&self) -> String {
        "warmth".into()
    }
}

pub const REWARD: reward::Opener = reward::Opener {
    name: "warmth",
    repositories: &[],
    recognises: |found| found.name == "warmth",
    options: &[],
    open: |_| Ok(RewardModel::new(Warmth)),
};

const SCRIPT: &str = r#"
    let base   = flow("colours", #{ width: 48 });
    let policy = base.lora(#{ rank: 4 });
    let judge  = reward("warmth");
    let opt    = adamw(policy.params(), #{ rate: 1e-2 });
    let c      = base.encode(["something green", "something blue"]).repeat(8);
    let scored = |model| {
        let path = rollout(model, base.noise(16, rng(7)), c, #{ grid: uniform(8) });
        judge.score(model.decode(path.last), c).mean().item()
    };
    let before = scored.call(base);
    for i in 0..20 {
        let cost = reward_cost(judge, c, 20);
        let update = adjoint_matching(policy, base, base.noise(16, rng(i)), c, cost, #{ grid: uniform(8) });
        opt.step(update.loss);
    }
    print(`${base} and ${judge}: ${before} before, ${scored.call(policy)} after`);
    [before, scored.call(policy)]
"#;

/// The reward before and after alignment; public so that a test can run it.
pub fn run(host: &Host) -> Result<[f64; 2]> {
    host.register_family(FAMILY)?;
    host.register_reward(REWARD)?;
    // A method of its own, `host.register_method(..)`, comes here once methods are values.
    let scores = host.run("extended script", SCRIPT)?.into_typed_array::<f64>();
    let scores = scores.map_err(|came| Error::new(Kind::Type, format!("expected two scores, got {came}")))?;
    scores.try_into().map_err(|_| Error::new(Kind::Value, "expected two scores"))
}

pub fn main() -> Result<()> {
    let host = Host::new(Session::new(Request::default(), Box::new(|line| println!("{line}"))));
    run(&host).map(drop)
}
