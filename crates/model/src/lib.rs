//! Flow models: a velocity network, and the parts around it that its family gives. One folder per family.
//!
//! Conventions of one model (time direction, sign, token order) are converted in that model's folder and nowhere else.
//!
//! Decisions:
//! * **A family is a record of parts, not a trait** (`parts.rs`): how its network is built, a conditioner, a codec, names. Latents have any
//!   rank and conditions hold tensors by name, so methods and samplers serve all families.
//! * **Classes are labels to the model and sentences to the reward**: `encode([3, 7])` gives both, so that recipes, rewards and evaluation of a
//!   prompted model serve a class-conditional one.
//! * **Large networks checkpoint their blocks**: above a billion numbers a graph keeps only the inputs of blocks. The variables in a block are named to the
//!   segment, so that gradients reach them.
//! * **candle-transformers is not used**: its Qwen3 gives no states of layers within, its CLIP and autoencoder lose gradients.
//! * **Sinusoids of time are rounded as in diffusers**, f32 at every step: at 1000 radians another rounding is 1e-5 of the velocity.

pub mod adapter;
pub mod codec;
pub mod families;
pub mod flux2;
mod guidance;
pub mod parts;
pub mod qwen3;
pub mod sit;
pub mod text;

pub use families::{Families, ModelOptions, Opener, Opening, open};
pub use parts::{Codec, Conditioner, Parts};

use amscript_align::flow::{Condition, Steer, Steered, Velocity};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_base::profile::phase;
use amscript_nn::cost::Part;
use amscript_nn::module::Module;
use amscript_nn::weights::Weights;
use amscript_tensor::{DType, Device, Rng, Tensor};
use std::path::Path;
use std::sync::Arc;

/// A flow model as scripts hold it: a velocity and what surrounds it. Clones share everything.
#[derive(Clone)]
pub struct Flow {
    name: String,
    velocity: Arc<dyn Velocity>,
    model: Option<Model>,
    /// How many others it is around.
    layers: usize,
}

/// Most flows around one another, each of which takes stack when it is asked.
const MOST_LAYERS: usize = 1000;

/// A velocity that is a network of some family.
#[derive(Clone)]
struct Model {
    name: String,
    parts: Arc<Parts>,
    weights: Weights,
    /// How strongly its adapters act, where that depends on time.
    strength: Option<Arc<adapter::Strength>>,
    /// Scale of the guidance.
    guidance: Option<f64>,
    /// What is added to its velocity, guided or not.
    steering: Vec<Arc<Steer>>,
}

impl Flow {
    /// A flow in data space: its end states are what rewards see.
    pub fn new(name: impl Into<String>, velocity: Arc<dyn Velocity>) -> Self {
        Self { name: name.into(), velocity, model: None, layers: 0 }
    }

    /// A network with these weights, and what surrounds it.
    pub fn of_parts(name: impl Into<String>, parts: Parts, weights: Weights) -> Result<Self> {
        let (name, parts) = (name.into(), Arc::new(parts));
        Self::of_model(Model { name, parts, weights, strength: None, guidance: None, steering: Vec::new() })
    }

    fn of_model(model: Model) -> Result<Self> {
        Ok(Self { name: model.name.clone(), velocity: model.network()?, model: Some(model), layers: 0 })
    }

    /// The same flow, `steer` of state, time, condition and velocity added to its velocity; all around it stays.
    pub fn steered(&self, steer: Arc<Steer>) -> Result<Self> {
        match &self.model {
            Some(model) => {
                let steering = model.steering.iter().cloned().chain([steer]).collect();
                Self::of_model(Model { steering, ..model.clone() })?.around(self)
            }
            None => {
                let velocity = Arc::new(Steered { field: self.velocity.clone(), steer });
                Self { velocity, ..self.clone() }.around(self)
            }
        }
    }

    /// This flow, which is around another.
    fn around(self, inner: &Self) -> Result<Self> {
        let layers = inner.layers + 1;
        if layers > MOST_LAYERS {
            bail!(
                Limit,
                "a flow made of others: expected at most {MOST_LAYERS} around one another, got {layers}";
                hint: "make it from the first one"
            );
        }
        Ok(Self { layers, ..self })
    }

    fn model(&self, verb: &str) -> Result<&Model> {
        let none =
            || Error::new(Kind::Type, format!("{verb}: expected a model such as flow(\"tiny/flux2\"), got {self}"));
        self.model.as_ref().ok_or_else(none)
    }

    pub fn encode(&self, prompts: &[String]) -> Result<Condition> {
        phase("prompts", || self.model("encode")?.parts.prompts.encode(prompts))
    }

    pub fn encode_labels(&self, labels: &[u32]) -> Result<Condition> {
        self.model("encode")?.parts.prompts.encode_labels(labels)
    }

    /// A sentence for every class of a class-conditional model.
    pub fn classes(&self) -> &[String] {
        self.model.as_ref().map_or(&[], |m| m.parts.prompts.classes())
    }

    /// How it is sampled unless told otherwise.
    pub fn defaults(&self) -> parts::Defaults {
        self.model.as_ref().map(|m| m.parts.defaults).unwrap_or_default()
    }

    /// Frees the weights that only prompts need.
    pub fn unload_text_encoder(&self) -> Result<()> {
        self.model("unload_text_encoder")?.parts.prompts.unload();
        Ok(())
    }

    /// Whether its velocity is a network of some family, which knows times from 0 to 1 alone.
    pub fn is_model(&self) -> bool {
        self.model.is_some()
    }

    /// The images of end states; the states themselves for a flow in data space.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.model {
            None => Ok(latents.clone()),
            Some(model) => phase("decode", || model.parts.codec.decode(latents)),
        }
    }

    pub fn encode_image(&self, images: &Tensor) -> Result<Tensor> {
        self.model("encode_image")?.parts.codec.encode(images)
    }

    /// Standard normal latents `[n, ..]`, f32, for images of `size` (a side, or one number per side, in pixels) or of the model's.
    pub fn noise(&self, n: usize, size: Option<&[usize]>, rng: &mut Rng) -> Result<Tensor> {
        let model = self.model("noise")?;
        let shape = model.parts.codec.latent_shape(size).map_err(|e| e.within("noise"))?;
        rng.normal(&[&[n], &shape[..]].concat(), DType::F32, model.weights.device())
    }

    fn with_weights(&self, weights: Weights) -> Result<Self> {
        let flow = Self::of_model(Model { weights, ..self.model("flow")?.clone() })?;
        Ok(Self { layers: self.layers, ..flow })
    }

    pub fn device(&self) -> Device {
        self.model.as_ref().map_or(Device::Cpu, |m| m.weights.device().clone())
    }

    /// The same model with another velocity, such as one around its own.
    pub fn with_velocity(&self, name: impl Into<String>, velocity: Arc<dyn Velocity>) -> Result<Self> {
        Self { name: name.into(), velocity, ..self.clone() }.around(self)
    }

    /// Whether both are clones of one flow.
    pub fn is(&self, other: &Flow) -> bool {
        Arc::ptr_eq(&self.velocity, &other.velocity)
    }
}

impl Module for Flow {
    type Trained = Self;

    /// Every weight, but those that the family never trains.
    fn trainable(&self) -> Result<Self> {
        let model = self.model("trainable")?;
        self.with_weights(model.weights.trainable(model.parts.names.trained)?)
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        match &self.model {
            Some(model) => model.weights.params(),
            None => {
                let variables = self.velocity.rerun().map(|(_, variables)| variables).unwrap_or_default();
                variables.into_iter().enumerate().map(|(i, variable)| (format!("param {i}"), variable)).collect()
            }
        }
    }

    /// The parts around the network, then the network.
    fn parts(&self) -> Result<Vec<Part>> {
        let Some(model) = &self.model else { return Ok(Vec::new()) };
        let parts = model.parts.around.clone().into_iter().chain([Part::of("transformer", &model.weights)]);
        Ok(parts.map(|part| Part { name: format!("{}: {}", self.name, part.name), ..part }).collect())
    }

    /// The network and its config where the family keeps them in a model's folder.
    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let model = self.model("save")?;
        if !model.weights.adapters().is_empty() {
            bail!(Value, "save: expected a model without adapters, got {} of them", model.weights.adapters().len();
                hint: "write the adapters with save_lora(path), or merge() them first");
        }
        let file = folder.join(model.parts.names.file);
        let folder = file.parent().unwrap_or(folder);
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("save: {}: {e}", folder.display()));
        file::make_folder(folder).map_err(refused)?;
        model.weights.save(&file, dtype)?;
        let config = format!("{:#}\n", model.parts.config);
        file::write_whole(&folder.join("config.json"), config.as_bytes()).map_err(refused)?;
        match model.parts.prompts.classes() {
            [] => Ok(()),
            classes => {
                file::write_whole(&folder.join("classes.txt"), (classes.join("\n") + "\n").as_bytes()).map_err(refused)
            }
        }
    }
}

impl Velocity for Flow {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        self.velocity.velocity(x, t, condition)
    }

    fn frozen(&self) -> Result<Option<Arc<dyn Velocity>>> {
        match &self.model {
            Some(model) if !self.params().is_empty() => {
                Ok(Some(Model { weights: model.weights.frozen()?, ..model.clone() }.network()?))
            }
            _ => self.velocity.frozen(),
        }
    }

    fn with_guidance(&self, scale: f64) -> Result<Arc<dyn Velocity>> {
        match &self.model {
            Some(_) => Ok(Arc::new(self.guided(scale)?)),
            None => self.velocity.with_guidance(scale),
        }
    }

    fn rerun(&self) -> Option<(Arc<dyn Velocity>, Vec<Tensor>)> {
        match &self.model {
            Some(model) if !model.steering.is_empty() => None, // what steers may be trained too
            Some(_) => {
                Some((Arc::new(self.clone()), self.params().into_iter().map(|(_, variable)| variable).collect()))
            }
            None => self.velocity.rerun(),
        }
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let trained: usize = self.params().iter().map(|(_, t)| t.elem_count()).sum();
        let guidance = self.model.as_ref().and_then(|model| model.guidance);
        write!(f, "flow({}", self.name)?;
        guidance.map_or(Ok(()), |scale| write!(f, ", guided {scale}"))?;
        if self.model.as_ref().is_some_and(|model| !model.steering.is_empty()) {
            write!(f, ", steered")?;
        }
        match trained {
            0 => write!(f, ")"),
            n => write!(f, ", {n} trainable)"),
        }
    }
}
