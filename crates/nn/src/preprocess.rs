//! How images become an image tower's pixels: resize, centre crop, mean and deviation; with a gradient.

use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_tensor::op::{self, Filter};
use amscript_tensor::{DType, Device, Tensor};
use serde_json::{Value, json};

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

    /// From the `preprocessor_config.json` of transformers: mean, deviation, filter, and whether the image is squashed; and what else it
    /// says that differs from what is done.
    pub fn transformers(size: usize, file: &Value) -> Result<(Self, Vec<String>)> {
        let three = |name: &str, usual: [f64; 3]| match &file[name] {
            Value::Null => Ok(usual),
            given => {
                serde_json::from_value(given.clone()).map_err(|e| Error::new(Kind::Value, format!("`{name}`: {e}")))
            }
        };
        let resize = if file["resample"] == 2 { "bilinear" } else { "bicubic" };
        let crop = if file["size"]["height"].is_null() { "center" } else { "squash" };
        let usual =
            Self { mean: three("image_mean", CLIP_MEAN)?, std: three("image_std", CLIP_STD)?, ..Self::clip(size) };
        let pixels = usual.with(Some(resize), None, Some(crop))?;
        let is_size = |given: &Value| match given {
            Value::Object(sides) => sides.values().all(|side| *side == size),
            side => *side == size,
        };
        let is_followed = |name: &str, given: &Value| match name {
            "resample" => *given == 2 || *given == 3,
            "size" | "crop_size" => is_size(given),
            "do_center_crop" => pixels.squash || *given == true,
            "do_resize" | "do_rescale" | "do_normalize" => *given == true,
            "rescale_factor" => given.as_f64().is_some_and(|factor| (255.0 * factor - 1.0).abs() < 1e-3),
            _ => true,
        };
        let departs = |(name, given): &(&String, &Value)| !given.is_null() && !is_followed(name, given);
        let fields = file.as_object().into_iter().flatten();
        Ok((pixels, fields.filter(departs).map(|(name, given)| format!("{name} {given}")).collect()))
    }

    /// What [`Preprocess::transformers`] reads.
    pub fn transformers_file(&self) -> Value {
        let bilinear = matches!(self.filter, Filter::Bilinear { .. });
        let sides = json!({ "height": self.size, "width": self.size });
        let size = if self.squash { sides.clone() } else { json!({ "shortest_edge": self.size }) };
        json!({ "image_processor_type": "CLIPImageProcessor", "image_mean": self.mean, "image_std": self.std,
            "resample": if bilinear { 2 } else { 3 }, "size": size, "crop_size": sides, "do_center_crop": !self.squash })
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
    fn files_of_transformers_are_followed_or_told() {
        let read = |file: Value| Preprocess::transformers(224, &file).unwrap();
        assert_eq!(read(json!({})), (Preprocess::clip(224), vec![]));
        let usual = json!({ "size": 224, "crop_size": { "height": 224, "width": 224 }, "resample": 3, "do_resize": true,
            "do_center_crop": true, "do_normalize": true, "rescale_factor": 0.00392156862745098, "image_mean": CLIP_MEAN });
        assert_eq!(read(usual), (Preprocess::clip(224), vec![]));
        let half = [0.5; 3];
        let other = json!({ "image_mean": half, "image_std": half, "resample": 2, "do_center_crop": false, "do_rescale": false,
            "size": { "height": 28, "width": 224 } });
        let (pixels, told) = read(other);
        assert_eq!(
            (pixels.mean, pixels.std, pixels.describe().as_str()),
            (half, half, "bilinear, antialias, squashed to 224 x 224")
        );
        assert_eq!(told, ["do_rescale false", r#"size {"height":28,"width":224}"#]);
        for pixels in [pixels, Preprocess::clip(224)] {
            assert_eq!(read(pixels.transformers_file()), (pixels, vec![]));
        }
        let wrong = Preprocess::transformers(4, &json!({ "image_mean": [1] })).unwrap_err().message;
        assert!(wrong.starts_with("`image_mean`"), "{wrong}");
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
