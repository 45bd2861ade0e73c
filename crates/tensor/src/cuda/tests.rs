//! What the cases of `op` do not say of the card's kernels: types that differ, masks that hide.

use crate::grad::pullback;
use crate::op::{attention, layer_norm};
use crate::{DType, Device, Rng, Tensor, place};
use amscript_base::error::Result;

fn normal(shape: &[usize], seed: u64) -> Tensor {
    Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
}

/// Value and gradients on the card; none where there is none.
fn run(inputs: &[Tensor], dtype: DType, f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Option<Vec<Tensor>> {
    let device = place::from_environment().unwrap();
    if !device.is_cuda() {
        return None;
    }
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_device(&device).unwrap().leaf()).collect();
    let value = f(&inputs).unwrap();
    let v = Tensor::ones(value.dims(), DType::F32, &device).unwrap().to_dtype(dtype).unwrap();
    let gradients = pullback(&value, &v, &inputs).unwrap();
    Some(std::iter::once(value.constant()).chain(gradients).collect())
}

#[test]
fn weights_of_another_type_keep_it() {
    let inputs = [normal(&[3, 16], 1).to_dtype(DType::BF16).unwrap(), normal(&[16], 2).to_dtype(DType::F32).unwrap()];
    let got = run(&inputs, DType::BF16, |i| layer_norm(&i[0], Some(&i[1]), None, 1e-5));
    let types = got.map(|got| got.iter().map(Tensor::dtype).collect::<Vec<_>>());
    assert!(types.is_none_or(|t| t == [DType::BF16, DType::BF16, DType::F32]));
}

#[test]
fn a_mask_of_minus_infinity_hides_keys() {
    let (s, t) = (20, 70);
    let hidden: Vec<f64> = (0..s * t).map(|i| if i % t > i / t { f64::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(hidden, (1, 1, s, t), &Device::Cpu).unwrap();
    let inputs = [normal(&[1, s, 2, 16], 1), normal(&[1, t, 2, 16], 2), normal(&[1, t, 2, 16], 3)];
    let masked = |i: &[Tensor]| {
        let mask = mask.to_dtype(if i[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 })?;
        attention(&i[0], &i[1], &i[2], 0.25, Some(&mask.to_device(i[0].device())?))
    };
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1.5e-2)] {
        let rounded: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let exact: Vec<Tensor> = rounded.iter().map(|x| x.to_dtype(DType::F64).unwrap().leaf()).collect();
        let value = masked(&exact).unwrap();
        let gradients = pullback(&value, &value.ones_like().unwrap(), &exact).unwrap();
        let expected = std::iter::once(value.constant()).chain(gradients);
        for (got, expected) in run(&rounded, dtype, masked).into_iter().flatten().zip(expected) {
            let got = got.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
            let top = |x: Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            let error = top((got - &expected).unwrap()) / top(expected).max(1e-3);
            assert!(error < tolerance, "{dtype:?}: {error:e}");
        }
    }
}
