//! Velocity fields and what surrounds them: encoders, decoders, conditions. One file per real model.
//!
//! Conventions of one model (time direction, sign, token order) are converted in that model's file and nowhere else.

pub mod adapter;
pub mod estimate;
pub mod flux2;
pub mod flux2_names;
mod guidance;
pub mod klein;
pub mod labelled;
pub mod latents;
pub mod open;
pub mod qwen3;
pub mod sit;
pub mod text;
pub mod vae;

use self::latents::Latents;
use crate::bail;
use crate::nn::files::write_whole;
use crate::error::{Error, Kind, Result};
use crate::nn::lora::Alias;
use crate::nn::weights::Weights;
use crate::profile::phase;
use crate::tensor::op::clamp_through;
use crate::tensor::{DType, Device, Rng, Tensor, op};
use estimate::{Part, Work};
use std::path::Path;
use std::sync::Arc;

/// What a velocity is conditioned on; one row per sample.
#[derive(Clone, Default)]
pub struct Condition {
    /// Prompts as given.
    pub text: Vec<String>,
    /// Token ids `[batch, tokens]`, u32.
    pub ids: Option<Tensor>,
    /// Prompt embeddings `[batch, tokens, features]`.
    pub embeddings: Option<Tensor>,
    /// Class labels.
    pub labels: Option<Vec<u32>>,
}

/// A velocity field `v(x, t, c)`, differentiable in `x` and in its trainable parameters.
///
/// `x`: `[batch, channels, height, width]` latents (or any `[batch, ..]`), f32 or f64; `t`: `[batch]`, 0 noise, 1 data, in `x`'s
/// dtype. Returns the shape of `x`.
pub trait Velocity: Send + Sync {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor>;

    /// The same field, sharing its parameters, that keeps no graph to them; none where this one keeps none anyway.
    fn frozen(&self) -> Result<Option<Arc<dyn Velocity>>> {
        Ok(None)
    }
}

/// One kind of model: the frozen parts around a velocity network, and how the network is built from its weights.
pub trait Family: Send + Sync {
    fn name(&self) -> &str;

    /// The velocity network; cheap, tensors are shared.
    fn network(&self, weights: &Weights) -> Result<Arc<dyn Velocity>>;

    fn encode(&self, prompts: &[String]) -> Result<Condition>;

    /// The condition of class labels, for families that have classes.
    fn encode_labels(&self, labels: &[u32]) -> Result<Condition> {
        bail!(Type, "encode: {} takes prompts, got {} labels", self.name(), labels.len())
    }

    /// The condition that guidance points away from, for `rows` samples.
    fn unconditional(&self, rows: usize) -> Result<Condition>;

    /// The guided velocity of a conditional and an unconditional one (classifier-free guidance, arXiv:2207.12598).
    fn guide(&self, conditional: &Tensor, unconditional: &Tensor, scale: f64) -> Result<Tensor> {
        op::combine((conditional, scale), (unconditional, 1.0 - scale))
    }

    /// A sentence for every class, to judge by; none where there are no classes.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// The autoencoder that makes images of latents.
    fn latents(&self) -> &Latents;

    /// Images `[batch, 3, height, width]` in [0, 1] of latents, differentiable. The gradient passes the clamp to that range, so
    /// that an out-of-range pixel can be pulled back.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        clamp_through(&self.latents().decode(latents)?, 0.0, 1.0)
    }

    /// Channels, height and width of the latents of one image of the default size.
    fn latent_shape(&self) -> [usize; 3];

    /// Weights around the network.
    fn parts(&self) -> Result<Vec<Part>> {
        Ok(Vec::new())
    }

    /// The work on one sample of `h` by `w` latents, on the CPU or another device.
    fn work(&self, weights: &Weights, h: usize, w: usize, cpu: bool) -> Work {
        let _ = (weights, h, w, cpu);
        Work { passes: 1.0, ..Work::default() }
    }

    /// Frees the weights that only prompts need; prompts seen before stay, a new one reads them again.
    fn unload_text_encoder(&self) {}

    /// Whether LoRA adapts this linear module unless told otherwise.
    fn lora_target(&self, module: &str) -> bool;

    /// Whether full training changes this tensor.
    fn trained(&self, name: &str) -> bool {
        let _ = name;
        true
    }

    /// Whether this linear module is part of a block (its modulation is not).
    fn block_linear(&self, module: &str) -> bool {
        self.lora_target(module)
    }

    /// The name of a linear module in another published layout, which LoRA files may use.
    fn alias(&self, module: &str) -> Option<Alias> {
        let _ = module;
        None
    }

    /// What LoRA files call the network: a prefix of their names.
    fn component(&self) -> &str;

    /// The network's weights below the model's folder; `config.json` lies beside them.
    fn file(&self) -> &str;

    /// The network's `config.json`.
    fn config(&self) -> serde_json::Value;
}

/// A flow model as scripts hold it: a velocity and what surrounds it. Clones share everything.
#[derive(Clone)]
pub struct Flow {
    name: String,
    velocity: Arc<dyn Velocity>,
    model: Option<Model>,
}

/// A velocity that is a network of some family.
#[derive(Clone)]
struct Model {
    family: Arc<dyn Family>,
    weights: Weights,
    /// How strongly its adapters act, where that depends on time.
    strength: Option<Arc<adapter::Strength>>,
    /// Scale of the guidance.
    guidance: Option<f64>,
}

impl Flow {
    /// A flow in data space: its end states are what rewards see.
    pub fn new(name: impl Into<String>, velocity: Arc<dyn Velocity>) -> Self {
        Self { name: name.into(), velocity, model: None }
    }

    /// A network of `family` with these weights.
    pub fn of_family(family: Arc<dyn Family>, weights: Weights) -> Result<Self> {
        Self::of_model(Model { family, weights, strength: None, guidance: None })
    }

    fn of_model(model: Model) -> Result<Self> {
        Ok(Self { name: model.family.name().to_string(), velocity: model.network()?, model: Some(model) })
    }

    fn model(&self, verb: &str) -> Result<&Model> {
        let none =
            || Error::new(Kind::Type, format!("{verb}: expected a model such as flow(\"tiny/flux2\"), got {self}"));
        self.model.as_ref().ok_or_else(none)
    }

    pub fn encode(&self, prompts: &[String]) -> Result<Condition> {
        match self.is_hollow() {
            true => Ok(Condition { text: prompts.to_vec(), ..Condition::default() }),
            false => phase("prompts", || self.model("encode")?.family.encode(prompts)),
        }
    }

    pub fn encode_labels(&self, labels: &[u32]) -> Result<Condition> {
        self.model("encode")?.family.encode_labels(labels)
    }

    /// A sentence for every class of a class-conditional model.
    pub fn classes(&self) -> &[String] {
        self.model.as_ref().map_or(&[], |m| m.family.classes())
    }

    /// Its weights by part, the network's last.
    pub fn parts(&self) -> Result<Vec<Part>> {
        let Some(model) = &self.model else { return Ok(Vec::new()) };
        let network = Part::of("transformer", &model.weights);
        let parts = model.family.parts()?.into_iter().chain([network]);
        Ok(parts.map(|part| Part { name: format!("{}: {}", self.name, part.name), ..part }).collect())
    }

    /// The work on one sample of states `[batch, channels, height, width]`; nothing is known of a closure's.
    pub fn work(&self, dims: &[usize], cpu: bool) -> Work {
        match (&self.model, dims) {
            (Some(model), [_, _, h, w]) => {
                let work = model.family.work(&model.weights, *h, *w, cpu);
                Work { passes: if model.guidance.is_some() { 2.0 } else { 1.0 }, ..work }
            }
            _ => Work { passes: 1.0, ..Work::default() },
        }
    }

    /// How many numbers full training would change.
    pub fn trainable_numbers(&self) -> usize {
        self.model.as_ref().map_or(0, |m| m.weights.numbers(|name| m.family.trained(name)))
    }

    /// Whether it was made from headers alone; its velocity is zero then, and its images are black.
    fn is_hollow(&self) -> bool {
        self.model.as_ref().is_some_and(|m| m.weights.is_hollow())
    }

    /// Frees the weights that only prompts need.
    pub fn unload_text_encoder(&self) -> Result<()> {
        self.model("unload_text_encoder")?.family.unload_text_encoder();
        Ok(())
    }

    /// The images of end states; the states themselves for a flow in data space.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.model {
            None => Ok(latents.clone()),
            Some(model) if self.is_hollow() => {
                let ((batch, _, h, w), side) = (latents.dims4()?, model.family.latents().pixels());
                Ok(Tensor::zeros((1, 1, 1, 1), latents.dtype(), latents.device())?.expand((
                    batch,
                    3,
                    side * h,
                    side * w,
                ))?)
            }
            Some(model) => phase("decode", || model.family.decode(latents)),
        }
    }

    pub fn encode_image(&self, images: &Tensor) -> Result<Tensor> {
        self.model("encode_image")?.family.latents().encode(images)
    }

    /// Standard normal latents `[n, channels, height, width]` for images of `size` (height and width in pixels), or of the
    /// model's size, f32.
    pub fn noise(&self, n: usize, size: Option<[usize; 2]>, rng: &mut Rng) -> Result<Tensor> {
        let model = self.model("noise")?;
        let ([c, mut h, mut w], pixels) = (model.family.latent_shape(), model.family.latents().pixels());
        if let Some(size) = size {
            if size.iter().any(|side| *side == 0 || side % pixels != 0) {
                bail!(Value, "noise: height and width must be multiples of {pixels}, got {size:?}");
            }
            [h, w] = size.map(|side| side / pixels);
        }
        rng.normal(&[n, c, h, w], DType::F32, model.weights.device())
    }

    /// The same model with every weight trainable.
    pub fn trainable(&self) -> Result<Self> {
        let model = self.model("trainable")?;
        self.with_weights(model.weights.trainable(|name| model.family.trained(name))?)
    }

    fn with_weights(&self, weights: Weights) -> Result<Self> {
        Self::of_model(Model { weights, ..self.model("flow")?.clone() })
    }

    /// Trainable tensors by name, in order.
    pub fn params(&self) -> Vec<(String, Tensor)> {
        self.model.as_ref().map(|m| m.weights.params()).unwrap_or_default()
    }

    /// Writes the network and its config where the family keeps them in a model's folder.
    pub fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let model = self.model("save")?;
        if !model.weights.adapters().is_empty() {
            bail!(Value, "save: expected a model without adapters, got {} of them", model.weights.adapters().len();
                hint: "write the adapters with save_lora(path), or merge() them first");
        }
        let file = folder.join(model.family.file());
        let folder = file.parent().unwrap_or(folder);
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("save: {}: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(refused)?;
        model.weights.save(&file, dtype)?;
        let config = format!("{:#}\n", model.family.config());
        write_whole(&folder.join("config.json"), config.as_bytes()).map_err(refused)?;
        match model.family.classes() {
            [] => Ok(()),
            classes => {
                write_whole(&folder.join("classes.txt"), (classes.join("\n") + "\n").as_bytes()).map_err(refused)
            }
        }
    }

    pub fn device(&self) -> Device {
        self.model.as_ref().map_or(Device::Cpu, |m| m.weights.device().clone())
    }

    /// Whether both are clones of one flow.
    pub fn is(&self, other: &Flow) -> bool {
        Arc::ptr_eq(&self.velocity, &other.velocity)
    }
}

impl Velocity for Flow {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        if self.is_hollow() {
            return Ok(x.zeros_like()?);
        }
        self.velocity.velocity(x, t, condition)
    }

    fn frozen(&self) -> Result<Option<Arc<dyn Velocity>>> {
        match &self.model {
            Some(_) if self.is_hollow() => Ok(None),
            Some(model) if !self.params().is_empty() => {
                Ok(Some(Model { weights: model.weights.frozen()?, ..model.clone() }.network()?))
            }
            _ => self.velocity.frozen(),
        }
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let trained: usize = self.params().iter().map(|(_, t)| t.elem_count()).sum();
        let guidance = self.model.as_ref().and_then(|model| model.guidance);
        write!(f, "flow({}", self.name)?;
        guidance.map_or(Ok(()), |scale| write!(f, ", guided {scale}"))?;
        match trained {
            0 => write!(f, ")"),
            n => write!(f, ", {n} trainable)"),
        }
    }
}
