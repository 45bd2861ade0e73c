//! The golden case `sit`: a tiny SiT in three files, and Stable Diffusion's autoencoder, against the original code and diffusers.
#![allow(clippy::unwrap_used)]

use amscript::flow::{RolloutOptions, rollout, uniform};
use amscript::model::labelled::{Sit, sentences};
use amscript::model::latents::Latents;
use amscript::model::open::{Choices, open};
use amscript::model::source::{Component, Folder, Sources};
use amscript::model::{Condition, Family, Flow, Velocity};
use amscript::tensor::grad::{pullback, vjp};
use amscript::tensor::{DType, Device, Tensor};
use std::collections::HashMap;

const FOLDER: &str = "tests/golden/sit";

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FOLDER}/expected.safetensors"), &Device::Cpu).unwrap()
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

fn model(file: &str, guide_channels: Option<usize>) -> Flow {
    let choices = Choices { vae: Some(format!("{FOLDER}/vae")), guide_channels, ..Choices::default() };
    open(&format!("{FOLDER}/{file}"), &Sources::default(), &choices, &Device::Cpu).unwrap()
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

/// Velocity with guidance of scale 4.
struct Guided {
    sit: Sit,
    flow: Flow,
}

impl Guided {
    fn new(channels: Option<usize>) -> Self {
        let folder = Folder::disk(FOLDER);
        let vae =
            Latents::open(&Component::Folder(folder.sub("vae").unwrap()), None, DType::F32, &Device::Cpu).unwrap();
        let (config, _) = Sit::weights(&folder, "sit.safetensors", &Device::Cpu).unwrap();
        let classes = sentences(&folder, config.num_classes).unwrap();
        let sit = Sit::new("golden", config, vae, classes).unwrap().guiding(channels);
        Self { sit, flow: model("sit.safetensors", None) }
    }
}

impl Velocity for Guided {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> amscript::Result<Tensor> {
        let null = self.sit.unconditional(x.dim(0)?)?;
        self.sit.guide(&self.flow.velocity(x, t, condition)?, &self.flow.velocity(x, t, &null)?, 4.0)
    }
}

#[test]
fn guidance_of_all_channels_and_of_three() {
    let g = expected();
    for (channels, name) in [(None, "velocity_cfg4"), (Some(3), "velocity_cfg3")] {
        let guided = Guided::new(channels);
        let c = condition(&guided.flow, "in.y");
        close(name, &guided.velocity(&g["in.x"], &g["in.t"], &c).unwrap());
    }
}

#[test]
fn ten_euler_steps_with_and_without_guidance() {
    let (guided, g) = (Guided::new(None), expected());
    let c = condition(&guided.flow, "in.noise_y");
    let options = RolloutOptions::new(uniform(10).unwrap());
    let path = rollout(&guided.flow, &g["in.noise"], &c, &options).unwrap();
    close("sample_states", &Tensor::stack(&path.states, 0).unwrap());
    let path = rollout(&guided, &g["in.noise"], &c, &options).unwrap();
    close("sample_cfg4_states", &Tensor::stack(&path.states, 0).unwrap());
    let image = guided.sit.latents().decode(&path.last().narrow(0, 0, 1).unwrap()).unwrap();
    close("sample_image", &image.affine(2.0, -1.0).unwrap());
}

#[test]
fn autoencoder_in_both_namings() {
    let g = expected();
    for folder in ["vae", "vae_old_keys"] {
        let folder = Folder::disk(format!("{FOLDER}/{folder}"));
        let latents = Latents::open(&Component::Folder(folder), None, DType::F32, &Device::Cpu).unwrap();
        close("vae_mean", &latents.moments(&g["in.image"].affine(0.5, 0.5).unwrap()).unwrap().0);
        let z = candle_core::Var::from_tensor(&g["in.z"]).unwrap();
        let decoded = latents.decode(z.as_tensor()).unwrap().affine(2.0, -1.0).unwrap();
        close("decoded", &decoded.detach());
        close("decoded_vjp", &pullback(&decoded, &g["in.image_cotangent"], &[z.as_tensor().clone()]).unwrap()[0]);
    }
}
