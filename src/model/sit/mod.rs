//! SiT as a family: class labels to images, with a Stable Diffusion autoencoder.

use super::estimate::{self, Ops, Part, Work};
use super::latents::Latents;
use super::sit::{self, Config, Transformer};
use crate::nn::source::Folder;
use super::{Condition, Family, Velocity};
use crate::bail;
use crate::data::class::{class_names, prompts_of};
use crate::error::{Result, nearest};
use crate::nn::weights::Weights;
use crate::tensor::{Tensor, op};
use std::sync::Arc;

/// The parts around the network.
pub struct Sit {
    name: String,
    config: Config,
    latents: Latents,
    /// One sentence per class, which rewards judge by.
    classes: Vec<String>,
    guide_channels: Option<usize>,
    recompute: bool,
}

impl Sit {
    /// `classes`: one sentence per class, by label; `recompute`: see [`Transformer::new`].
    pub fn new(name: &str, config: Config, latents: Latents, classes: Vec<String>, recompute: bool) -> Result<Self> {
        latents.serve(name, config.in_channels)?;
        if classes.len() != config.num_classes {
            bail!(Value, "{name}: expected {} sentences, one per class, got {}", config.num_classes, classes.len());
        }
        let latents = latents.recomputing(recompute);
        Ok(Self { name: name.to_string(), config, latents, classes, guide_channels: None, recompute })
    }

    /// The same with guidance on the first `n` channels only, 3 in the original code; none: on all.
    pub fn guiding(self, n: Option<usize>) -> Self {
        Self { guide_channels: n, ..self }
    }
}

/// The sentences of `classes.txt`, one per line; without that file, those of ImageNet for its number of classes.
pub fn sentences(folder: &Folder, classes: usize) -> Result<Vec<String>> {
    let labels: Vec<usize> = (0..classes).collect();
    match folder.has("classes.txt") {
        true => {}
        false if classes == class_names().len() => return prompts_of(&labels),
        false => return Ok(labels.iter().map(|label| format!("class {label}")).collect()),
    }
    let bytes = folder.bytes("classes.txt")?;
    Ok(String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().to_string()).collect())
}

struct Network(Transformer);

impl Velocity for Network {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let Some(labels) = &condition.labels else {
            bail!(Value, "velocity: expected a condition with class labels, got none"; hint: "make one with flow.encode([3, 7])");
        };
        self.0.velocity(x, t, labels)
    }
}

impl Family for Sit {
    fn name(&self) -> &str {
        &self.name
    }

    fn network(&self, weights: &Weights) -> Result<Arc<dyn Velocity>> {
        Ok(Arc::new(Network(weights.build(|w| Transformer::new(&self.config, w, self.recompute))?)))
    }

    /// The classes whose sentences these are.
    fn encode(&self, prompts: &[String]) -> Result<Condition> {
        let label = |prompt: &String| match self.classes.iter().position(|class| class == prompt) {
            Some(label) => Ok(label as u32),
            None => {
                let near = nearest(prompt, self.classes.iter().map(String::as_str)).unwrap_or("a label");
                bail!(Value, "encode: expected labels or the sentence of a class, got `{prompt}`"; hint: "the nearest is `{near}`")
            }
        };
        self.encode_labels(&prompts.iter().map(label).collect::<Result<Vec<_>>>()?)
    }

    fn encode_labels(&self, labels: &[u32]) -> Result<Condition> {
        let null = self.config.num_classes;
        let text = |label: &u32| match self.classes.get(*label as usize) {
            Some(sentence) => Ok(sentence.clone()),
            None if *label as usize == null => Ok(String::new()),
            None => bail!(Value, "encode: labels must be below {null}, or {null} for the null class, got {label}"),
        };
        if labels.is_empty() {
            bail!(Value, "encode: expected at least one label, got none");
        }
        let text = labels.iter().map(text).collect::<Result<_>>()?;
        Ok(Condition { text, labels: Some(labels.to_vec()), ..Condition::default() })
    }

    /// The null class.
    fn unconditional(&self, rows: usize) -> Result<Condition> {
        self.encode_labels(&vec![self.config.num_classes as u32; rows])
    }

    /// Channels that guidance leaves out keep the conditional velocity.
    fn guide(&self, conditional: &Tensor, unconditional: &Tensor, scale: f64) -> Result<Tensor> {
        let channels = self.config.in_channels;
        let guided = self.guide_channels.unwrap_or(channels).min(channels);
        let first = |v: &Tensor| op::narrow(v, 1, 0, guided);
        let out = op::combine((&first(conditional)?, scale), (&first(unconditional)?, 1.0 - scale))?;
        op::cat(&[&out, &op::narrow(conditional, 1, guided, channels - guided)?], 1)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn latents(&self) -> &Latents {
        &self.latents
    }

    fn latent_shape(&self) -> [usize; 3] {
        [self.config.in_channels, self.config.input_size, self.config.input_size]
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![self.latents.part()])
    }

    fn work(&self, weights: &Weights, h: usize, w: usize, cpu: bool) -> Work {
        let ops = Ops { dtype: weights.compute_on(cpu), cpu };
        let decode = self.latents.work(h, w, cpu);
        let network = estimate::sit(&self.config, ops);
        Work { network, recompute: self.recompute, passes: 1.0, decode, ..Work::default() }
    }

    fn lora_target(&self, module: &str) -> bool {
        sit::lora_target(module)
    }

    fn trained(&self, name: &str) -> bool {
        sit::trained(name)
    }

    fn component(&self) -> &str {
        "transformer"
    }

    fn file(&self) -> &str {
        "model.safetensors"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self.config)
    }
}

/// Files of weights by preference, where a folder holds several.
const PREFERRED: [&str; 3] = ["model.safetensors", "SiT-XL-2-256.pt", "SiT-XL-2-256x256.pt"];

/// The file of weights in a folder, if there is one.
pub fn weights_file(folder: &Folder) -> Result<Option<String>> {
    let ends = [".safetensors", ".pt"];
    let names: Vec<String> = folder.names().into_iter().filter(|n| ends.iter().any(|end| n.ends_with(end))).collect();
    if let Some(name) = PREFERRED.iter().find(|name| names.iter().any(|n| n == *name)) {
        return Ok(Some(name.to_string()));
    }
    if names.len() > 1 {
        bail!(File, "{}: expected one file of weights, got {}", folder.origin(), names.join(", ");
            hint: "give the path of the file itself");
    }
    Ok(names.into_iter().next())
}
