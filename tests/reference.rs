//! The golden case `flux2`: every stage of a tiny FLUX.2-Klein pipeline against diffusers and transformers.
//!
//! torch's exp is a last place off in two of the 128 frequencies of the time embedding, whose angles reach 1000. With its values
//! every figure of the transformer below is under 5e-6.

use amscript::flow::{Condition, RolloutOptions, Velocity, klein_grid, rollout};
use amscript::model::adapter::Targets;
use amscript::model::codec::latents::Latents;
use amscript::model::flux2::network::Transformer;
use amscript::model::{Flow, ModelOptions, open};
use amscript::nn::module::Module;
use amscript::nn::source::{Component, Folder, Sources};
use amscript::nn::weights::Weights;
use amscript::tensor::grad::{gradients, pullback, vjp};
use amscript::tensor::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};

fn folder() -> Folder {
    Folder::disk("tests/golden/flux2")
}

fn expected() -> HashMap<String, Tensor> {
    amscript::tensor::file::load("tests/golden/flux2/expected.safetensors", &Device::Cpu).unwrap()
}

fn latents() -> Latents {
    Latents::open(&Component::Folder(folder().sub("vae").unwrap()), None, DType::F32, &Device::Cpu).unwrap()
}

fn opened(choices: &ModelOptions) -> Flow {
    open("tests/golden/flux2", &Sources::default(), choices, &Device::Cpu).unwrap()
}

/// Time from noise to data, without rounding.
fn flipped(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap().affine(-1.0, 1.0).unwrap()
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
        self.transformer.velocity(x, &flipped(&self.golden["in.t"]), &self.golden["in.text"])
    }
}

#[test]
fn transformer_velocity_and_its_vjp() {
    let case = Case::new(false);
    let g = &case.golden;
    let cotangent = unpack(&g["in.cotangent_packed"]);
    let (v, gradient) = vjp(|x| case.velocity(x), &g["in.x"], &cotangent).unwrap();
    close("velocity", &v.neg().unwrap(), &g["out.velocity"], 1.5e-5);
    close("vjp", &gradient.neg().unwrap(), &unpack(&g["out.vjp_packed"]), 3.5e-5);
}

#[test]
fn transformer_weight_gradients() {
    let case = Case::new(true);
    let g = &case.golden;
    let target = unpack(&g["in.target_packed"]);
    let loss = (case.velocity(&g["in.x"]).unwrap().neg().unwrap() - target).unwrap().sqr().unwrap().mean_all().unwrap();
    close("loss", &loss.reshape(1).unwrap(), &g["out.loss"], 1e-5);
    let params: BTreeMap<String, Tensor> = case.weights.params().into_iter().collect();
    let names: Vec<&str> = g.keys().filter_map(|k| k.strip_prefix("out.grad.")).collect();
    assert_eq!(names.len(), 4);
    let wanted: Vec<Tensor> = names.iter().map(|name| params[*name].clone()).collect();
    for (name, gradient) in names.iter().zip(gradients(&loss, &wanted).unwrap()) {
        close(name, &gradient, &g[&format!("out.grad.{name}")], 2.1e-5);
    }
}

/// What a pipeline is sampled with where nothing records it: that of the published ones.
#[test]
fn steps_and_guidance_are_the_published_ones() {
    let defaults = |folder: &std::path::Path| {
        let flow = open(folder.to_str().unwrap(), &Sources::default(), &ModelOptions::default(), &Device::Cpu).unwrap();
        (flow.defaults().steps, flow.defaults().guidance)
    };
    let copy = tempfile::tempdir().unwrap();
    for part in ["transformer", "vae", "text_encoder", "tokenizer"] {
        std::os::unix::fs::symlink(
            std::fs::canonicalize(format!("tests/golden/flux2/{part}")).unwrap(),
            copy.path().join(part),
        )
        .unwrap();
    }
    let read = |name: &str| std::fs::read_to_string(format!("tests/golden/flux2/{name}")).unwrap();
    let recorded = r#"{ "max_sequence_length": 32, "text_encoder_out_layers": [1, 2, 3] }"#;
    for (distilled, expected) in [("false", (50, 4.0)), ("true", (4, 1.0))] {
        let index =
            read("model_index.json").replace("\"is_distilled\": false", &format!("\"is_distilled\": {distilled}"));
        std::fs::write(copy.path().join("model_index.json"), index).unwrap();
        std::fs::write(copy.path().join("amscript.json"), recorded).unwrap();
        assert_eq!(defaults(copy.path()), expected);
    }
    std::fs::write(copy.path().join("amscript.json"), recorded.replace(" }", ", \"steps\": 8 }")).unwrap();
    assert_eq!(defaults(copy.path()), (8, 1.0));
}

#[test]
fn autoencoder_both_ways() {
    let g = expected();
    let latents = latents();
    let image = g["in.image"].affine(0.5, 0.5).unwrap();
    close("mean", &latents.moments(&image).unwrap().0, &g["out.vae_mean"], 1e-5);
    close("latent", &latents.encode(&image).unwrap(), &g["out.vae_latent"], 1e-5);
    let z = g["in.z"].variable().unwrap();
    let decoded = latents.decode(&z).unwrap().affine(2.0, -1.0).unwrap();
    close("decoded", &decoded.constant(), &g["out.decoded"], 1e-5);
    let gradient = pullback(&decoded, &g["in.image_cotangent"], std::slice::from_ref(&z)).unwrap().remove(0);
    close("decoded vjp", &gradient, &g["out.decoded_vjp"], 1e-5);
}

/// The pipeline's unclamped image and the states of the four-step sample.
fn sample(velocity: &dyn Velocity, condition: &Condition, name: &str, [states_within, image_within]: [f64; 2]) {
    let g = expected();
    let options = RolloutOptions::new(klein_grid(4, 24).unwrap());
    let path = rollout(velocity, &g["in.noise"], condition, &options).unwrap();
    let states = Tensor::cat(&path.states, 0).unwrap();
    close("states", &states, &unpack(&g[&format!("out.{name}_states_packed")]), states_within);
    close("latent", path.last(), &g[&format!("out.{name}_latent")], states_within);
    let image = latents().decode(path.last()).unwrap().affine(2.0, -1.0).unwrap();
    close("image", &image, &g[&format!("out.{name}_image")], image_within);
}

#[test]
fn four_step_sample_from_a_prompt() {
    let flow = opened(&ModelOptions::default());
    let case: serde_json::Value = folder().json("case.json").unwrap();
    let prompt = case["prompts"][0].as_str().unwrap().to_string();
    sample(&flow, &flow.encode(&[prompt]).unwrap(), "sample", [1e-5, 3.5e-5]);
}

/// Diffusers' guidance: the empty prompt through the same template and encoder.
#[test]
fn four_step_sample_with_guidance() {
    let flow = opened(&ModelOptions::default());
    let case: serde_json::Value = folder().json("case.json").unwrap();
    let prompt = case["prompts"][0].as_str().unwrap().to_string();
    let scale = case["guidance_scale"].as_f64().unwrap();
    sample(&flow.guided(scale).unwrap(), &flow.encode(&[prompt]).unwrap(), "sample_cfg", [2e-5, 4.5e-5]);
}

fn single_files(choices: ModelOptions) -> ModelOptions {
    let file = |name: &str| format!("tests/golden/flux2/{name}.safetensors");
    ModelOptions { weights: Some(file("flux2_bfl").into()), options: [("vae", file("ae").into())].into(), ..choices }
}

fn golden_velocity(flow: &Flow) -> Tensor {
    let g = expected();
    let condition = Condition::default().with(Condition::EMBEDDINGS, g["in.text"].clone());
    let v = flow.velocity(&g["in.x"], &flipped(&g["in.t"]), &condition).unwrap();
    v.constant().neg().unwrap()
}

#[test]
fn single_files_hold_the_same_model() {
    let flow = opened(&single_files(ModelOptions::default()));
    let g = expected();
    close("velocity", &golden_velocity(&flow), &g["out.velocity"], 1.5e-5);
    let same = opened(&ModelOptions::default());
    close("the folder's velocity", &golden_velocity(&flow), &golden_velocity(&same), 1e-6);
    let images = |flow: &Flow| flow.decode(&g["in.z"]).unwrap();
    close("the folder's image", &images(&flow), &images(&same), 1e-6);
    let image = g["in.image"].affine(0.5, 0.5).unwrap();
    close("latent", &flow.encode_image(&image).unwrap(), &g["out.vae_latent"], 1e-5);
    let by_path =
        open("tests/golden/flux2/flux2_bfl.safetensors", &Sources::default(), &ModelOptions::default(), &Device::Cpu);
    close("opened by path", &golden_velocity(&by_path.unwrap()), &golden_velocity(&same), 1e-6);
}

/// Every golden weight is a bf16 number, so holding them so changes nothing; computing so does.
#[test]
fn half_precision_weights_and_compute() {
    let g = expected();
    let with = |dtype, compute| {
        golden_velocity(&opened(&single_files(ModelOptions { dtype, compute, ..ModelOptions::default() })))
    };
    close("bf16 weights", &with(Some(DType::BF16), None), &g["out.velocity"], 1.5e-5);
    close("bf16 compute", &with(Some(DType::BF16), Some(DType::BF16)), &g["out.velocity"], 0.05);
    close("f16 compute", &with(Some(DType::F32), Some(DType::F16)), &g["out.velocity"], 0.01);
    let f64 = with(Some(DType::F64), None);
    assert_eq!(f64.dtype(), DType::F32);
    close("f64 compute", &f64, &g["out.velocity"], 1.5e-5);
}

#[test]
fn recomputed_blocks_give_the_same_gradients() {
    let g = expected();
    let condition = Condition::default().with(Condition::EMBEDDINGS, g["in.text"].clone());
    let rng = amscript::tensor::Rng::new(3);
    let products = |checkpoint_blocks| {
        let base = opened(&ModelOptions { checkpoint_blocks: Some(checkpoint_blocks), ..ModelOptions::default() });
        let tuned = base.lora(2, 1.0, &Targets::Usual, &rng).unwrap();
        for (name, tensor) in tuned.params() {
            let noise = (rng.split(&name).normal(tensor.dims(), DType::F32, &Device::Cpu).unwrap() * 0.2).unwrap();
            tensor.set(&noise).unwrap();
        }
        let x = g["in.x"].variable().unwrap();
        let v = tuned.velocity(&x, &g["in.t"], &condition).unwrap();
        let z = g["in.z"].variable().unwrap();
        let image = pullback(&tuned.decode(&z).unwrap(), &g["in.image_cotangent"], &[z]).unwrap();
        let wanted: Vec<Tensor> = std::iter::once(x).chain(tuned.params().into_iter().map(|(_, p)| p)).collect();
        [pullback(&v, &unpack(&g["in.cotangent_packed"]), &wanted).unwrap(), image].concat()
    };
    for (i, (plain, again)) in products(false).iter().zip(products(true)).enumerate() {
        close(&format!("gradient {i}"), &again, plain, 1e-5);
    }
}

#[test]
fn the_published_size_from_shapes_alone() {
    let config: serde_json::Value = serde_json::json!({
        "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "attention_head_dim": 128,
        "joint_attention_dim": 7680, "mlp_ratio": 3.0, "axes_dims_rope": [32, 32, 32, 32],
    });
    let meta = Weights::meta(DType::BF16, &amscript::tensor::meta::Trace::new(false));
    Transformer::new(&serde_json::from_value(config).unwrap(), &meta, true).unwrap();
    assert_eq!(meta.count(), (169, 3_875_544_576));
}
