//! Ops whose kernels are candle's own operations: what they give, what the backward reads, and the backward.

use super::call::{Backend, Inputs, Keeps, Kept, Kernels, Op, apply};
use crate::{Array, DType, Tensor, raw};
use amscript_base::error::Result;
use candle_core::{Result as Candle, Shape};

/// An op as a value.
pub(crate) struct Elementary<const N: usize, F, B> {
    pub name: &'static str,
    pub shape: Shape,
    pub dtype: DType,
    pub keeps: Keeps<N>,
    pub kernels: Kernels,
    pub forward: F,
    /// From what was kept and the gradient of the result.
    pub backward: B,
}

impl<const N: usize, F, B> Op<N> for Elementary<N, F, B>
where
    F: Fn([&Array; N]) -> Candle<Array> + Send + Sync + 'static,
    B: Fn(Kept<N, ()>, &Array, [bool; N]) -> Candle<[Option<Array>; N]> + Send + Sync + 'static,
{
    type More = ();

    fn name(&self) -> &'static str {
        self.name
    }

    fn shape(&self, _: Inputs<N>) -> Result<Shape> {
        Ok(self.shape.clone())
    }

    fn dtype(&self, _: DType) -> DType {
        self.dtype
    }

    fn kernels(&self) -> Kernels {
        self.kernels
    }

    fn keeps(&self, _: Backend, _: Inputs<N>, _: [bool; N]) -> Keeps<N> {
        self.keeps
    }

    fn forward(&self, _: Backend, inputs: Inputs<N>, _: [bool; N]) -> Result<(Array, ())> {
        let mut all = inputs.into_iter().flatten();
        let Some(first) = all.next() else { amscript_base::bail!(Internal, "{}: there must be an input", self.name) };
        let mut given = [first; N];
        given[1..].iter_mut().zip(all).for_each(|(place, x)| *place = x);
        Ok(((self.forward)(given)?, ()))
    }

    fn backward(&self, kept: Kept<N, ()>, gradient: &Array, wanted: [bool; N]) -> Result<[Option<Array>; N]> {
        Ok((self.backward)(kept, gradient, wanted)?)
    }

    fn work(&self, _: Inputs<N>, result: &Shape) -> f64 {
        if self.kernels.view { 0.0 } else { result.elem_count() as f64 }
    }
}

/// A function of one tensor, whose backward reads `keeps`.
pub(crate) fn unary(
    name: &'static str,
    x: &Tensor,
    (shape, dtype): (Shape, DType),
    keeps: Keeps<1>,
    forward: impl Fn(&Array) -> Candle<Array> + Send + Sync + 'static,
    backward: impl Fn(Kept<1, ()>, &Array) -> Candle<Array> + Send + Sync + 'static,
) -> Result<Tensor> {
    let forward = move |[x]: [&Array; 1]| forward(x);
    let backward = move |kept: Kept<1, ()>, g: &Array, _: [bool; 1]| Ok([Some(backward(kept, g)?)]);
    apply(Elementary { name, shape, dtype, keeps, kernels: Kernels::CANDLE, forward, backward }, [Some(x)])
}

/// A view of a tensor.
pub(crate) fn view(
    name: &'static str,
    x: &Tensor,
    shape: Shape,
    forward: impl Fn(&Array) -> Candle<Array> + Send + Sync + 'static,
    backward: impl Fn(&Array) -> Candle<Array> + Send + Sync + 'static,
) -> Result<Tensor> {
    let forward = move |[x]: [&Array; 1]| forward(x);
    let backward = move |_: Kept<1, ()>, g: &Array, _: [bool; 1]| Ok([Some(backward(g)?)]);
    let (dtype, keeps) = (x.dtype(), Keeps::NOTHING);
    apply(Elementary { name, shape, dtype, keeps, kernels: Kernels::VIEW, forward, backward }, [Some(x)])
}

/// A function of two tensors, whose backward reads `keeps` and gives a gradient for each that is wanted.
pub(crate) fn binary(
    name: &'static str,
    [a, b]: [&Tensor; 2],
    shape: Shape,
    keeps: [bool; 2],
    forward: impl Fn(&Array, &Array) -> Candle<Array> + Send + Sync + 'static,
    backward: impl Fn(Kept<2, ()>, &Array, [bool; 2]) -> Candle<[Option<Array>; 2]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (dtype, keeps) = (a.dtype(), Keeps::inputs(keeps));
    let forward = move |[a, b]: [&Array; 2]| forward(a, b);
    apply(Elementary { name, shape, dtype, keeps, kernels: Kernels::CANDLE, forward, backward }, [Some(a), Some(b)])
}

/// What was kept, where the backward reads it.
pub(crate) fn read(x: Option<&Array>) -> Candle<&Array> {
    x.ok_or_else(|| candle_core::Error::Msg("op: what the backward reads must be kept".into()))
}

/// The sum over what was repeated to make `dims` into the shape of `x`.
pub(crate) fn sum_to(x: &Array, dims: &[usize]) -> Candle<Array> {
    if x.dims() == dims {
        return Ok(x.clone());
    }
    let missing = x.rank() - dims.len();
    let repeated = (0..x.rank()).filter(|&dim| dim < missing || dims[dim - missing] != x.dims()[dim]);
    let mut sum = if raw::is_half(x.dtype()) { x.to_dtype(DType::F32)? } else { x.clone() };
    for dim in repeated {
        sum = raw::sum(&sum, Some(&[dim]), 1.0)?;
    }
    sum.to_dtype(x.dtype())?.reshape(dims)
}
