//! The golden case `flux2`: every stage of a tiny FLUX.2-Klein pipeline against diffusers and transformers.
#![allow(clippy::unwrap_used)]

use amscript::flow::{RolloutOptions, klein_grid, rollout};
use amscript::model::flux2::Transformer;
use amscript::model::klein::Klein;
use amscript::model::latents::Latents;
use amscript::model::source::Folder;
use amscript::model::{Condition, Flow, Velocity};
use amscript::nn::weights::Weights;
use amscript::tensor::grad::{gradients, pullback, vjp};
use amscript::tensor::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

fn folder() -> Folder {
    Folder::disk("tests/golden/flux2")
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load("tests/golden/flux2/expected.safetensors", &Device::Cpu).unwrap()
}

/// Largest difference relative to the largest expected value.
fn close(name: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{name}");
    let top =
        |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    let error = top(&(got - expected).unwrap()) / top(expected);
    assert!(error < tolerance, "{name}: relative error {error:e}");
}

/// `[batch, tokens, channels]` as `[batch, channels, h, w]` of the golden 4 x 6 grid.
fn unpack(x: &Tensor) -> Tensor {
    let (b, _, c) = x.dims3().unwrap();
    x.transpose(1, 2).unwrap().contiguous().unwrap().reshape((b, c, 4, 6)).unwrap()
}

struct Case {
    golden: HashMap<String, Tensor>,
    transformer: Transformer,
    weights: Weights,
}

impl Case {
    fn new(trainable: bool) -> Self {
        let part = folder().sub("transformer").unwrap();
        let config = part.json("config.json").unwrap();
        let weights = part.weights("diffusion_pytorch_model", DType::F32, &Device::Cpu).unwrap();
        let transformer = Transformer::new(&config, &weights, false).unwrap();
        weights.finish().unwrap();
        if !trainable {
            return Self { golden: expected(), transformer, weights };
        }
        let weights = weights.trainable(|_| true).unwrap();
        Self { golden: expected(), transformer: Transformer::new(&config, &weights, false).unwrap(), weights }
    }

    /// Our velocity at the golden inputs: time from noise to data.
    fn velocity(&self, x: &Tensor) -> amscript::Result<Tensor> {
        self.transformer.velocity(x, &self.golden["in.t"].affine(-1.0, 1.0)?, &self.golden["in.text"])
    }
}

#[test]
fn transformer_velocity_and_its_vjp() {
    let case = Case::new(false);
    let g = &case.golden;
    let cotangent = unpack(&g["in.cotangent_packed"]);
    let (v, gradient) = vjp(|x| case.velocity(x), &g["in.x"], &cotangent).unwrap();
    close("velocity", &v.neg().unwrap(), &g["out.velocity"], 1e-4);
    close("vjp", &gradient.neg().unwrap(), &unpack(&g["out.vjp_packed"]), 1e-4);
}

#[test]
fn transformer_weight_gradients() {
    let case = Case::new(true);
    let g = &case.golden;
    let target = unpack(&g["in.target_packed"]);
    let loss = (case.velocity(&g["in.x"]).unwrap().neg().unwrap() - target).unwrap().sqr().unwrap().mean_all().unwrap();
    close("loss", &loss.reshape(1).unwrap(), &g["out.loss"], 1e-4);
    let params: BTreeMap<String, Tensor> = case.weights.params().into_iter().collect();
    let names: Vec<&str> = g.keys().filter_map(|k| k.strip_prefix("out.grad.")).collect();
    assert_eq!(names.len(), 4);
    let wanted: Vec<Tensor> = names.iter().map(|name| params[*name].clone()).collect();
    for (name, gradient) in names.iter().zip(gradients(&loss, &wanted).unwrap()) {
        close(name, &gradient, &g[&format!("out.grad.{name}")], 1e-4);
    }
}

#[test]
fn autoencoder_both_ways() {
    let g = expected();
    let latents = Latents::open(&folder().sub("vae").unwrap(), DType::F32, &Device::Cpu).unwrap();
    let image = g["in.image"].affine(0.5, 0.5).unwrap();
    close("mean", &latents.moments(&image).unwrap().0, &g["out.vae_mean"], 1e-4);
    close("latent", &latents.encode(&image).unwrap(), &g["out.vae_latent"], 1e-4);
    let z = candle_core::Var::from_tensor(&g["in.z"]).unwrap();
    let decoded = latents.decode(z.as_tensor()).unwrap().affine(2.0, -1.0).unwrap();
    close("decoded", &decoded.detach(), &g["out.decoded"], 1e-4);
    let gradient = pullback(&decoded, &g["in.image_cotangent"], &[z.as_tensor().clone()]).unwrap().remove(0);
    close("decoded vjp", &gradient, &g["out.decoded_vjp"], 1e-4);
}

/// The pipeline's unclamped image and the states of the four-step sample.
fn sample(velocity: Arc<dyn Velocity>, klein: &Klein, condition: &Condition, name: &str) {
    let g = expected();
    let options = RolloutOptions::new(klein_grid(4, 24).unwrap());
    let path = rollout(velocity.as_ref(), &g["in.noise"], condition, &options).unwrap();
    let states = Tensor::cat(&path.states, 0).unwrap();
    close("states", &states, &unpack(&g[&format!("out.{name}_states_packed")]), 1e-4);
    close("latent", path.last(), &g[&format!("out.{name}_latent")], 1e-4);
    let image = klein.latents().decode(path.last()).unwrap().affine(2.0, -1.0).unwrap();
    close("image", &image, &g[&format!("out.{name}_image")], 1e-4);
}

#[test]
fn four_step_sample_from_a_prompt() {
    let klein = Klein::open("golden", &folder(), None, &Device::Cpu).unwrap();
    let weights = klein.weights(&folder(), &Device::Cpu).unwrap();
    let klein = Arc::new(klein);
    let flow = Flow::of_family(klein.clone(), weights).unwrap();
    let case: serde_json::Value = folder().json("case.json").unwrap();
    let prompt = case["prompts"][0].as_str().unwrap().to_string();
    sample(Arc::new(flow.clone()), &klein, &flow.encode(&[prompt]).unwrap(), "sample");
}
