//! LoRA files: which modules their tensors change, whatever names the file uses, and back.
//!
//! A pair `A [rank, in]`, `B [out, rank]` changes a weight by `alpha / rank B A`. Read are the names of diffusers and PEFT
//! (`lora_A`, `lora_B`, with the adapter's name behind or not), of kohya (`lora_down`, `lora_up`), with the module named as in the
//! model or in its other published layout, below any of the usual prefixes, one that all names share, or none. Alpha comes from a tensor
//! `<module>.alpha`, else from the header or what stands beside the tensors of a PyTorch file (diffusers' `lora_adapter_metadata`, a
//! number of its own, a config), else from PEFT's `adapter_config.json` beside the file, else it is the rank.

mod alpha;

use crate::archive::{self, Archive};
use crate::layout;
use crate::source::Folder;
use alpha::Alphas;
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result, nearest, warn_once};
use amscript_base::file;
use amscript_tensor::op::Lora;
use amscript_tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Prefixes of module names, beside the component's; several may follow one another.
const PREFIXES: [&str; 9] =
    ["base_model.", "diffusion_model.", "model.", "module.", "_orig_mod.", "transformer.", "unet.", "pipe.", "dit."];

/// Prefixes of module names written with underscores.
const FLAT_PREFIXES: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];

/// The file of adapters in a folder, by PEFT and by diffusers.
const FILES: [&str; 3] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin"];

/// What stands between a module and the end of a tensor's name: `.weight`, or an adapter's name and that.
const ROLES: [(&str, Role); 6] = [
    (".lora_A", Role::A),
    (".lora_B", Role::B),
    (".lora_down", Role::A),
    (".lora_up", Role::B),
    (".lora.down", Role::A),
    (".lora.up", Role::B),
];

/// The module of a tensor's name, and the part of a pair that it is.
fn role(name: &str) -> Option<(&str, Role)> {
    if let Some(module) = name.strip_suffix(".alpha") {
        return Some((module, Role::Alpha));
    }
    ROLES.iter().find_map(|(mark, role)| {
        let (module, rest) = name.split_once(mark)?;
        let adapter = rest.strip_suffix(".weight")?;
        let named = |adapter: &str| adapter.strip_prefix('.').is_some_and(|name| !name.contains('.'));
        (adapter.is_empty() || named(adapter)).then_some((module, *role))
    })
}

/// Parts of the names of other adapters, which are refused.
const OTHERS: [(&str, &str); 6] = [
    ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
    ("lokr_", "LoKr"),
    ("hada_", "LoHa"),
    ("oft_", "OFT"),
    ("lora_mid", "a convolution's LoRA"),
];

#[derive(Clone, Copy, PartialEq)]
enum Role {
    A,
    B,
    Alpha,
}

/// How a file names and stores its adapters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// `<component>.<module>.lora_A.weight`, modules as in the model.
    Diffusers,
    /// `lora_unet_<module>.lora_down.weight` and `.alpha`, modules as in the other layout, with underscores.
    Kohya,
}

/// A linear module in a model's other published layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Alias {
    pub module: String,
    /// Place among the matrices that are stacked there as one.
    pub part: usize,
    /// The two halves of its rows change places.
    pub swapped: bool,
}

/// The names of a model's linear modules.
pub struct Names<'a> {
    /// Prefix of the diffusers form.
    pub component: &'a str,
    /// `[out, in]` by name.
    pub linears: &'a BTreeMap<String, [usize; 2]>,
    pub alias: &'a dyn Fn(&str) -> Option<Alias>,
}

/// Rows of a matrix in a file, and the module they belong to.
#[derive(Clone, Debug)]
struct Slot {
    module: String,
    rows: Range<usize>,
    swapped: bool,
}

/// One module of a file: the names of its tensors.
#[derive(Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
    alpha: Option<String>,
}

impl Names<'_> {
    /// The modules of the other layout, each with the modules stacked in it, in order. What has one name only stands by itself.
    fn stacks(&self) -> BTreeMap<String, Vec<Slot>> {
        let mut stacks: BTreeMap<String, BTreeMap<usize, Slot>> = BTreeMap::new();
        for (module, [out, _]) in self.linears {
            let own = || Alias { module: module.clone(), part: 0, swapped: false };
            let Alias { module: stack, part, swapped } = (self.alias)(module).unwrap_or_else(own);
            let slot = Slot { module: module.clone(), rows: 0..*out, swapped };
            stacks.entry(stack).or_default().insert(part, slot);
        }
        let placed = |slots: BTreeMap<usize, Slot>| {
            let mut start = 0;
            let place = |slot: Slot| {
                let rows = start..start + slot.rows.len();
                start = rows.end;
                Slot { rows, ..slot }
            };
            slots.into_values().map(place).collect()
        };
        stacks.into_iter().map(|(name, slots)| (name, placed(slots))).collect()
    }

    /// Every name a file may use for a module or a stack of them, without prefix.
    fn known(&self) -> BTreeMap<String, Vec<Slot>> {
        let whole = |(module, [out, _]): (&String, &[usize; 2])| {
            (module.clone(), vec![Slot { module: module.clone(), rows: 0..*out, swapped: false }])
        };
        let mut known = self.stacks();
        known.extend(self.linears.iter().map(whole));
        known
    }

    /// The name without prefixes, and whether it is written with underscores.
    fn bare<'n>(&self, name: &'n str) -> (&'n str, bool) {
        if let Some(flat) = FLAT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            return (flat, true);
        }
        let component = |name: &'n str| name.strip_prefix(self.component)?.strip_prefix('.');
        let shorter = |name: &'n str| component(name).or_else(|| PREFIXES.iter().find_map(|p| name.strip_prefix(p)));
        let mut bare = name;
        while let Some(rest) = shorter(bare) {
            bare = rest;
        }
        (bare, false)
    }
}

/// A module's name in a file without the modules that training wraps around others.
fn plain(stem: &str) -> String {
    layout::INNER.iter().fold(layout::plain(stem), |stem, wrapper| stem.replace(&flat(wrapper), ""))
}

/// Length of a prefix that all stems share and below which the first is a module of the model. A number in it would say which block.
fn outer(names: &Names, known: &BTreeMap<String, Vec<Slot>>, stems: &[String]) -> usize {
    let Some(first) = stems.first() else { return 0 };
    let is_known = |name: &str| known.contains_key(names.bare(name).0);
    let mut ends = std::iter::once(0).chain(first.match_indices('.').map(|(at, _)| at + 1));
    let numbers = |prefix: &str| prefix.split('.').any(|part| part.parse::<usize>().is_ok());
    let shared = |prefix: &str| !numbers(prefix) && stems.iter().all(|stem| stem.starts_with(prefix));
    ends.find(|end| is_known(&first[*end..])).filter(|end| shared(&first[..*end])).unwrap_or(0)
}

fn flat(name: &str) -> String {
    name.replace('.', "_")
}

/// The adapters of a file by module, in `dtype` on `device`; every tensor of the file is used, or it is an error.
pub fn read(path: &Path, names: &Names, dtype: DType, device: &Device) -> Result<BTreeMap<String, Lora>> {
    let path = &file_of(path)?;
    let archive = Archive::open(path)?;
    let origin = archive.origin();
    let alphas = Alphas::of(&archive, path, names.component).map_err(|e| e.within(origin))?;
    let known = names.known();
    let flattened: BTreeMap<String, &Vec<Slot>> = known.iter().map(|(name, slots)| (flat(name), slots)).collect();
    let (mut adapters, pairs) = (BTreeMap::new(), pairs(&archive)?);
    let outer = outer(names, &known, &pairs.keys().map(|stem| plain(stem)).collect::<Vec<_>>());
    for (stem, pair) in pairs {
        let plain = plain(&stem);
        let (bare, is_flat) = names.bare(&plain[outer..]);
        let slots = if is_flat { flattened.get(bare).copied() } else { known.get(bare) };
        let Some(slots) = slots else {
            let any = pair.a.or(pair.b).or(pair.alpha).unwrap_or_default();
            let names = flattened.keys().filter(|_| is_flat).chain(known.keys().filter(|_| !is_flat));
            let error =
                Error::new(Kind::Name, format!("{origin}: tensor `{any}`: the model has no linear module `{bare}`"));
            return Err(match nearest(bare, names.map(String::as_str)) {
                Some(near) => error.hint(format!("the nearest is `{near}`")),
                None => error.hint("the file was made for another model or part of one"),
            });
        };
        let (Some(a), Some(b)) = (&pair.a, &pair.b) else {
            let (there, lacks) = (pair.a.as_ref().or(pair.b.as_ref()).or(pair.alpha.as_ref()), pair.a.is_some());
            let (there, lacks) =
                (there.map_or("", |n| n), if lacks { "B (lora_B, lora_up)" } else { "A (lora_A, lora_down)" });
            bail!(Missing, "{origin}: tensor `{there}` must have its partner {lacks} beside it, got none");
        };
        let out = slots.last().map_or(0, |slot| slot.rows.end);
        let inner = names.linears[&slots[0].module][1];
        let shape = |name: &str| archive.entries()[name].shape.as_slice();
        let rank = shape(a).first().copied().unwrap_or(0);
        if rank == 0 || shape(a) != [rank, inner] || shape(b) != [out, rank] {
            bail!(Shape, "{origin}: tensors `{a}` and `{b}` must have shapes [rank, {inner}] and [{out}, rank], got {:?} and {:?}",
                shape(a), shape(b); hint: "the file was made for a model of another size");
        }
        let tensor = |name: &str| finite(&archive, name)?.to_dtype(dtype)?.to_device(device);
        let scale = match &pair.alpha {
            Some(alpha) => scalar(&archive, alpha)? / rank as f64,
            None => alphas.scale(bare, rank),
        };
        let (a, b) = (tensor(a)?, tensor(b)?);
        for slot in slots {
            let rows = b.narrow(0, slot.rows.start, slot.rows.len())?;
            let rows = if slot.swapped { swap_halves(&rows)? } else { rows.copy()? };
            if adapters.insert(slot.module.clone(), Lora { a: a.clone(), b: rows, scale }).is_some() {
                bail!(File, "{origin}: module `{}` is changed twice, the second time by `{stem}`", slot.module);
            }
        }
    }
    if adapters.is_empty() {
        bail!(File, "{origin}: expected LoRA tensors such as `{}.<module>.lora_A.weight`, got none", names.component);
    }
    warn_of_idle(origin, &adapters);
    Ok(adapters)
}

/// Says that adapters change nothing, which they are not made for.
fn warn_of_idle(origin: &str, adapters: &BTreeMap<String, Lora>) {
    let idle = adapters.values().filter(|lora| lora.scale == 0.0).count();
    if idle > 0 {
        let all = adapters.len();
        let message =
            format!("{origin}: alpha is 0 for {idle} of {all} modules, so that their adapters change nothing");
        warn_once(&message, &message);
    }
}

/// How many files a set has that a file of this name is one of: `<stem>-00001-of-00002.safetensors`.
fn parts(name: &str) -> Option<usize> {
    let (part, parts) = name.split_once('.')?.0.rsplit_once("-of-")?;
    part.rsplit_once('-')?.1.parse::<usize>().ok()?;
    parts.parse().ok().filter(|parts| *parts > 1)
}

/// The file, or the one of adapters in a folder.
fn file_of(path: &Path) -> Result<PathBuf> {
    let in_parts = |parts: usize| -> Result<PathBuf> {
        bail!(File, "{}: expected all adapters in one file, got them in {parts} files", path.display();
            hint: "write them as one file where they came from")
    };
    if !file::is_folder(path) {
        return match path.file_name().and_then(|name| parts(name.to_str()?)) {
            Some(parts) => in_parts(parts),
            None => Ok(path.into()),
        };
    }
    let names = Folder::disk(path).names();
    if let Some(parts) = names.iter().find_map(|name| parts(name))
        && !FILES.iter().any(|file| names.contains(*file))
    {
        return in_parts(parts);
    }
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.ends_with(".safetensors")).collect();
    match (FILES.iter().find(|name| names.contains(**name)), others.as_slice()) {
        (Some(name), _) | (None, [name]) => Ok(path.join(name)),
        _ => bail!(Missing, "{}: expected one file of adapters such as `{}` in the folder, got {}",
            path.display(), FILES[0], others.len(); hint: "name the file itself"),
    }
}

/// The file's modules; a tensor that is not part of a LoRA is an error.
fn pairs(archive: &Archive) -> Result<BTreeMap<String, Pair>> {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for name in archive.entries().keys() {
        let origin = archive.origin();
        if let Some((_, kind)) = OTHERS.iter().find(|(part, _)| name.contains(part)) {
            bail!(File, "{origin}: tensor `{name}` belongs to {kind}; only plain LoRA is read");
        }
        let Some((stem, role)) = role(name) else {
            bail!(
                File,
                "{origin}: expected pairs `<module>.lora_A.weight`, `.lora_B.weight` (or lora_down, lora_up) and `.alpha`, got tensor `{name}`"
            );
        };
        let pair = pairs.entry(stem.to_string()).or_default();
        let place = match role {
            Role::A => &mut pair.a,
            Role::B => &mut pair.b,
            Role::Alpha => &mut pair.alpha,
        };
        if let Some(other) = place.replace(name.clone()) {
            bail!(File, "{origin}: tensors `{other}` and `{name}` are the same part of one module");
        }
    }
    Ok(pairs)
}

/// A factor, in which a number that is none would spoil the model.
fn finite(archive: &Archive, name: &str) -> Result<Tensor> {
    let x = archive.read(name)?;
    if !x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|v| v.is_finite()) {
        bail!(Numeric, "{}: tensor `{name}` must be finite, got NaN or an infinity", archive.origin(); hint: "the training that wrote it broke");
    }
    Ok(x)
}

fn scalar(archive: &Archive, name: &str) -> Result<f64> {
    let shape = &archive.entries()[name].shape;
    if shape.iter().product::<usize>() != 1 {
        bail!(Shape, "{}: tensor `{name}` must hold one number, got shape {shape:?}", archive.origin());
    }
    let value: f64 = archive.read(name)?.to_dtype(DType::F64)?.flatten_all()?.get(0)?.to_scalar()?;
    if !value.is_finite() {
        bail!(Numeric, "{}: tensor `{name}` must be finite, got {value}", archive.origin());
    }
    Ok(value)
}

fn swap_halves(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(0)? / 2;
    Tensor::cat(&[x.narrow(0, half, half)?, x.narrow(0, 0, half)?], 0)
}

/// Writes adapters with their scale folded into B, in `dtype` or as they are.
pub fn write(
    path: &Path,
    adapters: &BTreeMap<String, Lora>,
    names: &Names,
    form: Form,
    dtype: Option<DType>,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let stored = |x: &Tensor| x.to_dtype(dtype.unwrap_or(x.dtype()))?.copy();
    match form {
        Form::Diffusers => {
            for (module, lora) in adapters {
                let name = format!("{}.{module}", names.component);
                tensors.insert(format!("{name}.lora_A.weight"), stored(&lora.a.constant())?);
                tensors.insert(format!("{name}.lora_B.weight"), stored(&folded(lora)?)?);
            }
        }
        Form::Kohya => {
            for (name, slots) in names.stacks() {
                if let Some((a, b)) = stacked(&slots, adapters)? {
                    let name = format!("lora_unet_{}", flat(&name));
                    let alpha = Tensor::new(a.dim(0)? as f32, &Device::Cpu)?;
                    tensors.insert(format!("{name}.lora_down.weight"), stored(&a)?);
                    tensors.insert(format!("{name}.lora_up.weight"), stored(&b)?);
                    tensors.insert(format!("{name}.alpha"), stored(&alpha)?);
                }
            }
        }
    }
    let mut metadata = Context::current().origin();
    metadata.insert("format".into(), "pt".into());
    archive::write(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata)
}

/// `scale B`
fn folded(lora: &Lora) -> Result<Tensor> {
    lora.b.constant() * lora.scale
}

/// The adapters of stacked modules as one: ranks side by side, `B` in blocks on the diagonal. `None` where none is adapted.
fn stacked(slots: &[Slot], adapters: &BTreeMap<String, Lora>) -> Result<Option<(Tensor, Tensor)>> {
    let there: Vec<&Lora> = slots.iter().filter_map(|slot| adapters.get(&slot.module)).collect();
    let Some(first) = there.first() else { return Ok(None) };
    let rank: usize = there.iter().map(|lora| lora.a.dims()[0]).sum();
    let (mut rows, mut start) = (Vec::new(), 0); // start: of the module's columns
    for slot in slots {
        let Some(lora) = adapters.get(&slot.module) else {
            rows.push(Tensor::zeros((slot.rows.len(), rank), first.b.dtype(), first.b.device())?);
            continue;
        };
        let b = if slot.swapped { swap_halves(&folded(lora)?)? } else { folded(lora)? };
        let end = start + b.dim(1)?;
        rows.push(b.pad_with_zeros(1, start, rank - end)?);
        start = end;
    }
    let a: Vec<Tensor> = there.iter().map(|lora| lora.a.constant()).collect();
    Ok(Some((Tensor::cat(&a, 0)?, Tensor::cat(&rows, 0)?)))
}
