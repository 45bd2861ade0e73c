//! What array programs need beyond candle's own methods: indexing, reductions over several dimensions, comparisons, norms.

use super::op::call::{Keeps, Kept};
use super::op::elementary::{read, unary};
use super::value::room;
use super::{Array, D, DType, Device, Tensor, raw};
use amscript_base::bail;
use amscript_base::error::Result;

/// One position of an index.
#[derive(Clone, Debug, PartialEq)]
pub enum Pick {
    /// One entry; the dimension goes. Negative counts from the end.
    At(i64),
    /// Entries `start..end`; negative ones count from the end, an `end` past the size means to the end.
    Range(i64, i64),
    /// These entries, in this order.
    These(Vec<i64>),
}

/// `x[picks]`, one pick per leading dimension; the others stay whole.
pub fn index(x: &Tensor, picks: &[Pick]) -> Result<Tensor> {
    if picks.len() > x.rank() {
        bail!(Shape, "index: expected at most {} positions for shape {:?}, got {}", x.rank(), x.dims(), picks.len());
    }
    let (mut x, mut dim) = (x.clone(), 0);
    for pick in picks {
        let size = x.dims()[dim];
        match pick {
            Pick::At(i) => {
                let start = position(*i, size, dim)?;
                x = x.narrow(dim, start, 1)?.squeeze(dim)?;
                continue;
            }
            Pick::Range(start, end) => {
                let at =
                    |i: i64| (if i < 0 { i.saturating_add(size as i64) } else { i }).clamp(0, size as i64) as usize;
                let (start, end) = (at(*start), at(*end));
                x = x.narrow(dim, start, end.saturating_sub(start))?;
            }
            Pick::These(list) => {
                let rows =
                    list.iter().map(|&i| position(i, size, dim).map(|i| i as u32)).collect::<Result<Vec<_>>>()?;
                x = x.contiguous()?.index_select(&Tensor::new(rows, x.device())?, dim)?;
            }
        }
        dim += 1;
    }
    Ok(x)
}

fn position(i: i64, size: usize, dim: usize) -> Result<usize> {
    let at = if i < 0 { i + size as i64 } else { i };
    match usize::try_from(at) {
        Ok(at) if at < size => Ok(at),
        _ => bail!(Value, "index: dimension {dim} has {size} entries, got index {i}"),
    }
}

/// A dimension counted from the end when negative.
pub fn dimension(x: &Tensor, dim: i64, function: &str) -> Result<usize> {
    counted(x, x.rank() as i64, dim, function)
}

/// The place of a dimension to be made, counted from the end of the result when negative.
pub fn new_dimension(x: &Tensor, dim: i64, function: &str) -> Result<usize> {
    few(x.rank() + 1, function)?;
    counted(x, x.rank() as i64 + 1, dim, function)
}

fn counted(x: &Tensor, rank: i64, dim: i64, function: &str) -> Result<usize> {
    if (-rank..rank).contains(&dim) {
        return Ok(dim.rem_euclid(rank) as usize);
    }
    bail!(Shape, "{function}: expected a dimension from {} to {} for shape {:?}, got {dim}", -rank, rank - 1, x.dims())
}

/// The number of values of a tensor to be made, where that is not beyond all memory.
pub fn affordable(shape: &[usize], function: &str) -> Result<usize> {
    const MOST: usize = 1 << 32;
    few(shape.len(), function)?;
    match shape.iter().try_fold(1_usize, |count, &n| count.checked_mul(n)) {
        Some(count) if count <= MOST => Ok(count),
        _ => bail!(Limit, "{function}: a tensor may have at most {MOST} numbers, got shape {shape:?}"),
    }
}

/// Dimensions that a tensor may have: what walks through more than anyone means would take all of the stack.
pub const MOST_RANK: usize = 16;

/// Refuses more dimensions than [`MOST_RANK`].
pub fn few(rank: usize, function: &str) -> Result<()> {
    if rank > MOST_RANK {
        bail!(Limit, "{function}: a tensor may have at most {MOST_RANK} dimensions, got {rank}");
    }
    Ok(())
}

/// `shape` with one `-1` filled in so that the number of values stays.
pub fn fill_shape(count: usize, shape: &[i64]) -> Result<Vec<usize>> {
    few(shape.len(), "reshape")?;
    let known: i64 = shape.iter().filter(|&&n| n != -1).fold(1, |product, n| product.saturating_mul(*n));
    let holes = shape.iter().filter(|&&n| n == -1).count();
    let fits = match holes {
        0 => known == count as i64,
        1 => known > 0 && count as i64 % known == 0,
        _ => false,
    };
    if !fits || shape.iter().any(|&n| n < -1) {
        bail!(Shape, "reshape: expected a shape of {count} values with at most one -1, got {shape:?}");
    }
    Ok(shape.iter().map(|&n| if n == -1 { count / known as usize } else { n as usize }).collect())
}

/// Elementwise comparison as 1.0 and 0.0 in the dtype of `a`, broadcast.
pub fn compare(a: &Tensor, b: &Tensor, how: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
    how(a, b)?.to_dtype(a.dtype())
}

/// Same shape, and the same values where they are compared in f64.
pub fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dims() == b.dims() && super::show::values(a)? == super::show::values(b)?)
}

/// The largest absolute difference of two tensors of one shape; NaN where one is.
pub fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        bail!(Shape, "expected tensors of one shape, got {:?} and {:?}", a.dims(), b.dims());
    }
    let pairs = super::show::values(a)?.into_iter().zip(super::show::values(b)?);
    let differences = pairs.map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
    Ok(differences.fold(0.0, |most, d| if most.is_nan() || d <= most { most } else { d }))
}

/// `a` where `mask` is not zero, else `b`; all broadcast.
pub fn select(mask: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let shape = mask.shape().broadcast_shape_binary_op(a.shape(), "where")?;
    let shape = shape.broadcast_shape_binary_op(b.shape(), "where")?;
    let mask = mask.ne(0.0)?.broadcast_as(&shape)?;
    mask.where_cond(&a.broadcast_as(&shape)?, &b.broadcast_as(&shape)?)
}

/// Euclidean norm over `dims` (all when empty); its gradient at zero is zero.
pub fn norm(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let x = &x.floating()?;
    x.room_for_copy("norm")?;
    let all: Vec<usize> = (0..x.rank()).collect();
    let dims = if dims.is_empty() { all } else { dims.to_vec() };
    let mut kept = x.dims().to_vec();
    dims.iter().for_each(|dim| kept[*dim] = 1);
    let (kind, over) = ((kept.into(), x.dtype()), dims.clone());
    let forward = move |x: &Array| {
        let wide = if raw::is_half(x.dtype()) { x.to_dtype(DType::F32)? } else { x.clone() };
        raw::sum(&wide.sqr()?, Some(&over), 1.0)?.sqrt()?.to_dtype(x.dtype())
    };
    let keeps = Keeps { output: true, ..Keeps::inputs([true]) };
    let norms = unary("norm", x, kind, keeps, forward, |kept: Kept<1, ()>, g| {
        let (x, norms) = (read(kept.inputs[0])?, read(kept.output)?);
        let zero = norms.eq(0.0)?.to_dtype(norms.dtype())?;
        x.broadcast_mul(&(g / (norms + zero)?)?)
    })?;
    let rest: Vec<usize> = (0..x.rank()).filter(|d| !dims.contains(d)).map(|d| x.dims()[d]).collect();
    norms.reshape(rest)
}

/// The standard deviation over `dims` (all when empty) by the unbiased estimate of the variance; its gradient at zero is zero.
pub fn std(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let x = x.floating()?;
    let dims: Vec<usize> = if dims.is_empty() { (0..x.rank()).collect() } else { dims.to_vec() };
    let n: usize = dims.iter().map(|dim| x.dims()[*dim]).product();
    if n < 2 {
        bail!(Shape, "std: expected at least two values, got shape {:?}", x.dims());
    }
    norm(&x.broadcast_sub(&x.mean_keepdim(dims.as_slice())?)?, &dims)? * (1.0 / ((n - 1) as f64).sqrt())
}

/// Largest or smallest value over all entries, as a scalar.
pub fn extreme(x: &Tensor, largest: bool) -> Result<Tensor> {
    let flat = x.flatten_all()?;
    if flat.elem_count() == 0 {
        bail!(Shape, "{}: expected at least one value, got shape {:?}", if largest { "max" } else { "min" }, x.dims());
    }
    if largest { flat.max(0) } else { flat.min(0) }
}

/// A number as a scalar of another tensor's dtype and device.
pub fn scalar_like(value: f64, x: &Tensor) -> Result<Tensor> {
    Tensor::new(value, x.device())?.to_dtype(x.dtype())
}

/// The only value of a tensor.
pub fn item(x: &Tensor) -> Result<f64> {
    if x.elem_count() != 1 {
        bail!(Shape, "item: expected one value, got shape {:?}", x.dims(); hint: "reduce it with `sum()` or `mean()`, or index it");
    }
    Ok(super::show::values(x)?[0])
}

/// `n` values from `start` to `end`, both included.
pub fn linspace(start: f64, end: f64, n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    room("linspace", n, DType::F64, &Device::Cpu)?;
    let step = if n > 1 { (end - start) / (n - 1) as f64 } else { 0.0 };
    let last = n.saturating_sub(1);
    let values: Vec<f64> = (0..n).map(|i| if i == last && n > 1 { end } else { start + step * i as f64 }).collect();
    Tensor::from_vec(values, n, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Log of the sum of exponentials along a dimension, kept.
pub fn log_sum_exp(x: &Tensor, dim: usize) -> Result<Tensor> {
    let x = &x.floating()?;
    let top = x.constant().max_keepdim(dim)?.clamp(f64::from(f32::MIN), f64::from(f32::MAX))?; // finite where numbers are not
    x.broadcast_sub(&top)?.exp()?.sum_keepdim(dim)?.log()? + top
}

/// The matrix product, leading dimensions broadcast.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let inner = |x: &Tensor, from_end: usize| x.rank().checked_sub(from_end).map(|d| x.dims()[d]);
    if a.rank() < 2 || b.rank() < 2 || inner(a, 1) != inner(b, 2) {
        bail!(Shape, "matmul: expected [.., n, k] and [.., k, m], got {:?} and {:?}", a.dims(), b.dims());
    }
    a.broadcast_matmul(b)
}

/// Softmax along any dimension.
pub fn softmax(x: &Tensor, dim: usize) -> Result<Tensor> {
    if x.rank() == 0 {
        bail!(Shape, "softmax: expected at least one dimension, got a scalar");
    }
    let moved = x.transpose(dim, D::Minus1)?.contiguous()?;
    super::op::softmax(&moved)?.transpose(dim, D::Minus1)
}

#[cfg(test)]
mod tests {
    use super::super::grad::{gradcheck, value_and_grad};
    use super::*;
    use crate::Rng;

    fn sample() -> Result<Tensor> {
        Rng::new(3).normal(&[2, 3, 4], DType::F64, &Device::Cpu)
    }

    #[test]
    fn picks_narrow_and_select() -> Result<()> {
        let x = Tensor::arange(0f64, 12.0, &Device::Cpu)?.reshape((3, 4))?;
        let picked = index(&x, &[Pick::At(-1), Pick::Range(1, i64::MAX)])?;
        assert_eq!(picked.to_vec1::<f64>()?, [9.0, 10.0, 11.0]);
        let rows = index(&x, &[Pick::These(vec![2, 0]), Pick::At(0)])?;
        assert_eq!(rows.to_vec1::<f64>()?, [8.0, 0.0]);
        assert!(index(&x, &[Pick::At(3)]).unwrap_err().message.contains("dimension 0 has 3 entries, got index 3"));
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let x = sample()?;
        let picks = [Pick::These(vec![1, 1]), Pick::Range(0, 2)];
        assert!(gradcheck(|x| index(x, &picks), &x, 1)? < 1e-6);
        assert!(gradcheck(|x| norm(x, &[1, 2]), &x, 1)? < 1e-6);
        assert!(gradcheck(|x| log_sum_exp(x, 1), &x, 1)? < 1e-6);
        assert!(gradcheck(|x| softmax(x, 1), &x, 1)? < 1e-6);
        assert!(gradcheck(|x| select(&x.ge(0.0)?, &(x * 2.0)?, x), &x, 1)? < 1e-6);
        Ok(())
    }

    #[test]
    fn the_norm_has_no_gradient_at_zero() -> Result<()> {
        let zero = Tensor::zeros(4, DType::F64, &Device::Cpu)?;
        let (value, gradient) = value_and_grad(|x| norm(x, &[]), &zero)?;
        assert_eq!((value.to_scalar::<f64>()?, gradient.to_vec1::<f64>()?), (0.0, vec![0.0; 4]));
        Ok(())
    }

    #[test]
    fn shapes_are_filled_in() -> Result<()> {
        assert_eq!(fill_shape(12, &[3, -1])?, [3, 4]);
        assert!(
            fill_shape(12, &[5, -1]).is_err() && fill_shape(12, &[-1, -1]).is_err() && fill_shape(12, &[4, 4]).is_err()
        );
        Ok(())
    }
}
