//! Weighted sums of rewards: `0.7 * a + 0.3 * b - 1`.

use crate::{Batch, Reward};
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use std::sync::Arc;

/// `offset + sum of factor * reward`.
#[derive(Clone, Default)]
pub struct Sum {
    terms: Vec<(f64, Arc<dyn Reward>)>,
    offset: f64,
    /// Rewards as they were written, before equal ones were put together.
    written: usize,
}

impl Sum {
    /// One reward, once; the terms of a sum.
    pub fn of(reward: Arc<dyn Reward>) -> Self {
        let one = || Self { terms: vec![(1.0, reward.clone())], offset: 0.0, written: reward.extent().0 };
        reward.as_sum().cloned().unwrap_or_else(one)
    }

    /// One reward stands once, however often it is added.
    pub fn plus(mut self, other: &Sum) -> Self {
        for (factor, reward) in &other.terms {
            match self.terms.iter_mut().find(|(_, own)| Arc::ptr_eq(own, reward)) {
                Some((own, _)) => *own += factor,
                None => self.terms.push((*factor, reward.clone())),
            }
        }
        self.offset += other.offset;
        self.written = self.written.saturating_add(other.written);
        self
    }

    pub fn shifted(mut self, by: f64) -> Self {
        self.offset += by;
        self
    }

    pub fn scaled(mut self, factor: f64) -> Self {
        self.terms.iter_mut().for_each(|(weight, _)| *weight *= factor);
        self.offset *= factor;
        self
    }
}

impl Reward for Sum {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let images = batch.images;
        let mut total = Tensor::full(self.offset as f32, images.dim(0)?, images.device())?.to_dtype(images.dtype())?;
        for (factor, reward) in &self.terms {
            total = (total + (reward.score_batch(batch)?.to_dtype(images.dtype())? * *factor)?)?;
        }
        Ok(total)
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        let mut add = |number: f64, name: Option<String>| {
            let sign = match (text.is_empty(), number < 0.0) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            };
            text += sign;
            text += &match name {
                Some(name) if number.abs() == 1.0 => name,
                Some(name) => format!("{} * {name}", number.abs()),
                None => number.abs().to_string(),
            };
        };
        self.terms.iter().for_each(|(factor, reward)| add(*factor, Some(reward.describe())));
        if self.offset != 0.0 || self.terms.is_empty() {
            add(self.offset, None);
        }
        text
    }

    fn extent(&self) -> (usize, usize) {
        let depth = self.terms.iter().map(|(_, reward)| reward.extent().1).max().unwrap_or(0);
        (self.written, depth.saturating_add(1))
    }

    fn as_sum(&self) -> Option<&Sum> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RewardModel;
    use crate::clamped::Clamped;
    use crate::scripted::Scripted;
    use amscript_tensor::grad::value_and_grad;
    use amscript_tensor::{DType, Device};

    #[test]
    fn a_sum_is_linear_in_values_and_gradients() {
        let images = Tensor::full(0.5f64, (2, 3, 2, 2), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let prompts = ["a".to_string(), "b".to_string()];
        let sum: Arc<dyn Reward> = Arc::new(Scripted::new(|x, _| x.sum((1, 2, 3)))); // 6
        let squares: Arc<dyn Reward> = Arc::new(Scripted::new(|x, _| x.sqr()?.sum((1, 2, 3)))); // 3
        let mixed = Sum::of(sum).scaled(0.5).plus(&Sum::of(squares).shifted(1.0).scaled(-2.0));
        let (_, gradient) = value_and_grad(|x| mixed.score(x, &prompts)?.sum_all(), &images).unwrap();
        assert_eq!(mixed.score(&images, &prompts).unwrap().to_vec1::<f64>().unwrap(), [0.5 * 6.0 - 2.0 * 4.0; 2]);
        assert!(gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().all(|g| (g + 1.5).abs() < 1e-12));
        assert_eq!(mixed.describe(), "0.5 * scripted - 2 * scripted - 2");
    }

    #[test]
    fn rewards_of_others_are_bounded_in_number_and_depth() {
        let one = || RewardModel::new(Scripted::new(|x, _| x.mean((1, 2, 3))));
        let clamped = |r: &RewardModel, high| RewardModel::of_others(Clamped::new(r.0.clone(), 0.0, high)?);
        let twice = |r: &RewardModel| {
            let sum = Sum::of(clamped(r, 1.0)?.0).plus(&Sum::of(clamped(r, 2.0)?.0));
            RewardModel::of_others(sum)
        };
        let mut doubled = one();
        for n in 1..=13 {
            doubled = twice(&doubled).unwrap();
            assert_eq!(doubled.extent(), (1 << n, 1 + 2 * n));
        }
        let message = twice(&doubled).err().unwrap().message;
        assert!(message.ends_with("got 16384 and 29"), "{message}");
        let mut added = one();
        for _ in 0..13 {
            added = RewardModel::of_others(Sum::of(added.0.clone()).plus(&Sum::of(added.0))).unwrap();
        }
        let message = RewardModel::of_others(Sum::of(added.0.clone()).plus(&Sum::of(added.0))).err().unwrap().message;
        assert!(message.ends_with("got 16384 and 2"), "{message}");
        let mut deep = one();
        for _ in 1..100 {
            deep = clamped(&deep, 1.0).unwrap();
        }
        let message = clamped(&deep, 1.0).err().unwrap().message;
        assert!(message.ends_with("got 1 and 101"), "{message}");
    }
}
