//! Gated residuals of diffusion transformers.

use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use super::norm::{check_rows, served};
use crate::kernel::{Real, column_sums, data, map_rows, on_cpu};
use crate::{Array, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::Shape;

/// `x + gate y` for `x, y [batch, tokens, d]` and `gate [batch, d]`.
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(GatedAdd, [Some(x), Some(gate), Some(y)])
}

struct GatedAdd;

impl Op<3> for GatedAdd {
    type More = ();

    fn name(&self) -> &'static str {
        "gated_add"
    }

    fn shape(&self, [x, gate, y]: Inputs<3>) -> Result<Shape> {
        let (x, y) = (given(x)?, given(y)?);
        check_rows(x, gate)?;
        if y.dims() != x.dims() {
            bail!(Shape, "gated_add: expected two tensors of one shape, got {:?} and {:?}", x.dims(), y.dims());
        }
        Ok(x.shape().clone())
    }

    fn keeps(&self, _: Backend, _: Inputs<3>, wanted: [bool; 3]) -> Keeps<3> {
        Keeps::inputs([false, wanted[2], wanted[1]])
    }

    fn forward(&self, on: Backend, [x, gate, y]: Inputs<3>, _: [bool; 3]) -> Result<(Array, ())> {
        let (x, gate, y) = (given(x)?, given(gate)?, given(y)?);
        let sum = match on {
            Backend::Card => cuda::norm::gated(Some(x), gate, y),
            _ => on_cpu!(x, gated(x, gate, y)),
        };
        Ok((sum?, ()))
    }

    fn backward(&self, kept: Kept<3, ()>, gradient: &Array, wanted: [bool; 3]) -> Result<[Option<Array>; 3]> {
        let [_, gate, y] = kept.inputs;
        let of_gate = |y: Option<&Array>| match kept.on {
            Backend::Card => cuda::norm::gate_back(gradient, given(y)?),
            _ => on_cpu!(gradient, gate_back(gradient, given(y)?)),
        };
        let of_y = |gate: Option<&Array>| match kept.on {
            Backend::Card => cuda::norm::gated(None, given(gate)?, gradient),
            _ => on_cpu!(gradient, scaled(gradient, given(gate)?)),
        };
        Ok([
            wanted[0].then(|| gradient.clone()),
            wanted[1].then(|| of_gate(y)).transpose()?,
            wanted[2].then(|| of_y(gate)).transpose()?,
        ])
    }

    fn composed(&self, [x, gate, y]: [Option<&Tensor>; 3]) -> Result<Tensor> {
        there(x)? + there(y)?.broadcast_mul(&there(gate)?.unsqueeze(1)?)
    }

    fn work(&self, _: Inputs<3>, result: &Shape) -> f64 {
        2.0 * result.elem_count() as f64
    }
}

fn gated<T: Real>(x: &Array, gate: &Array, y: &Array) -> Result<Array> {
    let (_, tokens, width) = x.dims3()?;
    let (gates, ys) = (data::<T>(gate)?, data::<T>(y)?);
    let out = map_rows(&data::<T>(x)?, width, |i, row, out| {
        let (gate, y) = (&gates[served(i, tokens, width)], &ys[i * width..][..width]);
        out.iter_mut().zip(row.iter().zip(gate.iter().zip(y))).for_each(|(o, (x, (b, y)))| *o = *x + *b * *y);
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

fn gate_back<T: Real>(gradient: &Array, y: &Array) -> Result<Array> {
    let (batch, tokens, width) = gradient.dims3()?;
    let (g, y) = (data::<T>(gradient)?, data::<T>(y)?);
    let sums = column_sums(g.len(), tokens, width, |i| g[i] * y[i]);
    Ok(Array::from_vec(sums, (batch, width), gradient.device())?)
}

fn scaled<T: Real>(gradient: &Array, gate: &Array) -> Result<Array> {
    let (_, tokens, width) = gradient.dims3()?;
    let gates = data::<T>(gate)?;
    let out = map_rows(&data::<T>(gradient)?, width, |i, g, out| {
        let gate = &gates[served(i, tokens, width)];
        out.iter_mut().zip(g.iter().zip(gate)).for_each(|(o, (g, b))| *o = *g * *b);
    });
    Ok(Array::from_vec(out, gradient.dims(), gradient.device())?)
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    let at = |width: usize| {
        let shapes: &[&[usize]] = &[&[2, 5, width], &[2, width], &[2, 5, width]];
        case(format!("gated_add of {width}"), shapes, |i| gated_add(&i[0], &i[1], &i[2]))
    };
    [4, 6, 40].map(at).into()
}
