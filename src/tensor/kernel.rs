//! What CPU kernels are made of: contiguous data, parallel rows, small matrix products.

use crate::bail;
use crate::error::Result;
use candle_core::{Storage, StorageRef, Tensor, WithDType};
use std::marker::PhantomData;
use std::ops::{Deref, Range};

/// The number types kernels are compiled for: f32 and f64.
pub trait Real: WithDType + num_traits::Float {
    /// The number nearest to a double.
    fn of(value: f64) -> Self {
        <Self as WithDType>::from_f64(value)
    }
}

impl Real for f32 {}
impl Real for f64 {}

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
    if !matches!(&*storage, Storage::Cpu(s) if T::cpu_storage_as_slice(s).is_ok()) {
        bail!(Dtype, "kernel: expected {:?} on the cpu, got {:?}", T::DTYPE, x.dtype());
    }
    Ok(Data { storage, range: start..end, kind: PhantomData })
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
    let (m, k, n) = size;
    unsafe {
        #[rustfmt::skip]
        gemm::gemm(
            m, n, k,
            c.0, 1, c.1 as isize, keep,
            a.start, a.column as isize, a.row as isize,
            b.start, b.column as isize, b.row as isize,
            T::one(), T::of(factor), false, false, false,
            gemm::Parallelism::None,
        );
    }
}
