//! The head of ImageReward and of the LAION aesthetic predictor: five linear layers with nothing between them.

use amscript_base::error::Result;
use amscript_nn::linear::Linear;
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::{Tensor, op};

/// Places of the linear layers; dropout lies between.
const LAYERS: [usize; 5] = [0, 2, 4, 6, 7];
/// Widths between the layers, as published.
pub const HIDDEN: [usize; 4] = [1024, 128, 64, 16];

/// `layers.{0,2,4,6,7}.{weight,bias}`.
pub struct Head {
    layers: Vec<Linear>,
}

impl Head {
    /// For features of this width; the widths between the layers are the stored tensors', else `hidden`.
    pub fn new(w: &Weights, width: usize, hidden: [usize; 4]) -> Result<Self> {
        let mut inner = width;
        let mut layers = Vec::new();
        for (i, out) in LAYERS.into_iter().zip(hidden.into_iter().chain([1])) {
            let layer = w.pp("layers").pp(i);
            let out = match layer.shape("weight").as_deref() {
                Some([stored, _]) if i != LAYERS[4] => *stored,
                _ => out,
            };
            // keeps the size of what passes; the published beginning, 1 / (inner + 1), leaves nearly constant scores
            layers.push(layer.linear_from(inner, out, true, Init::Normal((inner as f64).powf(-0.5)))?);
            inner = out;
        }
        Ok(Self { layers })
    }

    /// Features `[b, width]` to scores `[b]`.
    pub fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let scores = self.layers.iter().try_fold(rows.clone(), |x, layer| layer.forward(&x))?;
        op::reshape(&scores, rows.dim(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::grad::{gradcheck, value_and_grad};
    use amscript_tensor::{D, DType, Device, Rng};
    use std::path::Path;

    fn assert_near(got: &Tensor, wanted: &Tensor, tolerance: f64) {
        let error = (got - wanted).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(f64::from(error) < tolerance, "largest difference {error}");
    }

    /// Case `aesthetic`: scores and gradients from torch.
    #[test]
    fn golden_scores_and_gradients() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/aesthetic");
        let golden = amscript_tensor::file::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let file = folder.join("sac+logos+ava1-l14-linearMSE.pth");
        let weights = Weights::load(&file, DType::F32, &Device::Cpu).unwrap();
        let head = Head::new(&weights, 24, HIDDEN).unwrap();
        weights.finish().unwrap();
        let features = &golden["in.features"];
        assert_near(&head.forward(&golden["out.normalised"]).unwrap(), &golden["out.score"], 1e-5);
        assert_near(&head.forward(features).unwrap(), &golden["out.score_unnormalised"], 1e-5);
        let score = |x: &Tensor| {
            let unit = x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?;
            head.forward(&unit)?.sum_all()
        };
        let (_, gradient) = value_and_grad(score, &features.narrow(0, 0, 5).unwrap()).unwrap();
        assert_near(&gradient, &golden["out.grad"], 1e-5);
        assert!(Head::new(&weights, 25, HIDDEN).err().unwrap().message.contains("must have shape [1024, 25]"));
    }

    #[test]
    fn a_random_one_has_scores_that_differ_and_a_right_gradient() {
        let weights = Weights::random(&Rng::new(0), DType::F64, &Device::Cpu);
        let head = Head::new(&weights, 12, [16, 8, 6, 4]).unwrap();
        let rows = Rng::new(1).normal(&[8, 12], DType::F64, &Device::Cpu).unwrap();
        let scores = head.forward(&rows).unwrap().to_vec1::<f64>().unwrap();
        assert!(scores.iter().map(|s| s * s).sum::<f64>() / 8.0 > 0.01, "{scores:?}");
        assert!(gradcheck(|x: &Tensor| head.forward(x), &rows, 0).unwrap() < 1e-6);
        // widths are read back, whatever is given
        let read = Head::new(&Weights::from_tensors("file", weights.tensors().unwrap()), 12, HIDDEN).unwrap();
        assert_eq!(read.forward(&rows).unwrap().to_vec1::<f64>().unwrap(), scores);
    }
}
