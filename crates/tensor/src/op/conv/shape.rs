//! Sizes of a convolution, and its patches: what of an image every output pixel reads.

use crate::kernel::{Real, fresh, grain};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Sizes of one convolution: `x [batch, inner, h, w]`, `weight [outer, inner, kh, kw]`, output `oh x ow`.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub batch: usize,
    pub inner: usize,
    pub h: usize,
    pub w: usize,
    pub outer: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    /// Above and to the left; what lies below and to the right follows from `oh` and `ow`.
    pub padding: [usize; 2],
    pub oh: usize,
    pub ow: usize,
}

impl ConvShape {
    pub fn patch(&self) -> usize {
        self.inner * self.kh * self.kw
    }

    pub fn pixels(&self) -> usize {
        self.oh * self.ow
    }

    pub fn results(&self) -> usize {
        self.batch * self.outer * self.pixels()
    }

    /// 1 x 1 kernels read the image itself as their patches.
    pub fn plain(&self) -> bool {
        self.kh * self.kw * self.stride == 1 && self.padding == [0, 0]
    }

    /// Numbers of a line that one stride apart lie beside each other, in the arrangement of [`split_by_stride`].
    pub fn share(&self) -> usize {
        self.w.div_ceil(self.stride)
    }

    /// Calls `f(line, columns, input)` for what patch row `row` reads of an image, arranged as by [`split_by_stride`], at each of
    /// the output `lines`, counted from the first: the columns of the patches, and where the first of these numbers lies; no
    /// columns where all is padding.
    fn runs(&self, row: usize, lines: Range<usize>, mut f: impl FnMut(usize, Range<usize>, usize)) {
        let ([above, p], s) = (self.padding, self.stride);
        let (c, i, j) = (row / (self.kh * self.kw), row / self.kw % self.kh, row % self.kw);
        let first = p.saturating_sub(j).div_ceil(s);
        let last = if self.w + p > j { ((self.w + p - j - 1) / s + 1).min(self.ow) } else { 0 };
        let (phase, start) = ((first * s + j - p) % s * self.share(), (first * s + j - p) / s);
        for (at, y) in lines.enumerate() {
            let line = y * s + i;
            match line >= above && line - above < self.h && first < last {
                true => f(at, first..last, (c * self.h + line - above) * s * self.share() + phase + start),
                false => f(at, 0..0, 0),
            }
        }
    }

    /// Patches of the output lines `lines` of one image as columns: `[patch, lines * ow]`.
    pub fn unroll<T: Real>(&self, image: &[T], lines: Range<usize>, columns: &mut [T]) {
        if self.stride == 1 && self.ow == self.w {
            return self.shift(image, lines, columns);
        }
        for (row, columns) in columns.chunks_mut(lines.len() * self.ow).enumerate() {
            self.runs(row, lines.clone(), |at, run, input| {
                let line = &mut columns[at * self.ow..(at + 1) * self.ow];
                line[..run.start].fill(T::zero());
                line[run.end..].fill(T::zero());
                let read = &image[input..input + run.len()];
                line[run].copy_from_slice(read);
            });
        }
    }

    /// `unroll` where lines are as long in the result as in the image: all of them are one piece, moved, whose ends are cleared.
    fn shift<T: Real>(&self, image: &[T], lines: Range<usize>, columns: &mut [T]) {
        let (w, taps) = (self.w, self.kh * self.kw);
        for (row, columns) in columns.chunks_mut(lines.len() * w).enumerate() {
            let (plane, i, j) =
                (&image[row / taps * self.h * w..][..self.h * w], row / self.kw % self.kh, row % self.kw);
            let ([above, left], zeros) = (self.padding, |part: &mut [T]| part.fill(T::zero()));
            // Output lines that read a line of the image, counted from the first.
            let first = above.saturating_sub(i + lines.start).min(lines.len());
            let last = (self.h + above).saturating_sub(i + lines.start).clamp(first, lines.len());
            zeros(&mut columns[..first * w]);
            zeros(&mut columns[last * w..]);
            let (columns, cut) = (&mut columns[first * w..last * w], left.abs_diff(j).min(w));
            if columns.is_empty() {
                continue;
            }
            let start = (lines.start + first + i - above) * w;
            let (whole, len) = (&plane[start..][..columns.len()], columns.len() - cut);
            match j < left {
                true => columns[cut..].copy_from_slice(&whole[..len]),
                false => columns[..len].copy_from_slice(&whole[cut..]),
            }
            let ends = if j < left { 0..cut } else { w - cut..w };
            columns.chunks_mut(w).for_each(|line| line[ends.clone()].iter_mut().for_each(|v| *v = T::zero()));
        }
    }

    /// Adds patch gradients `[patch, lines * ow]` to an image: the transpose of `unroll`.
    pub fn roll<T: Real>(&self, columns: &[T], lines: Range<usize>, image: &mut [T]) {
        for (row, columns) in columns.chunks(lines.len() * self.ow).enumerate() {
            self.runs(row, lines.clone(), |at, run, input| {
                let target = &mut image[input..input + run.len()];
                target.iter_mut().zip(&columns[at * self.ow..][run]).for_each(|(x, c)| *x += *c);
            });
        }
    }

    /// Output lines whose patches are unrolled at once: as many as stay in the cache, and enough for a product to be fast.
    pub fn lines(&self) -> usize {
        let cached = CACHED / (self.patch() * self.ow).max(1);
        cached.max(WIDE / self.ow.max(1)).clamp(1, self.oh.max(1))
    }

    /// The convolution that is the input gradient of this one, where the stride is 1 and padding allows.
    pub fn input_gradient_shape(&self) -> Option<Self> {
        let square = self.kh == self.kw && self.stride == 1 && self.padding.iter().all(|p| *p < self.kh);
        square.then(|| Self {
            inner: self.outer,
            outer: self.inner,
            h: self.oh,
            w: self.ow,
            oh: self.h,
            ow: self.w,
            padding: self.padding.map(|p| self.kh - 1 - p),
            ..*self
        })
    }
}

/// Numbers of unrolled patches at a time, unless that makes less than [`WIDE`] columns.
pub const CACHED: usize = 1 << 16;

/// Columns of patches that a product is fast from.
pub const WIDE: usize = 192;

/// Images whose lines are cut into what a stride reads together: of every line the numbers 0, s, 2 s .., then 1, s + 1 ..
pub fn split_by_stride<T: Real>(x: &[T], z: ConvShape) -> Cow<'_, [T]> {
    if z.stride == 1 {
        return Cow::Borrowed(x);
    }
    let (s, share) = (z.stride, z.share());
    let lines = x.len() / z.w.max(1);
    Cow::Owned(fresh(lines * s * share, |out| {
        out.par_chunks_mut(s * share).with_min_len(grain(z.w)).zip(x.par_chunks(z.w)).for_each(|(out, line)| {
            for (phase, out) in out.chunks_mut(share).enumerate() {
                let rest = out.len() - line.len().saturating_sub(phase).div_ceil(s);
                out[share - rest..].fill(T::zero());
                out.iter_mut().zip(line.iter().skip(phase).step_by(s)).for_each(|(o, x)| *o = *x);
            }
        });
    }))
}
