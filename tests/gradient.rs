//! Every differentiable op: its gradient against finite differences in f64, its value against a plain composition.

use amscript::Result;
use amscript::tensor::grad::{gradcheck, vjp};
use amscript::tensor::op::*;
use amscript::tensor::{D, DType, Device, Rng, Tensor};

type Op = fn(&Tensor) -> Result<Tensor>;

fn random(shape: &[usize], seed: u64) -> Tensor {
    Rng::new(seed).normal(shape, DType::F64, &Device::Cpu).unwrap()
}

/// The gradient with respect to each input in turn agrees with central differences.
fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    for i in 0..inputs.len() {
        let at = |x: &Tensor| {
            let mut inputs = inputs.to_vec();
            inputs[i] = x.clone();
            f(&inputs)
        };
        let error = gradcheck(at, &inputs[i], 5).unwrap();
        assert!(error < 2e-7, "{name}, input {i}: relative error {error:e}");
    }
}

/// Values agree with a composition of candle's own ops, in f64 and in f32.
fn equal(
    name: &str,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let (a, b) = (f(&inputs).unwrap(), plain(&inputs).unwrap());
        assert_eq!(a.dims(), b.dims(), "{name}");
        let scale = b.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap();
        let error = error.to_scalar::<f64>().unwrap();
        assert!(error <= tolerance * scale.max(1.0), "{name} {dtype:?}: {error:e}");
    }
}

#[test]
fn activations() {
    let x = random(&[5, 8], 1);
    let all: [(&str, Op, Op); 8] = [
        ("relu", relu, |x| x.relu()),
        ("silu", silu, |x| x.silu()),
        ("gelu_erf", gelu_erf, |x| x.gelu_erf()),
        ("gelu_tanh", gelu_tanh, |x| x.gelu()),
        ("quick_gelu", quick_gelu, |x| x * ((x * -1.702)?.exp()? + 1.0)?.recip()?),
        ("sigmoid", sigmoid, |x| (x.neg()?.exp()? + 1.0)?.recip()),
        ("softplus", softplus, |x| (x.exp()? + 1.0)?.log()),
        ("swiglu", swiglu, |x| x.narrow(1, 0, 4)?.silu()? * x.narrow(1, 4, 4)?),
    ];
    for (name, op, plain) in all {
        check(name, std::slice::from_ref(&x), |i| op(&i[0]));
        equal(name, std::slice::from_ref(&x), |i| op(&i[0]), |i| plain(&i[0]));
    }
}

#[test]
fn linear_with_bias_and_adapter() {
    let inputs = [random(&[2, 3, 5], 1), random(&[4, 5], 2), random(&[4], 3), random(&[2, 5], 4), random(&[4, 2], 5)];
    let lora = |i: &[Tensor]| Lora { a: i[3].clone(), b: i[4].clone(), scale: 0.7 };
    let f = |i: &[Tensor]| linear(&i[0], &i[1], Some(&i[2]), Some(&lora(i)));
    check("linear", &inputs, f);
    equal("linear", &inputs, f, |i| {
        let weight = (&i[1] + (i[4].matmul(&i[3])? * 0.7)?)?;
        i[0].broadcast_matmul(&weight.t()?)?.broadcast_add(&i[2])
    });
    check("linear without bias", &inputs[..2], |i| linear(&i[0], &i[1], None, None));
    // rows of a weight a kilobyte or more apart, more of them than are moved at a time
    let wide = [random(&[5, 256], 6), random(&[131, 256], 7)];
    check("wide linear", &wide, |i| linear(&i[0], &i[1], None, None));
    equal("wide linear", &wide, |i| linear(&i[0], &i[1], None, None), |i| i[0].matmul(&i[1].t()?));
}

fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    let (b, s, h, d) = q.dims4()?;
    let group = h / k.dim(2)?;
    let wide = |x: &Tensor| -> Result<Tensor> {
        let (b, t, kv, d) = x.dims4()?;
        x.unsqueeze(3)?.expand((b, t, kv, group, d))?.reshape((b, t, h, d))?.transpose(1, 2)?.contiguous()
    };
    let mut scores = (q.transpose(1, 2)?.contiguous()?.matmul(&wide(k)?.t()?)? * scale)?;
    if let Some(m) = mask {
        scores = scores.broadcast_add(m)?;
    }
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.matmul(&wide(v)?)?.transpose(1, 2)?.reshape((b, s, h, d))
}

#[test]
fn attention_with_shared_key_heads_and_mask() {
    let inputs = [random(&[2, 5, 4, 3], 1), random(&[2, 6, 2, 3], 2), random(&[2, 6, 2, 3], 3)];
    let mask = random(&[2, 1, 5, 6], 4);
    let f = |i: &[Tensor]| attention(&i[0], &i[1], &i[2], 0.6, Some(&mask.to_dtype(i[0].dtype())?));
    check("attention", &inputs, f);
    equal("attention", &inputs, f, |i| plain_attention(&i[0], &i[1], &i[2], 0.6, Some(&mask.to_dtype(i[0].dtype())?)));
}

#[test]
fn self_attention_is_attention_of_what_lies_beside_each_other() {
    for (tokens, masked) in [(5, true), (150, false)] {
        let inputs = [random(&[2, tokens, 3 * 4 * 2], 7)];
        let mask = random(&[1, 4, tokens, tokens], 8);
        let mask = masked.then_some(&mask);
        let of = |x: &Tensor| mask.map(|m| m.to_dtype(x.dtype())).transpose();
        let f = |i: &[Tensor]| self_attention(&i[0], 4, 0.7, of(&i[0])?.as_ref());
        check("self_attention", &inputs, f);
        equal("self_attention", &inputs, f, |i| {
            let part = |j: usize| i[0].narrow(2, 8 * j, 8)?.contiguous()?.reshape((2, tokens, 4, 2));
            plain_attention(&part(0)?, &part(1)?, &part(2)?, 0.7, of(&i[0])?.as_ref())?.reshape((2, tokens, 8))
        });
    }
}

#[test]
fn attention_over_several_blocks_of_queries() {
    let inputs = [random(&[1, 150, 2, 4], 1), random(&[1, 140, 2, 4], 2), random(&[1, 140, 2, 4], 3)];
    let f = |i: &[Tensor]| attention(&i[0], &i[1], &i[2], 0.5, None);
    check("attention", &inputs, f);
    equal("attention", &inputs, f, |i| plain_attention(&i[0], &i[1], &i[2], 0.5, None));
}

#[test]
fn softmax_rows() {
    let x = [random(&[3, 7], 1)];
    check("softmax", &x, |i| softmax(&i[0]));
    equal(
        "softmax",
        &x,
        |i| softmax(&i[0]),
        |i| {
            let e = i[0].exp()?;
            e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
        },
    );
}

#[test]
fn channels_of_unit_length() {
    let x = [random(&[2, 3, 4, 5], 1)];
    let plain = |i: &[Tensor]| i[0].broadcast_div(&(i[0].sqr()?.sum_keepdim(1)? + 0.1)?.sqrt()?);
    check("unit_channels", &x, |i| unit_channels(&i[0], 0.1));
    equal("unit_channels", &x, |i| unit_channels(&i[0], 0.1), plain);
}

#[test]
fn normalisations() {
    let inputs = [random(&[2, 3, 19], 1), random(&[19], 2), random(&[19], 3)];
    let layer = |i: &[Tensor]| layer_norm(&i[0], Some(&i[1]), Some(&i[2]), 1e-3);
    check("layer_norm", &inputs, layer);
    equal("layer_norm", &inputs, layer, |i| {
        let x = i[0].broadcast_sub(&i[0].mean_keepdim(2)?)?;
        let x = x.broadcast_div(&(x.sqr()?.mean_keepdim(2)? + 1e-3)?.sqrt()?)?;
        x.broadcast_mul(&i[1])?.broadcast_add(&i[2])
    });
    let rms = |i: &[Tensor]| rms_norm(&i[0], &i[1], 1e-3);
    check("rms_norm", &inputs[..2], rms);
    equal("rms_norm", &inputs[..2], rms, |i| {
        i[0].broadcast_div(&(i[0].sqr()?.mean_keepdim(2)? + 1e-3)?.sqrt()?)?.broadcast_mul(&i[1])
    });
    let inputs = [random(&[2, 6, 3, 5], 1), random(&[6], 2), random(&[6], 3)];
    let gated = |i: &[Tensor]| group_norm_silu(&i[0], 2, &i[1], &i[2], 1e-3);
    check("group_norm_silu", &inputs, gated);
    equal("group_norm_silu", &inputs, gated, |i| silu(&group_norm(&i[0], 2, &i[1], &i[2], 1e-3)?));
    let group = |i: &[Tensor]| group_norm(&i[0], 2, &i[1], &i[2], 1e-3);
    check("group_norm", &inputs, group);
    equal("group_norm", &inputs, group, |i| {
        let x = i[0].reshape((2, 2, 45))?;
        let x = x.broadcast_sub(&x.mean_keepdim(2)?)?;
        let x = x.broadcast_div(&(x.sqr()?.mean_keepdim(2)? + 1e-3)?.sqrt()?)?.reshape((2, 6, 3, 5))?;
        x.broadcast_mul(&i[1].reshape((1, 6, 1, 1))?)?.broadcast_add(&i[2].reshape((1, 6, 1, 1))?)
    });
}

#[test]
fn modulations() {
    let inputs = [random(&[2, 3, 9], 1), random(&[2, 9], 2), random(&[2, 9], 3)];
    let f = |i: &[Tensor]| modulated_norm(&i[0], &i[1], &i[2], 1e-3);
    check("modulated_norm", &inputs, f);
    equal("modulated_norm", &inputs, f, |i| {
        let normed = layer_norm(&i[0], None, None, 1e-3)?;
        normed.broadcast_mul(&(i[2].unsqueeze(1)? + 1.0)?)?.broadcast_add(&i[1].unsqueeze(1)?)
    });
    let inputs = [random(&[2, 3, 4], 1), random(&[2, 4], 2), random(&[2, 3, 4], 3)];
    let f = |i: &[Tensor]| gated_add(&i[0], &i[1], &i[2]);
    check("gated_add", &inputs, f);
    equal("gated_add", &inputs, f, |i| &i[0] + i[2].broadcast_mul(&i[1].unsqueeze(1)?)?);
}

#[test]
fn rotations() {
    let (x, angle) = (random(&[2, 3, 2, 6], 1), random(&[3, 3], 2));
    let (cos, sin) = (angle.cos().unwrap(), angle.sin().unwrap());
    for (name, pairs) in [("rope_pairs", true), ("rope_halves", false)] {
        let f = |i: &[Tensor]| if pairs { rope_pairs(&i[0], &cos, &sin) } else { rope_halves(&i[0], &cos, &sin) };
        check(name, std::slice::from_ref(&x), f);
        // Rotation of dimensions (a, b), one pair at a time.
        let y = f(std::slice::from_ref(&x)).unwrap();
        for j in 0..3 {
            let (a, b) = if pairs { (2 * j, 2 * j + 1) } else { (j, j + 3) };
            let at = |t: &Tensor, i: usize| t.to_vec1::<f64>().unwrap()[i];
            let row = |t: &Tensor| t.get(1).unwrap().get(2).unwrap().get(1).unwrap();
            let turn = at(&angle.get(2).unwrap(), j);
            let expected = at(&row(&x), a) * turn.cos() - at(&row(&x), b) * turn.sin();
            assert!((at(&row(&y), a) - expected).abs() < 1e-12, "{name}");
            let expected = at(&row(&x), a) * turn.sin() + at(&row(&x), b) * turn.cos();
            assert!((at(&row(&y), b) - expected).abs() < 1e-12, "{name}");
        }
    }
}

#[test]
fn convolutions() {
    for (kernel, stride, padding) in [(3, 1, 1), (3, 2, 0), (1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 2)] {
        let inputs = [random(&[3, 2, 7, 6], 1), random(&[4, 2, kernel, kernel], 2), random(&[4], 3)];
        let name = format!("conv2d kernel {kernel} stride {stride} padding {padding}");
        let f = |i: &[Tensor]| conv2d(&i[0], &i[1], Some(&i[2]), stride, padding);
        check(&name, &inputs, f);
        equal(&name, &inputs, f, |i| {
            let y = Tensor::from(i[0].array().conv2d(i[1].array(), padding, stride, 1, 1)?);
            y.broadcast_add(&i[2].reshape((1, 4, 1, 1))?)
        });
    }
}

#[test]
fn pooling() {
    let x = [random(&[2, 3, 7, 6], 1)];
    for (size, stride) in [(2, 2), (3, 2)] {
        let f = |i: &[Tensor]| max_pool2d(&i[0], size, stride);
        check("max_pool2d", &x, f);
        equal("max_pool2d", &x, f, |i| Ok(i[0].array().max_pool2d_with_stride(size, stride)?.into()));
    }
    // Of equal maxima the first by rows is meant; a number that is none is passed on.
    let plane = |values: [f64; 9]| Tensor::new(&values, &Device::Cpu).unwrap().reshape((1, 1, 3, 3)).unwrap();
    let tied = plane([0.0, 0.0, 2.0, 2.0, 1.0, 0.0, 2.0, 0.0, 0.0]);
    let (value, gradient) =
        vjp(|x| max_pool2d(x, 3, 1), &tied, &tied.narrow(2, 0, 1).unwrap().narrow(3, 2, 1).unwrap()).unwrap();
    let numbers = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(numbers(value), [2.0]);
    assert_eq!(numbers(gradient), [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let unknown = plane([0.0, 9.0, 0.0, f64::NAN, 0.0, 0.0, 0.0, 0.0, 9.0]);
    assert!(numbers(max_pool2d(&unknown, 3, 1).unwrap())[0].is_nan());
    check("avg_pool2d", &x, |i| avg_pool2d(&i[0], 2, [1, 0]));
    equal("avg_pool2d", &x, |i| avg_pool2d(&i[0], 2, [0, 0]), |i| Ok(i[0].array().avg_pool2d(2)?.into()));
}

#[test]
fn resizing() {
    let x = [random(&[2, 3, 5, 4], 1)];
    for (shape, outer) in [([2, 3, 5, 4], 2), ([1, 2, 1, 1], 3), ([1, 1, 17, 1], 1)] {
        let [x, w, b] = [random(&shape, 5), random(&[outer, shape[1], 3, 3], 6), random(&[outer], 7)];
        let composed = |i: &[Tensor]| conv2d(&upsample_nearest2x(&i[0])?, &w, Some(&b), 1, 1);
        let x = [x];
        check("upsampled_conv2d", &x, |i| upsampled_conv2d(&i[0], &w, &b));
        equal("upsampled_conv2d", &x, |i| upsampled_conv2d(&i[0], &w, &b), composed);
    }
    check("upsample_nearest2x", &x, |i| upsample_nearest2x(&i[0]));
    equal(
        "upsample_nearest2x",
        &x,
        |i| upsample_nearest2x(&i[0]),
        |i| Ok(i[0].array().upsample_nearest2d(10, 8)?.into()),
    );
    for antialias in [true, false] {
        for filter in [Filter::Bilinear { antialias }, Filter::Bicubic { antialias }] {
            check("resize", &x, |i| resize(&i[0], 3, 7, filter));
            let ones = Tensor::ones((1, 1, 9, 8), DType::F64, &Device::Cpu).unwrap();
            equal(
                "resize of ones",
                &[ones],
                |i| resize(&i[0], 4, 11, filter),
                |i| Tensor::ones((1, 1, 4, 11), i[0].dtype(), &Device::Cpu),
            );
        }
    }
}

#[test]
fn clamp_passes_its_gradient() {
    let x = Tensor::new(&[-0.5, 0.25, 1.5], &Device::Cpu).unwrap();
    let ones = x.ones_like().unwrap();
    let (y, gradient) = amscript::tensor::grad::vjp(|x| clamp_through(x, 0.0, 1.0), &x, &ones).unwrap();
    assert_eq!(y.to_vec1::<f64>().unwrap(), [0.0, 0.25, 1.0]);
    assert_eq!(gradient.to_vec1::<f64>().unwrap(), [1.0, 1.0, 1.0]);
}
