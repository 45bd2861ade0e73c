//! Low-rank adapters of a flow: made, loaded, saved, made weaker or stronger, merged into the weights.

use super::guidance::Guided;
use super::{Flow, Model, Parts};
use amscript_align::flow::{Condition, Steered, Velocity};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::lora::{self, Form, Names};
use amscript_nn::weights::Weights;
use amscript_tensor::meta::counted;
use amscript_tensor::op::Lora;
use amscript_tensor::{DType, Rng, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Which linear modules get adapters.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Targets {
    /// Those the family's users adapt by default.
    #[default]
    Usual,
    /// All inside its blocks; not embedders, modulation, final layer.
    Blocks,
    /// Those whose name is one of these or ends in one of them.
    Named(Vec<String>),
}

/// What the adapters' change is multiplied with, by time.
pub type Strength = dyn Fn(f64) -> Result<f64> + Send + Sync;

impl Flow {
    /// The same model with trainable low-rank adapters; it starts equal.
    pub fn lora(&self, rank: usize, scale: f64, targets: &Targets, rng: &Rng) -> Result<Self> {
        let model = self.model("lora")?;
        let ends = |module: &str, end: &str| module == end || module.ends_with(&format!(".{end}"));
        if let Targets::Named(names) = targets {
            let linears = model.weights.linears();
            if let Some(lost) = names.iter().find(|name| !linears.keys().any(|module| ends(module, name))) {
                let some: Vec<&str> = linears.keys().map(String::as_str).take(3).collect();
                bail!(Name, "lora: expected ends of names of linear modules, got `{lost}`";
                    hint: "modules are named like {}", some.join(", "));
            }
        }
        let chosen = |module: &str| match targets {
            Targets::Usual => (model.parts.names.lora_target)(module),
            Targets::Blocks => (model.parts.names.block_linear)(module),
            Targets::Named(names) => names.iter().any(|name| ends(module, name)),
        };
        self.with_weights(model.weights.with_lora(chosen, rank, scale, rng).map_err(|e| e.within("lora"))?)
    }

    /// The same model with the adapters of a file (see [`lora`]), constant or trainable.
    pub fn load_lora(&self, path: &Path, trainable: bool) -> Result<Self> {
        let model = self.model("load_lora")?;
        let weights = &model.weights;
        let read = |names: &Names| lora::read(path, names, weights.adapter_dtype(), weights.device());
        let mut adapters = model.with_names(read)?;
        for Lora { a, b, .. } in adapters.values_mut().filter(|_| trainable) {
            (*a, *b) = (weights.parameter(a)?, weights.parameter(b)?);
        }
        self.with_weights(weights.adapted(adapters).map_err(|e| e.within("load_lora"))?)
    }

    /// Whether it has adapters.
    pub fn is_adapted(&self) -> bool {
        self.model.as_ref().is_some_and(|model| !model.weights.adapters().is_empty())
    }

    /// Writes the adapters, their scale folded into B, in `dtype` or as they are.
    pub fn save_lora(&self, path: &Path, form: Form, dtype: Option<DType>) -> Result<()> {
        let model = self.model("save_lora")?;
        model.constant("save_lora")?;
        let adapters = model.weights.adapters();
        if adapters.is_empty() {
            bail!(Value, "save_lora: expected a model with adapters, got none"; hint: "make them with flow.lora(#{{ rank: 16 }})");
        }
        let of_adapters = |name: &str| [".lora_A.weight", ".lora_B.weight"].iter().any(|end| name.ends_with(end));
        if model.weights.params().iter().any(|(name, _)| !of_adapters(name)) {
            bail!(
                Value,
                "save_lora: expected a model that trains its adapters alone, got one whose own weights are trained too, and a \
                LoRA file holds none of them";
                hint: "write `policy.merge().save(..)`"
            );
        }
        model.with_names(|names| lora::write(path, adapters, names, form, dtype))
    }

    /// The same model, the adapters' change multiplied. Parameters are shared: later training shows.
    pub fn strength(&self, factor: f64) -> Result<Self> {
        let weights = self.model("strength")?.weights.scaled(factor)?;
        self.with_weights(weights)
    }

    /// The same model, the adapters' change multiplied by `strength` of the time.
    pub fn strength_by_time(&self, strength: Arc<Strength>) -> Result<Self> {
        let model = self.model("strength")?.clone();
        let strength: Arc<Strength> = match model.strength {
            Some(before) => Arc::new(move |t| Ok(before(t)? * strength(t)?)),
            None => strength,
        };
        Self::of_model(Model { strength: Some(strength), ..model })?.around(self)
    }

    /// The same model with the adapters added into the weights, constant.
    pub fn merge(&self) -> Result<Self> {
        let model = self.model("merge")?;
        model.constant("merge")?;
        self.with_weights(model.weights.merged()?)
    }
}

/// A network without numbers, whose passes a plan counts.
struct Counted(Arc<dyn Velocity>);

impl Velocity for Counted {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        counted(self.0.velocity(x, t, condition)?)
    }
}

impl Model {
    /// The velocity: of the network, of one that looks at the time first, or of two forwards of these; with what steers it.
    pub(super) fn network(&self) -> Result<Arc<dyn Velocity>> {
        let Model { parts, weights, strength, guidance, steering, .. } = self.clone();
        let meta = weights.is_meta();
        let network: Arc<dyn Velocity> = match strength {
            Some(strength) if !weights.adapters().is_empty() => {
                Arc::new(Timed { parts: parts.clone(), weights, strength })
            }
            _ => (parts.network)(&weights)?,
        };
        let network = if meta { Arc::new(Counted(network)) } else { network };
        let network: Arc<dyn Velocity> = match guidance {
            Some(scale) => Arc::new(Guided { parts, network, scale }),
            None => network,
        };
        Ok(steering.into_iter().fold(network, |field, steer| Arc::new(Steered { field, steer })))
    }

    /// Refuses a strength that depends on time.
    pub(super) fn constant(&self, verb: &str) -> Result<()> {
        if self.strength.is_some() {
            bail!(Value, "{verb}: the adapters' strength must be one number, got one that depends on time";
                hint: "{verb} the policy that it was made from");
        }
        Ok(())
    }

    fn with_names<T>(&self, f: impl FnOnce(&Names) -> Result<T>) -> Result<T> {
        let (names, linears) = (&self.parts.names, self.weights.linears());
        f(&Names { component: names.component, linears: &linears, alias: &names.alias })
    }
}

/// A network whose adapters act as strongly as the time says. It is built for each call, which copies nothing.
struct Timed {
    parts: Arc<Parts>,
    weights: Weights,
    strength: Arc<Strength>,
}

impl Velocity for Timed {
    /// Samples of one strength go through the network together.
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let mut groups: BTreeMap<u64, (f64, Vec<u32>)> = BTreeMap::new();
        for (row, time) in numbers(t)?.into_iter().enumerate() {
            let strength = (self.strength)(time)?;
            groups.entry(strength.to_bits()).or_insert((strength, Vec::new())).1.push(row as u32);
        }
        let at = |strength: f64| (self.parts.network)(&self.weights.scaled(strength)?);
        if let Some((strength, _)) = groups.values().next().filter(|_| groups.len() == 1) {
            return at(*strength)?.velocity(x, t, condition);
        }
        let (mut parts, mut order) = (Vec::new(), vec![0u32; x.dim(0)?]);
        let mut placed = 0u32..;
        for (strength, rows) in groups.values() {
            let index = Tensor::new(rows.as_slice(), x.device())?;
            let (x, t) = (x.index_select(&index, 0)?, t.index_select(&index, 0)?);
            parts.push(at(*strength)?.velocity(&x, &t, &condition.rows(rows)?)?);
            rows.iter().zip(&mut placed).for_each(|(row, place)| order[*row as usize] = place);
        }
        Tensor::cat(&parts, 0)?.index_select(&Tensor::new(order, x.device())?, 0)
    }
}

/// Times as decimal numbers: 0.7, not the f32 beside it, so that they compare as a script writes them.
fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    if t.dtype() == DType::F64 {
        return t.flatten_all()?.to_vec1();
    }
    let values: Vec<f32> = t.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    Ok(values.iter().map(|v| v.to_string().parse().unwrap_or(f64::from(*v))).collect())
}
