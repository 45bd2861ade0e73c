//! The golden case `sit`: a tiny SiT in three files, and Stable Diffusion's autoencoder, against the original code and diffusers.

use amscript::flow::{Condition, RolloutOptions, Velocity, rollout, uniform};
use amscript::model::adapter::Targets;
use amscript::model::codec::latents::Latents;
use amscript::model::sit::network::{SitConfig, Transformer, random};
use amscript::model::{Flow, ModelOptions, open};
use amscript::nn::module::Module;
use amscript::nn::source::{Component, Folder, Sources};
use amscript::nn::weights::{Init, Weights};
use amscript::tensor::grad::{gradients, pullback, vjp};
use amscript::tensor::{DType, Device, Rng, Tensor};
use std::collections::HashMap;
use std::path::Path;

const FOLDER: &str = "tests/golden/sit";

fn expected() -> HashMap<String, Tensor> {
    amscript::tensor::file::load(format!("{FOLDER}/expected.safetensors"), &Device::Cpu).unwrap()
}

/// The README's last column: differences from a float64 run. Ten times that is allowed, and 1e-5 of the largest value.
const DIFFERENCES: [(&str, f64); 11] = [
    ("velocity", 1.5e-6),
    ("vjp", 4.4e-6),
    ("velocity_null", 1.3e-6),
    ("velocity_cfg4", 7.0e-6),
    ("velocity_cfg3", 7.0e-6),
    ("sample_states", 6.8e-7),
    ("sample_cfg4_states", 2.5e-6),
    ("vae_mean", 1.9e-6),
    ("sample_image", 3.5e-6),
    ("decoded", 3.3e-6),
    ("decoded_vjp", 1.4e-4),
];

fn close(name: &str, got: &Tensor) {
    let wanted = &expected()[&format!("out.{name}")];
    assert_eq!(got.dims(), wanted.dims(), "{name}");
    let top =
        |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    let allowed = DIFFERENCES.iter().find(|(n, _)| *n == name).unwrap().1 * 10.0;
    let (error, allowed) = (top(&(got - wanted).unwrap()), allowed.max(1e-5 * top(wanted)));
    assert!(error <= allowed, "{name}: {error:e} where {allowed:e} is allowed");
}

fn with_vae() -> ModelOptions {
    ModelOptions { options: [("vae", format!("{FOLDER}/vae").into())].into(), ..ModelOptions::default() }
}

fn model(file: &str, guide_channels: Option<usize>) -> Flow {
    let mut choices = with_vae();
    if let Some(channels) = guide_channels {
        choices.options.0.insert("guide_channels".into(), channels.into());
    }
    open(&format!("{FOLDER}/{file}"), &Sources::default(), &choices, &Device::Cpu).unwrap()
}

fn stored() -> (SitConfig, Weights) {
    let folder = Folder::disk(FOLDER);
    let weights = Weights::open(vec![folder.archive("sit.safetensors").unwrap()], DType::F32, &Device::Cpu).unwrap();
    (folder.json("config.json").unwrap(), weights)
}

fn condition(flow: &Flow, name: &str) -> Condition {
    let labels: Vec<u32> = expected()[name].to_vec1::<i64>().unwrap().into_iter().map(|l| l as u32).collect();
    flow.encode_labels(&labels).unwrap()
}

#[test]
fn velocity_and_its_vjp_of_every_file() {
    let g = expected();
    for file in ["sit.safetensors", "sit.pt", "sit_train.pt"] {
        let flow = model(file, None);
        let c = condition(&flow, "in.y");
        let (v, gradient) = vjp(|x| flow.velocity(x, &g["in.t"], &c), &g["in.x"], &g["in.cotangent"]).unwrap();
        close("velocity", &v);
        close("vjp", &gradient);
        let null = flow.encode_labels(&[10, 10, 10]).unwrap();
        close("velocity_null", &flow.velocity(&g["in.x"], &g["in.t"], &null).unwrap());
    }
}

#[test]
fn guidance_of_all_channels_and_of_three() {
    let g = expected();
    for (channels, name) in [(None, "velocity_cfg4"), (Some(3), "velocity_cfg3")] {
        let guided = model("sit.safetensors", channels).guided(4.0).unwrap();
        let c = condition(&guided, "in.y");
        close(name, &guided.velocity(&g["in.x"], &g["in.t"], &c).unwrap());
    }
}

#[test]
fn ten_euler_steps_with_and_without_guidance() {
    let (flow, g) = (model("sit.safetensors", None), expected());
    let (guided, c) = (flow.guided(4.0).unwrap(), condition(&flow, "in.noise_y"));
    let options = RolloutOptions::new(uniform(10).unwrap());
    let path = rollout(&flow, &g["in.noise"], &c, &options).unwrap();
    close("sample_states", &Tensor::stack(&path.states, 0).unwrap());
    let path = rollout(&guided, &g["in.noise"], &c, &options).unwrap();
    close("sample_cfg4_states", &Tensor::stack(&path.states, 0).unwrap());
    let vae = Component::Folder(Folder::disk(format!("{FOLDER}/vae")));
    let latents = Latents::open(&vae, None, DType::F32, &Device::Cpu).unwrap();
    let image = latents.decode(&path.last().narrow(0, 0, 1).unwrap()).unwrap();
    close("sample_image", &image.affine(2.0, -1.0).unwrap());
}

#[test]
fn autoencoder_in_both_namings() {
    let g = expected();
    for folder in ["vae", "vae_old_keys"] {
        let part = Component::Folder(Folder::disk(format!("{FOLDER}/{folder}")));
        let latents = Latents::open(&part, None, DType::F32, &Device::Cpu).unwrap();
        close("vae_mean", &latents.moments(&g["in.image"].affine(0.5, 0.5).unwrap()).unwrap().0);
        let z = g["in.z"].variable().unwrap();
        let decoded = latents.decode(&z).unwrap().affine(2.0, -1.0).unwrap();
        close("decoded", &decoded.constant());
        close("decoded_vjp", &pullback(&decoded, &g["in.image_cotangent"], std::slice::from_ref(&z)).unwrap()[0]);
    }
}

/// `shift_factor` of later ones: encoded are `(raw - shift) factor`, and back.
#[test]
fn a_shift_of_latents_is_applied() {
    let g = expected();
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(format!("{FOLDER}/vae")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let factor = config["scaling_factor"].as_f64().unwrap();
    config["shift_factor"] = 0.1159.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let [plain, shifted] = [format!("{FOLDER}/vae"), copy.path().to_str().unwrap().to_string()]
        .map(|folder| Latents::open(&Component::Folder(Folder::disk(folder)), None, DType::F32, &Device::Cpu).unwrap());
    let apart = |a: Tensor, b: Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_vec0::<f32>().unwrap();
    let image = g["in.image"].affine(0.5, 0.5).unwrap();
    let expected = (plain.encode(&image).unwrap() - 0.1159 * factor).unwrap();
    assert!(apart(shifted.encode(&image).unwrap(), expected) < 1e-6);
    let z = &g["in.z"];
    let expected = plain.decode(&(z + 0.1159 * factor).unwrap()).unwrap();
    assert!(apart(shifted.decode(z).unwrap(), expected) < 1e-5);
}

#[test]
fn sizes_of_published_weights_are_read_from_shapes() {
    let config = SitConfig {
        depth: 2,
        hidden_size: 384,
        num_heads: 6,
        patch_size: 2,
        input_size: 32,
        num_classes: 1000,
        learn_sigma: true,
        mlp_ratio: 4.0,
        in_channels: 4,
    };
    let weights = random(&config, &Rng::new(0), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(SitConfig::of(&weights, None).unwrap(), config);
    let golden = Weights::load(Path::new(&format!("{FOLDER}/sit.pt")), DType::F32, &Device::Cpu).unwrap();
    assert!(SitConfig::of(&golden, None).unwrap_err().hint.unwrap().contains("num_heads"));
    assert_eq!(SitConfig::of(&golden, Some(3)).unwrap(), self::stored().0);
}

#[test]
fn the_published_model_has_292_tensors() {
    let xl = SitConfig {
        depth: 28,
        hidden_size: 1152,
        num_heads: 16,
        patch_size: 2,
        input_size: 32,
        num_classes: 1000,
        learn_sigma: true,
        mlp_ratio: 4.0,
        in_channels: 4,
    };
    let weights = Weights::meta(DType::F32, &amscript::tensor::meta::Trace::new(false));
    Transformer::new(&xl, &weights, false).unwrap();
    assert_eq!(weights.count(), (292, 675_129_632));
}

#[test]
fn new_weights_have_the_original_positions_and_a_zero_velocity() {
    let (config, stored) = stored();
    let fresh = random(&config, &Rng::new(0), DType::F32, &Device::Cpu).unwrap();
    let at = |w: &Weights| w.get("pos_embed", &[1, 16, 48], Init::Zeros).unwrap();
    let error = (at(&fresh) - at(&stored)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error < 1e-6, "{error}");
    let g = expected();
    let v = Transformer::new(&config, &fresh, false).unwrap().velocity(&g["in.x"], &g["in.t"], &[3, 10, 7]).unwrap();
    assert_eq!(v.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn a_saved_model_opens_again_and_its_positions_do_not_train() {
    let flow = model("sit.safetensors", None);
    let folder = tempfile::tempdir().unwrap();
    flow.save(folder.path(), None).unwrap();
    let choices = with_vae();
    let again = open(folder.path().to_str().unwrap(), &Sources::default(), &choices, &Device::Cpu).unwrap();
    assert_eq!(again.classes(), flow.classes());
    let (g, c) = (expected(), condition(&again, "in.y"));
    close("velocity", &again.velocity(&g["in.x"], &g["in.t"], &c).unwrap());
    let trained: Vec<String> = again.trainable().unwrap().params().into_iter().map(|p| p.0).collect();
    assert_eq!(trained.len(), 3 * 10 + 12 - 1);
    assert!(!trained.contains(&"pos_embed".to_string()));
    assert_eq!(again.lora(2, 1.0, &Targets::default(), &Rng::new(0)).unwrap().params().len(), 3 * 4 * 2);
}

#[test]
fn every_weight_has_its_gradient() {
    let (config, stored) = stored();
    let weights = stored.map(|_, t| t.to_dtype(DType::F64)).unwrap().trainable(|n| n != "pos_embed").unwrap();
    let weights = weights.computing(Some(DType::F64));
    let g = expected();
    let wide = |name: &str| g[name].to_dtype(DType::F64).unwrap();
    let transformer = Transformer::new(&config, &weights, false).unwrap(); // built once: it must see what an optimizer writes
    let loss = || {
        let v = transformer.velocity(&wide("in.x"), &wide("in.t"), &[3, 10, 7])?;
        v.sqr()?.mean_all()
    };
    let params = weights.params();
    let tensors: Vec<Tensor> = params.iter().map(|p| p.1.clone()).collect();
    let found = gradients(&loss().unwrap(), &tensors).unwrap();
    for ((name, tensor), gradient) in params.iter().zip(found) {
        let direction = Rng::new(1).split(name).normal(tensor.dims(), DType::F64, &Device::Cpu).unwrap();
        let number = |t: Tensor| t.to_scalar::<f64>().unwrap();
        let predicted = number((&gradient * &direction).unwrap().sum_all().unwrap());
        let (var, start) = (tensor, tensor.detach().unwrap());
        let at = |h: f64| {
            var.set(&(&start + (&direction * h).unwrap()).unwrap()).unwrap();
            number(loss().unwrap().constant())
        };
        let measured = (at(1e-4) - at(-1e-4)) / 2e-4;
        var.set(&start).unwrap();
        assert!((predicted - measured).abs() <= 1e-5 * (1.0 + predicted.abs()), "{name}: {predicted} and {measured}");
    }
}

#[test]
fn labels_and_sentences_are_checked() {
    let flow = model("sit.safetensors", None);
    assert_eq!(flow.encode_labels(&[3]).unwrap().text, ["class 3"]);
    assert_eq!(flow.encode(&["class 7".into()]).unwrap().labels, Some(vec![7]));
    let refused = |c: amscript::Result<Condition>| c.err().unwrap().to_string();
    assert!(refused(flow.encode_labels(&[11])).contains("below 10, or 10 for the null class, got 11"));
    assert!(refused(flow.encode(&["class 17".into()])).contains("got `class 17`"));
    let c = Condition { labels: Some(vec![1]), ..Condition::default() };
    assert!(
        flow.velocity(&expected()["in.x"], &expected()["in.t"], &c).err().unwrap().message.contains("for 1 labels")
    );
}

#[test]
fn a_folder_with_several_files_of_weights_is_refused() {
    let choices = with_vae();
    let error = open(FOLDER, &Sources::default(), &choices, &Device::Cpu).err().unwrap();
    assert!(error.message.contains("expected one file of weights"), "{error}");
}

#[test]
fn recomputed_blocks_give_the_same_gradients() {
    let (config, stored) = stored();
    let g = expected();
    let gradients_of = |checkpoint_blocks| {
        let weights = stored.trainable(|n| n != "pos_embed").unwrap();
        let transformer = Transformer::new(&config, &weights, checkpoint_blocks).unwrap();
        let loss =
            transformer.velocity(&g["in.x"], &g["in.t"], &[3, 10, 7]).unwrap().sqr().unwrap().mean_all().unwrap();
        let params: Vec<Tensor> = weights.params().into_iter().map(|p| p.1).collect();
        gradients(&loss, &params).unwrap()
    };
    for (a, b) in gradients_of(false).iter().zip(gradients_of(true)) {
        let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 1e-6, "{error}");
    }
}

#[test]
fn half_precision_stays_near() {
    let choices = ModelOptions { dtype: Some(DType::BF16), compute: Some(DType::BF16), ..with_vae() };
    let flow = open(&format!("{FOLDER}/sit.pt"), &Sources::default(), &choices, &Device::Cpu).unwrap();
    let (g, c) = (expected(), condition(&flow, "in.y"));
    let v = flow.velocity(&g["in.x"], &g["in.t"], &c).unwrap();
    assert_eq!(v.dtype(), DType::F32);
    let error = (v - &g["out.velocity"]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((1e-4..0.15).contains(&error), "{error}");
}
