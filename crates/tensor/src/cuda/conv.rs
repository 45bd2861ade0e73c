//! 2-D convolution as products of patches, unrolled as many at a time as scratch memory allows.

use super::linear::{Part, multiply};
use super::{Arg, File, Grid, Unit, fresh, launch, piece, plain};
use crate::Array;
use crate::op::ConvShape;
use amscript_base::error::Result;
use candle_core::DType;
use std::ops::Range;

/// Numbers of unrolled patches at a time.
fn most() -> usize {
    piece(1 << 27)
}

/// The kernels' padding is that of both axes.
fn numbers(z: ConvShape) -> [Arg<'static>; 7] {
    [z.inner, z.h, z.w, z.kh, z.kw, z.stride, z.padding[0]].map(Arg::Int)
}

fn image(z: ConvShape) -> usize {
    z.inner * z.h * z.w
}

/// Images, and of each the output lines, whose patches are unrolled at once.
fn step(z: ConvShape) -> (usize, usize) {
    let whole = z.patch() * z.pixels();
    match most() / whole.max(1) {
        0 => (1, (most() / (z.patch() * z.ow)).clamp(1, z.oh)),
        images => (images.min(z.batch), z.oh),
    }
}

/// Numbers that a convolution, or the way back to its input, unrolls at once.
pub fn scratch(z: ConvShape) -> usize {
    let unrolled = |z: ConvShape| {
        let (images, lines) = step(z);
        if z.plain() { 0 } else { images * z.patch() * lines * z.ow }
    };
    let back = z.input_gradient_shape().map_or(step(z).0 * z.patch() * z.pixels(), unrolled);
    unrolled(z).max(back)
}

/// Patches of these images of `x` and of these output lines: `[images, patch, lines ow]`.
fn unroll(x: &Array, z: ConvShape, images: Range<usize>, lines: Range<usize>) -> Result<Array> {
    let part = x.narrow(0, images.start, images.len())?;
    let columns = fresh((images.len(), z.patch(), lines.len() * z.ow), x.dtype(), x.device())?;
    let rows = images.len() * z.patch();
    let ends = [Arg::Int(lines.start), Arg::Int(lines.len()), Arg::Int(z.ow)];
    let tensors = [Arg::Tensor(&part), Arg::Tensor(&columns), Arg::Int(rows)];
    let args: Vec<Arg> = tensors.into_iter().chain(numbers(z)).chain(ends).collect();
    launch(x.device(), &Unit::new(File::Planes, x, 1), "unroll", Grid::lines(rows, lines.len() * z.ow), &args)?;
    Ok(columns)
}

/// Cross-correlation with zero padding, in the type of `x`.
pub fn conv2d(x: &Array, weight: &Array, bias: Option<&Array>, z: ConvShape) -> Result<Array> {
    let (x, weight) = (&plain(x, x.dtype())?, &plain(weight, x.dtype())?);
    let (patch, pixels) = (z.patch(), z.pixels());
    let out = fresh((z.batch, z.outer, z.oh, z.ow), x.dtype(), x.device())?;
    if let Some(bias) = bias {
        let (bias, rows) = (plain(bias, x.dtype())?, z.batch * z.outer);
        let args = [Arg::Tensor(&bias), Arg::Tensor(&out), Arg::Int(rows), Arg::Int(z.outer), Arg::Int(pixels)];
        launch(x.device(), &Unit::new(File::Planes, x, 1), "lines", Grid::lines(rows, pixels), &args)?;
    }
    let factors = [1.0, if bias.is_some() { 1.0 } else { 0.0 }];
    let (kernel, results) = (Part::rows(weight, patch), Part::rows(&out, pixels).every(z.outer * pixels));
    if z.plain() {
        let patches = Part::rows(x, pixels).every(image(z));
        multiply((z.outer, patch, pixels), kernel, patches, results, z.batch, factors)?;
        return Ok(out);
    }
    let (images, lines) = step(z);
    for image in (0..z.batch).step_by(images) {
        for first in (0..z.oh).step_by(lines) {
            let (count, lines) = (images.min(z.batch - image), lines.min(z.oh - first));
            let columns = unroll(x, z, image..image + count, first..first + lines)?;
            let n = lines * z.ow;
            let patches = Part::rows(&columns, n).every(patch * n);
            let results = results.from(image * z.outer * pixels + first * z.ow);
            multiply((z.outer, patch, n), kernel, patches, results, count, factors)?;
        }
    }
    Ok(out)
}

/// The gradient of its input.
pub fn input_gradient(gradient: &Array, weight: &Array, z: ConvShape) -> Result<Array> {
    let (g, weight) = (&plain(gradient, gradient.dtype())?, &plain(weight, gradient.dtype())?);
    if let Some(back) = z.input_gradient_shape() {
        return conv2d(g, &flipped(weight, z)?, None, back);
    }
    let (patch, pixels) = (z.patch(), z.pixels());
    let out = fresh((z.batch, z.inner, z.h, z.w), g.dtype(), g.device())?;
    let images = step(z).0;
    for image in (0..z.batch).step_by(images) {
        let count = images.min(z.batch - image);
        let columns = fresh((count, patch, pixels), g.dtype(), g.device())?;
        let part = Part::rows(g, pixels).every(z.outer * pixels).from(image * z.outer * pixels);
        let kernel = Part::rows(weight, patch).transposed();
        let results = Part::rows(&columns, pixels).every(patch * pixels);
        multiply((patch, z.outer, pixels), kernel, part, results, count, [1.0, 0.0])?;
        let part = out.narrow(0, image, count)?;
        let rows = count * z.inner * z.h;
        let tensors = [Arg::Tensor(&columns), Arg::Tensor(&part), Arg::Int(rows)];
        let args: Vec<Arg> = tensors.into_iter().chain(numbers(z)).chain([Arg::Int(z.oh), Arg::Int(z.ow)]).collect();
        launch(g.device(), &Unit::new(File::Planes, g, 1), "roll", Grid::lines(rows, z.w), &args)?;
    }
    Ok(out)
}

/// The kernel of the convolution that is the input gradient: `[inner, outer, kh, kw]`, its taps in reverse.
fn flipped(weight: &Array, z: ConvShape) -> Result<Array> {
    let area = z.kh * z.kw;
    let reverse = Array::from_vec((0..area as u32).rev().collect(), area, weight.device())?;
    let kernel = weight.reshape((z.outer, z.inner, area))?.index_select(&reverse, 2)?;
    Ok(kernel.transpose(0, 1)?.contiguous()?)
}

/// The gradient of its weight, summed in f32.
pub fn weight_gradient(gradient: &Array, x: &Array, z: ConvShape) -> Result<Array> {
    let (g, x) = (&plain(gradient, gradient.dtype())?, &plain(x, gradient.dtype())?);
    let (patch, pixels) = (z.patch(), z.pixels());
    let sum = Array::zeros((z.outer, z.inner, z.kh, z.kw), DType::F32, g.device())?;
    for image in 0..z.batch {
        let columns = if z.plain() { x.narrow(0, image, 1)? } else { unroll(x, z, image..image + 1, 0..z.oh)? };
        let g = Part::rows(g, pixels).from(image * z.outer * pixels);
        let patches = Part::rows(&columns, pixels).transposed();
        multiply((z.outer, pixels, patch), g, patches, Part::rows(&sum, patch), 1, [1.0, 1.0])?;
    }
    Ok(sum)
}

/// The gradient of its bias, summed in f32.
pub fn bias_gradient(gradient: &Array) -> Result<Array> {
    Ok(gradient.to_dtype(DType::F32)?.sum((0, 2, 3))?)
}
