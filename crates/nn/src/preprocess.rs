//! How images become an image tower's pixels: resize, centre crop, mean and deviation; with a gradient.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::op::{self, Filter};
use amscript_tensor::{DType, Device, Tensor};

/// OpenAI's, which every CLIP and BLIP here was trained with.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Images in `[0, 1]` to normalised pixels; as torchvision's transforms of float tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Height and width of the pixels.
    pub size: usize,
    pub mean: [f64; 3],
    pub std: [f64; 3],
    pub filter: Filter,
    /// Both sides to `size`, in place of the shorter one and a centre crop.
    pub squash: bool,
}

impl Preprocess {
    /// What published CLIP and BLIP rewards are evaluated with.
    pub fn clip(size: usize) -> Self {
        Self { size, mean: CLIP_MEAN, std: CLIP_STD, filter: Filter::Bicubic { antialias: true }, squash: false }
    }

    /// With what was asked for in place of what is: `resize` is `bicubic` or `bilinear`, `crop` is `center` or `squash`.
    pub fn with(mut self, resize: Option<&str>, antialias: Option<bool>, crop: Option<&str>) -> Result<Self> {
        let (bicubic, was) = match self.filter {
            Filter::Bicubic { antialias } => (true, antialias),
            Filter::Bilinear { antialias } => (false, antialias),
        };
        let antialias = antialias.unwrap_or(was);
        self.filter = match resize {
            None if bicubic => Filter::Bicubic { antialias },
            None => Filter::Bilinear { antialias },
            Some("bicubic") => Filter::Bicubic { antialias },
            Some("bilinear") => Filter::Bilinear { antialias },
            Some(other) => bail!(Value, "option `resize`: expected `bicubic` or `bilinear`, got `{other}`"),
        };
        self.squash = match crop {
            None => self.squash,
            Some("center") => false,
            Some("squash") => true,
            Some(other) => bail!(Value, "option `crop`: expected `center` or `squash`, got `{other}`"),
        };
        Ok(self)
    }

    /// Images `[b, 3, h, w]` in `[0, 1]`, f32 or f64, to pixels `[b, 3, size, size]`. Bicubic overshoot is not clamped.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let [_, 3, h, w] = *images.dims() else {
            bail!(Shape, "preprocess: expected images [b, 3, h, w], got {:?}", images.dims());
        };
        if ![DType::F32, DType::F64].contains(&images.dtype()) {
            bail!(Dtype, "preprocess: expected images in f32 or f64, got {}", images.dtype().as_str());
        }
        let (size, short) = (self.size, h.min(w).max(1));
        let (to_h, to_w) = if self.squash { (size, size) } else { (size * h / short, size * w / short) };
        let resized =
            if (h, w) == (to_h, to_w) { images.clone() } else { op::resize(images, to_h, to_w, self.filter)? };
        let middle = |side: usize| ((side - size) as f64 / 2.0).round_ties_even() as usize;
        let cropped = match (to_h, to_w) == (size, size) {
            true => resized,
            false => op::narrow(&op::narrow(&resized, 2, middle(to_h), size)?, 3, middle(to_w), size)?,
        };
        let channel = |values: [f64; 3]| -> Result<Tensor> {
            let values = Tensor::new(&values, &Device::Cpu)?.reshape((1, 3, 1, 1))?;
            values.to_dtype(images.dtype())?.to_device(images.device())
        };
        let factor = channel(self.std)?.recip()?;
        cropped.broadcast_mul(&factor)?.broadcast_add(&(channel(self.mean)?.neg()? * factor)?)
    }

    /// `bicubic, antialias, shorter side to 224, centre crop`
    pub fn describe(&self) -> String {
        let (name, antialias) = match self.filter {
            Filter::Bicubic { antialias } => ("bicubic", antialias),
            Filter::Bilinear { antialias } => ("bilinear", antialias),
        };
        let antialias = if antialias { "antialias" } else { "no antialias" };
        let size = self.size;
        match self.squash {
            true => format!("{name}, {antialias}, squashed to {size} x {size}"),
            false => format!("{name}, {antialias}, shorter side to {size}, centre crop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Rng;
    use amscript_tensor::grad::gradcheck;

    fn images(dims: &[usize]) -> Tensor {
        Rng::new(0).uniform(dims, DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (h, w) in [(11, 8), (5, 9), (6, 6), (3, 13)] {
            for (resize, antialias) in [("bicubic", true), ("bicubic", false), ("bilinear", true), ("bilinear", false)]
            {
                for crop in ["center", "squash"] {
                    let p = Preprocess::clip(6).with(Some(resize), Some(antialias), Some(crop)).unwrap();
                    let error = gradcheck(|x| p.apply(x), &images(&[2, 3, h, w]), 0).unwrap();
                    assert!(error < 1e-6, "{h} x {w}, {}: {error}", p.describe());
                }
            }
        }
    }

    /// The longer side of 7 x 10 at size 7 is 10: three columns too many, 1.5 rounded to 2 are cut from the left.
    #[test]
    fn crops_the_middle_rounding_half_to_even() {
        let (x, p) = (images(&[1, 3, 7, 10]), Preprocess { mean: [0.0; 3], std: [1.0; 3], ..Preprocess::clip(7) });
        let left = |x: &Tensor| x.to_vec3::<f64>().unwrap()[0][0][0];
        assert_eq!(
            left(&p.apply(&x).unwrap().squeeze(0).unwrap()),
            x.squeeze(0).unwrap().to_vec3::<f64>().unwrap()[0][0][2]
        );
        assert_eq!(p.apply(&images(&[1, 3, 31, 90])).unwrap().dims(), [1, 3, 7, 7]);
    }

    #[test]
    fn options_change_one_thing_each_and_are_described() {
        let p = Preprocess::clip(224);
        assert_eq!(p.describe(), "bicubic, antialias, shorter side to 224, centre crop");
        let plain = p.with(None, Some(false), None).unwrap();
        assert_eq!(plain.describe(), "bicubic, no antialias, shorter side to 224, centre crop");
        let other = plain.with(Some("bilinear"), None, Some("squash")).unwrap();
        assert_eq!(other.describe(), "bilinear, no antialias, squashed to 224 x 224");
        assert_eq!(other.with(Some("bicubic"), Some(true), Some("center")).unwrap(), p);
        let error = |r: Result<Preprocess>| r.unwrap_err().message;
        let wrong = error(p.with(Some("lanczos"), None, None));
        assert_eq!(wrong, "option `resize`: expected `bicubic` or `bilinear`, got `lanczos`");
        assert_eq!(error(p.with(None, None, Some("top"))), "option `crop`: expected `center` or `squash`, got `top`");
    }

    #[test]
    fn other_shapes_and_types_are_refused() {
        let refused = |x: &Tensor| Preprocess::clip(4).apply(x).unwrap_err().message;
        assert!(refused(&images(&[1, 1, 5, 5])).contains("expected images [b, 3, h, w], got [1, 1, 5, 5]"));
        assert!(refused(&images(&[3, 5, 5])).contains("got [3, 5, 5]"));
        assert!(refused(&images(&[1, 3, 5, 5]).to_dtype(DType::BF16).unwrap()).contains("f32 or f64, got bf16"));
        assert!(refused(&images(&[1, 3, 0, 5])).contains("at least one pixel"));
    }
}
