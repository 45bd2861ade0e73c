//! Losses at noised ends. `e(f) = mean |f - u|^2` over a sample's entries for a velocity `f` and the target `u = x_1 - x_0`.

use super::ends::Noised;
use super::pass::mean_per_sample;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::sample::spread;

/// The weight of the distance from the old policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gamma {
    Number(f64),
    /// `b - a` for rows of weight `a`; 1 is AdvantageFlow's other form, and DiffusionNFT without its adaptive weights.
    Less(f64),
}

/// How a row's weight `a` and its errors become a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Regression {
    /// `a |v - u|^2 + gamma |v - v_old|^2`.
    Quadratic(Gamma),
    /// DiffusionNFT (arXiv:2509.16117) as published: both implicit policies, their errors of the data over their own detached size.
    Nft { beta: f64 },
    /// CRD (arXiv:2603.14128): the reward that the change of error implies is regressed on the weight, both about their group's mean.
    Crd { beta: f64 },
    /// DGPO (arXiv:2510.08425): the group's preference as a whole weighs the errors.
    Dgpo { beta: f64 },
    /// Diffusion-DPO (arXiv:2311.12908) of rows that are the better and the worse of a pair in turn.
    Pairs { beta: f64 },
}

/// What a loss is computed from: velocities `[n, ..]` at noised ends.
pub struct Errors<'a> {
    pub at: &'a Noised,
    /// With the policy's graph.
    pub policy: &'a Tensor,
    pub old: Option<&'a Tensor>,
    pub reference: Option<&'a Tensor>,
    /// `[n]`.
    pub weight: &'a Tensor,
    /// Rows of a prompt.
    pub group: usize,
}

impl Regression {
    pub fn needs_old(&self) -> bool {
        match self {
            Regression::Quadratic(gamma) => *gamma != Gamma::Number(0.0),
            Regression::Nft { .. } | Regression::Crd { .. } => true,
            Regression::Dgpo { .. } | Regression::Pairs { .. } => false,
        }
    }

    pub fn needs_reference(&self) -> bool {
        matches!(self, Regression::Dgpo { .. } | Regression::Pairs { .. })
    }

    /// Rows that share noise and time.
    pub fn share(&self, group: usize) -> usize {
        match self {
            Regression::Pairs { .. } => 2,
            Regression::Dgpo { .. } => group,
            _ => 1,
        }
    }

    /// Refuses weights that leave a row's error without a least value: `a + gamma + anchor` must be above 0 for the least weight `a`, and both
    /// policies of NFT count.
    pub fn check(&self, [least, most]: [f64; 2], anchor: f64) -> Result<()> {
        let (Regression::Nft { beta }
        | Regression::Crd { beta }
        | Regression::Dgpo { beta }
        | Regression::Pairs { beta }) = *self
        else {
            let Regression::Quadratic(gamma) = *self else { return Ok(()) };
            let held = anchor
                + match gamma {
                    Gamma::Number(gamma) => gamma,
                    Gamma::Less(b) => b - least,
                };
            if held + least <= 0.0 {
                bail!(
                    Value, "forward_process: weights + gamma + anchor must be above 0, got {least} + {held:.4}, with which the error has no least value";
                    hint: "raise gamma above the largest size of a weight, such as `gamma: 1.1` beside `clip: 1`; rewards as weights must be 0 or more"
                );
            }
            return Ok(());
        };
        if !(beta > 0.0 && beta.is_finite()) {
            bail!(Value, "forward_process: beta must be above 0, got {beta}");
        }
        if matches!(self, Regression::Nft { .. }) && !(least >= -1.0 && most <= 1.0) {
            bail!(
                Value, "forward_process: weights of nft_loss must lie in [-1, 1], got up to {:.4}", most.max(-least);
                hint: "divide advantages by their clip: `by_advantage(#{{ clip: 5.0, divide: 5.0 }})`"
            );
        }
        Ok(())
    }

    /// The loss, mean over rows, with `anchor` times the squared distance from the reference.
    pub fn loss(&self, given: &Errors, anchor: f64) -> Result<Tensor> {
        let (v, a) = (given.policy, given.weight);
        let distance = |from: &Tensor| mean_per_sample(&(v - from)?.sqr()?);
        let rows = match *self {
            Regression::Quadratic(gamma) => {
                let own = (a * given.error(v)?)?;
                match (given.old, gamma) {
                    (Some(old), Gamma::Number(gamma)) if gamma != 0.0 => (own + (distance(old)? * gamma)?)?,
                    (Some(old), Gamma::Less(b)) => (own + (a.affine(-1.0, b)? * distance(old)?)?)?,
                    _ => own,
                }
            }
            Regression::Nft { beta } => {
                let old = given.old()?;
                let up = ((v * beta)? + (old * (1.0 - beta))?)?;
                let down = ((old * (1.0 + beta))? - (v * beta)?)?;
                let share = a.affine(0.5, 0.5)?;
                let both = (&share * given.adaptive(&up)?)? + (share.affine(-1.0, 1.0)? * given.adaptive(&down)?)?;
                // 5, the largest advantage, as in the published code.
                (both? * (5.0 / beta))?
            }
            Regression::Crd { beta } => {
                let implied = (given.error(given.old()?)? - given.error(v)?)?;
                let about = (&implied - given.group_mean(&implied.constant())?)?;
                ((about * beta)? - (a - given.group_mean(a)?)?)?.sqr()?
            }
            Regression::Dgpo { beta } => {
                let gain = (given.error(v)? - given.error(given.reference()?)?)?;
                let preferred = (given.group_mean(&(a * &gain)?.constant())? * beta)?;
                let weight = (preferred.neg()?.exp()? + 1.0)?.recip()?;
                ((weight * a)? * given.error(v)?)?
            }
            Regression::Pairs { beta } => {
                let gain = (given.error(v)? - given.error(given.reference()?)?)?.reshape(((), 2))?;
                let ahead = ((gain.narrow(1, 1, 1)? - gain.narrow(1, 0, 1)?)? * (0.5 * beta))?;
                softplus(&ahead.neg()?)?
            }
        };
        let loss = rows.mean_all()?;
        match given.reference {
            Some(reference) if anchor != 0.0 => loss + (distance(reference)?.mean_all()? * anchor)?,
            _ => Ok(loss),
        }
    }
}

impl Errors<'_> {
    fn error(&self, f: &Tensor) -> Result<Tensor> {
        mean_per_sample(&(f - &self.at.target)?.sqr()?)
    }

    /// The squared error of the data over its detached mean size.
    fn adaptive(&self, f: &Tensor) -> Result<Tensor> {
        let off = (f - &self.at.target)?.broadcast_mul(&spread(&self.at.t.affine(-1.0, 1.0)?, f)?)?;
        let size = mean_per_sample(&off.constant().abs()?)?.clamp(1e-5, f64::MAX)?;
        mean_per_sample(&off.sqr()?)? / size
    }

    /// The mean of a row's group in its place.
    fn group_mean(&self, x: &Tensor) -> Result<Tensor> {
        let groups = x.reshape(((), self.group))?;
        groups.mean_keepdim(1)?.broadcast_as(groups.shape())?.reshape(x.elem_count())
    }

    fn old(&self) -> Result<&Tensor> {
        found(self.old, "old policy")
    }

    fn reference(&self) -> Result<&Tensor> {
        found(self.reference, "reference")
    }
}

fn found<'a>(x: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    match x {
        Some(x) => Ok(x),
        None => bail!(Missing, "forward_process: the loss needs the velocity of the {what}, got none"),
    }
}

/// `log(1 + exp(x))`, for large `x` too.
fn softplus(x: &Tensor) -> Result<Tensor> {
    // The larger number shares the gradient at 0, where every policy begins; a ReLU would not.
    x.maximum(&x.zeros_like()?)? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}
