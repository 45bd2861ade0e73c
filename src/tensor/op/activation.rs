//! Elementwise nonlinearities and the gated one.

use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, data, fresh, grain, on_cpu};
use candle_core::{D, Tensor};
use num_traits::Float;
use rayon::prelude::*;

/// One elementwise function: its value and its derivative, both from the input.
trait Pointwise: Send + Sync + 'static {
    fn value<T: Real>(x: T) -> T;
    fn slope<T: Real>(x: T) -> T;
}

fn pointwise<P: Pointwise, T: Real>(x: &Tensor) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let values = map::<T>(&input, P::value)?;
    custom_vjp(&[x], Tensor::from_vec(values, x.dims(), x.device())?, move |grad, _| {
        let (grad, shape) = (grad.contiguous()?, input.dims());
        let (g, x) = (data::<T>(&grad)?, data::<T>(&input)?);
        let out = fresh(g.len(), |out| {
            let chunks = out.par_chunks_mut(4096).with_min_len(4).zip(x.par_chunks(4096)).zip(g.par_chunks(4096));
            chunks.for_each(|((o, x), g)| {
                o.iter_mut().zip(x.iter().zip(g)).for_each(|(o, (x, g))| *o = *g * P::slope(*x));
            });
        });
        Ok(vec![Some(Tensor::from_vec(out, shape, input.device())?)])
    })
}

fn map<T: Real>(x: &Tensor, f: impl Fn(T) -> T + Send + Sync) -> Result<Vec<T>> {
    let x = data::<T>(x)?;
    Ok(fresh(x.len(), |out| {
        let chunks = out.par_chunks_mut(4096).with_min_len(4).zip(x.par_chunks(4096));
        chunks.for_each(|(o, x)| o.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x)));
    }))
}

macro_rules! pointwise {
    ($doc:literal, $name:ident, $type:ident, |$x:ident| $value:expr, $slope:expr, composed $composed:expr) => {
        struct $type;
        impl Pointwise for $type {
            fn value<T: Real>($x: T) -> T {
                $value
            }
            fn slope<T: Real>($x: T) -> T {
                $slope
            }
        }
        #[doc = $doc]
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            fn run<T: Real>(x: &Tensor) -> Result<Tensor> {
                pointwise::<$type, T>(x)
            }
            if cuda::takes(x) {
                return cuda::activation::pointwise(cuda::activation::Kind::$type, x);
            }
            let composed: fn(&Tensor) -> candle_core::Result<Tensor> = $composed;
            on_cpu!(x, run(x), Ok(composed(x)?))
        }
    };
}

pub(super) fn logistic<T: Real>(x: T) -> T {
    T::one() / (T::one() + (-x).exponential())
}

pointwise!(
    "`1 / (1 + exp(-x))`.",
    sigmoid,
    Sigmoid,
    |x| logistic(x),
    logistic(x) * (T::one() - logistic(x)),
    composed | x | (x.neg()?.exp()? + 1.0)?.recip()
);
pointwise!(
    "`max(x, 0)`; the slope at 0 is 0.",
    relu,
    Relu,
    |x| Float::max(x, T::zero()),
    if x > T::zero() { T::one() } else { T::zero() },
    composed | x | x * x.detach().gt(0.0)?.to_dtype(x.dtype())?
);
pointwise!(
    "`x sigmoid(x)`.",
    silu,
    Silu,
    |x| x * logistic(x),
    logistic(x) * (T::one() + x * (T::one() - logistic(x))),
    composed | x | x * (x.neg()?.exp()? + 1.0)?.recip()?
);
pointwise!(
    "`log(1 + exp(x))`; `softplus(-x)` is the logistic loss.",
    softplus,
    Softplus,
    |x| Float::max(x, T::zero()) + (-Float::abs(x)).exp().ln_1p(),
    logistic(x),
    composed | x | x.relu()? + ((x.abs()?.neg()?.exp()? + 1.0)?.log()?)
);
pointwise!(
    "`x sigmoid(1.702 x)`, the GELU of the OpenAI CLIPs.",
    quick_gelu,
    QuickGelu,
    |x| x * logistic(T::of(1.702) * x),
    {
        let s = logistic(T::of(1.702) * x);
        s * (T::one() + T::of(1.702) * x * (T::one() - s))
    },
    composed | x | x * ((x * -1.702)?.exp()? + 1.0)?.recip()?
);
pointwise!(
    "GELU, exact (error function).",
    gelu_erf,
    GeluErf,
    |x| x * normal_cdf(x),
    normal_cdf(x) + x * T::of(0.398_942_280_401_432_7) * (-x * x / T::of(2.0)).exponential(),
    composed | x | x.gelu_erf()
);
pointwise!(
    "GELU, tanh approximation.",
    gelu_tanh,
    GeluTanh,
    // (1 + tanh u) / 2 = sigmoid(2 u)
    |x| x * logistic(tanh_argument(x)),
    {
        let s = logistic(tanh_argument(x));
        let slope = T::of(2.0 * ROOT) * (T::one() + T::of(3.0 * CUBIC) * x * x);
        s + x * s * (T::one() - s) * slope
    },
    composed | x | x.gelu()
);

const ROOT: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
const CUBIC: f64 = 0.044715;

/// `2 sqrt(2 / pi) (x + 0.044715 x^3)`.
fn tanh_argument<T: Real>(x: T) -> T {
    T::of(2.0 * ROOT) * x * (T::one() + T::of(CUBIC) * x * x)
}

fn normal_cdf<T: Real>(x: T) -> T {
    T::of(0.5) * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).error_function())
}

/// Gated unit `silu(first half) * second half` over the last dimension: `[.., 2 h]` to `[.., h]`.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 {
        bail!(Shape, "swiglu: expected an even last dimension, got shape {:?}", x.dims());
    }
    if cuda::takes(x) {
        return cuda::activation::swiglu(x);
    }
    let half = width / 2;
    on_cpu!(x, swiglu_cpu(x, half), {
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        Ok((silu(&a)? * b)?)
    })
}

fn swiglu_cpu<T: Real>(x: &Tensor, half: usize) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let mut dims = x.dims().to_vec();
    dims[x.rank() - 1] = half;
    let numbers = data::<T>(&input)?;
    let out = fresh(numbers.len() / 2, |out| {
        out.par_chunks_mut(half).with_min_len(grain(half)).zip(numbers.par_chunks(2 * half)).for_each(|(o, x)| {
            let (a, b) = x.split_at(half);
            o.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = *a * logistic(*a) * *b);
        });
    });
    drop(numbers);
    custom_vjp(&[x], Tensor::from_vec(out, dims, x.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let (g, x) = (data::<T>(&grad)?, data::<T>(&input)?);
        let out = fresh(x.len(), |out| {
            let rows = out.par_chunks_mut(2 * half).with_min_len(grain(half));
            rows.zip(x.par_chunks(2 * half)).zip(g.par_chunks(half)).for_each(|((o, x), g)| {
                let ((a, b), (ga, gb)) = (x.split_at(half), o.split_at_mut(half));
                ga.iter_mut().zip(gb).zip(a.iter().zip(b).zip(g)).for_each(|((ga, gb), ((a, b), g))| {
                    let s = logistic(*a);
                    *ga = *g * *b * s * (T::one() + *a * (T::one() - s));
                    *gb = *g * *a * s;
                });
            });
        });
        Ok(vec![Some(Tensor::from_vec(out, input.dims(), input.device())?)])
    })
}

/// Clamp whose gradient passes unchanged, so that an out-of-range pixel can still be pulled back.
pub fn clamp_through(x: &Tensor, low: f64, high: f64) -> Result<Tensor> {
    custom_vjp(&[x], x.detach().clamp(low, high)?, |grad, _| Ok(vec![Some(grad.clone())]))
}
