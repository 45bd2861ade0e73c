//! `Weights`: the named tensors of one network, loaded or made at random, from which a model is (re)built.
//!
//! A model takes each tensor by name and shape. Rebuilding it is cheap: tensors are shared, not copied.

mod trained;

use crate::archive::{self, Archive};
use crate::layout::{self, Layout, Piece};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, nearest};
use amscript_base::progress::{self, Progress};
use amscript_tensor::meta::Trace;
use amscript_tensor::op::Lora;
use amscript_tensor::{DType, Device, Rng, Tensor, interrupt, place};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Networks of more numbers than this are held in bf16 and recompute their blocks, unless told otherwise.
pub const LARGE: usize = 1_000_000_000;

/// Ends of the names of what weights stored in fewer bits are to be multiplied with.
const SCALES: [&str; 9] = [
    ".scale_weight",
    ".weight_scale",
    ".weight_scale_inv",
    ".input_scale",
    ".scale_input",
    "scaled_fp8",
    ".absmax",
    ".quant_map",
    ".SCB",
];

/// How a tensor begins in a random network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    Constant(f64),
    /// Normal with this deviation.
    Normal(f64),
    /// Uniform in plus or minus this bound.
    Uniform(f64),
}

/// Named tensors below a prefix; clones share them.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    prefix: String,
}

/// Where tensors come from that are not in memory.
#[derive(Clone, Default)]
enum Source {
    #[default]
    Memory,
    Files(Arc<Stored>),
    /// Makes what is asked for; one stream per name. With a deviation, every matrix is normal with it, whatever its beginning.
    Random(Rng, Option<f64>),
    /// Shapes only: of these files, or whatever is asked for. Tensors are broadcast zeros and hold no memory.
    Meta(Option<Arc<Stored>>, Arc<Trace>),
}

/// Open files, and by the name a model uses: which file, the name there, and the piece.
struct Stored {
    archives: Vec<Archive>,
    pieces: BTreeMap<String, (usize, String, Piece)>,
}

impl Source {
    fn stored(&self) -> Option<&Stored> {
        match self {
            Self::Files(stored) | Self::Meta(Some(stored), _) => Some(stored),
            _ => None,
        }
    }

    /// The source once all tensors were taken from it.
    fn drained(&self) -> Self {
        if let Self::Meta(..) = self { self.clone() } else { Self::Memory }
    }
}

impl Stored {
    fn dtype(&self, name: &str) -> Option<DType> {
        let (i, name, _) = self.pieces.get(name)?;
        Some(self.archives[*i].entries().get(name)?.dtype)
    }
}

struct Shared {
    origin: String,
    source: Source,
    dtype: DType,
    /// What networks compute in; none: see [`Weights::compute`].
    compute: Option<DType>,
    device: Device,
    /// Low-rank changes by module name; see [`crate::linear`].
    adapters: BTreeMap<String, Lora>,
    state: Mutex<WeightsState>,
}

#[derive(Clone, Default)]
pub(super) struct WeightsState {
    tensors: BTreeMap<String, Tensor>,
    used: BTreeSet<String>,
    /// Shapes a model asked for, by full name.
    asked: BTreeMap<String, Vec<usize>>,
    /// Linear modules seen so far: `[out, in]`.
    pub(super) linears: BTreeMap<String, [usize; 2]>,
}

impl Weights {
    fn new(origin: &str, source: Source, dtype: DType, device: &Device) -> Self {
        let (origin, device, adapters) = (origin.to_string(), device.clone(), BTreeMap::new());
        let shared = Shared { origin, source, dtype, compute: None, device, adapters, state: Mutex::default() };
        Self { shared: Arc::new(shared), prefix: String::new() }
    }

    /// Tensors of open files, read when first asked for and converted to `dtype` on `device`.
    pub fn open(archives: Vec<Archive>, dtype: DType, device: &Device) -> Result<Self> {
        Self::open_as(archives, &layout::same, &[], dtype, device)
    }

    /// Like [`Weights::open`], under the names that `layout` gives to what is stored, without what wraps all of them; `known` are
    /// tensors by which the network is found below any prefix.
    pub fn open_as(archives: Vec<Archive>, layout: &Layout, known: &[&str], dtype: DType, to: &Device) -> Result<Self> {
        let origin = archives.first().map_or("no file", Archive::origin).to_string();
        let network = layout::of_network(&archives);
        let names = network.iter().map(|(_, name, _)| *name);
        let wrapped = layout::wrapped(names.clone().map(String::as_str), known);
        if let Some(scale) = names.clone().find(|name| SCALES.iter().any(|end| name.ends_with(end))) {
            bail!(File, "{origin}: tensor `{scale}` scales weights that are stored in fewer bits, which is not done here";
                hint: "take the model in bf16 or f32");
        }
        let mut pieces = BTreeMap::new();
        for (i, stored, entry) in network {
            for piece in layout(&layout::plain(stored)[wrapped..], &entry.shape) {
                let name = piece.name.clone();
                if pieces.insert(name.clone(), (i, stored.clone(), piece)).is_some() {
                    bail!(File, "{}: tensor `{name}` is there twice", archives[i].origin());
                }
            }
        }
        let stored = Stored { archives, pieces };
        Ok(Self::new(&origin, Source::Files(Arc::new(stored)), dtype, to))
    }

    /// A safetensors or PyTorch file.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Self::open(vec![Archive::open(path)?], dtype, device)
    }

    /// A random network: every tensor a model asks for is drawn from the stream split by the tensor's name.
    pub fn random(rng: &Rng, dtype: DType, device: &Device) -> Self {
        Self::new("random weights", Source::Random(rng.clone(), None), dtype, device)
    }

    /// A random network whose matrices are all normal with this deviation, so that nothing in it is zero.
    pub fn noise(rng: &Rng, deviation: f64, dtype: DType, device: &Device) -> Self {
        Self::new("random weights", Source::Random(rng.clone(), Some(deviation)), dtype, device)
    }

    /// Shapes without numbers, counted by `trace`: whatever a model asks for is there.
    pub fn meta(dtype: DType, trace: &Arc<Trace>) -> Self {
        Self::new("meta weights", Source::Meta(None, trace.clone()), dtype, &Device::Cpu)
    }

    /// The same names and shapes without numbers; nothing is read.
    pub fn to_meta(&self) -> Self {
        self.traced(&Trace::new(false))
    }

    /// [`Weights::to_meta`], whose memory and work `trace` counts.
    pub fn traced(&self, trace: &Arc<Trace>) -> Self {
        let source = match &self.shared.source {
            Source::Files(stored) => Source::Meta(Some(stored.clone()), trace.clone()),
            Source::Random(..) => Source::Meta(None, trace.clone()),
            other => other.clone(),
        };
        let meta = Self::new(self.origin(), source, self.dtype(), &Device::Cpu);
        meta.state().tensors = self.state().tensors.clone();
        meta
    }

    /// Refuses files that do not hold exactly the tensors `build` asks for, by their headers alone.
    pub fn verify<M>(&self, build: impl FnOnce(&Weights) -> Result<M>) -> Result<()> {
        let meta = self.to_meta();
        build(&meta)?;
        meta.finish()
    }

    /// A parameter that begins as `x`, without numbers where these weights have none.
    pub fn parameter(&self, x: &Tensor) -> Result<Tensor> {
        match &self.shared.source {
            Source::Meta(_, trace) => Tensor::meta(x.shape(), x.dtype(), trace)?.variable(),
            _ => x.variable(),
        }
    }

    /// What counts these weights, where they have shapes and no numbers.
    pub fn trace(&self) -> Option<&Arc<Trace>> {
        if let Source::Meta(_, trace) = &self.shared.source { Some(trace) } else { None }
    }

    /// Whether tensors have shapes and no numbers.
    pub fn is_meta(&self) -> bool {
        matches!(self.shared.source, Source::Meta(..))
    }

    /// How many numbers of those that models asked for have names that are `chosen`.
    pub fn numbers(&self, chosen: impl Fn(&str) -> bool) -> usize {
        let state = self.state();
        state.asked.iter().filter(|(name, _)| chosen(name)).map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Names and shapes of what the models built from these weights asked for.
    pub fn asked(&self) -> BTreeMap<String, Vec<usize>> {
        self.state().asked.clone()
    }

    /// How many tensors and numbers the models built from these weights asked for.
    pub fn count(&self) -> (usize, usize) {
        let state = self.state();
        (state.asked.len(), state.asked.values().map(|shape| shape.iter().product::<usize>()).sum())
    }

    /// Tensors in memory, as they are; `origin` names them in messages.
    pub fn from_tensors(origin: &str, tensors: BTreeMap<String, Tensor>) -> Self {
        let (dtype, device) = match tensors.values().next() {
            Some(tensor) => (tensor.dtype(), tensor.device().clone()),
            None => (DType::F32, Device::Cpu),
        };
        let weights = Self::new(origin, Source::Memory, dtype, &device);
        weights.state().tensors = tensors;
        weights
    }

    /// The same weights seen from below `name`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { shared: self.shared.clone(), prefix: self.full(&name.to_string()) }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn dtype(&self) -> DType {
        self.shared.dtype
    }

    /// The type weights are held in unless told otherwise: f32, or bf16 for more than a billion numbers.
    pub fn usual_dtype(archives: &[Archive]) -> DType {
        let entries = archives.iter().flat_map(|archive| archive.entries().values());
        let numbers: usize = entries.map(|entry| entry.shape.iter().product::<usize>()).sum();
        if numbers > LARGE { DType::BF16 } else { DType::F32 }
    }

    /// Numbers in the files.
    pub fn stored(&self) -> usize {
        let pieces = self.shared.source.stored().into_iter().flat_map(|stored| stored.pieces.values());
        pieces.map(|(.., piece)| piece.shape.iter().product::<usize>()).sum()
    }

    /// Forgets the tensors that were read; files stay open, and what is asked for is read again.
    pub fn unload(&self) {
        if let Source::Files(_) = self.shared.source {
            self.state().tensors.clear();
        }
    }

    /// What a network of these weights computes in: their type, but f32 instead of half precision on the CPU.
    pub fn compute(&self) -> DType {
        let cpu = self.trace().map_or(self.device().is_cpu(), |trace| !trace.fused());
        match (self.shared.compute, self.dtype()) {
            (Some(dtype), _) => dtype,
            (None, DType::BF16 | DType::F16) if cpu => DType::F32,
            (None, dtype) => dtype,
        }
    }

    /// The same weights for networks that compute in this type.
    pub fn computing(self, dtype: Option<DType>) -> Self {
        let shared = Shared { compute: dtype, ..self.shared.copy() };
        Self { shared: Arc::new(shared), prefix: self.prefix }
    }

    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// File or description these weights came from.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    fn full(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_string(),
            (prefix, "") => prefix.to_string(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, WeightsState> {
        self.shared.state.lock()
    }

    /// Shape of a stored tensor, to read sizes from; `None` when there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let name = self.full(name);
        let held = self.state().tensors.get(&name).map(|tensor| tensor.dims().to_vec());
        held.or_else(|| Some(self.shared.source.stored()?.pieces.get(&name)?.2.shape.clone()))
    }

    pub fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// All full names, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: BTreeSet<String> = self.state().tensors.keys().cloned().collect();
        names.extend(self.shared.source.stored().into_iter().flat_map(|stored| stored.pieces.keys().cloned()));
        names.into_iter().collect()
    }

    /// The tensor `name` of this shape; `init` says how it begins in a random network.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let full = self.full(name);
        let found = self.shape(name);
        if let Some(found) = &found
            && found != shape
        {
            bail!(Shape, "{}: tensor `{full}` must have shape {shape:?}, got {found:?}", self.shared.origin);
        }
        let tensor = match (&found, &self.shared.source) {
            (Some(_), _) => self.fetch(&full)?,
            (None, Source::Random(rng, deviation)) => {
                let init = deviation.filter(|_| shape.len() > 1).map_or(init, Init::Normal);
                let tensor = self.shared.draw(rng, &full, shape, init)?;
                self.state().tensors.insert(full.clone(), tensor.clone());
                tensor
            }
            (None, Source::Meta(None, trace)) => {
                let tensor = Tensor::meta(shape, self.dtype(), trace)?;
                self.state().tensors.insert(full.clone(), tensor.clone());
                tensor
            }
            (None, _) => return Err(self.missing(&full)),
        };
        let mut state = self.state();
        state.asked.insert(full.clone(), shape.to_vec());
        state.used.insert(full);
        Ok(tensor)
    }

    /// Marks a tensor as known though no model reads it.
    pub fn skip(&self, name: &str) {
        let name = self.full(name);
        self.state().used.insert(name);
    }

    fn fetch(&self, full: &str) -> Result<Tensor> {
        if let Some(tensor) = self.state().tensors.get(full) {
            return Ok(tensor.clone());
        }
        let shared = &self.shared;
        let Some((stored, (i, name, piece))) = shared.source.stored().and_then(|s| Some((s, s.pieces.get(full)?)))
        else {
            return Err(self.missing(full));
        };
        let archive = &stored.archives[*i];
        let dtype = archive.entries()[name].dtype;
        if !matches!(dtype, DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
            bail!(Dtype, "{}: tensor `{name}` must be of type f32, f64, bf16 or f16, got {}", archive.origin(), dtype.as_str();
                hint: "quantised files are not read; take the bf16 file");
        }
        if let Source::Meta(_, trace) = &shared.source {
            let tensor = Tensor::meta(&piece.shape[..], shared.dtype, trace)?;
            self.state().tensors.insert(full.to_string(), tensor.clone());
            return Ok(tensor);
        }
        let tensor = archive.read_numbers(name, piece.rows.clone())?.reshape(&piece.shape[..])?;
        interrupt::check()?; // a large file is left between two tensors
        progress::bytes((tensor.elem_count() * dtype.size_in_bytes()) as u64);
        let tensor = if piece.swapped {
            let half = tensor.dim(0)? / 2;
            Tensor::cat(&[tensor.narrow(0, half, half)?, tensor.narrow(0, 0, half)?], 0)?
        } else {
            tensor
        };
        let tensor = place::send(&tensor, shared.dtype, &shared.device)?;
        self.state().tensors.insert(full.to_string(), tensor.clone());
        Ok(tensor)
    }

    /// A network of these weights; what it reads from files is counted by a progress bar.
    pub fn build<M>(&self, build: impl Fn(&Weights) -> Result<M>) -> Result<M> {
        let Source::Files(stored) = &self.shared.source else { return build(self) };
        if !self.state().tensors.is_empty() {
            return build(self); // most of it is there
        }
        let meta = self.to_meta();
        build(&meta)?;
        let asked: Vec<String> = meta.state().asked.keys().cloned().collect();
        let size = |name: &String| {
            let numbers = stored.pieces.get(name)?.2.shape.iter().product::<usize>();
            Some((numbers * stored.dtype(name)?.size_in_bytes()) as u64)
        };
        let file = Path::new(self.origin()).file_name().unwrap_or_default().to_string_lossy();
        let _shown = Progress::bytes(format!("reading {file}"), asked.iter().filter_map(size).sum());
        build(self)
    }

    fn missing(&self, full: &str) -> Error {
        let names = self.names();
        let error = Error::new(Kind::Missing, format!("{}: tensor `{full}` is missing", self.shared.origin));
        match nearest(full, names.iter().map(String::as_str)) {
            Some(name) => error.hint(format!("the nearest name in the file is `{name}`")),
            None => error,
        }
    }

    /// Stored floats that no model asked for.
    pub fn unused(&self) -> Vec<String> {
        let names = self.names();
        let state = self.state();
        names.into_iter().filter(|name| !state.used.contains(name) && self.is_float(name)).collect()
    }

    /// Refuses stored floats that no model asked for.
    pub fn finish(&self) -> Result<()> {
        let unused = self.unused();
        let Some(first) = unused.first() else { return Ok(()) };
        bail!(File, "{}: {} of {} tensors are not part of this model, the first is `{first}`",
            self.shared.origin, unused.len(), self.names().len();
            hint: "check that the config beside the weights belongs to them")
    }

    /// Whether a tensor is one of floats; counters, masks and the like are not.
    fn is_float(&self, name: &str) -> bool {
        self.shared.source.stored().and_then(|stored| stored.dtype(name)).is_none_or(|dtype| dtype.is_float())
    }

    /// Every float tensor by full name, read if it was not yet.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let floats = self.names().into_iter().filter(|name| self.is_float(name));
        floats.map(|name| Ok((name.clone(), self.fetch(&name)?))).collect()
    }

    /// The same names with other tensors: `change(name, tensor)`.
    pub fn map(&self, mut change: impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut tensors = self.tensors()?;
        for (name, tensor) in tensors.iter_mut() {
            *tensor = change(name, tensor)?;
        }
        self.replaced(tensors, self.shared.adapters.clone())
    }

    /// These weights with other tensors and adapters.
    fn replaced(&self, tensors: BTreeMap<String, Tensor>, adapters: BTreeMap<String, Lora>) -> Result<Self> {
        let state = Mutex::new(WeightsState { tensors, ..self.state().clone() });
        let shared = Shared { source: self.shared.source.drained(), adapters, state, ..self.shared.copy() };
        Ok(Self { shared: Arc::new(shared), prefix: self.prefix.clone() })
    }

    /// Writes all tensors as safetensors, in `dtype` if one is given.
    pub fn save(&self, path: &Path, dtype: Option<DType>) -> Result<()> {
        let mut tensors = self.tensors()?;
        for tensor in tensors.values_mut() {
            *tensor = tensor.constant().to_dtype(dtype.unwrap_or(tensor.dtype()))?;
        }
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        archive::write(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata)
    }
}

impl Shared {
    fn copy(&self) -> Self {
        let state = self.state.lock().clone();
        Self {
            origin: self.origin.clone(),
            source: self.source.clone(),
            dtype: self.dtype,
            compute: self.compute,
            device: self.device.clone(),
            adapters: self.adapters.clone(),
            state: Mutex::new(state),
        }
    }

    fn draw(&self, rng: &Rng, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let mut stream = rng.split(name);
        Ok(match init {
            Init::Zeros => Tensor::zeros(shape, self.dtype, &self.device)?,
            Init::Ones => Tensor::ones(shape, self.dtype, &self.device)?,
            Init::Constant(value) => Tensor::ones(shape, self.dtype, &self.device)?.affine(value, 0.0)?,
            Init::Normal(std) => (stream.normal(shape, DType::F64, &Device::Cpu)? * std)?
                .to_dtype(self.dtype)?
                .to_device(&self.device)?,
            Init::Uniform(bound) => stream
                .uniform(shape, DType::F64, &Device::Cpu)?
                .affine(2.0 * bound, -bound)?
                .to_dtype(self.dtype)?
                .to_device(&self.device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Weights {
        let weights = Weights::random(&Rng::new(0), DType::F32, &Device::Cpu).pp("block.0");
        weights.get("proj.weight", &[3, 4], Init::Normal(0.5)).unwrap();
        weights.get("norm.weight", &[4], Init::Ones).unwrap();
        weights
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn random_weights_depend_on_seed_and_name_only() {
        let again = Weights::random(&Rng::new(0), DType::F32, &Device::Cpu).pp("block").pp(0);
        let norm = again.get("norm.weight", &[4], Init::Ones).unwrap();
        let proj = again.get("proj.weight", &[3, 4], Init::Normal(0.5)).unwrap();
        let first = two().get("proj.weight", &[3, 4], Init::Zeros).unwrap();
        assert_eq!(values(&proj), values(&first));
        assert_eq!(values(&norm), [1.0; 4]);
        let other = again.get("proj2.weight", &[3, 4], Init::Uniform(0.5)).unwrap();
        assert!(values(&other).iter().all(|v| v.abs() <= 0.5));
        assert_ne!(values(&proj), values(&other));
    }

    #[test]
    fn saved_weights_load_with_names_and_shapes_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        two().save(&path, Some(DType::F64)).unwrap();
        let loaded = Weights::load(&path, DType::F32, &Device::Cpu).unwrap();
        let block = loaded.pp("block.0");
        let proj = block.get("proj.weight", &[3, 4], Init::Zeros).unwrap();
        assert_eq!(values(&proj), values(&two().get("proj.weight", &[3, 4], Init::Zeros).unwrap()));
        let missing = block.get("prj.weight", &[3, 4], Init::Zeros).unwrap_err();
        assert_eq!(missing.kind, Kind::Missing);
        assert!(missing.to_string().ends_with("nearest name in the file is `block.0.proj.weight`"), "{missing}");
        let misshaped = block.get("norm.weight", &[5], Init::Zeros).unwrap_err().to_string();
        assert!(misshaped.ends_with("tensor `block.0.norm.weight` must have shape [5], got [4]"), "{misshaped}");
        assert!(loaded.finish().unwrap_err().message.contains("1 of 2 tensors are not part of this model"));
        block.skip("norm.weight");
        loaded.finish().unwrap();
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            for (value, what) in [
                (f32::NAN, "NaN"),
                (-f32::NAN, "NaN"),
                (f32::INFINITY, "infinite"),
                (-f32::INFINITY, "infinite"),
                (-1.0, ""),
            ] {
                let tensor = Tensor::new(&[[1.0, 2.0], [3.0, value]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                archive::write(&path, [("a", &tensor)], &BTreeMap::new()).unwrap();
                let read = Weights::load(&path, DType::F32, &Device::Cpu).unwrap().get("a", &[2, 2], Init::Zeros);
                match read {
                    Ok(_) => assert!(what.is_empty(), "{dtype:?} {value}"),
                    Err(e) => {
                        let told = e.message.ends_with(&format!("tensor `a` has numbers that are {what}"));
                        assert!(told && !what.is_empty(), "{e}");
                    }
                }
            }
        }
    }

    #[test]
    fn trainable_makes_variables_of_the_chosen() {
        let weights = two().trainable(|name| name.ends_with("norm.weight")).unwrap();
        let params = weights.params();
        assert_eq!(params.len(), 1);
        assert_eq!(params[0].0, "block.0.norm.weight");
        let seen = weights.get("norm.weight", &[4], Init::Zeros).unwrap();
        params[0].1.set(&Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(values(&seen), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(values(&two().get("norm.weight", &[4], Init::Zeros).unwrap()), [1.0; 4]);
    }
}
