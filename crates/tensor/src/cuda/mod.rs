//! CUDA paths of the ops: kernels in CUDA C, compiled for the card when first used, and matrix products of cuBLAS.
//!
//! Activations are f32, bf16 or f16; arithmetic and sums are f32. The backward of an op calls kernels too, and reads nothing back to
//! the host. f64 is left to the compositions of candle's operations beside the CPU kernels. `tests/standin` takes the place of the card,
//! its driver and its libraries, which is how the tests check all of this on a processor.
//!
//! Kernels know no graph: they take arrays and give arrays, and the node is the op's, the same as on the processor. All work of a card goes to
//! one stream.

pub mod activation;
pub mod adamw;
pub mod attention;
#[cfg(feature = "cuda")]
pub mod card;
pub mod conv;
#[cfg(feature = "cuda")]
pub(crate) mod driver;
pub mod linear;
pub mod norm;
pub mod parts;
pub mod pool;
pub mod rope;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;
#[cfg(feature = "cuda")]
pub mod transfer;

use crate::Array;
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{DType, Device, Shape};

/// Whether the ops of this tensor have kernels here.
pub fn takes(x: &Array) -> bool {
    matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) && x.device().is_cuda()
}

/// A file of kernels, and what it is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Unit {
    file: File,
    /// Types of activations and of weights.
    types: [DType; 2],
    /// Numbers per memory access.
    pack: usize,
    /// Width of an attention head, at most.
    head: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum File {
    Rows,
    Groups,
    Points,
    Planes,
    Attention,
}

impl File {
    fn text(self) -> &'static str {
        match self {
            File::Rows => include_str!("kernels/rows.cu"),
            File::Groups => include_str!("kernels/groups.cu"),
            File::Points => include_str!("kernels/points.cu"),
            File::Planes => include_str!("kernels/planes.cu"),
            File::Attention => include_str!("kernels/attention.cu"),
        }
    }
}

#[cfg(feature = "cuda")]
const PRELUDE: &str = include_str!("kernels/prelude.cu");

impl Unit {
    fn new(file: File, x: &Array, pack: usize) -> Self {
        Self { file, types: [x.dtype(); 2], pack, head: 0 }
    }

    fn weights(mut self, w: Option<&Array>) -> Self {
        if let Some(w) = w {
            self.types[1] = w.dtype();
        }
        self
    }

    #[cfg(feature = "cuda")]
    fn defines(&self) -> Vec<String> {
        let [t, w] = self.types.map(|t| t.as_str());
        let mut all = vec![format!("-DT={t}"), format!("-DW={w}"), format!("-DV={}", self.pack)];
        all.extend((self.head > 0).then(|| format!("-DHEAD={}", self.head)));
        all.extend((t == "bf16").then(|| "-DIS_BF16".to_string()));
        all
    }
}

/// Numbers per memory access that rows of `width` numbers of these tensors allow.
fn pack(width: usize, tensors: &[&Array]) -> usize {
    let most = 16 / tensors[0].dtype().size_in_bytes();
    let fits = |x: &&Array| x.layout().start_offset().is_multiple_of(most);
    if width.is_multiple_of(most) && tensors.iter().all(fits) { most } else { 1 }
}

#[cfg(test)]
thread_local! {
    /// Whether pieces are as large as they are elsewhere.
    static WHOLE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Numbers of a piece of work at a time; in tests so few that small cases take several pieces.
fn piece(numbers: usize) -> usize {
    #[cfg(test)]
    if !WHOLE.get() {
        return 1 << 11;
    }
    numbers
}

/// Blocks and threads of a launch, and bytes of shared memory asked for at launch.
struct Grid {
    blocks: [usize; 3],
    threads: [usize; 2],
    shared: usize,
}

impl Grid {
    /// For kernels that loop over `n` items.
    fn each(n: usize) -> Self {
        Self { blocks: [n.div_ceil(256).clamp(1, 1 << 16), 1, 1], threads: [256, 1], shared: 0 }
    }

    /// For kernels that loop over rows and over the numbers of each, so that a thread has some of every row that its block takes.
    fn lines(rows: usize, width: usize) -> Self {
        let threads = width.next_multiple_of(32).clamp(32, 256);
        Self { blocks: [width.div_ceil(8 * threads), rows.min(65535), 1], threads: [threads, 1], shared: 0 }
    }

    /// For kernels that take a row with a warp where it is short, else with a block.
    fn rows(rows: usize, width: usize, pack: usize) -> Self {
        let packs = width / pack;
        let threads = if packs <= 64 { [32, 8] } else { [(packs / 2).next_multiple_of(32).min(1024), 1] };
        Self { blocks: [rows.div_ceil(threads[1]).max(1), 1, 1], threads, shared: 0 }
    }
}

/// What a kernel is called with, in the order of its parameters.
enum Arg<'a> {
    /// Where a contiguous tensor begins.
    Tensor(&'a Array),
    /// The same, or a null pointer.
    Maybe(Option<&'a Array>),
    Long(usize),
    Int(usize),
    Float(f64),
}

/// An argument as the driver takes it.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
enum Value {
    Long(u64),
    Int(i32),
    Float(f32),
}

/// Runs a kernel after everything else that was asked of the device; its results are there for whatever is asked next.
fn launch(device: &Device, unit: &Unit, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
    let value = |arg: &Arg| {
        Ok(match arg {
            Arg::Tensor(x) | Arg::Maybe(Some(x)) => Value::Long(pointer(x)?),
            Arg::Maybe(None) => Value::Long(0),
            Arg::Long(n) => Value::Long((*n).min(i64::MAX as usize) as u64),
            Arg::Int(n) => Value::Int(*n as i32),
            Arg::Float(x) => Value::Float(*x as f32),
        })
    };
    let values = args.iter().map(value).collect::<Result<Vec<_>>>()?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        return if grid.blocks.contains(&0) { Ok(()) } else { driver::launch(card, unit, kernel, &grid, &values) };
    }
    let (file, asked) = (unit.file.text().len(), (grid.blocks, grid.threads, grid.shared, values.len()));
    bail!(Internal, "{kernel}: expected a CUDA device, got {device:?}"; hint: "{unit:?} of {file} letters, {asked:?}")
}

/// Where the numbers of a contiguous tensor begin.
fn pointer(x: &Array) -> Result<u64> {
    if !x.is_contiguous() {
        bail!(Internal, "kernel: expected a contiguous tensor, got strides {:?}", x.stride());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return driver::pointer(x);
    }
    bail!(Internal, "kernel: expected a tensor on a CUDA device, got {:?}", x.device())
}

/// A new tensor, to be written whole by the kernel that it is given to.
fn fresh(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Array> {
    let shape = shape.into();
    // SAFETY: every user launches a kernel that writes all of it before anything reads it.
    let empty = || Ok(unsafe { Array::empty(shape.clone(), dtype, device)? });
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        return card::with_room(card, empty);
    }
    empty()
}

fn like(x: &Array) -> Result<Array> {
    fresh(x.shape(), x.dtype(), x.device())
}

/// The numbers without their graph, contiguous, in the given type.
fn plain(x: &Array, dtype: DType) -> Result<Array> {
    Ok(x.to_dtype(dtype)?.contiguous()?)
}

/// The same, beginning where wide memory accesses may.
fn aligned(x: &Array, dtype: DType) -> Result<Array> {
    let x = plain(x, dtype)?;
    Ok(if x.layout().start_offset().is_multiple_of(8) { x } else { x.force_contiguous()? })
}
