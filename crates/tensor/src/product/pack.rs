//! Lines of a matrix side by side, as tiles read them.

use crate::kernel::Matrix;
use half::{bf16, f16};

/// What can be packed: it becomes f32.
pub trait Number: Copy {
    fn wide(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

/// Numbers that are moved together; widths of panels are multiples.
const SIDE: usize = 8;

/// The first `count` columns of `m`, `k` numbers of each, times `factor`, as a panel `[k, width]`; what is missing repeats the last column.
///
/// # Safety
/// The columns lie inside the matrix, and the processor has what [`super::kind`] found.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx"))]
pub unsafe fn pack<S: Number>(m: Matrix<S>, (k, count): (usize, usize), to: &mut [f32], width: usize, factor: f32) {
    let rows = to[..k * width].chunks_exact_mut(width).enumerate();
    // SAFETY: as above.
    unsafe {
        match (m.row, m.column) {
            (_, 1) if count == width => rows.for_each(|(step, to)| {
                let from = std::slice::from_raw_parts(m.start.add(step * m.row), width);
                for (to, from) in to.chunks_exact_mut(SIDE).zip(from.chunks_exact(SIDE)) {
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = factor * x.wide());
                }
            }),
            (1, _) => by_columns(m, (k, count), to, width, factor),
            _ => rows.for_each(|(step, to)| {
                let number = |j: usize| factor * (*m.start.add(step * m.row + j.min(count - 1) * m.column)).wide();
                to.iter_mut().enumerate().for_each(|(j, to)| *to = number(j));
            }),
        }
    }
}

/// [`pack`] where the numbers of a column are one behind the other.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx"))]
unsafe fn by_columns<S: Number>(m: Matrix<S>, (k, count): (usize, usize), to: &mut [f32], width: usize, factor: f32) {
    for first in (0..width).step_by(SIDE) {
        // SAFETY: columns of the matrix, of k numbers each.
        unsafe {
            let columns: [*const S; SIDE] = std::array::from_fn(|i| m.start.add((first + i).min(count - 1) * m.column));
            for step in (0..k - k % 4).step_by(4) {
                let four = |i: usize| std::array::from_fn(|j| factor * (*columns[i].add(step + j)).wide());
                turned(std::array::from_fn(four), to.as_mut_ptr().add(step * width + first), width);
            }
            for step in k - k % 4..k {
                let row = &mut to[step * width + first..][..SIDE];
                row.iter_mut().zip(columns).for_each(|(to, column)| *to = factor * (*column.add(step)).wide());
            }
        }
    }
}

/// Eight columns of four numbers as four rows of eight, `row` numbers apart.
#[inline(always)]
unsafe fn turned(x: [[f32; 4]; 8], to: *mut f32, row: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: there is room for the rows; AVX comes with every kind of tile.
    unsafe {
        use std::arch::x86_64::*;
        let pair = |i: usize| _mm256_set_m128(_mm_loadu_ps(x[i + 4].as_ptr()), _mm_loadu_ps(x[i].as_ptr()));
        let [a, b, c, d] = [pair(0), pair(1), pair(2), pair(3)];
        let (low, high) = (
            [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)],
            [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)],
        );
        for (i, [ab, cd]) in [low, high].into_iter().enumerate() {
            _mm256_storeu_ps(to.add(2 * i * row), _mm256_shuffle_ps::<0x44>(ab, cd));
            _mm256_storeu_ps(to.add((2 * i + 1) * row), _mm256_shuffle_ps::<0xee>(ab, cd));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for step in 0..4 {
        for (i, column) in x.iter().enumerate() {
            // SAFETY: there is room for the rows.
            unsafe { *to.add(step * row + i) = column[step] };
        }
    }
}
