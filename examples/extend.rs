//! A program that adds a family of models, a reward and a method of its own to a host, and runs a script with them. Nothing in the crates
//! changes: a family is a record of parts, a reward is a trait with two methods, a method is one with an update.
//!
//! `cargo run --example extend`
#![allow(clippy::print_stdout)]

use amscript::align::{self, Method, MethodState, Update, rewards};
use amscript::flow::{Condition, Velocity, time_tensor};
use amscript::model::{self, Codec, Conditioner, Opening, Parts};
use amscript::nn::linear::Linear;
use amscript::nn::opener::{Takes, field};
use amscript::nn::weights::Weights;
use amscript::reward::{self, Batch, Reward, RewardModel};
use amscript::script::{Host, Request, Session};
use amscript::tensor::{DType, Device, Rng, Tensor, op};
use amscript::{Error, Kind, Result};
use std::sync::Arc;

/// A flow over colours `[batch, 3]`: one hidden layer that reads the colour, the time, and what a prompt asks for.
struct Network([Linear; 2]);

impl Velocity for Network {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let seen = Tensor::cat(&[x, &t.unsqueeze(1)?, condition.need("colour")?], 1)?;
        self.0[1].forward(&op::silu(&self.0[0].forward(&seen)?)?)
    }
}

/// The colour that a prompt names, as a tensor of the condition; `Condition` holds any number of them by name.
struct Colours;

impl Conditioner for Colours {
    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        let row = |prompt: &String| ["red", "green", "blue"].map(|c| f32::from(prompt.contains(c)));
        let rows: Vec<[f32; 3]> = prompts.iter().map(row).collect();
        let colours = Tensor::from_vec(rows.concat(), (prompts.len(), 3), &Device::Cpu)?;
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
        op::clamp_through(&latents.affine(0.5, 0.5)?.reshape((latents.dim(0)?, 3, 1, 1))?, 0.0, 1.0)
    }
}

/// Parts and weights of `flow("colours")`: here a network at random; a family with files reads them from `opening.found`.
fn open(opening: &Opening) -> Result<(Parts, Weights)> {
    let width = opening.option("width")?.unwrap_or(32);
    let weights = Weights::random(&Rng::new(0), opening.choices.dtype.unwrap_or(DType::F32), opening.device);
    let network = move |w: &Weights| {
        let layers = [w.pp("hidden").linear(3 + 1 + 3, width, true)?, w.pp("out").linear(width, 3, true)?];
        Ok(Arc::new(Network(layers)) as Arc<dyn Velocity>)
    };
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
        (batch.images.narrow(1, 0, 1)? - batch.images.narrow(1, 2, 1)?)?.mean((1, 2, 3))
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

/// The reward's gradient through one step from noise to data.
struct OneStep(f64);

impl Method for OneStep {
    fn name(&self) -> &str {
        "one_step"
    }

    fn update(&self, policy: &dyn Velocity, _: &dyn Velocity, b: &align::Batch, _: &mut MethodState) -> Result<Update> {
        let x1 = (&b.x0 + policy.velocity(&b.x0, &time_tensor(0.0, &b.x0)?, &b.condition)?)?;
        let reward = rewards(&*b.cost, &x1, "one_step")?;
        Ok(Update::new((reward.mean_all()? * -(self.0 * b.cost.scale()))?, &reward))
    }
}

const SCRIPT: &str = r#"
    let base = flow("colours", #{ width: 48 });
    let policy = base.lora(#{ rank: 4 });
    let judge = reward("warmth");
    let opt = adamw(policy.params(), #{ rate: 1e-2 });
    let c      = base.encode(["something green", "something blue"]).repeat(8);
    let scored = |model| {
        let path = rollout(model, base.noise(16, rng(7)), c, #{ grid: uniform(8) });
        judge.score(model.decode(path.last), c).mean().item()
    };
    let before = scored(base);
    for method in [one_step(#{ weight: 2 }), adjoint_matching(#{ grid: uniform(8) })] {
        for i in 0..10 {
            let update = method.update(policy, base, batch(base.noise(16, rng(i)), c, reward_cost(judge, c, 20)));
            opt.step(update.loss);
        }
        print(`${method}: ${before} before, ${scored(policy)} after`);
    }
    [before, scored(policy)]
"#;

/// The reward before and after alignment; public so that a test can run it.
pub fn run(host: &mut Host) -> Result<[f64; 2]> {
    host.register_family(FAMILY)?;
    host.register_reward(REWARD)?;
    host.register_method("one_step", |given| given.take("weight", || 1.0).map(OneStep))?;
    let scores = host.run("extended script", SCRIPT)?.into_typed_array::<f64>().unwrap_or_default();
    scores.try_into().map_err(|came| Error::new(Kind::Value, format!("expected two scores, got {came:?}")))
}

pub fn main() -> Result<()> {
    run(&mut Host::new(Session::new(Request::default(), Box::new(|line| println!("{line}"))))).map(drop)
}
