//! Channels of unit length.

use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, data, map_rows, on_cpu};
use candle_core::Tensor;
use rayon::prelude::*;

/// `x / sqrt(sum over channels of x^2 + eps)` for `x [batch, channels, ..]`: the channels of each place, of unit length.
pub fn unit_channels(x: &Tensor, eps: f64) -> Result<Tensor> {
    on_cpu!(x, unit_cpu(x, eps), Ok(x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + eps)?.sqrt()?)?))
}

fn unit_cpu<T: Real>(x: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let image = x.elem_count() / batch.max(1);
    let pixels = image / channels.max(1);
    let input = x.detach().contiguous()?;
    // 1 / length of each place, `[batch, pixels]`
    let mut sizes = vec![T::zero(); batch * pixels];
    let out = {
        let x = data::<T>(&input)?;
        let images = x.par_chunks(image.max(1)).zip(sizes.par_chunks_mut(pixels.max(1)));
        images.for_each(|(x, sizes)| {
            products(x, x, sizes);
            sizes.iter_mut().for_each(|s| *s = T::one() / (*s + T::of(eps)).sqrt());
        });
        map_rows(&x, pixels, |i, row, out| {
            let sizes = &sizes[i / channels * pixels..];
            out.iter_mut().zip(row.iter().zip(sizes)).for_each(|(o, (x, s))| *o = *x * *s);
        })
    };
    custom_vjp(&[x], Tensor::from_vec(out, x.dims(), x.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let (g, x) = (data::<T>(&grad)?, data::<T>(&input)?);
        let mut along = vec![T::zero(); batch * pixels];
        let images =
            g.par_chunks(image.max(1)).zip(x.par_chunks(image.max(1))).zip(along.par_chunks_mut(pixels.max(1)));
        images.for_each(|((g, x), along)| products(g, x, along));
        let out = map_rows(&g, pixels, |i, g, out| {
            let (at, x) = (i / channels * pixels, &x[i * pixels..]);
            let places = sizes[at..].iter().zip(&along[at..]);
            out.iter_mut().zip(g.iter().zip(x)).zip(places).for_each(|((o, (g, x)), (s, along))| {
                *o = (*g - *x * *along * *s * *s) * *s;
            });
        });
        Ok(vec![Some(Tensor::from_vec(out, grad.dims(), grad.device())?)])
    })
}

/// Adds the products of two images, summed over the channels, to each of the `sums [pixels]`.
fn products<T: Real>(a: &[T], b: &[T], sums: &mut [T]) {
    for (a, b) in a.chunks(sums.len()).zip(b.chunks(sums.len())) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += *a * *b);
    }
}
