//! Normalisations and the modulations that follow them.

use crate::bail;
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, column_sums, data, dot, grain, on_cpu, sum};
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// Layer normalisation over the last dimension, with optional weight and bias.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    affine(&normalise(x, width, true, eps)?, weight, bias)
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    affine(&normalise(x, width, false, eps)?, Some(weight), None)
}

/// Group normalisation of `x [batch, channels, ..]` with weight and bias per channel.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    if groups == 0 || channels % groups != 0 {
        bail!(Shape, "group_norm: {groups} groups must divide {channels} channels");
    }
    let width = x.elem_count() / (batch * groups).max(1);
    let y = normalise(&x.contiguous()?, width, true, eps)?;
    on_cpu!(x, channel_affine(&y, weight, bias), {
        let spread = |w: &Tensor| {
            let mut shape = vec![1; x.rank()];
            shape[1] = channels;
            w.reshape(shape)
        };
        Ok(y.broadcast_mul(&spread(weight)?)?.broadcast_add(&spread(bias)?)?)
    })
}

/// `y w + b` with one weight and bias per channel of `y [batch, channels, ..]`.
fn channel_affine<T: Real>(y: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let [plain, w, b] = contiguous([y, weight, bias])?;
    let (batch, channels) = (y.dim(0)?, y.dim(1)?);
    let pixels = y.elem_count() / (batch * channels).max(1);
    let mut out = data::<T>(&plain)?.to_vec();
    {
        let (w, b) = (data::<T>(&w)?, data::<T>(&b)?);
        out.par_chunks_mut(pixels).with_min_len(grain(pixels)).enumerate().for_each(|(i, row)| {
            let (w, b) = (w[i % channels], b[i % channels]);
            row.iter_mut().for_each(|v| *v = *v * w + b);
        });
    }
    custom_vjp(&[y, weight, bias], Tensor::from_vec(out, y.dims(), y.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let (g, w) = (data::<T>(&grad)?, data::<T>(&w)?);
        let mut gradients = vec![None; 3];
        if wanted[0] {
            let mut out = g.to_vec();
            out.par_chunks_mut(pixels).with_min_len(grain(pixels)).enumerate().for_each(|(i, row)| {
                row.iter_mut().for_each(|v| *v *= w[i % channels]);
            });
            gradients[0] = Some(Tensor::from_vec(out, grad.dims(), grad.device())?);
        }
        let per_channel = |f: &(dyn Fn(usize) -> T + Sync)| -> Result<Option<Tensor>> {
            let of = |c| (0..batch).fold(T::zero(), |s, b| s + f(b * channels + c));
            let sums: Vec<T> = (0..channels).into_par_iter().map(of).collect();
            Ok(Some(Tensor::from_vec(sums, channels, grad.device())?))
        };
        let y = data::<T>(&plain)?;
        let line = |i: usize| i * pixels..(i + 1) * pixels;
        if wanted[1] {
            gradients[1] = per_channel(&|i| dot(&g[line(i)], &y[line(i)]))?;
        }
        if wanted[2] {
            gradients[2] = per_channel(&|i| sum(&g[line(i)], |v| v))?;
        }
        Ok(gradients)
    })
}

/// `y w + b` over the last dimension; gradients of `w` and `b` only where they are wanted.
fn affine(y: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let Some(weight) = weight else { return Ok(y.clone()) };
    on_cpu!(y, affine_cpu(y, weight, bias), {
        let out = y.broadcast_mul(weight)?;
        Ok(bias.map_or(Ok(out.clone()), |b| out.broadcast_add(b))?)
    })
}

fn affine_cpu<T: Real>(y: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let [plain, w, b] = contiguous([y, weight, bias.unwrap_or(weight)])?;
    let (width, has_bias) = (w.elem_count(), bias.is_some());
    let mut out = data::<T>(&plain)?.to_vec();
    {
        let (w, b) = (data::<T>(&w)?, data::<T>(&b)?);
        out.par_chunks_mut(width).with_min_len(grain(width)).for_each(|row| match has_bias {
            true => row.iter_mut().zip(w.iter().zip(b.iter())).for_each(|(y, (w, b))| *y = *y * *w + *b),
            false => row.iter_mut().zip(w.iter()).for_each(|(y, w)| *y *= *w),
        });
    }
    let mut inputs = vec![y, weight];
    inputs.extend(bias);
    custom_vjp(&inputs, Tensor::from_vec(out, y.dims(), y.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let (g, y) = (data::<T>(&grad)?, data::<T>(&plain)?);
        let (len, rows) = (g.len(), g.len() / width.max(1));
        let gy = wanted[0].then(|| scaled_rows::<T>(&grad, &w, T::zero(), rows)).transpose()?;
        let column = |sums: Vec<T>| Tensor::from_vec(sums, width, grad.device());
        let gw = wanted[1].then(|| column(column_sums(len, rows, width, |i| g[i] * y[i]))).transpose()?;
        let wants_bias = wanted.get(2) == Some(&true);
        let gb = wants_bias.then(|| column(column_sums(len, rows, width, |i| g[i]))).transpose()?;
        Ok([gy, gw, gb].into_iter().take(wanted.len()).collect())
    })
}

/// Chunks of `width` numbers to zero mean (if `centre`) and unit mean square, without weights.
fn normalise(x: &Tensor, width: usize, centre: bool, eps: f64) -> Result<Tensor> {
    on_cpu!(x, normalise_cpu(x, width, centre, eps), {
        let rows = x.reshape(((), width))?;
        let rows = if centre { rows.broadcast_sub(&rows.mean_keepdim(1)?)? } else { rows };
        let size = (rows.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
        Ok(rows.broadcast_div(&size)?.reshape(x.dims())?)
    })
}

fn normalise_cpu<T: Real>(x: &Tensor, width: usize, centre: bool, eps: f64) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let (count, zero) = (T::of(width as f64), T::zero());
    let mut out = data::<T>(&input)?.to_vec();
    let mut sizes = vec![zero; out.len() / width.max(1)]; // 1 / root mean square of each row
    out.par_chunks_mut(width).with_min_len(grain(width)).zip(&mut sizes).for_each(|(row, size)| {
        let mean = if centre { sum(row, |v| v) / count } else { zero };
        let square = sum(row, |v| (v - mean) * (v - mean)) / count;
        *size = T::one() / (square + T::of(eps)).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) * *size);
    });
    let output = Tensor::from_vec(out, x.dims(), x.device())?;
    let y = if x.track_op() { output.copy()? } else { output.clone() };
    custom_vjp(&[x], output, move |grad, _| {
        // dx = (g - mean(g) - y mean(g y)) / size
        let mut out = data::<T>(&grad.contiguous()?)?.to_vec();
        let y = data::<T>(&y)?;
        let rows = out.par_chunks_mut(width).with_min_len(grain(width));
        rows.zip(y.par_chunks(width)).zip(&sizes).for_each(|((g, y), size)| {
            let mean = if centre { sum(g, |v| v) / count } else { zero };
            let along = dot(g, y) / count;
            g.iter_mut().zip(y).for_each(|(g, y)| *g = (*g - mean - *y * along) * *size);
        });
        Ok(vec![Some(Tensor::from_vec(out, grad.dims(), grad.device())?)])
    })
}

/// `x (1 + scale) + shift` for `x [batch, tokens, d]` and `shift, scale [batch, d]`.
pub fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    on_cpu!(x, modulate_cpu(x, shift, scale), {
        Ok(x.broadcast_mul(&(scale.unsqueeze(1)? + 1.0)?)?.broadcast_add(&shift.unsqueeze(1)?)?)
    })
}

fn modulate_cpu<T: Real>(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let [input, by, plus] = contiguous([x, scale, shift])?;
    let (tokens, width) = check_rows(x, &[scale, shift])?;
    let mut out = data::<T>(&input)?.to_vec();
    {
        let (by, plus) = (data::<T>(&by)?, data::<T>(&plus)?);
        out.par_chunks_mut(width).with_min_len(grain(width)).enumerate().for_each(|(i, row)| {
            let at = i / tokens * width;
            let (by, plus) = (&by[at..at + width], &plus[at..at + width]);
            row.iter_mut().zip(by.iter().zip(plus)).for_each(|(x, (b, p))| *x = *x * (T::one() + *b) + *p);
        });
    }
    custom_vjp(&[x, shift, scale], Tensor::from_vec(out, x.dims(), x.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let (g, x, len) = (data::<T>(&grad)?, data::<T>(&input)?, grad.elem_count());
        let per_sample = |sums: Vec<T>| Tensor::from_vec(sums, by.dims(), grad.device());
        let gx = wanted[0].then(|| scaled_rows::<T>(&grad, &by, T::one(), tokens)).transpose()?;
        let gshift = wanted[1].then(|| per_sample(column_sums(len, tokens, width, |i| g[i]))).transpose()?;
        let gscale = wanted[2].then(|| per_sample(column_sums(len, tokens, width, |i| g[i] * x[i]))).transpose()?;
        Ok(vec![gx, gshift, gscale])
    })
}

/// `x + gate y` for `x, y [batch, tokens, d]` and `gate [batch, d]`.
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    on_cpu!(x, gated_add_cpu(x, gate, y), Ok((x + y.broadcast_mul(&gate.unsqueeze(1)?)?)?))
}

fn gated_add_cpu<T: Real>(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [base, by, change] = contiguous([x, gate, y])?;
    let (tokens, width) = check_rows(x, &[gate])?;
    let mut out = data::<T>(&base)?.to_vec();
    {
        let (by, change) = (data::<T>(&by)?, data::<T>(&change)?);
        let rows = out.par_chunks_mut(width).with_min_len(grain(width));
        rows.zip(change.par_chunks(width)).enumerate().for_each(|(i, (row, change))| {
            let by = &by[i / tokens * width..][..width];
            row.iter_mut().zip(by.iter().zip(change)).for_each(|(x, (b, y))| *x += *b * *y);
        });
    }
    custom_vjp(&[x, gate, y], Tensor::from_vec(out, x.dims(), x.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let (g, y, len) = (data::<T>(&grad)?, data::<T>(&change)?, grad.elem_count());
        let gx = wanted[0].then(|| grad.clone());
        let sums = wanted[1].then(|| column_sums(len, tokens, width, |i| g[i] * y[i]));
        let ggate = sums.map(|sums| Tensor::from_vec(sums, by.dims(), grad.device())).transpose()?;
        let gy = wanted[2].then(|| scaled_rows::<T>(&grad, &by, T::zero(), tokens)).transpose()?;
        Ok(vec![gx, ggate, gy])
    })
}

/// `x (offset + by)` for contiguous `x [batch, tokens, d]`, `by [batch, d]`.
fn scaled_rows<T: Real>(x: &Tensor, by: &Tensor, offset: T, tokens: usize) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let mut out = data::<T>(x)?.to_vec();
    let by = data::<T>(by)?;
    out.par_chunks_mut(width).with_min_len(grain(width)).enumerate().for_each(|(i, row)| {
        let by = &by[i / tokens * width..][..width];
        row.iter_mut().zip(by).for_each(|(x, b)| *x *= offset + *b);
    });
    Ok(Tensor::from_vec(out, x.dims(), x.device())?)
}

fn contiguous<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut out = tensors.map(Tensor::detach);
    for x in &mut out {
        *x = x.contiguous()?;
    }
    Ok(out)
}

/// Tokens and width of `x [batch, tokens, width]`, with every vector `[batch, width]`.
fn check_rows(x: &Tensor, vectors: &[&Tensor]) -> Result<(usize, usize)> {
    let (batch, tokens, width) = x.dims3()?;
    for v in vectors {
        if v.dims() != [batch, width] {
            bail!(Shape, "modulation: expected [{batch}, {width}], got {:?}", v.dims());
        }
    }
    Ok((tokens, width))
}
