//! Rotary position embeddings.

use super::{Arg, File, Grid, Unit, launch, like, plain};
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{DType, Tensor};

/// Rotates pairs of `x [batch, s, heads, d]` by angles given as `cos, sin [s, d / 2]`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    let (cos, sin) = (plain(cos, DType::F32)?, plain(sin, DType::F32)?);
    let out = rotate(x, &cos, &sin, pairs, 1.0)?;
    custom_vjp(&[x], out, move |grad, _| Ok(vec![Some(rotate(grad, &cos, &sin, pairs, -1.0)?)]))
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool, turn: f64) -> Result<Tensor> {
    let (_, s, heads, d) = x.dims4()?;
    let x = plain(x, x.dtype())?;
    let (out, n) = (like(&x)?, x.elem_count() / 2);
    let args = [
        Arg::Tensor(&x),
        Arg::Tensor(cos),
        Arg::Tensor(sin),
        Arg::Tensor(&out),
        Arg::Long(n),
        Arg::Int(s),
        Arg::Int(heads),
        Arg::Int(d),
        Arg::Int(usize::from(pairs)),
        Arg::Float(turn),
    ];
    launch(x.device(), &Unit::new(File::Points, &x, 1), "rotate", Grid::each(n), &args)?;
    Ok(out)
}
