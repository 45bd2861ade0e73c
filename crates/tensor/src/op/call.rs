//! What an op is, and the one place where an op becomes a node: there it is checked, cast, profiled, counted and run.

use crate::graph::Node;
use crate::meta::{Block, Trace};
use crate::value::room;
use crate::{Array, DType, Device, Tensor, cuda, interrupt, raw};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile;
use candle_core::Shape;
use std::sync::Arc;

/// A differentiable operation of `N` inputs, some of which may be missing. Inputs stand in one order everywhere, so that a pattern
/// names them: `let [x, weight, bias] = inputs`.
pub trait Op<const N: usize>: Send + Sync + Sized + 'static {
    /// Numbers that the backward reads beside inputs and output.
    type More: Send + Sync + 'static;

    /// What it is called in profiles and plans.
    fn name(&self) -> &'static str;

    /// Refuses inputs that do not fit; the shape of the result.
    fn shape(&self, inputs: Inputs<N>) -> Result<Shape>;

    /// The type of the result for the first input's.
    fn dtype(&self, first: DType) -> DType {
        first
    }

    /// What the result and its gradient are computed by.
    fn kernels(&self) -> Kernels {
        Kernels::BOTH
    }

    /// What the backward reads, where gradients of these inputs may be wanted.
    fn keeps(&self, on: Backend, inputs: Inputs<N>, wanted: [bool; N]) -> Keeps<N>;

    /// The result, in storage of its own unless it is a view. On the processor inputs are contiguous and of one float type.
    fn forward(&self, on: Backend, inputs: Inputs<N>, wanted: [bool; N]) -> Result<(Array, Self::More)>;

    /// The gradient of each input that is wanted (none: zero), from the result's.
    fn backward(&self, kept: Kept<N, Self::More>, gradient: &Array, wanted: [bool; N]) -> Result<[Option<Array>; N]>;

    /// The same of other ops, for devices and types without kernels, and to test against.
    fn composed(&self, inputs: [Option<&Tensor>; N]) -> Result<Tensor> {
        bail!(Device, "{}: there is no kernel for {:?}", self.name(), inputs.map(|x| x.map(Tensor::dtype)))
    }

    /// Multiplications and additions of the forward.
    fn work(&self, inputs: Inputs<N>, result: &Shape) -> f64 {
        let _ = inputs;
        result.elem_count() as f64
    }

    /// The same of the backward.
    fn work_back(&self, inputs: Inputs<N>, result: &Shape, wanted: [bool; N]) -> f64 {
        self.work(inputs, result) * wanted.iter().filter(|w| **w).count() as f64
    }

    /// Bytes that the forward or the backward holds for a time beside inputs, results and what is kept.
    fn scratch(&self, on: Backend, inputs: Inputs<N>) -> usize {
        let _ = (on, inputs);
        0
    }

    /// Bytes that pass through such memory: what is larger than it goes through a piece at a time.
    fn through_scratch(&self, on: Backend, inputs: Inputs<N>) -> usize {
        self.scratch(on, inputs)
    }
}

pub type Inputs<'a, const N: usize> = [Option<&'a Array>; N];

/// Where kernels come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Loops over memory, f32 and f64.
    Processor,
    /// CUDA C, f32, bf16 and f16.
    Card,
    /// Other ops.
    Composed,
}

/// What an op has kernels for, and what these ask of their inputs on the processor.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Whether there are kernels for a card.
    pub card: bool,
    /// Whether candle's own operations are the kernels, on every device and for every type.
    pub everywhere: bool,
    /// Whether inputs may be of any strides.
    pub strided: bool,
    /// Inputs that they read in half precision beside others in f32, the gradient then too.
    pub half: &'static [usize],
    /// Whether the result is a view of the first input.
    pub view: bool,
}

impl Kernels {
    /// Kernels for processor and card.
    pub const BOTH: Kernels = Kernels { card: true, everywhere: false, strided: false, half: &[], view: false };
    /// Kernels for the processor.
    pub const PROCESSOR: Kernels = Kernels { card: false, ..Kernels::BOTH };
    /// Operations of candle's.
    pub const CANDLE: Kernels = Kernels { everywhere: true, strided: true, ..Kernels::BOTH };
    /// Views, by candle.
    pub const VIEW: Kernels = Kernels { view: true, ..Kernels::CANDLE };
}

/// What a node keeps for its backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keeps<const N: usize> {
    pub inputs: [bool; N],
    pub output: bool,
    /// Bytes of `More`.
    pub more: usize,
}

impl<const N: usize> Keeps<N> {
    pub const NOTHING: Self = Self { inputs: [false; N], output: false, more: 0 };

    pub fn inputs(inputs: [bool; N]) -> Self {
        Self { inputs, ..Self::NOTHING }
    }

    pub fn output() -> Self {
        Self { output: true, ..Self::NOTHING }
    }

    pub fn and_bytes(self, more: usize) -> Self {
        Self { more, ..self }
    }
}

/// What was kept, in the types of the forward.
pub struct Kept<'a, const N: usize, More> {
    pub on: Backend,
    pub inputs: Inputs<'a, N>,
    pub output: Option<&'a Array>,
    pub more: &'a More,
    /// Shapes of all inputs, kept or not.
    pub shapes: [&'a [usize]; N],
}

/// An input that is there, or was kept.
pub fn given(x: Option<&Array>) -> Result<&Array> {
    match x {
        Some(x) => Ok(x),
        None => bail!(Internal, "op: an input or what was kept of it must be there, got none"),
    }
}

/// [`given`], of tensors.
pub fn there(x: Option<&Tensor>) -> Result<&Tensor> {
    match x {
        Some(x) => Ok(x),
        None => bail!(Internal, "op: an input must be there, got none"),
    }
}

/// Runs an op on these inputs and makes its node, where one of them leads to a variable.
pub fn apply<const N: usize, O: Op<N>>(op: O, inputs: [Option<&Tensor>; N]) -> Result<Tensor> {
    interrupt::check()?;
    let arrays = inputs.map(|x| x.map(Tensor::array));
    same_device(op.name(), &inputs)?;
    let call = Call::new(&op, &inputs)?;
    let shape = op.shape(arrays)?;
    if call.on == Backend::Composed && !op.kernels().everywhere {
        return op.composed(inputs);
    }
    let trace = inputs.iter().flatten().find_map(|x| x.trace());
    if let Some(x) =
        inputs.iter().flatten().next().filter(|x| !op.kernels().view && trace.is_none() && x.device().is_cpu())
    {
        room(op.name(), shape.clone(), op.dtype(x.dtype()), x.device())?;
    }
    match trace.cloned() {
        Some(trace) => call.traced(op, inputs, shape, &trace),
        None => call.run(op, inputs),
    }
}

/// A kernel would read another card's memory, or the host's.
fn same_device(name: &str, inputs: &[Option<&Tensor>]) -> Result<()> {
    let mut devices = inputs.iter().flatten().map(|x| x.device());
    let Some(first) = devices.next() else { return Ok(()) };
    match devices.find(|other| !other.same_device(first)) {
        None => Ok(()),
        Some(other) => {
            let [first, other] = [first, other].map(crate::place::name);
            bail!(Device, "{name}: expected tensors on one device, got {first} and {other}"; hint: "move one of them with `x.to(..)`")
        }
    }
}

/// One call of an op.
#[derive(Clone)]
struct Call<const N: usize> {
    on: Backend,
    wanted: [bool; N],
    /// The type that is computed in; none where every input stays as it is.
    compute: Option<DType>,
    /// Inputs that stay as they are where they are of half precision.
    half: &'static [usize],
    /// Of the inputs, and of the first one's.
    types: [Option<DType>; N],
    result: DType,
    shapes: [Vec<usize>; N],
    shared: bool,
    /// The card of inputs of which one is empty, where results go again: a card starts no kernel for nothing, so the processor computes.
    away: Option<Device>,
}

impl<const N: usize> Call<N> {
    fn new<O: Op<N>>(op: &O, inputs: &[Option<&Tensor>; N]) -> Result<Self> {
        let kernels = op.kernels();
        let Some(first) = inputs.iter().flatten().next() else {
            bail!(Internal, "{}: there must be an input, got none", op.name())
        };
        let own = first.dtype();
        let empty = !kernels.view && inputs.iter().flatten().any(|x| x.elem_count() == 0 && x.trace().is_none());
        let away = Some(first.device()).filter(|device| empty && device.is_cuda()).cloned();
        let on = match backend(inputs, kernels) {
            Backend::Card if away.is_some() => Backend::Processor,
            on => on,
        };
        let half = raw::is_half(own);
        let compute = match on {
            Backend::Processor if !kernels.everywhere => Some(if half { DType::F32 } else { own }),
            _ => None,
        };
        let result = op.dtype(own);
        Ok(Self {
            on,
            wanted: inputs.map(|x| x.is_some_and(|x| x.requires_grad())),
            compute,
            half: if compute == Some(DType::F32) { kernels.half } else { &[] },
            types: inputs.map(|x| x.map(Tensor::dtype)),
            result,
            shapes: inputs.map(|x| x.map(|x| x.dims().to_vec()).unwrap_or_default()),
            shared: kernels.view && first.is_shared(),
            away,
        })
    }

    /// What the kernels take an input as.
    fn cast(&self, i: usize) -> Option<DType> {
        let stays = self.half.contains(&i) && self.types[i].is_some_and(raw::is_half);
        self.compute.filter(|_| !stays)
    }

    /// What they take the gradient as.
    fn cast_gradient(&self, gradient: DType) -> Option<DType> {
        let stays = !self.half.is_empty() && raw::is_half(gradient);
        self.compute.filter(|_| !stays)
    }

    /// As the kernels take it, in this type if there is one.
    fn ready(&self, x: &Array, compute: Option<DType>, strided: bool) -> Result<Array> {
        let x = if self.away.is_some() { raw::moved(x, &Device::Cpu)? } else { x.clone() };
        let x = match compute {
            Some(dtype) if x.dtype() != dtype => {
                room("a copy", x.dims(), dtype, x.device())?;
                x.to_dtype(dtype)?
            }
            _ => x,
        };
        if strided || self.on == Backend::Card { Ok(x) } else { raw::packed(&x) }
    }

    fn each_ready(&self, inputs: Inputs<N>, strided: bool) -> Result<[Option<Array>; N]> {
        let mut all = [const { None }; N];
        for (i, (ready, x)) in all.iter_mut().zip(inputs).enumerate() {
            *ready = x.map(|x| self.ready(x, self.cast(i), strided)).transpose()?;
        }
        Ok(all)
    }

    /// As others take it.
    fn returned(&self, x: Array, dtype: DType) -> Result<Array> {
        let x = if x.dtype() == dtype { x } else { x.to_dtype(dtype)? };
        self.away.as_ref().map_or(Ok(x.clone()), |card| raw::moved(&x, card))
    }

    fn run<O: Op<N>>(self, op: O, inputs: [Option<&Tensor>; N]) -> Result<Tensor> {
        let strided = op.kernels().strided;
        let ready = self.each_ready(inputs.map(|x| x.map(Tensor::array)), strided)?;
        let (value, more) = op.forward(self.on, ready.each_ref().map(Option::as_ref), self.wanted)?;
        let value = self.returned(value, self.result)?;
        profile::forward(op.name(), || op.work(inputs.map(|x| x.map(Tensor::array)), value.shape()));
        if !self.wanted.contains(&true) {
            return Ok(Tensor::constant_of(value));
        }
        let keeps = op.keeps(self.on, ready.each_ref().map(Option::as_ref), self.wanted);
        let mut kept = [const { None }; N];
        for (i, (kept, ready)) in kept.iter_mut().zip(ready).enumerate() {
            // A cast input is kept as it came and cast again, which is half the memory.
            *kept = match ready.filter(|_| keeps.inputs[i]) {
                Some(ready) if self.types[i] == Some(ready.dtype()) => Some(ready),
                Some(_) => inputs[i].map(|x| x.array().clone()),
                None => None,
            };
        }
        let output = keeps.output.then(|| value.clone());
        let (call, shared, outlines) = (self.clone(), self.shared, outlines(inputs, value.shape()));
        let node = Node::made_of(&inputs, shared, move |gradient, wanted| {
            let wanted: [bool; N] = std::array::from_fn(|i| wanted[i]);
            let call = &call;
            let work =
                || outlines.as_ref().map_or(0.0, |(x, y)| op.work_back(x.each_ref().map(Option::as_ref), y, wanted));
            profile::backward(op.name(), work, || {
                let inputs = call.each_ready(kept.each_ref().map(Option::as_ref), strided)?;
                let output = output.as_ref().map(|y| call.ready(y, call.compute, strided)).transpose()?;
                let gradient = call.ready(gradient.array(), call.cast_gradient(gradient.dtype()), strided)?;
                let kept = Kept {
                    on: call.on,
                    inputs: inputs.each_ref().map(Option::as_ref),
                    output: output.as_ref(),
                    more: &more,
                    shapes: call.shapes.each_ref().map(Vec::as_slice),
                };
                let gradients = op.backward(kept, &gradient, wanted)?;
                let typed = |(gradient, dtype): (Option<Array>, Option<DType>)| match gradient.zip(dtype) {
                    Some((gradient, dtype)) => Ok(Some(Tensor::constant_of(call.returned(gradient, dtype)?))),
                    None => Ok(None),
                };
                gradients.into_iter().zip(call.types).map(typed).collect()
            })
        });
        Ok(Tensor::with(value, node, None))
    }

    /// The same from shapes alone.
    fn traced<O: Op<N>>(self, op: O, inputs: [Option<&Tensor>; N], shape: Shape, trace: &Arc<Trace>) -> Result<Tensor> {
        let arrays = inputs.map(|x| x.map(Tensor::array));
        let work = op.work(arrays, &shape);
        let scratch = op.scratch(self.on, arrays);
        let value = {
            let _casts = self.casts(arrays, trace);
            let _scratch = Block::new(scratch, trace);
            if !op.kernels().view {
                let result = shape.elem_count() * self.result.size_in_bytes();
                let read: usize = arrays.iter().flatten().map(|x| size(x)).sum();
                trace.compute(op.name(), self.result, work, read + result + 2 * op.through_scratch(self.on, arrays));
            }
            match inputs[0].filter(|_| op.kernels().view) {
                Some(x) => Tensor::with(super::super::meta::shapely(shape.clone(), self.result)?, None, x.meta.clone()),
                None => Tensor::meta(shape.clone(), self.result, trace)?,
            }
        };
        profile::forward(op.name(), || work);
        if !self.wanted.contains(&true) {
            return Ok(value);
        }
        let keeps = op.keeps(self.on, arrays, self.wanted);
        let outlines = arrays.map(|x| x.cloned());
        let blocks: Vec<Arc<Block>> =
            (0..N).filter(|i| keeps.inputs[*i]).filter_map(|i| inputs[i]?.meta.clone()).collect();
        let held = (blocks, Block::new(keeps.more, trace), value.meta.clone().filter(|_| keeps.output));
        let (call, shared, trace) = (self.clone(), self.shared, trace.clone());
        let node = Node::made_of(&inputs, shared, move |_, wanted| {
            let _held = &held;
            let arrays = outlines.each_ref().map(Option::as_ref);
            let wanted: [bool; N] = std::array::from_fn(|i| wanted[i]);
            let read = std::array::from_fn(|i| arrays[i].filter(|_| keeps.inputs[i]));
            let (_casts, _scratch) = (call.casts(read, &trace), Block::new(scratch, &trace));
            if !op.kernels().view {
                let made = arrays.iter().zip(wanted).filter(|(_, wanted)| *wanted).filter_map(|(x, _)| *x);
                let gradient = shape.elem_count() * call.result.size_in_bytes();
                let moved: usize = read.iter().flatten().copied().chain(made).map(size).sum();
                trace.compute(
                    op.name(),
                    call.result,
                    op.work_back(arrays, &shape, wanted),
                    moved + gradient + 2 * op.through_scratch(call.on, arrays),
                );
            }
            let gradient = |i: usize| match call.types[i].filter(|_| wanted[i]) {
                Some(dtype) => Ok(Some(Tensor::meta(call.shapes[i].as_slice(), dtype, &trace)?)),
                None => Ok(None),
            };
            (0..N).map(gradient).collect()
        });
        Ok(Tensor::with(value.value, node, value.meta))
    }

    /// What casting these inputs takes.
    fn casts(&self, inputs: Inputs<N>, trace: &Arc<Trace>) -> Arc<Block> {
        let bytes = |(i, x): (usize, Option<&Array>)| match x.zip(self.cast(i)) {
            Some((x, dtype)) if x.dtype() != dtype => x.elem_count() * dtype.size_in_bytes(),
            _ => 0,
        };
        Block::new(inputs.into_iter().enumerate().map(bytes).sum(), trace)
    }
}

/// Shapes of inputs and result for a profile to count operations by.
fn outlines<const N: usize>(inputs: [Option<&Tensor>; N], result: &Shape) -> Option<([Option<Array>; N], Shape)> {
    let outline = |x: &Tensor| crate::meta::shapely(x.shape(), x.dtype()).ok();
    profile::on().then(|| (inputs.map(|x| x.and_then(outline)), result.clone()))
}

/// In bytes.
fn size(x: &Array) -> usize {
    x.elem_count() * x.dtype().size_in_bytes()
}

fn backend<const N: usize>(inputs: &[Option<&Tensor>; N], kernels: Kernels) -> Backend {
    let Some(x) = inputs.iter().flatten().next() else { return Backend::Composed };
    if forced() || kernels.everywhere {
        return Backend::Composed;
    }
    let typed = |types: &[DType]| inputs.iter().flatten().all(|x| types.contains(&x.dtype()));
    let fused = match inputs.iter().flatten().find_map(|x| x.trace()) {
        Some(trace) => trace.fused() && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16),
        None => cuda::takes(x.array()),
    };
    match fused {
        true if kernels.card => Backend::Card,
        true => Backend::Composed,
        false if x.device().is_cpu() && typed(&[DType::F32, DType::F64, DType::BF16, DType::F16]) => Backend::Processor,
        false => Backend::Composed,
    }
}

#[cfg(test)]
thread_local! {
    static COMPOSED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(test)]
fn forced() -> bool {
    COMPOSED.get()
}

#[cfg(not(test))]
fn forced() -> bool {
    false
}

/// `f` with every op composed of others, to test kernels against.
#[cfg(test)]
pub fn compositions<T>(f: impl FnOnce() -> T) -> T {
    let before = COMPOSED.replace(true);
    let value = f();
    COMPOSED.set(before);
    value
}
