//! Every op's CUDA path against the CPU's in f64, values and gradients: on the card that `AMSCRIPT_DEVICE` names, else with the same kernels
//! run on the host, where there is g++.

use super::host;
use crate::error::Result;
use crate::tensor::grad::{is_ours, pullback};
use crate::tensor::op::*;
use crate::tensor::{DType, Device, Rng, Tensor, place};
use candle_core::Var;

fn random(shape: &[usize], seed: u64) -> Tensor {
    Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
}

/// Largest difference of the numbers, relative to the largest of the second.
fn error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let top = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    let got = got.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    top(&(got - expected).unwrap()) / top(expected).max(1e-3)
}

/// The value, and the gradient of each input where `v` comes back.
fn run(inputs: &[Tensor], v: &Tensor, f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|x| Var::from_tensor(x).unwrap().into_inner()).collect();
    let value = f(&inputs).unwrap();
    assert!(is_ours(&value), "one of candle's operations is in the graph");
    let gradients = pullback(&value, &v.to_dtype(value.dtype()).unwrap(), &inputs).unwrap();
    std::iter::once(value.detach()).chain(gradients).collect()
}

/// Value and gradients in these types against f64 on the CPU; of as many inputs as are named, the others are f32 throughout.
fn agree(name: &str, types: &[DType], inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let device = place::from_environment().unwrap();
    for dtype in types {
        let tolerance = match dtype {
            DType::BF16 => 1.5e-2,
            DType::F16 => 2e-3,
            _ => 1e-5,
        };
        let rounded: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(*dtype).unwrap()).collect();
        let exact: Vec<Tensor> = rounded.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
        let shape = f(&exact).unwrap().dims().to_vec();
        let v = random(&shape, 99).to_dtype(*dtype).unwrap();
        let expected = run(&exact, &v.to_dtype(DType::F64).unwrap(), &f);
        let there: Vec<Tensor> = rounded.iter().map(|x| x.to_device(&device).unwrap()).collect();
        let (before, v) = (host::launches(), v.to_device(&device).unwrap());
        let got = match device.is_cuda() {
            true => Some(run(&there, &v, &f)),
            false => host::emulate(|| run(&there, &v, &f)),
        };
        let Some(got) = got else {
            return eprintln!("skipped: {name} on the host needs g++");
        };
        assert!(device.is_cuda() || host::launches() > before, "{name}: no kernel ran");
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let error = error(got, expected);
            assert!(
                error < tolerance,
                "{name} {dtype:?}, {}: {error:e}",
                if i == 0 { "value".into() } else { format!("input {i}") }
            );
        }
    }
}

const ALL: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn norms() {
    for (rows, width) in [(5, 8), (3, 20), (7, 640), (2, 1300)] {
        let inputs = [random(&[2, rows, width], 1), random(&[width], 2), random(&[width], 3)];
        let name = |n: &str| format!("{n} of {rows} x {width}");
        agree(&name("layer_norm"), &ALL, &inputs, |i| layer_norm(&i[0], Some(&i[1]), Some(&i[2]), 1e-5));
        agree(&name("plain layer_norm"), &ALL, &inputs[..1], |i| layer_norm(&i[0], None, None, 1e-5));
        agree(&name("rms_norm"), &ALL, &inputs[..2], |i| rms_norm(&i[0], &i[1], 1e-5));
        let inputs = [random(&[2, rows, width], 1), random(&[2, width], 2), random(&[2, width], 3)];
        agree(&name("modulated_norm"), &ALL, &inputs, |i| modulated_norm(&i[0], &i[1], &i[2], 1e-5));
    }
    let x = (random(&[2, 300, 8], 1) + 3.0).unwrap();
    agree("rms_norm of many rows", &ALL, &[x, random(&[8], 2)], |i| rms_norm(&i[0], &i[1], 1e-5));
}

#[test]
fn weights_of_another_type_keep_it() {
    let (x, w) = (random(&[3, 16], 1).to_dtype(DType::BF16).unwrap(), random(&[16], 2).to_dtype(DType::F32).unwrap());
    let device = place::from_environment().unwrap();
    let (x, w) = (x.to_device(&device).unwrap(), w.to_device(&device).unwrap());
    let f = |i: &[Tensor]| layer_norm(&i[0], Some(&i[1]), None, 1e-5);
    let v = Tensor::ones((3, 16), DType::F32, &device).unwrap();
    let got = if device.is_cuda() { Some(run(&[x, w], &v, &f)) } else { host::emulate(|| run(&[x, w], &v, &f)) };
    let types = got.map(|got| got.iter().map(Tensor::dtype).collect::<Vec<_>>());
    assert!(types.is_none_or(|t| t == [DType::BF16, DType::BF16, DType::F32]));
}

#[test]
fn groups() {
    for (channels, groups, side) in [(8, 4, 3), (6, 2, 8), (4, 4, 24)] {
        let x = (random(&[2, channels, side, side], 1) + 2.0).unwrap();
        let inputs = [x, random(&[channels], 2), random(&[channels], 3)];
        let name = |n: &str| format!("{n} of {channels} channels, {side} x {side}");
        agree(&name("group_norm"), &ALL, &inputs, |i| group_norm(&i[0], groups, &i[1], &i[2], 1e-6));
        agree(&name("group_norm_silu"), &ALL, &inputs, |i| group_norm_silu(&i[0], groups, &i[1], &i[2], 1e-6));
    }
}

#[test]
fn activations() {
    type Op = fn(&Tensor) -> Result<Tensor>;
    let all: [(&str, Op); 9] = [
        ("sigmoid", sigmoid),
        ("relu", relu),
        ("silu", silu),
        ("softplus", softplus),
        ("quick_gelu", quick_gelu),
        ("gelu_erf", gelu_erf),
        ("gelu_tanh", gelu_tanh),
        ("swiglu", swiglu),
        ("softmax", softmax),
    ];
    for width in [6, 32, 2080] {
        let x = (random(&[3, width], 1) * 2.0).unwrap();
        for (name, op) in all {
            agree(&format!("{name} of {width}"), &ALL, std::slice::from_ref(&x), |i| op(&i[0]));
        }
    }
}

#[test]
fn sums_and_gates() {
    for width in [6, 40] {
        let inputs = [random(&[2, 5, width], 1), random(&[2, width], 2), random(&[2, 5, width], 3)];
        agree("gated_add", &ALL, &inputs, |i| gated_add(&i[0], &i[1], &i[2]));
        agree("combine", &ALL, &inputs, |i| combine((&i[0], 0.5), (&i[2], -2.0)));
    }
}

#[test]
fn rotations() {
    let (s, d) = (5, 8);
    let angles = random(&[s, d / 2], 4);
    let turn = |f: fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>| {
        let angles = angles.clone();
        move |i: &[Tensor]| {
            let on = |x: Tensor| {
                x.to_dtype(if i[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 })?.to_device(i[0].device())
            };
            f(&i[0], &on(angles.cos()?)?, &on(angles.sin()?)?)
        }
    };
    let x = [random(&[2, s, 3, d], 1)];
    agree("rope_pairs", &ALL, &x, turn(rope_pairs));
    agree("rope_halves", &ALL, &x, turn(rope_halves));
}

#[test]
fn attention_in_f32_and_on_tensor_cores() {
    // batch, s, t, heads, kv, d
    let cases = [(1, 5, 7, 2, 2, 8), (2, 70, 70, 2, 1, 40), (1, 65, 130, 3, 3, 72), (1, 40, 33, 2, 2, 128)];
    for (batch, s, t, heads, kv, d) in cases {
        let inputs = [random(&[batch, s, heads, d], 1), random(&[batch, t, kv, d], 2), random(&[batch, t, kv, d], 3)];
        let name = format!("attention {s} x {t}, {heads} / {kv} heads of {d}");
        let scale = 1.0 / (d as f64).sqrt();
        agree(&name, &ALL, &inputs, |i| attention(&i[0], &i[1], &i[2], scale, None));
        let mask = random(&[batch, 1, s, t], 4);
        agree(&format!("masked {name}"), &ALL, &inputs, |i| {
            let mask = mask.to_dtype(if i[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 })?;
            attention(&i[0], &i[1], &i[2], scale, Some(&mask.to_device(i[0].device())?))
        });
    }
    let wide = [random(&[1, 9, 1, 136], 1), random(&[1, 9, 1, 136], 2), random(&[1, 9, 1, 136], 3)];
    agree("attention of a wide head", &ALL, &wide, |i| attention(&i[0], &i[1], &i[2], 0.1, None));
}

#[test]
fn a_mask_of_minus_infinity_hides_keys() {
    let (s, t) = (20, 70);
    let hidden: Vec<f64> = (0..s * t).map(|i| if i % t > i / t { f64::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(hidden, (1, 1, s, t), &Device::Cpu).unwrap();
    let inputs = [random(&[1, s, 2, 16], 1), random(&[1, t, 2, 16], 2), random(&[1, t, 2, 16], 3)];
    agree("causal attention", &ALL, &inputs, |i| {
        let mask = mask.to_dtype(if i[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 })?;
        attention(&i[0], &i[1], &i[2], 0.25, Some(&mask.to_device(i[0].device())?))
    });
}

#[test]
fn products() {
    for (rows, inner, out) in [(3, 5, 7), (9, 16, 8)] {
        let inputs = [
            random(&[2, rows, inner], 1),
            random(&[out, inner], 2),
            random(&[out], 3),
            random(&[2, inner], 4),
            random(&[out, 2], 5),
        ];
        let adapter = |i: &[Tensor]| Lora { a: i[3].clone(), b: i[4].clone(), scale: 0.7 };
        agree("linear", &ALL, &inputs, |i| linear(&i[0], &i[1], Some(&i[2]), Some(&adapter(i))));
        agree("linear without bias", &ALL, &inputs[..2], |i| linear(&i[0], &i[1], None, None));
    }
}

#[test]
fn convolutions() {
    // channels, outputs, side, kernel, stride, padding
    let cases = [(2, 3, 7, 3, 1, 1), (3, 4, 8, 3, 2, 1), (4, 2, 5, 1, 1, 0), (2, 2, 9, 4, 4, 0), (3, 2, 20, 5, 1, 2)];
    for (inner, outer, side, kernel, stride, padding) in cases {
        let inputs =
            [random(&[2, inner, side, side + 1], 1), random(&[outer, inner, kernel, kernel], 2), random(&[outer], 3)];
        let name = format!("conv2d {inner} to {outer}, {side}, kernel {kernel}, stride {stride}");
        agree(&name, &ALL, &inputs, |i| conv2d(&i[0], &i[1], Some(&i[2]), stride, padding));
        agree(&name, &ALL, &inputs[..2], |i| conv2d(&i[0], &i[1], None, stride, padding));
    }
}

#[test]
fn planes() {
    for (h, w) in [(4, 4), (5, 7), (9, 6)] {
        let x = [random(&[2, 3, h, w], 1)];
        agree("upsample_nearest2x", &ALL, &x, |i| upsample_nearest2x(&i[0]));
        for (size, stride) in [(2, 2), (3, 2), (3, 1), (2, 3)] {
            agree(&format!("max_pool2d {size} / {stride}"), &ALL, &x, |i| max_pool2d(&i[0], size, stride));
        }
        for padding in [[0, 0], [h % 2, w % 2], [1, 1]] {
            agree("avg_pool2d", &ALL, &x, |i| avg_pool2d(&i[0], 2, padding));
        }
    }
}
