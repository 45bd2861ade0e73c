//! Sums, changes of scale and of layout, as nodes of ours: one operation of candle's in a graph leaves the whole of it to candle's walk.

use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, data, fresh, grain, on_cpu};
use crate::tensor::tape::view;
use candle_core::{D, Shape, Tensor};
use rayon::prelude::*;

/// `x` in another shape; a view, where `x` is contiguous and no variable.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let (own, shape) = (x.shape().clone(), shape.into());
    let back = move |grad: &Tensor| Ok(grad.reshape(&own)?);
    match x.is_variable() {
        // A variable has no entry for its views to live with.
        true => custom_vjp(&[x], x.detach().copy()?.reshape(shape)?, move |grad, _| Ok(vec![Some(back(grad)?)])),
        false => Ok(view(x, x.contiguous()?.reshape(shape)?, back)),
    }
}

/// `x` with its dimensions in another order, contiguous.
pub fn permute(x: &Tensor, order: &[usize]) -> Result<Tensor> {
    let y = x.detach().permute(order)?.force_contiguous()?;
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, from)| back[*from] = i);
    custom_vjp(&[x], y, move |grad, _| Ok(vec![Some(grad.permute(back.as_slice())?.contiguous()?)]))
}

/// `len` entries of dimension `dim` from `start` on, contiguous.
pub fn narrow(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    let (y, after) = (cut(&x.detach(), dim, start, len)?, x.dim(dim)? - start - len);
    custom_vjp(&[x], y, move |grad, _| Ok(vec![Some(grad.pad_with_zeros(dim, start, after)?)]))
}

/// [`narrow`] without a graph, in storage of its own.
fn cut(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    on_cpu!(x, cut_cpu(x, dim, start, len), Ok(x.narrow(dim, start, len)?.force_contiguous()?))
}

fn cut_cpu<T: Real>(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    let mut dims = x.narrow(dim, start, len)?.dims().to_vec(); // its error
    let inner: usize = dims[dim + 1..].iter().product();
    let (row, part) = (x.dim(dim)? * inner, len * inner);
    dims[dim] = len;
    let x = x.contiguous()?;
    let numbers = data::<T>(&x)?;
    let out = fresh(dims.iter().product(), |out: &mut [T]| {
        let rows = out.par_chunks_mut(part.max(1)).with_min_len(grain(part)).zip(numbers.par_chunks(row.max(1)));
        rows.for_each(|(out, row)| out.copy_from_slice(&row[start * inner..][..part]));
    });
    Ok(Tensor::from_vec(out, dims, x.device())?)
}

fn joined_cpu<T: Real>(parts: &[Tensor], dim: usize) -> Result<Tensor> {
    let mut dims = parts[0].dims().to_vec();
    let rest = |x: &Tensor| (x.rank(), x.dims()[..dim].to_vec(), x.dims()[dim + 1..].to_vec(), x.dtype());
    if parts.iter().any(|x| x.rank() <= dim || rest(x) != rest(&parts[0])) {
        return Ok(Tensor::cat(parts, dim)?); // its error
    }
    let inner: usize = dims[dim + 1..].iter().product();
    dims[dim] = parts.iter().map(|x| x.dims()[dim]).sum();
    let parts = parts.iter().map(Tensor::contiguous).collect::<candle_core::Result<Vec<_>>>()?;
    let numbers = parts.iter().map(|x| Ok((data::<T>(x)?, x.dims()[dim] * inner))).collect::<Result<Vec<_>>>()?;
    let row = dims[dim] * inner;
    let out = fresh(dims.iter().product(), |out: &mut [T]| {
        out.par_chunks_mut(row.max(1)).with_min_len(grain(row)).enumerate().for_each(|(i, mut out)| {
            for (numbers, part) in &numbers {
                let (own, rest) = std::mem::take(&mut out).split_at_mut(*part);
                own.copy_from_slice(&numbers[i * part..(i + 1) * part]);
                out = rest;
            }
        });
    });
    Ok(Tensor::from_vec(out, dims, parts[0].device())?)
}

/// `[.., n d]` as `n` of `[.., d]`.
pub fn chunk(x: &Tensor, n: usize) -> Result<Vec<Tensor>> {
    let (last, d) = (x.rank() - 1, x.dim(D::Minus1)? / n);
    (0..n).map(|i| narrow(x, last, i * d, d)).collect()
}

/// Tensors one behind the other along `dim`.
pub fn cat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let plain: Vec<Tensor> = parts.iter().map(|x| x.detach()).collect();
    let sizes = parts.iter().map(|x| x.dim(dim)).collect::<candle_core::Result<Vec<_>>>()?;
    let y = on_cpu!(
        plain[0],
        joined_cpu(&plain, dim),
        match plain.as_slice() {
            [one] => Ok(one.copy()?),
            several => Ok(Tensor::cat(several, dim)?.contiguous()?),
        }
    )?;
    custom_vjp(parts, y, move |grad, wanted| {
        let mut start = 0;
        let part = |(size, wanted): (&usize, &bool)| {
            start += size;
            Ok(if *wanted { Some(cut(grad, dim, start - size, *size)?) } else { None })
        };
        sizes.iter().zip(wanted).map(part).collect()
    })
}

/// `x + y` of one shape.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    combine((x, 1.0), (y, 1.0))
}

/// `a x + b y` of one shape.
pub fn combine((x, a): (&Tensor, f64), (y, b): (&Tensor, f64)) -> Result<Tensor> {
    let sum = match cuda::takes(x) {
        true => cuda::activation::combine(x, a, y, b),
        false => on_cpu!(x, combine_cpu(x, a, y, b), Ok(((x.detach() * a)? + (y.detach() * b)?)?)),
    }?;
    custom_vjp(&[x, y], sum, move |grad, wanted| {
        let scaled = |factor: f64| if factor == 1.0 { Ok(grad.clone()) } else { grad * factor };
        let part = |(wanted, factor): (&bool, f64)| Ok(if *wanted { Some(scaled(factor)?) } else { None });
        wanted.iter().zip([a, b]).map(part).collect()
    })
}

fn combine_cpu<T: Real>(x: &Tensor, a: f64, y: &Tensor, b: f64) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return Ok((x.detach() + y.detach())?); // its error
    }
    let (p, q) = (x.detach().contiguous()?, y.detach().contiguous()?);
    let (p, q, a, b) = (data::<T>(&p)?, data::<T>(&q)?, T::of(a), T::of(b));
    let out = fresh(p.len(), |out| {
        let chunks = out.par_chunks_mut(4096).with_min_len(grain(4096)).zip(p.par_chunks(4096).zip(q.par_chunks(4096)));
        chunks.for_each(|(o, (x, y))| o.iter_mut().zip(x.iter().zip(y)).for_each(|(o, (x, y))| *o = a * *x + b * *y));
    });
    Ok(Tensor::from_vec(out, x.dims(), x.device())?)
}

/// `x + y`, with `y` repeated where its dimensions are 1 or missing.
pub fn broadcast_add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let sum = x.detach().broadcast_add(&y.detach())?;
    let (xs, ys) = (x.dims().to_vec(), y.dims().to_vec());
    custom_vjp(&[x, y], sum, move |grad, wanted| {
        let back = |dims: &[usize], wanted: bool| wanted.then(|| sum_to(grad, dims)).transpose();
        Ok(vec![back(&xs, wanted[0])?, back(&ys, wanted[1])?])
    })
}

/// `x * y`, with `y` a constant, repeated as in [`broadcast_add`].
pub fn broadcast_scale(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let y = y.detach();
    let xs = x.dims().to_vec();
    custom_vjp(&[x], x.detach().broadcast_mul(&y)?, move |grad, _| {
        Ok(vec![Some(sum_to(&grad.broadcast_mul(&y)?, &xs)?)])
    })
}

/// The sum over what was repeated to make `dims` into the shape of `x`.
fn sum_to(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    if x.dims() == dims {
        return Ok(x.clone());
    }
    let missing = x.rank() - dims.len();
    let mut sum = x.clone();
    for dim in 0..x.rank() {
        if dim < missing || dims[dim - missing] != x.dim(dim)? {
            sum = sum.sum_keepdim(dim)?;
        }
    }
    Ok(sum.reshape(dims)?)
}

/// The sum of all numbers.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    let shape = x.shape().clone();
    custom_vjp(&[x], x.detach().sum_all()?, move |grad, _| Ok(vec![Some(grad.broadcast_as(&shape)?.contiguous()?)]))
}

/// `factor x + offset`.
pub fn affine(x: &Tensor, factor: f64, offset: f64) -> Result<Tensor> {
    custom_vjp(&[x], x.detach().affine(factor, offset)?, move |grad, _| Ok(vec![Some(grad.affine(factor, 0.0)?)]))
}
