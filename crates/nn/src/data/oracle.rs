//! The oracle preference: reads the described scene back from the pixels and says how well it is drawn.
//!
//! Each object is searched where the caption puts it: the shape template (place, radius) with the best overlap is fitted to
//! the pixels that differ from the background. Nothing here is differentiable, and no training loop may see it.

use super::{
    caption::{Object, Place, Scene, Shape},
    shapes::{NUMBERS, Outline, PLACE_JITTER, RADIUS_JITTER, Rgb, SIDE, Sprite},
};
use amscript_base::{bail, error::Result};
use amscript_tensor::{
    DType, Device, Tensor, interrupt,
    op::{Filter, resize},
};
use rayon::prelude::*;
use std::ops::Range;

/// What the oracle saw of one object, each in `[0, 1]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Anything at all stands out from the background there.
    pub presence: f64,
    pub color: f64,
    pub shape: f64,
    pub size: f64,
    pub place: f64,
    pub edges: f64,
}

impl Seen {
    /// Product of the parts, each lifted to a floor so that a second mistake still counts.
    pub fn score(&self) -> f64 {
        let lift = |floor: f64, part: f64| floor + (1.0 - floor) * part;
        self.presence
            * lift(0.3, self.color)
            * lift(0.3, self.shape)
            * lift(0.5, self.size)
            * lift(0.5, self.place)
            * lift(0.6, self.edges)
    }
}

/// What the oracle saw of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub objects: Vec<Seen>,
    pub background: f64,
}

impl Reading {
    pub fn score(&self) -> f64 {
        let objects = self.objects.iter().map(Seen::score).sum::<f64>() / self.objects.len() as f64;
        0.9 * objects * (0.6 + 0.4 * self.background) + 0.1 * self.background
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

/// One number in `[0, 1]` per image: `[n]`, f32.
pub fn oracle(images: &Tensor, captions: &[String]) -> Result<Tensor> {
    let scores: Vec<f32> = read(images, captions)?.iter().map(|r| r.score() as f32).collect();
    let n = scores.len();
    Tensor::from_vec(scores, n, &Device::Cpu)
}

fn read_one(image: &[f32], scene: &Scene) -> Reading {
    let ground = frame_color(image);
    let found: Vec<(Seen, Sprite)> = scene.objects.iter().map(|object| look_for(object, image, ground)).collect();
    let asked = scene.background.rgb();
    let bare = |i: &usize| found.iter().all(|(_, s)| away(s, *i) > 1.5);
    let (mut sum, mut count) = (0.0, 0usize);
    for i in (0..SIDE * SIDE).filter(bare) {
        sum += alike(pixel(image, i), asked);
        count += 1;
    }
    let clean = sum / count.max(1) as f64;
    Reading { background: ((clean - 0.5) / 0.48).clamp(0.0, 1.0), objects: found.into_iter().map(|(s, _)| s).collect() }
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

/// Distance in pixels from pixel `i` to the sprite's outline, negative inside.
fn away(sprite: &Sprite, i: usize) -> f64 {
    let (x, y) = ((i % SIDE) as f64 + 0.5 - sprite.x, (i / SIDE) as f64 + 0.5 - sprite.y);
    sprite.radius * sprite.outline.distance(x / sprite.radius, y / sprite.radius)
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

/// Part of the image an object has for itself, as columns and rows.
fn window(place: Place) -> (Range<usize>, Range<usize>) {
    match place {
        Place::Center => (0..SIDE, 0..SIDE),
        Place::Left => (0..SIDE / 2, 0..SIDE),
        Place::Right => (SIDE / 2..SIDE, 0..SIDE),
        Place::Top => (0..SIDE, 0..SIDE / 2),
        Place::Bottom => (0..SIDE, SIDE / 2..SIDE),
    }
}

/// How much each pixel of a window belongs to an object; zero outside the window.
struct Foreground {
    cover: Vec<f32>,
    total: f32,
    contrast: f32,
    /// Where the cover is: mean column and row.
    middle: (f64, f64),
}

/// Pixels below that cover are background with noise.
const FAINT: f32 = 0.15;

impl Foreground {
    /// The cover of a pixel is its place on the line from the background colour to the window's own object colour.
    fn of(image: &[f32], ground: Rgb, (columns, rows): (Range<usize>, Range<usize>)) -> Foreground {
        let inside: Vec<usize> = rows.flat_map(|r| columns.clone().map(move |c| r * SIDE + c)).collect();
        let (mut ink, mut weight) = ([0.0; 3], 1e-6);
        for &i in &inside {
            let d = minus(pixel(image, i), ground);
            let w = (dot(d, d).sqrt() - 0.15).max(0.0).powi(2);
            weight += w;
            (0..3).for_each(|k| ink[k] += w * d[k]);
        }
        let axis = ink.map(|v| v / weight);
        let length = dot(axis, axis);
        let mut cover = vec![0.0f32; SIDE * SIDE];
        let (mut total, mut x, mut y, mut solid) = (0.0, 0.0, 0.0, 1e-9);
        for &i in inside.iter().filter(|_| length > 1e-3) {
            let share = (dot(minus(pixel(image, i), ground), axis) / length).clamp(0.0, 1.0);
            if share > FAINT {
                cover[i] = share;
                total += share;
            }
            if share > 0.5 {
                x += (i % SIDE) as f64 + 0.5;
                y += (i / SIDE) as f64 + 0.5;
                solid += 1.0;
            }
        }
        Foreground { cover, total, contrast: length.sqrt(), middle: (x / solid, y / solid) }
    }

    /// Soft overlap over union with a sprite, one sample per pixel.
    fn overlap(&self, sprite: &Sprite) -> f64 {
        let (mut both, mut drawn) = (0.0f32, 0.0f32);
        for row in sprite.span(sprite.y) {
            for column in sprite.span(sprite.x) {
                let i = row * SIDE + column;
                let t = (0.5 - away(sprite, i)).clamp(0.0, 1.0) as f32;
                drawn += t;
                both += t.min(self.cover[i]);
            }
        }
        f64::from(both / (drawn + self.total - both).max(1e-6))
    }

    /// The sprite of that shape that overlaps best, by steps along x, y and radius.
    fn fit(&self, shape: Shape, color: Rgb) -> (f64, Sprite) {
        let radius = (f64::from(self.total) / shape.area()).sqrt().clamp(3.0, 24.0);
        let (x, y) = (self.middle.0, self.middle.1 - middle_below(shape) * radius);
        let mut best = Sprite { outline: Outline::Whole(shape), x, y, radius, color };
        let mut value = self.overlap(&best);
        // three rounds of each step length along x, y and radius
        for step in [1.5, 0.75, 0.3].into_iter().flat_map(|s| [s; 3]) {
            for (dx, dy, dr) in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)] {
                for step in [step, -step] {
                    let (x, y) = (best.x + dx * step, best.y + dy * step);
                    let next = Sprite { x, y, radius: (best.radius + dr * step).clamp(3.0, 24.0), ..best };
                    let overlap = self.overlap(&next);
                    if overlap > value {
                        (best, value) = (next, overlap);
                    }
                }
            }
        }
        (value, best)
    }
}

/// How far the centroid lies below the middle, in radii.
fn middle_below(shape: Shape) -> f64 {
    if shape == Shape::Triangle { 0.95 / 3.0 } else { 0.0 }
}

/// Looks for one object; also says where it is.
fn look_for(object: &Object, image: &[f32], ground: Rgb) -> (Seen, Sprite) {
    let asked = object.middle();
    let seen = Foreground::of(image, ground, window(object.place));
    if f64::from(seen.total) < 8.0 {
        return (Seen::default(), asked);
    }
    let (overlap, fit) = seen.fit(object.shape, asked.color);
    let others = Shape::ALL.iter().filter(|&&s| s != object.shape);
    let rival = others.map(|&s| seen.fit(s, asked.color).0).fold(0.0, f64::max);
    let margin = 1.0 / (1.0 + (-20.0 * (overlap - rival)).exp());
    let excess = (fit.x - asked.x).abs().max((fit.y - asked.y).abs()) - PLACE_JITTER - 0.5;
    let ratio = ((fit.radius / asked.radius).ln().abs() - RADIUS_JITTER - 0.03).max(0.0);
    let parts = Seen {
        presence: (f64::from(seen.contrast) / 0.3).min(1.0) * (overlap / 0.4).min(1.0),
        color: color_inside(image, &fit),
        shape: ((overlap - 0.5) / 0.42).clamp(0.0, 1.0) * (margin / 0.9).min(1.0),
        size: (-(ratio / 0.25).powi(2)).exp(),
        place: (-(excess.max(0.0) / 4.0).powi(2)).exp(),
        edges: sharpness(&seen, &fit),
    };
    (parts, fit)
}

/// Mean likeness to the sprite's colour over its inside.
fn color_inside(image: &[f32], sprite: &Sprite) -> f64 {
    let inside = |i: &usize| away(sprite, *i) < -0.7;
    let rows = sprite.span(sprite.y).flat_map(|r| sprite.span(sprite.x).map(move |c| r * SIDE + c));
    let values: Vec<f64> = rows.filter(inside).map(|i| alike(pixel(image, i), sprite.color)).collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Compares how many pixels are half covered with a clean drawing of the same sprite.
fn sharpness(seen: &Foreground, sprite: &Sprite) -> f64 {
    let half = |cover: f32| f64::from(cover * (1.0 - cover));
    let there: f64 = seen.cover.iter().map(|&c| half(c)).sum();
    // edges that fall between pixels have no half covered ones
    let (mut clean, least) = (0.0f64, 0.9 * sprite.radius);
    for row in sprite.span(sprite.y) {
        clean += sprite.span(sprite.x).map(|column| half(sprite.cover(column, row))).sum::<f64>();
    }
    (1.0 - (there / clean.max(least) - 1.3) / 2.5).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{
        caption::{Background, Color, EXAMPLE, Size},
        distort::blur,
        shapes::{Draws, draw, shapes},
    };
    use amscript_tensor::Rng;

    fn example() -> Scene {
        Scene::parse(EXAMPLE).unwrap()
    }

    fn drawn(scene: &Scene) -> Vec<f32> {
        draw(&scene.sprites(&mut Draws(&[0.5; 6])), scene.background.rgb())
    }

    /// Score of an image of `change(example)` against the example's own caption.
    fn after(change: impl FnOnce(&mut Scene)) -> f64 {
        let mut scene = example();
        change(&mut scene);
        read_one(&drawn(&scene), &example()).score()
    }

    #[test]
    fn clean_drawings_score_one() {
        let (images, captions) = shapes(300, &mut Rng::new(11)).unwrap();
        for (reading, caption) in read(&images, &captions).unwrap().iter().zip(&captions) {
            assert!(reading.score() > 0.97, "{caption}: {reading:?}");
        }
    }

    #[test]
    fn each_mistake_is_seen_and_ordered() {
        let clean = after(|_| ());
        let size = after(|s| s.objects[1].size = Size::Small);
        let color = after(|s| s.objects[1].color = Color::Green);
        let near = after(|s| s.objects[0].color = Color::Orange);
        let shape = after(|s| s.objects[1].shape = Shape::Circle);
        let missing = after(|s| s.objects.truncate(1));
        let ground = after(|s| s.background = Background::Sky);
        let exchanged = after(|s| {
            let [a, b] = s.objects.as_mut_slice() else { unreachable!() };
            std::mem::swap(&mut a.place, &mut b.place);
        });
        let blank = read_one(&draw(&[], example().background.rgb()), &example()).score();
        let wrong = read_one(&draw(&[], Background::Charcoal.rgb()), &example()).score();
        let ranking = [clean, size, color, missing, exchanged, blank, wrong];
        assert!(ranking.windows(2).all(|w| w[0] > w[1] + 0.02), "{ranking:?}");
        for (name, score) in [("near colour", near), ("shape", shape), ("ground", ground)] {
            assert!(score < clean - 0.25 && score > exchanged, "{name}: {score}");
        }
        assert!(clean > 0.99 && blank < 0.11 && wrong < 0.01, "{ranking:?}");
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
            let mut sprites = example().sprites(&mut Draws(&[0.5; 6]));
            sprites[1].y += by;
            read_one(&draw(&sprites, example().background.rgb()), &example()).score()
        };
        for scores in [
            [0.3, 0.8, 1.2, 2.0, 3.0].map(blurred),
            [0.01, 0.03, 0.06, 0.1, 0.2].map(noisy),
            [0.0, 4.0, 6.0, 8.0, 11.0].map(moved),
        ] {
            assert!(scores[0] > 0.95 && scores.windows(2).all(|w| w[0] > w[1] + 0.01), "{scores:?}");
        }
    }

    #[test]
    fn larger_images_are_read_at_their_small_size() {
        let captions = [EXAMPLE.to_string()];
        let drawn = Tensor::from_vec(drawn(&example()), (1, 3, SIDE, SIDE), &Device::Cpu).unwrap();
        let double = amscript_tensor::op::upsample_nearest2x;
        let large = double(&double(&drawn).unwrap()).unwrap();
        let [small, large] = [&drawn, &large].map(|x| oracle(x, &captions).unwrap().to_vec1::<f32>().unwrap()[0]);
        assert!(small > 0.99 && large > 0.95, "{small} {large}"); // edges come back a little softer
    }

    #[test]
    fn other_images_are_refused() {
        let images = Tensor::zeros((1, 3, 32, 64), DType::F32, &Device::Cpu).unwrap();
        assert!(oracle(&images, &[EXAMPLE.into()]).unwrap_err().message.contains("got [1, 3, 32, 64]"));
        let images = Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        assert!(oracle(&images, &["a cat".into()]).unwrap_err().message.contains("a cat"));
        let nan = (images / 0.0).unwrap();
        assert!(oracle(&nan, &[EXAMPLE.into()]).unwrap().to_vec1::<f32>().unwrap()[0] < 0.2);
    }
}
