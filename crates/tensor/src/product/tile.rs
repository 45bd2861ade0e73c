//! The innermost loops: a tile of C in registers, from packed panels of A and B.

/// How a kind of processor makes tiles.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Rows of C in a tile at most, and numbers between two steps of k in a panel of A.
    pub rows: usize,
    pub row_step: usize,
    /// Columns of C in a tile.
    pub columns: usize,
    /// A tile of this many rows.
    pub tile: unsafe fn(rows: usize, Tile),
    /// The same where B's lines lie at [`Tile::places`].
    pub spread: unsafe fn(rows: usize, Tile),
    /// The same of pairs of bf16 in place of numbers, where the processor has it: each adds two products.
    pub pairs: Option<unsafe fn(rows: usize, Tile)>,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Begin<T> {
    Zero,
    /// What is there.
    Kept,
    /// A number per column.
    Bias(*const T),
}

impl<T> Begin<T> {
    /// For columns from `first` on.
    ///
    /// # Safety
    /// There are so many.
    pub unsafe fn from(self, first: usize) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(unsafe { bias.add(first) }),
            other => other,
        }
    }
}

/// One tile: `C = begin + A B` for packed `A [k, rows]` and `B [k, columns]`.
#[derive(Clone, Copy)]
pub struct Tile {
    pub k: usize,
    pub a: *const f32,
    pub b: *const f32,
    /// Where behind `b` each of its lines begins, unless they are packed one behind the other.
    pub places: *const usize,
    pub c: *mut f32,
    /// Numbers between rows of C.
    pub c_row: usize,
    pub begin: Begin<f32>,
}

/// Numbers of C in a tile at most.
pub const LARGEST: usize = 14 * 32;

/// Registers of several f32.
trait Vector: Copy {
    const LANES: usize;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(x: f32) -> Self;
    /// `self * b + c`
    unsafe fn times(self, b: Self, c: Self) -> Self;
    unsafe fn plus(self, b: Self) -> Self;
}

/// `M` rows of `N` registers.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const N: usize, const STEP: usize, const SPREAD: bool>(t: Tile) {
    unsafe {
        let mut sums = [[V::splat(0.0); N]; M];
        let (mut a, mut b) = (t.a, t.b);
        for step in 0..t.k {
            if SPREAD {
                b = t.b.add(*t.places.add(step));
            }
            let columns: [V; N] = std::array::from_fn(|j| V::load(b.add(j * V::LANES)));
            for (i, row) in sums.iter_mut().enumerate() {
                let factor = V::splat(*a.add(i));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = factor.times(column, *sum);
                }
            }
            a = a.add(STEP);
            if !SPREAD {
                b = b.add(N * V::LANES);
            }
        }
        for (i, row) in sums.into_iter().enumerate() {
            for (j, sum) in row.into_iter().enumerate() {
                let c = t.c.add(i * t.c_row + j * V::LANES);
                let sum = match t.begin {
                    Begin::Zero => sum,
                    Begin::Kept => sum.plus(V::load(c)),
                    Begin::Bias(bias) => sum.plus(V::load(bias.add(j * V::LANES))),
                };
                sum.store(c);
            }
        }
    }
}

/// [`tile`] for a number of rows that is known when the program runs.
macro_rules! tiles {
    ($name:ident, $features:literal, $vector:ty, $registers:literal, $step:literal, $spread:literal, [$($rows:literal)*]) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(rows: usize, t: Tile) {
            unsafe {
                match rows {
                    $($rows => tile::<$vector, $rows, $registers, $step, $spread>(t),)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
    };
}

/// Registers of a kind, by the names of its instructions.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! vector {
    ($register:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, $plus:ident, |$a:ident, $b:ident, $c:ident| $times:expr) => {
        impl Vector for $register {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn times(self, $b: Self, $c: Self) -> Self {
                let $a = self;
                unsafe { $times }
            }

            #[inline(always)]
            unsafe fn plus(self, b: Self) -> Self {
                unsafe { $plus(self, b) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kind, Tile, Vector, tile};
    use std::arch::x86_64::*;

    vector!(__m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, |a, b, c| _mm512_fmadd_ps(
        a, b, c
    ));
    vector!(__m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, |a, b, c| _mm256_fmadd_ps(
        a, b, c
    ));

    /// Of pairs of bf16, whose sums are f32.
    #[derive(Clone, Copy)]
    struct Pairs(__m512);

    impl Vector for Pairs {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn times(self, b: Self, c: Self) -> Self {
            let bits = |x: __m512| unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
            Self(unsafe { _mm512_dpbf16_ps(c.0, bits(self.0), bits(b.0)) })
        }

        #[inline(always)]
        unsafe fn plus(self, b: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, b.0) })
        }
    }

    tiles!(avx512bf16, "avx512f,avx512bf16", Pairs, 2, 16, false, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
    tiles!(avx512, "avx512f", __m512, 2, 16, false, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
    tiles!(avx512_spread, "avx512f", __m512, 2, 16, true, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
    tiles!(avx2, "avx2,fma", __m256, 2, 8, false, [1 2 3 4 5 6]);
    tiles!(avx2_spread, "avx2,fma", __m256, 2, 8, true, [1 2 3 4 5 6]);

    pub const AVX512: Kind =
        Kind { rows: 14, row_step: 16, columns: 32, tile: avx512, spread: avx512_spread, pairs: None };
    pub const AVX512_BF16: Kind = Kind { pairs: Some(avx512bf16), ..AVX512 };
    pub const AVX2: Kind = Kind { rows: 6, row_step: 8, columns: 16, tile: avx2, spread: avx2_spread, pairs: None };
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Kind, Tile, Vector, tile};
    use std::arch::aarch64::*;

    vector!(float32x4_t, 4, vld1q_f32, vst1q_f32, vdupq_n_f32, vaddq_f32, |a, b, c| vfmaq_f32(c, a, b));

    tiles!(neon, "neon", float32x4_t, 4, 8, false, [1 2 3 4 5 6]);
    tiles!(neon_spread, "neon", float32x4_t, 4, 8, true, [1 2 3 4 5 6]);

    pub const NEON: Kind = Kind { rows: 6, row_step: 8, columns: 16, tile: neon, spread: neon_spread, pairs: None };
}

/// What this processor has, the fastest first.
pub fn kinds() -> impl Iterator<Item = Kind> {
    #[cfg(target_arch = "x86_64")]
    let kinds = {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f");
        let pairs = avx512 && is_x86_feature_detected!("avx512bf16");
        [pairs.then_some(x86::AVX512_BF16), (avx512 && !pairs).then_some(x86::AVX512), avx2.then_some(x86::AVX2)]
    };
    #[cfg(target_arch = "aarch64")]
    let kinds = [Some(arm::NEON)];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let kinds: [Option<Kind>; 0] = [];
    kinds.into_iter().flatten()
}

/// The fastest kind of tile that this processor has.
pub fn kind() -> Option<Kind> {
    kinds().next()
}
