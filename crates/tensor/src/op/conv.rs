//! 2-D convolution, as matrix products: of patches unrolled a few lines of an image at a time, of pieces of the image itself, or of
//! Winograd's tiles; and nearest upsampling.

mod direct;
mod shape;
mod upsample;
mod winograd;

pub use shape::{CACHED, ConvShape, WIDE};
pub use upsample::{upsample_nearest2x, upsampled_conv2d};

use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use super::pool::every;
use crate::kernel::{Matrix, Real, Shared, column_sums, data, fresh, on_cpu, product, sum};
use crate::{Array, Tensor, cuda, product as tiles};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::Shape;
use rayon::prelude::*;
use shape::split_by_stride;

/// Cross-correlation of `x [batch, in, h, w]` with `weight [out, in, kh, kw]`, zero padding on all sides.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    apply(Conv2d { stride, padding }, [Some(x), Some(weight), bias])
}

/// Of `[x, weight, bias]`.
struct Conv2d {
    stride: usize,
    padding: usize,
}

impl Conv2d {
    fn sizes(&self, x: &[usize], weight: &[usize]) -> Result<ConvShape> {
        let Self { stride, padding } = *self;
        match (x, weight) {
            (&[batch, inner, h, w], &[outer, wi, kh, kw])
                if wi == inner && h + 2 * padding >= kh && w + 2 * padding >= kw && stride > 0 =>
            {
                let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (w + 2 * padding - kw) / stride + 1);
                Ok(ConvShape { batch, inner, h, w, outer, kh, kw, stride, padding: [padding; 2], oh, ow })
            }
            _ => bail!(
                Shape,
                "conv2d: weight {weight:?} with padding {padding} and stride {stride} does not fit input {x:?}"
            ),
        }
    }
}

impl Op<3> for Conv2d {
    type More = ();

    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn shape(&self, [x, weight, bias]: Inputs<3>) -> Result<Shape> {
        let z = self.sizes(given(x)?.dims(), given(weight)?.dims())?;
        if let Some(bias) = bias.filter(|bias| bias.dims() != [z.outer]) {
            bail!(Shape, "conv2d: expected a bias [{}], got shape {:?}", z.outer, bias.dims());
        }
        Ok((z.batch, z.outer, z.oh, z.ow).into())
    }

    fn keeps(&self, _: Backend, _: Inputs<3>, [gx, gw, _]: [bool; 3]) -> Keeps<3> {
        Keeps::inputs([gw, gx, false])
    }

    fn forward(&self, on: Backend, [x, weight, bias]: Inputs<3>, _: [bool; 3]) -> Result<(Array, ())> {
        let (x, weight) = (given(x)?, given(weight)?);
        let z = self.sizes(x.dims(), weight.dims())?;
        let y = match on {
            Backend::Card => cuda::conv::conv2d(x, weight, bias, z),
            _ => on_cpu!(x, convolved(x, weight, bias, z)),
        };
        Ok((y?, ()))
    }

    fn backward(&self, kept: Kept<3, ()>, gradient: &Array, wanted: [bool; 3]) -> Result<[Option<Array>; 3]> {
        let (z, [x, weight, _]) = (self.sizes(kept.shapes[0], kept.shapes[1])?, kept.inputs);
        match kept.on {
            Backend::Card => Ok([
                wanted[0].then(|| cuda::conv::input_gradient(gradient, given(weight)?, z)).transpose()?,
                wanted[1].then(|| cuda::conv::weight_gradient(gradient, given(x)?, z)).transpose()?,
                wanted[2].then(|| cuda::conv::bias_gradient(gradient)).transpose()?,
            ]),
            _ => on_cpu!(gradient, gradients(gradient, [x, weight], z, wanted)),
        }
    }

    /// A product of matrices for each tap of the kernel.
    fn composed(&self, [x, weight, bias]: [Option<&Tensor>; 3]) -> Result<Tensor> {
        let (x, weight) = (there(x)?, there(weight)?);
        let (z, p) = (self.sizes(x.dims(), weight.dims())?, self.padding);
        let (padded, weight) = (x.pad_with_zeros(2, p, p)?.pad_with_zeros(3, p, p)?, weight.to_dtype(x.dtype())?);
        let tap = |(i, j): (usize, usize)| {
            let seen = every(&every(&padded, 2, [i, z.stride, z.oh])?, 3, [j, z.stride, z.ow])?;
            let tap = weight.narrow(2, i, 1)?.narrow(3, j, 1)?.reshape((1, z.outer, z.inner))?;
            tap.broadcast_matmul(&seen.reshape((z.batch, z.inner, z.pixels()))?)
        };
        let taps = (0..z.kh).flat_map(|i| (0..z.kw).map(move |j| (i, j)));
        let Some(y) = taps.map(tap).reduce(|a, b| a? + b) else { bail!(Shape, "conv2d: the kernel must not be empty") };
        let y = y?.reshape((z.batch, z.outer, z.oh, z.ow))?;
        match bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?.reshape((1, z.outer, 1, 1))?),
            None => Ok(y),
        }
    }

    fn work(&self, [_, weight, bias]: Inputs<3>, result: &Shape) -> f64 {
        let patch = weight.map_or(0, |w| w.elem_count() / w.dims()[0].max(1));
        result.elem_count() as f64 * (2 * patch + usize::from(bias.is_some())) as f64
    }

    fn work_back(&self, inputs: Inputs<3>, result: &Shape, [gx, gw, gbias]: [bool; 3]) -> f64 {
        let times = usize::from(gx) + usize::from(gw);
        let bias = if gbias { result.elem_count() as f64 } else { 0.0 };
        self.work([inputs[0], inputs[1], None], result) * times as f64 + bias
    }

    /// Patches on a card; on the processor images split by a stride, or Winograd's kernels, for patches and tiles are a few lines'.
    fn scratch(&self, on: Backend, [x, weight, _]: Inputs<3>) -> usize {
        let (Some(x), Some(weight)) = (x, weight) else { return 0 };
        let Ok(z) = self.sizes(x.dims(), weight.dims()) else { return 0 };
        let numbers = match on {
            Backend::Card => cuda::conv::scratch(z),
            _ if z.stride > 1 => x.elem_count(),
            _ if winograd::fits(&z) => winograd::scratch(&z),
            _ => 0,
        };
        numbers * x.dtype().size_in_bytes()
    }

    /// All patches on a card, those of the input for the forward as for the gradient.
    fn through_scratch(&self, on: Backend, inputs: Inputs<3>) -> usize {
        let ([Some(x), Some(weight), _], Backend::Card) = (inputs, on) else { return self.scratch(on, inputs) };
        let Ok(z) = self.sizes(x.dims(), weight.dims()) else { return 0 };
        let numbers = if z.plain() { 0 } else { z.batch * z.patch() * z.pixels() };
        numbers * x.dtype().size_in_bytes()
    }
}

fn convolved<T: Real>(x: &Array, weight: &Array, bias: Option<&Array>, z: ConvShape) -> Result<Array> {
    let (numbers, kernel) = (data::<T>(x)?, data::<T>(weight)?);
    let bias = bias.map(data::<T>).transpose()?;
    let begin = bias.as_deref().map_or(Begin::Zero, Begin::Bias);
    let out = fresh(z.results(), |out| convolve(&numbers, &kernel, begin, z, out));
    Ok(Array::from_vec(out, (z.batch, z.outer, z.oh, z.ow), x.device())?)
}

/// The gradients that are wanted of input, weight and bias.
fn gradients<T: Real>(
    gradient: &Array,
    [x, weight]: Inputs<2>,
    z: ConvShape,
    wanted: [bool; 3],
) -> Result<[Option<Array>; 3]> {
    let (g, device) = (data::<T>(gradient)?, gradient.device());
    let of_x = || -> Result<Array> {
        let numbers = input_gradient(&g, &data::<T>(given(weight)?)?, z);
        Ok(Array::from_vec(numbers, (z.batch, z.inner, z.h, z.w), device)?)
    };
    let of_weight = || -> Result<Array> {
        let numbers = weight_gradient(&g, &data::<T>(given(x)?)?, z);
        Ok(Array::from_vec(numbers, (z.outer, z.inner, z.kh, z.kw), device)?)
    };
    let of_bias = || -> Result<Array> {
        let planes: Vec<T> = g.par_chunks(z.pixels()).map(|plane| sum(plane, |v| v)).collect();
        let sums = column_sums(planes.len(), z.batch, z.outer, |i| planes[i]);
        Ok(Array::from_vec(sums, z.outer, device)?)
    };
    Ok([
        wanted[0].then(of_x).transpose()?,
        wanted[1].then(of_weight).transpose()?,
        wanted[2].then(of_bias).transpose()?,
    ])
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

/// By Winograd's tiles or without patches, where there are kernels for tiles of products.
fn tiled<T: Real>(x: &[T], weight: &[T], begin: Begin<T>, z: ConvShape, out: &mut [T]) -> bool {
    let begin = match begin {
        Begin::Zero => Some(Begin::Zero),
        Begin::Bias(bias) => T::single(bias).map(Begin::Bias),
        Begin::Kept => Some(Begin::Kept),
    };
    let found = (tiles::kind(), begin, T::single(x), T::single(weight), T::single_mut(out));
    let (Some(kind), Some(begin), Some(x), Some(weight), Some(out)) = found else { return false };
    match begin {
        Begin::Zero if winograd::fits(&z) => winograd::convolve(kind, [x, weight], None, z, out),
        Begin::Bias(bias) if winograd::fits(&z) => winograd::convolve(kind, [x, weight], Some(bias), z, out),
        _ if direct::fits(&z) => direct::convolve(kind, [x, weight], begin, z, out),
        _ => return false,
    }
    true
}

fn convolve<T: Real>(x: &[T], weight: &[T], begin: Begin<T>, z: ConvShape, out: &mut [T]) {
    if !tiled(x, weight, begin, z, out) {
        by_patches(x, weight, begin, z, out);
    }
}

fn by_patches<T: Real>(x: &[T], weight: &[T], begin: Begin<T>, z: ConvShape, out: &mut [T]) {
    let x = split_by_stride(x, z);
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

/// The kernel of the convolution that is the input gradient of another: `[inner, outer, kh, kw]`, its taps in reverse.
fn flipped<T: Real>(weight: &[T], z: ConvShape) -> Vec<T> {
    let area = z.kh * z.kw;
    let mut kernel = Vec::with_capacity(weight.len());
    for c in 0..z.inner {
        for o in 0..z.outer {
            kernel.extend(weight[(o * z.inner + c) * area..][..area].iter().rev());
        }
    }
    kernel
}

fn input_gradient<T: Real>(grad: &[T], weight: &[T], z: ConvShape) -> Vec<T> {
    if let Some(back) = z.input_gradient_shape() {
        return fresh(back.results(), |out| convolve(grad, &flipped(weight, z), Begin::Zero, back, out));
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
fn weight_gradient<T: Real>(grad: &[T], x: &[T], z: ConvShape) -> Vec<T> {
    let x = split_by_stride(x, z);
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

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    // batch, inputs, outputs, height, width, kernel, stride, padding
    let sizes = [
        (3, 2, 4, 7, 6, 3, 1, 1),
        (3, 2, 4, 7, 6, 3, 2, 0),
        (3, 2, 4, 7, 6, 1, 1, 0),
        (3, 2, 4, 7, 6, 2, 2, 0),
        (3, 2, 4, 7, 6, 3, 2, 1),
        (3, 2, 4, 7, 6, 4, 3, 2),
        (2, 2, 3, 7, 8, 3, 1, 1),
        (2, 3, 4, 8, 9, 3, 2, 1),
        (2, 4, 2, 5, 6, 1, 1, 0),
        (2, 2, 2, 9, 10, 4, 4, 0),
        (2, 3, 2, 20, 21, 5, 1, 2),
        (2, 16, 33, 17, 18, 3, 1, 1),
        (3, 20, 3, 15, 14, 4, 1, 2),
        (2, 80, 3, 13, 14, 3, 1, 1),
        (2, 64, 65, 33, 34, 3, 1, 1),
        (3, 66, 64, 31, 30, 3, 1, 2),
    ];
    let mut all = upsample::cases();
    for (batch, inner, outer, h, w, k, stride, padding) in sizes {
        let shapes: [&[usize]; 3] = [&[batch, inner, h, w], &[outer, inner, k, k], &[outer]];
        let name = format!("conv2d {inner} to {outer}, {h} x {w}, kernel {k}, stride {stride}, padding {padding}");
        all.push(case(&name, &shapes, move |i| conv2d(&i[0], &i[1], Some(&i[2]), stride, padding)));
        let name = format!("{name}, without bias");
        all.push(case(&name, &shapes[..2], move |i| conv2d(&i[0], &i[1], None, stride, padding)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, Rng};

    fn random(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn values_are_those_of_candle() {
        for (kernel, stride, padding) in [(3, 1, 1), (3, 2, 0), (1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 2)] {
            let (x, weight) = (random(&[3, 2, 7, 6], 1), random(&[4, 2, kernel, kernel], 2));
            let own = conv2d(&x, &weight, None, stride, padding).unwrap();
            let other = x.array().conv2d(weight.array(), padding, stride, 1, 1).unwrap();
            let error = (own.array() - other).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-12, "kernel {kernel}, stride {stride}, padding {padding}: {error:e}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, weight) = (random(&[1, 2, 3, 3], 1), random(&[4, 2, 3, 3], 2));
        let message = |y: Result<Tensor>| y.unwrap_err().message;
        let small = message(conv2d(&random(&[1, 2, 1, 3], 3), &weight, None, 1, 0));
        assert!(small.starts_with("conv2d: weight [4, 2, 3, 3] with padding 0 and stride 1 does not fit"), "{small}");
        assert!(message(conv2d(&x, &weight, None, 0, 1)).contains("stride 0"));
        assert!(message(conv2d(&x, &weight, Some(&random(&[5], 4)), 1, 1)).contains("expected a bias [4]"));
    }
}
