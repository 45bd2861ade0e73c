//! Views and rearrangements: what reads the same numbers in another shape or order.

use super::call::Keeps;
use super::elementary::{binary, unary, view};
use crate::value::room;
use crate::{Array, Tensor, raw};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::shape::{Dim, Dims, ShapeWithOneHole};
use candle_core::{D, Shape};

impl Tensor {
    /// The same numbers in another shape; a view where they are contiguous.
    pub fn reshape<S: ShapeWithOneHole>(&self, shape: S) -> Result<Tensor> {
        let shape = shape.into_shape(self.elem_count())?;
        if shape.elem_count() != self.elem_count() {
            let (own, op) = (self.shape().clone(), "reshape");
            return Err(candle_core::Error::ShapeMismatchBinaryOp { lhs: own, rhs: shape, op }.into());
        }
        if shape.dims() == self.dims() && self.is_contiguous() {
            return Ok(self.clone());
        }
        if !self.is_contiguous() {
            self.room_for_copy("reshape")?;
        }
        let (own, to) = (self.shape().clone(), shape.clone());
        view("reshape", self, shape, move |x| x.reshape(&to), move |g| g.reshape(&own))
    }

    pub fn flatten_all(&self) -> Result<Tensor> {
        self.reshape(self.elem_count())
    }

    /// Dimensions `from` and all after it as one.
    pub fn flatten_from<A: Dim>(&self, from: A) -> Result<Tensor> {
        let from = from.to_index(self.shape(), "flatten")?;
        let (head, tail) = self.dims().split_at(from);
        self.reshape([head, &[tail.iter().product()]].concat())
    }

    /// Dimensions `from` to `to`, with both, as one.
    pub fn flatten<A: Dim, B: Dim>(&self, from: A, to: B) -> Result<Tensor> {
        let (from, to) = (from.to_index(self.shape(), "flatten")?, to.to_index(self.shape(), "flatten")?);
        let dims = self.dims();
        let middle: usize = dims[from..=to].iter().product();
        self.reshape([&dims[..from], &[middle], &dims[to + 1..]].concat())
    }

    /// A new dimension of 1 at `dim`.
    pub fn unsqueeze<A: Dim>(&self, dim: A) -> Result<Tensor> {
        let dim = dim.to_index_plus_one(self.shape(), "unsqueeze")?;
        let mut shape = self.dims().to_vec();
        shape.insert(dim, 1);
        view("reshape", self, shape.into(), move |x| x.unsqueeze(dim), move |g| g.squeeze(dim))
    }

    /// Drops dimension `dim` where it is 1.
    pub fn squeeze<A: Dim>(&self, dim: A) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "squeeze")?;
        if self.dims()[dim] != 1 {
            return Ok(self.clone());
        }
        let mut shape = self.dims().to_vec();
        shape.remove(dim);
        view("reshape", self, shape.into(), move |x| x.squeeze(dim), move |g| g.unsqueeze(dim))
    }

    /// Two dimensions in each other's place, a view.
    pub fn transpose<A: Dim, B: Dim>(&self, a: A, b: B) -> Result<Tensor> {
        let (a, b) = (a.to_index(self.shape(), "transpose")?, b.to_index(self.shape(), "transpose")?);
        if a == b {
            return Ok(self.clone());
        }
        let mut shape = self.dims().to_vec();
        shape.swap(a, b);
        view("transpose", self, shape.into(), move |x| x.transpose(a, b), move |g| g.transpose(a, b))
    }

    /// The last two dimensions in each other's place, a view.
    pub fn t(&self) -> Result<Tensor> {
        if self.rank() < 2 {
            bail!(Shape, "t: expected a matrix, got shape {:?}", self.dims());
        }
        self.transpose(D::Minus2, D::Minus1)
    }

    /// Dimensions in the given order, a view.
    pub fn permute<A: Dims>(&self, order: A) -> Result<Tensor> {
        let order = order.to_indexes(self.shape(), "permute")?;
        if order.len() != self.rank() {
            bail!(Shape, "permute: expected each of {} dimensions once, got {order:?}", self.rank());
        }
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(i, from)| back[*from] = i);
        let shape: Vec<usize> = order.iter().map(|i| self.dims()[*i]).collect();
        let forward = move |x: &Array| x.permute(order.as_slice());
        view("transpose", self, shape.into(), forward, move |g| g.permute(back.as_slice()))
    }

    /// `len` entries of `dim` from `start` on, a view.
    pub fn narrow<A: Dim>(&self, dim: A, start: usize, len: usize) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "narrow")?;
        let (shape, after) = self.narrowed(dim, start, len)?;
        let forward = move |x: &Array| x.narrow(dim, start, len);
        view("narrow", self, shape, forward, move |g| g.pad_with_zeros(dim, start, after))
    }

    /// The shape after [`Tensor::narrow`], and the entries left behind.
    fn narrowed(&self, dim: usize, start: usize, len: usize) -> Result<(Shape, usize)> {
        let mut shape = self.dims().to_vec();
        let Some(after) = start.checked_add(len).and_then(|end| shape[dim].checked_sub(end)) else {
            let size = shape[dim];
            bail!(Shape, "narrow: expected entries within the {size} of dimension {dim}, got {len} from {start} on");
        };
        shape[dim] = len;
        Ok((shape.into(), after))
    }

    /// Entry `i` of the first dimension, which goes.
    pub fn get(&self, i: usize) -> Result<Tensor> {
        self.narrow(0, i, 1)?.squeeze(0)
    }

    /// `n` parts of equal size along `dim` (the last may be smaller).
    pub fn chunk<A: Dim>(&self, n: usize, dim: A) -> Result<Vec<Tensor>> {
        let dim = dim.to_index(self.shape(), "chunk")?;
        let size = self.dims()[dim];
        let step = size.div_ceil(n.max(1)).max(1);
        (0..size).step_by(step).map(|start| self.narrow(dim, start, step.min(size - start))).collect()
    }

    /// Repeats dimensions of 1 or missing ones, a view.
    pub fn broadcast_as<S: Into<Shape>>(&self, shape: S) -> Result<Tensor> {
        let shape = shape.into();
        if shape.dims() == self.dims() {
            return Ok(self.clone());
        }
        if self.shape().broadcast_shape_binary_op(&shape, "broadcast")?.dims() != shape.dims() {
            bail!(Shape, "broadcast: {:?} cannot be repeated to {:?}", self.dims(), shape.dims());
        }
        let (own, to) = (self.dims().to_vec(), shape.clone());
        let forward = move |x: &Array| x.broadcast_as(&to);
        view("broadcast", self, shape, forward, move |g| super::elementary::sum_to(g, &own))
    }

    pub fn expand<S: Into<Shape>>(&self, shape: S) -> Result<Tensor> {
        self.broadcast_as(shape)
    }

    /// The same numbers one behind the other in memory.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.copy() }
    }

    /// The same numbers in memory of their own.
    pub fn copy(&self) -> Result<Tensor> {
        let kind = (self.shape().clone(), self.dtype());
        unary("copy", self, kind, Keeps::NOTHING, |x| x.force_contiguous(), |_, g| Ok(g.clone()))
    }

    /// Entries of `dim` in the order of `ids` (`[n]`, integers).
    pub fn index_select<A: Dim>(&self, ids: &Tensor, dim: A) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "index_select")?;
        let mut shape = self.dims().to_vec();
        shape[dim] = ids.elem_count();
        if !self.is_contiguous() {
            self.room_for_copy("index_select")?;
        }
        let own = self.shape().clone();
        let forward = move |x: &Array, ids: &Array| x.contiguous()?.index_select(&ids.contiguous()?, dim);
        let ids = &ids.constant();
        binary("index_select", [self, ids], shape.into(), [false, true], forward, move |kept, g, _| {
            let zeros = Array::zeros(&own, g.dtype(), g.device())?;
            let ids = super::elementary::read(kept.inputs[1])?.contiguous()?;
            Ok([Some(zeros.index_add(&ids, &g.contiguous()?, dim)?), None])
        })
    }

    /// Zeros before and after along `dim`.
    pub fn pad_with_zeros<A: Dim>(&self, dim: A, before: usize, after: usize) -> Result<Tensor> {
        let dim = dim.to_index(self.shape(), "pad")?;
        let mut shape = self.dims().to_vec();
        let len = shape[dim];
        shape[dim] += before + after;
        let kind = (shape.into(), self.dtype());
        let forward = move |x: &Array| x.pad_with_zeros(dim, before, after);
        unary("pad", self, kind, Keeps::NOTHING, forward, move |_, g| g.narrow(dim, before, len))
    }

    /// Repeats the whole along each dimension.
    pub fn repeat<S: Into<Shape>>(&self, times: S) -> Result<Tensor> {
        let times = times.into();
        let missing = times.rank().saturating_sub(self.rank());
        let mut x = self.reshape([vec![1; missing], self.dims().to_vec()].concat())?;
        for (dim, n) in times.dims().iter().enumerate().filter(|(_, n)| **n != 1) {
            x = Tensor::cat(&vec![x; *n], dim)?;
        }
        Ok(x)
    }

    /// Tensors one behind the other along `dim`.
    pub fn cat<T: AsRef<Tensor>, A: Dim>(parts: &[T], dim: A) -> Result<Tensor> {
        let parts: Vec<&Tensor> = parts.iter().map(AsRef::as_ref).collect();
        let Some(first) = parts.first() else { bail!(Shape, "cat: expected at least one tensor, got none") };
        cat(&parts, dim.to_index(first.shape(), "cat")?)
    }

    /// Tensors of one shape beside each other along a new dimension.
    pub fn stack<T: AsRef<Tensor>, A: Dim>(parts: &[T], dim: A) -> Result<Tensor> {
        let Some(first) = parts.first().map(AsRef::as_ref) else {
            bail!(Shape, "stack: expected at least one tensor, got none")
        };
        let dim = dim.to_index_plus_one(first.shape(), "stack")?;
        let parts = parts.iter().map(|x| x.as_ref().unsqueeze(dim)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, dim)
    }
}

/// `x` in another shape.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    x.reshape(shape.into())
}

/// `x` with its dimensions in another order, contiguous.
pub fn permute(x: &Tensor, order: &[usize]) -> Result<Tensor> {
    x.permute(order)?.copy()
}

/// `len` entries of dimension `dim` from `start` on, contiguous.
pub fn narrow(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    let (shape, after) = x.narrowed(dim, start, len)?;
    let forward = move |x: &Array| Ok(raw::cut(x, dim, start, len)?);
    let kind = (shape, x.dtype());
    unary("narrow", x, kind, Keeps::NOTHING, forward, move |_, g| g.pad_with_zeros(dim, start, after))
}

/// `[.., n d]` as `n` of `[.., d]`, contiguous.
pub fn chunk(x: &Tensor, n: usize) -> Result<Vec<Tensor>> {
    let (last, d) = (x.rank() - 1, x.dim(D::Minus1)? / n);
    (0..n).map(|i| narrow(x, last, i * d, d)).collect()
}

/// Tensors one behind the other along `dim`.
pub fn cat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let first = parts[0];
    let rest = |x: &Tensor| (x.rank(), x.dims()[..dim].to_vec(), x.dims()[dim + 1..].to_vec(), x.dtype());
    if let Some(other) = parts.iter().find(|x| x.rank() <= dim || rest(x) != rest(first)) {
        let (a, b) = ((first.dims(), first.dtype()), (other.dims(), other.dtype()));
        bail!(Shape, "cat: expected tensors of one type, alike but for dimension {dim}, got {a:?} and {b:?}");
    }
    let sizes: Vec<usize> = parts.iter().map(|x| x.dims()[dim]).collect();
    let mut shape = first.dims().to_vec();
    shape[dim] = sizes.iter().sum();
    let output = match parts.iter().find_map(|x| x.trace()) {
        Some(trace) => {
            let size = shape.iter().product::<usize>() * first.dtype().size_in_bytes();
            trace.compute("cat", first.dtype(), 0.0, 2 * size);
            Tensor::meta(shape, first.dtype(), trace)?
        }
        None => {
            room("cat", shape, first.dtype(), first.device())?;
            Tensor::constant_of(raw::joined(&parts.iter().map(|x| x.array()).collect::<Vec<_>>(), dim)?)
        }
    };
    crate::grad::custom_vjp("cat", parts, output, move |gradient, wanted| {
        let mut start = 0;
        let part = |(size, wanted): (&usize, &bool)| {
            start += size;
            Ok(if *wanted { Some(narrow(gradient, dim, start - size, *size)?) } else { None })
        };
        sizes.iter().zip(wanted).map(part).collect()
    })
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    type One = fn(&Tensor) -> Result<Tensor>;
    let ones: [(&str, One); 19] = [
        ("reshape", |x| x.reshape((4, 6))),
        ("reshape of a view", |x| x.transpose(0, 2)?.reshape((4, 6))),
        ("flatten", |x| x.flatten(0, 1)),
        ("flatten_from", |x| x.flatten_from(1)),
        ("unsqueeze", |x| x.unsqueeze(3)),
        ("squeeze", |x| x.narrow(1, 2, 1)?.squeeze(1)),
        ("transpose", |x| x.transpose(0, 2)),
        ("t", Tensor::t),
        ("permute", |x| x.permute((2, 0, 1))),
        ("permute, contiguous", |x| permute(x, &[2, 0, 1])),
        ("narrow", |x| x.narrow(1, 1, 2)),
        ("narrow, contiguous", |x| narrow(x, 2, 1, 2)),
        ("get", |x| x.get(1)),
        ("chunk", |x| Ok(chunk(x, 2)?.remove(1))),
        ("broadcast", |x| x.unsqueeze(1)?.broadcast_as((5, 2, 2, 3, 4))),
        ("index_select", |x| x.index_select(&Tensor::new(&[2u32, 0, 2], x.device())?, 1)),
        ("pad", |x| x.pad_with_zeros(1, 2, 1)),
        ("repeat", |x| x.repeat((2, 1, 3))),
        ("contiguous", |x| x.t()?.contiguous()),
    ];
    let ones = ones.map(|(name, f)| case(name, &[&[2, 3, 4]], move |i| f(&i[0])).elementary());
    let joined = [
        case("cat", &[&[2, 3, 4], &[2, 1, 4], &[2, 2, 4]], |i| Tensor::cat(i, 1)).elementary(),
        case("stack", &[&[2, 3], &[2, 3]], |i| Tensor::stack(i, 1)).elementary(),
    ];
    ones.into_iter().chain(joined).collect()
}
