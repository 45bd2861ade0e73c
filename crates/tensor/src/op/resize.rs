//! Image resizing as two matrix products, so that it has a gradient; the weights are those of torch.

use super::call::{Backend, Inputs, Keeps, Kept, Kernels, Op, apply, given, there};
use crate::kernel::{Matrix, Real, data, fresh, on_cpu, product, strided};
use crate::{Array, DType, Device, Tensor};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::memory;
use candle_core::Shape;
use rayon::prelude::*;

/// Interpolation and whether shrinking averages (antialias).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filter {
    Bilinear { antialias: bool },
    Bicubic { antialias: bool },
}

/// Resizes `x [batch, channels, height, width]` to `height x width`; bicubic values may leave the input's range.
pub fn resize(x: &Tensor, height: usize, width: usize, filter: Filter) -> Result<Tensor> {
    apply(Resize { height, width, filter }, [Some(x)])
}

#[derive(Clone, Copy)]
struct Resize {
    height: usize,
    width: usize,
    filter: Filter,
}

impl Resize {
    /// Matrices `down [height, h]` and `across [width, w]`, made anew each time: that takes less than the products, and no memory
    /// between forward and backward.
    fn matrices(&self, h: usize, w: usize, like: (DType, &Device)) -> Result<[Array; 2]> {
        Ok([weights(h, self.height, self.filter, like)?, weights(w, self.width, self.filter, like)?])
    }
}

impl Op<1> for Resize {
    type More = ();

    fn name(&self) -> &'static str {
        "resize"
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        let ((b, c, h, w), Self { height, width, .. }) = (given(x)?.dims4()?, *self);
        if h * w * height * width == 0 {
            bail!(Shape, "resize: expected at least one pixel, got {h} x {w} to {height} x {width}");
        }
        Ok((b, c, height, width).into())
    }

    fn kernels(&self) -> Kernels {
        Kernels::PROCESSOR
    }

    fn keeps(&self, _: Backend, _: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        Keeps::NOTHING
    }

    fn forward(&self, _: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, ())> {
        let x = given(x)?;
        let (_, _, h, w) = x.dims4()?;
        let [down, across] = self.matrices(h, w, (x.dtype(), x.device()))?;
        Ok((on_cpu!(x, both(x, &down, &across))?, ()))
    }

    fn backward(&self, kept: Kept<1, ()>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let (h, w) = (kept.shapes[0][2], kept.shapes[0][3]);
        let [down, across] = self.matrices(h, w, (gradient.dtype(), gradient.device()))?;
        let (down, across) = (down.t()?, across.t()?);
        Ok([Some(on_cpu!(gradient, both(gradient, &down, &across))?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        let x = there(x)?;
        let ((b, c, h, w), Self { height, width, .. }) = (x.dims4()?, *self);
        let [down, across] = self.matrices(h, w, (x.dtype(), x.device()))?.map(Tensor::from);
        let y = x.reshape((b * c * h, w))?.matmul(&across.t()?)?.reshape((b * c, h, width))?;
        down.broadcast_matmul(&y)?.reshape((b, c, height, width))
    }

    fn work(&self, [x]: Inputs<1>, result: &Shape) -> f64 {
        let Some(&[b, c, h, w]) = x.map(Array::dims) else { return 0.0 };
        2.0 * (b * c * h * w * self.width) as f64 + (2 * h * result.elem_count()) as f64
    }

    fn work_back(&self, [x]: Inputs<1>, result: &Shape, _: [bool; 1]) -> f64 {
        let Some(&[b, c, h, w]) = x.map(Array::dims) else { return 0.0 };
        (2 * w * result.elem_count()) as f64 + 2.0 * (b * c * h * w * self.height) as f64
    }
}

/// `down x across^T` of every plane of `x [batch, channels, h, w]`: `[batch, channels, h', w']`.
fn both<T: Real>(x: &Array, down: &Array, across: &Array) -> Result<Array> {
    let (b, c, h, w) = x.dims4()?;
    let ((height, _), (width, _)) = (down.dims2()?, across.dims2()?);
    let (planes, left, right) = (data::<T>(x)?, strided::<T>(down)?, strided::<T>(across)?);
    let (left, right) = (Matrix::of(down, &left), Matrix::of(across, &right).transposed());
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
    Ok(Array::from_vec(out, (b, c, height, width), x.device())?)
}

/// Interpolation matrix `[to, from]`, rows summing to one (align_corners false).
fn weights(from: usize, to: usize, filter: Filter, like: (DType, &Device)) -> Result<Array> {
    memory::room(memory::bytes(&[to, from], size_of::<f64>()), || format!("resize of {from} to {to} pixels"))?;
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
    Ok(Array::from_vec(matrix, (to, from), &Device::Cpu)?.to_dtype(like.0)?.to_device(like.1)?)
}

fn antialiased(row: &mut [f64], scale: f64, i: usize, radius: f64, kernel: impl Fn(f64) -> f64) {
    let (stretch, centre) = (scale.max(1.0), scale * (i as f64 + 0.5));
    let support = radius * stretch;
    let first = ((centre - support + 0.5) as i64).max(0) as usize;
    let last = ((centre + support + 0.5) as usize).min(row.len());
    for (j, w) in row.iter_mut().enumerate().take(last).skip(first) {
        *w = kernel((j as f64 - centre + 0.5) / stretch);
    }
    let row = &mut row[first..last];
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
const FILTERS: [Filter; 4] = [
    Filter::Bilinear { antialias: true },
    Filter::Bilinear { antialias: false },
    Filter::Bicubic { antialias: true },
    Filter::Bicubic { antialias: false },
];

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    let case = |filter| {
        let resized = move |i: &[Tensor]| resize(&i[0], 3, 7, filter);
        super::cases::case(format!("resize, {filter:?}"), &[&[2, 3, 5, 4]], resized).without_card()
    };
    FILTERS.into_iter().map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::vjp;
    use std::collections::HashMap;

    /// Case `resize`: torch's `interpolate`, up and down, with the gradient of a random cotangent.
    #[test]
    fn golden_values_and_gradients() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/resize");
        let golden = candle_core::safetensors::load(format!("{folder}/expected.safetensors"), &Device::Cpu).unwrap();
        let golden: HashMap<String, Tensor> = golden.into_iter().map(|(name, x)| (name, x.into())).collect();
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

    #[test]
    fn ones_stay_ones() {
        let ones = Tensor::ones((1, 1, 9, 8), DType::F64, &Device::Cpu).unwrap();
        for filter in FILTERS {
            let y = resize(&ones, 4, 11, filter).unwrap();
            let worst = (y - 1.0).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(worst < 1e-12, "{filter:?}: {worst:e}");
        }
        let message = resize(&ones, 0, 3, FILTERS[0]).unwrap_err().message;
        assert_eq!(message, "resize: expected at least one pixel, got 9 x 8 to 0 x 3");
    }
}
