//! Elementwise nonlinearities and the gated one.

use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use crate::kernel::{Real, data, fresh, grain, on_cpu};
use crate::{Array, Tensor, cuda, raw};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{D, Shape};
use num_traits::Float;
use rayon::prelude::*;

/// The elementwise functions, in the order of `points.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Sigmoid,
    Relu,
    Silu,
    Softplus,
    QuickGelu,
    GeluErf,
    GeluTanh,
}

/// One of them: its value and its derivative, both from the input.
trait Pointwise: Send + Sync + 'static {
    const KIND: Activation;
    const NAME: &'static str;
    fn value<T: Real>(x: T) -> T;
    fn slope<T: Real>(x: T) -> T;
    fn composed(x: &Tensor) -> Result<Tensor>;
}

struct Each<P>(std::marker::PhantomData<P>);

impl<P: Pointwise> Op<1> for Each<P> {
    type More = ();

    fn name(&self) -> &'static str {
        P::NAME
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        Ok(given(x)?.shape().clone())
    }

    fn keeps(&self, _: Backend, _: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        Keeps::inputs([true])
    }

    fn forward(&self, on: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, ())> {
        let x = given(x)?;
        let y = match on {
            Backend::Card => cuda::activation::value(P::KIND, x),
            _ => on_cpu!(x, value(x, P::value)),
        };
        Ok((y?, ()))
    }

    fn backward(&self, kept: Kept<1, ()>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let x = given(kept.inputs[0])?;
        let gx = match kept.on {
            Backend::Card => cuda::activation::slope(P::KIND, gradient, x),
            _ => on_cpu!(x, slope(gradient, x, P::slope)),
        };
        Ok([Some(gx?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        P::composed(there(x)?)
    }
}

fn value<T: Real>(x: &Array, f: impl Fn(T) -> T + Send + Sync) -> Result<Array> {
    let numbers = data::<T>(x)?;
    let out = fresh(numbers.len(), |out| {
        let chunks = out.par_chunks_mut(4096).with_min_len(4).zip(numbers.par_chunks(4096));
        chunks.for_each(|(o, x)| o.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x)));
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

fn slope<T: Real>(gradient: &Array, x: &Array, f: impl Fn(T) -> T + Send + Sync) -> Result<Array> {
    let (g, numbers) = (data::<T>(gradient)?, data::<T>(x)?);
    let out = fresh(g.len(), |out| {
        let chunks = out.par_chunks_mut(4096).with_min_len(4).zip(numbers.par_chunks(4096)).zip(g.par_chunks(4096));
        chunks.for_each(|((o, x), g)| o.iter_mut().zip(x.iter().zip(g)).for_each(|(o, (x, g))| *o = *g * f(*x)));
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

macro_rules! pointwise {
    ($doc:literal, $name:ident, $type:ident, |$x:ident| $value:expr, $slope:expr, composed $composed:expr) => {
        struct $type;
        impl Pointwise for $type {
            const KIND: Activation = Activation::$type;
            const NAME: &'static str = stringify!($name);
            fn value<T: Real>($x: T) -> T {
                $value
            }
            fn slope<T: Real>($x: T) -> T {
                $slope
            }
            fn composed(x: &Tensor) -> Result<Tensor> {
                let composed: fn(&Tensor) -> Result<Tensor> = $composed;
                composed(x)
            }
        }
        #[doc = $doc]
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            apply(Each::<$type>(std::marker::PhantomData), [Some(x)])
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
    logistic(x) * logistic(-x), // `1 - logistic(x)` has no digits left where x is large
    composed | x | (x.neg()?.exp()? + 1.0)?.recip()
);
pointwise!(
    "`max(x, 0)`; the slope at 0 is 0.",
    relu,
    Relu,
    |x| if x < T::zero() { T::zero() } else { x }, // NaN stays
    if x > T::zero() { T::one() } else { T::zero() },
    composed | x | x * x.detach()?.gt(0.0)?.to_dtype(x.dtype())?
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
    composed | x | relu(x)? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
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
    composed | x | x * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? * 0.5)?.affine(1.0, 0.5)?
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
    composed | x | x * sigmoid(&((x * ((x.sqr()? * CUBIC)? + 1.0)?)? * (2.0 * ROOT))?)?
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
    apply(Swiglu, [Some(x), None])
}

/// `before [.., w]` and [`swiglu`] of `x` beside each other, in one pass: `[.., w + h]`.
pub fn cat_swiglu(before: &Tensor, x: &Tensor) -> Result<Tensor> {
    apply(Swiglu, [Some(x), Some(before)])
}

struct Swiglu;

/// The order is x, before.
impl Op<2> for Swiglu {
    type More = ();

    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn shape(&self, [x, before]: Inputs<2>) -> Result<Shape> {
        let mut dims = given(x)?.dims().to_vec();
        match dims.last_mut() {
            Some(width) if *width % 2 == 0 => *width /= 2,
            _ => bail!(Shape, "swiglu: expected an even last dimension, got shape {dims:?}"),
        }
        if let Some(before) = before {
            let last = dims.len() - 1;
            if before.rank() != dims.len() || before.dims()[..last] != dims[..last] {
                bail!(
                    Shape,
                    "cat_swiglu: expected tensors alike but for their last dimension, got {:?}",
                    before.dims()
                );
            }
            dims[last] += before.dims()[last];
        }
        Ok(dims.into())
    }

    fn keeps(&self, _: Backend, _: Inputs<2>, [of_x, _]: [bool; 2]) -> Keeps<2> {
        Keeps::inputs([of_x, false])
    }

    fn forward(&self, on: Backend, [x, before]: Inputs<2>, _: [bool; 2]) -> Result<(Array, ())> {
        let x = given(x)?;
        let y = match on {
            Backend::Card => cuda::activation::swiglu(x, before),
            _ => on_cpu!(x, gated(x, before)),
        };
        Ok((y?, ()))
    }

    fn backward(
        &self,
        kept: Kept<2, ()>,
        gradient: &Array,
        [of_x, of_before]: [bool; 2],
    ) -> Result<[Option<Array>; 2]> {
        let gx = || match (given(kept.inputs[0])?, kept.on) {
            (x, Backend::Card) => cuda::activation::swiglu_back(gradient, x),
            (x, _) => on_cpu!(x, gated_back(gradient, x)),
        };
        let before = || raw::cut(gradient, gradient.rank() - 1, 0, *kept.shapes[1].last().unwrap_or(&0));
        Ok([of_x.then(gx).transpose()?, of_before.then(before).transpose()?])
    }

    fn composed(&self, [x, before]: [Option<&Tensor>; 2]) -> Result<Tensor> {
        let x = there(x)?;
        let half = x.dim(D::Minus1)? / 2;
        let y = (silu(&x.narrow(D::Minus1, 0, half)?)? * x.narrow(D::Minus1, half, half)?)?;
        match before {
            Some(before) => Tensor::cat(&[before, &y], D::Minus1),
            None => Ok(y),
        }
    }
}

fn gated<T: Real>(x: &Array, before: Option<&Array>) -> Result<Array> {
    let mut dims = x.dims().to_vec();
    let (half, width) = (x.dim(D::Minus1)? / 2, before.map_or(Ok(0), |before| before.dim(D::Minus1))?);
    dims[x.rank() - 1] = width + half;
    let (numbers, before) = (data::<T>(x)?, before.map(data::<T>).transpose()?);
    let out = fresh(dims.iter().product(), |out| {
        let rows = out.par_chunks_mut((width + half).max(1)).with_min_len(grain(half));
        rows.enumerate().for_each(|(i, o)| {
            let ((first, o), (a, b)) = (o.split_at_mut(width), numbers[2 * i * half..][..2 * half].split_at(half));
            if let Some(before) = &before {
                first.copy_from_slice(&before[i * width..][..width]);
            }
            o.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = *a * logistic(*a) * *b);
        });
    });
    Ok(Array::from_vec(out, dims, x.device())?)
}

fn gated_back<T: Real>(gradient: &Array, x: &Array) -> Result<Array> {
    let (half, row) = (x.dim(D::Minus1)? / 2, gradient.dim(D::Minus1)?);
    let (g, numbers) = (data::<T>(gradient)?, data::<T>(x)?);
    let out = fresh(numbers.len(), |out| {
        let rows = out.par_chunks_mut(2 * half.max(1)).with_min_len(grain(half));
        rows.zip(numbers.par_chunks(2 * half.max(1))).zip(g.par_chunks(row.max(1))).for_each(|((o, x), g)| {
            let ((a, b), (ga, gb), g) = (x.split_at(half), o.split_at_mut(half), &g[row - half..]);
            ga.iter_mut().zip(gb).zip(a.iter().zip(b).zip(g)).for_each(|((ga, gb), ((a, b), g))| {
                let s = logistic(*a);
                *ga = *g * *b * s * (T::one() + *a * (T::one() - s));
                *gb = *g * *a * s;
            });
        });
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    type One = fn(&Tensor) -> Result<Tensor>;
    let all: [(&str, One); 8] = [
        ("sigmoid", sigmoid),
        ("relu", relu),
        ("silu", silu),
        ("softplus", softplus),
        ("quick_gelu", quick_gelu),
        ("gelu_erf", gelu_erf),
        ("gelu_tanh", gelu_tanh),
        ("swiglu", swiglu),
    ];
    let widths = [6, 32, 2080];
    let at = |(name, f): (&str, One)| {
        widths.map(|width| case(format!("{name} of {width}"), &[&[3, width]], move |i| f(&i[0])).scaled(0, 2.0))
    };
    let beside = |(width, both): (usize, usize)| {
        let name = format!("cat_swiglu of {width} and {both}");
        case(name, &[&[2, 3, width], &[2, 3, both]], |i| cat_swiglu(&i[0], &i[1])).scaled(1, 2.0)
    };
    all.into_iter().flat_map(at).chain([(5, 6), (16, 48), (520, 2080)].map(beside)).collect()
}
