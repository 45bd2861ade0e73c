//! Rotary position embeddings.

use super::{Arg, File, Grid, Unit, launch, like, plain};
use crate::Array;
use amscript_base::error::Result;
use candle_core::DType;

/// Turns pairs of `x [batch, s, heads, d]`, `pairs` of neighbours or of halves, by angles given as `cos, sin [s, d / 2]`, times `turn`
/// of 1 or -1.
pub fn rotate(x: &Array, cos: &Array, sin: &Array, pairs: bool, turn: f64) -> Result<Array> {
    let (_, s, heads, d) = x.dims4()?;
    let (x, cos, sin) = (plain(x, x.dtype())?, plain(cos, DType::F32)?, plain(sin, DType::F32)?);
    let (out, n) = (like(&x)?, x.elem_count() / 2);
    let args = [
        Arg::Tensor(&x),
        Arg::Tensor(&cos),
        Arg::Tensor(&sin),
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
