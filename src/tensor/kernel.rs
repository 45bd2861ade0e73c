//! What CPU kernels are made of: contiguous data, parallel rows, small matrix products.

use crate::bail;
use crate::error::Result;
use candle_core::{Storage, StorageRef, Tensor, WithDType};
use rayon::prelude::*;
use std::marker::PhantomData;
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
}

impl Real for f32 {
    /// Cephes' polynomial, within 2 units in the last place.
    fn exponential(self) -> f32 {
        let x = self.clamp(-87.3, 88.7);
        let n = (x * std::f32::consts::LOG2_E).round_ties_even();
        let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
        let p = 1.987_569_1e-4f32;
        let p = p * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_5e-1;
        let p = p * r + 0.5;
        (p * r * r + r + 1.0) * f32::from_bits(((n as i32 + 127) << 23) as u32)
    }

    /// Abramowitz and Stegun 7.1.26, within 2e-7.
    fn error_function(self) -> f32 {
        let x = self.abs();
        let t = 1.0 / (1.0 + 0.327_591_1 * x);
        let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
        (1.0 - p * (-x * x).exponential()).copysign(self)
    }
}

impl Real for f64 {
    fn exponential(self) -> f64 {
        self.exp()
    }

    fn error_function(self) -> f64 {
        candle_core::cpu::erf::erf_f64(self)
    }
}

/// Read access to a contiguous CPU tensor.
pub struct Data<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    kind: PhantomData<T>,
}

/// The numbers of a contiguous CPU tensor, without a copy.
pub fn data<T: Real>(x: &Tensor) -> Result<Data<'_, T>> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(Internal, "kernel: expected a contiguous tensor, got shape {:?}", x.dims());
    };
    access(storage, start..end, x)
}

/// The storage of a CPU tensor of any strides, from its first number on.
pub fn strided<T: Real>(x: &Tensor) -> Result<Data<'_, T>> {
    let (storage, layout) = x.storage_and_layout();
    let (start, last) = (layout.start_offset(), layout.dims().iter().zip(layout.stride()));
    let end = if x.elem_count() == 0 { start } else { start + 1 + last.map(|(n, s)| (n - 1) * s).sum::<usize>() };
    access(storage, start..end, x)
}

fn access<'a, T: Real>(storage: StorageRef<'a>, range: Range<usize>, x: &Tensor) -> Result<Data<'a, T>> {
    if !matches!(&*storage, Storage::Cpu(s) if T::cpu_storage_as_slice(s).is_ok()) {
        bail!(Dtype, "kernel: expected {:?} on the cpu, got {:?}", T::DTYPE, x.dtype());
    }
    Ok(Data { storage, range, kind: PhantomData })
}

impl<T: Real> Deref for Data<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(s) => T::cpu_storage_as_slice(s).map_or(&[][..], |v| &v[self.range.clone()]),
            _ => &[],
        }
    }
}

/// Runs the kernel for the tensor's number type on the CPU, or the composition of candle ops elsewhere.
macro_rules! on_cpu {
    ($x:expr, $kernel:ident($($arg:expr),*), $composed:expr) => {
        match ($x.device(), $x.dtype()) {
            (candle_core::Device::Cpu, candle_core::DType::F32) => $kernel::<f32>($($arg),*),
            (candle_core::Device::Cpu, candle_core::DType::F64) => $kernel::<f64>($($arg),*),
            _ => $composed,
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
    pub fn of(x: &Tensor, slice: &[T]) -> Self {
        Self { start: slice.as_ptr(), row: x.stride()[0], column: x.stride()[1] }
    }
}

/// `C = keep * C + factor * A B` on one thread; `size` is (m, k, n), C has `row` elements between rows.
///
/// # Safety
/// The three matrices lie inside their allocations and C overlaps neither A nor B.
pub unsafe fn product<T: Real>(
    size: (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: (*mut T, usize),
    keep: bool,
    factor: f64,
) {
    unsafe { product_on(gemm::Parallelism::None, size, a, b, c, (keep, factor)) }
}

/// [`product`] on all threads.
///
/// # Safety
/// As there.
pub unsafe fn product_on_all<T: Real>(
    size: (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: (*mut T, usize),
    keep: bool,
    factor: f64,
) {
    let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
    unsafe { product_on(threads, size, a, b, c, (keep, factor)) }
}

unsafe fn product_on<T: Real>(
    threads: gemm::Parallelism,
    (m, k, n): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: (*mut T, usize),
    (keep, factor): (bool, f64),
) {
    unsafe {
        #[rustfmt::skip]
        gemm::gemm(
            m, n, k,
            c.0, 1, c.1 as isize, keep,
            a.start, a.column as isize, a.row as isize,
            b.start, b.column as isize, b.row as isize,
            T::one(), T::of(factor), false, false, false,
            threads,
        );
    }
}

/// Sum in eight lanes, which the compiler keeps in one register.
pub fn sum<T: Real>(row: &[T], f: impl Fn(T) -> T) -> T {
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder().iter().fold(T::zero(), |s, v| s + f(*v));
    let lanes = chunks.fold([T::zero(); 8], |mut s, c| {
        s.iter_mut().zip(c).for_each(|(s, v)| *s += f(*v));
        s
    });
    lanes.iter().fold(rest, |s, v| s + *v)
}

/// Inner product of `a` and `f(b)` in eight lanes.
pub fn dot<T: Real>(a: &[T], b: &[T], f: impl Fn(T) -> T) -> T {
    let (ca, cb) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = ca.remainder().iter().zip(cb.remainder()).fold(T::zero(), |s, (a, b)| s + *a * f(*b));
    let lanes = ca.zip(cb).fold([T::zero(); 8], |mut s, (a, b)| {
        s.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += *a * f(*b));
        s
    });
    lanes.iter().fold(rest, |s, v| s + *v)
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
