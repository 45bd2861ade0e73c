//! Time grids `t_0 = 0 < ... < t_N = 1`.

use amscript_base::bail;
use amscript_base::error::Result;

/// Times of a rollout, from noise (0) to data (1).
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    times: Vec<f64>,
}

impl Grid {
    /// Any increasing times that start at 0 and end at 1.
    pub fn new(times: Vec<f64>) -> Result<Self> {
        let rising = times.windows(2).all(|w| w[0] < w[1]);
        if times.len() < 2 || times[0] != 0.0 || times[times.len() - 1] != 1.0 || !rising {
            bail!(Value, "grid: times must rise from 0 to 1, got {times:?}");
        }
        Ok(Self { times })
    }

    /// Number of steps N.
    pub fn steps(&self) -> usize {
        self.times.len() - 1
    }

    /// All N + 1 times.
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// Width `h_k = t_{k+1} - t_k` of step `k`.
    pub fn width(&self, k: usize) -> f64 {
        self.times[k + 1] - self.times[k]
    }
}

/// `n` steps of equal width.
pub fn uniform(n: usize) -> Result<Grid> {
    grid("uniform", n, 1.0)
}

/// `n` steps, shifted towards the noise end by `factor`: `t = s / (s + factor (1 - s))` for uniform `s`.
pub fn shifted(n: usize, factor: f64) -> Result<Grid> {
    grid("shifted", n, factor)
}

/// The grid of FLUX.2 klein for images of `image_tokens` tokens: [`shifted`] by `exp(mu)`.
pub fn klein_grid(n: usize, image_tokens: usize) -> Result<Grid> {
    if image_tokens == 0 {
        bail!(Value, "klein_grid: image_tokens must be at least 1, got 0");
    }
    grid("klein_grid", n, klein_mu(n, image_tokens).exp())
}

/// The published fit of the shift: a line in the number of steps through the values at 10 and 200 steps.
fn klein_mu(n: usize, image_tokens: usize) -> f64 {
    let tokens = image_tokens as f64;
    let at_200 = 0.00016927 * tokens + 0.45666666;
    if image_tokens > 4300 {
        return at_200;
    }
    let at_10 = 8.73809524e-5 * tokens + 1.89833333;
    at_200 + (at_200 - at_10) / 190.0 * (n as f64 - 200.0)
}

fn grid(function: &str, n: usize, factor: f64) -> Result<Grid> {
    amscript_base::memory::room(amscript_base::memory::bytes(&[n.saturating_add(1)], 32), || {
        format!("{function} of {n} steps")
    })?;
    if n == 0 {
        bail!(Value, "{function}: there must be at least 1 step, got 0");
    }
    if !(factor > 0.0 && factor.is_finite()) {
        bail!(Value, "{function}: the factor must be above 0, got {factor}");
    }
    let shift = |s: f64| s / (s + factor * (1.0 - s));
    Grid::new((0..=n).map(|i| shift(i as f64 / n as f64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn klein_grid_is_the_published_one() {
        // diffusers 0.42.1, sigma = 1 - t, 256 x 256 pixels, 20 steps (f32).
        let sigmas = [
            1.0, 0.99176, 0.98276, 0.97289, 0.96203, 0.95, 0.93663, 0.92165, 0.90477, 0.8856, 0.86365, 0.83825,
            0.80853, 0.77327, 0.73079, 0.67859, 0.61293, 0.5278, 0.41307, 0.25002, 0.0,
        ];
        let grid = klein_grid(20, 256).unwrap();
        for (t, sigma) in grid.times().iter().zip(sigmas) {
            assert!((1.0 - t - sigma).abs() < 6e-6, "{t} {sigma}");
        }
        assert!((klein_mu(20, 256) - 1.845929).abs() < 1e-6);
        assert!((klein_mu(4, 4096) - 2.291180).abs() < 1e-6);
        assert!((klein_mu(50, 4400) - (0.00016927 * 4400.0 + 0.45666666)).abs() < 1e-12);
    }

    #[test]
    fn uniform_is_shifted_by_one() {
        assert_eq!(uniform(4).unwrap().times(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(uniform(7).unwrap(), shifted(7, 1.0).unwrap());
        assert_eq!(uniform(0).unwrap_err().message, "uniform: there must be at least 1 step, got 0");
        assert!(shifted(3, 0.0).is_err() && Grid::new(vec![0.0, 0.6, 0.5, 1.0]).is_err());
    }
}
