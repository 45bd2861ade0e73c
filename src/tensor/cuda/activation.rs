//! Elementwise functions, the gated unit, sums.

use super::{Arg, File, Grid, Unit, aligned, fresh, launch, like, pack};
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{D, Tensor};

/// The functions that `points.cu` knows, in its order.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Sigmoid,
    Relu,
    Silu,
    Softplus,
    QuickGelu,
    GeluErf,
    GeluTanh,
}

/// `f(x)`.
pub fn pointwise(kind: Kind, x: &Tensor) -> Result<Tensor> {
    let input = aligned(x, x.dtype())?;
    let out = like(&input)?;
    points("value", &[&input, &out], &[Arg::Int(kind as usize)])?;
    custom_vjp(&[x], out, move |grad, _| {
        let (grad, gx) = (aligned(grad, input.dtype())?, like(&input)?);
        points("slope", &[&grad, &input, &gx], &[Arg::Int(kind as usize)])?;
        Ok(vec![Some(gx)])
    })
}

/// A kernel over tensors of one shape, the last of which it writes.
fn points(kernel: &'static str, tensors: &[&Tensor], more: &[Arg]) -> Result<()> {
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
pub fn combine(x: &Tensor, a: f64, y: &Tensor, b: f64) -> Result<Tensor> {
    if x.dims() != y.dims() || x.dtype() != y.dtype() {
        return Ok((x.detach() + y.detach())?); // its error
    }
    let (x, y) = (aligned(x, x.dtype())?, aligned(y, y.dtype())?);
    let out = like(&x)?;
    points("combine", &[&x, &y, &out], &[Arg::Float(a), Arg::Float(b)])?;
    Ok(out)
}

/// `silu(first half) * second half` over the last dimension.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let input = aligned(x, x.dtype())?;
    let half = x.dim(D::Minus1)? / 2;
    let mut dims = x.dims().to_vec();
    dims[x.rank() - 1] = half;
    let out = fresh(dims, x.dtype(), x.device())?;
    let run = move |kernel: &'static str, tensors: &[&Tensor]| {
        let x = tensors[0];
        let pack = pack(half, tensors);
        let n = tensors.iter().map(|x| x.elem_count()).min().unwrap_or(0) / pack;
        let args: Vec<Arg> = tensors.iter().map(|x| Arg::Tensor(x)).chain([Arg::Long(n), Arg::Int(half)]).collect();
        launch(x.device(), &Unit::new(File::Points, x, pack), kernel, Grid::each(n), &args)
    };
    run("swiglu", &[&input, &out])?;
    custom_vjp(&[x], out, move |grad, _| {
        let (grad, gx) = (aligned(grad, input.dtype())?, like(&input)?);
        run("swiglu_back", &[&grad, &input, &gx])?;
        Ok(vec![Some(gx)])
    })
}
