//! Arithmetic of numbers without a graph that candle does with one thread or with more copies.

use super::kernel::{Real, data, fresh, grain, on_cpu};
use super::value::room;
use super::{Array, DType, Device, cuda};
use amscript_base::error::Result;
use candle_core::{CpuStorage, InplaceOp2, Layout, WithDType};
use rayon::prelude::*;

pub fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

fn has_kernel(x: &Array) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// The same numbers one behind the other in memory, where there is room for a copy.
pub fn packed(x: &Array) -> Result<Array> {
    if x.is_contiguous() {
        return Ok(x.clone());
    }
    room("a copy", x.dims(), x.dtype(), x.device())?;
    Ok(x.contiguous()?)
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
    let (p, q) = (packed(x)?, packed(y)?);
    let (p, q, a, b) = (data::<T>(&p)?, data::<T>(&q)?, T::of(a), T::of(b));
    let out = fresh(p.len(), |out| {
        let chunks = out.par_chunks_mut(4096).with_min_len(grain(4096)).zip(p.par_chunks(4096).zip(q.par_chunks(4096)));
        chunks.for_each(|(o, (x, y))| o.iter_mut().zip(x.iter().zip(y)).for_each(|(o, (x, y))| *o = a * *x + b * *y));
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

/// The same numbers on another device. None of them take no room on a card, which gives none for nothing.
pub fn moved(x: &Array, device: &Device) -> Result<Array> {
    match x.elem_count() {
        0 => Ok(Array::zeros(1, x.dtype(), device)?.narrow(0, 0, 0)?.reshape(x.shape())?),
        _ => Ok(x.to_device(device)?),
    }
}

/// `a x + b`. candle rounds both numbers to the type of `x`, which costs half precision a strength of 0.3.
pub fn affine(x: &Array, a: f64, b: f64) -> Result<Array> {
    match x.dtype() {
        _ if cuda::takes(x) => cuda::activation::affine(x, a, b),
        dtype if is_half(dtype) => Ok(x.to_dtype(DType::F32)?.affine(a, b)?.to_dtype(dtype)?),
        _ => Ok(x.affine(a, b)?),
    }
}

/// `factor` times the sum over `dims`, which stay as 1, or over all numbers; half precision is added up in f32.
pub fn sum(x: &Array, dims: Option<&[usize]>, factor: f64) -> Result<Array> {
    let wide = if is_half(x.dtype()) { x.to_dtype(DType::F32)? } else { x.clone() };
    let sum = dims.map_or_else(|| sum_all(&wide), |dims| sum_over(&wide, dims))?;
    let sum = if factor == 1.0 { sum } else { affine(&sum, factor, 0.0)? };
    Ok(sum.to_dtype(x.dtype())?)
}

/// Terms from which on f32 is added up in f64 on the processor: candle adds one after the other to a number that loses them.
const LONG: usize = 1 << 12;

/// The sum of very many numbers, the same on any number of threads.
fn long_sum(numbers: &[f32]) -> f32 {
    let part = |part: &[f32]| {
        let (eights, rest) = part.as_chunks::<8>();
        let mut sums = [0.0; 8];
        eights.iter().for_each(|eight| sums.iter_mut().zip(eight).for_each(|(sum, x)| *sum += f64::from(*x)));
        sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x)).sum::<f64>()
    };
    let parts: Vec<f64> = numbers.par_chunks(1 << 16).map(part).collect();
    parts.iter().sum::<f64>() as f32
}

fn is_long(x: &Array, terms: usize) -> bool {
    terms > LONG && x.device().is_cpu() && x.dtype() == DType::F32
}

/// The sum over `dims`, which stay as 1.
fn sum_over(x: &Array, dims: &[usize]) -> Result<Array> {
    let terms = dims.iter().map(|dim| x.dims()[*dim]).product();
    if !is_long(x, terms) {
        return Ok(x.sum_keepdim(dims)?);
    }
    let (mut order, mut shape): (Vec<usize>, _) =
        ((0..x.rank()).filter(|dim| !dims.contains(dim)).collect(), x.dims().to_vec());
    order.extend(dims);
    dims.iter().for_each(|dim| shape[*dim] = 1);
    let rows = packed(&x.permute(order)?)?;
    let numbers = data::<f32>(&rows)?;
    let sums: Vec<f32> = numbers.par_chunks(terms).map(long_sum).collect();
    Ok(Array::from_vec(sums, shape, x.device())?)
}

/// candle gives the whole of it to one block of a card; here there are as many as rows.
fn sum_all(x: &Array) -> Result<Array> {
    const ROW: usize = 1 << 12;
    let n = x.elem_count();
    if is_long(x, n) {
        return Ok(Array::new(long_sum(&data::<f32>(&packed(x)?)?), x.device())?);
    }
    if !x.device().is_cuda() || n < 2 * ROW {
        return Ok(x.sum_all()?);
    }
    let (x, whole) = (x.flatten_all()?, n - n % ROW);
    let rows = sum_all(&x.narrow(0, 0, whole)?.reshape((n / ROW, ROW))?.sum(1)?)?;
    Ok(if whole == n { rows } else { (rows + x.narrow(0, whole, n - whole)?.sum_all()?)? })
}

/// The largest, or the smallest, numbers over `dim` by candle's `f`, which gives all of a vector to one block of a card; here there are as many as rows.
pub fn extremes(
    x: &Array,
    dim: usize,
    f: fn(&Array, usize) -> candle_core::Result<Array>,
) -> candle_core::Result<Array> {
    const ROW: usize = 1 << 12;
    let n = x.elem_count();
    if !x.device().is_cuda() || x.rank() != 1 || n < 2 * ROW {
        return f(x, dim);
    }
    let whole = n - n % ROW;
    let rows = f(&x.narrow(0, 0, whole)?.reshape((n / ROW, ROW))?, 1)?.flatten_all()?;
    let all = if whole == n { rows } else { Array::cat(&[rows, x.narrow(0, whole, n - whole)?], 0)? };
    extremes(&all, 0, f)
}

/// `a += b` on the processor, `a` contiguous.
pub fn add_to(a: &Array, b: &Array) -> Result<()> {
    Ok(a.inplace_op2(&packed(b)?, &Add)?)
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
        false if cuda::parts::takes(x, dim) => cuda::parts::cut(x, dim, start, len),
        false => Ok(x.narrow(dim, start, len)?.force_contiguous()?),
    }
}

fn cut_cpu<T: Real>(x: &Array, dim: usize, start: usize, len: usize) -> Result<Array> {
    let mut dims = x.dims().to_vec();
    let inner: usize = dims[dim + 1..].iter().product();
    let (row, part) = (dims[dim] * inner, len * inner);
    dims[dim] = len;
    let x = packed(x)?;
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
        _ if parts.iter().all(|x| cuda::parts::takes(x, dim) && x.dtype() == parts[0].dtype()) => {
            cuda::parts::joined(parts, dim)
        }
        _ => Ok(Array::cat(parts, dim)?.contiguous()?),
    }
}

fn joined_cpu<T: Real>(parts: &[&Array], dim: usize) -> Result<Array> {
    let mut dims = parts[0].dims().to_vec();
    let inner: usize = dims[dim + 1..].iter().product();
    dims[dim] = parts.iter().map(|x| x.dims()[dim]).sum();
    let parts = parts.iter().map(|x| packed(x)).collect::<Result<Vec<_>>>()?;
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
