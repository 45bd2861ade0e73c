//! Chapter `grad`: derivatives of script functions.

use super::*;
use amscript_tensor::Tensor;
use amscript_tensor::grad as native;

/// First derivatives; what comes back is detached. Second derivatives are not available.
#[export_module(manifest)]
pub mod grad {
    use super::*;

    /// The gradient of a scalar function at `x`.
    ///
    /// ```rhai
    /// grad(|x| (x * x).sum(), tensor([1, 2]))       //=> tensor([2.0, 4.0])
    /// let k = 3;
    /// grad(|x| k * x.sum(), tensor([1, 2]))         //=> tensor([3.0, 3.0])
    /// grad(|x| x * 2, tensor([1, 2]))               //=> error: expected a scalar loss
    /// grad(|x| x.nothing(), tensor([1, 2]))         //=> error: no function `nothing`
    /// ```
    #[rhai_fn(return_raw)]
    pub fn grad(context: NativeCallContext, f: FnPtr, x: Tensor) -> RhaiResultOf<Tensor> {
        let f = Callback::new(&context, "grad", f);
        Ok(native::value_and_grad(|x| f.call((x.clone(),)), &x)?.1)
    }

    /// The value of a scalar function and its gradient, as `[value, gradient]`.
    ///
    /// ```rhai
    /// value_and_grad(|x| (x * x).sum(), tensor([1, 2]))   //=> [tensor(5.0), tensor([2.0, 4.0])]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn value_and_grad(context: NativeCallContext, f: FnPtr, x: Tensor) -> RhaiResultOf<Array> {
        let f = Callback::new(&context, "value_and_grad", f);
        let (value, gradient) = native::value_and_grad(|x| f.call((x.clone(),)), &x)?;
        Ok(vec![Dynamic::from(value), Dynamic::from(gradient)])
    }

    /// The vector-Jacobian product: the gradient of the sum of `f(x) * v`.
    ///
    /// ```rhai
    /// vjp(|x| x * x, tensor([1, 2]), tensor([1, 10]))   //=> tensor([2.0, 40.0])
    /// vjp(|x| x * x, tensor([1, 2]), tensor([1]))       //=> error: vjp: expected a vector of the value's shape [2], got [1]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn vjp(context: NativeCallContext, f: FnPtr, x: Tensor, v: Tensor) -> RhaiResultOf<Tensor> {
        let f = Callback::new(&context, "vjp", f);
        Ok(native::vjp(|x| f.call((x.clone(),)), &x, &v)?.1)
    }

    /// The largest relative error of the gradient of `f` at `x` against finite differences; use f64.
    ///
    /// ```rhai
    /// gradcheck(|x| (x * x).sum(), tensor([1, 2]).to(f64())) < 1e-6    //=> true
    /// gradcheck(|x| x.detach() * x, tensor([1, 2]).to(f64())) > 0.1    //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn gradcheck(context: NativeCallContext, f: FnPtr, x: Tensor) -> RhaiResultOf<f64> {
        let f = Callback::new(&context, "gradcheck", f);
        Ok(native::gradcheck(|x| f.call((x.clone(),)), &x, 0)?)
    }

    /// A trainable tensor that starts as `x`: optimizers change it, losses have gradients for it.
    ///
    /// ```rhai
    /// let w = param(tensor([1, 2]));
    /// gradients((w * w).sum(), [w])   //=> [tensor([2.0, 4.0])]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn param(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(x.variable()?)
    }

    /// The gradients of a scalar loss for each of the trainable tensors.
    ///
    /// ```rhai
    /// let a = param(tensor([1]));
    /// let b = param(tensor([2]));
    /// gradients((a * b).sum(), [a, b])   //=> [tensor([2.0]), tensor([1.0])]
    /// gradients(a.sum(), [a, b])         //=> error: the loss does not depend on tensor 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn gradients(loss: Tensor, params: Array) -> RhaiResultOf<Array> {
        let params = option::list::<Tensor>(params, "gradients")?;
        Ok(native::gradients(&loss, &params)?.into_iter().map(Dynamic::from).collect())
    }

    /// The same numbers without their history: gradients stop here. Those of a parameter are copied, and stay when it is trained.
    ///
    /// ```rhai
    /// grad(|x| (x * x.detach()).sum(), tensor([3]))   //=> tensor([3.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn detach(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(x.detach()?)
    }
}
