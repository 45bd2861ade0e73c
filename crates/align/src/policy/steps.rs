//! Which steps of a path have noise, and which of them are trained.

use crate::flow::{Grid, Solver};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Stream;

/// The steps that an update trains. The last step is never among them, unless it is named: with little noise left, small changes of velocity
/// are huge ratios.
#[derive(Debug, Clone, PartialEq)]
pub enum Trained {
    /// All with noise (Flow-GRPO).
    All,
    /// A share of them, drawn for each update (DanceGRPO); noise is at all.
    Share(f64),
    /// So many, one later every `every` updates, from the start again at the end (MixGRPO); noise is nowhere else.
    Window { size: usize, every: usize },
    /// So many at a start drawn from the first `within` of the steps (Flow-GRPO-Fast); noise is nowhere else.
    Random { size: usize, within: f64 },
    /// These; noise is nowhere else.
    Only(Vec<usize>),
}

impl Trained {
    /// The steps with noise and the trained ones, both rising, of update `update` on a grid of `steps` steps.
    pub fn draw(
        &self,
        steps: usize,
        update: usize,
        stream: impl FnOnce() -> Result<Stream>,
    ) -> Result<[Vec<usize>; 2]> {
        let last = steps.saturating_sub(1);
        let fits = |what: &str, size: usize| match (1..=last).contains(&size) {
            true => Ok(()),
            false => bail!(Value, "{what}: the steps must be 1 to {last}, all but the last of the grid, got {size}"),
        };
        let window = |start: usize, size: usize| [start, start].map(|start| (start..start + size).collect());
        match self {
            Trained::All => fits("grpo", last).map(|()| window(0, last)),
            Trained::Share(share) => {
                let size = (share * last as f64).round() as usize;
                fits("share", size)?;
                let mut some = stream()?.draw(|rng| rng.distinct(size, last));
                some.sort_unstable();
                Ok([(0..last).collect(), some])
            }
            Trained::Window { size, every } => {
                fits("window", *size)?;
                Ok(window(update / (*every).max(1) % (last - size + 1), *size))
            }
            Trained::Random { size, within } => {
                fits("random_window", *size)?;
                let starts = ((within * steps as f64) as usize).saturating_sub(*size).min(last - size) + 1;
                Ok(window(stream()?.draw(|rng| rng.integers(1, starts))[0], *size))
            }
            Trained::Only(named) => {
                let mut named = named.clone();
                named.sort_unstable();
                named.dedup();
                if named.is_empty() || named.iter().any(|k| *k >= steps) {
                    bail!(
                        Value,
                        "steps: there must be one or more below {steps}, the steps of the grid, got {named:?}"
                    );
                }
                Ok([named.clone(), named])
            }
        }
    }
}

/// How much each step counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum StepWeight {
    #[default]
    Equal,
    /// `1 / h` (GRPO-Guard).
    PerWidth,
    /// In proportion to the noise, `sqrt(h w)`, 1 on average over the grid's steps where the sampler draws some (TempFlow-GRPO, arXiv:2508.04324).
    Noise,
    /// One number for each step of the grid.
    Given(Vec<f64>),
}

impl StepWeight {
    /// The weights of trained steps `at` of a grid.
    pub fn of(&self, at: &[usize], solver: &dyn Solver, grid: &Grid) -> Result<Vec<f64>> {
        match self {
            StepWeight::Equal => Ok(vec![1.0; at.len()]),
            StepWeight::PerWidth => Ok(at.iter().map(|k| 1.0 / grid.width(*k)).collect()),
            StepWeight::Noise => {
                let size = |k| Ok(solver.dynamics(grid, k)?.noise_std());
                let sizes = (0..grid.steps()).map(size).collect::<Result<Vec<f64>>>()?;
                // A noise that diverges at a step is refused where it is drawn.
                let some: Vec<f64> = sizes.iter().copied().filter(|size| *size > 0.0 && size.is_finite()).collect();
                let mean = some.iter().sum::<f64>() / some.len().max(1) as f64;
                Ok(at.iter().map(|k| sizes[*k] / mean).collect())
            }
            StepWeight::Given(weights) => match at.iter().map(|k| weights.get(*k).copied()).collect() {
                Some(weights) => Ok(weights),
                None => bail!(Value, "grpo: there must be a weight for each step of the grid, got {}", weights.len()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Noise, Sde};
    use amscript_tensor::Rng;
    use std::sync::Arc;

    #[test]
    fn windows_move_and_return() {
        let none = || bail!(Missing, "no stream");
        let start = |update| Trained::Window { size: 4, every: 25 }.draw(10, update, none).unwrap()[1][0];
        assert_eq!([0, 24, 25, 125, 149, 150].map(start), [0, 0, 1, 5, 5, 0]);
        let all = Trained::All.draw(10, 3, none).unwrap();
        assert_eq!((all[0].clone(), all[0].len()), (all[1].clone(), 9));
        assert_eq!(Trained::Only(vec![3, 1, 3]).draw(10, 0, none).unwrap()[1], [1, 3]);
        assert!(Trained::Only(vec![10]).draw(10, 0, none).is_err() && Trained::All.draw(1, 0, none).is_err());
        let message = Trained::Window { size: 10, every: 1 }.draw(10, 0, none).unwrap_err().message;
        assert_eq!(message, "window: the steps must be 1 to 9, all but the last of the grid, got 10");
    }

    #[test]
    fn random_steps_stay_where_they_may() {
        let stream = Stream::new(Rng::new(0));
        for _ in 0..30 {
            let [noisy, some] = Trained::Random { size: 2, within: 0.5 }.draw(10, 0, || Ok(stream.clone())).unwrap();
            assert!(noisy == some && some[0] <= 3 && some[1] == some[0] + 1, "{some:?}");
            let [noisy, some] = Trained::Share(0.6).draw(16, 0, || Ok(stream.clone())).unwrap();
            assert!(noisy.len() == 15 && some.len() == 9 && some.windows(2).all(|w| w[0] < w[1]), "{some:?}");
        }
    }

    #[test]
    fn weights_by_noise_are_one_on_average_over_the_grid() {
        // No noise in the first step; deviations 1, 2 and 3 halves in the others.
        let level = |t: f64| Ok((4.0 * t * t).round());
        let solver = Sde { noise: Noise::Schedule(Arc::new(level)), last: Some(3) };
        let grid = Grid::new(vec![0.0, 0.5, 1.0 / 2f64.sqrt(), 0.9, 1.0]).unwrap();
        let weights = |at: &[usize], weight: StepWeight| weight.of(at, &solver, &grid).unwrap();
        let of_all = weights(&[1, 2, 3], StepWeight::Noise);
        assert!((of_all.iter().sum::<f64>() - 3.0).abs() < 1e-12, "{of_all:?}");
        // An update of one step, as TempFlow-GRPO has them, weighs it as one of all does.
        for (i, k) in [1, 2, 3].into_iter().enumerate() {
            assert_eq!(weights(&[k], StepWeight::Noise), [of_all[i]]);
            let size = (grid.width(k) * (4.0 * grid.times()[k].powi(2)).round()).sqrt();
            let first = (grid.width(1) * 1.0).sqrt();
            assert!((of_all[i] / of_all[0] - size / first).abs() < 1e-12, "{of_all:?}");
        }
        assert_eq!(weights(&[0, 1], StepWeight::PerWidth)[0], 2.0);
        assert_eq!(weights(&[0, 2], StepWeight::Given(vec![1.0, 2.0, 3.0])), [1.0, 3.0]);
        assert!(StepWeight::Given(vec![1.0]).of(&[0, 2], &solver, &grid).is_err());
    }
}
