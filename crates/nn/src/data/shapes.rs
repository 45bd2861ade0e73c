//! The shapes world: scenes of one or two flat objects, 64x64 RGB, drawn at 128 and averaged down.

use super::caption::{Background, Color, LAYOUTS, Object, Place, Scene, Shape, Size};
use amscript_base::error::Result;
use amscript_base::memory;
use amscript_tensor::{Device, Rng, Tensor, interrupt};
use rayon::prelude::*;
use std::f64::consts::{PI, TAU};

/// Side of an image in pixels.
pub const SIDE: usize = 64;
/// Numbers in one image `[3, 64, 64]`.
pub const NUMBERS: usize = 3 * SIDE * SIDE;

pub type Rgb = [f32; 3];

const fn rgb(r: u8, g: u8, b: u8) -> Rgb {
    [r as f32 / 255.0, g as f32 / 255.0, b as f32 / 255.0]
}

impl Color {
    pub fn rgb(self) -> Rgb {
        match self {
            Color::Red => rgb(214, 38, 42),
            Color::Orange => rgb(246, 138, 24),
            Color::Yellow => rgb(250, 218, 40),
            Color::Green => rgb(38, 150, 60),
            Color::Cyan => rgb(24, 188, 196),
            Color::Blue => rgb(40, 72, 210),
            Color::Purple => rgb(132, 46, 178),
            Color::Pink => rgb(248, 128, 184),
        }
    }
}

impl Background {
    pub fn rgb(self) -> Rgb {
        match self {
            Background::Cream => rgb(248, 238, 212),
            Background::Sky => rgb(186, 218, 244),
            Background::Gray => rgb(142, 142, 146),
            Background::Charcoal => rgb(36, 36, 44),
        }
    }
}

impl Size {
    /// Middle radius in pixels; drawn scenes vary by [`RADIUS_JITTER`].
    pub fn radius(self) -> f64 {
        match self {
            Size::Small => 6.5,
            Size::Large => 12.0,
        }
    }
}

impl Place {
    /// Middle of the object `(x, y)` in pixels; drawn scenes vary by [`PLACE_JITTER`].
    pub fn center(self) -> (f64, f64) {
        match self {
            Place::Center => (32.0, 32.0),
            Place::Left => (17.0, 32.0),
            Place::Right => (47.0, 32.0),
            Place::Top => (32.0, 17.0),
            Place::Bottom => (32.0, 47.0),
        }
    }
}

/// Largest shift in pixels along each axis.
pub const PLACE_JITTER: f64 = 1.5;
/// Largest relative change of the radius.
pub const RADIUS_JITTER: f64 = 0.06;
/// Hole of a ring over its radius.
const HOLE: f64 = 0.52;

/// Half side of a square, which has about the area of its circle.
const HALF_SIDE: f64 = 0.886;

impl Shape {
    /// Area at radius 1.
    pub fn area(self) -> f64 {
        match self {
            Shape::Circle => PI,
            Shape::Square => 4.0 * HALF_SIDE * HALF_SIDE,
            Shape::Ring => PI * (1.0 - HOLE * HOLE),
            Shape::Triangle => 1.05 * 1.9,
        }
    }
}

/// What can be drawn: the four shapes, and damaged ones that no caption asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outline {
    Whole(Shape),
    /// A square whose corners are rounded by that share of its half side.
    Rounded(f64),
    /// A ring open over that angle, from `.0` to `.1` radians.
    Open(f64, f64),
    /// A triangle whose top is cut off at that share of its height.
    Blunt(f64),
}

impl Outline {
    /// Signed distance to the outline in radii, negative inside, for a point `(x, y)` in radii from the middle (y down).
    pub fn distance(self, x: f64, y: f64) -> f64 {
        match self {
            Outline::Whole(Shape::Circle) => (x * x + y * y).sqrt() - 1.0,
            Outline::Whole(Shape::Square) => x.abs().max(y.abs()) - HALF_SIDE,
            Outline::Whole(Shape::Ring) => {
                let r = (x * x + y * y).sqrt();
                (r - 1.0).max(HOLE - r)
            }
            // corners (0, -0.95), (-1.05, 0.95), (1.05, 0.95); (0.87524, -0.48369) is the unit normal of the right side
            Outline::Whole(Shape::Triangle) => (y - 0.95).max(0.87524 * x.abs() - 0.48369 * (y + 0.95)),
            Outline::Blunt(share) => Outline::Whole(Shape::Triangle).distance(x, y).max(1.9 * share - 0.95 - y),
            Outline::Rounded(share) => {
                let (corner, flat) = (HALF_SIDE * share, HALF_SIDE * (1.0 - share));
                let (dx, dy) = (x.abs() - flat, y.abs() - flat);
                dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - corner
            }
            Outline::Open(from, to) => {
                let angle = y.atan2(x).rem_euclid(TAU);
                let ring = Outline::Whole(Shape::Ring).distance(x, y);
                if angle > from && angle < to { ring.max(1.0) } else { ring }
            }
        }
    }
}

/// An outline at a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sprite {
    pub outline: Outline,
    pub x: f64,
    pub y: f64,
    pub radius: f64,
    pub color: Rgb,
}

impl Sprite {
    /// Share of the pixel `(column, row)` that the sprite covers: the mean over the 2x2 pixels at 128, each with a soft edge.
    pub fn cover(&self, column: usize, row: usize) -> f32 {
        let mut sum = 0.0;
        for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
            let (x, y) = (column as f64 + dx - self.x, row as f64 + dy - self.y);
            let pixels_at_128 = 2.0 * self.radius * self.outline.distance(x / self.radius, y / self.radius);
            sum += (0.5 - pixels_at_128).clamp(0.0, 1.0);
        }
        (sum / 4.0) as f32
    }

    /// Rows or columns that the sprite can touch around `middle`.
    pub fn span(&self, middle: f64) -> std::ops::Range<usize> {
        let reach = 1.06 * self.radius + 1.0;
        (middle - reach).max(0.0) as usize..((middle + reach).ceil().max(0.0) as usize).min(SIDE)
    }
}

/// Draws sprites over a background into `[3, 64, 64]`, later ones on top.
pub fn draw(sprites: &[Sprite], background: Rgb) -> Vec<f32> {
    let mut image: Vec<f32> = background.iter().flat_map(|&v| [v; SIDE * SIDE]).collect();
    for sprite in sprites {
        for row in sprite.span(sprite.y) {
            for column in sprite.span(sprite.x) {
                let cover = sprite.cover(column, row);
                for (channel, &ink) in sprite.color.iter().enumerate() {
                    let pixel = &mut image[(channel * SIDE + row) * SIDE + column];
                    *pixel += cover * (ink - *pixel);
                }
            }
        }
    }
    image
}

/// Uniform numbers in `[0, 1)` handed out one by one.
pub struct Draws<'a>(pub &'a [f64]);

impl Draws<'_> {
    pub fn unit(&mut self) -> f64 {
        let (first, rest) = self.0.split_first().unwrap_or((&0.5, &[]));
        self.0 = rest;
        *first
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

impl Scene {
    /// A scene at random: one or two objects equally often, then every description equally often.
    fn random(draws: &mut Draws) -> Scene {
        let places = if draws.unit() < 0.5 { LAYOUTS[0] } else { LAYOUTS[1 + draws.below(2)] };
        let background = draws.pick(Background::ALL);
        let objects = places.iter().map(|&place| Object {
            size: draws.pick(Size::ALL),
            color: draws.pick(Color::ALL),
            shape: draws.pick(Shape::ALL),
            place,
        });
        Scene { objects: objects.collect(), background }
    }

    /// The sprites of the scene, each with a small shift and change of size.
    pub fn sprites(&self, draws: &mut Draws) -> Vec<Sprite> {
        self.objects.iter().map(|o| o.sprite(draws)).collect()
    }
}

impl Object {
    /// Where the caption puts it, with no jitter.
    pub fn middle(&self) -> Sprite {
        let (x, y) = self.place.center();
        Sprite { outline: Outline::Whole(self.shape), x, y, radius: self.size.radius(), color: self.color.rgb() }
    }

    fn sprite(&self, draws: &mut Draws) -> Sprite {
        let middle = self.middle();
        Sprite {
            x: middle.x + draws.between(-PLACE_JITTER, PLACE_JITTER),
            y: middle.y + draws.between(-PLACE_JITTER, PLACE_JITTER),
            radius: middle.radius * (1.0 + draws.between(-RADIUS_JITTER, RADIUS_JITTER)),
            ..middle
        }
    }
}

/// Numbers drawn for a random description, and for placing its sprites.
const SCENE_DRAWS: usize = 9;
const PLACE_DRAWS: usize = 6;

/// `n` random scenes.
pub fn scenes(n: usize, rng: &mut Rng) -> Vec<Scene> {
    rng.uniforms(n * SCENE_DRAWS).chunks(SCENE_DRAWS).map(|d| Scene::random(&mut Draws(d))).collect()
}

/// Draws each scene with fresh jitter: images `[n, 3, 64, 64]` in `[0, 1]`.
pub fn render(scenes: &[Scene], rng: &mut Rng) -> Result<Tensor> {
    let numbers = rng.uniforms(scenes.len() * PLACE_DRAWS);
    images(scenes.len(), |i| {
        let mut draws = Draws(&numbers[i * PLACE_DRAWS..(i + 1) * PLACE_DRAWS]);
        draw(&scenes[i].sprites(&mut draws), scenes[i].background.rgb())
    })
}

/// Images made at once.
const PIECE: usize = 1024;

/// Makes `n` images in parallel and stacks them.
pub fn images(n: usize, make: impl Fn(usize) -> Vec<f32> + Sync + Send) -> Result<Tensor> {
    let mut all = Vec::with_capacity(n * 3 * SIDE * SIDE);
    for first in (0..n).step_by(PIECE) {
        interrupt::check()?;
        all.par_extend((first..n.min(first + PIECE)).into_par_iter().flat_map_iter(&make));
    }
    Tensor::from_vec(all, (n, 3, SIDE, SIDE), &Device::Cpu)
}

/// `n` random scenes: images `[n, 3, 64, 64]` in `[0, 1]` and their captions.
pub fn shapes(n: usize, rng: &mut Rng) -> Result<(Tensor, Vec<String>)> {
    memory::room(memory::bytes(&[n, 3, SIDE, SIDE], 4), || format!("{n} drawings"))?;
    let scenes = scenes(n, rng);
    Ok((render(&scenes, rng)?, scenes.iter().map(Scene::caption).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(outline: Outline, radius: f64) -> f64 {
        let sprite = Sprite { outline, x: 31.3, y: 32.6, radius, color: [1.0; 3] };
        draw(&[sprite], [0.0; 3])[..SIDE * SIDE].iter().map(|&v| f64::from(v)).sum()
    }

    #[test]
    fn areas_match_their_formulas() {
        for &shape in Shape::ALL {
            for radius in [7.0, 12.5] {
                let (got, want) = (area(Outline::Whole(shape), radius), shape.area() * radius * radius);
                assert!((got / want - 1.0).abs() < 0.01, "{shape:?} {radius}: {got} {want}");
            }
        }
        assert!((area(Outline::Rounded(0.0), 12.5) - area(Outline::Whole(Shape::Square), 12.5)).abs() < 1.0);
        assert!((area(Outline::Rounded(1.0), 12.5) / (PI * (HALF_SIDE * 12.5).powi(2)) - 1.0).abs() < 0.01);
        let top = area(Outline::Blunt(0.5), 12.5) / area(Outline::Whole(Shape::Triangle), 12.5);
        assert!((top - 0.75).abs() < 0.01, "{top}");
        let half = area(Outline::Open(0.0, PI), 12.5) / area(Outline::Whole(Shape::Ring), 12.5);
        assert!((half - 0.5).abs() < 0.03, "{half}");
    }

    #[test]
    fn objects_stay_inside_and_apart() {
        let almost = 1.0 - 1e-9;
        let mask = |s: Sprite| draw(&[Sprite { color: [1.0; 3], ..s }], [0.0; 3])[..SIDE * SIDE].to_vec();
        for scene in Scene::all(2).iter().step_by(101) {
            for (a, b) in [(0.0, 0.0), (almost, almost), (almost, 0.0)] {
                let sprites = scene.sprites(&mut Draws(&[a, a, almost, b, b, almost]));
                let [left, right] = [mask(sprites[0]), mask(sprites[1])];
                let frame = (0..SIDE).flat_map(|i| [i, (SIDE - 1) * SIDE + i, i * SIDE, i * SIDE + SIDE - 1]);
                assert!(frame.clone().all(|i| left[i] + right[i] == 0.0), "{scene:?} touches the frame");
                assert!(left.iter().zip(&right).all(|(l, r)| l + r <= 1.01), "{scene:?} overlaps");
            }
        }
    }

    #[test]
    fn same_seed_same_scenes() {
        let (a, names) = shapes(8, &mut Rng::new(3)).unwrap();
        let (b, again) = shapes(8, &mut Rng::new(3)).unwrap();
        assert_eq!(names, again);
        let bytes = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bytes(&a), bytes(&b));
        assert_ne!(bytes(&a), bytes(&shapes(8, &mut Rng::new(4)).unwrap().0));
        assert!(bytes(&a).iter().all(|v| (0.0..=1.0).contains(v)));
    }

    #[test]
    fn half_of_the_scenes_have_two_objects() {
        let two = scenes(2000, &mut Rng::new(5)).iter().filter(|s| s.objects.len() == 2).count();
        assert!((900..1100).contains(&two), "{two}");
    }
}
