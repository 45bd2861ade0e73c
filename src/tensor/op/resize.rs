//! Image resizing as two matrix products, so that it has a gradient; the weights are those of torch.

use crate::bail;
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Matrix, Real, data, fresh, on_cpu, product, strided};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Interpolation and whether shrinking averages (antialias).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filter {
    Bilinear { antialias: bool },
    Bicubic { antialias: bool },
}

/// Resizes `x [batch, channels, height, width]` to `height x width`; bicubic values may leave the input's range.
pub fn resize(x: &Tensor, height: usize, width: usize, filter: Filter) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if h * w * height * width == 0 {
        bail!(Shape, "resize: expected at least one pixel, got {h} x {w} to {height} x {width}");
    }
    let across = kept(w, width, filter, x)?; // [width, w]
    let down = kept(h, height, filter, x)?; // [height, h]
    let y = both(&x.detach(), &down, &across)?;
    custom_vjp(&[x], y.reshape((b, c, height, width))?, move |grad, _| {
        Ok(vec![Some(both(grad, &down.t()?, &across.t()?)?.reshape((b, c, h, w))?)])
    })
}

/// `down x across^T` of every plane of `x [batch, channels, h, w]`: `[batch channels, h', w']`.
fn both(x: &Tensor, down: &Tensor, across: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let ((height, _), (width, _)) = (down.dims2()?, across.dims2()?);
    let x = x.contiguous()?;
    on_cpu!(x, both_cpu(&x, down, across), {
        let y = x.reshape((b * c * h, w))?.matmul(&across.t()?)?.reshape((b * c, h, width))?;
        Ok(down.expand((b * c, height, h))?.contiguous()?.matmul(&y)?)
    })
}

fn both_cpu<T: Real>(x: &Tensor, down: &Tensor, across: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let ((height, _), (width, _)) = (down.dims2()?, across.dims2()?);
    let (planes, left, right) = (data::<T>(x)?, strided::<T>(down)?, strided::<T>(across)?);
    let (left, right) = (Matrix::of(down, &left), Matrix::of(across, &right).turned());
    let out = fresh(b * c * height * width, |out| {
        out.par_chunks_mut(height * width).zip(planes.par_chunks(h * w)).for_each(|(out, plane)| {
            // SAFETY: the plane is [h, w], across^T [w, width], the rows [h, width], down [height, h], the output [height, width].
            let rows = fresh(h * width, |rows| unsafe {
                product((h, w, width), Matrix::rows(plane, w), right, (rows.as_mut_ptr(), width), false, 1.0);
            });
            unsafe {
                product((height, h, width), left, Matrix::rows(&rows, width), (out.as_mut_ptr(), width), false, 1.0);
            }
        });
    });
    Ok(Tensor::from_vec(out, (b * c, height, width), x.device())?)
}

type Made = ((usize, usize, Filter, DType), Tensor);

/// The matrix for `x`; the last few made are kept, so that a device is not sent the same again.
fn kept(from: usize, to: usize, filter: Filter, x: &Tensor) -> Result<Tensor> {
    static KEPT: Mutex<Vec<Made>> = Mutex::new(Vec::new());
    let (key, mut kept) = ((from, to, filter, x.dtype()), KEPT.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some((_, matrix)) = kept.iter().find(|(k, m)| *k == key && m.device().same_device(x.device())) {
        return Ok(matrix.clone());
    }
    let matrix = weights(from, to, filter, x.dtype(), x.device())?;
    if kept.len() == 16 {
        kept.remove(0);
    }
    kept.push((key, matrix.clone()));
    Ok(matrix)
}

/// Interpolation matrix `[to, from]`, rows summing to one (align_corners false).
fn weights(from: usize, to: usize, filter: Filter, dtype: DType, device: &Device) -> Result<Tensor> {
    let scale = from as f64 / to as f64;
    let mut matrix = vec![0f64; to * from];
    for (i, row) in matrix.chunks_mut(from).enumerate() {
        match filter {
            Filter::Bilinear { antialias: true } => antialiased(row, scale, i, 1.0, triangle),
            Filter::Bicubic { antialias: true } => antialiased(row, scale, i, 2.0, |x| cubic(x, -0.5)),
            Filter::Bilinear { antialias: false } => {
                point(row, (scale * (i as f64 + 0.5) - 0.5).max(0.0), 0..2, triangle);
            }
            Filter::Bicubic { antialias: false } => {
                point(row, scale * (i as f64 + 0.5) - 0.5, -1..3, |x| cubic(x, -0.75));
            }
        }
    }
    Ok(Tensor::from_vec(matrix, (to, from), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

fn antialiased(row: &mut [f64], scale: f64, i: usize, radius: f64, kernel: impl Fn(f64) -> f64) {
    let (stretch, centre) = (scale.max(1.0), scale * (i as f64 + 0.5));
    let support = radius * stretch;
    let first = ((centre - support + 0.5) as i64).max(0) as usize;
    let last = ((centre + support + 0.5) as usize).min(row.len());
    for (j, w) in row.iter_mut().enumerate().take(last).skip(first) {
        *w = kernel((j as f64 - centre + 0.5) / stretch);
    }
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|w| *w /= sum);
}

fn point(row: &mut [f64], centre: f64, taps: std::ops::Range<i64>, kernel: impl Fn(f64) -> f64) {
    let base = centre.floor();
    for tap in taps {
        let j = (base as i64 + tap).clamp(0, row.len() as i64 - 1) as usize;
        row[j] += kernel(base + tap as f64 - centre);
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::grad::vjp;
    use std::collections::HashMap;

    /// Case `resize`: torch's `interpolate`, up and down, with the gradient of a random cotangent.
    #[test]
    fn golden_values_and_gradients() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/resize");
        let golden: HashMap<String, Tensor> =
            candle_core::safetensors::load(format!("{folder}/expected.safetensors"), &Device::Cpu).unwrap();
        let error = |got: &Tensor, name: &str| {
            (got - &golden[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let (mut value_error, mut gradient_error) = (0f32, 0f32);
        for case in 0..4 {
            let (x, v) = (&golden[&format!("in.{case}.x")], &golden[&format!("in.{case}.cotangent")]);
            let (_, _, h, w) = v.dims4().unwrap();
            for (name, filter) in [
                ("bicubic.antialias", Filter::Bicubic { antialias: true }),
                ("bicubic", Filter::Bicubic { antialias: false }),
                ("bilinear.antialias", Filter::Bilinear { antialias: true }),
                ("bilinear", Filter::Bilinear { antialias: false }),
            ] {
                let (value, gradient) = vjp(|x| resize(x, h, w, filter), x, v).unwrap();
                value_error = value_error.max(error(&value, &format!("out.{case}.{name}")));
                gradient_error = gradient_error.max(error(&gradient, &format!("out.{case}.{name}.grad")));
            }
        }
        assert!(value_error < 1e-5 && gradient_error < 3e-5, "value {value_error:e}, gradient {gradient_error:e}");
    }
}
