//! Lines of a matrix side by side, as tiles read them.

use crate::kernel::Matrix;
use half::{bf16, f16};

/// Half precision, which becomes f32.
pub trait Number: Copy {
    fn wide(self) -> f32;
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

/// Two numbers of a column, one after the other, as tiles of pairs read them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Pair(bf16, bf16);

impl Pair {
    #[inline(always)]
    fn bits(self) -> f32 {
        f32::from_bits(u32::from(self.0.to_bits()) | u32::from(self.1.to_bits()) << 16)
    }
}

/// Numbers that are moved together; widths of panels are multiples.
const SIDE: usize = 8;

/// `f` of the first `count` columns of `m`, `k` numbers of each, as a panel `[k, width]`; what is missing repeats the last column.
///
/// # Safety
/// The columns lie inside the matrix, and the processor has what [`super::kind`] found.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx"))]
pub unsafe fn pack<S: Copy>(
    m: Matrix<S>,
    (k, count): (usize, usize),
    to: &mut [f32],
    width: usize,
    f: impl Fn(S) -> f32,
) {
    let rows = to[..k * width].chunks_exact_mut(width).enumerate();
    // SAFETY: as above.
    unsafe {
        match (m.row, m.column) {
            (_, 1) if count == width => rows.for_each(|(step, to)| {
                let from = std::slice::from_raw_parts(m.start.add(step * m.row), width);
                for (to, from) in to.chunks_exact_mut(SIDE).zip(from.chunks_exact(SIDE)) {
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = f(*x));
                }
            }),
            (1, _) => by_columns(m, (k, count), to, width, f),
            _ => rows.for_each(|(step, to)| {
                let number = |j: usize| f(*m.start.add(step * m.row + j.min(count - 1) * m.column));
                to.iter_mut().enumerate().for_each(|(j, to)| *to = number(j));
            }),
        }
    }
}

/// [`pack`] of pairs, `[k / 2, width]`; an odd one out is beside a zero.
///
/// # Safety
/// As there.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx"))]
pub unsafe fn pairs(m: Matrix<bf16>, (k, count): (usize, usize), to: &mut [f32], width: usize) {
    let (whole, odd) = to[..k.div_ceil(2) * width].split_at_mut(k / 2 * width);
    // SAFETY: as the caller says; pairs of a column that is contiguous lie in it.
    unsafe {
        let at = |step: usize, j: usize| *m.start.add(step * m.row + j.min(count - 1) * m.column);
        if m.row == 1 && m.column.is_multiple_of(2) {
            let pairs = Matrix { start: m.start.cast(), row: 1, column: m.column / 2 };
            pack(pairs, (k / 2, count), whole, width, Pair::bits);
        } else if m.column == 1 && count == width {
            for (i, to) in whole.chunks_exact_mut(width).enumerate() {
                let line = |step: usize| std::slice::from_raw_parts(m.start.add(step * m.row), width);
                let both = line(2 * i).iter().zip(line(2 * i + 1));
                to.iter_mut().zip(both).for_each(|(to, (a, b))| *to = Pair(*a, *b).bits());
            }
        } else {
            for (i, to) in whole.chunks_exact_mut(width).enumerate() {
                to.iter_mut().enumerate().for_each(|(j, to)| *to = Pair(at(2 * i, j), at(2 * i + 1, j)).bits());
            }
        }
        odd.iter_mut().enumerate().for_each(|(j, to)| *to = Pair(at(k - 1, j), bf16::ZERO).bits());
    }
}

/// [`pack`] where the numbers of a column are one behind the other.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx"))]
unsafe fn by_columns<S: Copy>(
    m: Matrix<S>,
    (k, count): (usize, usize),
    to: &mut [f32],
    width: usize,
    f: impl Fn(S) -> f32,
) {
    for first in (0..width).step_by(SIDE) {
        // SAFETY: columns of the matrix, of k numbers each.
        unsafe {
            let columns: [*const S; SIDE] = std::array::from_fn(|i| m.start.add((first + i).min(count - 1) * m.column));
            for step in (0..k - k % 4).step_by(4) {
                let four = |i: usize| std::array::from_fn(|j| f(*columns[i].add(step + j)));
                turned(std::array::from_fn(four), to.as_mut_ptr().add(step * width + first), width);
            }
            for step in k - k % 4..k {
                let row = &mut to[step * width + first..][..SIDE];
                row.iter_mut().zip(columns).for_each(|(to, column)| *to = f(*column.add(step)));
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
