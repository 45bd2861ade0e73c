//! How far one rollout may move the policy.

use amscript_base::bail;
use amscript_base::error::{Result, warn_once};
use amscript_tensor::Tensor;
use amscript_tensor::check::read;

/// What bounds the step from one rollout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trust {
    /// PPO: a ratio outside `1 - e ..= 1 + e` gains nothing more.
    Clip(f64),
    /// `Clip(256 e / sqrt(D))` for `D` numbers a sample. Averaged log-ratios deviate by `1 / sqrt(D)`, and published ranges are for latents
    /// of 65536 numbers, where this is `e`.
    PerDimension(f64),
    /// The ratio within those bounds, with no gradient outside on either side (DPOK, arXiv:2305.16381).
    Clamp(f64),
    /// A sample whose divergence reaches this counts no more in the direction that it has gone (FlowDPPO, arXiv:2606.11025).
    Divergence(f64),
}

impl Trust {
    /// Refuses a bound that leaves nothing.
    pub fn check(&self) -> Result<()> {
        let (Trust::Clip(e) | Trust::PerDimension(e) | Trust::Clamp(e) | Trust::Divergence(e)) = *self;
        if !(e > 0.0 && e.is_finite()) {
            bail!(Value, "grpo: the bound of `trust` must be above 0, got {e}");
        }
        Ok(())
    }

    /// The largest change of a ratio, for samples of `numbers` numbers.
    pub fn range(&self, numbers: usize) -> Option<f64> {
        match *self {
            Trust::Clip(e) | Trust::Clamp(e) => Some(e),
            Trust::PerDimension(e) => Some(256.0 * e / (numbers.max(1) as f64).sqrt()),
            Trust::Divergence(_) => None,
        }
    }

    /// What is minimised, per sample, given ratio and divergence with their graphs and constant advantages: `[batch]` each.
    pub fn objective(&self, ratio: &Tensor, divergence: &Tensor, advantage: &Tensor, numbers: usize) -> Result<Tensor> {
        let gain = (advantage * ratio)?;
        match *self {
            Trust::Divergence(most) => {
                let ratio = ratio.constant();
                let outward = ((&ratio - 1.0)? * advantage)?.gt(0.0)?.to_dtype(ratio.dtype())?;
                let far = divergence.constant().ge(most)?.to_dtype(ratio.dtype())?;
                (gain * (outward * far)?.affine(-1.0, 1.0)?)?.neg()
            }
            _ => {
                let e = self.range(numbers).unwrap_or(f64::INFINITY);
                let within = (advantage * ratio.clamp(1.0 - e, 1.0 + e)?)?;
                match self {
                    Trust::Clamp(_) => within.neg(),
                    _ => gain.minimum(&within)?.neg(),
                }
            }
        }
    }

    /// The share of samples beyond the bound; a later pass in which it is nearly all, or which is nowhere near it, is told about.
    pub fn beyond(&self, ratio: &Tensor, divergence: &Tensor, numbers: usize, later: bool) -> Result<Tensor> {
        let away = (ratio.constant() - 1.0)?.abs()?;
        let share = match (self.range(numbers), self) {
            (Some(e), _) => away.gt(e)?,
            (None, Trust::Divergence(most)) => divergence.constant().ge(*most)?,
            _ => away.zeros_like()?,
        };
        let share = share.to_dtype(ratio.dtype())?.mean_all()?;
        if let (true, Some(e), None) = (later, self.range(numbers), ratio.trace()) {
            let (share, most) = (read(&share)?[0], read(&away)?.into_iter().fold(0.0, f64::max));
            let hint = "ranges go with 1 / sqrt(numbers of a sample): see `clip_per_dimension`";
            if share > 0.9 {
                warn_once(
                    "grpo clips all",
                    &format!("grpo: {:.0} % of the ratios lie beyond {e:.1e} of 1: {hint}", 100.0 * share),
                );
            } else if most > 0.0 && most < 0.01 * e {
                warn_once(
                    "grpo clips none",
                    &format!("grpo: no ratio comes near {e:.1e} of 1, the furthest is {most:.1e}: {hint}"),
                );
            }
        }
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Device;
    use amscript_tensor::grad::gradients;

    /// The gradient of the objective by the ratio.
    fn slope(trust: Trust, [ratio, advantage, divergence]: [f64; 3]) -> f64 {
        let tensor = |x: f64| Tensor::new(&[x], &Device::Cpu).unwrap();
        let ratio = tensor(ratio).variable().unwrap();
        let loss = trust.objective(&ratio, &tensor(divergence), &tensor(advantage), 4).unwrap().sum_all().unwrap();
        gradients(&loss, &[ratio]).unwrap()[0].to_vec1::<f64>().unwrap()[0]
    }

    #[test]
    fn a_clipped_ratio_has_no_gradient_where_it_would_gain_more() {
        let clip = Trust::Clip(0.1);
        let cases = [
            ([1.0, 2.0, 0.0], -2.0),
            ([1.2, 1.0, 0.0], 0.0),
            ([1.2, -1.0, 0.0], 1.0),
            ([0.8, 1.0, 0.0], -1.0),
            ([0.8, -1.0, 0.0], 0.0),
        ];
        for (at, expected) in cases {
            assert_eq!(slope(clip, at), expected, "{at:?}");
        }
        assert_eq!(
            [slope(Trust::Clamp(0.1), [1.2, -1.0, 0.0]), slope(Trust::Clamp(0.1), [1.05, -1.0, 0.0])],
            [0.0, 1.0]
        );
        assert_eq!(Trust::PerDimension(1e-4).range(65536), Some(1e-4));
        assert_eq!(Trust::PerDimension(1e-4).range(16), Some(64e-4));
    }

    #[test]
    fn a_divergent_sample_counts_only_on_its_way_back() {
        let cases = [
            ([1.1, 1.0, 1e-6], true),
            ([1.1, 1.0, 1e-4], false),
            ([1.1, -1.0, 1e-4], true),
            ([0.9, 1.0, 1e-4], true),
            ([0.9, -1.0, 1e-4], false),
            ([0.9, -1.0, 1e-6], true),
        ];
        for (at, kept) in cases {
            assert_eq!(slope(Trust::Divergence(1e-5), at) != 0.0, kept, "{at:?}");
        }
    }

    #[test]
    fn a_range_that_holds_everything_or_nothing_is_told_about() {
        use amscript_base::context::Context;
        let told = |ratios: &[f64], later| {
            let (context, ratios) = (Context::default(), Tensor::new(ratios, &Device::Cpu).unwrap());
            context.enter(|| Trust::Clip(0.1).beyond(&ratios, &ratios, 4, later)).unwrap();
            ["grpo clips all", "grpo clips none"].map(|key| !context.first(key))
        };
        assert_eq!(told(&[2.0, 0.5], true), [true, false]);
        assert_eq!(told(&[1.0001, 1.0], true), [false, true]);
        assert_eq!(told(&[1.05, 1.2], true), [false, false]);
        assert_eq!(told(&[2.0, 2.0], false), [false, false]);
    }
}
