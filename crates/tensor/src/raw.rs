//! Arithmetic of numbers without a graph that candle does with one thread or with more copies.

use super::kernel::{Real, data, fresh, grain, on_cpu};
use super::{Array, DType, cuda};
use amscript_base::error::Result;
use candle_core::{CpuStorage, InplaceOp2, Layout, WithDType};
use rayon::prelude::*;

fn has_kernel(x: &Array) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// `a x + b y` of one shape.
pub fn combine(x: &Array, a: f64, y: &Array, b: f64) -> Result<Array> {
    if x.dims() != y.dims() || x.dtype() != y.dtype() {
        return Ok((x + y)?); // its error
    }
    if cuda::takes(x) {
        return cuda::activation::combine(x, a, y, b);
    }
    match has_kernel(x) {
        true => on_cpu!(x, combine_cpu(x, a, y, b)),
        false if a == 1.0 => Ok(if b == 1.0 {
            x + y
        } else if b == -1.0 {
            x - y
        } else {
            x + (y * b)?
        }?),
        false => Ok(((x * a)? + (y * b)?)?),
    }
}

fn combine_cpu<T: Real>(x: &Array, a: f64, y: &Array, b: f64) -> Result<Array> {
    let (p, q) = (x.contiguous()?, y.contiguous()?);
    let (p, q, a, b) = (data::<T>(&p)?, data::<T>(&q)?, T::of(a), T::of(b));
    let out = fresh(p.len(), |out| {
        let chunks = out.par_chunks_mut(4096).with_min_len(grain(4096)).zip(p.par_chunks(4096).zip(q.par_chunks(4096)));
        chunks.for_each(|(o, (x, y))| o.iter_mut().zip(x.iter().zip(y)).for_each(|(o, (x, y))| *o = a * *x + b * *y));
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

/// `a += b` on the processor, `a` contiguous.
pub fn add_to(a: &Array, b: &Array) -> Result<()> {
    Ok(a.inplace_op2(&b.contiguous()?, &Add)?)
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> candle_core::Result<()> {
        fn add<T: Real>(a: &mut [T], la: &Layout, b: &[T], lb: &Layout) -> candle_core::Result<()> {
            let (Some((a0, a1)), Some((b0, b1))) = (la.contiguous_offsets(), lb.contiguous_offsets()) else {
                candle_core::bail!("add: expected contiguous tensors");
            };
            let chunks = a[a0..a1].par_chunks_mut(4096).with_min_len(grain(4096)).zip(b[b0..b1].par_chunks(4096));
            chunks.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += *b));
            Ok(())
        }
        match a {
            CpuStorage::F32(a) => add(a, la, f32::cpu_storage_as_slice(b)?, lb),
            CpuStorage::F64(a) => add(a, la, f64::cpu_storage_as_slice(b)?, lb),
            _ => candle_core::bail!("add: expected f32 or f64"),
        }
    }
}

/// `len` entries of dimension `dim` from `start` on, in storage of their own.
pub fn cut(x: &Array, dim: usize, start: usize, len: usize) -> Result<Array> {
    match has_kernel(x) {
        true => on_cpu!(x, cut_cpu(x, dim, start, len)),
        false => Ok(x.narrow(dim, start, len)?.force_contiguous()?),
    }
}

fn cut_cpu<T: Real>(x: &Array, dim: usize, start: usize, len: usize) -> Result<Array> {
    let mut dims = x.dims().to_vec();
    let inner: usize = dims[dim + 1..].iter().product();
    let (row, part) = (dims[dim] * inner, len * inner);
    dims[dim] = len;
    let x = x.contiguous()?;
    let numbers = data::<T>(&x)?;
    let out = fresh(dims.iter().product(), |out: &mut [T]| {
        let rows = out.par_chunks_mut(part.max(1)).with_min_len(grain(part)).zip(numbers.par_chunks(row.max(1)));
        rows.for_each(|(out, row)| out.copy_from_slice(&row[start * inner..][..part]));
    });
    Ok(Array::from_vec(out, dims, x.device())?)
}

/// Arrays that are alike but for dimension `dim`, one behind the other along it.
pub fn joined(parts: &[&Array], dim: usize) -> Result<Array> {
    match (parts, has_kernel(parts[0])) {
        (_, true) => on_cpu!(parts[0], joined_cpu(parts, dim)),
        ([one], _) => Ok(one.force_contiguous()?),
        _ => Ok(Array::cat(parts, dim)?.contiguous()?),
    }
}

fn joined_cpu<T: Real>(parts: &[&Array], dim: usize) -> Result<Array> {
    let mut dims = parts[0].dims().to_vec();
    let inner: usize = dims[dim + 1..].iter().product();
    dims[dim] = parts.iter().map(|x| x.dims()[dim]).sum();
    let parts = parts.iter().map(|x| x.contiguous()).collect::<candle_core::Result<Vec<_>>>()?;
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
    Ok(Array::from_vec(out, dims, parts[0].device())?)
}
