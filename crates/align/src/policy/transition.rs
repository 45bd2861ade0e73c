//! The likelihood of a stochastic step under a changed policy, from the change of velocity and the step's stored noise.

use crate::Reduction;
use crate::flow::{Dynamics, Trajectory};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::sample::sum_per_sample;

/// What a step's log-ratio is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalise {
    /// That of the two Gaussians: `g z dv - g^2 dv^2 / 2`, `g = h (1 + rho) / sqrt(h w)`.
    #[default]
    Plain,
    /// `h (1 + rho) z dv`: as wide at every step, without the bias of the square (GRPO-Guard, arXiv:2510.22319).
    Guard,
    /// Without the division by twice the variance, as Flow-CPS has it (arXiv:2509.05952): `2 s z m - m^2`, `m = h (1 + rho) dv`, `s^2 = h w`.
    Unscaled,
}

/// A step of a path, drawn by the old policy, as a new one sees it.
pub struct Transition {
    /// `v_new - v_old` `[batch, ..]`, with the new policy's graph.
    pub change: Tensor,
    /// The step's unit noise.
    noise: Tensor,
    step: Dynamics,
    reduction: Reduction,
}

impl Transition {
    /// Step `k` of a path that kept its noise, with the new velocity at its state.
    pub fn new(path: &Trajectory, k: usize, velocity: &Tensor, reduction: Reduction) -> Result<Self> {
        let (step, x) = (path.dynamics(k)?, path.state(k)?);
        let noise = path.noises.get(k - path.first).cloned().flatten();
        let Some(noise) = noise.filter(|_| step.noise_std() > 0.0) else {
            bail!(
                Value, "transition: step {k} must have noise that was kept, got none";
                hint: "roll out with a stochastic solver and `noises: true`; the last step of cps(eta) and gddim(eta) has none"
            );
        };
        if velocity.dims() != x.dims() {
            bail!(
                Shape,
                "transition: the velocity must have the state's shape {:?}, got {:?}",
                x.dims(),
                velocity.dims()
            );
        }
        let change = (velocity.to_dtype(x.dtype())? - path.velocities[k - path.first].constant())?;
        Ok(Self { change, noise, step, reduction })
    }

    fn per_sample(&self, x: &Tensor) -> Result<Tensor> {
        let sum = sum_per_sample(x)?;
        match self.reduction {
            Reduction::Sum => Ok(sum),
            Reduction::Mean => sum * (1.0 / (x.elem_count() / x.dim(0)?.max(1)).max(1) as f64),
        }
    }

    /// The log of how much likelier the step is under the new policy, `[batch]`: 0 to the bit where the velocity is the old one.
    pub fn log_ratio(&self, normalise: Normalise) -> Result<Tensor> {
        let (reach, noise) = (self.step.reach(), self.step.noise_std());
        let (drift, spread) = match normalise {
            Normalise::Plain => (reach / noise, (reach / noise).powi(2) / 2.0),
            Normalise::Guard => (reach, 0.0),
            Normalise::Unscaled => (2.0 * noise * reach, reach * reach),
        };
        let drift = (self.per_sample(&(&self.noise * &self.change)?)? * drift)?;
        if spread == 0.0 { Ok(drift) } else { drift - (self.per_sample(&self.change.sqr()?)? * spread)? }
    }

    /// The divergence of the old step from the new one, `[batch]`: `g^2 dv^2 / 2`.
    pub fn divergence(&self) -> Result<Tensor> {
        self.per_sample(&self.change.sqr()?)? * ((self.step.reach() / self.step.noise_std()).powi(2) / 2.0)
    }
}
