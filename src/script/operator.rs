//! Chapter `operator`: arithmetic and comparison of tensors, with tensors and numbers on either side.

use super::*;
use amscript_base::bail;
use amscript_tensor::Tensor;
use amscript_tensor::array::{compare, equal, scalar_like};

/// A module of binary operators, each for two tensors, a tensor and a number, a number and a tensor.
macro_rules! operators {
    ($( $(#[doc = $doc:literal])* operator $symbol:tt: $tensors:ident $right:ident $left:ident = $both:expr, $by:expr, $from:expr; )*) => {
        /// Shapes broadcast as in NumPy; integer tensors become floating point beside a number.
        #[export_module(manifest)]
        pub mod operator {
            use super::*;

            $(
                $(#[doc = $doc])*
                #[rhai_fn(name = $symbol, return_raw)]
                pub fn $tensors(a: Tensor, b: Tensor) -> RhaiResultOf<Tensor> {
                    let (a, b) = meet($symbol, a, b)?;
                    Ok(both($both, &a, &b)?)
                }

                #[rhai_fn(name = $symbol, return_raw)]
                pub fn $right(a: Tensor, b: f64) -> RhaiResultOf<Tensor> {
                    Ok(by($by, a.floating()?, b)?) // integers beside a number with a fraction would be cut
                }

                #[rhai_fn(name = $symbol, return_raw)]
                pub fn $left(a: f64, b: Tensor) -> RhaiResultOf<Tensor> {
                    Ok(from($from, a, b.floating()?)?)
                }
            )*

            /// The tensor with its sign changed.
            ///
            /// ```rhai
            /// -tensor([1, -2])   //=> tensor([-1.0, 2.0])
            /// ```
            #[rhai_fn(name = "-", return_raw)]
            pub fn negative(x: Tensor) -> RhaiResultOf<Tensor> {
                Ok(x.floating()?.neg()?)
            }

            /// Whether two tensors have the same shape and the same numbers; beside a number it is an error.
            ///
            /// ```rhai
            /// tensor([1, 2]) == tensor([1, 2])   //=> true
            /// zeros([2]) == zeros([2, 1])        //=> false
            /// tensor([3]).item() == 3            //=> true
            /// tensor([3]) == 3                   //=> error: `==` and `!=` compare whole tensors, got a tensor and a number
            /// ```
            #[rhai_fn(name = "==", return_raw)]
            pub fn same(a: Tensor, b: Tensor) -> RhaiResultOf<bool> {
                Ok(equal(&a, &b)?)
            }

            #[rhai_fn(name = "==", name = "!=", return_raw)]
            pub fn before_number(_a: Tensor, _b: f64) -> RhaiResultOf<bool> {
                Err(whole().into())
            }

            #[rhai_fn(name = "==", name = "!=", return_raw)]
            pub fn behind_number(_a: f64, _b: Tensor) -> RhaiResultOf<bool> {
                Err(whole().into())
            }

            /// Whether two tensors differ in shape or in a number.
            ///
            /// ```rhai
            /// tensor([1, 2]) != tensor([1, 3])   //=> true
            /// ```
            #[rhai_fn(name = "!=", return_raw)]
            pub fn different(a: Tensor, b: Tensor) -> RhaiResultOf<bool> {
                Ok(!equal(&a, &b)?)
            }
        }
    };
}

operators! {
    /// Sum.
    ///
    /// ```rhai
    /// tensor([1, 2]) + tensor([10])    //=> tensor([11.0, 12.0])
    /// 1 + tensor([1, 2]) + 0.5         //=> tensor([2.5, 3.5])
    /// tensor([1, 2]) + zeros([3])      //=> error: `+`: expected shapes that broadcast, got [2] and [3]
    /// ```
    operator "+": add add_number number_add =
        Tensor::broadcast_add, |a, b| affine(a, 1.0, b), |a, b| affine(b, 1.0, a);

    /// Difference.
    ///
    /// ```rhai
    /// tensor([1, 2]) - tensor([1, 1])   //=> tensor([0.0, 1.0])
    /// 1 - tensor([1, 2])                //=> tensor([0.0, -1.0])
    /// tensor([1, 2]) - 1                //=> tensor([0.0, 1.0])
    /// ```
    operator "-": subtract subtract_number number_subtract =
        Tensor::broadcast_sub, |a, b| affine(a, 1.0, -b), |a, b| affine(b, -1.0, a);

    /// Elementwise product.
    ///
    /// ```rhai
    /// 2 * tensor([1, 2])                      //=> tensor([2.0, 4.0])
    /// tensor([[1, 2]]) * tensor([[1], [3]])   //=> tensor([[1.0, 2.0], [3.0, 6.0]])
    /// tensor([1, 2]) * "a"                    //=> error: `*`: expected (Tensor, Tensor), got (Tensor, string)
    /// ```
    operator "*": multiply multiply_number number_multiply =
        Tensor::broadcast_mul, |a, b| affine(a, b, 0.0), |a, b| affine(b, a, 0.0);

    /// Elementwise quotient.
    ///
    /// ```rhai
    /// tensor([1, 2]) / 4                //=> tensor([0.25, 0.5])
    /// 1 / tensor([1, 2])                //=> tensor([1.0, 0.5])
    /// tensor([1, 2]) / tensor([2, 2])   //=> tensor([0.5, 1.0])
    /// ```
    operator "/": divide divide_number number_divide =
        Tensor::broadcast_div, |a, b| affine(a, 1.0 / b, 0.0), |a, b| affine(&b.recip()?, a, 0.0);

    /// Elementwise power; beside a tensor exponent the base must be positive.
    ///
    /// ```rhai
    /// tensor([1, -2]) ** 2              //=> tensor([1.0, 4.0])
    /// 2 ** tensor([1, 2])               //=> tensor([2.0, 4.0])
    /// tensor([4, 9]) ** tensor([0.5])   //=> tensor([2.0, 3.0])
    /// ```
    operator "**": power power_number number_power =
        |a, b| a.broadcast_pow(b), raise, |a, b| affine(b, a.ln(), 0.0).and_then(|x| exp(&x));

    /// 1.0 where the left side is less, else 0.0.
    ///
    /// ```rhai
    /// tensor([1, 2, 3]) < 2             //=> tensor([1.0, 0.0, 0.0])
    /// ```
    operator "<": less less_number number_less =
        |a, b| mask(a, b, Tensor::broadcast_lt),
        |a, b| compare(a, &scalar_like(b, a)?, Tensor::broadcast_lt),
        |a, b| compare(b, &scalar_like(a, b)?, Tensor::broadcast_gt);

    /// 1.0 where the left side is less or equal, else 0.0.
    ///
    /// ```rhai
    /// 2 <= tensor([1, 2, 3])            //=> tensor([0.0, 1.0, 1.0])
    /// ```
    operator "<=": at_most at_most_number number_at_most =
        |a, b| mask(a, b, Tensor::broadcast_le),
        |a, b| compare(a, &scalar_like(b, a)?, Tensor::broadcast_le),
        |a, b| compare(b, &scalar_like(a, b)?, Tensor::broadcast_ge);

    /// 1.0 where the left side is greater, else 0.0.
    ///
    /// ```rhai
    /// (tensor([1, 2, 3]) > 1).mean()    //=> tensor(0.666667)
    /// ```
    operator ">": greater greater_number number_greater =
        |a, b| mask(a, b, Tensor::broadcast_gt),
        |a, b| compare(a, &scalar_like(b, a)?, Tensor::broadcast_gt),
        |a, b| compare(b, &scalar_like(a, b)?, Tensor::broadcast_lt);

    /// 1.0 where the left side is greater or equal, else 0.0.
    ///
    /// ```rhai
    /// tensor([1, 2]) >= tensor([2, 2])  //=> tensor([0.0, 1.0])
    /// ```
    operator ">=": at_least at_least_number number_at_least =
        |a, b| mask(a, b, Tensor::broadcast_ge),
        |a, b| compare(a, &scalar_like(b, a)?, Tensor::broadcast_ge),
        |a, b| compare(b, &scalar_like(a, b)?, Tensor::broadcast_le);
}

/// A tensor beside a number is neither the same nor different: Rhai would say so without a word.
pub(super) fn whole() -> Error {
    Error::new(Kind::Type, "`==` and `!=` compare whole tensors, got a tensor and a number")
        .hint("write `x.item() == 0` of one number, `x.min().item()` and `x.max().item()` to ask for all")
}

// These give the closures in the table their types.
fn both(f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    f(a, b)
}

fn by(f: impl Fn(&Tensor, f64) -> Result<Tensor>, a: Tensor, b: f64) -> Result<Tensor> {
    f(&a, b)
}

fn from(f: impl Fn(f64, &Tensor) -> Result<Tensor>, a: f64, b: Tensor) -> Result<Tensor> {
    f(a, &b)
}

fn affine(x: &Tensor, factor: f64, shift: f64) -> Result<Tensor> {
    x.affine(factor, shift)
}

fn exp(x: &Tensor) -> Result<Tensor> {
    x.exp()
}

/// Squares are products: faster, and their gradient is right for every sign.
fn raise(x: &Tensor, exponent: f64) -> Result<Tensor> {
    Ok(if exponent == 2.0 { x.sqr()? } else { x.powf(exponent)? })
}

fn mask(a: &Tensor, b: &Tensor, how: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
    compare(a, b, how)
}

/// Two tensors that can be combined: one dtype, shapes that broadcast.
fn meet(symbol: &str, a: Tensor, b: Tensor) -> Result<(Tensor, Tensor)> {
    if a.shape().broadcast_shape_binary_op(b.shape(), "operator").is_err() {
        bail!(Shape, "`{symbol}`: expected shapes that broadcast, got {:?} and {:?}", a.dims(), b.dims());
    }
    let (left, right) = (a.dtype(), b.dtype());
    match (left.is_int(), right.is_int()) {
        _ if left == right => Ok((a, b)),
        (true, false) => Ok((a.to_dtype(right)?, b)),
        (false, true) => Ok((a, b.to_dtype(left)?)),
        _ => bail!(Dtype, "`{symbol}`: expected tensors of one dtype, got {} and {}", left.as_str(), right.as_str();
            hint: "convert one with `.to(other)`"),
    }
}
