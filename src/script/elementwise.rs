//! Chapter `elementwise`: functions of each number of a tensor.

use super::*;
use amscript_tensor::{Tensor, array, op};

/// A module of functions from tensor to tensor.
macro_rules! elementwise {
    ($( $(#[doc = $doc:literal])* $name:ident = $apply:expr; )*) => {
        /// Functions of each number; all let gradients through.
        #[export_module(manifest)]
        pub mod elementwise {
            use super::*;

            $(
                $(#[doc = $doc])*
                #[rhai_fn(return_raw)]
                pub fn $name(x: Tensor) -> RhaiResultOf<Tensor> {
                    Ok($apply(&x).map_err(Error::from)?)
                }
            )*

            /// The natural logarithm of a number; `log` of a tensor is natural too.
            ///
            /// ```rhai
            /// log(1.0)   //=> 0.0
            /// ```
            #[rhai_fn(name = "log")]
            pub fn log_number(x: f64) -> f64 {
                x.ln()
            }

            #[rhai_fn(name = "exp")]
            pub fn exp_number(x: f64) -> f64 {
                x.exp()
            }

            #[rhai_fn(name = "sqrt")]
            pub fn sqrt_number(x: f64) -> f64 {
                x.sqrt()
            }

            #[rhai_fn(name = "sin")]
            pub fn sin_number(x: f64) -> f64 {
                x.sin()
            }

            #[rhai_fn(name = "cos")]
            pub fn cos_number(x: f64) -> f64 {
                x.cos()
            }

            #[rhai_fn(name = "tanh")]
            pub fn tanh_number(x: f64) -> f64 {
                x.tanh()
            }

            /// The numbers moved into a range; the gradient is zero outside.
            ///
            /// ```rhai
            /// tensor([-1, 0.5, 2]).clamp(0, 1)   //=> tensor([0.0, 0.5, 1.0])
            /// ```
            #[rhai_fn(return_raw)]
            pub fn clamp(x: Tensor, low: f64, high: f64) -> RhaiResultOf<Tensor> {
                let whole = low.fract() == 0.0 && high.fract() == 0.0;
                Ok(if whole { x } else { x.floating()? }.clamp(low, high)?)
            }

            /// The numbers moved into a range, with the gradient passed as if they had not been.
            ///
            /// ```rhai
            /// tensor([-1, 0.5, 2]).clamp_through(0, 1)   //=> tensor([0.0, 0.5, 1.0])
            /// ```
            #[rhai_fn(return_raw)]
            pub fn clamp_through(x: Tensor, low: f64, high: f64) -> RhaiResultOf<Tensor> {
                Ok(op::clamp_through(&x, low, high)?)
            }

            /// The larger of two tensors, number by number.
            ///
            /// ```rhai
            /// maximum(tensor([1, 5]), tensor([3]))   //=> tensor([3.0, 5.0])
            /// ```
            #[rhai_fn(return_raw)]
            pub fn maximum(a: Tensor, b: Tensor) -> RhaiResultOf<Tensor> {
                Ok(a.broadcast_maximum(&b)?)
            }

            /// The smaller of two tensors, number by number.
            ///
            /// ```rhai
            /// minimum(tensor([1, 5]), tensor([3]))   //=> tensor([1.0, 3.0])
            /// ```
            #[rhai_fn(return_raw)]
            pub fn minimum(a: Tensor, b: Tensor) -> RhaiResultOf<Tensor> {
                Ok(a.broadcast_minimum(&b)?)
            }

            /// The numbers of `a` where the mask is not zero, and of `b` elsewhere.
            ///
            /// ```rhai
            /// let x = tensor([-1, 2]);
            /// select(x > 0, x, zeros([2]))   //=> tensor([0.0, 2.0])
            /// ```
            #[rhai_fn(return_raw)]
            pub fn select(mask: Tensor, a: Tensor, b: Tensor) -> RhaiResultOf<Tensor> {
                Ok(array::select(&mask, &a, &b)?)
            }
        }
    };
}

elementwise! {
    /// e to the power of each number.
    ///
    /// ```rhai
    /// tensor([0, 1]).exp()   //=> tensor([1.0, 2.71828])
    /// ```
    exp = real(Tensor::exp);

    /// The natural logarithm.
    ///
    /// ```rhai
    /// tensor([1, 10]).log()   //=> tensor([0.0, 2.30259])
    /// ```
    log = real(Tensor::log);

    /// The square root.
    ///
    /// ```rhai
    /// tensor([4, 2]).sqrt()   //=> tensor([2.0, 1.41421])
    /// ```
    sqrt = real(Tensor::sqrt);

    /// The square.
    ///
    /// ```rhai
    /// tensor([-3]).square()   //=> tensor([9.0])
    /// ```
    square = real(Tensor::sqr);

    /// The absolute value.
    ///
    /// ```rhai
    /// tensor([-3, 2]).abs()   //=> tensor([3.0, 2.0])
    /// ```
    abs = Tensor::abs;

    /// -1, 0 or 1; no gradient.
    ///
    /// ```rhai
    /// tensor([-3, 0, 2]).sign()   //=> tensor([-1.0, 0.0, 1.0])
    /// ```
    sign = Tensor::sign;

    /// The sine.
    ///
    /// ```rhai
    /// tensor([0, 1]).sin()   //=> tensor([0.0, 0.841471])
    /// ```
    sin = real(Tensor::sin);

    /// The cosine.
    ///
    /// ```rhai
    /// tensor([0, 1]).cos()   //=> tensor([1.0, 0.540302])
    /// ```
    cos = real(Tensor::cos);

    /// The hyperbolic tangent.
    ///
    /// ```rhai
    /// tensor([0, 1]).tanh()   //=> tensor([0.0, 0.761594])
    /// ```
    tanh = real(Tensor::tanh);

    /// 1 / (1 + exp(-x)).
    ///
    /// ```rhai
    /// tensor([0, 1, -1000]).sigmoid()   //=> tensor([0.5, 0.731059, 0.0])
    /// ```
    sigmoid = real(op::sigmoid);

    /// log(1 + exp(x)), also where exp(x) overflows; `-(-x).softplus()` is the log of a sigmoid.
    ///
    /// ```rhai
    /// tensor([0, 1000]).softplus()   //=> tensor([0.693147, 1000.0])
    /// ```
    softplus = real(op::softplus);

    /// The positive part.
    ///
    /// ```rhai
    /// tensor([-1, 2]).relu()   //=> tensor([0.0, 2.0])
    /// ```
    relu = Tensor::relu;

    /// x sigmoid(x).
    ///
    /// ```rhai
    /// tensor([0, 1]).silu()   //=> tensor([0.0, 0.731059])
    /// ```
    silu = real(op::silu);

    /// x times the normal distribution function of x, exactly.
    ///
    /// ```rhai
    /// tensor([0, 1]).gelu()   //=> tensor([0.0, 0.841345])
    /// ```
    gelu = real(op::gelu_erf);

    /// The largest integer that is not larger; no gradient.
    ///
    /// ```rhai
    /// tensor([1.5, -1.5]).floor()   //=> tensor([1.0, -2.0])
    /// ```
    floor = Tensor::floor;

    /// The nearest integer; no gradient.
    ///
    /// ```rhai
    /// tensor([1.4, -1.6]).round()   //=> tensor([1.0, -2.0])
    /// ```
    round = Tensor::round;
}

/// A function that takes integers as f32.
fn real(f: fn(&Tensor) -> Result<Tensor>) -> impl Fn(&Tensor) -> Result<Tensor> {
    move |x| f(&x.floating()?)
}
