//! Tensors with a shape and no numbers (PyTorch's meta device): a run on them costs nothing, and says what it would compute and hold.
//!
//! Every op gives the shape of its result, what its node keeps and what it computes; a [`Trace`] adds up the work and the bytes that
//! live at once. What is computed from a tensor without numbers has none either; read, they are zeros.

use super::{Array, DType, Device, Tensor};
use amscript_base::error::Result;
use amscript_base::profile;
use candle_core::Shape;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a run on tensors without numbers comes to.
#[derive(Default)]
pub struct Trace {
    /// Whether it is planned for a card with kernels of ours.
    fused: bool,
    /// Whether the profile is told.
    profiled: bool,
    live: AtomicU64,
    peak: AtomicU64,
    work: AtomicU64,
    forwards: AtomicU64,
    backwards: AtomicU64,
    ops: Mutex<Ops>,
}

/// Ops by name and number type.
pub type Ops = BTreeMap<(&'static str, &'static str), OpTotals>;

/// What all calls of an op come to, forward and backward.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpTotals {
    pub calls: u64,
    /// Multiplications and additions.
    pub work: f64,
    /// Bytes read and written, each tensor once, and scratch memory twice.
    pub moved: f64,
}

impl Trace {
    /// For the processor, or for a card.
    pub fn new(fused: bool) -> Arc<Self> {
        Arc::new(Self { fused, ..Self::default() })
    }

    /// [`Trace::new`], whose work and bytes go to the phases of the profile too.
    pub fn profiled(fused: bool) -> Arc<Self> {
        Arc::new(Self { fused, profiled: true, ..Self::default() })
    }

    fn tell(&self, operations: f64, held: u64) {
        if self.profiled {
            profile::traced(operations, held);
        }
    }

    /// Whether it is planned for a card.
    pub fn fused(&self) -> bool {
        self.fused
    }

    /// Bytes that are held now.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Bytes that were held at most.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Multiplications and additions so far.
    pub fn work(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }

    /// Forwards and backwards of networks so far; see [`counted`].
    pub fn passes(&self) -> [u64; 2] {
        [self.forwards.load(Ordering::Relaxed), self.backwards.load(Ordering::Relaxed)]
    }

    /// The ops so far.
    pub fn ops(&self) -> Ops {
        self.ops.lock().clone()
    }

    pub(super) fn compute(&self, name: &'static str, dtype: DType, work: f64, moved: usize) {
        self.work.fetch_add(work as u64, Ordering::Relaxed);
        self.tell(work, self.live());
        let mut ops = self.ops.lock();
        let totals = ops.entry((name, dtype.as_str())).or_default();
        *totals = OpTotals { calls: totals.calls + 1, work: totals.work + work, moved: totals.moved + moved as f64 };
    }
}

/// All are alike in what they are for.
impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "trace(fused: {})", self.fused)
    }
}

impl PartialEq for Trace {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// The output of a network, counted as a forward and, once its gradient comes back, as a backward.
pub fn counted(output: Tensor) -> Result<Tensor> {
    let Some(trace) = output.trace().cloned() else { return Ok(output) };
    trace.forwards.fetch_add(1, Ordering::Relaxed);
    super::grad::custom_vjp("network", &[&output], output.constant(), move |gradient, _| {
        trace.backwards.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Some(gradient.clone())])
    })
}

/// Bytes that are held as long as this is.
pub struct Block {
    bytes: u64,
    pub(super) trace: Arc<Trace>,
}

impl Block {
    pub(super) fn new(bytes: usize, trace: &Arc<Trace>) -> Arc<Self> {
        let live = trace.live.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        trace.peak.fetch_max(live, Ordering::Relaxed);
        trace.tell(0.0, live);
        Arc::new(Self { bytes: bytes as u64, trace: trace.clone() })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.trace.live.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Zeros of any shape that hold no memory.
pub(super) fn shapely(shape: impl Into<Shape>, dtype: DType) -> Result<Array> {
    Ok(Array::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)?)
}

impl Tensor {
    /// A tensor without numbers that counts as memory of `trace`.
    pub fn meta(shape: impl Into<Shape>, dtype: DType, trace: &Arc<Trace>) -> Result<Tensor> {
        let shape = shape.into();
        let block = Block::new(shape.elem_count() * dtype.size_in_bytes(), trace);
        Ok(Tensor { value: shapely(shape, dtype)?, node: None, meta: Some(block) })
    }

    /// What this tensor is counted by, where it has a shape and no numbers.
    pub fn trace(&self) -> Option<&Arc<Trace>> {
        self.meta.as_ref().map(|block| &block.trace)
    }
}
