//! The table of families, and opening a model by name or path: the family that recognises what lies there opens it.
//!
//! How to add a family: a folder beside `sit/` with its network and a `const OPENER`, and a line in [`FAMILIES`]. A program that
//! embeds this one registers its opener instead: `amscript::script::Host::register_family`.

use super::{Flow, Parts, flux2, sit};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_nn::opener::{self, Found, Given, Table};
use amscript_nn::source::Sources;
use amscript_nn::weights::{LARGE, Weights};
use amscript_tensor::meta::Trace;
use amscript_tensor::{DType, Device, Rng};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// A line of the table: see [`opener::Opener`].
pub type Opener = opener::Opener<fn(&Opening) -> Result<(Parts, Weights)>>;

/// Built-in families and those that a program registered.
pub type Families = Table<fn(&Opening) -> Result<(Parts, Weights)>>;

/// The families built in.
pub const FAMILIES: &[Opener] = &[flux2::OPENER, sit::OPENER];

/// The table with the built-in families.
pub fn families() -> Families {
    const COMMON: &[&str] = &["family", "dtype", "compute", "checkpoint_blocks", "weights", "transformer", "lora"];
    Table::new("family", "flow", "family", COMMON, FAMILIES)
}

/// What can be chosen when a model is opened.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// The family, where what lies there does not tell.
    pub family: Option<String>,
    /// Sizes of a new network, drawn from this seed, instead of the stored one.
    pub fresh: Option<(Value, u64)>,
    /// The type the weights are held in; none: see [`Weights::usual_dtype`].
    pub dtype: Option<DType>,
    /// The type the network computes in; none: the weights' type, but f32 for half precision on the CPU.
    pub compute: Option<DType>,
    /// Blocks run again in the backward instead of keeping what they computed; none: those of large networks do.
    pub checkpoint_blocks: Option<bool>,
    /// File or folder of the network's weights, for a named model whose network lies elsewhere.
    pub weights: Option<PathBuf>,
    /// The options of the family.
    pub options: Given,
    /// From headers alone, for a run without numbers.
    pub trace: Option<Arc<Trace>>,
}

/// What a family opens.
pub struct Opening<'a> {
    /// As the user said it; it stands in errors.
    pub name: &'a str,
    pub found: &'a Found,
    pub choices: &'a ModelOptions,
    pub sources: &'a Sources,
    pub device: &'a Device,
}

impl Opening<'_> {
    /// An option of the family.
    pub fn option<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.choices.options.get(name).map_err(|e| e.within("flow"))
    }

    /// Sizes and random stream of a new network, where one is wanted.
    pub fn fresh<T: DeserializeOwned>(&self) -> Result<Option<(T, Rng)>> {
        let Some((sizes, seed)) = &self.choices.fresh else { return Ok(None) };
        let wrong = |e| Error::new(Kind::Option, format!("flow: transformer: config: {e}"));
        Ok(Some((serde_json::from_value(sizes.clone()).map_err(wrong)?, Rng::new(*seed))))
    }

    /// Whether blocks are to run again in the backward.
    pub fn checkpoint_blocks(&self, weights: &Weights) -> bool {
        self.choices.checkpoint_blocks.unwrap_or_else(|| weights.stored() > LARGE)
    }

    /// The weights as they were chosen to be held: without numbers, computing in some type.
    pub fn held(&self, weights: Weights) -> Weights {
        let weights = self.choices.trace.as_ref().map_or_else(|| weights.clone(), |trace| weights.traced(trace));
        weights.computing(self.choices.compute)
    }
}

/// A model of a built-in family; see [`open_of`].
pub fn open(name: &str, sources: &Sources, choices: &ModelOptions, device: &Device) -> Result<Flow> {
    open_of(&families(), name, sources, choices, device)
}

/// A model by name (see [`Sources::named`]), the path of its folder, or the path of a file of weights.
pub fn open_of(
    families: &Families,
    name: &str,
    sources: &Sources,
    choices: &ModelOptions,
    device: &Device,
) -> Result<Flow> {
    let sources = &sources.clone().publishing(families.published());
    let (found, missing) = sources.lead(name, choices.weights.as_deref())?;
    let found = &match &choices.fresh {
        Some((sizes, _)) => Found { sizes: Some(sizes.clone()), tensors: Default::default(), ..found },
        None => found,
    };
    let chosen = families.choose(choices.family.as_deref(), found, &choices.options);
    let opener = match (chosen, missing) {
        (Err(error), Some(missing)) if error.kind == Kind::Missing => return Err(missing),
        (chosen, _) => chosen?,
    };
    let (parts, weights) = (opener.open)(&Opening { name, found, choices, sources, device })?;
    let shape = parts.codec.latent_shape(None)?;
    if shape.is_empty() || shape.contains(&0) {
        bail!(
            Value,
            "{name}: the codec of `{}` must give the shape of one sample's latents, got {shape:?}",
            opener.name
        );
    }
    Flow::of_parts(name, parts, weights)
}
