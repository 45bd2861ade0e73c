//! Normalisations and the modulations that follow them.

use super::cast::wide;
use crate::bail;
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, column_sums, data, dot, grain, map_rows, on_cpu, sum};
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// Layer normalisation over the last dimension, with optional weight and bias.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    match (weight, bias) {
        (Some(weight), Some(bias)) => {
            wide([x, weight, bias], |[x, w, b]| affine(&normalise(x, width, true, eps)?, Some(w), Some(b)))
        }
        _ => wide([x], |[x]| affine(&normalise(x, width, true, eps)?, weight, bias)),
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    wide([x, weight], |[x, weight]| affine(&normalise(x, width, false, eps)?, Some(weight), None))
}

/// Group normalisation of `x [batch, channels, ..]` with weight and bias per channel.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    wide([x, weight, bias], |[x, weight, bias]| group_norm_in(x, groups, weight, bias, eps))
}

fn group_norm_in(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
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
    let (ws, bs) = (data::<T>(&w)?, data::<T>(&b)?);
    let out = map_rows(&data::<T>(&plain)?, pixels, |i, row, out| {
        let (w, b) = (ws[i % channels], bs[i % channels]);
        out.iter_mut().zip(row).for_each(|(o, v)| *o = *v * w + b);
    });
    drop((ws, bs));
    custom_vjp(&[y, weight, bias], Tensor::from_vec(out, y.dims(), y.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let (g, w) = (data::<T>(&grad)?, data::<T>(&w)?);
        let mut gradients = vec![None; 3];
        if wanted[0] {
            let out = map_rows(&g, pixels, |i, row, out| {
                out.iter_mut().zip(row).for_each(|(o, v)| *o = *v * w[i % channels]);
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
    let (ws, bs) = (data::<T>(&w)?, data::<T>(&b)?);
    let out = map_rows(&data::<T>(&plain)?, width, |_, row, out| match has_bias {
        true => {
            out.iter_mut().zip(row.iter().zip(ws.iter().zip(bs.iter()))).for_each(|(o, (y, (w, b)))| *o = *y * *w + *b)
        }
        false => out.iter_mut().zip(row.iter().zip(ws.iter())).for_each(|(o, (y, w))| *o = *y * *w),
    });
    drop((ws, bs));
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
    let mut out = vec![zero; x.elem_count()];
    let mut sizes = vec![zero; out.len() / width.max(1)]; // 1 / root mean square of each row
    {
        let x = data::<T>(&input)?;
        let rows = out.par_chunks_mut(width).with_min_len(grain(width)).zip(x.par_chunks(width));
        rows.zip(&mut sizes).for_each(|((out, row), size)| {
            let mean = if centre { sum(row, |v| v) / count } else { zero };
            let square = sum(row, |v| (v - mean) * (v - mean)) / count;
            *size = T::one() / (square + T::of(eps)).sqrt();
            out.iter_mut().zip(row).for_each(|(o, v)| *o = (*v - mean) * *size);
        });
    }
    let output = Tensor::from_vec(out, x.dims(), x.device())?;
    let y = if x.track_op() { output.copy()? } else { output.clone() };
    custom_vjp(&[x], output, move |grad, _| {
        // dx = (g - mean(g) - y mean(g y)) / size
        let grad = grad.contiguous()?;
        let (g, y) = (data::<T>(&grad)?, data::<T>(&y)?);
        let out = map_rows(&g, width, |i, g, out| {
            let (y, size) = (&y[i * width..(i + 1) * width], sizes[i]);
            let mean = if centre { sum(g, |v| v) / count } else { zero };
            let along = dot(g, y) / count;
            out.iter_mut().zip(g.iter().zip(y)).for_each(|(o, (g, y))| *o = (*g - mean - *y * along) * size);
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
    let (bys, pluses) = (data::<T>(&by)?, data::<T>(&plus)?);
    let out = map_rows(&data::<T>(&input)?, width, |i, row, out| {
        let at = i / tokens * width;
        let (by, plus) = (&bys[at..at + width], &pluses[at..at + width]);
        let all = out.iter_mut().zip(row.iter().zip(by.iter().zip(plus)));
        all.for_each(|(o, (x, (b, p)))| *o = *x * (T::one() + *b) + *p);
    });
    drop((bys, pluses));
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
    let (bys, changes) = (data::<T>(&by)?, data::<T>(&change)?);
    let out = map_rows(&data::<T>(&base)?, width, |i, row, out| {
        let (by, change) = (&bys[i / tokens * width..][..width], &changes[i * width..][..width]);
        out.iter_mut().zip(row.iter().zip(by.iter().zip(change))).for_each(|(o, (x, (b, y)))| *o = *x + *b * *y);
    });
    drop((bys, changes));
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
    let by = data::<T>(by)?;
    let out = map_rows(&data::<T>(x)?, width, |i, row, out| {
        let by = &by[i / tokens * width..][..width];
        out.iter_mut().zip(row.iter().zip(by)).for_each(|(o, (x, b))| *o = *x * (offset + *b));
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
