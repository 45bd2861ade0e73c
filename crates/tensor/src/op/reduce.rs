//! Sums, means and extremes over dimensions.

use super::call::{Keeps, Kept};
use super::elementary::{read, unary};
use crate::{Array, DType, Tensor, raw};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::shape::{Dim, Dims};
use candle_core::{Result as Candle, Shape};

/// The shape with `dims` reduced to 1.
fn kept_shape(x: &Tensor, dims: &[usize]) -> Shape {
    let mut shape = x.dims().to_vec();
    dims.iter().for_each(|dim| shape[*dim] = 1);
    shape.into()
}

impl Tensor {
    /// `factor` times the sum over `dims`, which stay as 1, or go where all are meant.
    fn total(&self, dims: Option<Vec<usize>>, factor: f64) -> Result<Tensor> {
        let name = if factor == 1.0 { "sum" } else { "mean" };
        let shape = dims.as_ref().map_or(Shape::from(()), |dims| kept_shape(self, dims));
        let (kind, own) = ((shape, self.dtype()), self.shape().clone());
        let forward = move |x: &Array| Ok(raw::sum(x, dims.as_deref(), factor)?);
        unary(name, self, kind, Keeps::NOTHING, forward, move |_, g| match factor {
            1.0 => g.broadcast_as(&own),
            _ => raw::affine(g, factor, 0.0)?.broadcast_as(&own),
        })
    }

    /// Sum over `dims`, which stay as 1.
    pub fn sum_keepdim<D: Dims>(&self, dims: D) -> Result<Tensor> {
        self.total(Some(dims.to_indexes(self.shape(), "sum")?), 1.0)
    }

    /// Sum over `dims`, which go.
    pub fn sum<D: Dims>(&self, dims: D) -> Result<Tensor> {
        let dims = dims.to_indexes(self.shape(), "sum")?;
        self.sum_keepdim(dims.as_slice())?.without(&dims)
    }

    /// The mean over `dims`, which stay as 1; that of integers is f32.
    pub fn mean_keepdim<D: Dims>(&self, dims: D) -> Result<Tensor> {
        let dims = dims.to_indexes(self.shape(), "mean")?;
        let count: usize = dims.iter().map(|dim| self.dims()[*dim]).product();
        self.floating()?.total(Some(dims), 1.0 / count as f64)
    }

    pub fn mean<D: Dims>(&self, dims: D) -> Result<Tensor> {
        let dims = dims.to_indexes(self.shape(), "mean")?;
        self.mean_keepdim(dims.as_slice())?.without(&dims)
    }

    /// Drops `dims`, which are 1.
    fn without(&self, dims: &[usize]) -> Result<Tensor> {
        let kept: Vec<usize> = (0..self.rank()).filter(|d| !dims.contains(d)).map(|d| self.dims()[d]).collect();
        self.reshape(kept)
    }

    /// The sum of all numbers, a scalar.
    pub fn sum_all(&self) -> Result<Tensor> {
        self.total(None, 1.0)
    }

    pub fn mean_all(&self) -> Result<Tensor> {
        self.floating()?.total(None, 1.0 / self.elem_count() as f64)
    }

    /// The largest number over `dim`, which stays as 1; equal ones share the gradient.
    pub fn max_keepdim<D: Dim>(&self, dim: D) -> Result<Tensor> {
        self.extreme("max", dim.to_index(self.shape(), "max")?, Array::max_keepdim::<usize>)
    }

    /// The smallest number over `dim`, which stays as 1; equal ones share the gradient.
    pub fn min_keepdim<D: Dim>(&self, dim: D) -> Result<Tensor> {
        self.extreme("min", dim.to_index(self.shape(), "min")?, Array::min_keepdim::<usize>)
    }

    pub fn max<D: Dim>(&self, dim: D) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "max")?;
        self.max_keepdim(dim)?.squeeze(dim)
    }

    pub fn min<D: Dim>(&self, dim: D) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "min")?;
        self.min_keepdim(dim)?.squeeze(dim)
    }

    pub fn max_all(&self) -> Result<Tensor> {
        self.flatten_all()?.max(0)
    }

    pub fn min_all(&self) -> Result<Tensor> {
        self.flatten_all()?.min(0)
    }

    /// Errs where a dimension has no place that could be the largest.
    fn has_some(&self, name: &str, dim: usize) -> Result<()> {
        if self.dims()[dim] == 0 {
            bail!(Shape, "{name}: expected at least one value along dimension {dim}, got shape {:?}", self.dims());
        }
        Ok(())
    }

    fn extreme(&self, name: &'static str, dim: usize, f: fn(&Array, usize) -> Candle<Array>) -> Result<Tensor> {
        self.has_some(name, dim)?;
        if self.elem_count() == 0 {
            return Tensor::zeros(kept_shape(self, &[dim]), self.dtype(), self.device()); // candle reduces nothing empty
        }
        let (kind, keeps) = ((kept_shape(self, &[dim]), self.dtype()), Keeps { output: true, ..Keeps::inputs([true]) });
        let share = move |kept: Kept<1, ()>, g: &Array| {
            let tops = read(kept.inputs[0])?.broadcast_eq(read(kept.output)?)?.to_dtype(g.dtype())?;
            tops.broadcast_mul(&(g / raw::sum(&tops, Some(&[dim]), 1.0)?)?)
        };
        unary(name, self, kind, keeps, move |x| crate::raw::extremes(x, dim, f), share)
    }

    /// The index (u32) of the largest number over `dim`; constant.
    pub fn argmax<D: Dim>(&self, dim: D) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "argmax")?;
        self.has_some("argmax", dim)?;
        let shape: Vec<usize> = (0..self.rank()).filter(|d| *d != dim).map(|d| self.dims()[d]).collect();
        if self.elem_count() == 0 {
            return Tensor::zeros(shape, DType::U32, self.device());
        }
        let kind = (shape.into(), DType::U32);
        unary("argmax", &self.constant(), kind, Keeps::NOTHING, move |x| x.argmax(dim), |_, g| Ok(g.clone()))
    }

    /// Sums up to and with each entry of `dim`.
    pub fn cumsum<D: Dim>(&self, dim: D) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "cumsum")?;
        let kind = (self.shape().clone(), self.dtype());
        unary("cumsum", self, kind, Keeps::NOTHING, move |x| running(x, dim, false), move |_, g| running(g, dim, true))
    }

    /// The unbiased variance over `dim`.
    pub fn var<D: Dim>(&self, dim: D) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "var")?;
        let (x, n) = (self.floating()?, self.dims()[dim]);
        if n < 2 {
            bail!(Shape, "var: expected at least two values over dimension {dim}, got shape {:?}", self.dims());
        }
        let squares = x.broadcast_sub(&x.mean_keepdim(dim)?)?.sqr()?;
        squares.sum(dim)? * (1.0 / (n - 1) as f64)
    }
}

/// Sums up to and with each entry of `dim`, or from each on: of 2, of 4, and so on. candle's own multiplies by a square of the dimension's
/// size.
fn running(x: &Array, dim: usize, back: bool) -> Candle<Array> {
    let (n, mut step) = (if x.elem_count() == 0 { 0 } else { x.dim(dim)? }, 1);
    let mut sums = if raw::is_half(x.dtype()) { x.to_dtype(DType::F32)? } else { x.force_contiguous()? };
    while step < n {
        let next = match back {
            false => sums.narrow(dim, 0, n - step)?.pad_with_zeros(dim, step, 0)?,
            true => sums.narrow(dim, step, n - step)?.pad_with_zeros(dim, 0, step)?,
        };
        sums = (sums + next)?;
        step *= 2;
    }
    sums.to_dtype(x.dtype())
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    type One = fn(&Tensor) -> Result<Tensor>;
    let ones: [(&str, One); 12] = [
        ("sum", |x| x.sum(1)),
        ("sum of two", |x| x.sum((0, 2))),
        ("sum_keepdim", |x| x.sum_keepdim(2)),
        ("sum_all", Tensor::sum_all),
        ("mean", |x| x.mean(1)),
        ("mean_all", Tensor::mean_all),
        ("max", |x| x.max(2)),
        ("min", |x| x.min_keepdim(0)),
        ("max_all", Tensor::max_all),
        ("cumsum", |x| x.cumsum(1)),
        ("var", |x| x.var(2)),
        ("norm", |x| crate::array::norm(x, &[0, 2])),
    ];
    ones.map(|(name, f)| case(name, &[&[2, 3, 4]], move |i| f(&i[0])).elementary()).into()
}
