//! How likely a path is under another flow: the weight that makes draws of one the draws of another.

use crate::flow::Trajectory;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::check::require;
use amscript_tensor::sample::sum_per_sample;
use amscript_tensor::{DType, Tensor};

/// `log dP_other / dP_flow` of every kept step and path, `[steps, batch]` in f64, from the velocities of both flows at the kept states.
///
/// Step `k` is a draw of `N(mean, q)`, `q = h w`; the other flow moves its mean by `d = h (1 + rho) (v_other - v_flow)`, so the ratio
/// is `d . (X_{k+1} - mean) / q - |d|^2 / 2q`: exact for the chain, whatever the width of its steps, and summed over entries. With
/// `quadratic` only the second part, the ratio's mean over paths of the flow. A step without noise must have `d = 0`.
pub fn girsanov(path: &Trajectory, flow: &[Tensor], other: &[Tensor], quadratic: bool) -> Result<Tensor> {
    let double = |x: &Tensor| x.constant().to_dtype(DType::F64);
    let mut steps = Vec::with_capacity(path.window().len());
    for (i, k) in path.window().enumerate() {
        let (step, v) = (path.dynamics(k)?, double(&flow[i])?);
        let shift = ((double(&other[i])? - &v)? * (step.h * (1.0 + step.rho)))?;
        let size = sum_per_sample(&shift.sqr()?)?;
        let q = step.noise_std().powi(2);
        if q == 0.0 {
            require(&size.sum_all()?, move |sum| match sum.iter().all(|sum| *sum == 0.0) {
                true => Ok(()),
                false => bail!(
                    Value, "girsanov: flows must agree where a step has no noise, got different velocities at step {k}";
                    hint: "sample with noise at every step that is guided; the last step of gddim(eta) and all of euler() have none"
                ),
            })?;
            steps.push(size);
            continue;
        }
        let mean = (size / (-2.0 * q))?;
        let moved = (double(path.state(k + 1)?)? - step.advance(&double(path.state(k)?)?, &v)?)?;
        steps.push(if quadratic { mean } else { ((sum_per_sample(&(shift * moved)?)? / q)? + mean)? });
    }
    Tensor::stack(&steps, 0)
}
