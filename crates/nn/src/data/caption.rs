//! Descriptions of scenes and their captions: "three small red stars left of a large blue ring on cream".
//!
//! A caption parses back into its description, so whoever holds the caption knows the truth about the image.

use amscript_base::{bail, error::Result};
use sha2::{Digest, Sha256};

/// An enum whose values are words of a caption.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($value),+ }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$value),+];

            pub fn word(self) -> &'static str {
                match self { $($name::$value => $word),+ }
            }

            fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.word() == word)
            }
        }
    };
}

words!(
    /// The outline of an object.
    Shape {
        Circle = "circle", Square = "square", Triangle = "triangle", Ring = "ring", Star = "star", Heart = "heart",
    }
);
words!(
    /// The colour of an object.
    Color {
        Red = "red", Orange = "orange", Yellow = "yellow", Lime = "lime", Green = "green",
        Cyan = "cyan", Blue = "blue", Purple = "purple", Pink = "pink", Brown = "brown",
    }
);
words!(
    Size { Small = "small", Large = "large" }
);
words!(
    /// How many objects a group has.
    Count { One = "a", Two = "two", Three = "three" }
);
words!(
    /// Where the first of two groups is, seen from the second.
    Relation { LeftOf = "left of", Above = "above" }
);
words!(
    Background { Cream = "cream", Sky = "sky", Gray = "gray", Charcoal = "charcoal" }
);

/// Objects that look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub count: Count,
    pub size: Size,
    pub color: Color,
    pub shape: Shape,
}

/// What a caption says: one group of objects, or two with a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    pub first: Group,
    pub second: Option<(Relation, Group)>,
    pub background: Background,
}

/// Shown where a caption does not parse.
pub const EXAMPLE: &str = "three small red stars left of a large blue ring on cream";

impl Scene {
    pub fn caption(&self) -> String {
        let second = self.second.map(|(relation, group)| format!(" {} {}", relation.word(), group.caption()));
        format!("{}{} on {}", self.first.caption(), second.unwrap_or_default(), self.background.word())
    }

    pub fn groups(&self) -> impl Iterator<Item = Group> {
        [self.first].into_iter().chain(self.second.map(|(_, group)| group))
    }

    pub fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        [&mut self.first].into_iter().chain(self.second.as_mut().map(|(_, group)| group))
    }

    pub fn parse(caption: &str) -> Result<Scene> {
        match Self::read(caption) {
            Some(scene) => Ok(scene),
            None => {
                bail!(Value, "caption: must describe a scene of the shapes world, got `{caption}`"; hint: "write it like `{EXAMPLE}`")
            }
        }
    }

    fn read(caption: &str) -> Option<Scene> {
        let (objects, background) = caption.trim().rsplit_once(" on ")?;
        let background = Background::parse(background.trim())?;
        let words: Vec<&str> = objects.split_whitespace().collect();
        let (first, rest) = words.split_at_checked(4)?;
        let second = match rest.len().checked_sub(4) {
            None if rest.is_empty() => None,
            None => return None,
            Some(at) => Some((Relation::parse(&rest[..at].join(" "))?, Group::read(&rest[at..])?)),
        };
        Some(Scene { first: Group::read(first)?, second, background })
    }

    /// To which part of the prompts it belongs, by a hash of its caption.
    pub fn part(&self) -> Part {
        match Sha256::digest(self.caption())[0] {
            0..32 => Part::Test,
            32..64 => Part::Validation,
            _ => Part::Train,
        }
    }

    /// Every scene with one group.
    pub fn all() -> Vec<Scene> {
        let of = |first| Background::ALL.iter().map(move |&background| Scene { first, second: None, background });
        Group::all().into_iter().flat_map(of).collect()
    }
}

/// A part of all prompts: three quarters to train on, an eighth to choose settings by, an eighth held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Train,
    Validation,
    Test,
}

impl Group {
    fn caption(&self) -> String {
        let plural = if self.count == Count::One { "" } else { "s" };
        format!("{} {} {} {}{plural}", self.count.word(), self.size.word(), self.color.word(), self.shape.word())
    }

    fn read(words: &[&str]) -> Option<Group> {
        let [count, size, color, shape] = words else { return None };
        let count = Count::parse(count)?;
        let shape = if count == Count::One { shape } else { shape.strip_suffix('s')? };
        Some(Group { count, size: Size::parse(size)?, color: Color::parse(color)?, shape: Shape::parse(shape)? })
    }

    fn all() -> Vec<Group> {
        let mut out = Vec::new();
        for &count in Count::ALL {
            for &size in Size::ALL {
                for &color in Color::ALL {
                    out.extend(Shape::ALL.iter().map(|&shape| Group { count, size, color, shape }));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caption_parses_back() {
        let pairs = Scene::all().into_iter().step_by(7).zip(Group::all()).map(|(mut scene, group)| {
            scene.second = Some((Relation::ALL[group.count as usize % 2], group));
            scene
        });
        for scene in Scene::all().into_iter().chain(pairs) {
            assert_eq!(Scene::parse(&scene.caption()).unwrap(), scene);
        }
        assert_eq!(Scene::parse(EXAMPLE).unwrap().caption(), EXAMPLE);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "a cat",
            "a small red ring",
            "a small red ring on mud",
            "a small red rings on cream",
            "two small red ring on cream",
            "a small red ring left of on cream",
            "a small red ring left of a small red ring above a small red ring on cream",
        ] {
            assert!(Scene::parse(text).unwrap_err().message.contains(text), "{text}");
        }
    }

    #[test]
    fn an_eighth_each_is_held_out_and_for_validation() {
        let all = Scene::all();
        assert_eq!(all.len(), 1440);
        for part in [Part::Validation, Part::Test] {
            let share = all.iter().filter(|s| s.part() == part).count() as f64 / all.len() as f64;
            assert!((share - 0.125).abs() < 0.03, "{part:?} {share}");
        }
    }
}
