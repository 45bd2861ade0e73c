//! What the cases of `op` do not say of a card: types that differ, masks that hide, nothing at all, more than one of them.

use crate::grad::pullback;
use crate::op::{attention, conv2d, group_norm_silu, layer_norm, linear, upsample_nearest2x};
use crate::{Array, DType, Device, Rng, Tensor, place};
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

/// The card of this run, where there is one.
fn card() -> Option<Device> {
    Some(place::from_environment().unwrap()).filter(Device::is_cuda)
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_name_of_a_card_is_the_same_device() {
    let Some(card) = card() else { return };
    let again = place::named("cuda:0").unwrap();
    assert!(card.same_device(&again));
    let x = normal(&[4096], 1).to_dtype(DType::F32).unwrap();
    let (a, b) = (x.to_device(&card).unwrap().exp().unwrap(), x.to_device(&again).unwrap());
    let sum = (&a + &a.to_device(&again).unwrap()).unwrap().broadcast_add(&b).unwrap();
    let expected = x.exp().unwrap().affine(2.0, 0.0).unwrap().broadcast_add(&x).unwrap();
    assert!(numbers(&sum).iter().zip(numbers(&expected)).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs().max(1.0)));
}

#[test]
fn a_card_that_is_not_there_is_named() {
    if card().is_some() {
        let error = place::named("cuda:99").unwrap_err();
        assert!(error.message.contains("no card 99") && error.hint.is_some(), "{error}");
    }
}

#[test]
fn buffers_belong_to_a_card() {
    let (Some(first), Ok(second)) = (card(), place::named("cuda:1")) else { return };
    let x = normal(&[1 << 20], 1).to_dtype(DType::F32).unwrap();
    let y = x.affine(2.0, 0.0).unwrap();
    // Sent one after another, so that a buffer is filled again while the card may not have read it yet.
    let sent = [(&x, &first), (&y, &first), (&x, &second), (&y, &second), (&y, &first), (&x, &first)]
        .map(|(numbers, card)| (numbers, place::send(numbers, DType::F32, card).unwrap()));
    for (expected, got) in &sent {
        assert_eq!(numbers(got), numbers(expected));
    }
    let there = x.to_device(&first).unwrap().exp().unwrap().to_device(&second).unwrap();
    assert_eq!(numbers(&there), numbers(&x.to_device(&second).unwrap().exp().unwrap()));
    let error = (&x.to_device(&first).unwrap() + &x.to_device(&second).unwrap()).unwrap_err();
    assert!(error.message.contains("got cuda:0 and cuda:1") && error.hint.is_some(), "{error}");
    let error =
        linear(&x.reshape((1, ())).unwrap().to_device(&first).unwrap(), &x.reshape((1, ())).unwrap(), None, None);
    assert!(error.unwrap_err().message.contains("got cuda:0 and cpu"));
}

#[test]
fn factors_are_not_rounded_to_half_precision() {
    let Some(card) = card() else { return };
    let x = normal(&[1000], 1).to_dtype(DType::BF16).unwrap();
    let expected = x.to_dtype(DType::F32).unwrap().affine(0.3, 0.0).unwrap().to_dtype(DType::BF16).unwrap();
    assert_eq!(numbers(&x.to_device(&card).unwrap().affine(0.3, 0.0).unwrap()), numbers(&expected));
}

#[test]
fn sums_of_f16_are_wider_than_f16() {
    let Some(card) = card() else { return };
    let x = Tensor::full(300f32, &[1 << 14], &card).unwrap().to_dtype(DType::F16).unwrap();
    let squares = crate::adamw::sums_of_squares(std::slice::from_ref(&x)).unwrap();
    assert_eq!(squares, [300.0 * 300.0 * f64::from(1 << 14)]);
    assert_eq!(numbers(&x.mean_all().unwrap()), [300.0]);
    assert_eq!(numbers(&x.mean(0).unwrap()), [300.0]);
}

#[test]
fn large_sums_are_those_of_the_processor() {
    let Some(card) = card() else { return };
    let x = normal(&[100_003], 1);
    let there = x.to_dtype(DType::F32).unwrap().to_device(&card).unwrap().sum_all().unwrap();
    let sum = x.sum_all().unwrap().to_scalar::<f64>().unwrap();
    assert!((f64::from(numbers(&there)[0]) - sum).abs() < 1e-2, "{sum}");
}

#[test]
fn repeated_rows_and_views_are_matrices() {
    let Some(card) = card() else { return };
    let (x, w) = (normal(&[1, 16], 1), normal(&[8, 16], 2));
    let expected = numbers(&linear(&x.expand((5, 16)).unwrap(), &w, None, None).unwrap());
    let at = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_device(&card).unwrap();
    let (repeated, turned) = (at(&x).expand((5, 16)).unwrap(), at(&w).t().unwrap());
    let got = super::linear::product(repeated.array(), turned.array(), None, None).unwrap();
    let got = numbers(&Tensor::from(got));
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    let part = at(&w).narrow(0, 3, 2).unwrap();
    assert_eq!(numbers(&Tensor::cat(&[&part], 0).unwrap()), numbers(&w.narrow(0, 3, 2).unwrap()));
}

#[test]
fn empty_tensors_are_computed_with() {
    let device = card().unwrap_or(Device::Cpu);
    let full = |shape: &[usize], dtype| normal(shape, 1).to_dtype(dtype).unwrap().to_device(&device).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let none = full(&[3, 16], dtype).narrow(0, 1, 0).unwrap().leaf();
        let w = full(&[8, 16], dtype).leaf();
        let y = linear(&none, &w, None, None).unwrap().gelu().unwrap();
        assert_eq!((y.dims(), y.dtype(), y.device().is_cuda()), (&[0, 8][..], dtype, device.is_cuda()));
        let sum = y.sum_all().unwrap();
        assert_eq!(numbers(&sum), [0.0]);
        let gradients = pullback(&sum, &sum.ones_like().unwrap(), std::slice::from_ref(&w)).unwrap();
        assert!(numbers(&gradients[0]).iter().all(|g| *g == 0.0));
        assert_eq!(Tensor::cat(&[&none, &w], 0).unwrap().dims(), [8, 16]);
        assert_eq!(numbers(&none.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap()), [0.0; 0]);
        assert_eq!(layer_norm(&none, None, None, 1e-5).unwrap().dims(), [0, 16]);
        assert_eq!(Rng::new(1).normal(&[0, 16], dtype, &device).unwrap().dims(), [0, 16]);
    }
}

#[test]
fn integers_and_half_precision_are_cast_into_each_other() {
    let device = card().unwrap_or(Device::Cpu);
    let x = Tensor::new(&[-3.0f32, 0.0, 7.0], &device).unwrap();
    for half in [DType::BF16, DType::F16] {
        for whole in [DType::I64, DType::U32, DType::U8] {
            let x = if whole == DType::I64 { x.clone() } else { x.abs().unwrap() };
            let there = x.to_dtype(half).unwrap().to_dtype(whole).unwrap();
            assert_eq!(numbers(&there.to_dtype(half).unwrap()), numbers(&x), "{half:?} {whole:?}");
        }
    }
}

/// Parts along a dimension that is not the first, of widths that do and do not suit wide accesses.
#[test]
fn parts_are_cut_and_joined() {
    let device = card().unwrap_or(Device::Cpu);
    for (dtype, width) in [(DType::F32, 8), (DType::BF16, 16), (DType::F16, 8), (DType::BF16, 5)] {
        let x = normal(&[3, 4, width], 1).to_dtype(dtype).unwrap();
        let there = x.to_device(&device).unwrap();
        let [first, rest] =
            [(0, 1), (1, 3)].map(|(start, len)| there.narrow(1, start, len).unwrap().contiguous().unwrap());
        assert_eq!(numbers(&rest), numbers(&x.narrow(1, 1, 3).unwrap()), "{dtype:?} {width}");
        assert_eq!(numbers(&Tensor::cat(&[&first, &rest], 1).unwrap()), numbers(&x), "{dtype:?} {width}");
        let odd = there.narrow(2, 1, width - 2).unwrap().contiguous().unwrap();
        assert_eq!(numbers(&odd), numbers(&x.narrow(2, 1, width - 2).unwrap()));
        let ends = [there.narrow(2, 0, 1).unwrap(), odd, there.narrow(2, width - 1, 1).unwrap()];
        assert_eq!(numbers(&Tensor::cat(&ends, 2).unwrap()), numbers(&x));
    }
}

#[test]
fn extremes_of_many_numbers_are_those_of_the_processor() {
    let device = card().unwrap_or(Device::Cpu);
    for n in [100, 8192, 100_003] {
        let x = normal(&[n], n as u64).to_dtype(DType::F32).unwrap();
        let there = x.to_device(&device).unwrap().leaf();
        let found = [there.min_all().unwrap(), there.max_all().unwrap()];
        let all = numbers(&x);
        assert_eq!(numbers(&found[0]), [all.iter().copied().fold(f32::INFINITY, f32::min)]);
        assert_eq!(numbers(&found[1]), [all.iter().copied().fold(f32::NEG_INFINITY, f32::max)]);
        let gradient = pullback(&found[1], &found[1].ones_like().unwrap(), &[there]).unwrap().remove(0);
        assert_eq!(numbers(&gradient).iter().sum::<f32>(), 1.0);
    }
}

/// Sizes of published models, which the cases do not come near: many blocks, numbers beyond one piece of scratch, large products. Value and gradients,
/// against f64 on the same card. `SIZE=tiny` tries the test itself.
#[test]
#[ignore = "needs the memory of a card"]
fn sizes_of_published_models() {
    let Some(card) = card() else { return };
    let tiny = std::env::var("SIZE").is_ok_and(|size| size == "tiny");
    super::WHOLE.set(true);
    let agrees = |name: &str, shapes: &[&[usize]], dtype: DType, tolerance: f64, f: fn(&[Tensor]) -> Result<Tensor>| {
        let small =
            |shape: &&[usize]| -> Vec<usize> { shape.iter().map(|n| if tiny { (*n).min(40) } else { *n }).collect() };
        let made = |shape: &&[usize]| {
            let shape = small(shape);
            let deviation = if shape.len() == 4 { 1.0 } else { (shape[shape.len() - 1] as f64).powf(-0.25) };
            Tensor::from(Array::randn(0f32, deviation as f32, shape, &card).unwrap()).to_dtype(dtype).unwrap()
        };
        let inputs: Vec<Tensor> = shapes.iter().map(made).collect();
        let run = |dtype: DType| {
            let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap().leaf()).collect();
            let value = f(&inputs).unwrap();
            let back = pullback(&value, &value.constant(), &inputs).unwrap();
            std::iter::once(value.constant()).chain(back).collect::<Vec<_>>()
        };
        let top = |x: &Tensor| numbers(&x.to_dtype(DType::F32).unwrap().abs().unwrap().max_all().unwrap())[0];
        for (i, (got, expected)) in run(dtype).iter().zip(run(DType::F64)).enumerate() {
            let error = f64::from(top(&(got.to_dtype(DType::F64).unwrap() - &expected).unwrap()) / top(&expected));
            assert!(error < tolerance, "{name}, {}: {error:e}", if i == 0 { "value" } else { "gradient" });
        }
        println!("{name}: agrees");
    };
    let heads = [&[1, 4608, 24, 128][..]; 3];
    agrees("attention", &heads, DType::BF16, 2e-2, |i| attention(&i[0], &i[1], &i[2], 0.0884, None));
    let heads = [&[2, 1024, 16, 72][..]; 3];
    agrees("attention of 72", &heads, DType::BF16, 2e-2, |i| attention(&i[0], &i[1], &i[2], 0.118, None));
    let heads = [&[2, 4096, 1, 512][..]; 3];
    agrees("attention of 512", &heads, DType::F32, 1e-4, |i| attention(&i[0], &i[1], &i[2], 0.0442, None));
    let wide: &[&[usize]] = &[&[12288, 3072], &[18432, 3072]];
    agrees("linear", wide, DType::BF16, 2e-2, |i| linear(&i[0], &i[1], None, None));
    let image: &[&[usize]] = &[&[1, 256, 512, 512], &[256, 256, 3, 3], &[256]];
    agrees("convolution", image, DType::F32, 1e-4, |i| conv2d(&i[0], &i[1], Some(&i[2]), 1, 1));
    let images: &[&[usize]] = &[&[3, 256, 128, 128], &[512, 256, 3, 3], &[512]];
    agrees("convolution of several", images, DType::F32, 1e-4, |i| conv2d(&i[0], &i[1], Some(&i[2]), 2, 1));
    let large: &[&[usize]] = &[&[1, 32, 1024, 1024], &[32], &[32]];
    agrees("group norm", large, DType::F32, 1e-4, |i| group_norm_silu(&i[0], 8, &i[1], &i[2], 1e-6));
    agrees("doubling", &[&[2, 128, 512, 512]], DType::F32, 1e-6, |i| upsample_nearest2x(&i[0]));
}
