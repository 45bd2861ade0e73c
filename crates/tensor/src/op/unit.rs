//! Channels of unit length.

use super::call::{Backend, Inputs, Keeps, Kept, Kernels, Op, apply, given, there};
use super::cast::computed_bytes;
use crate::kernel::{Real, data, map_rows, on_cpu};
use crate::{Array, Tensor};
use amscript_base::error::Result;
use candle_core::Shape;
use rayon::prelude::*;

/// `x / sqrt(sum over channels of x^2 + eps)` for `x [batch, channels, ..]`: the channels of each place, of unit length.
pub fn unit_channels(x: &Tensor, eps: f64) -> Result<Tensor> {
    apply(UnitChannels { eps }, [Some(x)])
}

struct UnitChannels {
    eps: f64,
}

impl Op<1> for UnitChannels {
    /// 1 / length of each place, `[batch, pixels]`.
    type More = Array;

    fn name(&self) -> &'static str {
        "unit_channels"
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        let x = given(x)?;
        x.dim(1)?;
        Ok(x.shape().clone())
    }

    fn kernels(&self) -> Kernels {
        Kernels::PROCESSOR
    }

    fn keeps(&self, _: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        let bytes = x.map_or(0, |x| x.elem_count() / x.dims()[1].max(1) * computed_bytes(x.dtype()));
        Keeps::inputs([true]).and_bytes(bytes)
    }

    fn forward(&self, _: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, Array)> {
        let x = given(x)?;
        on_cpu!(x, unit(x, self.eps))
    }

    fn backward(&self, kept: Kept<1, Array>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let x = given(kept.inputs[0])?;
        Ok([Some(on_cpu!(x, unit_back(gradient, x, kept.more))?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        let x = there(x)?;
        x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + self.eps)?.sqrt()?)
    }

    fn work(&self, _: Inputs<1>, result: &Shape) -> f64 {
        4.0 * result.elem_count() as f64
    }
}

/// Images of `channels` of `pixels`.
fn sizes(x: &Array) -> (usize, usize, usize) {
    let (batch, channels) = (x.dims()[0], x.dims()[1]);
    (batch, channels, x.elem_count() / (batch * channels).max(1))
}

fn unit<T: Real>(x: &Array, eps: f64) -> Result<(Array, Array)> {
    let (batch, channels, pixels) = sizes(x);
    let mut lengths = vec![T::zero(); batch * pixels];
    let numbers = data::<T>(x)?;
    let images = numbers.par_chunks((channels * pixels).max(1)).zip(lengths.par_chunks_mut(pixels.max(1)));
    images.for_each(|(x, lengths)| {
        products(x, x, lengths);
        lengths.iter_mut().for_each(|s| *s = T::one() / (*s + T::of(eps)).sqrt());
    });
    let out = map_rows(&numbers, pixels, |i, row, out| {
        let lengths = &lengths[i / channels * pixels..];
        out.iter_mut().zip(row.iter().zip(lengths)).for_each(|(o, (x, s))| *o = *x * *s);
    });
    let made = |values, dims: &[usize]| Array::from_vec(values, dims, x.device());
    Ok((made(out, x.dims())?, made(lengths, &[batch, pixels])?))
}

fn unit_back<T: Real>(gradient: &Array, x: &Array, lengths: &Array) -> Result<Array> {
    let (batch, channels, pixels) = sizes(x);
    let (g, numbers, lengths) = (data::<T>(gradient)?, data::<T>(x)?, data::<T>(lengths)?);
    let (image, mut along) = ((channels * pixels).max(1), vec![T::zero(); batch * pixels]);
    let images = g.par_chunks(image).zip(numbers.par_chunks(image)).zip(along.par_chunks_mut(pixels.max(1)));
    images.for_each(|((g, x), along)| products(g, x, along));
    let out = map_rows(&g, pixels, |i, g, out| {
        let (at, x) = (i / channels * pixels, &numbers[i * pixels..]);
        let places = lengths[at..].iter().zip(&along[at..]);
        out.iter_mut().zip(g.iter().zip(x)).zip(places).for_each(|((o, (g, x)), (s, along))| {
            *o = (*g - *x * *along * *s * *s) * *s;
        });
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

/// Adds the products of two images, summed over the channels, to each of the `sums [pixels]`.
fn products<T: Real>(a: &[T], b: &[T], sums: &mut [T]) {
    for (a, b) in a.chunks(sums.len()).zip(b.chunks(sums.len())) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += *a * *b);
    }
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    vec![super::cases::case("unit_channels", &[&[2, 3, 4, 5]], |i| unit_channels(&i[0], 0.1)).without_card()]
}
