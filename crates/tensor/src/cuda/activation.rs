//! Elementwise functions, the gated unit, sums.

use super::{Arg, File, Grid, Unit, aligned, fresh, launch, like, pack};
use crate::Array;
use crate::op::Activation;
use amscript_base::error::Result;
use candle_core::D;

/// `f(x)`.
pub fn value(kind: Activation, x: &Array) -> Result<Array> {
    let x = aligned(x, x.dtype())?;
    let out = like(&x)?;
    points("value", &[&x, &out], &[Arg::Int(kind as usize)])?;
    Ok(out)
}

/// `gradient f'(x)`.
pub fn slope(kind: Activation, gradient: &Array, x: &Array) -> Result<Array> {
    let (gradient, x) = (aligned(gradient, x.dtype())?, aligned(x, x.dtype())?);
    let out = like(&x)?;
    points("slope", &[&gradient, &x, &out], &[Arg::Int(kind as usize)])?;
    Ok(out)
}

/// A kernel over tensors of one shape, the last of which it writes.
fn points(kernel: &'static str, tensors: &[&Array], more: &[Arg]) -> Result<()> {
    let out = tensors[tensors.len() - 1];
    let pack = pack(out.elem_count(), tensors);
    let n = out.elem_count() / pack;
    let numbers = more.iter().map(|arg| match arg {
        Arg::Int(i) => Arg::Int(*i),
        Arg::Float(x) => Arg::Float(*x),
        _ => Arg::Int(0),
    });
    let args: Vec<Arg> = tensors.iter().map(|x| Arg::Tensor(x)).chain([Arg::Long(n)]).chain(numbers).collect();
    launch(out.device(), &Unit::new(File::Points, out, pack), kernel, Grid::each(n), &args)
}

/// `a x + b y` of one shape, without a graph.
pub fn combine(x: &Array, a: f64, y: &Array, b: f64) -> Result<Array> {
    if x.dims() != y.dims() || x.dtype() != y.dtype() {
        return Ok((x + y)?); // its error
    }
    let (x, y) = (aligned(x, x.dtype())?, aligned(y, y.dtype())?);
    let out = like(&x)?;
    points("combine", &[&x, &y, &out], &[Arg::Float(a), Arg::Float(b)])?;
    Ok(out)
}

/// `a x + b`, without a graph.
pub fn affine(x: &Array, a: f64, b: f64) -> Result<Array> {
    let x = aligned(x, x.dtype())?;
    let out = like(&x)?;
    points("affine", &[&x, &out], &[Arg::Float(a), Arg::Float(b)])?;
    Ok(out)
}

/// `silu(first half) * second half` over the last dimension.
pub fn swiglu(x: &Array) -> Result<Array> {
    let x = aligned(x, x.dtype())?;
    let mut dims = x.dims().to_vec();
    let half = x.dim(D::Minus1)? / 2;
    dims[x.rank() - 1] = half;
    let out = fresh(dims, x.dtype(), x.device())?;
    halves("swiglu", half, &[&x, &out])?;
    Ok(out)
}

/// The gradient of its input.
pub fn swiglu_back(gradient: &Array, x: &Array) -> Result<Array> {
    let (gradient, x) = (aligned(gradient, x.dtype())?, aligned(x, x.dtype())?);
    let out = like(&x)?;
    halves("swiglu_back", x.dim(D::Minus1)? / 2, &[&gradient, &x, &out])?;
    Ok(out)
}

fn halves(kernel: &'static str, half: usize, tensors: &[&Array]) -> Result<()> {
    let pack = pack(half, tensors);
    let n = tensors.iter().map(|x| x.elem_count()).min().unwrap_or(0) / pack;
    let args: Vec<Arg> = tensors.iter().map(|x| Arg::Tensor(x)).chain([Arg::Long(n), Arg::Int(half)]).collect();
    launch(tensors[0].device(), &Unit::new(File::Points, tensors[0], pack), kernel, Grid::each(n), &args)
}
