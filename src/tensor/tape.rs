//! The walk back through a graph that is made of our nodes alone.
//!
//! candle's own walk adds every gradient to a new array of zeros: three passes over memory and two arrays for each edge. Here a
//! gradient is handed on as it is, added only where a tensor was used twice, and computed only where it leads to a wanted variable. A
//! graph that holds one of candle's operations is left to candle's walk.

use super::interrupt;
use super::kernel::{Real, grain};
use super::op::add;
use crate::error::Result;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, TensorId, WithDType};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

pub(super) type Backward = dyn Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// What a node's output was made of.
pub(super) struct Entry {
    id: TensorId,
    /// Nodes made later have greater numbers.
    number: u64,
    /// Per input: none if it is a constant. Tensors are not held: whoever holds the output holds its inputs.
    inputs: Vec<Option<Source>>,
    backward: Arc<Backward>,
    /// Views of the output: nobody else can hold their entries.
    views: Mutex<Vec<Arc<Entry>>>,
}

#[derive(Clone, Copy)]
struct Source {
    id: TensorId,
    variable: bool,
}

/// Entries by their output, for as long as the output lives.
static ENTRIES: LazyLock<Mutex<HashMap<TensorId, Weak<Entry>>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn find(id: TensorId) -> Option<Arc<Entry>> {
    lock(&ENTRIES).get(&id)?.upgrade()
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&ENTRIES).remove(&self.id);
    }
}

impl Entry {
    /// Enters `output`; the entry is to live as long as it.
    pub(super) fn new(output: &Tensor, inputs: &[&Tensor], backward: Arc<Backward>) -> Arc<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let source = |x: &&Tensor| x.track_op().then(|| Source { id: x.id(), variable: x.is_variable() });
        let entry = Arc::new(Self {
            id: output.id(),
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            inputs: inputs.iter().map(source).collect(),
            backward,
            views: Mutex::default(),
        });
        lock(&ENTRIES).insert(entry.id, Arc::downgrade(&entry));
        entry
    }
}

/// `view`, one of candle's views of `x`, entered with its backward.
pub(crate) fn view(
    x: &Tensor,
    view: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Tensor {
    if view.id() != x.id()
        && x.track_op()
        && let Some(entry) = find(x.id())
    {
        let backward = Arc::new(move |grad: &Tensor, _: &[bool]| Ok(vec![Some(backward(grad)?)]));
        lock(&entry.views).push(Entry::new(&view, &[x], backward));
    }
    view
}

/// What keeps the entry of a view of a variable.
#[derive(Clone)]
pub struct Keep(#[allow(dead_code)] Arc<Entry>); // held, never read

/// Rows `start..start + len` of `x`, without a copy. Rows of a variable come with what has to be kept beside them.
pub fn rows(x: &Tensor, start: usize, len: usize) -> Result<(Tensor, Option<Keep>)> {
    let (part, after) = (x.narrow(0, start, len)?, x.dim(0)? - start - len);
    let backward = move |grad: &Tensor| Ok(grad.pad_with_zeros(0, start, after)?);
    if !x.is_variable() {
        return Ok((view(x, part, backward), None));
    }
    let backward = Arc::new(move |grad: &Tensor, _: &[bool]| Ok(vec![Some(backward(grad)?)]));
    let entry = Entry::new(&part, &[x], backward);
    Ok((part, Some(Keep(entry))))
}

/// Whether the graph of `x` is made of our nodes alone.
pub fn is_ours(x: &Tensor) -> bool {
    reached(x).is_some()
}

/// Gradients of `sum(output * seed)` for each of `wanted` (none: it does not depend on that one); no answer where the
/// graph holds an operation of candle's.
pub(super) fn walk(output: &Tensor, seed: &Tensor, wanted: &[Tensor]) -> Result<Option<Vec<Option<Tensor>>>> {
    let Some(entries) = reached(output) else { return Ok(None) };
    // What leads to a wanted variable, inputs first.
    let mut useful: HashSet<TensorId> = wanted.iter().map(Tensor::id).collect();
    let asked = |entry: &Entry, useful: &HashSet<TensorId>| -> Vec<bool> {
        entry.inputs.iter().map(|x| x.is_some_and(|x| useful.contains(&x.id))).collect()
    };
    for entry in entries.values() {
        if asked(entry, &useful).contains(&true) {
            useful.insert(entry.id);
        }
    }
    let mut gradients = HashMap::from([(output.id(), Sum { value: seed.detach(), own: false })]);
    for entry in entries.values().rev() {
        let asked = asked(entry, &useful);
        let Some(gradient) = gradients.remove(&entry.id).filter(|_| asked.contains(&true)) else { continue };
        interrupt::check()?;
        let found = (entry.backward)(&gradient.value, &asked)?;
        for ((gradient, source), asked) in found.into_iter().zip(&entry.inputs).zip(asked) {
            if let (Some(gradient), Some(source), true) = (gradient, source, asked) {
                let gradient = gradient.detach();
                match gradients.remove(&source.id) {
                    None => gradients.insert(source.id, Sum { value: gradient, own: false }),
                    Some(sum) => gradients.insert(source.id, sum.and(&gradient)?),
                };
            }
        }
    }
    Ok(Some(wanted.iter().map(|x| gradients.get(&x.id()).map(|sum| sum.value.clone())).collect()))
}

/// The entries that lead to `output`, by number; none if one of them is missing.
fn reached(output: &Tensor) -> Option<BTreeMap<u64, Arc<Entry>>> {
    let mut entries = BTreeMap::new();
    let mut open = vec![Source { id: output.id(), variable: output.is_variable() }];
    while let Some(source) = open.pop() {
        if source.variable {
            continue;
        }
        let entry = find(source.id)?;
        if let std::collections::btree_map::Entry::Vacant(place) = entries.entry(entry.number) {
            open.extend(entry.inputs.iter().flatten());
            place.insert(entry);
        }
    }
    Some(entries)
}

/// A gradient so far, and whether its storage is the walk's own.
struct Sum {
    value: Tensor,
    own: bool,
}

impl Sum {
    fn and(self, other: &Tensor) -> Result<Self> {
        let (a, b) = (&self.value, other);
        let on_cpu = a.device().is_cpu() && matches!(a.dtype(), DType::F32 | DType::F64) && a.dtype() == b.dtype();
        if !on_cpu {
            return Ok(Self { value: (a + b)?, own: true });
        }
        if !self.own {
            return Ok(Self { value: add(&a.detach(), &b.detach())?, own: true });
        }
        self.value.inplace_op2(&b.contiguous()?, &Add)?;
        Ok(self)
    }
}

/// `a += b`, both contiguous.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> candle_core::Result<()> {
        fn add<T: Real>(a: &mut [T], la: &Layout, b: &[T], lb: &Layout) -> candle_core::Result<()> {
            let (Some((a0, a1)), Some((b0, b1))) = (la.contiguous_offsets(), lb.contiguous_offsets()) else {
                candle_core::bail!("add: expected contiguous tensors");
            };
            let chunks = a[a0..a1].par_chunks_mut(4096).with_min_len(grain(4096)).zip(b[b0..b1].par_chunks(4096));
            chunks.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += *b));
            Ok(())
        }
        match a {
            CpuStorage::F32(a) => add(a, la, f32::cpu_storage_as_slice(b)?, lb),
            CpuStorage::F64(a) => add(a, la, f64::cpu_storage_as_slice(b)?, lb),
            _ => candle_core::bail!("add: expected f32 or f64"),
        }
    }
}
