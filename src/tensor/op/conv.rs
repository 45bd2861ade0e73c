//! 2-D convolution, as matrix products of patches unrolled a few lines of an image at a time, and nearest upsampling.

use super::cast::cast;
use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Matrix, Real, Shared, column_sums, data, fresh, grain, on_cpu, product, sum};
use candle_core::Tensor;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Sizes of one convolution: `x [batch, inner, h, w]`, `weight [outer, inner, kh, kw]`, output `oh x ow`.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    inner: usize,
    h: usize,
    w: usize,
    outer: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    /// Above and to the left; what lies below and to the right follows from `oh` and `ow`.
    padding: [usize; 2],
    oh: usize,
    ow: usize,
}

/// Cross-correlation of `x [batch, in, h, w]` with `weight [out, in, kh, kw]`, zero padding on all sides.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let ((batch, inner, h, w), (outer, wi, kh, kw)) = (x.dims4()?, weight.dims4()?);
    if wi != inner || h + 2 * padding < kh || w + 2 * padding < kw || stride == 0 {
        bail!(
            Shape,
            "conv2d: weight {:?} with padding {padding} and stride {stride} does not fit input {:?}",
            weight.dims(),
            x.dims()
        );
    }
    let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (w + 2 * padding - kw) / stride + 1);
    let z = Sizes { batch, inner, h, w, outer, kh, kw, stride, padding: [padding; 2], oh, ow };
    let (weight, bias) = (&cast(weight, x.dtype())?, bias.map(|b| cast(b, x.dtype())).transpose()?);
    let bias = bias.as_ref();
    if cuda::takes(x) {
        let z = cuda::conv::Sizes { batch, inner, h, w, outer, kh, kw, stride, padding, oh, ow };
        return cuda::conv::conv2d(x, weight, bias, z);
    }
    on_cpu!(x, conv2d_cpu(x, weight, bias, z), {
        let y = x.conv2d(weight, padding, stride, 1, 1)?;
        match bias {
            Some(b) => Ok(y.broadcast_add(&b.reshape((1, outer, 1, 1))?)?),
            None => Ok(y),
        }
    })
}

fn conv2d_cpu<T: Real>(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let kernel = weight.detach().contiguous()?;
    let offsets = bias.map(|b| b.detach().contiguous()).transpose()?;
    let offsets = offsets.as_ref().map(data::<T>).transpose()?;
    let begin = offsets.as_deref().map_or(Begin::Zero, Begin::Bias);
    let out = {
        let (x, weight) = (data::<T>(&input)?, data::<T>(&kernel)?);
        fresh(z.results(), |out| forward(&x, &weight, begin, z, out))
    };
    let out = Tensor::from_vec(out, (z.batch, z.outer, z.oh, z.ow), x.device())?;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    custom_vjp(&inputs, out, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let g = data::<T>(&grad)?;
        let mut gradients = vec![None; wanted.len()];
        if wanted[0] {
            let gx = input_gradient(&g, &data::<T>(&kernel)?, z);
            gradients[0] = Some(Tensor::from_vec(gx, input.dims(), input.device())?);
        }
        if wanted[1] {
            let gw = weight_gradient(&g, &data::<T>(&input)?, z);
            gradients[1] = Some(Tensor::from_vec(gw, kernel.dims(), input.device())?);
        }
        if wanted.get(2) == Some(&true) {
            let planes: Vec<T> = g.par_chunks(z.pixels()).map(|plane| sum(plane, |v| v)).collect();
            let sums = column_sums(planes.len(), z.batch, z.outer, |i| planes[i]);
            gradients[2] = Some(Tensor::from_vec(sums, z.outer, grad.device())?);
        }
        Ok(gradients)
    })
}

impl Sizes {
    fn patch(&self) -> usize {
        self.inner * self.kh * self.kw
    }

    fn pixels(&self) -> usize {
        self.oh * self.ow
    }

    fn results(&self) -> usize {
        self.batch * self.outer * self.pixels()
    }

    /// 1 x 1 kernels read the image itself as their patches.
    fn plain(&self) -> bool {
        self.kh * self.kw * self.stride == 1 && self.padding == [0, 0]
    }

    /// Numbers of a line that one stride apart lie beside each other, in the arrangement of [`strided`].
    fn share(&self) -> usize {
        self.w.div_ceil(self.stride)
    }

    /// Calls `f(columns, input)` for what patch row `row` reads of an image, arranged as by [`strided`], at each of the output
    /// `lines`: the columns of the patches, and where the first of these numbers lies; no columns where all is padding.
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
    fn unroll<T: Real>(&self, image: &[T], lines: Range<usize>, columns: &mut [T]) {
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
    fn roll<T: Real>(&self, columns: &[T], lines: Range<usize>, image: &mut [T]) {
        for (row, columns) in columns.chunks(lines.len() * self.ow).enumerate() {
            self.runs(row, lines.clone(), |at, run, input| {
                let target = &mut image[input..input + run.len()];
                target.iter_mut().zip(&columns[at * self.ow..][run]).for_each(|(x, c)| *x += *c);
            });
        }
    }

    /// Output lines whose patches are unrolled at once: as many as stay in the cache, and enough for a product to be fast.
    fn lines(&self) -> usize {
        let cached = CACHED / (self.patch() * self.ow).max(1);
        cached.max(WIDE / self.ow.max(1)).clamp(1, self.oh.max(1))
    }

    /// The convolution that is the input gradient of this one, where the stride is 1 and padding allows.
    fn turned(&self) -> Option<Self> {
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
fn strided<T: Real>(x: &[T], z: Sizes) -> Cow<'_, [T]> {
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

/// What a convolution is added to.
#[derive(Clone, Copy)]
enum Begin<'a, T> {
    Zero,
    /// A number per channel.
    Bias(&'a [T]),
    /// What is there.
    Kept,
}

fn forward<T: Real>(x: &[T], weight: &[T], begin: Begin<T>, z: Sizes, out: &mut [T]) {
    let x = strided(x, z);
    let (patch, pixels, image) = (z.patch(), z.pixels(), x.len() / z.batch.max(1));
    let (step, plain) = (z.lines(), z.plain());
    let blocks = z.oh.div_ceil(step);
    let shared = Shared(out.as_mut_ptr());
    (0..z.batch * blocks).into_par_iter().for_each(|job| {
        let (b, first) = (job / blocks, job % blocks * step);
        let lines = first..(first + step).min(z.oh);
        let (x, n) = (&x[b * image..(b + 1) * image], lines.len() * z.ow);
        let columns = if plain { Vec::new() } else { fresh(patch * n, |columns| z.unroll(x, lines, columns)) };
        let patches = if plain { Matrix::rows(&x[first * z.ow..], pixels) } else { Matrix::rows(&columns, n) };
        let at = b * z.outer * pixels + first * z.ow;
        // SAFETY: every job writes its own lines of its own image; weight is [outer, patch], patches [patch, n].
        unsafe {
            if let Begin::Bias(bias) = begin {
                for (c, bias) in bias.iter().enumerate() {
                    std::slice::from_raw_parts_mut(shared.at(at + c * pixels), n).fill(*bias);
                }
            }
            let (c, keep) = ((shared.at(at), pixels), !matches!(begin, Begin::Zero));
            product((z.outer, patch, n), Matrix::rows(weight, patch), patches, c, keep, 1.0);
        }
    });
}

/// The kernel of the convolution that is the input gradient of another: `[inner, outer, kh, kw]`, turned by half a circle.
fn turned<T: Real>(weight: &[T], z: Sizes) -> Vec<T> {
    let area = z.kh * z.kw;
    let mut kernel = Vec::with_capacity(weight.len());
    for c in 0..z.inner {
        for o in 0..z.outer {
            kernel.extend(weight[(o * z.inner + c) * area..][..area].iter().rev());
        }
    }
    kernel
}

fn input_gradient<T: Real>(grad: &[T], weight: &[T], z: Sizes) -> Vec<T> {
    if let Some(back) = z.turned() {
        return fresh(back.results(), |out| forward(grad, &turned(weight, z), Begin::Zero, back, out));
    }
    let (patch, pixels, s, share) = (z.patch(), z.pixels(), z.stride, z.share());
    let mut out = vec![T::zero(); z.batch * z.inner * z.h * z.w];
    out.par_chunks_mut(z.inner * z.h * z.w).enumerate().for_each(|(b, out)| {
        let mut image = vec![T::zero(); z.inner * z.h * s * share];
        for first in (0..z.oh).step_by(z.lines()) {
            let lines = first..(first + z.lines()).min(z.oh);
            let n = lines.len() * z.ow;
            let columns = fresh(patch * n, |columns| {
                let g = Matrix::rows(&grad[b * z.outer * pixels + first * z.ow..], pixels);
                // SAFETY: weight^T is [patch, outer], g [outer, n], the columns [patch, n].
                unsafe {
                    let c = (columns.as_mut_ptr(), n);
                    product((patch, z.outer, n), Matrix::columns(weight, patch), g, c, false, 1.0);
                }
            });
            z.roll(&columns, lines, &mut image);
        }
        for (line, parts) in out.chunks_mut(z.w).zip(image.chunks(s * share)) {
            for (phase, part) in parts.chunks(share).enumerate() {
                line.iter_mut().skip(phase).step_by(s).zip(part).for_each(|(x, part)| *x = *part);
            }
        }
    });
    out
}

/// Summed over fixed groups of images, so that the result does not depend on the number of threads.
fn weight_gradient<T: Real>(grad: &[T], x: &[T], z: Sizes) -> Vec<T> {
    let x = strided(x, z);
    let (patch, pixels, image) = (z.patch(), z.pixels(), x.len() / z.batch.max(1));
    let groups = z.batch.min(8);
    let mut partial = vec![T::zero(); groups * z.outer * patch];
    partial.par_chunks_mut(z.outer * patch).enumerate().for_each(|(group, sum)| {
        let mut columns = vec![T::zero(); if z.plain() { 0 } else { patch * pixels }];
        let sum = Shared(sum.as_mut_ptr());
        for b in (group..z.batch).step_by(groups) {
            let x = &x[b * image..(b + 1) * image];
            if !z.plain() {
                z.unroll(x, 0..z.oh, &mut columns);
            }
            let columns = Matrix::columns(if z.plain() { x } else { &columns }, pixels);
            let g = Matrix::rows(&grad[b * z.outer * pixels..], pixels);
            // SAFETY: g is [outer, pixels], columns^T [pixels, patch], the sum [outer, patch].
            unsafe { product((z.outer, pixels, patch), g, columns, (sum.at(0), patch), true, 1.0) };
        }
    });
    let mut parts = partial.chunks(z.outer * patch);
    let mut total = parts.next().map(<[T]>::to_vec).unwrap_or_default();
    parts.for_each(|part| total.iter_mut().zip(part).for_each(|(t, p)| *t += *p));
    total
}

/// [`conv2d`] of [`upsample_nearest2x`] with a 3 x 3 kernel and padding 1.
///
/// A frozen kernel on the CPU meets each input pixel twice per axis, so that every second line and column of the result is a 2 x 2
/// convolution of `x` itself: 4/9 of the multiplications, and no upsampled image.
pub fn upsampled_conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let composed = |x: &Tensor| conv2d(&upsample_nearest2x(x)?, weight, Some(bias), 1, 1);
    let (inner, kernel) = (x.dim(1)?, weight.dims());
    if cuda::takes(x) || weight.track_op() || bias.track_op() || kernel[1..] != [inner, 3, 3] {
        return composed(x);
    }
    let (weight, bias) = (&cast(weight, x.dtype())?, &cast(bias, x.dtype())?);
    on_cpu!(x, upsampled_cpu(x, weight, bias), composed(x))
}

fn upsampled_cpu<T: Real>(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ((batch, inner, h, w), outer) = (x.dims4()?, weight.dim(0)?);
    let (input, weight, bias) = (x.detach().contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let sizes = |[i, j]: [usize; 2]| {
        let padding = [1 - i, 1 - j];
        Sizes { batch, inner, h, w, outer, kh: 2, kw: 2, stride: 1, padding, oh: h, ow: w }
    };
    let (numbers, taps, bias) = (data::<T>(&input)?, data::<T>(&weight)?, data::<T>(&bias)?);
    let kernels = PHASES.map(|phase| (sizes(phase), summed(&taps, phase)));
    let part = |(z, kernel): &(Sizes, Vec<T>)| {
        fresh(z.results(), |out| forward(&numbers, kernel, Begin::Bias(&bias), *z, out))
    };
    let parts = kernels.each_ref().map(part);
    let out = fresh(4 * batch * outer * h * w, |out| interleave(&parts, w, out));
    custom_vjp(&[x], Tensor::from_vec(out, (batch, outer, 2 * h, 2 * w), x.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let g = data::<T>(&grad)?;
        let mut out = vec![T::zero(); batch * inner * h * w];
        for (phase, (z, kernel)) in PHASES.iter().zip(&kernels) {
            let Some(back) = z.turned() else { bail!(Internal, "upsampled_conv2d: expected a gradient, got none") };
            forward(&every_second(&g, 2 * w, *phase), &turned(kernel, *z), Begin::Kept, back, &mut out);
        }
        Ok(vec![Some(Tensor::from_vec(out, (batch, inner, h, w), grad.device())?)])
    })
}

/// The lines and columns, even or odd, of each of the four parts.
const PHASES: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

/// The 2 x 2 kernels that 3 x 3 kernels amount to where both axes are doubled: the last two taps fall on one pixel for even lines and
/// columns, the first two for odd ones.
fn summed<T: Real>(weight: &[T], [i, j]: [usize; 2]) -> Vec<T> {
    let tap = |k: usize, odd: usize| (k + 1 - odd) / 2; // of 0, 1, 2
    let mut kernels = vec![T::zero(); weight.len() / 9 * 4];
    for (kernel, weight) in kernels.chunks_mut(4).zip(weight.chunks(9)) {
        weight.iter().enumerate().for_each(|(k, w)| kernel[2 * tap(k / 3, i) + tap(k % 3, j)] += *w);
    }
    kernels
}

/// Lines of `w` numbers of the four parts, as lines of `2 w` of the whole.
fn interleave<T: Real>(parts: &[Vec<T>; 4], w: usize, out: &mut [T]) {
    out.par_chunks_mut(2 * w.max(1)).with_min_len(grain(w)).enumerate().for_each(|(line, out)| {
        let [even, odd] = [0, 1].map(|j| &parts[line % 2 * 2 + j][line / 2 * w..][..w]);
        out.chunks_exact_mut(2).zip(even.iter().zip(odd)).for_each(|(out, (a, b))| (out[0], out[1]) = (*a, *b));
    });
}

/// One of the four parts of lines of `w` numbers.
fn every_second<T: Real>(x: &[T], w: usize, [i, j]: [usize; 2]) -> Vec<T> {
    fresh(x.len() / 4, |out| {
        let lines = out.par_chunks_mut(w.max(2) / 2).with_min_len(grain(w)).zip(x.par_chunks(2 * w.max(1)));
        lines.for_each(|(out, two)| {
            out.iter_mut().zip(two[i * w + j..].iter().step_by(2)).for_each(|(o, x)| *o = *x);
        });
    })
}

/// Doubles height and width of `x [batch, channels, h, w]` by repeating pixels.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if cuda::takes(x) {
        return cuda::pool::upsample_nearest2x(x);
    }
    on_cpu!(x, upsample_cpu(x), {
        let repeated = x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?;
        Ok(repeated.contiguous()?.reshape((b, c, 2 * h, 2 * w))?)
    })
}

fn upsample_cpu<T: Real>(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let input = x.detach().contiguous()?;
    let numbers = data::<T>(&input)?;
    let out = fresh(4 * numbers.len(), |out| {
        out.par_chunks_mut(4 * w).with_min_len(grain(w)).zip(numbers.par_chunks(w)).for_each(|(two, row)| {
            let (first, second) = two.split_at_mut(2 * w);
            first.chunks_exact_mut(2).zip(row).for_each(|(pair, x)| (pair[0], pair[1]) = (*x, *x));
            second.copy_from_slice(first);
        });
    });
    custom_vjp(&[x], Tensor::from_vec(out, (b, c, 2 * h, 2 * w), x.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let g = data::<T>(&grad)?;
        let out = fresh(b * c * h * w, |out| {
            out.par_chunks_mut(w).with_min_len(grain(w)).zip(g.par_chunks(4 * w)).for_each(|(row, two)| {
                let (first, second) = two.split_at(2 * w);
                let pairs = first.chunks_exact(2).zip(second.chunks_exact(2));
                row.iter_mut().zip(pairs).for_each(|(o, (p, q))| *o = p[0] + p[1] + q[0] + q[1]);
            });
        });
        Ok(vec![Some(Tensor::from_vec(out, (b, c, h, w), grad.device())?)])
    })
}
