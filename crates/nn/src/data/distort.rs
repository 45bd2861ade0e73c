//! Flawed drawings of a described scene, from clean to unrecognisable: material for preference learning, and for a base model
//! that is worth aligning.

use super::{
    caption::{Background, Color, Count, Scene, Shape, Size},
    shapes::{Draws, Rgb, SIDE, Sprite, draw, images},
};
use amscript_base::{bail, error::Result};
use amscript_tensor::{Rng, Tensor};
use std::f64::consts::TAU;

/// One kind of flaw; its strength is drawn when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Another colour, shape, size or background than asked for, or two groups exchanged.
    Word,
    /// An object too many or too few.
    Count,
    Misplaced,
    Dull,
    Ragged,
    Specks,
    Holes,
    Blurred,
}

impl Flaw {
    pub const ALL: [Flaw; 8] =
        [Flaw::Word, Flaw::Count, Flaw::Misplaced, Flaw::Dull, Flaw::Ragged, Flaw::Specks, Flaw::Holes, Flaw::Blurred];

    pub fn name(self) -> &'static str {
        match self {
            Flaw::Word => "word",
            Flaw::Count => "count",
            Flaw::Misplaced => "misplaced",
            Flaw::Dull => "dull",
            Flaw::Ragged => "ragged",
            Flaw::Specks => "specks",
            Flaw::Holes => "holes",
            Flaw::Blurred => "blurred",
        }
    }

    /// How often the flaw occurs where nothing else is asked for.
    fn share(self) -> f64 {
        match self {
            Flaw::Word | Flaw::Dull | Flaw::Ragged | Flaw::Specks | Flaw::Holes => 0.25,
            Flaw::Count | Flaw::Misplaced | Flaw::Blurred => 0.15,
        }
    }
}

/// How often each flaw occurs: by its name, in `[0, 1]`.
#[derive(Clone, Debug)]
pub struct Shares([f64; Flaw::ALL.len()]);

impl Default for Shares {
    fn default() -> Shares {
        Shares(Flaw::ALL.map(Flaw::share))
    }
}

impl Shares {
    /// Only the named flaws.
    pub fn named(shares: &[(String, f64)]) -> Result<Shares> {
        let mut out = Shares([0.0; Flaw::ALL.len()]);
        for (name, share) in shares {
            let Some(flaw) = Flaw::ALL.into_iter().find(|f| f.name() == name) else {
                let names = Flaw::ALL.map(Flaw::name).join(", ");
                bail!(Value, "distort: flaws must be among {names}, got `{name}`");
            };
            if !(0.0..=1.0).contains(share) {
                bail!(Value, "distort: the share of `{name}` must lie in [0, 1], got {share}");
            }
            out.0[flaw as usize] = *share;
        }
        Ok(out)
    }
}

/// Draws each captioned scene with a random mixture of flaws (often none or one): images `[n, 3, 64, 64]`.
pub fn distort(captions: &[String], shares: &Shares, rng: &mut Rng) -> Result<Tensor> {
    let scenes = captions.iter().map(|c| Scene::parse(c)).collect::<Result<Vec<_>>>()?;
    let chance = rng.uniforms(scenes.len() * Flaw::ALL.len());
    let seeds = rng.uniforms(scenes.len());
    images(scenes.len(), |i| {
        let luck = &chance[i * Flaw::ALL.len()..];
        let flaws: Vec<Flaw> =
            Flaw::ALL.into_iter().zip(luck).filter(|(f, u)| **u < shares.0[*f as usize]).map(|(f, _)| f).collect();
        flawed(&scenes[i], &flaws, &mut Rng::new(seeds[i].to_bits()))
    })
}

/// One drawing `[3, 64, 64]` of the scene with exactly those flaws.
pub fn flawed(scene: &Scene, flaws: &[Flaw], rng: &mut Rng) -> Vec<f32> {
    let numbers = rng.uniforms(256);
    let draws = &mut Draws(&numbers);
    let has = |flaw| flaws.contains(&flaw);
    let mut scene = scene.clone();
    if has(Flaw::Word) {
        reword(&mut scene, draws);
    }
    if has(Flaw::Count) {
        recount(&mut scene, draws);
    }
    let ground = scene.background.rgb();
    let mut sprites = scene.sprites(draws).concat();
    if has(Flaw::Misplaced) {
        let victim = draws.below(sprites.len());
        let (angle, by) = (draws.between(0.0, TAU), draws.between(3.0, 10.0));
        let sprite = &mut sprites[victim];
        let inside = |v: f64| v.clamp(sprite.radius + 3.0, SIDE as f64 - sprite.radius - 3.0);
        (sprite.x, sprite.y) = (inside(sprite.x + by * angle.cos()), inside(sprite.y + by * angle.sin()));
    }
    if has(Flaw::Dull) {
        let share = draws.between(0.2, 0.65) as f32;
        sprites.iter_mut().for_each(|s| s.color = dulled(s.color, share));
    }
    if has(Flaw::Ragged) {
        let by = draws.between(0.6, 1.6);
        sprites.iter_mut().for_each(|s| s.ragged = (by, draws.between(0.0, TAU)));
    }
    if has(Flaw::Holes) {
        let holes: Vec<Sprite> = sprites.iter().flat_map(|s| holes(s, ground, draws)).collect();
        sprites.extend(holes);
    }
    if has(Flaw::Specks) {
        sprites.extend(specks(draws));
    }
    let mut image = draw(&sprites, ground);
    if has(Flaw::Blurred) {
        blur(&mut image, draws.between(0.6, 1.5));
    }
    image
}

/// Another value of the list than `old`.
fn other<T: Copy + PartialEq>(all: &[T], old: T, draws: &mut Draws) -> T {
    let rest: Vec<T> = all.iter().copied().filter(|&v| v != old).collect();
    draws.pick(&rest)
}

/// What of a caption can be another: words of one group, the place of two, the background.
pub const WORDS: [&str; 6] = ["count", "color", "shape", "size", "place", "background"];

/// Changes one of [`WORDS`], of one group where a group has it.
fn change(scene: &mut Scene, word: &str, victim: usize, draws: &mut Draws) {
    match (word, scene.second.as_mut()) {
        ("place", Some((_, second))) => std::mem::swap(&mut scene.first, second),
        ("background", _) => scene.background = other(Background::ALL, scene.background, draws),
        _ => scene.groups_mut().skip(victim).take(1).for_each(|group| match word {
            "count" => group.count = other(Count::ALL, group.count, draws),
            "color" => group.color = other(Color::ALL, group.color, draws),
            "shape" => group.shape = other(Shape::ALL, group.shape, draws),
            "size" => group.size = other(Size::ALL, group.size, draws),
            _ => {} // one group has no other place
        }),
    }
}

/// Changes one word of the description, or exchanges its groups.
fn reword(scene: &mut Scene, draws: &mut Draws) {
    let what = draws.unit();
    let victim = draws.below(scene.groups().count());
    let word = match what {
        what if what > 0.8 && scene.second.is_some() => "place",
        what if what > 0.9 => "background",
        0.0..0.4 => "color",
        0.4..0.7 => "shape",
        _ => "size",
    };
    change(scene, word, victim, draws);
}

/// Changes the number of one group's objects.
fn recount(scene: &mut Scene, draws: &mut Draws) {
    let victim = draws.below(scene.groups().count());
    change(scene, "count", victim, draws);
}

/// Each caption with one thing changed: one of these [`WORDS`], each as often, or without them any, in a quarter the count.
pub fn reworded(captions: &[String], words: &[String], rng: &mut Rng) -> Result<Vec<String>> {
    if let Some(word) = words.iter().find(|word| !WORDS.contains(&word.as_str())) {
        bail!(Value, "reword: words must be among {}, got `{word}`", WORDS.join(", "));
    }
    let changed = |caption: &String| {
        let mut scene = Scene::parse(caption)?;
        let numbers = rng.uniforms(8);
        let draws = &mut Draws(&numbers);
        if !words.is_empty() {
            let word = &words[draws.below(words.len())];
            let victim = draws.below(scene.groups().count());
            change(&mut scene, word, victim, draws);
        } else if draws.unit() < 0.25 {
            recount(&mut scene, draws);
        } else {
            reword(&mut scene, draws);
        }
        Ok(scene.caption())
    };
    captions.iter().map(changed).collect()
}

/// Mixed with the grey of the same brightness.
fn dulled(color: Rgb, share: f32) -> Rgb {
    let grey = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2];
    color.map(|v| v + share * (grey - v))
}

/// Round holes that show the background.
fn holes(sprite: &Sprite, ground: Rgb, draws: &mut Draws) -> Vec<Sprite> {
    let n = 1 + draws.below(3);
    let mut hole = || {
        let (angle, out) = (draws.between(0.0, TAU), sprite.radius * draws.between(0.1, 0.6));
        let y = sprite.y + sprite.radius * sprite.shape.sag() + out * angle.sin();
        dot(sprite.x + out * angle.cos(), y, sprite.radius * draws.between(0.12, 0.26), ground)
    };
    (0..n).map(|_| hole()).collect()
}

/// Small dots of any colour anywhere.
fn specks(draws: &mut Draws) -> Vec<Sprite> {
    let n = 4 + draws.below(16);
    let side = SIDE as f64 - 2.0;
    let mut speck = || {
        dot(draws.between(2.0, side), draws.between(2.0, side), draws.between(0.8, 1.4), draws.pick(Color::ALL).rgb())
    };
    (0..n).map(|_| speck()).collect()
}

fn dot(x: f64, y: f64, radius: f64, color: Rgb) -> Sprite {
    Sprite { shape: Shape::Circle, x, y, radius, color, ragged: (0.0, 0.0) }
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
    use crate::data::{oracle::oracle, prompts::Prompts, shapes::NUMBERS};
    use amscript_tensor::Device;

    fn captions(n: usize) -> Vec<String> {
        Prompts::open("shapes/train").unwrap().sample(n, &mut Rng::new(1)).unwrap()
    }

    #[test]
    fn candidates_cover_the_scale() {
        let captions = captions(200);
        let images = distort(&captions, &Shares::default(), &mut Rng::new(5)).unwrap();
        let scores = oracle(&images, &captions, &[]).unwrap().to_vec1::<f32>().unwrap();
        for (low, high) in [(0.0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.01)] {
            let share = scores.iter().filter(|s| (low..high).contains(*s)).count() as f64 / 200.0;
            assert!(share > 0.1, "{share} in {low}..{high}");
        }
        let again = distort(&captions, &Shares::default(), &mut Rng::new(5)).unwrap();
        assert_eq!((images - again).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }

    #[test]
    fn every_flaw_alone_lowers_the_oracle() {
        let captions = captions(60);
        let mean = |flaws: &[Flaw]| {
            let images = images(60, |i| flawed(&Scene::parse(&captions[i]).unwrap(), flaws, &mut Rng::new(i as u64)));
            let scores = oracle(&images.unwrap(), &captions, &[]).unwrap();
            scores.mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(mean(&[]) > 0.99);
        for flaw in Flaw::ALL {
            assert!(mean(&[flaw]) < 0.85, "{flaw:?} {}", mean(&[flaw]));
        }
    }

    #[test]
    fn shares_choose_the_flaws() {
        let captions = captions(20);
        let drawn = |shares: &[(String, f64)]| {
            let images = distort(&captions, &Shares::named(shares)?, &mut Rng::new(3))?;
            oracle(&images, &captions, &[])?.mean_all()?.to_scalar::<f32>()
        };
        assert!(drawn(&[]).unwrap() > 0.99);
        assert!(drawn(&[("specks".into(), 1.0)]).unwrap() < 0.85);
        for wrong in [("spots", 0.5), ("specks", 1.5)] {
            let message = drawn(&[(wrong.0.into(), wrong.1)]).unwrap_err().message;
            assert!(message.contains(wrong.0) && message.contains("distort: "), "{message}");
        }
    }

    #[test]
    fn one_word_of_a_kind_is_another() {
        let two = "a small red ring left of two large blue stars on cream".to_string();
        let changed = |caption: &String, word: &str| {
            let other = reworded(std::slice::from_ref(caption), &[word.into()], &mut Rng::new(1)).unwrap().remove(0);
            let (old, new): (Vec<_>, Vec<_>) = (caption.split(' ').collect(), other.split(' ').collect());
            old.iter().zip(&new).filter(|(a, b)| a != b).count() + old.len().abs_diff(new.len())
        };
        for word in ["color", "shape", "size", "background"] {
            assert_eq!(changed(&two, word), 1, "{word}");
        }
        assert!(changed(&two, "place") > 3 && changed(&two, "count") > 0);
        assert_eq!(changed(&"a small red ring on cream".into(), "place"), 0, "one group keeps its place");
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
