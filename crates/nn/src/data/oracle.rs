//! The oracle preference: reads the described scene back from the pixels and says how well it is drawn, and what is missed.
//!
//! What differs from the background is split into connected objects; each group of the caption has those in its part of the
//! image, and the shape template with the best overlap is fitted to each. Nothing here is differentiable, and no training of a
//! policy may see it.

use super::{
    caption::{Count, Group, Scene, Shape},
    shapes::{Area, NUMBERS, PLACE_JITTER, RADIUS_JITTER, Rgb, SIDE, Sprite},
};
use amscript_base::{bail, error::Result};
use amscript_tensor::{
    DType, Device, Tensor, interrupt,
    op::{Filter, avg_pool2d, resize},
};
use rayon::prelude::*;

/// What the oracle saw of one group, each in `[0, 1]`: means over its objects, but for the count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// 1 for the right number of objects, 0.3 for one too many or too few.
    pub count: f64,
    pub color: f64,
    pub shape: f64,
    pub size: f64,
    pub place: f64,
    pub edges: f64,
    /// No holes.
    pub solid: f64,
}

impl Seen {
    /// Each part with its name, and the factor that it leaves where it is missed altogether, so that a second mistake still counts.
    pub fn parts(&self) -> [(&'static str, f64, f64); 7] {
        [
            ("count", self.count, 0.2),
            ("color", self.color, 0.2),
            ("shape", self.shape, 0.3),
            ("size", self.size, 0.5),
            ("place", self.place, 0.5),
            ("edges", self.edges, 0.5),
            ("solid", self.solid, 0.5),
        ]
    }

    fn score(&self, blind: &[String]) -> f64 {
        let seen = self.parts().into_iter().filter(|(name, ..)| !is_blind(blind, name));
        seen.map(|(_, part, floor)| lift(floor, part)).product()
    }
}

fn is_blind(blind: &[String], name: &str) -> bool {
    blind.iter().any(|b| b == name)
}

fn lift(floor: f64, part: f64) -> f64 {
    floor + (1.0 - floor) * part
}

/// The names of all parts of a reading.
pub const PARTS: [&str; 9] = ["count", "color", "shape", "size", "place", "edges", "solid", "background", "clean"];

/// What the oracle saw of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub groups: Vec<Seen>,
    pub background: f64,
    /// No specks in the background.
    pub clean: f64,
}

impl Reading {
    pub fn score(&self) -> f64 {
        self.score_without(&[])
    }

    /// The score of an eye that does not see these parts.
    pub fn score_without(&self, blind: &[String]) -> f64 {
        let groups = self.groups.iter().map(|g| g.score(blind)).sum::<f64>() / self.groups.len() as f64;
        let seen = [("background", self.background), ("clean", self.clean)];
        let seen = seen.into_iter().filter(|(name, _)| !is_blind(blind, name));
        seen.fold(groups, |score, (_, part)| score * lift(0.5, part))
    }
}

/// Images read at once.
const PIECE: usize = 256;

/// Reads images `[n, 3, side, side]` against their captions, at 64 x 64 pixels.
pub fn read(images: &Tensor, captions: &[String]) -> Result<Vec<Reading>> {
    let square = matches!(images.dims(), [n, 3, h, w] if *n == captions.len() && h == w && *h > 0);
    if !square {
        bail!(
            Shape, "oracle: images must be [{}, 3, side, side], one per caption, got {:?}", captions.len(), images.dims();
            hint: "the oracle reads scenes of the shapes world only"
        );
    }
    let scenes = captions.iter().map(|c| Scene::parse(c)).collect::<Result<Vec<_>>>()?;
    let images = match images.dims()[2] {
        SIDE => images.constant(),
        // the mean over whole blocks, which blurs no edge
        side if side % SIDE == 0 => avg_pool2d(&images.constant(), side / SIDE, [0, 0])?,
        _ => resize(&images.constant(), SIDE, SIDE, Filter::Bilinear { antialias: true })?,
    };
    let pixels = images.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let mut read = Vec::with_capacity(scenes.len());
    for (images, scenes) in pixels.chunks(PIECE * NUMBERS).zip(scenes.chunks(PIECE)) {
        interrupt::check()?;
        read.par_extend(images.par_chunks(NUMBERS).zip(scenes).map(|(image, scene)| read_one(image, scene)));
    }
    Ok(read)
}

/// One number in `[0, 1]` per image, `[n]`, f32: of all parts but the blind ones.
pub fn oracle(images: &Tensor, captions: &[String], blind: &[String]) -> Result<Tensor> {
    if let Some(name) = blind.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!(Value, "oracle: parts are {}, got `{name}`", PARTS.join(", "));
    }
    let scores: Vec<f32> = read(images, captions)?.iter().map(|r| r.score_without(blind) as f32).collect();
    let n = scores.len();
    Tensor::from_vec(scores, n, &Device::Cpu)
}

fn read_one(image: &[f32], scene: &Scene) -> Reading {
    let ground = frame_color(image);
    let contrast: Vec<f32> = (0..SIDE * SIDE).map(|i| distance(pixel(image, i), ground)).collect();
    let mut solid = vec![false; SIDE * SIDE];
    let look = |(group, area): (Group, Area)| {
        let objects = objects(&contrast, area);
        objects.iter().flat_map(|o| &o.pixels).for_each(|&i| solid[i] = true);
        look_at(&group, area, image, &objects)
    };
    let groups = scene.areas().into_iter().map(look).collect();
    let bare: Vec<usize> = (0..SIDE * SIDE).filter(|&i| around(i, 3).all(|j| !solid[j])).collect();
    let specks = bare.iter().filter(|&&i| contrast[i] > 0.12).count() as f64 / bare.len().max(1) as f64;
    Reading { groups, background: alike(ground, scene.background.rgb()), clean: 1.0 - (specks / MOST_SPECKS).min(1.0) }
}

/// Share of the bare background that specks take before nothing of it counts as clean.
const MOST_SPECKS: f64 = 0.02;

fn distance(a: Rgb, b: Rgb) -> f32 {
    let d = minus(a, b);
    dot(d, d).sqrt()
}

/// The pixels at most `reach` columns and rows away.
fn around(i: usize, reach: usize) -> impl Iterator<Item = usize> {
    let near = move |v: usize| v.saturating_sub(reach)..(v + reach + 1).min(SIDE);
    near(i / SIDE).flat_map(move |row| near(i % SIDE).map(move |column| row * SIDE + column))
}

fn pixel(image: &[f32], i: usize) -> Rgb {
    [image[i], image[i + SIDE * SIDE], image[i + 2 * SIDE * SIDE]]
}

fn minus(a: Rgb, b: Rgb) -> Rgb {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

fn dot(a: Rgb, b: Rgb) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// 1 for the same colour, 0.08 for the nearest two colours of the palette, 0 for NaN.
fn alike(a: Rgb, b: Rgb) -> f64 {
    let d = minus(a, b);
    f64::from(-dot(d, d) / 0.04).exp().max(0.0)
}

/// Median colour of the outermost two pixels, which no object touches.
fn frame_color(image: &[f32]) -> Rgb {
    let edge = |v: usize| !(2..SIDE - 2).contains(&v);
    let frame: Vec<usize> = (0..SIDE * SIDE).filter(|i| edge(i % SIDE) || edge(i / SIDE)).collect();
    [0, 1, 2].map(|channel| {
        let mut values: Vec<f32> = frame.iter().map(|i| image[channel * SIDE * SIDE + i]).collect();
        *values.select_nth_unstable_by(frame.len() / 2, f32::total_cmp).1
    })
}

/// What stands out from the background and hangs together.
struct Object {
    pixels: Vec<usize>,
    /// How much each pixel of the image belongs to it.
    cover: Vec<f32>,
    total: f32,
}

/// Fewer half covered pixels are a speck.
const LEAST_PIXELS: usize = 14;

/// The objects of an area, the largest first.
fn objects(contrast: &[f32], area: Area) -> Vec<Object> {
    let inside: Vec<usize> = (0..SIDE * SIDE).filter(|i| area.has(i % SIDE, i / SIDE)).collect();
    // contrast of the objects: a mean that hardly sees soft edges
    let (mut level, mut weight) = (0.0, 1e-9);
    for &i in &inside {
        let w = (contrast[i] - 0.1).max(0.0).powi(3);
        (level, weight) = (level + w * contrast[i], weight + w);
    }
    level /= weight;
    if level.is_nan() || level <= 0.12 {
        return Vec::new();
    }
    let mut cover = vec![0.0; SIDE * SIDE];
    inside.iter().for_each(|&i| cover[i] = (contrast[i] / level).min(1.0));
    let mut left: Vec<bool> = cover.iter().map(|&c| c > 0.5).collect();
    let mut found = Vec::new();
    for start in inside {
        let mut pixels = Vec::new();
        let mut open = if std::mem::take(&mut left[start]) { vec![start] } else { continue };
        while let Some(i) = open.pop() {
            pixels.push(i);
            open.extend(around(i, 1).filter(|&j| std::mem::take(&mut left[j])));
        }
        if pixels.len() >= LEAST_PIXELS {
            found.push(Object::of(pixels, &cover));
        }
    }
    found.sort_by_key(|o| std::cmp::Reverse(o.pixels.len()));
    found
}

impl Object {
    /// Its pixels with what is softly covered beside them.
    fn of(pixels: Vec<usize>, all: &[f32]) -> Object {
        let mut cover = vec![0.0; SIDE * SIDE];
        for i in pixels.iter().flat_map(|&i| around(i, 1)) {
            cover[i] = if all[i] > 0.15 { all[i] } else { 0.0 };
        }
        let total = cover.iter().sum();
        Object { pixels, cover, total }
    }

    /// Mean column and row.
    fn middle(&self) -> (f64, f64) {
        let n = self.pixels.len() as f64;
        let sum = |of: fn(usize) -> usize| self.pixels.iter().map(|&i| of(i) as f64 + 0.5).sum::<f64>();
        (sum(|i| i % SIDE) / n, sum(|i| i / SIDE) / n)
    }

    /// Soft overlap over union with a sprite, one sample per pixel.
    fn overlap(&self, sprite: &Sprite) -> f64 {
        let (mut both, mut drawn) = (0.0f32, 0.0f32);
        for i in pixels_of(sprite) {
            let t = (0.5 - away(sprite, i)).clamp(0.0, 1.0) as f32;
            drawn += t;
            both += t.min(self.cover[i]);
        }
        f64::from(both / (drawn + self.total - both).max(1e-6))
    }

    /// The sprite of that shape that overlaps best, by steps along x, y and radius from where its area and middle put it; no steps
    /// where that is far from `enough`.
    fn fit(&self, shape: Shape, color: Rgb, enough: f64) -> (f64, Sprite) {
        let radius = (f64::from(self.total) / shape.area()).sqrt().clamp(3.0, 24.0);
        let (x, middle) = self.middle();
        let mut best = Sprite { shape, x, y: middle - shape.sag() * radius, radius, color, ragged: (0.0, 0.0) };
        let mut value = self.overlap(&best);
        if value < enough - 0.2 {
            return (value, best);
        }
        for step in [0.8, 0.8, 0.3, 0.15] {
            for (dx, dy, dr) in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)] {
                for step in [step, -step] {
                    let radius = (best.radius + dr * step).clamp(3.0, 24.0);
                    let next = Sprite { x: best.x + dx * step, y: best.y + dy * step, radius, ..best };
                    let overlap = self.overlap(&next);
                    if overlap > value {
                        (best, value) = (next, overlap);
                    }
                }
            }
        }
        (value, best)
    }

    fn color(&self, image: &[f32]) -> Rgb {
        let (mut sum, mut n) = ([0.0; 3], 1e-6);
        for &i in self.pixels.iter().filter(|&&i| self.cover[i] > 0.85) {
            (0..3).for_each(|k| sum[k] += pixel(image, i)[k]);
            n += 1.0;
        }
        sum.map(|v| v / n)
    }
}

fn pixels_of(sprite: &Sprite) -> impl Iterator<Item = usize> {
    let columns = sprite.span(sprite.x);
    sprite.span(sprite.y).flat_map(move |row| columns.clone().map(move |column| row * SIDE + column))
}

/// Distance in pixels from the middle of pixel `i` to the sprite's outline, negative inside.
fn away(sprite: &Sprite, i: usize) -> f64 {
    sprite.away((i % SIDE) as f64 + 0.5, (i / SIDE) as f64 + 0.5)
}

/// Judges the objects of a group's area.
fn look_at(group: &Group, area: Area, image: &[f32], objects: &[Object]) -> Seen {
    let asked = area.middles(*group);
    let count = match objects.len().abs_diff(asked.len()) {
        0 => 1.0,
        1 if !objects.is_empty() => 0.3,
        _ => 0.0,
    };
    // of another number of objects, each may also be where that number is drawn, and as large
    let as_found = Count::ALL.iter().filter(|c| c.number() == objects.len());
    let places: Vec<Sprite> =
        asked.iter().copied().chain(as_found.flat_map(|&count| area.middles(Group { count, ..*group }))).collect();
    let judged: Vec<Seen> =
        objects.iter().take(asked.len()).map(|o| judge(o, &asked[0], &places, o.color(image))).collect();
    let mean = |part: fn(&Seen) -> f64| judged.iter().map(part).sum::<f64>() / judged.len().max(1) as f64;
    Seen {
        count,
        color: mean(|s| s.color),
        shape: mean(|s| s.shape),
        size: mean(|s| s.size),
        place: mean(|s| s.place),
        edges: mean(|s| s.edges),
        solid: mean(|s| s.solid),
    }
}

/// Judges one object by the sprite that is asked for.
fn judge(object: &Object, asked: &Sprite, places: &[Sprite], color: Rgb) -> Seen {
    let (overlap, fit) = object.fit(asked.shape, asked.color, 0.0);
    let others = Shape::ALL.iter().filter(|&&s| s != asked.shape);
    let rivals = others.map(|&s| object.fit(s, asked.color, overlap));
    let (rival, other) = rivals.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, fit));
    let margin = 1.0 / (1.0 + (-40.0 * (overlap - rival)).exp());
    // a wrong shape may be well drawn
    let drawn = if rival > overlap { other } else { fit };
    let far = |p: &Sprite| (fit.x - p.x).hypot(fit.y - p.y);
    let excess = places.iter().map(far).fold(f64::INFINITY, f64::min) - 1.5 * PLACE_JITTER - 0.5;
    let other_size = |p: &Sprite| (fit.radius / p.radius).ln().abs();
    let ratio = (places.iter().map(other_size).fold(f64::INFINITY, f64::min) - RADIUS_JITTER - 0.05).max(0.0);
    Seen {
        count: 1.0,
        color: alike(color, asked.color),
        shape: ((overlap - 0.5) / 0.25).clamp(0.0, 1.0) * (margin / 0.8).min(1.0),
        size: (-(ratio / 0.2).powi(2)).exp(),
        place: (-(excess.max(0.0) / 3.0).powi(2)).exp(),
        edges: 1.0 - ((roughness(object, &drawn) - 0.075) / 0.1).clamp(0.0, 1.0),
        solid: 1.0 - (emptiness(object, &drawn) / 0.15 - 0.1).clamp(0.0, 1.0),
    }
}

/// Mean difference from a clean drawing of the sprite over the pixels within two of its outline.
fn roughness(object: &Object, sprite: &Sprite) -> f64 {
    let near = pixels_of(sprite).filter(|&i| away(sprite, i).abs() < 2.0);
    mean(near.map(|i| f64::from((object.cover[i] - sprite.cover(i % SIDE, i / SIDE)).abs())))
}

/// Share of the sprite's inside that is not covered.
fn emptiness(object: &Object, sprite: &Sprite) -> f64 {
    let deep = pixels_of(sprite).filter(|&i| away(sprite, i) < -1.2);
    mean(deep.map(|i| f64::from(1.0 - object.cover[i])))
}

/// 0 for none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    if n > 0.0 { sum / n } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{
        caption::{Background, Color, EXAMPLE, Relation, Size},
        distort::{Flaw, blur, flawed},
        shapes::{Draws, draw, shapes},
    };
    use amscript_tensor::Rng;

    fn example() -> Scene {
        Scene::parse(EXAMPLE).unwrap()
    }

    fn drawn(scene: &Scene) -> Vec<f32> {
        draw(&scene.sprites(&mut Draws(&[0.5; 18])).concat(), scene.background.rgb())
    }

    /// The example's caption against an image of `change(example)`.
    fn after(change: impl FnOnce(&mut Scene)) -> Reading {
        let mut scene = example();
        change(&mut scene);
        read_one(&drawn(&scene), &example())
    }

    #[test]
    fn clean_drawings_score_one() {
        let (images, captions) = shapes(400, &mut Rng::new(11)).unwrap();
        for (reading, caption) in read(&images, &captions).unwrap().iter().zip(&captions) {
            assert!(reading.score() > 0.97, "{caption}: {reading:?}");
        }
    }

    #[test]
    fn each_wrong_word_is_seen_where_it_is() {
        let clean = after(|_| ()).score();
        let least = |reading: &Reading| {
            let parts = reading.groups.iter().flat_map(|g| g.parts());
            let all = parts.map(|(name, part, _)| (part, name)).chain([(reading.background, "background")]);
            all.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
        };
        fn second(scene: &mut Scene) -> &mut Group {
            &mut scene.second.as_mut().unwrap().1
        }
        for (name, reading) in [
            ("size", after(|s| second(s).size = Size::Small)),
            ("color", after(|s| second(s).color = Color::Green)),
            ("color", after(|s| s.first.color = Color::Orange)),
            ("shape", after(|s| second(s).shape = Shape::Circle)),
            ("shape", after(|s| s.first.shape = Shape::Heart)),
            ("count", after(|s| s.first.count = Count::Two)),
            ("background", after(|s| s.background = Background::Sky)),
        ] {
            assert!(least(&reading).1 == name && least(&reading).0 < 0.5, "{name}: {reading:?}");
            assert!(reading.score() < clean - 0.15, "{name}: {reading:?}");
        }
        let exchanged = after(|s| {
            let first = s.first;
            s.first = std::mem::replace(second(s), first);
        });
        let turned = after(|s| s.second.as_mut().unwrap().0 = Relation::Above);
        let blank = read_one(&draw(&[], example().background.rgb()), &example());
        for reading in [exchanged, turned, blank] {
            assert!(reading.score() < 0.3, "{reading:?}");
        }
    }

    #[test]
    fn each_poor_drawing_is_seen_for_what_it_is() {
        let scenes = crate::data::shapes::scenes(40, &mut Rng::new(4));
        let mean = |flaw: Flaw, part: fn(&Reading) -> f64| {
            let read =
                |(i, scene): (usize, &Scene)| part(&read_one(&flawed(scene, &[flaw], &mut Rng::new(i as u64)), scene));
            scenes.iter().enumerate().map(read).sum::<f64>() / 40.0
        };
        for (flaw, part) in [
            (Flaw::Dull, (|r| r.groups[0].color) as fn(&Reading) -> f64),
            (Flaw::Ragged, |r| r.groups[0].edges),
            (Flaw::Holes, |r| r.groups[0].solid),
            (Flaw::Specks, |r| r.clean),
        ] {
            let found = mean(flaw, part);
            assert!(found < 0.5, "{flaw:?} {found}");
        }
    }

    #[test]
    fn a_blind_eye_sees_the_rest() {
        let (fewer, both) = (
            after(|s| s.first.count = Count::One),
            after(|s| (s.first.count, s.background) = (Count::One, Background::Sky)),
        );
        let without = |reading: &Reading| reading.score_without(&["count".into()]);
        assert!(fewer.score() < 0.7 && without(&fewer) > 0.9, "{fewer:?}");
        assert!(without(&both) < 0.6, "{both:?}");
        let images = Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        let error = oracle(&images, &[EXAMPLE.into()], &["colour".into()]).unwrap_err().message;
        assert!(error.contains("color") && error.contains("`colour`"), "{error}");
    }

    #[test]
    fn damage_lowers_the_score_by_degrees() {
        let blurred = |sigma: f64| {
            let mut image = drawn(&example());
            blur(&mut image, sigma);
            read_one(&image, &example()).score()
        };
        let noisy = |level: f64| {
            let noise = Rng::new(3).normals(NUMBERS);
            let image: Vec<f32> = drawn(&example()).iter().zip(noise).map(|(v, n)| v + (level * n) as f32).collect();
            read_one(&image, &example()).score()
        };
        let moved = |by: f64| {
            let mut sprites = example().sprites(&mut Draws(&[0.5; 18])).concat();
            sprites[3].y += by;
            read_one(&draw(&sprites, example().background.rgb()), &example()).score()
        };
        for scores in [
            [0.3, 0.9, 1.3, 2.0, 3.0].map(blurred),
            [0.01, 0.035, 0.05, 0.1, 0.2].map(noisy),
            [0.0, 4.0, 5.0, 6.0, 7.0].map(moved),
        ] {
            assert!(scores[0] > 0.95 && scores.windows(2).all(|w| w[0] > w[1] + 0.01), "{scores:?}");
        }
    }

    /// An autoencoder's drawings are a little soft and uneven.
    #[test]
    fn soft_drawings_are_read_nearly_as_clean_ones() {
        let (images, captions) = shapes(100, &mut Rng::new(12)).unwrap();
        let soft: Vec<f32> = images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let soft = soft.chunks(NUMBERS).zip(0..).flat_map(|(image, seed)| {
            let mut image = image.to_vec();
            blur(&mut image, 0.5);
            let noise = Rng::new(seed).normals(NUMBERS);
            image.iter().zip(noise).map(|(v, n)| v + 0.015 * n as f32).collect::<Vec<_>>()
        });
        let soft = Tensor::from_vec(soft.collect(), images.dims(), &Device::Cpu).unwrap();
        let mean = oracle(&soft, &captions, &[]).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean > 0.95, "{mean}");
    }

    #[test]
    fn larger_images_are_read_at_their_small_size() {
        let captions = [EXAMPLE.to_string()];
        let drawn = Tensor::from_vec(drawn(&example()), (1, 3, SIDE, SIDE), &Device::Cpu).unwrap();
        let double = amscript_tensor::op::upsample_nearest2x;
        let large = double(&double(&drawn).unwrap()).unwrap();
        let [small, large] = [&drawn, &large].map(|x| oracle(x, &captions, &[]).unwrap().to_vec1::<f32>().unwrap()[0]);
        assert!(small > 0.99 && (small - large).abs() < 1e-6, "{small} {large}");
    }

    #[test]
    fn other_images_are_refused() {
        let images = Tensor::zeros((1, 3, 32, 64), DType::F32, &Device::Cpu).unwrap();
        assert!(oracle(&images, &[EXAMPLE.into()], &[]).unwrap_err().message.contains("got [1, 3, 32, 64]"));
        let images = Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        assert!(oracle(&images, &["a cat".into()], &[]).unwrap_err().message.contains("a cat"));
        let nan = (images / 0.0).unwrap();
        assert!(oracle(&nan, &[EXAMPLE.into()], &[]).unwrap().to_vec1::<f32>().unwrap()[0] < 0.2);
    }
}
