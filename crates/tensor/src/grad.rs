//! Gradients: nodes of one's own, vector-Jacobian products, checkpointed segments, gradient check. Returned gradients are constants.

use crate::graph::{Node, walk};
use crate::{DType, Device, Rng, Tensor, interrupt};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile;

/// `output`, computed from `inputs`, with a hand-written backward.
///
/// `backward(gradient, wanted)` gets the gradient of the output and, per input, whether it leads to a tensor that is asked for; it
/// returns one optional gradient per input (none: zero). `name` is what stands in a profile.
pub fn custom_vjp(
    name: &'static str,
    inputs: &[&Tensor],
    output: Tensor,
    backward: impl Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    profile::forward(name, || 0.0);
    interrupt::check()?;
    let inputs: Vec<_> = inputs.iter().map(|x| Some(*x)).collect();
    let run = move |gradient: &Tensor, wanted: &[bool]| profile::backward(name, || 0.0, || backward(gradient, wanted));
    let node = Node::made_of(&inputs, false, run);
    Ok(Tensor { node, ..output })
}

/// Gradients of a scalar for each of `wanted`, in order.
///
/// A tensor that the loss does not depend on is an error naming its index.
pub fn gradients(loss: &Tensor, wanted: &[Tensor]) -> Result<Vec<Tensor>> {
    if loss.elem_count() != 1 {
        bail!(Shape, "gradients: expected a scalar loss, got shape {:?}", loss.dims(); hint: "reduce it with `sum()` or `mean()`");
    }
    let found = walk(loss, &loss.ones_like()?, wanted)?;
    let each = found.into_iter().zip(wanted).enumerate().map(|(i, (found, x))| match found {
        Some(gradient) => Ok(gradient),
        None => bail!(Value, "gradients: the loss does not depend on tensor {i} (shape {:?})", x.dims();
            hint: "an operation on the way to the loss cuts the gradient, or the tensor is not used"),
    });
    each.collect()
}

/// Value and gradient of a scalar function at `x`.
pub fn value_and_grad(f: impl FnOnce(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let x = x.leaf();
    let value = f(&x)?;
    let gradient = gradients(&value, &[x])?.remove(0);
    Ok((value.detach()?, gradient))
}

/// Value `f(x)` and vector-Jacobian product `J(x)^T v`.
pub fn vjp(f: impl FnOnce(&Tensor) -> Result<Tensor>, x: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
    let x = x.leaf();
    let value = f(&x)?;
    if value.dims() != v.dims() {
        bail!(Shape, "vjp: expected a vector of the value's shape {:?}, got {:?}", value.dims(), v.dims());
    }
    let gradient = pullback(&value, v, &[x])?.remove(0);
    Ok((value.detach()?, gradient))
}

/// Gradients of `sum(value * v)` for each of `wanted`, without forming the product; zeros where `value` does not depend on one.
pub fn pullback(value: &Tensor, v: &Tensor, wanted: &[Tensor]) -> Result<Vec<Tensor>> {
    let found = walk(value, v, wanted)?.into_iter().zip(wanted);
    found.map(|(found, x)| found.map_or_else(|| x.zeros_like(), Ok)).collect()
}

/// Runs `f` without keeping its graph and runs it again in the backward: memory for compute.
///
/// Gradients flow to `inputs` and to `params`, the variables that `f` uses, and to nothing else.
pub fn segment(
    inputs: &[&Tensor],
    params: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let constants: Vec<Tensor> = inputs.iter().map(|x| x.constant()).collect();
    let value = f(&constants)?.constant();
    match inputs.iter().copied().chain(params).any(|x| x.requires_grad()) {
        true => deferred(&value, inputs, params, f),
        false => Ok(value),
    }
}

/// [`segment`] whose value is known already, so that `f` runs in the backward only.
pub fn deferred(
    value: &Tensor,
    inputs: &[&Tensor],
    params: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let constants: Vec<Tensor> = inputs.iter().map(|x| x.constant()).collect();
    let all: Vec<&Tensor> = inputs.iter().copied().chain(params).collect();
    let params = params.to_vec();
    custom_vjp("segment", &all, value.constant(), move |gradient, wanted| {
        let again = |(x, wanted): (&Tensor, &bool)| if *wanted { x.leaf() } else { x.clone() };
        let inputs: Vec<Tensor> = constants.iter().zip(wanted).map(again).collect();
        let value = f(&inputs)?;
        let asked = inputs.into_iter().chain(params.iter().cloned()).zip(wanted);
        let asked: Vec<Tensor> = asked.filter(|(_, wanted)| **wanted).map(|(x, _)| x).collect();
        let mut gradients = pullback(&value, gradient, &asked)?.into_iter();
        Ok(wanted.iter().map(|wanted| if *wanted { gradients.next() } else { None }).collect())
    })
}

/// Largest error of the gradient of `sum(w * f(x))` against central differences, relative to the largest gradient entry.
///
/// `w` is a fixed random weight. At most 64 entries of `x`, spread evenly, are checked; use f64 inputs.
pub fn gradcheck(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor, seed: u64) -> Result<f64> {
    let x = x.constant().contiguous()?;
    let w = Rng::new(seed).normal(f(&x)?.dims(), x.dtype(), x.device())?;
    let (_, analytic) = vjp(&f, &x, &w)?;
    let to_vec = |t: &Tensor| -> Result<Vec<f64>> { t.flatten_all()?.to_dtype(DType::F64)?.to_vec1() };
    let (analytic, values) = (to_vec(&analytic)?, to_vec(&x)?);
    let step = if x.dtype() == DType::F64 { 1e-5 } else { 1e-2 };
    let value_at = |i: usize, delta: f64| -> Result<f64> {
        let mut moved = values.clone();
        moved[i] += delta;
        let moved = Tensor::from_vec(moved, x.dims(), &Device::Cpu)?.to_dtype(x.dtype())?;
        Ok(to_vec(&(f(&moved.to_device(x.device())?)? * &w)?)?.iter().sum())
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

    fn random(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
    }

    /// sum_i (i + 1) x_i as one node with many inputs.
    fn weighted_sum(inputs: &[&Tensor]) -> Result<Tensor> {
        let mut output = inputs[0].constant();
        for (i, x) in inputs.iter().enumerate().skip(1) {
            output = (output + (x.constant() * (i + 1) as f64)?)?;
        }
        custom_vjp("sum", inputs, output, |grad, wanted| {
            wanted.iter().enumerate().map(|(i, w)| Ok(if *w { Some((grad * (i + 1) as f64)?) } else { None })).collect()
        })
    }

    #[test]
    fn a_node_takes_any_number_of_inputs() {
        for n in 1..8 {
            let variables: Vec<Tensor> = (0..n).map(|i| random(&[3], i as u64).leaf()).collect();
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
        let wrong = |x: &Tensor| custom_vjp("wrong", &[x], x.constant().sqr()?, |g, _| Ok(vec![Some(g.clone())]));
        assert!(gradcheck(wrong, &random(&[4], 1), 2).unwrap() > 0.1);
    }

    #[test]
    fn segment_gradient_equals_plain_gradient() {
        let (x, w) = (random(&[3, 4], 1), random(&[4, 4], 2).leaf());
        let plain = |x: &Tensor, w: &Tensor| -> Result<Tensor> { x.matmul(w)?.tanh()?.sqr() };
        let loss = plain(&x, &w).unwrap().sum_all().unwrap();
        let checkpointed = segment(&[&x, &w], &[], move |i| plain(&i[0], &i[1])).unwrap().sum_all().unwrap();
        let wanted = [w.clone()];
        let inner = w.clone();
        let closed = segment(&[&x], &wanted, move |i| plain(&i[0], &inner)).unwrap().sum_all().unwrap();
        let expected = gradients(&loss, &wanted).unwrap();
        for other in [checkpointed, closed] {
            let got = gradients(&other, &wanted).unwrap();
            let error = (&expected[0] - &got[0]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-12, "{error}");
        }
    }

    #[test]
    fn a_long_graph_takes_no_stack() {
        let run = || {
            let x = random(&[1], 1).leaf();
            let y = (0..100_000).try_fold(x.clone(), |y, _| y.affine(1.0, 1.0)).unwrap();
            gradients(&y, &[x]).unwrap()[0].to_vec1::<f64>().unwrap()
        };
        let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(run).unwrap();
        assert_eq!(thread.join().unwrap(), [1.0]);
    }

    #[test]
    fn missing_gradient_is_an_error() {
        let x = random(&[2], 1).leaf();
        let message = gradients(&random(&[], 2), &[x]).unwrap_err().to_string();
        assert!(message.contains("does not depend on tensor 0"), "{message}");
    }
}
