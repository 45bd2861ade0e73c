//! Flawed drawings of a described scene, from clean to unrecognisable: material for preference learning.

use super::{
    caption::{Background, Color, Scene, Shape, Size},
    shapes::{Draws, NUMBERS, Outline, SIDE, Sprite, draw, images},
};
use amscript_base::error::Result;
use amscript_tensor::{Rng, Tensor};

/// One kind of flaw; its strength in `[0, 1]` is drawn when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Another colour, shape or size, two objects exchanged, or another background.
    Swapped,
    /// A rounded square, a half-closed ring, a squarish circle, a cut-off triangle.
    Deformed,
    Misplaced,
    Missing,
    Faded,
    Blurred,
    Noisy,
}

impl Flaw {
    pub const ALL: [Flaw; 7] =
        [Flaw::Swapped, Flaw::Deformed, Flaw::Misplaced, Flaw::Missing, Flaw::Faded, Flaw::Blurred, Flaw::Noisy];

    /// How often the flaw occurs in a candidate.
    fn share(self) -> f64 {
        match self {
            Flaw::Deformed | Flaw::Blurred => 0.4,
            Flaw::Swapped => 0.35,
            Flaw::Misplaced | Flaw::Noisy | Flaw::Faded => 0.2,
            Flaw::Missing => 0.08,
        }
    }
}

/// Draws each captioned scene with a random mixture of flaws (often none or one): images `[n, 3, 64, 64]`.
pub fn distort(captions: &[String], rng: &mut Rng) -> Result<Tensor> {
    let scenes = captions.iter().map(|c| Scene::parse(c)).collect::<Result<Vec<_>>>()?;
    let chance = rng.uniforms(scenes.len() * Flaw::ALL.len());
    let seeds = rng.uniforms(scenes.len());
    images(scenes.len(), |i| {
        let luck = &chance[i * Flaw::ALL.len()..];
        let flaws: Vec<Flaw> =
            Flaw::ALL.into_iter().zip(luck).filter(|(f, u)| **u < f.share()).map(|(f, _)| f).collect();
        flawed(&scenes[i], &flaws, &mut Rng::new(seeds[i].to_bits()))
    })
}

/// One drawing `[3, 64, 64]` of the scene with exactly those flaws.
pub fn flawed(scene: &Scene, flaws: &[Flaw], rng: &mut Rng) -> Vec<f32> {
    let numbers = rng.uniforms(64);
    let draws = &mut Draws(&numbers);
    let has = |flaw| flaws.contains(&flaw);
    let mut scene = scene.clone();
    if has(Flaw::Swapped) {
        swap(&mut scene, draws);
    }
    let ground = scene.background.rgb();
    let mut sprites = scene.sprites(draws);
    let victim = draws.below(sprites.len());
    if has(Flaw::Deformed) {
        sprites.iter_mut().for_each(|s| s.outline = deformed(s.outline, draws));
    }
    if has(Flaw::Misplaced) {
        let (angle, by) = (draws.between(0.0, std::f64::consts::TAU), draws.between(3.0, 10.0));
        let sprite = &mut sprites[victim];
        let inside = |v: f64| v.clamp(sprite.radius, SIDE as f64 - sprite.radius);
        (sprite.x, sprite.y) = (inside(sprite.x + by * angle.cos()), inside(sprite.y + by * angle.sin()));
    }
    if has(Flaw::Faded) {
        let share = draws.between(0.1, 0.6) as f32;
        sprites.iter_mut().for_each(|s: &mut Sprite| {
            for (ink, paper) in s.color.iter_mut().zip(ground) {
                *ink += share * (paper - *ink);
            }
        });
    }
    if has(Flaw::Missing) {
        sprites.remove(victim);
    }
    let mut image = draw(&sprites, ground);
    if has(Flaw::Blurred) {
        blur(&mut image, draws.between(0.4, 2.0));
    }
    if has(Flaw::Noisy) {
        let level = draws.between(0.01, 0.08);
        for (value, normal) in image.iter_mut().zip(rng.normals(NUMBERS)) {
            *value = (*value + (level * normal) as f32).clamp(0.0, 1.0);
        }
    }
    image
}

/// Another value of the list than `old`.
fn other<T: Copy + PartialEq>(all: &[T], old: T, draws: &mut Draws) -> T {
    let rest: Vec<T> = all.iter().copied().filter(|&v| v != old).collect();
    draws.pick(&rest)
}

fn swap(scene: &mut Scene, draws: &mut Draws) {
    let what = draws.unit();
    let victim = draws.below(scene.objects.len());
    let object = &mut scene.objects[victim];
    if what < 0.3 {
        object.color = other(Color::ALL, object.color, draws);
    } else if what < 0.6 {
        object.shape = other(Shape::ALL, object.shape, draws);
    } else if what < 0.75 {
        object.size = other(Size::ALL, object.size, draws);
    } else if let ([a, b], true) = (scene.objects.as_mut_slice(), what < 0.9) {
        std::mem::swap(&mut a.color, &mut b.color);
        std::mem::swap(&mut a.shape, &mut b.shape);
    } else {
        scene.background = other(Background::ALL, scene.background, draws);
    }
}

fn deformed(outline: Outline, draws: &mut Draws) -> Outline {
    let strength = draws.unit();
    match outline {
        Outline::Whole(Shape::Square) => Outline::Rounded(0.3 + 0.7 * strength),
        Outline::Whole(Shape::Circle) => Outline::Rounded(0.8 - 0.6 * strength),
        Outline::Whole(Shape::Triangle) => Outline::Blunt(0.15 + 0.4 * strength),
        Outline::Whole(Shape::Ring) => {
            let from = draws.between(0.0, std::f64::consts::PI);
            Outline::Open(from, from + 0.5 + 2.5 * strength)
        }
        damaged => damaged,
    }
}

/// Separable Gaussian blur of `[3, 64, 64]`, edges repeated.
pub fn blur(image: &mut [f32], sigma: f64) {
    let reach = (3.0 * sigma).ceil() as i64;
    let kernel: Vec<f64> = (-reach..=reach).map(|d| (-((d * d) as f64) / (2.0 * sigma * sigma)).exp()).collect();
    let norm: f64 = kernel.iter().sum();
    for stride in [1, SIDE] {
        let before = image.to_vec();
        for (i, value) in image.iter_mut().enumerate() {
            let at = (i / stride % SIDE) as i64;
            let sum: f64 = (-reach..=reach)
                .zip(&kernel)
                .map(|(d, k)| {
                    let shift = (at + d).clamp(0, SIDE as i64 - 1) - at;
                    k * f64::from(before[(i as i64 + shift * stride as i64) as usize])
                })
                .sum();
            *value = (sum / norm) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{oracle::oracle, prompts::Prompts};
    use amscript_tensor::Device;

    fn captions(n: usize) -> Vec<String> {
        Prompts::open("shapes/train").unwrap().sample(n, &mut Rng::new(1))
    }

    #[test]
    fn candidates_cover_the_scale() {
        let captions = captions(200);
        let images = distort(&captions, &mut Rng::new(5)).unwrap();
        let scores = oracle(&images, &captions).unwrap().to_vec1::<f32>().unwrap();
        for (low, high) in [(0.0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.01)] {
            let share = scores.iter().filter(|s| (low..high).contains(*s)).count() as f64 / 200.0;
            assert!(share > 0.1, "{share} in {low}..{high}");
        }
        let again = distort(&captions, &mut Rng::new(5)).unwrap();
        assert_eq!((images - again).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }

    #[test]
    fn every_flaw_alone_lowers_the_oracle() {
        let captions = captions(60);
        let mean = |flaws: &[Flaw]| {
            let images = images(60, |i| flawed(&Scene::parse(&captions[i]).unwrap(), flaws, &mut Rng::new(i as u64)));
            let scores = oracle(&images.unwrap(), &captions).unwrap();
            scores.mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(mean(&[]) > 0.99);
        for flaw in Flaw::ALL {
            assert!(mean(&[flaw]) < 0.9, "{flaw:?}");
        }
        assert!(mean(&[Flaw::Missing]) < mean(&[Flaw::Swapped]) && mean(&[Flaw::Swapped]) < mean(&[Flaw::Misplaced]));
    }

    #[test]
    fn blur_keeps_the_mean_and_lowers_the_variance() {
        let mut image =
            Rng::new(0).uniform(&[NUMBERS], amscript_tensor::DType::F32, &Device::Cpu).unwrap().to_vec1().unwrap();
        let moments = |x: &[f32]| {
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32)
        };
        let before = moments(&image);
        blur(&mut image, 1.5);
        let after = moments(&image);
        // white noise: the variance falls by the sum of squares of the kernel, 1 / (4 pi sigma^2), less at the edges
        let expected = 1.0 / (4.0 * std::f32::consts::PI * 2.25);
        assert!((after.0 - before.0).abs() < 2e-3, "{before:?} {after:?}");
        assert!((after.1 / before.1 / expected - 1.0).abs() < 0.2, "{before:?} {after:?}");
    }
}
