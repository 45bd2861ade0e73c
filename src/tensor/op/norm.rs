//! Normalisations with the scales and shifts that follow them, and gated residuals. The backward computes normalised numbers again
//! from the input, so that no more than the input and two numbers per group are kept.

use super::activation::{logistic, silu};
use super::cast::wide;
use super::shape::affine;
use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, column_sums, data, dot, fresh, grain, map_rows, on_cpu, sum};
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// Layer normalisation over the last dimension, with optional weight and bias.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let z = Rows { width: x.dim(D::Minus1)?, block: usize::MAX, centre: true, eps };
    if cuda::takes(x) {
        return cuda::norm::norm_rows(x, weight, bias, z.on_cuda(0.0));
    }
    match (weight, bias) {
        (Some(weight), Some(bias)) => wide([x, weight, bias], |[x, w, b]| norm_rows(x, Some(w), Some(b), z)),
        (Some(weight), None) => wide([x, weight], |[x, w]| norm_rows(x, Some(w), None, z)),
        _ => wide([x], |[x]| norm_rows(x, None, None, z)),
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let z = Rows { width: x.dim(D::Minus1)?, block: usize::MAX, centre: false, eps };
    if cuda::takes(x) {
        return cuda::norm::norm_rows(x, Some(weight), None, z.on_cuda(0.0));
    }
    wide([x, weight], |[x, weight]| norm_rows(x, Some(weight), None, z))
}

/// Layer normalisation of `x [batch, tokens, d]`, times `1 + scale`, plus `shift`, both `[batch, d]`: the adaptive norm of diffusion
/// transformers.
pub fn modulated_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let (tokens, width) = check_rows(x, &[scale, shift])?;
    let z = Rows { width, block: tokens, centre: true, eps };
    if cuda::takes(x) {
        return cuda::norm::norm_rows(x, Some(scale), Some(shift), z.on_cuda(1.0));
    }
    wide([x, shift, scale], |[x, shift, scale]| norm_rows(x, Some(&affine(scale, 1.0, 1.0)?), Some(shift), z))
}

/// Rows of `width` numbers; each `block` of rows has a weight and a bias of its own.
#[derive(Clone, Copy)]
struct Rows {
    width: usize,
    block: usize,
    /// To zero mean.
    centre: bool,
    eps: f64,
}

impl Rows {
    fn on_cuda(&self, more: f64) -> cuda::norm::Rows {
        cuda::norm::Rows { block: self.block, centre: self.centre, more, eps: self.eps }
    }

    /// The part of `[blocks, width]` that serves row `i`.
    fn of<'a, T>(&self, values: &'a [T], i: usize) -> &'a [T] {
        &values[i / self.block * self.width..][..self.width]
    }

    /// Mean (0 if it stays) and 1 / deviation of a row.
    fn moments<T: Real>(&self, row: &[T]) -> (T, T) {
        let count = T::of(self.width as f64);
        let mean = if self.centre { sum(row, |v| v) / count } else { T::zero() };
        let square = sum(row, |v| (v - mean) * (v - mean)) / count;
        (mean, T::one() / (square + T::of(self.eps)).sqrt())
    }
}

fn norm_rows(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, z: Rows) -> Result<Tensor> {
    on_cpu!(x, norm_rows_cpu(x, weight, bias, z), {
        let rows = if z.centre { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        let mut y = rows.broadcast_div(&(rows.sqr()?.mean_keepdim(D::Minus1)? + z.eps)?.sqrt()?)?;
        let spread = |v: &Tensor| if v.rank() == 2 { v.unsqueeze(1) } else { Ok(v.clone()) };
        if let Some(weight) = weight {
            y = y.broadcast_mul(&spread(weight)?)?;
        }
        if let Some(bias) = bias {
            y = y.broadcast_add(&spread(bias)?)?;
        }
        Ok(y)
    })
}

fn norm_rows_cpu<T: Real>(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, z: Rows) -> Result<Tensor> {
    let constant = |x: &Tensor| x.detach().contiguous();
    let (input, w, b) = (constant(x)?, weight.map(constant).transpose()?, bias.map(constant).transpose()?);
    let out = {
        let (ws, bs) = (w.as_ref().map(data::<T>).transpose()?, b.as_ref().map(data::<T>).transpose()?);
        map_rows(&data::<T>(&input)?, z.width, |i, row, out| {
            let (mean, size) = z.moments(row);
            out.iter_mut().zip(row).for_each(|(o, v)| *o = (*v - mean) * size);
            if let Some(ws) = &ws {
                out.iter_mut().zip(z.of(ws, i)).for_each(|(o, w)| *o *= *w);
            }
            if let Some(bs) = &bs {
                out.iter_mut().zip(z.of(bs, i)).for_each(|(o, b)| *o += *b);
            }
        })
    };
    let mut inputs = vec![x];
    inputs.extend(weight);
    inputs.extend(bias);
    let has_weight = weight.is_some();
    custom_vjp(&inputs, Tensor::from_vec(out, x.dims(), x.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let (g, x) = (data::<T>(&grad)?, data::<T>(&input)?);
        let ws = w.as_ref().map(data::<T>).transpose()?;
        let width = z.width;
        let mut gradients = vec![None; wanted.len()];
        if wanted[0] {
            let out = map_rows(&g, width, |i, g, out| {
                let row = &x[i * width..][..width];
                let (mean, size) = z.moments(row);
                match &ws {
                    Some(ws) => out.iter_mut().zip(g.iter().zip(z.of(ws, i))).for_each(|(o, (g, w))| *o = *g * *w),
                    None => out.copy_from_slice(g),
                }
                project(out, row, mean, size, z.centre);
            });
            gradients[0] = Some(Tensor::from_vec(out, grad.dims(), grad.device())?);
        }
        let (rows, shape) = (g.len() / width.max(1), |v: &Option<Tensor>| v.as_ref().map(|v| v.dims().to_vec()));
        let columns = |f: &(dyn Fn(usize) -> T + Sync), dims: Option<Vec<usize>>| -> Result<Option<Tensor>> {
            let sums = column_sums(g.len(), z.block.min(rows), width, f);
            Ok(Some(Tensor::from_vec(sums, dims.unwrap_or_default(), grad.device())?))
        };
        if has_weight && wanted[1] {
            let moments: Vec<(T, T)> = x.par_chunks(width).map(|row| z.moments(row)).collect();
            let product = |i: usize| {
                let (mean, size) = moments[i / width];
                g[i] * (x[i] - mean) * size
            };
            gradients[1] = columns(&product, shape(&w))?;
        }
        if b.is_some() && wanted[wanted.len() - 1] {
            gradients[wanted.len() - 1] = columns(&|i| g[i], shape(&b))?;
        }
        Ok(gradients)
    })
}

/// The gradient of a normalised row becomes that of its input: `(g - mean(g) - y mean(g y)) size` with `y = (x - mean) size`.
fn project<T: Real>(g: &mut [T], x: &[T], mean: T, size: T, centre: bool) {
    let count = T::of(g.len() as f64);
    let level = if centre { sum(g, |v| v) / count } else { T::zero() };
    let along = dot(g, x, |v| v - mean) * size / count;
    g.iter_mut().zip(x).for_each(|(g, x)| *g = (*g - level - (*x - mean) * size * along) * size);
}

/// Group normalisation of `x [batch, channels, ..]` with weight and bias per channel.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    groups_of(x, groups, weight, bias, eps, false)
}

/// `silu` of [`group_norm`], in one pass.
pub fn group_norm_silu(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    groups_of(x, groups, weight, bias, eps, true)
}

fn groups_of(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64, gated: bool) -> Result<Tensor> {
    let channels = x.dim(1)?;
    if groups == 0 || channels % groups != 0 {
        bail!(Shape, "group_norm: {groups} groups must divide {channels} channels");
    }
    if cuda::takes(x) {
        return cuda::norm::norm_groups(x, groups, weight, bias, eps, gated);
    }
    wide([x, weight, bias], |[x, weight, bias]| norm_groups(x, groups, weight, bias, eps, gated))
}

fn norm_groups(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64, gated: bool) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let (share, pixels) = (channels / groups, x.elem_count() / (batch * channels).max(1));
    let z = Groups { groups, share, pixels, gated };
    let rows = Rows { width: share * pixels, block: usize::MAX, centre: true, eps };
    on_cpu!(x, norm_groups_cpu(x, weight, bias, z, rows), {
        let flat = norm_rows(&x.reshape((batch, groups, share * pixels))?, None, None, rows)?.reshape(x.dims())?;
        let spread = |w: &Tensor| {
            let mut shape = vec![1; x.rank()];
            shape[1] = channels;
            w.reshape(shape)
        };
        let y = flat.broadcast_mul(&spread(weight)?)?.broadcast_add(&spread(bias)?)?;
        if gated { silu(&y) } else { Ok(y) }
    })
}

/// Images of `groups * share` channels of `pixels`, with SiLU behind the norm if `gated`.
#[derive(Clone, Copy)]
struct Groups {
    groups: usize,
    share: usize,
    pixels: usize,
    gated: bool,
}

impl Groups {
    /// The channels of row `i`, a group of an image.
    fn channels(&self, i: usize) -> std::ops::Range<usize> {
        let first = i % self.groups * self.share;
        first..first + self.share
    }
}

fn norm_groups_cpu<T: Real>(x: &Tensor, weight: &Tensor, bias: &Tensor, z: Groups, rows: Rows) -> Result<Tensor> {
    let [input, w, b] = contiguous([x, weight, bias])?;
    let (out, moments) = {
        let (x, w, b) = (data::<T>(&input)?, data::<T>(&w)?, data::<T>(&b)?);
        groups_forward(&x, [&w, &b], z, rows)
    };
    custom_vjp(&[x, weight, bias], Tensor::from_vec(out, x.dims(), x.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let all = {
            let (g, x, w, b) = (data::<T>(&grad)?, data::<T>(&input)?, data::<T>(&w)?, data::<T>(&b)?);
            groups_backward(&g, &x, [&w, &b], z, &moments, wanted[1] || wanted[2])
        };
        let shapes = [grad.shape(), w.shape(), b.shape()];
        let made = |((values, shape), wanted): ((Vec<T>, _), &bool)| {
            wanted.then(|| Ok(Tensor::from_vec(values, shape, grad.device())?)).transpose()
        };
        all.into_iter().zip(shapes).zip(wanted).map(made).collect()
    })
}

/// The output, and [`Rows::moments`] of each row.
fn groups_forward<T: Real>(x: &[T], [w, b]: [&[T]; 2], z: Groups, rows: Rows) -> (Vec<T>, Vec<(T, T)>) {
    let width = rows.width.max(1);
    let mut moments = vec![(T::zero(), T::zero()); x.len() / width];
    let out = fresh(x.len(), |out| {
        let all = out.par_chunks_mut(width).with_min_len(grain(width)).zip(x.par_chunks(width)).zip(&mut moments);
        all.enumerate().for_each(|(i, ((out, row), moments))| {
            let (mean, size) = rows.moments(row);
            *moments = (mean, size);
            for (c, (out, row)) in z.channels(i).zip(out.chunks_mut(z.pixels).zip(row.chunks(z.pixels))) {
                let (factor, offset) = (w[c] * size, b[c] - mean * size * w[c]);
                out.iter_mut().zip(row).for_each(|(o, v)| *o = *v * factor + offset);
                if z.gated {
                    out.iter_mut().for_each(|o| *o *= logistic(*o));
                }
            }
        });
    });
    (out, moments)
}

/// Gradients of the input, and if `trained` of weight and bias, for `g` of the output.
fn groups_backward<T: Real>(
    g: &[T],
    x: &[T],
    [w, b]: [&[T]; 2],
    z: Groups,
    moments: &[(T, T)],
    trained: bool,
) -> [Vec<T>; 3] {
    let width = (z.share * z.pixels).max(1);
    // By image and channel: what the weight and the bias get.
    let lines = g.len() / z.pixels.max(1);
    let (mut of_weight, mut of_bias) = (vec![T::zero(); lines], vec![T::zero(); lines]);
    let sums = of_weight.par_chunks_mut(z.share).zip(of_bias.par_chunks_mut(z.share));
    let gx = fresh(g.len(), |out| {
        let all = out.par_chunks_mut(width).zip(g.par_chunks(width)).zip(x.par_chunks(width)).zip(sums);
        all.enumerate().for_each(|(i, (((out, g), x), (of_weight, of_bias)))| {
            let (mean, size) = moments[i];
            for (j, c) in z.channels(i).enumerate() {
                let part = j * z.pixels..(j + 1) * z.pixels;
                let (out, g, x) = (&mut out[part.clone()], &g[part.clone()], &x[part]);
                let (factor, offset) = (w[c] * size, b[c] - mean * size * w[c]);
                match z.gated {
                    true => out.iter_mut().zip(g.iter().zip(x)).for_each(|(o, (g, v))| {
                        let y = *v * factor + offset;
                        let s = logistic(y);
                        *o = *g * s * (T::one() + y * (T::one() - s));
                    }),
                    false => out.copy_from_slice(g),
                }
                if trained {
                    of_bias[j] = sum(out, |v| v);
                    of_weight[j] = dot(out, x, |v| v - mean) * size;
                }
                out.iter_mut().for_each(|o| *o *= w[c]);
            }
            project(out, x, mean, size, true);
        });
    });
    let per_channel = |lines: Vec<T>| column_sums(lines.len(), lines.len() / w.len().max(1), w.len(), |i| lines[i]);
    [gx, per_channel(of_weight), per_channel(of_bias)]
}

/// `x + gate y` for `x, y [batch, tokens, d]` and `gate [batch, d]`.
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    if cuda::takes(x) {
        check_rows(x, &[gate])?;
        return cuda::norm::gated_add(x, gate, y);
    }
    on_cpu!(x, gated_add_cpu(x, gate, y), Ok((x + y.broadcast_mul(&gate.unsqueeze(1)?)?)?))
}

fn gated_add_cpu<T: Real>(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [base, by, change] = contiguous([x, gate, y])?;
    let (tokens, width) = check_rows(x, &[gate])?;
    let out = {
        let (bys, changes) = (data::<T>(&by)?, data::<T>(&change)?);
        map_rows(&data::<T>(&base)?, width, |i, row, out| {
            let (by, change) = (&bys[i / tokens * width..][..width], &changes[i * width..][..width]);
            out.iter_mut().zip(row.iter().zip(by.iter().zip(change))).for_each(|(o, (x, (b, y)))| *o = *x + *b * *y);
        })
    };
    let change = gate.track_op().then_some(change);
    custom_vjp(&[x, gate, y], Tensor::from_vec(out, x.dims(), x.device())?, move |grad, wanted| {
        let grad = grad.contiguous()?;
        let g = data::<T>(&grad)?;
        let gx = wanted[0].then(|| grad.clone());
        let ggate = match &change {
            Some(change) => {
                let y = data::<T>(change)?;
                let sums = column_sums(g.len(), tokens, width, |i| g[i] * y[i]);
                Some(Tensor::from_vec(sums, by.dims(), grad.device())?)
            }
            None => None,
        };
        let gy = match wanted[2] {
            true => {
                let by = data::<T>(&by)?;
                let out = map_rows(&g, width, |i, g, out| {
                    out.iter_mut().zip(g.iter().zip(&by[i / tokens * width..])).for_each(|(o, (g, b))| *o = *g * *b);
                });
                Some(Tensor::from_vec(out, grad.dims(), grad.device())?)
            }
            false => None,
        };
        Ok(vec![gx, ggate, gy])
    })
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
