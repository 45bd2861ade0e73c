//! The shapes world: scenes of up to six flat objects, 64x64 RGB, drawn at 128 and averaged down.

use super::caption::{Background, Color, Count, Group, Relation, Scene, Shape, Size};
use amscript_base::error::Result;
use amscript_base::memory;
use amscript_tensor::{Device, Rng, Tensor, interrupt};
use rayon::prelude::*;
use std::{collections::HashSet, f64::consts::PI};

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
            Color::Lime => rgb(160, 220, 70),
            Color::Green => rgb(38, 150, 60),
            Color::Cyan => rgb(24, 188, 196),
            Color::Blue => rgb(40, 72, 210),
            Color::Purple => rgb(132, 46, 178),
            Color::Pink => rgb(248, 128, 184),
            Color::Brown => rgb(128, 78, 36),
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
    /// Radius in pixels where three objects share half of the image; fewer have more room.
    fn radius(self) -> f64 {
        match self {
            Size::Small => 5.2,
            Size::Large => 8.2,
        }
    }
}

impl Count {
    pub fn number(self) -> usize {
        self as usize + 1
    }
}

/// Largest shift in pixels along each axis.
pub const PLACE_JITTER: f64 = 0.8;
/// Largest relative change of the radius.
pub const RADIUS_JITTER: f64 = 0.04;
/// Hole of a ring over its radius.
const HOLE: f64 = 0.52;

/// Half side of a square, which has about the area of its circle.
const HALF_SIDE: f64 = 0.886;
/// Outer and inner corners of a star.
const STAR: (f64, f64) = (1.15, 0.52);
/// Right lobe of a heart `(x, y, radius)`, and its tip's `y`.
const LOBE: (f64, f64, f64) = (0.48, -0.32, 0.52);
const TIP: f64 = 0.98;

impl Shape {
    /// Area at radius 1.
    pub fn area(self) -> f64 {
        match self {
            Shape::Circle => PI,
            Shape::Square => 4.0 * HALF_SIDE * HALF_SIDE,
            Shape::Ring => PI * (1.0 - HOLE * HOLE),
            Shape::Triangle => 1.05 * 1.9,
            Shape::Star => 5.0 * STAR.0 * STAR.1 * (PI / 5.0).sin(),
            Shape::Heart => 2.33,
        }
    }

    /// How far the centroid lies below the middle, in radii.
    pub fn sag(self) -> f64 {
        match self {
            Shape::Triangle => 0.95 / 3.0,
            Shape::Heart => -0.116,
            _ => 0.0,
        }
    }

    /// Signed distance to the outline in radii, negative inside, for a point `(x, y)` in radii from the middle (y down).
    pub fn distance(self, x: f64, y: f64) -> f64 {
        match self {
            Shape::Circle => x.hypot(y) - 1.0,
            Shape::Square => x.abs().max(y.abs()) - HALF_SIDE,
            Shape::Ring => {
                let r = x.hypot(y);
                (r - 1.0).max(HOLE - r)
            }
            // corners (0, -0.95), (-1.05, 0.95), (1.05, 0.95); (0.87524, -0.48369) is the unit normal of the right side
            Shape::Triangle => (y - 0.95).max(0.87524 * x.abs() - 0.48369 * (y + 0.95)),
            Shape::Star => {
                // folded onto half an arm: from the tip straight up to the corner between two arms
                let (r, fold) = (x.hypot(y), PI / 5.0);
                let angle = ((x.atan2(-y) + fold).rem_euclid(2.0 * fold) - fold).abs();
                let (across, along) = (STAR.1 * fold.sin(), STAR.0 - STAR.1 * fold.cos());
                (r * angle.sin() * along + (r * angle.cos() - STAR.0) * across) / across.hypot(along)
            }
            Shape::Heart => {
                let (dx, dy) = (x.abs() - LOBE.0, y - LOBE.1);
                // the side from the tip to where it touches the lobe, and the line from there to the lobe's middle
                let side = 0.7396 * x.abs() + 0.6731 * (y - TIP);
                let below = side.max(0.6731 * dx - 0.7396 * dy).max(-dy);
                (dx.hypot(dy) - LOBE.2).min(below)
            }
        }
    }
}

/// An object at a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sprite {
    pub shape: Shape,
    pub x: f64,
    pub y: f64,
    pub radius: f64,
    pub color: Rgb,
    /// How far the outline is torn in and out, in pixels, and where the tears begin.
    pub ragged: (f64, f64),
}

impl Sprite {
    /// Share of the pixel `(column, row)` that the sprite covers: the mean over the 2x2 pixels at 128, each with a soft edge.
    pub fn cover(&self, column: usize, row: usize) -> f32 {
        let mut sum = 0.0;
        for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
            let away = self.away(column as f64 + dx, row as f64 + dy);
            sum += (0.5 - 2.0 * away).clamp(0.0, 1.0);
        }
        (sum / 4.0) as f32
    }

    /// Signed distance in pixels from a point to the outline, negative inside.
    pub fn away(&self, x: f64, y: f64) -> f64 {
        let (x, y) = (x - self.x, y - self.y);
        let smooth = self.radius * self.shape.distance(x / self.radius, y / self.radius);
        if self.ragged.0 == 0.0 {
            return smooth;
        }
        // about one tear in five pixels of the outline, of two lengths
        let angle = y.atan2(x) + self.ragged.1;
        let tears = self.radius.round();
        smooth + self.ragged.0 * 0.6 * ((tears * angle).sin() + (1.0 + (1.6 * tears).round() * angle).sin())
    }

    /// Rows or columns that the sprite can touch around `middle`.
    pub fn span(&self, middle: f64) -> std::ops::Range<usize> {
        let reach = 1.16 * self.radius + 1.0 + 1.2 * self.ragged.0;
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
    /// A scene at random: one or two groups equally often, then every description equally often.
    fn random(draws: &mut Draws) -> Scene {
        let relation = (draws.unit() < 0.5).then(|| draws.pick(Relation::ALL));
        let background = draws.pick(Background::ALL);
        let mut group = || Group {
            count: draws.pick(Count::ALL),
            size: draws.pick(Size::ALL),
            color: draws.pick(Color::ALL),
            shape: draws.pick(Shape::ALL),
        };
        Scene { first: group(), second: relation.map(|r| (r, group())), background }
    }

    /// The groups with the part of the image that each has for itself.
    pub fn areas(&self) -> Vec<(Group, Area)> {
        match self.second {
            None => vec![(self.first, Area::Whole)],
            Some((Relation::LeftOf, second)) => vec![(self.first, Area::Left), (second, Area::Right)],
            Some((Relation::Above, second)) => vec![(self.first, Area::Top), (second, Area::Bottom)],
        }
    }

    /// The sprites of each group, each with a small shift and change of size.
    pub fn sprites(&self, draws: &mut Draws) -> Vec<Vec<Sprite>> {
        let jittered = |(group, area): (Group, Area)| {
            let middles = area.middles(group).into_iter();
            middles
                .map(|middle| Sprite {
                    x: middle.x + draws.between(-PLACE_JITTER, PLACE_JITTER),
                    y: middle.y + draws.between(-PLACE_JITTER, PLACE_JITTER),
                    radius: middle.radius * (1.0 + draws.between(-RADIUS_JITTER, RADIUS_JITTER)),
                    ..middle
                })
                .collect()
        };
        self.areas().into_iter().map(jittered).collect()
    }
}

/// The part of an image that a group has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    Whole,
    Left,
    Right,
    Top,
    Bottom,
}

impl Area {
    /// Whether the pixel `(column, row)` belongs to it.
    pub fn has(self, column: usize, row: usize) -> bool {
        match self {
            Area::Whole => true,
            Area::Left => column < SIDE / 2,
            Area::Right => column >= SIDE / 2,
            Area::Top => row < SIDE / 2,
            Area::Bottom => row >= SIDE / 2,
        }
    }

    /// Where the group's objects are drawn, with no jitter.
    pub fn middles(self, group: Group) -> Vec<Sprite> {
        let n = group.count.number();
        let (places, room) = match (self, n) {
            (Area::Whole, 1) => (vec![(32.0, 32.0)], 1.6),
            (Area::Whole, 2) => (vec![(17.5, 32.0), (46.5, 32.0)], 1.35),
            (Area::Whole, _) => (vec![(18.0, 19.0), (46.0, 19.0), (32.0, 46.0)], 1.35),
            (side, _) => {
                let (along, room) = [(&[32.0][..], 1.4), (&[18.0, 46.0], 1.2), (&[12.2, 32.0, 51.8], 1.0)][n - 1];
                let across = if matches!(side, Area::Left | Area::Top) { 16.5 } else { 47.5 };
                let upright = matches!(side, Area::Left | Area::Right);
                (along.iter().map(|&v| if upright { (across, v) } else { (v, across) }).collect(), room)
            }
        };
        let at = |(x, y)| Sprite {
            shape: group.shape,
            x,
            y,
            radius: group.size.radius() * room,
            color: group.color.rgb(),
            ragged: (0.0, 0.0),
        };
        places.into_iter().map(at).collect()
    }
}

/// Numbers drawn for a random description, and for placing its sprites.
const SCENE_DRAWS: usize = 11;
const PLACE_DRAWS: usize = 18;

/// `n` random scenes.
pub fn scenes(n: usize, rng: &mut Rng) -> Vec<Scene> {
    rng.uniforms(n * SCENE_DRAWS).chunks(SCENE_DRAWS).map(|d| Scene::random(&mut Draws(d))).collect()
}

/// `n` different scenes with two groups.
pub fn pairs(n: usize, rng: &mut Rng) -> Vec<Scene> {
    let mut seen = HashSet::new();
    let mut out = Vec::with_capacity(n);
    while out.len() < n {
        let new = |s: &Scene| s.second.is_some() && seen.insert(s.caption());
        out.extend(scenes(1024, rng).into_iter().filter(new).take(n - out.len()));
    }
    out
}

/// Draws each scene with fresh jitter: images `[n, 3, 64, 64]` in `[0, 1]`.
pub fn render(scenes: &[Scene], rng: &mut Rng) -> Result<Tensor> {
    let numbers = rng.uniforms(scenes.len() * PLACE_DRAWS);
    images(scenes.len(), |i| {
        let mut draws = Draws(&numbers[i * PLACE_DRAWS..(i + 1) * PLACE_DRAWS]);
        draw(&scenes[i].sprites(&mut draws).concat(), scenes[i].background.rgb())
    })
}

/// Images made at once.
const PIECE: usize = 1024;

fn room(n: usize) -> Result<()> {
    memory::room(memory::bytes(&[n, 3, SIDE, SIDE], 4), || format!("{n} drawings"))
}

/// Makes `n` images in parallel and stacks them.
pub fn images(n: usize, make: impl Fn(usize) -> Vec<f32> + Sync + Send) -> Result<Tensor> {
    room(n)?;
    let mut all = Vec::with_capacity(n * 3 * SIDE * SIDE);
    for first in (0..n).step_by(PIECE) {
        interrupt::check()?;
        all.par_extend((first..n.min(first + PIECE)).into_par_iter().flat_map_iter(&make));
    }
    Tensor::from_vec(all, (n, 3, SIDE, SIDE), &Device::Cpu)
}

/// `n` random scenes: images `[n, 3, 64, 64]` in `[0, 1]` and their captions.
pub fn shapes(n: usize, rng: &mut Rng) -> Result<(Tensor, Vec<String>)> {
    room(n)?;
    let scenes = scenes(n, rng);
    Ok((render(&scenes, rng)?, scenes.iter().map(Scene::caption).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sprite(shape: Shape, radius: f64) -> Sprite {
        Sprite { shape, x: 31.3, y: 32.6, radius, color: [1.0; 3], ragged: (0.0, 0.0) }
    }

    fn mask(sprite: Sprite) -> Vec<f32> {
        draw(&[Sprite { color: [1.0; 3], ..sprite }], [0.0; 3])[..SIDE * SIDE].to_vec()
    }

    #[test]
    fn areas_and_centroids_match_their_formulas() {
        for &shape in Shape::ALL {
            for radius in [7.0, 12.5] {
                let cover = mask(sprite(shape, radius));
                let area: f64 = cover.iter().map(|&v| f64::from(v)).sum();
                let row: f64 = cover.iter().enumerate().map(|(i, &v)| f64::from(v) * ((i / SIDE) as f64 + 0.5)).sum();
                let want = shape.area() * radius * radius;
                assert!((area / want - 1.0).abs() < 0.01, "{shape:?} {radius}: {area} {want}");
                let sag = (row / area - 32.6) / radius;
                assert!((sag - shape.sag()).abs() < 0.01, "{shape:?} {radius}: {sag}");
            }
        }
    }

    #[test]
    fn torn_edges_keep_the_area() {
        let [whole, torn] = [0.0, 1.5].map(|by| mask(Sprite { ragged: (by, 0.3), ..sprite(Shape::Circle, 9.0) }));
        let [a, b] = [&whole, &torn].map(|m| m.iter().sum::<f32>());
        assert!((a / b - 1.0).abs() < 0.05, "{a} {b}");
        let moved: f32 = whole.iter().zip(&torn).map(|(a, b)| (a - b).abs()).sum();
        assert!(moved > 0.1 * a, "{moved} of {a}");
    }

    #[test]
    fn objects_stay_inside_and_apart() {
        let almost = 1.0 - 1e-9;
        for scene in scenes(400, &mut Rng::new(2)) {
            for numbers in [
                [0.0; PLACE_DRAWS],
                [almost; PLACE_DRAWS],
                std::array::from_fn(|i| [0.0, almost, almost][(i * 5 / 3) % 3]),
            ] {
                let masks: Vec<_> = scene.sprites(&mut Draws(&numbers)).concat().into_iter().map(mask).collect();
                let all: Vec<f32> = (0..SIDE * SIDE).map(|i| masks.iter().map(|m| m[i]).sum()).collect();
                let frame = (0..SIDE).flat_map(|i| [i, (SIDE - 1) * SIDE + i, i * SIDE, i * SIDE + SIDE - 1]);
                assert!(frame.clone().all(|i| all[i] == 0.0), "{scene:?} touches the frame");
                assert!(all.iter().all(|v| *v <= 1.01), "{scene:?} overlaps");
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
    fn half_of_the_scenes_have_two_groups() {
        let two = scenes(2000, &mut Rng::new(5)).iter().filter(|s| s.second.is_some()).count();
        assert!((900..1100).contains(&two), "{two}");
    }
}
