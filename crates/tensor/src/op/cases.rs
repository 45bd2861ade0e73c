//! The list of ops as a list of test cases, and what holds for each of them: gradients against differences, kernels against
//! compositions, f32 and half precision against f64, the card's kernels where there is one, and shapes without numbers.

use super::call::compositions;
use super::*;
use crate::grad::{gradcheck, pullback};
use crate::meta::Trace;
use crate::{DType, Device, Rng, Tensor};
use amscript_base::error::Result;

type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An op at some sizes.
pub struct Case {
    pub name: String,
    /// In f64.
    pub inputs: Vec<Tensor>,
    pub run: Run,
    /// Whether the card has a kernel of its own.
    pub card: bool,
    /// Whether there is a composition to compare with.
    pub composed: bool,
}

/// `f` of standard normal inputs of these shapes.
pub fn case(name: impl Into<String>, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
    let inputs = shapes.iter().enumerate().map(|(i, shape)| normal(shape, i as u64 + 1)).collect();
    Case { name: name.into(), inputs, run: Box::new(f), card: true, composed: true }
}

fn normal(shape: &[usize], seed: u64) -> Tensor {
    Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
}

impl Case {
    pub fn offset(mut self, input: usize, by: f64) -> Self {
        self.inputs[input] = (&self.inputs[input] + by).unwrap();
        self
    }

    pub fn scaled(mut self, input: usize, by: f64) -> Self {
        self.inputs[input] = (&self.inputs[input] * by).unwrap();
        self
    }

    pub fn without_card(mut self) -> Self {
        self.card = false;
        self
    }

    /// For candle's own operations, which are nothing else's composition.
    pub fn elementary(mut self) -> Self {
        (self.card, self.composed) = (false, false);
        self
    }

    /// The value and the gradient of each input where a fixed vector comes back, with inputs in `dtype` on `device`.
    fn results(&self, inputs: &[Tensor], dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
        self.results_at(inputs, dtype, device, 0)
    }

    /// The same of inputs that begin `start` numbers into their storage.
    fn results_at(&self, inputs: &[Tensor], dtype: DType, device: &Device, start: usize) -> Result<Vec<Tensor>> {
        let at = |x: &Tensor| {
            let x = x.to_dtype(dtype)?.to_device(device)?;
            let behind =
                || x.flatten_all()?.pad_with_zeros(0, start, 0)?.narrow(0, start, x.elem_count())?.reshape(x.dims());
            Ok(if start == 0 { x } else { behind()? }.leaf())
        };
        let inputs = inputs.iter().map(at).collect::<Result<Vec<_>>>()?;
        let value = (self.run)(&inputs)?;
        let v = normal(value.dims(), 99).to_dtype(DType::BF16)?.to_dtype(value.dtype())?.to_device(device)?;
        let gradients = pullback(&value, &v, &inputs)?;
        Ok(std::iter::once(value.constant()).chain(gradients).collect())
    }
}

fn all() -> Vec<Case> {
    [
        activation::cases(),
        attention::cases(),
        conv::cases(),
        elementwise::cases(),
        gate::cases(),
        layout::cases(),
        linear::cases(),
        norm::cases(),
        pool::cases(),
        product::cases(),
        reduce::cases(),
        resize::cases(),
        rope::cases(),
        softmax::cases(),
        unit::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The largest difference, relative to the largest number of `expected` or to 1.
fn error(got: &Tensor, expected: &Tensor, least: f64) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    if expected.elem_count() == 0 {
        return 0.0;
    }
    let top = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    let wide = |x: &Tensor| x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    top(&(wide(got) - wide(expected)).unwrap()) / top(&wide(expected)).max(least)
}

fn agree(name: &str, got: &[Tensor], expected: &[Tensor], tolerance: f64, least: f64) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let what = if i == 0 { "value".to_string() } else { format!("gradient of input {}", i - 1) };
        let error = error(got, expected, least);
        assert!(error <= tolerance, "{name}, {what}: {error:e}");
    }
}

#[test]
fn gradients_agree_with_differences() {
    for case in all() {
        for i in 0..case.inputs.len() {
            let at = |x: &Tensor| {
                let mut inputs = case.inputs.clone();
                inputs[i] = x.clone();
                (case.run)(&inputs)
            };
            let error = gradcheck(at, &case.inputs[i], 5).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(error < 2e-7, "{}, input {i}: relative error {error:e}", case.name);
        }
    }
}

#[test]
fn kernels_agree_with_compositions() {
    for case in all().iter().filter(|case| case.composed) {
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
            let own = case.results(&case.inputs, dtype, &Device::Cpu).unwrap();
            let composed = compositions(|| case.results(&case.inputs, dtype, &Device::Cpu));
            let composed = composed.unwrap_or_else(|e| panic!("{}: {e}", case.name));
            agree(&format!("{} {dtype:?}", case.name), &own, &composed, tolerance, 1.0);
        }
    }
}

#[test]
fn smaller_types_agree_with_f64() {
    for case in all() {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            let rounded: Vec<Tensor> = case.inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
            let exact = case.results(&rounded, DType::F64, &Device::Cpu).unwrap();
            let got = case.results(&rounded, dtype, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(got.iter().all(|x| x.dtype() == dtype), "{}", case.name);
            agree(&format!("{} {dtype:?}", case.name), &got, &exact, tolerance, 1.0);
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn the_cards_kernels_agree_with_f64() {
    use crate::cuda::driver;
    let device = crate::place::from_environment().unwrap();
    for case in all().iter().filter(|case| case.card && device.is_cuda()) {
        // Inputs that begin inside their storage: wide accesses must not trip over them.
        for (dtype, tolerance, start) in [(DType::F32, 1e-5, 2), (DType::F16, 2e-3, 0), (DType::BF16, 1.5e-2, 2)] {
            let rounded: Vec<Tensor> = case.inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
            let exact = case.results(&rounded, DType::F64, &Device::Cpu).unwrap();
            let before = driver::launches();
            let got = case.results_at(&rounded, dtype, &device, start).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(driver::launches() > before, "{}: no kernel ran", case.name);
            agree(&format!("{} {dtype:?}", case.name), &got, &exact, tolerance, 1e-3);
        }
    }
}

#[test]
fn shapes_are_known_without_numbers() {
    for case in all() {
        for fused in [false, true] {
            let trace = Trace::new(fused);
            let of = |x: &Tensor| Tensor::meta(x.dims(), DType::F32, &trace).unwrap().leaf();
            let inputs: Vec<Tensor> = case.inputs.iter().map(of).collect();
            let held = trace.live();
            let value = (case.run)(&inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let real = (case.run)(&case.inputs).unwrap();
            assert_eq!(value.dims(), real.dims(), "{}", case.name);
            assert!(value.trace().is_some() && value.requires_grad(), "{}", case.name);
            let v = Tensor::meta(value.dims(), value.dtype(), &trace).unwrap();
            let gradients = pullback(&value, &v, &inputs).unwrap();
            for (gradient, x) in gradients.iter().zip(&inputs) {
                assert_eq!((gradient.dims(), gradient.dtype()), (x.dims(), x.dtype()), "{}", case.name);
            }
            assert!(trace.peak() >= trace.live() && trace.live() >= held, "{}", case.name);
            drop((value, v, gradients));
            assert_eq!(trace.live(), held, "{}: memory is given back", case.name);
        }
    }
}
