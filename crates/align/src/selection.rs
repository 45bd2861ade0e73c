//! Which active steps enter the loss: all, or some drawn anew for each update.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Rng;
use std::ops::Range;

/// The active steps that an update matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Selection {
    #[default]
    All,
    /// The last few always, and so many drawn from those before (arXiv:2409.08861: 10 and 10 of 40).
    Some { last: usize, others: usize },
}

impl Selection {
    /// The steps of `window` that enter this time, rising; none where all do.
    pub fn draw(self, window: Range<usize>, rng: &mut Rng) -> Result<Option<Vec<usize>>> {
        let Selection::Some { last, others } = self else { return Ok(None) };
        if last + others == 0 || last + others > window.len() {
            bail!(
                Value,
                "random_steps: the steps must be 1 to {}, as many as are active, got {last} + {others}",
                window.len()
            );
        }
        let split = window.end - last;
        let drawn = rng.distinct(others, split - window.start);
        let mut steps: Vec<usize> = drawn.into_iter().map(|i| window.start + i).chain(split..window.end).collect();
        steps.sort_unstable();
        Ok(Some(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_steps_and_some_others_are_drawn() {
        let mut rng = Rng::new(1);
        for _ in 0..20 {
            let steps = Selection::Some { last: 2, others: 3 }.draw(4..12, &mut rng).unwrap().unwrap();
            assert_eq!((steps.len(), &steps[3..]), (5, &[10, 11][..]));
            assert!(steps.windows(2).all(|w| w[0] < w[1]) && steps[0] >= 4, "{steps:?}");
        }
        assert_eq!(Selection::All.draw(4..12, &mut rng).unwrap(), None);
        assert!(Selection::Some { last: 5, others: 4 }.draw(4..12, &mut rng).is_err());
    }
}
