//! Normalisations with the scales and shifts that follow them. The backward computes normalised numbers again
//! from the input, so that no more than the input and two numbers per group are kept.

use super::activation::{logistic, silu};
use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use super::cast::computed_bytes;
use super::rope::{Turns, check_angles, rope_pairs, rotate};
use crate::kernel::{Data, Real, column_sums, data, dot, fresh, grain, map_rows, on_cpu, sum};
use crate::{Array, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{D, Shape};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Layer normalisation over the last dimension, with optional weight and bias.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    apply(Rows { name: "layer_norm", modulated: false, centre: true, eps }, [Some(x), weight, bias, None, None])
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    apply(Rows { name: "rms_norm", modulated: false, centre: false, eps }, [Some(x), Some(weight), None, None, None])
}

/// [`rope_pairs`] of [`rms_norm`] over the heads of `x [batch, s, heads, d]`, in one pass: the queries and keys of FLUX.
pub fn rms_norm_rope(x: &Tensor, weight: &Tensor, cos: &Tensor, sin: &Tensor, eps: f64) -> Result<Tensor> {
    let z = Rows { name: "rms_norm_rope", modulated: false, centre: false, eps };
    apply(z, [Some(x), Some(weight), None, Some(cos), Some(sin)])
}

/// Layer normalisation of `x [batch, tokens, d]`, times `1 + scale`, plus `shift`, both `[batch, d]`: the adaptive norm of diffusion
/// transformers.
pub fn modulated_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let z = Rows { name: "modulated_norm", modulated: true, centre: true, eps };
    apply(z, [Some(x), Some(scale), Some(shift), None, None])
}

/// Normalisation of rows, with a weight and a bias.
#[derive(Clone, Copy)]
pub struct Rows {
    name: &'static str,
    /// Every image has a bias of its own, and a weight, which is a change of scale.
    modulated: bool,
    /// To zero mean.
    pub centre: bool,
    pub eps: f64,
}

impl Rows {
    /// Rows that share a weight and a bias, for an input of these dimensions.
    pub fn block(&self, dims: &[usize]) -> usize {
        if self.modulated { dims[1] } else { usize::MAX }
    }

    /// What is added to the weight.
    pub fn more(&self) -> f64 {
        if self.modulated { 1.0 } else { 0.0 }
    }

    /// The numbers that rows are multiplied by.
    fn scales<'a, T: Real>(&self, weight: &'a Data<T>) -> Cow<'a, [T]> {
        match self.modulated {
            true => Cow::Owned(weight.iter().map(|w| *w + T::one()).collect()),
            false => Cow::Borrowed(weight),
        }
    }
}

/// Mean (0 if it stays) and 1 / deviation of a row.
fn moments<T: Real>(row: &[T], centre: bool, eps: f64) -> (T, T) {
    let count = T::of(row.len() as f64);
    let mean = if centre { sum(row, |v| v) / count } else { T::zero() };
    let square = sum(row, |v| (v - mean) * (v - mean)) / count;
    (mean, T::one() / (square + T::of(eps)).sqrt())
}

/// The order is x, weight, bias, cosines, sines.
impl Op<5> for Rows {
    type More = ();

    fn name(&self) -> &'static str {
        self.name
    }

    fn shape(&self, [x, weight, bias, cos, sin]: Inputs<5>) -> Result<Shape> {
        let x = given(x)?;
        let width = x.dim(D::Minus1)?;
        let mut vectors = [weight, bias].into_iter().flatten();
        if self.modulated {
            check_rows(x, vectors)?;
        } else if let Some(w) = vectors.find(|w| w.elem_count() != width) {
            bail!(Shape, "{}: expected {width} weights, got shape {:?}", self.name, w.dims());
        }
        if let Some((cos, sin)) = cos.zip(sin) {
            check_angles(x, cos, sin)?;
        }
        Ok(x.shape().clone())
    }

    fn keeps(&self, _: Backend, _: Inputs<5>, wanted: [bool; 5]) -> Keeps<5> {
        Keeps::inputs([wanted[0] || wanted[1], wanted[0], false, true, true])
    }

    fn forward(&self, on: Backend, inputs: Inputs<5>, _: [bool; 5]) -> Result<(Array, ())> {
        let y = match on {
            Backend::Card => cuda::norm::rows(inputs, *self),
            _ => on_cpu!(given(inputs[0])?, normalise(inputs, *self)),
        };
        Ok((y?, ()))
    }

    fn backward(&self, kept: Kept<5, ()>, gradient: &Array, wanted: [bool; 5]) -> Result<[Option<Array>; 5]> {
        match kept.on {
            Backend::Card => cuda::norm::rows_back(kept, gradient, *self, wanted),
            _ => on_cpu!(gradient, normalise_back(kept, gradient, *self, wanted)),
        }
    }

    fn composed(&self, [x, weight, bias, cos, sin]: [Option<&Tensor>; 5]) -> Result<Tensor> {
        let x = there(x)?;
        let spread = |v: &Tensor| {
            let v = v.to_dtype(x.dtype())?;
            if self.modulated { v.unsqueeze(1) } else { Ok(v) }
        };
        let rows = if self.centre { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        let mut y = rows.broadcast_div(&(rows.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?)?;
        if let Some(weight) = weight {
            y = y.broadcast_mul(&spread(weight)?.affine(1.0, self.more())?)?;
        }
        if let Some(bias) = bias {
            y = y.broadcast_add(&spread(bias)?)?;
        }
        match cos.zip(sin) {
            Some((cos, sin)) => rope_pairs(&y, cos, sin),
            None => Ok(y),
        }
    }

    fn work(&self, inputs: Inputs<5>, result: &Shape) -> f64 {
        let turning = if inputs[3].is_some() { 3.0 } else { 0.0 };
        (8.0 + turning) * result.elem_count() as f64
    }
}

/// The part of `[blocks, width]` that serves row `i`.
pub(super) fn served(i: usize, block: usize, width: usize) -> Range<usize> {
    let at = i / block * width;
    at..at + width
}

fn normalise<T: Real>([x, weight, bias, cos, sin]: Inputs<5>, z: Rows) -> Result<Array> {
    let x = given(x)?;
    let (width, block) = (x.dim(D::Minus1)?, z.block(x.dims()));
    let (weight, bs) = (weight.map(data::<T>).transpose()?, bias.map(data::<T>).transpose()?);
    let ws = weight.as_ref().map(|w| z.scales(w));
    let turns = cos.zip(sin).map(|(cos, sin)| Turns::<T>::new(cos, sin, x.dims(), 1.0)).transpose()?;
    let out = map_rows(&data::<T>(x)?, width, |i, row, out| {
        let (mean, size) = moments(row, z.centre, z.eps);
        out.iter_mut().zip(row).for_each(|(o, v)| *o = (*v - mean) * size);
        if let Some(ws) = &ws {
            out.iter_mut().zip(&ws[served(i, block, width)]).for_each(|(o, w)| *o *= *w);
        }
        if let Some(bs) = &bs {
            out.iter_mut().zip(&bs[served(i, block, width)]).for_each(|(o, b)| *o += *b);
        }
        if let Some(turns) = &turns {
            turns.pairs(i, out);
        }
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

fn normalise_back<T: Real>(
    kept: Kept<5, ()>,
    gradient: &Array,
    z: Rows,
    wanted: [bool; 5],
) -> Result<[Option<Array>; 5]> {
    let ([x, weight, _, cos, sin], g) = (kept.inputs, data::<T>(gradient)?);
    let (width, block) = (gradient.dim(D::Minus1)?, z.block(gradient.dims()));
    let made = |values: Vec<T>, dims: &[usize]| {
        Ok::<_, amscript_base::Error>(Some(Array::from_vec(values, dims, gradient.device())?))
    };
    let mut gradients = [const { None }; 5];
    if wanted[0] {
        let (x, weight) = (data::<T>(given(x)?)?, weight.map(data::<T>).transpose()?);
        let ws = weight.as_ref().map(|w| z.scales(w));
        let back = cos.zip(sin).map(|(cos, sin)| Turns::<T>::new(cos, sin, gradient.dims(), -1.0)).transpose()?;
        let out = map_rows(&g, width, |i, g, out| {
            let row = &x[i * width..][..width];
            let (mean, size) = moments(row, z.centre, z.eps);
            out.copy_from_slice(g);
            if let Some(back) = &back {
                back.pairs(i, out);
            }
            if let Some(ws) = &ws {
                out.iter_mut().zip(&ws[served(i, block, width)]).for_each(|(o, w)| *o *= *w);
            }
            project(out, row, mean, size, z.centre);
        });
        gradients[0] = made(out, gradient.dims())?;
    }
    let turned = match cos.zip(sin).filter(|_| wanted[1] || wanted[2]) {
        Some((cos, sin)) => &rotate::<T>(gradient, cos, sin, true, -1.0)?,
        None => gradient,
    };
    let (g, block) = (data::<T>(turned)?, block.min(g.len() / width.max(1)));
    if wanted[1] {
        let x = data::<T>(given(x)?)?;
        let moments: Vec<(T, T)> = x.par_chunks(width.max(1)).map(|row| moments(row, z.centre, z.eps)).collect();
        let product = |i: usize| {
            let (mean, size) = moments[i / width];
            g[i] * (x[i] - mean) * size
        };
        gradients[1] = made(column_sums(g.len(), block, width, product), kept.shapes[1])?;
    }
    if wanted[2] {
        gradients[2] = made(column_sums(g.len(), block, width, |i| g[i]), kept.shapes[2])?;
    }
    Ok(gradients)
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
    apply(Groups { groups, gated: false, eps }, [Some(x), Some(weight), Some(bias)])
}

/// `silu` of [`group_norm`], in one pass.
pub fn group_norm_silu(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    apply(Groups { groups, gated: true, eps }, [Some(x), Some(weight), Some(bias)])
}

/// Normalisation of groups of channels, with SiLU behind it if `gated`.
#[derive(Clone, Copy)]
pub struct Groups {
    pub groups: usize,
    pub gated: bool,
    pub eps: f64,
}

impl Groups {
    /// Channels of a group, and pixels of a channel.
    pub fn sizes(&self, dims: &[usize]) -> (usize, usize) {
        (dims[1] / self.groups, dims[2..].iter().product())
    }

    /// The channels of row `i`, a group of an image.
    fn channels(&self, i: usize, share: usize) -> Range<usize> {
        let first = i % self.groups * share;
        first..first + share
    }
}

impl Op<3> for Groups {
    /// On the processor, mean and 1 / deviation of each group of each image.
    type More = Option<Array>;

    fn name(&self) -> &'static str {
        if self.gated { "group_norm_silu" } else { "group_norm" }
    }

    fn shape(&self, [x, weight, bias]: Inputs<3>) -> Result<Shape> {
        let (x, groups) = (given(x)?, self.groups);
        let channels = x.dim(1)?;
        if groups == 0 || channels % groups != 0 {
            bail!(Shape, "group_norm: {groups} groups must divide {channels} channels");
        }
        if let Some(w) = [weight, bias].into_iter().flatten().find(|w| w.elem_count() != channels) {
            bail!(Shape, "group_norm: expected {channels} weights, got shape {:?}", w.dims());
        }
        Ok(x.shape().clone())
    }

    fn keeps(&self, on: Backend, [x, _, _]: Inputs<3>, _: [bool; 3]) -> Keeps<3> {
        let moments = x.map_or(0, |x| 2 * x.dims()[0] * self.groups * computed_bytes(x.dtype()));
        Keeps::inputs([true; 3]).and_bytes(if on == Backend::Card { 0 } else { moments })
    }

    fn forward(&self, on: Backend, inputs: Inputs<3>, _: [bool; 3]) -> Result<(Array, Option<Array>)> {
        match on {
            Backend::Card => Ok((cuda::norm::groups(inputs, *self)?, None)),
            _ => on_cpu!(given(inputs[0])?, groups_forward(inputs, *self)),
        }
    }

    fn backward(
        &self,
        kept: Kept<3, Option<Array>>,
        gradient: &Array,
        wanted: [bool; 3],
    ) -> Result<[Option<Array>; 3]> {
        match kept.on {
            Backend::Card => cuda::norm::groups_back(kept.inputs, gradient, *self, wanted),
            _ => on_cpu!(gradient, groups_backward(kept, gradient, *self, wanted)),
        }
    }

    fn composed(&self, [x, weight, bias]: [Option<&Tensor>; 3]) -> Result<Tensor> {
        let x = there(x)?;
        let (share, pixels) = self.sizes(x.dims());
        let flat = layer_norm(&x.reshape((x.dim(0)?, self.groups, share * pixels))?, None, None, self.eps)?;
        let spread = |w: Option<&Tensor>| {
            let mut dims = vec![1; x.rank()];
            dims[1] = share * self.groups;
            there(w)?.to_dtype(x.dtype())?.reshape(dims)
        };
        let y = flat.reshape(x.dims())?.broadcast_mul(&spread(weight)?)?.broadcast_add(&spread(bias)?)?;
        if self.gated { silu(&y) } else { Ok(y) }
    }

    fn work(&self, _: Inputs<3>, result: &Shape) -> f64 {
        8.0 * result.elem_count() as f64
    }
}

/// The output, and [`moments`] of each row.
fn groups_forward<T: Real>([x, weight, bias]: Inputs<3>, z: Groups) -> Result<(Array, Option<Array>)> {
    let x = given(x)?;
    let ((share, pixels), (w, b)) = (z.sizes(x.dims()), (data::<T>(given(weight)?)?, data::<T>(given(bias)?)?));
    let (numbers, width, rows) = (data::<T>(x)?, (share * pixels).max(1), x.dims()[0] * z.groups);
    let mut all_moments = vec![T::zero(); 2 * rows];
    let out = fresh(numbers.len(), |out| {
        let rows = out.par_chunks_mut(width).with_min_len(grain(width)).zip(numbers.par_chunks(width));
        rows.zip(all_moments.par_chunks_mut(2)).enumerate().for_each(|(i, ((out, row), kept))| {
            let (mean, size) = moments(row, true, z.eps);
            kept.copy_from_slice(&[mean, size]);
            for (c, (out, row)) in z.channels(i, share).zip(out.chunks_mut(pixels).zip(row.chunks(pixels))) {
                let (factor, offset) = (w[c] * size, b[c] - mean * size * w[c]);
                out.iter_mut().zip(row).for_each(|(o, v)| *o = *v * factor + offset);
                if z.gated {
                    out.iter_mut().for_each(|o| *o *= logistic(*o));
                }
            }
        });
    });
    let made = |values, dims: &[usize]| Array::from_vec(values, dims, x.device());
    Ok((made(out, x.dims())?, Some(made(all_moments, &[rows, 2])?)))
}

fn groups_backward<T: Real>(
    kept: Kept<3, Option<Array>>,
    gradient: &Array,
    z: Groups,
    wanted: [bool; 3],
) -> Result<[Option<Array>; 3]> {
    let [x, w, b] = kept.inputs;
    let (x, w, b) = (data::<T>(given(x)?)?, data::<T>(given(w)?)?, data::<T>(given(b)?)?);
    let (g, moments) = (data::<T>(gradient)?, data::<T>(given(kept.more.as_ref())?)?);
    let ((share, pixels), trained) = (z.sizes(gradient.dims()), wanted[1] || wanted[2]);
    let width = (share * pixels).max(1);
    // By image and channel: what the weight and the bias get.
    let lines = g.len() / pixels.max(1);
    let (mut of_weight, mut of_bias) = (vec![T::zero(); lines], vec![T::zero(); lines]);
    let sums = of_weight.par_chunks_mut(share.max(1)).zip(of_bias.par_chunks_mut(share.max(1)));
    let gx = fresh(g.len(), |out| {
        let all = out.par_chunks_mut(width).zip(g.par_chunks(width)).zip(x.par_chunks(width)).zip(sums);
        all.enumerate().for_each(|(i, (((out, g), x), (of_weight, of_bias)))| {
            let (mean, size) = (moments[2 * i], moments[2 * i + 1]);
            for (j, c) in z.channels(i, share).enumerate() {
                let part = j * pixels..(j + 1) * pixels;
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
    let mut gradients = [const { None }; 3];
    for (i, values) in [gx, per_channel(of_weight), per_channel(of_bias)].into_iter().enumerate() {
        if wanted[i] {
            gradients[i] = Some(Array::from_vec(values, kept.shapes[i], gradient.device())?);
        }
    }
    Ok(gradients)
}

/// Refuses vectors that are not `[batch, width]` for `x [batch, tokens, width]`.
pub(super) fn check_rows<'a>(x: &Array, vectors: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    let (batch, _, width) = x.dims3()?;
    match vectors.into_iter().find(|v| v.dims() != [batch, width]) {
        Some(v) => bail!(Shape, "modulation: expected [{batch}, {width}], got {:?}", v.dims()),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::attention::beside;
    use super::cases::case;
    let mut all = Vec::new();
    for (rows, width) in [(3, 19), (5, 8), (3, 20), (7, 640), (2, 1300)] {
        let name = |name: &str| format!("{name} of {rows} x {width}");
        let (x, vector, vectors) = ([2, rows, width], [width], [2, width]);
        let layer: &[&[usize]] = &[&x, &vector, &vector];
        all.push(case(name("layer_norm"), layer, |i| layer_norm(&i[0], Some(&i[1]), Some(&i[2]), 1e-3)));
        all.push(case(name("layer_norm without bias"), &layer[..2], |i| layer_norm(&i[0], Some(&i[1]), None, 1e-3)));
        all.push(case(name("plain layer_norm"), &layer[..1], |i| layer_norm(&i[0], None, None, 1e-3)));
        all.push(case(name("rms_norm"), &layer[..2], |i| rms_norm(&i[0], &i[1], 1e-3)));
        all.push(case(name("modulated_norm"), &[&x, &vectors, &vectors], |i| {
            modulated_norm(&i[0], &i[1], &i[2], 1e-3)
        }));
    }
    for (s, heads, d) in [(3, 2, 6), (5, 3, 8), (4, 2, 20), (2, 3, 128), (150, 2, 8)] {
        let name = format!("rms_norm_rope of {s} x {heads} x {d}");
        all.push(case(name, &[&[2, s, heads, d], &[d]], move |i| {
            let angles = beside(&i[0], &[s, d / 2], 4)?;
            rms_norm_rope(&i[0], &i[1], &angles.cos()?, &angles.sin()?, 1e-3)
        }));
    }
    let long: &[&[usize]] = &[&[2, 300, 8], &[8]];
    all.push(case("rms_norm of many rows", long, |i| rms_norm(&i[0], &i[1], 1e-5)).offset(0, 3.0));
    for (channels, groups, h, w) in [(6, 2, 3, 5), (8, 4, 3, 3), (6, 2, 8, 8), (4, 4, 24, 24)] {
        let shapes: &[&[usize]] = &[&[2, channels, h, w], &[channels], &[channels]];
        let name = |name: &str| format!("{name} of {channels} channels, {h} x {w}");
        let plain = move |i: &[Tensor]| group_norm(&i[0], groups, &i[1], &i[2], 1e-3);
        all.push(case(name("group_norm"), shapes, plain).offset(0, 2.0));
        let gated = move |i: &[Tensor]| group_norm_silu(&i[0], groups, &i[1], &i[2], 1e-3);
        all.push(case(name("group_norm_silu"), shapes, gated).offset(0, 2.0));
    }
    all
}
