//! How the tensors of a file become the ones a model asks for: other names, rows of a fused matrix, other shapes.

use crate::archive::{Archive, TensorEntry};
use amscript_tensor::DType;
use std::ops::Range;

/// A stored tensor, or rows of one, under the name a model asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub name: String,
    /// Rows of the stored tensor.
    pub rows: Range<usize>,
    /// Shape of the piece, with the same numbers in the same order.
    pub shape: Vec<usize>,
    /// The two halves of its rows change places.
    pub swapped: bool,
}

impl Piece {
    /// All of a tensor of this shape.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        let rows = 0..shape.first().copied().unwrap_or(1);
        Self { name: name.into(), rows, shape: shape.to_vec(), swapped: false }
    }

    /// The `i`th of `n` equal parts of its rows.
    pub fn part(name: impl Into<String>, shape: &[usize], i: usize, n: usize) -> Self {
        let mut piece = Self::whole(name, shape);
        let len = piece.rows.len() / n;
        piece.rows = i * len..(i + 1) * len;
        if let Some(first) = piece.shape.first_mut() {
            *first = len;
        }
        piece
    }

    pub fn swapped(self) -> Self {
        Self { swapped: true, ..self }
    }

    /// The same numbers in another shape.
    pub fn shaped(self, shape: Vec<usize>) -> Self {
        Self { shape, ..self }
    }
}

/// What wraps a whole network in the names of its file: DistributedDataParallel, what ComfyUI saves, averages (EMA).
const WRAPPERS: [&str; 4] = ["module.", "model.diffusion_model.", "diffusion_model.", AVERAGES];

/// What ema_pytorch puts before the averages, and before the plain weights beside them.
const AVERAGES: &str = "ema_model.";
const AVERAGED: &str = "online_model.";

/// What averages of weights (torch.optim.swa_utils, ema_pytorch) count; no part of a network.
const COUNTERS: [&str; 3] = ["n_averaged", "initted", "step"];

/// The tensors of a network by file: without counters of averages and the plain weights beside them.
pub fn of_network(archives: &[Archive]) -> Vec<(usize, &String, &TensorEntry)> {
    let entries = archives.iter().enumerate().flat_map(|(i, archive)| archive.entries().iter().map(move |e| (i, e)));
    let entries = entries.map(|(i, (name, entry))| (i, name, entry));
    let mut kept: Vec<_> = entries.filter(|(_, name, entry)| !is_counter(name, entry.dtype, &entry.shape)).collect();
    if are_averaged(kept.iter().map(|(_, name, _)| name.as_str())) {
        kept.retain(|(_, name, _)| name.starts_with(AVERAGES));
    }
    kept
}

fn is_counter(name: &str, dtype: DType, shape: &[usize]) -> bool {
    let counts = matches!(dtype, DType::U8 | DType::U32 | DType::I16 | DType::I32 | DType::I64);
    COUNTERS.contains(&name) && counts && shape.iter().product::<usize>() == 1
}

/// Whether the names are those of plain weights and their averages.
fn are_averaged<'a>(names: impl Iterator<Item = &'a str> + Clone) -> bool {
    let all = names.clone().all(|name| name.starts_with(AVERAGES) || name.starts_with(AVERAGED));
    all && names.clone().any(|name| name.starts_with(AVERAGES))
}

/// What wraps modules anywhere in a network: torch.compile, FullyShardedDataParallel, checkpointing, DeepSpeed and Accelerate.
pub const INNER: [&str; 4] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module."];

/// A name without what wraps modules in it.
pub fn plain(name: &str) -> String {
    INNER.iter().fold(name.to_string(), |name, wrapper| name.replace(wrapper, ""))
}

/// Length of the wrappers that all names, made plain, begin with: known ones, then whatever stands before one of these tensors.
pub fn wrapped<'a>(names: impl Iterator<Item = &'a str>, known: &[&str]) -> usize {
    let (names, mut length) = (names.map(plain).collect::<Vec<_>>(), 0);
    if names.is_empty() {
        return length;
    }
    let all = |from: usize, wrapper: &str| names.iter().all(|name| name[from..].starts_with(wrapper));
    while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| all(length, wrapper)) {
        length += wrapper.len();
    }
    let before = |known: &&str| {
        let outer = names.iter().find_map(|name| name[length..].strip_suffix(*known).filter(|o| o.ends_with('.')));
        outer.filter(|outer| all(length, outer))
    };
    length + known.iter().find_map(before).map_or(0, str::len)
}

/// The pieces a stored tensor `(name, shape)` holds.
pub type Layout = dyn Fn(&str, &[usize]) -> Vec<Piece>;

/// Names as they are.
pub fn same(name: &str, shape: &[usize]) -> Vec<Piece> {
    vec![Piece::whole(name, shape)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_what_is_averaged_are_no_part_of_a_network() {
        let is = |name: &str| is_counter(name, DType::I64, &[]);
        assert!(is("n_averaged") && is_counter("initted", DType::U8, &[1]) && is("step"));
        assert!(!is("module.step") && !is_counter("step", DType::F32, &[]) && !is_counter("step", DType::I64, &[2]));
        let averaged = |names: &[&'static str]| are_averaged(names.iter().copied());
        assert!(averaged(&["online_model.a", "ema_model.a"]) && averaged(&["ema_model.a"]));
        assert!(!averaged(&["online_model.a"]) && !averaged(&["online_model.a", "ema_model.a", "b"]) && !averaged(&[]));
        assert_eq!(wrapped(["ema_model.a", "ema_model.b"].into_iter(), &[]), 10);
    }

    #[test]
    fn wrappers_are_those_of_all_names() {
        let length = |names: &[&'static str]| wrapped(names.iter().copied(), &["in.weight"]);
        assert_eq!(length(&["module._orig_mod.a", "module._orig_mod.b.c"]), 7);
        assert_eq!(plain("_fsdp_wrapped_module.a._checkpoint_wrapped_module._orig_mod.b"), "a.b");
        assert_eq!(length(&["module.a", "b"]) + length(&["a.module.b"]), 0);
        assert_eq!(length(&["model.diffusion_model.a"]), 22);
        assert_eq!(length(&["module.policy.net.a", "module.policy.net.in.weight"]), 18);
        assert_eq!(length(&["policy.net.a", "policy.in.weight"]) + length(&["in.weight", "a.in.weight"]), 7);
        assert_eq!(length(&["other.a", "policy.in.weight"]) + length(&["a.a", "a.in.weight_scale"]), 0);
    }
}
