//! Functions of each number, and arithmetic of two tensors or of a tensor and a number.

use super::call::{Keeps, Kept};
use super::elementary::{binary, read, sum_to, unary};
use super::{gelu_erf, gelu_tanh, relu, silu};
use crate::{Array, DType, Device, Tensor, raw};
use amscript_base::error::{Error, Result};
use candle_core::{Result as Candle, Shape};

/// A function of each number: its name, value, what its slope is read from, and the gradient by it.
macro_rules! each {
    ($($doc:literal $name:ident, $keeps:expr, |$kept:ident, $g:ident| $back:expr;)*) => {
        impl Tensor {
            $(
                #[doc = $doc]
                pub fn $name(&self) -> Result<Tensor> {
                    let kind = (self.shape().clone(), self.dtype());
                    unary(stringify!($name), self, kind, $keeps, Array::$name, |$kept, $g| $back)
                }
            )*
        }
    };
}

each! {
    "`-x`." neg, Keeps::NOTHING, |_kept, g| g.neg();
    "`exp(x)`." exp, Keeps::output(), |kept, g| g * read(kept.output)?;
    "The natural logarithm." log, Keeps::inputs([true]), |kept, g| g / read(kept.inputs[0])?;
    "`x^2`." sqr, Keeps::inputs([true]), |kept, g| (g * read(kept.inputs[0])?)? * 2.0;
    "The square root." sqrt, Keeps::output(), |kept, g| (g / read(kept.output)?)? * 0.5;
    "`1 / x`." recip, Keeps::output(), |kept, g| (g * read(kept.output)?.sqr()?)?.neg();
    "`|x|`; the slope at 0 is 0." abs, Keeps::inputs([true]), |kept, g| g * read(kept.inputs[0])?.sign()?;
    "The sine." sin, Keeps::inputs([true]), |kept, g| g * read(kept.inputs[0])?.cos()?;
    "The cosine." cos, Keeps::inputs([true]), |kept, g| (g * read(kept.inputs[0])?.sin()?)?.neg();
    "The hyperbolic tangent." tanh, Keeps::output(), |kept, g| g * read(kept.output)?.sqr()?.affine(-1.0, 1.0)?;
    "The error function." erf, Keeps::inputs([true]),
        |kept, g| g * (read(kept.inputs[0])?.sqr()?.neg()?.exp()? * std::f64::consts::FRAC_2_SQRT_PI)?;
}

/// Steps, whose slope is zero wherever there is one: constants.
macro_rules! steps {
    ($($doc:literal $name:ident)*) => {
        impl Tensor {
            $(
                #[doc = $doc]
                pub fn $name(&self) -> Result<Tensor> {
                    let kind = (self.shape().clone(), self.dtype());
                    unary(stringify!($name), &self.constant(), kind, Keeps::NOTHING, Array::$name, |_, g| Ok(g.clone()))
                }
            )*
        }
    };
}

steps! {
    "-1, 0 or 1; constant." sign
    "The next integer below; constant." floor
    "The next integer above; constant." ceil
    "The nearest integer; constant." round
}

impl Tensor {
    pub fn relu(&self) -> Result<Tensor> {
        relu(self)
    }

    pub fn silu(&self) -> Result<Tensor> {
        silu(self)
    }

    /// GELU, tanh approximation.
    pub fn gelu(&self) -> Result<Tensor> {
        gelu_tanh(self)
    }

    pub fn gelu_erf(&self) -> Result<Tensor> {
        gelu_erf(self)
    }

    /// `factor x + offset`.
    pub fn affine(&self, factor: f64, offset: f64) -> Result<Tensor> {
        let kind = (self.shape().clone(), self.dtype());
        let forward = move |x: &Array| Ok(raw::affine(x, factor, offset)?);
        unary("affine", self, kind, Keeps::NOTHING, forward, move |_, g| match factor {
            1.0 => Ok(g.clone()),
            _ => Ok(raw::affine(g, factor, 0.0)?),
        })
    }

    /// `x^exponent`.
    pub fn powf(&self, exponent: f64) -> Result<Tensor> {
        let (kind, keeps) = ((self.shape().clone(), self.dtype()), Keeps::inputs([true]));
        let forward = move |x: &Array| x.powf(exponent);
        unary("powf", self, kind, keeps, forward, move |kept, g| {
            if exponent == 0.0 {
                return g.zeros_like(); // 0 times infinity at 0
            }
            g * raw::affine(&read(kept.inputs[0])?.powf(exponent - 1.0)?, exponent, 0.0)?
        })
    }

    /// `x` where it lies between the two, else the nearer one; the gradient is that of `x` inside and on the border, else zero.
    pub fn clamp(&self, low: f64, high: f64) -> Result<Tensor> {
        let (kind, keeps) = ((self.shape().clone(), self.dtype()), Keeps::inputs([true]));
        let forward = move |x: &Array| x.clamp(low, high);
        unary("clamp", self, kind, keeps, forward, move |kept, g| {
            let x = read(kept.inputs[0])?;
            (g * x.ge(low)?.to_dtype(g.dtype())?)? * x.le(high)?.to_dtype(g.dtype())?
        })
    }

    /// `x^y`, broadcast, for `x` above zero.
    pub fn broadcast_pow(&self, y: &Tensor) -> Result<Tensor> {
        y.broadcast_mul(&self.log()?)?.exp()
    }

    /// Integers as f32; what is floating is as it is.
    pub fn floating(&self) -> Result<Tensor> {
        if self.dtype().is_int() { self.to_dtype(DType::F32) } else { Ok(self.clone()) }
    }

    /// The same numbers in another type; the gradient comes back in this one. Integers have no gradient.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        let own = self.dtype();
        if own == dtype {
            return Ok(self.clone());
        }
        let x = if dtype.is_int() || own.is_int() { &self.constant() } else { self };
        // candle's kernels for cards have no casts between integers and half precision.
        let by_f32 =
            self.device().is_cuda() && (own.is_int() && raw::is_half(dtype) || raw::is_half(own) && dtype.is_int());
        let cast = move |x: &Array| if by_f32 { x.to_dtype(DType::F32)?.to_dtype(dtype) } else { x.to_dtype(dtype) };
        unary("cast", x, (x.shape().clone(), dtype), Keeps::NOTHING, cast, move |_, g| g.to_dtype(own))
    }

    /// The same numbers on another device; the gradient comes back to this one.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        if self.meta.is_some() || self.device().same_device(device) {
            return Ok(self.clone());
        }
        if self.elem_count() == 0 {
            return Ok(Tensor::constant_of(raw::moved(self.array(), device)?));
        }
        let (kind, own, to) = ((self.shape().clone(), self.dtype()), self.device().clone(), device.clone());
        let send = move |x: &Array| x.to_device(&to);
        unary("transfer", self, kind, Keeps::NOTHING, send, move |_, g| g.to_device(&own))
    }

    /// `a` where this one (integers) is not zero, else `b`; all of one shape.
    pub fn where_cond(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let mask = self.value.clone();
        let back = mask.clone();
        let same = self.dims() == a.dims() && self.dims() == b.dims();
        let shape = if same { a.shape().clone() } else { return Err(mismatch("where", a, b)) };
        let forward = move |a: &Array, b: &Array| mask.where_cond(a, b);
        binary("where", [a, b], shape, [false; 2], forward, move |_, g, wanted| {
            let zero = g.zeros_like()?;
            let gradient = |wanted: bool, f: &dyn Fn() -> Candle<Array>| wanted.then(f).transpose();
            Ok([
                gradient(wanted[0], &|| back.where_cond(g, &zero))?,
                gradient(wanted[1], &|| back.where_cond(&zero, g))?,
            ])
        })
    }
}

fn mismatch(op: &'static str, a: &Tensor, b: &Tensor) -> Error {
    let (lhs, rhs) = (a.shape().clone(), b.shape().clone());
    candle_core::Error::ShapeMismatchBinaryOp { lhs, rhs, op }.into()
}

/// Arithmetic of two tensors: of one shape, and with dimensions of 1 or missing ones repeated.
macro_rules! arithmetic {
    ($($doc:literal $name:ident $broadcast:ident $same:expr, $keeps:expr, |$kept:ident, $g:ident| $left:expr, $right:expr;)*) => {
        impl Tensor {
            $(
                #[doc = concat!($doc, ", of one shape.")]
                pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
                    if self.dims() != other.dims() {
                        return Err(mismatch(stringify!($name), self, other));
                    }
                    self.$broadcast(other)
                }

                #[doc = concat!($doc, ", with dimensions that are 1 or missing repeated.")]
                pub fn $broadcast(&self, other: &Tensor) -> Result<Tensor> {
                    let shape = self.shape().broadcast_shape_binary_op(other.shape(), stringify!($name))?;
                    let same = self.dims() == other.dims();
                    let of_one_shape: fn(&Array, &Array) -> Candle<Array> = $same;
                    let forward = move |a: &Array, b: &Array| if same { of_one_shape(a, b) } else { a.$broadcast(b) };
                    let keeps: fn(bool, bool) -> [bool; 2] = $keeps;
                    let keeps = keeps(self.requires_grad(), other.requires_grad());
                    binary(stringify!($name), [self, other], shape, keeps, forward, |$kept, $g, wanted| {
                        let left = || sum_to(&$left?, $kept.shapes[0]);
                        let right = || sum_to(&$right?, $kept.shapes[1]);
                        Ok([wanted[0].then(left).transpose()?, wanted[1].then(right).transpose()?])
                    })
                }
            )*
        }
    };
}

arithmetic! {
    "`x + y`" add broadcast_add |a, b| Ok(raw::combine(a, 1.0, b, 1.0)?), |_, _| [false; 2], |kept, g| Candle::Ok(g.clone()), Candle::Ok(g.clone());
    "`x - y`" sub broadcast_sub |a, b| Ok(raw::combine(a, 1.0, b, -1.0)?), |_, _| [false; 2], |kept, g| Candle::Ok(g.clone()), g.neg();
    "`x y`" mul broadcast_mul |a, b| a * b, |a, b| [b, a],
        |kept, g| g.broadcast_mul(read(kept.inputs[1])?), g.broadcast_mul(read(kept.inputs[0])?);
    "`x / y`" div broadcast_div |a, b| a / b, |_, b| [b, true],
        |kept, g| g.broadcast_div(read(kept.inputs[1])?),
        g.broadcast_mul(&read(kept.inputs[0])?.broadcast_div(read(kept.inputs[1])?)?)?.broadcast_div(read(kept.inputs[1])?)?.neg();
}

/// `a x + b y` of one shape, in one pass.
pub fn combine((x, a): (&Tensor, f64), (y, b): (&Tensor, f64)) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return Err(mismatch("add", x, y));
    }
    let forward = move |x: &Array, y: &Array| Ok(raw::combine(x, a, y, b)?);
    binary("combine", [x, y], x.shape().clone(), [false; 2], forward, move |_, g, wanted| {
        let scaled = |factor: f64| if factor == 1.0 { Ok(g.clone()) } else { raw::affine(g, factor, 0.0) };
        Ok([wanted[0].then(|| scaled(a)).transpose()?, wanted[1].then(|| scaled(b)).transpose()?])
    })
}

/// [`Tensor::clamp`] whose gradient passes unchanged, so that an out-of-range pixel can still be pulled back.
pub fn clamp_through(x: &Tensor, low: f64, high: f64) -> Result<Tensor> {
    let kind = (x.shape().clone(), x.dtype());
    unary("clamp", x, kind, Keeps::NOTHING, move |x| x.clamp(low, high), |_, g| Ok(g.clone()))
}

/// The larger or the smaller number; of equal ones both get half the gradient.
macro_rules! extremes {
    ($($doc:literal $name:ident $broadcast:ident $own:ident;)*) => {
        impl Tensor {
            $(
                #[doc = concat!($doc, ", of one shape; equal ones share the gradient.")]
                pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
                    if self.dims() != other.dims() {
                        return Err(mismatch(stringify!($name), self, other));
                    }
                    self.$broadcast(other)
                }

                #[doc = concat!($doc, ", with dimensions that are 1 or missing repeated; equal ones share the gradient.")]
                pub fn $broadcast(&self, other: &Tensor) -> Result<Tensor> {
                    let shape = self.shape().broadcast_shape_binary_op(other.shape(), stringify!($name))?;
                    binary(stringify!($name), [self, other], shape, [true; 2], Array::$broadcast, |kept, g, wanted| {
                        let (a, b) = (read(kept.inputs[0])?, read(kept.inputs[1])?);
                        let half = (a.broadcast_eq(b)?.to_dtype(g.dtype())? * 0.5)?;
                        let share = |x: &Array, y: &Array, dims: &[usize]| {
                            sum_to(&(g * (x.$own(y)?.to_dtype(g.dtype())? + &half)?)?, dims)
                        };
                        Ok([
                            wanted[0].then(|| share(a, b, kept.shapes[0])).transpose()?,
                            wanted[1].then(|| share(b, a, kept.shapes[1])).transpose()?,
                        ])
                    })
                }
            )*
        }
    };
}

extremes! {
    "The larger number" maximum broadcast_maximum broadcast_gt;
    "The smaller number" minimum broadcast_minimum broadcast_lt;
}

/// Comparisons: 1 or 0 in u8, constant.
macro_rules! comparisons {
    ($($name:ident $broadcast:ident;)*) => {
        impl Tensor {
            $(
                /// 1 where it holds, else 0 (u8), beside a number or a tensor; constant.
                pub fn $name<O: Operand>(&self, other: O) -> Result<Tensor> {
                    other.with(self, |a, b| a.$broadcast(b))
                }

                /// 1 where it holds, else 0 (u8), with dimensions that are 1 or missing repeated; constant.
                pub fn $broadcast(&self, other: &Tensor) -> Result<Tensor> {
                    let shape: Shape = self.shape().broadcast_shape_binary_op(other.shape(), stringify!($name))?;
                    compared(stringify!($name), &self.constant(), &other.constant(), shape, Array::$broadcast)
                }
            )*
        }
    };
}

comparisons! {
    eq broadcast_eq;
    ne broadcast_ne;
    lt broadcast_lt;
    le broadcast_le;
    gt broadcast_gt;
    ge broadcast_ge;
}

fn compared(
    name: &'static str,
    a: &Tensor,
    b: &Tensor,
    shape: Shape,
    how: fn(&Array, &Array) -> Candle<Array>,
) -> Result<Tensor> {
    use super::call::{Kernels, apply};
    use super::elementary::Elementary;
    let forward = move |[a, b]: [&Array; 2]| how(a, b);
    let backward = |_: Kept<2, ()>, _: &Array, _: [bool; 2]| Ok([None, None]);
    let (dtype, keeps, kernels) = (DType::U8, Keeps::NOTHING, Kernels::CANDLE);
    apply(Elementary { name, shape, dtype, keeps, kernels, forward, backward }, [Some(a), Some(b)])
}

/// What a tensor can be compared with.
pub trait Operand {
    fn with(self, x: &Tensor, f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor>;
}

impl Operand for &Tensor {
    fn with(self, x: &Tensor, f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        f(x, self)
    }
}

impl Operand for f64 {
    fn with(self, x: &Tensor, f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        f(x, &Tensor::new(self, x.device())?.to_dtype(x.dtype())?)
    }
}

/// `a + b`, `a - b` by the fused sum, the rest by name.
macro_rules! operators {
    ($($trait:ident $method:ident, |$x:ident, $y:ident| $tensors:expr, |$a:ident, $number:ident| $by:expr;)*) => {
        $(
            impl std::ops::$trait<&Tensor> for &Tensor {
                type Output = Result<Tensor>;
                fn $method(self, $y: &Tensor) -> Result<Tensor> {
                    let $x = self;
                    $tensors
                }
            }
            impl std::ops::$trait<Tensor> for &Tensor {
                type Output = Result<Tensor>;
                fn $method(self, y: Tensor) -> Result<Tensor> {
                    std::ops::$trait::$method(self, &y)
                }
            }
            impl std::ops::$trait<&Tensor> for Tensor {
                type Output = Result<Tensor>;
                fn $method(self, y: &Tensor) -> Result<Tensor> {
                    std::ops::$trait::$method(&self, y)
                }
            }
            impl std::ops::$trait<Tensor> for Tensor {
                type Output = Result<Tensor>;
                fn $method(self, y: Tensor) -> Result<Tensor> {
                    std::ops::$trait::$method(&self, &y)
                }
            }
            impl std::ops::$trait<Result<Tensor>> for &Tensor {
                type Output = Result<Tensor>;
                fn $method(self, y: Result<Tensor>) -> Result<Tensor> {
                    std::ops::$trait::$method(self, &y?)
                }
            }
            impl std::ops::$trait<Result<Tensor>> for Tensor {
                type Output = Result<Tensor>;
                fn $method(self, y: Result<Tensor>) -> Result<Tensor> {
                    std::ops::$trait::$method(&self, &y?)
                }
            }
            impl std::ops::$trait<f64> for &Tensor {
                type Output = Result<Tensor>;
                fn $method(self, $number: f64) -> Result<Tensor> {
                    let $a = self;
                    $by
                }
            }
            impl std::ops::$trait<f64> for Tensor {
                type Output = Result<Tensor>;
                fn $method(self, number: f64) -> Result<Tensor> {
                    std::ops::$trait::$method(&self, number)
                }
            }
        )*
    };
}

operators! {
    Add add, |x, y| Tensor::add(x, y), |x, number| x.affine(1.0, number);
    Sub sub, |x, y| Tensor::sub(x, y), |x, number| x.affine(1.0, -number);
    Mul mul, |x, y| Tensor::mul(x, y), |x, number| x.affine(number, 0.0);
    Div div, |x, y| Tensor::div(x, y), |x, number| x.affine(1.0 / number, 0.0);
}

/// `number - x`.
macro_rules! from_number {
    ($($type:ty)*) => {
        $(
            impl std::ops::Sub<$type> for f64 {
                type Output = Result<Tensor>;
                fn sub(self, x: $type) -> Result<Tensor> {
                    x.affine(-1.0, self)
                }
            }
        )*
    };
}

from_number! { Tensor &Tensor }

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::{Case, case};
    type One = fn(&Tensor) -> Result<Tensor>;
    type Two = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let ones: [(&str, One); 14] = [
        ("neg", Tensor::neg),
        ("exp", Tensor::exp),
        ("sqr", Tensor::sqr),
        ("abs", Tensor::abs),
        ("sin", Tensor::sin),
        ("cos", Tensor::cos),
        ("tanh", Tensor::tanh),
        ("erf", Tensor::erf),
        ("affine", |x| x.affine(0.7, -2.0)),
        ("from a number", |x| 3.0 - x),
        ("clamp", |x| x.clamp(-0.5, 0.8)),
        ("where", |x| x.gt(0.1)?.where_cond(&(x * 2.0)?, &x.sqr()?)),
        ("cast", |x| x.to_dtype(x.dtype())),
        ("copy", Tensor::copy),
    ];
    let above: [(&str, One); 5] = [
        ("log", Tensor::log),
        ("sqrt", Tensor::sqrt),
        ("recip", Tensor::recip),
        ("powf", |x| x.powf(1.7)),
        ("pow", |x| x.broadcast_pow(x)),
    ];
    let twos: [(&str, Two); 6] = [
        ("add", Tensor::broadcast_add),
        ("sub", Tensor::broadcast_sub),
        ("mul", Tensor::broadcast_mul),
        ("div", Tensor::broadcast_div),
        ("maximum", Tensor::broadcast_maximum),
        ("minimum", Tensor::broadcast_minimum),
    ];
    let ones = ones.map(|(name, f)| case(name, &[&[3, 4]], move |i| f(&i[0])).elementary());
    let above = above.map(|(name, f)| case(name, &[&[3, 4]], move |i| f(&(i[0].abs()? + 0.5)?)).elementary());
    let same =
        twos.map(|(name, f)| case(name, &[&[3, 4], &[3, 4]], move |i| f(&i[0], &i[1])).offset(1, 5.0).elementary());
    let broadcast = twos.map(|(name, f)| {
        case(format!("broadcast {name}"), &[&[2, 1, 4], &[3, 1]], move |i| f(&i[0], &(&i[1] + 4.0)?)).elementary()
    });
    let combined = [[2, 5, 6], [2, 5, 40]].map(|shape| Case {
        card: true,
        ..case("combine", &[&shape, &shape], |i| combine((&i[0], 0.5), (&i[1], -2.0))).elementary()
    });
    ones.into_iter().chain(above).chain(same).chain(broadcast).chain(combined).collect()
}
