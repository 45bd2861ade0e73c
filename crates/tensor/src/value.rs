//! The tensor: numbers in candle's storage, and what they were made of.

use super::graph::Node;
use super::meta::Block;
use super::{Array, DType, Device, interrupt, raw};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::memory;
use candle_core::shape::Dim;
use candle_core::{NdArray, Shape, WithDType};
use std::sync::Arc;

/// Numbers, and the graph behind them where they lead to a variable. Clones share both.
#[derive(Clone)]
pub struct Tensor {
    pub(super) value: Array,
    pub(super) node: Option<Arc<Node>>,
    /// Where there is a shape and no numbers.
    pub(super) meta: Option<Arc<Block>>,
}

/// The shape, where there is room for a tensor of it; a card says itself where it is full.
pub(crate) fn room(name: &str, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Shape> {
    let shape = shape.into();
    if device.is_cpu() {
        memory::room(memory::bytes(shape.dims(), dtype.size_in_bytes()), || format!("{name} of {:?}", shape.dims()))?;
    }
    Ok(shape)
}

/// Constants.
impl Tensor {
    pub fn new<A: NdArray>(values: A, device: &Device) -> Result<Self> {
        Ok(Self::constant_of(Array::new(values, device)?))
    }

    pub fn from_vec<S: candle_core::shape::ShapeWithOneHole, T: WithDType>(
        values: Vec<T>,
        shape: S,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self::constant_of(Array::from_vec(values, shape, device)?))
    }

    pub fn from_slice<S: candle_core::shape::ShapeWithOneHole, T: WithDType>(
        values: &[T],
        shape: S,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self::constant_of(Array::from_slice(values, shape, device)?))
    }

    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = room("a tensor", shape, dtype, device)?;
        if shape.elem_count() == 0 {
            return Ok(Self::constant_of(raw::moved(&Array::zeros(shape, dtype, &Device::Cpu)?, device)?)); // a card has no memory of nothing
        }
        Ok(Self::constant_of(Array::zeros(shape, dtype, device)?))
    }

    pub fn ones(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = room("a tensor", shape, dtype, device)?;
        Ok(Self::constant_of(Array::ones(shape, dtype, device)?))
    }

    pub fn full<T: WithDType>(value: T, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = room("a tensor", shape, T::DTYPE, device)?;
        // candle repeats one number without memory; others write into what they are given.
        Ok(Self::constant_of(Array::full(value, shape, device)?.contiguous()?))
    }

    pub fn arange<T: WithDType>(start: T, end: T, device: &Device) -> Result<Self> {
        Ok(Self::constant_of(Array::arange(start, end, device)?))
    }

    pub fn eye(n: usize, dtype: DType, device: &Device) -> Result<Self> {
        room("a tensor", (n, n), dtype, device)?;
        let here = device.clone();
        let eye = move || Array::eye(n, dtype, &here);
        Ok(Self::constant_of(if n < 4096 { eye()? } else { interrupt::beside(eye)?? }))
    }

    /// Constant zeros of the same shape, type and device.
    pub fn zeros_like(&self) -> Result<Self> {
        match self.trace() {
            Some(trace) => Self::meta(self.shape(), self.dtype(), trace),
            None => Ok(Self::constant_of(self.value.zeros_like()?)),
        }
    }

    pub fn ones_like(&self) -> Result<Self> {
        match self.trace() {
            Some(trace) => Self::meta(self.shape(), self.dtype(), trace),
            None => Ok(Self::constant_of(self.value.ones_like()?)),
        }
    }
}

impl From<Array> for Tensor {
    fn from(value: Array) -> Self {
        Self::constant_of(value)
    }
}

/// Variables and the graph.
impl Tensor {
    /// A parameter: a variable with numbers of its own, which [`Tensor::set`] and optimizers change in place.
    pub fn variable(&self) -> Result<Self> {
        match &self.meta {
            Some(block) => {
                let own = Self::meta(self.shape(), self.dtype(), &block.trace)?;
                Ok(Self { node: Some(Node::leaf(true)), ..own })
            }
            None => Ok(Self::with(self.value.force_contiguous()?, Some(Node::leaf(true)), None)),
        }
    }

    /// The same numbers as a variable to differentiate with respect to; nobody changes it.
    pub fn leaf(&self) -> Self {
        Self { node: Some(Node::leaf(false)), ..self.clone() }
    }

    /// Whether a variable is among what it was made of.
    pub fn requires_grad(&self) -> bool {
        self.node.is_some()
    }

    pub fn is_variable(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.is_leaf())
    }

    /// Whether its numbers are those of a parameter.
    pub(super) fn is_shared(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.shared)
    }

    /// The numbers without their graph. Those of a parameter are copied, so that they stay when it is trained.
    pub fn detach(&self) -> Result<Self> {
        match self.is_shared() && self.meta.is_none() {
            true => Ok(Self::constant_of(self.value.force_contiguous()?)),
            false => Ok(self.constant()),
        }
    }

    /// Copies the numbers of `other`, of one shape, type and device, into a variable's storage.
    pub fn set(&self, other: &Tensor) -> Result<()> {
        if !self.is_variable() || self.dims() != other.dims() {
            let (own, got) = (self.dims(), other.dims());
            bail!(Shape, "set: expected a variable and numbers of its shape {own:?}, got shape {got:?}");
        }
        if self.meta.is_some() {
            return Ok(());
        }
        if self.rank() == 0 {
            return Ok(self.value.unsqueeze(0)?.slice_set(&other.value.unsqueeze(0)?.force_contiguous()?, 0, 0)?);
        }
        // A copy, for the other may be a view of the same storage.
        Ok(self.value.slice_set(&other.value.force_contiguous()?, 0, 0)?)
    }

    /// The numbers, for whoever computes without a graph.
    pub fn array(&self) -> &Array {
        &self.value
    }
}

/// Shape, type, place.
impl Tensor {
    pub fn shape(&self) -> &Shape {
        self.value.shape()
    }

    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    pub fn dim<D: Dim>(&self, dim: D) -> Result<usize> {
        Ok(self.value.dim(dim)?)
    }

    pub fn dims2(&self) -> Result<(usize, usize)> {
        Ok(self.value.dims2()?)
    }

    pub fn dims3(&self) -> Result<(usize, usize, usize)> {
        Ok(self.value.dims3()?)
    }

    pub fn dims4(&self) -> Result<(usize, usize, usize, usize)> {
        Ok(self.value.dims4()?)
    }

    pub fn rank(&self) -> usize {
        self.value.rank()
    }

    pub fn elem_count(&self) -> usize {
        self.value.elem_count()
    }

    pub fn dtype(&self) -> DType {
        self.value.dtype()
    }

    pub fn device(&self) -> &Device {
        self.value.device()
    }

    /// Errs where there is no room for a copy of its numbers, which an op makes on its way.
    pub(crate) fn room_for_copy(&self, name: &str) -> Result<()> {
        if self.meta.is_none() {
            room(name, self.dims(), self.dtype(), self.device())?;
        }
        Ok(())
    }

    pub fn is_contiguous(&self) -> bool {
        self.meta.is_some() || self.value.is_contiguous()
    }
}

/// Numbers on the host; zeros where there are none.
impl Tensor {
    pub fn to_scalar<T: WithDType>(&self) -> Result<T> {
        Ok(self.value.to_scalar()?)
    }

    pub fn to_vec0<T: WithDType>(&self) -> Result<T> {
        Ok(self.value.to_scalar()?)
    }

    pub fn to_vec1<T: WithDType>(&self) -> Result<Vec<T>> {
        room("numbers", self.dims(), T::DTYPE, &Device::Cpu)?;
        Ok(self.value.to_vec1()?)
    }

    pub fn to_vec2<T: WithDType>(&self) -> Result<Vec<Vec<T>>> {
        Ok(self.value.to_vec2()?)
    }

    pub fn to_vec3<T: WithDType>(&self) -> Result<Vec<Vec<Vec<T>>>> {
        Ok(self.value.to_vec3()?)
    }
}

impl AsRef<Tensor> for Tensor {
    fn as_ref(&self) -> &Tensor {
        self
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.value)
    }
}

impl std::fmt::Display for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.value)
    }
}
