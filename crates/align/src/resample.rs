//! Resampling: particles drawn anew by their weights. All of it in f64 on the processor, so that a seed gives the same on every device.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Rng;

/// How offspring are drawn. In each the expected number of copies is the particle's share of all weights times the number drawn; from
/// independent to systematic draws that number varies less and less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// Independent draws.
    Multinomial,
    /// The whole parts of the expected copies, then independent draws for the rest.
    Residual,
    /// One draw in each of equal parts of [0, 1].
    Stratified,
    /// The same draw in each of these parts.
    #[default]
    Systematic,
    /// The whole parts, and each rest rounded up or down by pairs: Srinivasan's process (Gerber, Chopin, Whiteley 2019), negatively associated.
    Ssp,
}

/// Weights of log weights, the largest 1. `what` stands in errors; NaN, infinity, and no weight above 0 are errors.
fn weights(log_weights: &[f64], what: &str) -> Result<Vec<f64>> {
    if let Some(i) = log_weights.iter().position(|l| l.is_nan() || *l == f64::INFINITY) {
        bail!(Numeric, "{what}: log weights must be numbers, got {} for particle {i}", log_weights[i];
            hint: "look at what the potential gives for this particle");
    }
    let top = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        bail!(Numeric, "{what}: a log weight must be above minus infinity, got none of {}", log_weights.len();
            hint: "the potential rules every particle out: soften it, or take more particles");
    }
    Ok(log_weights.iter().map(|l| (l - top).exp()).collect())
}

/// How many equal weights would be as good: `(sum w)^2 / sum w^2`, from 1 to the number of particles.
pub fn ess(log_weights: &[f64]) -> Result<f64> {
    let w = weights(log_weights, "ess")?;
    Ok(w.iter().sum::<f64>().powi(2) / w.iter().map(|w| w * w).sum::<f64>())
}

/// `count` places drawn by weight, in order but for independent draws.
pub fn resample(log_weights: &[f64], count: usize, scheme: Scheme, rng: &mut Rng) -> Result<Vec<usize>> {
    let w = weights(log_weights, "resample")?;
    let total: f64 = w.iter().sum();
    let expected: Vec<f64> = w.iter().map(|w| w / total * count as f64).collect();
    let whole = || expected.iter().map(|e| e.floor() as usize).collect::<Vec<_>>();
    let rests = || expected.iter().map(|e| e.fract()).collect::<Vec<_>>();
    let even = |u: &dyn Fn(usize) -> f64| (0..count).map(|i| (i as f64 + u(i)) / count as f64).collect::<Vec<_>>();
    Ok(match scheme {
        Scheme::Multinomial => places(&w, &rng.uniforms(count)),
        Scheme::Stratified => {
            let u = rng.uniforms(count);
            places(&w, &even(&|i| u[i]))
        }
        Scheme::Systematic => {
            let u = rng.uniforms(1)[0];
            places(&w, &even(&|_| u))
        }
        Scheme::Residual => {
            let mut out = repeated(&whole());
            let left = count.saturating_sub(out.len());
            out.extend(if left == 0 { Vec::new() } else { places(&rests(), &rng.uniforms(left)) });
            out
        }
        Scheme::Ssp => repeated(&rounded(whole(), rests(), count, rng)),
    })
}

/// For each point of [0, 1) the particle in whose share of all weights it lies.
fn places(weights: &[f64], points: &[f64]) -> Vec<usize> {
    let ends: Vec<f64> = weights
        .iter()
        .scan(0.0, |sum, w| {
            *sum += w;
            Some(*sum)
        })
        .collect();
    let (total, last) = (ends[ends.len() - 1], weights.iter().rposition(|w| *w > 0.0).unwrap_or(0));
    points.iter().map(|u| ends.partition_point(|end| *end <= u * total).min(last)).collect()
}

fn repeated(copies: &[usize]) -> Vec<usize> {
    copies.iter().enumerate().flat_map(|(i, n)| std::iter::repeat_n(i, *n)).collect()
}

/// Rests in [0, 1) rounded so that each keeps its mean and all keep their sum: of two, one becomes 0 or 1 and the other goes on.
fn rounded(mut copies: Vec<usize>, rests: Vec<f64>, count: usize, rng: &mut Rng) -> Vec<usize> {
    let (mut held, mut rest) = (0, rests[0]);
    for (i, (next, u)) in rests.iter().zip(rng.uniforms(rests.len())).enumerate().skip(1) {
        let sum = rest + next;
        if sum < 1.0 {
            if u * sum >= rest {
                held = i;
            }
            rest = sum;
        } else {
            let up = if u * (2.0 - sum) < 1.0 - next { std::mem::replace(&mut held, i) } else { i };
            copies[up] += 1;
            rest = sum - 1.0;
        }
    }
    if copies.iter().sum::<usize>() < count {
        copies[held] += 1; // its rest is 1 but for rounding
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: [Scheme; 5] =
        [Scheme::Multinomial, Scheme::Residual, Scheme::Stratified, Scheme::Systematic, Scheme::Ssp];

    fn counts(log_weights: &[f64], scheme: Scheme, rng: &mut Rng) -> Vec<f64> {
        let mut n = vec![0.0; log_weights.len()];
        resample(log_weights, log_weights.len(), scheme, rng).unwrap().into_iter().for_each(|i| n[i] += 1.0);
        n
    }

    /// 16 log weights of deviation 1.5.
    const LOG_WEIGHTS: [f64; 16] = [
        -0.022521, 0.901087, -0.046643, -2.462223, -0.826936, 0.868644, 2.180897, -1.435795, 1.489547, -0.752762,
        0.403774, 2.370607, 1.227355, -0.64267, -0.427284, -0.856086,
    ];

    /// Total variance of the numbers of copies, of those expected.
    fn variance_of(scheme: Scheme, expected: &[f64]) -> f64 {
        let coin = |p: f64| p * (1.0 - p);
        let count: f64 = expected.iter().sum();
        let left: f64 = expected.iter().map(|e| e.fract()).sum();
        let mut end = 0.0;
        let each = expected.iter().map(|e| match scheme {
            Scheme::Multinomial => count * coin(e / count),
            Scheme::Residual => left * coin(e.fract() / left),
            Scheme::Stratified => {
                let from = end;
                end += e;
                // A draw in each of the parts [j, j + 1).
                (0..expected.len())
                    .map(|j| j as f64)
                    .map(|j| coin((end.min(j + 1.0) - from.max(j)).max(0.0)))
                    .sum::<f64>()
            }
            Scheme::Systematic | Scheme::Ssp => coin(e.fract()),
        });
        each.sum()
    }

    #[test]
    fn every_scheme_keeps_the_mean_and_has_its_variance() {
        let mut rng = Rng::new(3);
        let total: f64 = LOG_WEIGHTS.iter().map(|l| l.exp()).sum();
        let shares = LOG_WEIGHTS.map(|l| 16.0 * l.exp() / total);
        let draws = 20000;
        for scheme in SCHEMES {
            let expected = variance_of(scheme, &shares);
            let (mut sums, mut variance) = ([0.0; 16], 0.0);
            for _ in 0..draws {
                let n = counts(&LOG_WEIGHTS, scheme, &mut rng);
                assert_eq!(n.iter().sum::<f64>(), 16.0, "{scheme:?}");
                for i in 0..16 {
                    sums[i] += n[i];
                    variance += (n[i] - 16.0 * LOG_WEIGHTS[i].exp() / total).powi(2) / f64::from(draws);
                }
            }
            assert!((variance / expected - 1.0).abs() < 0.02, "{scheme:?}: {variance} {expected}");
            for (sum, l) in sums.iter().zip(LOG_WEIGHTS) {
                let (mean, expected) = (sum / f64::from(draws), 16.0 * l.exp() / total);
                assert!((mean - expected).abs() < 0.04, "{scheme:?}: {mean} {expected}");
            }
        }
    }

    #[test]
    fn copies_are_whole_parts_or_one_more() {
        let mut rng = Rng::new(0);
        let l: Vec<f64> = rng.normals(9);
        let total: f64 = l.iter().map(|l| l.exp()).sum();
        for scheme in [Scheme::Systematic, Scheme::Ssp] {
            for _ in 0..200 {
                for (n, l) in counts(&l, scheme, &mut rng).iter().zip(&l) {
                    let expected = 9.0 * l.exp() / total;
                    assert!((n - expected).abs() < 1.0, "{scheme:?}: {n} of {expected}");
                }
            }
        }
    }

    #[test]
    fn weights_that_are_none_are_refused() {
        let mut rng = Rng::new(0);
        let none = [f64::NEG_INFINITY; 3];
        for scheme in SCHEMES {
            assert_eq!(resample(&[f64::NEG_INFINITY, 0.0], 2, scheme, &mut rng).unwrap(), [1, 1], "{scheme:?}");
            let error = resample(&none, 3, scheme, &mut rng).unwrap_err();
            assert_eq!(error.message, "resample: a log weight must be above minus infinity, got none of 3");
        }
        let error = ess(&[0.0, f64::NAN]).unwrap_err();
        assert_eq!(error.message, "ess: log weights must be numbers, got NaN for particle 1");
        assert_eq!(ess(&[1000.0, 1000.0, -1000.0]).unwrap(), 2.0);
    }
}
