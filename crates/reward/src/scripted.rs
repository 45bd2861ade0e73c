//! A reward given as a function of images and prompts.

use crate::{Batch, Reward};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;

/// Wraps a function; what it returns must be differentiable where gradients are wanted.
pub struct Scripted<F> {
    function: F,
}

impl<F: Fn(&Tensor, &[String]) -> Result<Tensor> + Send + Sync> Scripted<F> {
    pub fn new(function: F) -> Self {
        Self { function }
    }
}

impl<F: Fn(&Tensor, &[String]) -> Result<Tensor> + Send + Sync> Reward for Scripted<F> {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let scores = (self.function)(batch.images, batch.prompts)?;
        if batch.images.requires_grad() && !scores.requires_grad() {
            bail!(Value, "scripted_reward: a gradient is wanted, but the closure's scores do not depend on the images through \
                differentiable operations";
                hint: "reading numbers out (`oracle`, `item`, `to_array`, `detach`) cuts the gradient; such a reward can only measure, \
                    `reward.score(images.detach(), prompts)`, or be a term that is not trained on");
        }
        Ok(scores)
    }

    fn describe(&self) -> String {
        "scripted".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RewardModel;
    use amscript_base::error::Kind;
    use amscript_nn::module::Module;
    use amscript_tensor::grad::value_and_grad;
    use amscript_tensor::{DType, Device};

    #[test]
    fn what_goes_in_and_comes_out_is_checked() {
        let images = Tensor::ones((2, 3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let prompts = ["a".to_string(), "b".to_string()];
        let mean = Scripted::new(|x, _| x.mean((1, 2, 3)));
        assert_eq!(mean.score(&images, &prompts).unwrap().to_vec1::<f32>().unwrap(), [1.0, 1.0]);
        let message = |r: Result<Tensor>| r.err().map(|e| e.message).unwrap_or_default();
        assert_eq!(
            message(mean.score(&images, &prompts[..1])),
            "score: expected one prompt per image, got 1 prompts for 2 images"
        );
        assert!(message(mean.score(&images.narrow(1, 0, 2).unwrap(), &prompts)).contains("got [2, 2, 2, 2]"));
        let total = Scripted::new(|x, _| x.sum_all());
        assert_eq!(
            message(total.score(&images, &prompts)),
            "score: expected one number per image, [2], got [] from scripted"
        );
        let broken = Scripted::new(|x, _| Tensor::new(&[1f32, f32::NAN], x.device()));
        let error = broken.score(&images, &prompts).err().unwrap();
        assert_eq!(error.kind, Kind::Numeric);
        assert_eq!(
            error.message,
            "score: rewards must be finite, got NaN or infinity for sample 1 (`b`) from scripted"
        );
        let fixed = Scripted::new(|x, _| x.constant().mean((1, 2, 3)));
        assert_eq!(fixed.score(&images, &prompts).unwrap().to_vec1::<f32>().unwrap(), [1.0, 1.0]);
        let cut = value_and_grad(|x| fixed.score(x, &prompts)?.sum_all(), &images);
        let message = cut.err().map(|e| e.message).unwrap_or_default();
        assert!(message.starts_with("scripted_reward: a gradient is wanted"), "{message}");
        assert_eq!(RewardModel::new(mean).trainable().err().unwrap().message, "trainable: scripted has no weights");
    }
}
