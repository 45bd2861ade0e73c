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

/// `silu(first half) * second half` over the last dimension, behind `before` where that is.
pub fn swiglu(x: &Array, before: Option<&Array>) -> Result<Array> {
    let (x, mut dims) = (aligned(x, x.dtype())?, x.dims().to_vec());
    let before = before.map(|before| aligned(before, x.dtype())).transpose()?;
    let (half, width) = (x.dim(D::Minus1)? / 2, before.as_ref().map_or(Ok(0), |before| before.dim(D::Minus1))?);
    dims[x.rank() - 1] = width + half;
    let out = fresh(dims, x.dtype(), x.device())?;
    let tensors = [Arg::Maybe(before.as_ref()), Arg::Tensor(&x), Arg::Tensor(&out)];
    halves("swiglu", &x, tensors, out.elem_count(), [width, half])?;
    Ok(out)
}

/// The gradient of its input.
pub fn swiglu_back(gradient: &Array, x: &Array) -> Result<Array> {
    let (gradient, x) = (aligned(gradient, x.dtype())?, aligned(x, x.dtype())?);
    let (out, half) = (like(&x)?, x.dim(D::Minus1)? / 2);
    let tensors = [&gradient, &x, &out].map(Arg::Tensor);
    halves("swiglu_back", &x, tensors, x.elem_count() / 2, [gradient.dim(D::Minus1)? - half, half])?;
    Ok(out)
}

/// Over `n` numbers.
fn halves(kernel: &'static str, x: &Array, tensors: [Arg; 3], n: usize, [width, half]: [usize; 2]) -> Result<()> {
    let pack = pack(half, &[x]).min(pack(width, &[x]));
    let numbers = [Arg::Long(n / pack), Arg::Int(width), Arg::Int(half)];
    let args: Vec<Arg> = tensors.into_iter().chain(numbers).collect();
    launch(x.device(), &Unit::new(File::Points, x, pack), kernel, Grid::each(n / pack), &args)
}
