//! Strips of images over training, as data inside the page, of bounded size.

use super::markup::{Html, folded, single, tag, text, word};
use super::reading::{Reading, unread};
use super::strip::{self, Shot, Strip};
use amscript_base::{context::Context, file};
use amscript_nn::data::image::{MAX_FILE, decode};
use image::{codecs::jpeg::JpegEncoder, imageops};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of all images in a page, and images of a strip and of a page at most.
const BYTES: usize = 8 << 20;
const STRIP: usize = 12;
const PAGE: usize = 240;
/// Bytes of all prompts in a page, and of those of one image, at most; and characters of what stands in its place.
const PROMPTS: usize = 4 << 20;
const ITS_PROMPTS: usize = 64 << 10;
const ALT: usize = 1000;
/// Longest sides that are tried, from the largest.
const SIDES: [u32; 5] = [1280, 960, 640, 448, 288];

/// An image as the page holds it.
struct Inside {
    kind: &'static str,
    bytes: Vec<u8>,
    size: (u32, u32),
    /// Its longest side on disk, where that was more.
    scaled: Option<u32>,
}

/// The strips of all runs by name, and what could not be shown or was left out.
pub fn section(runs: &[Reading]) -> (Html, Vec<String>) {
    let mut notes = Vec::new();
    let mut strips: Vec<Strip> = runs.iter().flat_map(|run| strip::of(run, &mut notes)).collect();
    if strips.is_empty() {
        return (word("p", "No images: the runs have written none."), notes);
    }
    let most = (PAGE / strips.len()).clamp(1, STRIP);
    for strip in &mut strips {
        let (before, kept) = (strip.shots.len(), spread(strip.shots.len(), most));
        if kept.len() < before {
            notes.push(format!("{} of {}: {} of {before} steps are shown", strip.name, strip.run, kept.len()));
        }
        strip.shots = std::mem::take(&mut strip.shots)
            .into_iter()
            .enumerate()
            .filter(|(i, _)| kept.contains(i))
            .map(|(_, s)| s)
            .collect();
    }
    let count = strips.iter().map(|s| s.shots.len()).sum::<usize>().max(1);
    for shot in strips.iter_mut().flat_map(|s| &mut s.shots) {
        shot.read_prompts((PROMPTS / count).min(ITS_PROMPTS) as u64, &mut notes);
    }
    let paths: Vec<&Path> = strips.iter().flat_map(|s| &s.shots).map(|s| s.path.as_path()).collect();
    let context = Context::current();
    let images: Vec<Result<Inside, String>> =
        paths.par_iter().map(|path| context.enter(|| embed(path, BYTES / count))).collect();
    let (largest, scaled) =
        images.iter().flatten().filter_map(|i| i.scaled).fold((0, 0), |(l, n), s| (s.max(l), n + 1));
    if scaled > 0 {
        notes.push(format!("{scaled} of {count} images are made smaller to fit in the page; the largest is {largest} pixels wide or high on disk"));
    }
    let mut images = images.into_iter();
    let mut names: BTreeMap<(bool, String), Vec<Html>> = BTreeMap::new();
    for (i, strip) in strips.iter().enumerate() {
        let shots: Vec<Html> = strip
            .shots
            .iter()
            .zip(images.by_ref())
            .filter_map(|(shot, image)| figure(strip, shot, image, &mut notes))
            .collect();
        let key = (strip.shots.iter().all(|s| s.step.is_none()), strip.name.clone());
        let told = strips[..i].iter().any(|s| s.name == strip.name && s.prompts() == strip.prompts());
        let prompts = strip.prompts().filter(|_| !told);
        names.entry(key).or_default().push(row(strip, shots, prompts, runs.len() > 1));
    }
    let html =
        names.into_iter().map(|((_, name), rows)| std::iter::once(word("h3", name)).chain(rows).collect::<Html>());
    (html.collect(), notes)
}

/// `most` of `n` places, evenly spread, the first and the last among them.
fn spread(n: usize, most: usize) -> Vec<usize> {
    match most {
        _ if n <= most => (0..n).collect(),
        0 | 1 => vec![n - 1],
        _ => (0..most).map(|i| i * (n - 1) / (most - 1)).collect(),
    }
}

/// The image in at most so many bytes: the file itself, or a JPEG of the largest size that fits.
fn embed(path: &Path, most: usize) -> Result<Inside, String> {
    let bytes = file::read_within(path, MAX_FILE).map_err(|e| unread(path, &e))?;
    let image = decode(&bytes).map_err(|e| e.message)?;
    let size @ (width, height) = image.dimensions();
    let longest = width.max(height);
    if bytes.len() <= most.min(BYTES / 40) && longest <= SIDES[0] {
        let kind = if bytes.starts_with(b"\xff\xd8") { "image/jpeg" } else { "image/png" };
        return Ok(Inside { kind, bytes, size, scaled: None });
    }
    for side in SIDES {
        let part = (f64::from(side) / f64::from(longest)).min(1.0);
        let size = [width, height].map(|n| ((f64::from(n) * part).round() as u32).max(1));
        let small = match part < 1.0 {
            true => imageops::resize(&image, size[0], size[1], imageops::FilterType::Triangle),
            false => image.clone(),
        };
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 85).encode_image(&small).map_err(|e| e.to_string())?;
        if jpeg.len() <= most {
            let scaled = (part < 1.0).then_some(longest);
            return Ok(Inside { kind: "image/jpeg", bytes: jpeg, size: (size[0], size[1]), scaled });
        }
    }
    Err(format!("more than {most} bytes even at {} pixels", SIDES[SIDES.len() - 1]))
}

/// A picture to click on with its step below; one that cannot be shown is noted.
fn figure(strip: &Strip, shot: &Shot, image: Result<Inside, String>, notes: &mut Vec<String>) -> Option<Html> {
    let file = shot.path.file_name().unwrap_or_default().to_string_lossy();
    let image = image.map_err(|e| notes.push(format!("images/{file} of {} is left out: {e}", strip.run))).ok()?;
    let when = shot.step.map_or("at the end".to_string(), |step| format!("step {step}"));
    let source = format!("data:{};base64,{}", image.kind, base64::encode(&image.bytes));
    let alt = match shot.prompts.is_empty() {
        true => format!("{}, {when}, of {}", strip.name, strip.run),
        false => format!("{}, {when}, of {}: {}", strip.name, strip.run, shot.prompts.join("; ")),
    };
    let alt: String = alt.chars().take(ALT).collect();
    let (width, height) = (image.size.0.to_string(), image.size.1.to_string());
    let picture =
        single("img", &[("src", &source), ("alt", &alt), ("width", &width), ("height", &height), ("loading", "lazy")]);
    let button = tag("button", &[("type", "button"), ("class", "shot"), ("title", "enlarge")], [picture]);
    Some(tag("figure", &[], [button, word("figcaption", when)]))
}

/// A strip with the run's name, and its prompts where those were not told yet.
fn row(strip: &Strip, shots: Vec<Html>, prompts: Option<&[String]>, several: bool) -> Html {
    let name = several.then(|| tag("p", &[("class", "name")], [text(&strip.run)]));
    let label = format!("{} of {}", strip.name, strip.run);
    let shots = tag("div", &[("class", "strip"), ("tabindex", "0"), ("role", "group"), ("aria-label", &label)], shots);
    let list = |prompts: &[String]| tag("ol", &[], prompts.iter().map(|prompt| word("li", prompt)));
    name.into_iter().chain([shots]).chain(prompts.map(|p| folded("prompts", false, [list(p)]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    #[test]
    fn a_strip_is_thinned_evenly() {
        assert_eq!((spread(5, 12), spread(9, 3), spread(9, 1)), (vec![0, 1, 2, 3, 4], vec![0, 4, 8], vec![8]));
    }

    #[test]
    fn an_image_keeps_to_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.png");
        let noise = |x: u32, y: u32| {
            image::Rgb([0, 1, 2].map(|c| (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729) ^ (c * 31)) as u8))
        };
        RgbImage::from_fn(1500, 700, noise).save(&path).unwrap();
        let inside = embed(&path, 90_000).unwrap();
        assert!(
            inside.bytes.len() <= 90_000 && inside.scaled == Some(1500),
            "{} {:?}",
            inside.bytes.len(),
            inside.size
        );
        assert!(embed(&path, 100).is_err());
    }
}
