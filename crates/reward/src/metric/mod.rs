//! Measures of images: distances between them, diversity within prompts, two sets against each other.
//!
//! Decisions:
//! * **Errors of an evaluation are over prompts**: images of one prompt are not independent, so each prompt gives one number to every measure,
//!   and changes are taken prompt by prompt at the same noise, which depends on seed and prompt only.
//! * **Recall and coverage are per base image** before they are means, so they have errors too, grouped by prompt like the rest.

pub mod frechet;
pub mod lpips;
pub mod neighbours;
pub mod pairwise;
pub mod ssim;

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::{DType, Tensor};

/// Refuses what is no batch of colour images with values in `[low, high]`, a hundredth more or less.
fn check_images(place: &str, images: &Tensor, [low, high]: [f64; 2]) -> Result<()> {
    let dims = images.dims();
    if dims.len() != 4 || dims[1] != 3 || dims.contains(&0) {
        bail!(Shape, "{place}: images must be [n, 3, height, width], got {dims:?}");
    }
    let images = images.constant().to_dtype(DType::F64)?;
    let (least, most) = (images.min_all()?.to_scalar::<f64>()?, images.max_all()?.to_scalar::<f64>()?);
    if !(least >= low - 0.01 && most <= high + 0.01) {
        let hint = match (low == 0.0, least >= -1.01 && most <= 1.01, least >= -0.01 && most <= 255.0) {
            (true, true, _) => "for images in [-1, 1] take `x / 2 + 0.5`",
            (true, _, true) => "for images in [0, 255] take `x / 255`",
            _ => "clamp them, or bring them to the range",
        };
        bail!(Value, "{place}: images must lie in [{low}, {high}], got values from {least:.3} to {most:.3}"; hint: "{hint}");
    }
    Ok(())
}
