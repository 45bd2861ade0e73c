//! What CPU kernels are made of: contiguous data, parallel rows, small matrix products.

use crate::Array;
use crate::product::{self, Begin, Operand, Term};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{Storage, StorageRef, WithDType};
use rayon::prelude::*;
use std::ops::{Deref, Range};

/// The number types kernels are compiled for: f32 and f64.
pub trait Real: WithDType + num_traits::Float {
    /// The number nearest to a double.
    fn of(value: f64) -> Self {
        <Self as WithDType>::from_f64(value)
    }

    /// `exp(x)`; loops over it must vectorise.
    fn exponential(self) -> Self;

    /// The error function; loops over it must vectorise.
    fn error_function(self) -> Self;

    /// The sum of `terms` and `begin` into `C [m, n]` on this thread; C has so many elements between rows.
    ///
    /// # Safety
    /// All matrices lie inside their allocations, and C overlaps no other.
    unsafe fn products(size: (usize, usize), terms: &[Term<Self>], c: (*mut Self, usize), begin: Begin<Self>);

    /// These numbers as f32, where they are.
    fn single(numbers: &[Self]) -> Option<&[f32]>;

    /// [`Real::single`], to write.
    fn single_mut(numbers: &mut [Self]) -> Option<&mut [f32]>;
}

/// `a b + c`, in one instruction where the processor has it.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") { a.mul_add(b, c) } else { a * b + c }
}

/// Numbers near this are integers apart, and their lowest bits say which.
const INTEGERS: f32 = 1.5 * (1 << 23) as f32;

impl Real for f32 {
    /// Cephes' polynomial, within 2 units in the last place.
    fn exponential(self) -> f32 {
        let x = self.clamp(-87.3, 88.7);
        let rounded = fused(x, std::f32::consts::LOG2_E, INTEGERS);
        let n = rounded - INTEGERS;
        let r = fused(n, 2.121_944_4e-4, fused(n, -0.693_359_4, x));
        let p = [8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let p = p.iter().fold(fused(1.987_569_1e-4, r, 1.398_199_9e-3), |p, c| fused(p, r, *c));
        fused(p, r * r, r + 1.0) * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
    }

    /// Abramowitz and Stegun 7.1.26, within 2e-7.
    fn error_function(self) -> f32 {
        let x = self.abs();
        let t = 1.0 / (1.0 + 0.327_591_1 * x);
        let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
        (1.0 - p * (-x * x).exponential()).copysign(self)
    }

    unsafe fn products(size: (usize, usize), terms: &[Term<f32>], c: (*mut f32, usize), begin: Begin<f32>) {
        let kind = product::kind().filter(|_| !terms.iter().all(Term::by_rows));
        // SAFETY: as the caller says, on a processor of this kind.
        match kind {
            Some(kind) => unsafe { product::products(kind, size, terms, c, begin) },
            None => unsafe { product::by_gemm(size, terms, c, begin) },
        }
    }

    fn single(numbers: &[f32]) -> Option<&[f32]> {
        Some(numbers)
    }

    fn single_mut(numbers: &mut [f32]) -> Option<&mut [f32]> {
        Some(numbers)
    }
}

impl Real for f64 {
    fn exponential(self) -> f64 {
        self.exp()
    }

    fn error_function(self) -> f64 {
        candle_core::cpu::erf::erf_f64(self)
    }

    unsafe fn products(size: (usize, usize), terms: &[Term<f64>], c: (*mut f64, usize), begin: Begin<f64>) {
        // SAFETY: as the caller says.
        unsafe { product::by_gemm(size, terms, c, begin) }
    }

    fn single(_: &[f64]) -> Option<&[f32]> {
        None
    }

    fn single_mut(_: &mut [f64]) -> Option<&mut [f32]> {
        None
    }
}

/// Read access to a contiguous CPU tensor.
pub struct Data<'a, T> {
    /// Where the numbers are and how many: a slice that is asked for in inner loops.
    start: *const T,
    len: usize,
    _storage: StorageRef<'a>,
}

// SAFETY: the numbers are only read, and the storage is locked for reading as long as they can be.
unsafe impl<T: Sync> Sync for Data<'_, T> {}

/// The numbers of a contiguous CPU tensor, without a copy.
pub fn data<T: WithDType>(x: &Array) -> Result<Data<'_, T>> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(Internal, "kernel: expected a contiguous tensor, got shape {:?}", x.dims());
    };
    access(storage, start..end, x)
}

/// The storage of a CPU tensor of any strides, from its first number on.
pub fn strided<T: WithDType>(x: &Array) -> Result<Data<'_, T>> {
    let (storage, layout) = x.storage_and_layout();
    let (start, last) = (layout.start_offset(), layout.dims().iter().zip(layout.stride()));
    let end = if x.elem_count() == 0 { start } else { start + 1 + last.map(|(n, s)| (n - 1) * s).sum::<usize>() };
    access(storage, start..end, x)
}

fn access<'a, T: WithDType>(storage: StorageRef<'a>, range: Range<usize>, x: &Array) -> Result<Data<'a, T>> {
    let numbers = match &*storage {
        Storage::Cpu(numbers) => T::cpu_storage_as_slice(numbers).ok(),
        _ => None,
    };
    let Some(numbers) = numbers else {
        bail!(Dtype, "kernel: expected {:?} on the cpu, got {:?}", T::DTYPE, x.dtype());
    };
    let (start, len) = (numbers[range.clone()].as_ptr(), range.len());
    Ok(Data { start, len, _storage: storage })
}

impl<T> Data<'_, T> {
    /// The numbers from `start` on.
    pub fn skip(mut self, start: usize) -> Self {
        let start = start.min(self.len);
        // SAFETY: inside the numbers, or at their end.
        (self.start, self.len) = (unsafe { self.start.add(start) }, self.len - start);
        self
    }
}

impl<T> Deref for Data<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: a part of the storage, which is held.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// Runs the kernel for the array's number type.
macro_rules! on_cpu {
    ($x:expr, $kernel:ident($($arg:expr),*)) => {
        match $x.dtype() {
            candle_core::DType::F64 => $kernel::<f64>($($arg),*),
            _ => $kernel::<f32>($($arg),*),
        }
    };
}
pub(crate) use on_cpu;

/// Rows a parallel task takes at least, so that small tensors stay on one thread.
pub fn grain(width: usize) -> usize {
    (16384 / width.max(1)).max(1)
}

/// A new array whose numbers `fill` writes, all of them, before it reads any.
pub fn fresh<T: Real>(len: usize, fill: impl FnOnce(&mut [T])) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    // SAFETY: the capacity is there, every bit pattern is a float, and `fill` writes all before anyone reads.
    unsafe {
        fill(std::slice::from_raw_parts_mut(out.as_mut_ptr(), len));
        out.set_len(len);
    }
    out
}

/// A new array made row by row, in parallel: `f(row index, input row, output row)`, which writes all of the output row.
pub fn map_rows<T: Real>(x: &[T], width: usize, f: impl Fn(usize, &[T], &mut [T]) + Sync) -> Vec<T> {
    fresh(x.len(), |out| {
        let rows = out.par_chunks_mut(width.max(1)).with_min_len(grain(width));
        rows.zip(x.par_chunks(width.max(1))).enumerate().for_each(|(i, (out, row))| f(i, row, out));
    })
}

/// A pointer that tasks writing disjoint parts may share.
#[derive(Clone, Copy)]
pub struct Shared<T>(pub *mut T);

// SAFETY: every user writes parts that no other task touches.
unsafe impl<T> Send for Shared<T> {}
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer, `offset` elements on.
    ///
    /// # Safety
    /// The offset stays inside the allocation.
    pub unsafe fn at(self, offset: usize) -> *mut T {
        unsafe { self.0.add(offset) }
    }
}

/// A matrix inside a slice: start pointer, row and column stride.
#[derive(Clone, Copy)]
pub struct Matrix<T> {
    pub start: *const T,
    pub row: usize,
    pub column: usize,
}

// SAFETY: a matrix is only read.
unsafe impl<T: Sync> Send for Matrix<T> {}
unsafe impl<T: Sync> Sync for Matrix<T> {}

impl<T> Matrix<T> {
    /// Row-major rows of `slice`, `row` elements apart.
    pub fn rows(slice: &[T], row: usize) -> Self {
        Self { start: slice.as_ptr(), row, column: 1 }
    }

    /// The transpose of row-major rows of `slice`, `row` elements apart.
    pub fn columns(slice: &[T], row: usize) -> Self {
        Self { start: slice.as_ptr(), row: 1, column: row }
    }

    /// A matrix tensor, whose storage from its first number on is `slice`.
    pub fn of(x: &Array, slice: &[T]) -> Self {
        Self { start: slice.as_ptr(), row: x.stride()[0], column: x.stride()[1] }
    }

    /// The transpose.
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    /// The matrix from row `i` and column `j` on.
    ///
    /// # Safety
    /// That entry, or the end of one of its sides, lies inside the allocation.
    pub unsafe fn part(self, i: usize, j: usize) -> Self {
        Self { start: unsafe { self.start.add(i * self.row + j * self.column) }, ..self }
    }
}

/// `C = keep * C + factor * A B` on this thread; `size` is (m, k, n), C has `row` elements between rows.
///
/// # Safety
/// The three matrices lie inside their allocations and C overlaps neither A nor B.
pub unsafe fn product<T: Real>(
    (m, k, n): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: (*mut T, usize),
    keep: bool,
    factor: f64,
) {
    let (terms, begin) =
        ([Term { k, a: Operand::Own(a), b: Operand::Own(b), factor }], if keep { Begin::Kept } else { Begin::Zero });
    // Columns so many bytes apart share few places of the cache while gemm reads them; else it is the faster one for small matrices.
    let crowded = b.row == 1 && (b.column * size_of::<T>()).is_multiple_of(1024) && m > 3 && k > 32;
    // SAFETY: as the caller says.
    match crowded {
        true => unsafe { T::products((m, n), &terms, c, begin) },
        false => unsafe { product::by_gemm((m, n), &terms, c, begin) },
    }
}

/// Rows and columns of the parts in which threads make an `m x n` product over `k`: one each, cut across the longer side so
/// that little is packed twice; a small product is one part.
pub fn shares((m, k, n): (usize, usize, usize)) -> Vec<(Range<usize>, Range<usize>)> {
    const SMALL: usize = 1 << 19; // multiplications of some 5 us: what waking a thread costs
    const TILE: usize = 32;
    let threads = if m * k * n < SMALL { 1 } else { rayon::current_num_threads() };
    let side = m.max(n);
    let share = side.div_ceil(threads).next_multiple_of(TILE);
    let cuts = (0..side).step_by(share.max(1)).map(|at| at..(at + share).min(side));
    cuts.map(|cut| if m >= n { (cut, 0..n) } else { (0..m, cut) }).collect()
}

/// Numbers summed side by side, which the compiler keeps in registers; two such sets, for several additions begin while one is made.
const LANES: usize = 32;

/// The sum of all lanes, in pairs.
fn gathered<T: Real>(mut lanes: [T; LANES], others: [T; LANES]) -> T {
    lanes.iter_mut().zip(others).for_each(|(a, b)| *a += b);
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of `f` over a row.
pub fn sum<T: Real>(row: &[T], f: impl Fn(T) -> T) -> T {
    let add = |lanes: &mut [T; LANES], row: &[T]| lanes.iter_mut().zip(row).for_each(|(s, v)| *s += f(*v));
    let (mut lanes, mut others) = ([T::zero(); LANES], [T::zero(); LANES]);
    let pairs = row.chunks_exact(2 * LANES);
    let chunks = pairs.remainder().chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(T::zero(), |s, v| s + f(*v));
    for pair in pairs {
        let (one, other) = pair.split_at(LANES);
        add(&mut lanes, one);
        add(&mut others, other);
    }
    chunks.for_each(|chunk| add(&mut lanes, chunk));
    rest + gathered(lanes, others)
}

/// Inner product of `a` and `f(b)`.
pub fn dot<T: Real>(a: &[T], b: &[T], f: impl Fn(T) -> T) -> T {
    let add = |lanes: &mut [T; LANES], a: &[T], b: &[T]| {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += *a * f(*b));
    };
    let (mut lanes, mut others) = ([T::zero(); LANES], [T::zero(); LANES]);
    let (pairs_a, pairs_b) = (a.chunks_exact(2 * LANES), b.chunks_exact(2 * LANES));
    let (ca, cb) = (pairs_a.remainder().chunks_exact(LANES), pairs_b.remainder().chunks_exact(LANES));
    let rest = ca.remainder().iter().zip(cb.remainder()).fold(T::zero(), |s, (a, b)| s + *a * f(*b));
    for (a, b) in pairs_a.zip(pairs_b) {
        let ((a, other_a), (b, other_b)) = (a.split_at(LANES), b.split_at(LANES));
        add(&mut lanes, a, b);
        add(&mut others, other_a, other_b);
    }
    ca.zip(cb).for_each(|(a, b)| add(&mut lanes, a, b));
    rest + gathered(lanes, others)
}

/// The largest number of a row; minus infinity if it is empty.
pub fn largest<T: Real>(row: &[T]) -> T {
    let greater = |a: T, b: T| if b > a { b } else { a };
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(T::neg_infinity(), |m, v| greater(m, *v));
    let lanes = chunks.fold([T::neg_infinity(); LANES], |mut m, c| {
        m.iter_mut().zip(c).for_each(|(m, v)| *m = greater(*m, *v));
        m
    });
    lanes.into_iter().fold(rest, greater)
}

/// Sums `f(index)` over the rows of each block of `rows` rows: `[blocks, width]` of `[blocks * rows, width]`.
///
/// Fixed chunks of rows are added in order, so the result does not depend on the number of threads.
pub fn column_sums<T: Real>(len: usize, rows: usize, width: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    const CHUNK: usize = 256;
    let per_block = rows.div_ceil(CHUNK).max(1);
    let blocks = len / (rows * width).max(1);
    let mut partial = vec![T::zero(); blocks * per_block * width];
    partial.par_chunks_mut(width).enumerate().for_each(|(i, sum)| {
        let (block, chunk) = (i / per_block, i % per_block);
        for row in chunk * CHUNK..rows.min((chunk + 1) * CHUNK) {
            let at = (block * rows + row) * width;
            sum.iter_mut().enumerate().for_each(|(j, s)| *s += f(at + j));
        }
    });
    let mut out = vec![T::zero(); blocks * width];
    for (i, part) in partial.chunks(width).enumerate() {
        let at = i / per_block * width;
        out[at..at + width].iter_mut().zip(part).for_each(|(o, p)| *o += *p);
    }
    out
}
