//! Softmax.

use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use super::cast::computed_bytes;
use crate::kernel::{Real, data, grain, largest, on_cpu, sum};
use crate::{Array, Tensor, cuda};
use amscript_base::error::Result;
use candle_core::{D, Shape};
use rayon::prelude::*;

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    apply(Softmax, [Some(x)])
}

struct Softmax;

impl Op<1> for Softmax {
    type More = ();

    fn name(&self) -> &'static str {
        "softmax"
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        let x = given(x)?;
        x.dim(D::Minus1)?;
        Ok(x.shape().clone())
    }

    fn keeps(&self, _: Backend, _: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        Keeps::output()
    }

    fn forward(&self, on: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, ())> {
        let x = given(x)?;
        let y = match on {
            Backend::Card => cuda::norm::softmax(x),
            _ => on_cpu!(x, rows(x)),
        };
        Ok((y?, ()))
    }

    fn backward(&self, kept: Kept<1, ()>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let y = given(kept.output)?;
        if kept.on == Backend::Card {
            return Ok([Some(cuda::norm::softmax_back(gradient, y)?)]);
        }
        let inner = (gradient * y)?.sum_keepdim(D::Minus1)?;
        Ok([Some((gradient.broadcast_sub(&inner)? * y)?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        let x = there(x)?;
        let e = x.broadcast_sub(&x.detach()?.max_keepdim(D::Minus1)?)?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
    }

    fn work(&self, _: Inputs<1>, result: &Shape) -> f64 {
        4.0 * result.elem_count() as f64
    }

    fn scratch(&self, on: Backend, [x]: Inputs<1>) -> usize {
        let bytes = x.map_or(0, |x| x.elem_count() * computed_bytes(x.dtype()));
        if on == Backend::Card { 0 } else { bytes }
    }
}

fn rows<T: Real>(x: &Array) -> Result<Array> {
    let width = x.dim(D::Minus1)?.max(1);
    let mut out = data::<T>(x)?.to_vec();
    out.par_chunks_mut(width).with_min_len(grain(width)).for_each(|row| {
        normalise(row);
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

/// Softmax of a row in place; returns the log of the sum of exponentials.
pub(super) fn normalise<T: Real>(row: &mut [T]) -> T {
    let top = largest(row);
    row.iter_mut().for_each(|v| *v = (*v - top).exponential());
    let sum = sum(row, |v| v);
    let share = T::one() / sum;
    row.iter_mut().for_each(|v| *v *= share);
    top + sum.ln()
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    let case = |width| super::cases::case(format!("softmax of {width}"), &[&[3, width]], |i| softmax(&i[0]));
    let wide = [6, 32, 2080].map(|width| case(width).scaled(0, 2.0));
    wide.into_iter().chain([case(7)]).collect()
}
