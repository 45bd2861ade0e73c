//! What a family is made of: a record of parts, which [`super::Flow`] puts together.

use amscript_align::flow::{Condition, Velocity};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::cost::Part;
use amscript_nn::lora::Alias;
use amscript_nn::opener::{Field, Takes, field};
use amscript_nn::weights::Weights;
use amscript_tensor::Tensor;
use serde_json::Value;
use std::sync::Arc;

/// The parts around a velocity network, and how the network is built from its weights.
pub struct Parts {
    /// Builds the velocity network; cheap, tensors are shared.
    pub network: Box<Build>,
    pub prompts: Arc<dyn Conditioner>,
    pub codec: Arc<dyn Codec>,
    pub names: Names,
    /// The network's `config.json`.
    pub config: Value,
    pub defaults: Defaults,
    /// Guidance acts on this many channels, the first; the others keep the conditional velocity. None: on all.
    pub guide_channels: Option<usize>,
    /// The weights around the network, for lists of them.
    pub around: Vec<Part>,
}

/// Makes a velocity network of weights.
pub type Build = dyn Fn(&Weights) -> Result<Arc<dyn Velocity>> + Send + Sync;

impl Parts {
    /// A family with its own network, conditions and latents, and otherwise usual: see [`Names::USUAL`], [`Defaults`].
    pub fn new(
        network: impl Fn(&Weights) -> Result<Arc<dyn Velocity>> + Send + Sync + 'static,
        prompts: impl Conditioner + 'static,
        codec: impl Codec + 'static,
    ) -> Self {
        let (prompts, codec) = (Arc::new(prompts), Arc::new(codec));
        let (config, defaults) = (Value::Object(Default::default()), Defaults::default());
        let network = Box::new(network);
        Self {
            network,
            prompts,
            codec,
            names: Names::USUAL,
            config,
            defaults,
            guide_channels: None,
            around: Vec::new(),
        }
    }
}

/// The option of families whose transformers may lie in single files.
pub const NUM_HEADS: Field = field("num_heads", Takes::Count, "Attention heads of a transformer in a single file.");

/// Makes conditions of prompts or of class labels.
pub trait Conditioner: Send + Sync {
    /// The condition of prompts, in order; at least one.
    fn encode(&self, prompts: &[String]) -> Result<Condition>;

    /// The condition of class labels, for families that have classes.
    fn encode_labels(&self, labels: &[u32]) -> Result<Condition> {
        bail!(Type, "encode: this model takes prompts, got {} labels", labels.len())
    }

    /// The condition that guidance points away from, for `rows` samples.
    fn unconditional(&self, rows: usize) -> Result<Condition>;

    /// A sentence for every class, to judge by; none where there are no classes.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// Frees the weights that only prompts need; prompts seen before stay, a new one reads them again.
    fn unload(&self) {}
}

/// Between the states that a flow moves and what rewards see.
pub trait Codec: Send + Sync {
    /// Shape of the latents of one sample, without the batch, for images of `size` (one side, or one number per side, in pixels)
    /// or of the model's own.
    fn latent_shape(&self, size: Option<&[usize]>) -> Result<Vec<usize>>;

    /// Latents `[batch, ..]` of images `[batch, 3, height, width]` in [0, 1].
    fn encode(&self, images: &Tensor) -> Result<Tensor>;

    /// Images in [0, 1] of latents, differentiable.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

/// How files and adapters name a network and its modules.
#[derive(Clone, Copy)]
pub struct Names {
    /// What LoRA files call the network: a prefix of their names.
    pub component: &'static str,
    /// The network's weights below the model's folder; `config.json` lies beside them.
    pub file: &'static str,
    /// Whether LoRA adapts this linear module unless told otherwise.
    pub lora_target: fn(&str) -> bool,
    /// Whether this linear module is part of a block (its modulation is not).
    pub block_linear: fn(&str) -> bool,
    /// The name of a linear module in another published layout, which LoRA files may use.
    pub alias: fn(&str) -> Option<Alias>,
    /// Whether full training changes this tensor.
    pub trained: fn(&str) -> bool,
}

impl Names {
    /// `model.safetensors`, all of which is trained and adapted.
    pub const USUAL: Names = Names {
        component: "transformer",
        file: "model.safetensors",
        lora_target: |_| true,
        block_linear: |_| true,
        alias: |_| None,
        trained: |_| true,
    };
}

/// How a model is sampled unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    pub steps: usize,
    /// Scale of the guidance; 1 is none.
    pub guidance: f64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { steps: 20, guidance: 1.0 }
    }
}
