//! Gradients: the `custom_vjp` node every op is made of, vector-Jacobian products, checkpointed segments, gradient check.
//!
//! candle's own backward computes gradients nobody asked for and keeps them; nodes made here compute them only for inputs
//! that lead to a variable, and graphs of such nodes alone are walked back by `tape`. Returned gradients are detached.

use crate::bail;
use crate::error::Result;
use crate::profile;
use crate::tensor::tape::{self, Backward, Entry};
pub use crate::tensor::tape::{Keep, is_ours, rows};
use crate::tensor::{Rng, interrupt};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, InplaceOp1, Layout, Shape, Tensor, Var};
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

type Candle<T> = candle_core::Result<T>;

/// A graph node with a hand-written backward.
///
/// `output` was computed from detached `inputs` and owns fresh, contiguous storage (never a view of an input): it is moved
/// into the node without a copy. `backward(grad, wanted)` gets the gradient of the output and, per input, whether it leads to
/// a variable; it returns one optional gradient per input (none: zero). If no input leads to a variable the output is
/// returned as it is. In a profile the node stands under the name of the caller's file.
#[track_caller]
pub fn custom_vjp(
    inputs: &[&Tensor],
    output: Tensor,
    backward: impl Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let op = profile::name_of(Location::caller());
    profile::forward(op);
    interrupt::check()?;
    let tracked: Vec<&Tensor> = inputs.iter().filter(|x| x.track_op()).copied().collect();
    if tracked.is_empty() {
        return Ok(output);
    }
    let output = output.contiguous()?;
    let node = Arc::new(Node {
        wanted: inputs.iter().map(|x| x.track_op()).collect(),
        backward: Arc::new(move |grad: &Tensor, wanted: &[bool]| profile::backward(op, || backward(grad, wanted))),
        entry: OnceLock::new(),
        gradients: Mutex::new(Vec::new()),
        output: Mutex::new(None),
        shape: output.shape().clone(),
    });
    output.inplace_op1(&Take(&node))?;
    // A candle op has three inputs at most, so the node is a chain: each part holds two inputs and the next part. The head
    // carries the output; the others carry a scalar and hand out gradients that the head's backward left in the node.
    let seed = Tensor::zeros((), output.dtype(), output.device())?;
    let mut chain = seed.clone();
    for start in (0..tracked.len()).step_by(2).rev() {
        let second = tracked.get(start + 1).copied().unwrap_or(&seed);
        chain = tracked[start].apply_op3(second, &chain, Part { node: node.clone(), start })?;
    }
    node.entry.get_or_init(|| Entry::new(&chain, inputs, node.backward.clone()));
    Ok(chain)
}

/// What the parts of one node share.
struct Node {
    wanted: Vec<bool>,
    backward: Arc<Backward>,
    entry: OnceLock<Arc<Entry>>,
    /// Gradients of the tracked inputs, from the head's backward until each part has taken its own.
    gradients: Mutex<Vec<Option<Tensor>>>,
    output: Mutex<Option<Storage>>,
    shape: Shape,
}

enum Storage {
    Cpu(CpuStorage),
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // none is made
    Cuda(CudaStorage),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Moves a tensor's storage into the node, leaving an empty one.
struct Take<'a>(&'a Node);

impl InplaceOp1 for Take<'_> {
    fn name(&self) -> &'static str {
        "custom_vjp"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Candle<()> {
        let empty = match storage {
            CpuStorage::F32(_) => CpuStorage::F32(Vec::new()),
            CpuStorage::F64(_) => CpuStorage::F64(Vec::new()),
            CpuStorage::BF16(_) => CpuStorage::BF16(Vec::new()),
            CpuStorage::F16(_) => CpuStorage::F16(Vec::new()),
            _ => candle_core::bail!("custom_vjp: expected a float output"),
        };
        if layout.start_offset() != 0 {
            candle_core::bail!("custom_vjp: the output must own its storage");
        }
        *lock(&self.0.output) = Some(Storage::Cpu(std::mem::replace(storage, empty)));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Candle<()> {
        if layout.start_offset() != 0 {
            candle_core::bail!("custom_vjp: the output must own its storage");
        }
        let empty = crate::tensor::cuda::driver::empty(storage)?;
        *lock(&self.0.output) = Some(Storage::Cuda(std::mem::replace(storage, empty)));
        Ok(())
    }
}

/// Two tracked inputs of a node, from `start` on; the part with `start == 0` is the head.
struct Part {
    node: Arc<Node>,
    start: usize,
}

impl CustomOp3 for Part {
    fn name(&self) -> &'static str {
        "custom_vjp"
    }

    #[rustfmt::skip]
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, scalar: &CpuStorage, _: &Layout) -> Candle<(CpuStorage, Shape)> {
        if self.start > 0 {
            return Ok((scalar.clone(), Shape::from(())));
        }
        match lock(&self.node.output).take() {
            Some(Storage::Cpu(storage)) => Ok((storage, self.node.shape.clone())),
            _ => candle_core::bail!("custom_vjp: inputs and output are on different devices"),
        }
    }

    #[rustfmt::skip]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout, scalar: &CudaStorage, layout: &Layout) -> Candle<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        if self.start > 0 {
            return Ok((scalar.try_clone(layout)?, Shape::from(())));
        }
        match lock(&self.node.output).take() {
            Some(Storage::Cuda(storage)) => Ok((storage, self.node.shape.clone())),
            _ => candle_core::bail!("custom_vjp: inputs and output are on different devices"),
        }
    }

    #[rustfmt::skip]
    fn bwd(&self, a: &Tensor, b: &Tensor, chain: &Tensor, _: &Tensor, grad: &Tensor) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let node = &self.node;
        if self.start == 0 {
            let all = (node.backward)(grad, &node.wanted)?;
            *lock(&node.gradients) = all.into_iter().zip(&node.wanted).filter(|(_, wanted)| **wanted).map(|(g, _)| g).collect();
        }
        let take = |i: usize, x: &Tensor| -> Candle<Option<Tensor>> {
            if !x.track_op() {
                return Ok(None);
            }
            let gradient = lock(&node.gradients).get_mut(i).and_then(Option::take);
            Ok(Some(gradient.map_or_else(|| x.zeros_like(), Ok)?.detach()))
        };
        // The rest of the chain gets a zero so that candle visits it.
        let rest = if chain.track_op() { Some(chain.zeros_like()?.detach()) } else { None };
        Ok((take(self.start, a)?, take(self.start + 1, b)?, rest))
    }
}

/// Gradients of a scalar for each of `wanted` (variables), detached, in order.
///
/// A tensor that the loss does not depend on is an error naming its index.
pub fn gradients(loss: &Tensor, wanted: &[Tensor]) -> Result<Vec<Tensor>> {
    if loss.elem_count() != 1 {
        bail!(Shape, "gradients: expected a scalar loss, got shape {:?}", loss.dims(); hint: "reduce it with `sum()` or `mean()`");
    }
    let found = match tape::walk(loss, &loss.ones_like()?, wanted)? {
        Some(found) => found,
        None => {
            let mut store = loss.sum_all()?.backward()?;
            wanted.iter().map(|x| store.remove(x)).collect()
        }
    };
    found
        .into_iter()
        .zip(wanted)
        .enumerate()
        .map(|(i, (found, x))| match found {
            Some(gradient) => Ok(gradient.detach()),
            None => bail!(Value, "gradients: the loss does not depend on tensor {i} (shape {:?})", x.dims();
                hint: "an operation on the way to the loss cuts the gradient, or the tensor is not used"),
        })
        .collect()
}

/// Value and gradient of a scalar function at `x`, both detached.
pub fn value_and_grad(f: impl FnOnce(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let variable = Var::from_tensor(&x.detach())?;
    let value = f(variable.as_tensor())?;
    let gradient = gradients(&value, &[variable.as_tensor().clone()])?.remove(0);
    Ok((value.detach(), gradient))
}

/// Value `f(x)` and vector-Jacobian product `J(x)^T v`, both detached.
pub fn vjp(f: impl FnOnce(&Tensor) -> Result<Tensor>, x: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
    let variable = Var::from_tensor(&x.detach())?;
    let value = f(variable.as_tensor())?;
    if value.dims() != v.dims() {
        bail!(Shape, "vjp: expected a vector of the value's shape {:?}, got {:?}", value.dims(), v.dims());
    }
    let gradient = pullback(&value, v, &[variable.as_tensor().clone()])?.remove(0);
    Ok((value.detach(), gradient))
}

/// Gradients of `sum(value * v)` for each of `wanted`, without forming the product; zeros where `value` does not depend on one.
pub fn pullback(value: &Tensor, v: &Tensor, wanted: &[Tensor]) -> Result<Vec<Tensor>> {
    let or_zeros = |(found, x): (Option<Tensor>, &Tensor)| Ok(found.map_or_else(|| x.zeros_like(), Ok)?.detach());
    if let Some(found) = tape::walk(value, v, wanted)? {
        return found.into_iter().zip(wanted).map(or_zeros).collect();
    }
    let v = v.detach();
    let product = Tensor::zeros((), value.dtype(), value.device())?;
    let mut store = custom_vjp(&[value], product, move |_, _| Ok(vec![Some(v.clone())]))?.backward()?;
    wanted.iter().map(|x| or_zeros((store.remove(x), x))).collect()
}

/// Runs `f` without keeping its graph and runs it again in the backward: memory for compute.
///
/// Gradients flow to `inputs` and to `params`, the variables that `f` uses, and to nothing else.
pub fn segment(
    inputs: &[&Tensor],
    params: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let detached: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
    let value = f(&detached)?;
    if !inputs.iter().copied().chain(params).any(|x| x.track_op()) {
        return Ok(value);
    }
    let value = value.detach();
    deferred(&value, inputs, params, f)
}

/// [`segment`] whose value is known already, so that `f` runs in the backward only.
pub fn deferred(
    value: &Tensor,
    inputs: &[&Tensor],
    params: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let detached: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
    let all: Vec<&Tensor> = inputs.iter().copied().chain(params).collect();
    let params = params.to_vec();
    custom_vjp(&all, value.detach().copy()?, move |grad, wanted| {
        let fresh = |(x, wanted): (&Tensor, &bool)| match wanted {
            true => Ok(Var::from_tensor(x)?.into_inner()),
            false => Ok(x.clone()),
        };
        let inputs: Vec<Tensor> = detached.iter().zip(wanted).map(fresh).collect::<Result<_>>()?;
        let value = f(&inputs)?;
        let asked = inputs.into_iter().chain(params.iter().cloned()).zip(wanted);
        let tracked: Vec<Tensor> = asked.filter(|(_, wanted)| **wanted).map(|(x, _)| x).collect();
        let mut gradients = pullback(&value, grad, &tracked)?.into_iter();
        Ok(wanted.iter().map(|wanted| if *wanted { gradients.next() } else { None }).collect())
    })
}

/// `f` of the inputs as one node, whatever operations it is made of: for small tensors, which are copied.
///
/// Gradients flow to `inputs` and to nothing else.
#[track_caller]
pub fn composed(inputs: &[&Tensor], f: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let inner = |x: &&Tensor| match x.track_op() {
        true => Ok(Var::from_tensor(&x.detach())?.into_inner()),
        false => Ok(x.detach()),
    };
    let inner: Vec<Tensor> = inputs.iter().map(inner).collect::<Result<_>>()?;
    let value = f(&inner)?;
    if !value.track_op() {
        return Ok(value);
    }
    custom_vjp(inputs, value.detach().copy()?, move |grad, wanted| {
        let asked: Vec<Tensor> =
            inner.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(x, _)| x.clone()).collect();
        let mut gradients = pullback(&value, grad, &asked)?.into_iter();
        Ok(wanted.iter().map(|wanted| if *wanted { gradients.next() } else { None }).collect())
    })
}

/// Largest error of the gradient of `sum(w * f(x))` against central differences, relative to the largest gradient entry.
///
/// `w` is a fixed random weight. At most 64 entries of `x`, spread evenly, are checked; use f64 inputs.
pub fn gradcheck(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor, seed: u64) -> Result<f64> {
    let x = x.detach().contiguous()?;
    let w = Rng::new(seed).normal(f(&x)?.dims(), x.dtype(), x.device())?;
    let (_, analytic) = vjp(&f, &x, &w)?;
    let to_vec =
        |t: &Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1()?) };
    let (analytic, values) = (to_vec(&analytic)?, to_vec(&x)?);
    let step = if x.dtype() == candle_core::DType::F64 { 1e-5 } else { 1e-2 };
    let value_at = |i: usize, delta: f64| -> Result<f64> {
        let mut moved = values.clone();
        moved[i] += delta;
        let moved = Tensor::from_vec(moved, x.dims(), &candle_core::Device::Cpu)?.to_dtype(x.dtype())?;
        Ok(to_vec(&(f(&moved.to_device(x.device())?)?.detach() * &w)?)?.iter().sum())
    };
    let scale = analytic.iter().fold(1e-12f64, |m, v| m.max(v.abs()));
    let mut worst = 0.0f64;
    for i in (0..values.len()).step_by(values.len().div_ceil(64).max(1)) {
        let numeric = (value_at(i, step)? - value_at(i, -step)?) / (2.0 * step);
        let error = (numeric - analytic[i]).abs() / scale;
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn random(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
    }

    /// sum_i (i + 1) x_i as one node with many inputs.
    fn weighted_sum(inputs: &[&Tensor]) -> Result<Tensor> {
        let mut output = inputs[0].detach().copy()?;
        for (i, x) in inputs.iter().enumerate().skip(1) {
            output = (output + (x.detach() * (i + 1) as f64)?)?;
        }
        custom_vjp(inputs, output, |grad, wanted| {
            wanted.iter().enumerate().map(|(i, w)| Ok(if *w { Some((grad * (i + 1) as f64)?) } else { None })).collect()
        })
    }

    #[test]
    fn a_node_takes_any_number_of_inputs() {
        for n in 1..8 {
            let variables: Vec<Tensor> =
                (0..n).map(|i| Var::from_tensor(&random(&[3], i as u64)).unwrap().into_inner()).collect();
            let squares: Vec<Tensor> = variables.iter().map(|x| x.sqr().unwrap()).collect();
            let frozen = random(&[3], 99);
            let mut inputs: Vec<&Tensor> = squares.iter().collect();
            inputs.insert(n / 2, &frozen);
            let loss = weighted_sum(&inputs).unwrap().sum_all().unwrap();
            let gradients = gradients(&loss, &variables).unwrap();
            for (i, (x, g)) in variables.iter().zip(gradients).enumerate() {
                let factor = if i < n / 2 { i + 1 } else { i + 2 } as f64;
                let error = (g - (x * (2.0 * factor)).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
                assert!(error.to_scalar::<f64>().unwrap() < 1e-12, "input {i} of {n}");
            }
        }
    }

    #[test]
    fn an_input_used_twice_gets_both_gradients() {
        let error = gradcheck(|x| weighted_sum(&[x, &x.sqr()?, x]), &random(&[4], 1), 2).unwrap();
        assert!(error < 1e-8, "{error}");
    }

    #[test]
    fn gradcheck_sees_a_wrong_gradient() {
        let wrong = |x: &Tensor| custom_vjp(&[x], x.detach().sqr()?, |g, _| Ok(vec![Some(g.clone())]));
        assert!(gradcheck(wrong, &random(&[4], 1), 2).unwrap() > 0.1);
    }

    #[test]
    fn segment_gradient_equals_plain_gradient() {
        let (x, w) = (random(&[3, 4], 1), Var::from_tensor(&random(&[4, 4], 2)).unwrap());
        let plain = |x: &Tensor, w: &Tensor| -> Result<Tensor> { Ok(x.matmul(w)?.tanh()?.sqr()?) };
        let loss = plain(&x, w.as_tensor()).unwrap().sum_all().unwrap();
        let checkpointed = segment(&[&x, w.as_tensor()], &[], move |i| plain(&i[0], &i[1])).unwrap().sum_all().unwrap();
        let wanted = [w.as_tensor().clone()];
        let inner = w.as_tensor().clone();
        let closed = segment(&[&x], &wanted, move |i| plain(&i[0], &inner)).unwrap().sum_all().unwrap();
        let expected = gradients(&loss, &wanted).unwrap();
        for other in [checkpointed, closed] {
            let got = gradients(&other, &wanted).unwrap();
            let error = (&expected[0] - &got[0]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-12, "{error}");
        }
    }

    #[test]
    fn missing_gradient_is_an_error() {
        let x = Var::from_tensor(&random(&[2], 1)).unwrap();
        let message = gradients(&random(&[], 2), &[x.as_tensor().clone()]).unwrap_err().to_string();
        assert!(message.contains("does not depend on tensor 0"), "{message}");
    }
}
