//! Descriptions of scenes and their captions: "a small red ring at the left and a large blue square at the right on cream".
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
    Shape { Circle = "circle", Square = "square", Triangle = "triangle", Ring = "ring" }
);
words!(
    /// The colour of an object.
    Color {
        Red = "red", Orange = "orange", Yellow = "yellow", Green = "green",
        Cyan = "cyan", Blue = "blue", Purple = "purple", Pink = "pink",
    }
);
words!(
    Size { Small = "small", Large = "large" }
);
words!(
    Place { Center = "center", Left = "left", Right = "right", Top = "top", Bottom = "bottom" }
);
words!(
    Background { Cream = "cream", Sky = "sky", Gray = "gray", Charcoal = "charcoal" }
);

/// One described object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    pub size: Size,
    pub color: Color,
    pub shape: Shape,
    pub place: Place,
}

/// What a caption says: one object at the center, or two side by side or one above the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    pub objects: Vec<Object>,
    pub background: Background,
}

/// The ways to place objects.
pub const LAYOUTS: [&[Place]; 3] = [&[Place::Center], &[Place::Left, Place::Right], &[Place::Top, Place::Bottom]];

/// Shown where a caption does not parse.
pub const EXAMPLE: &str = "a small red ring at the left and a large blue square at the right on cream";

impl Scene {
    pub fn caption(&self) -> String {
        let objects: Vec<String> = self.objects.iter().map(Object::caption).collect();
        format!("{} on {}", objects.join(" and "), self.background.word())
    }

    /// Reads a caption; the objects come back in the order left, right or top, bottom.
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
        let mut objects = objects.split(" and ").map(Object::read).collect::<Option<Vec<_>>>()?;
        objects.sort_by_key(|o| o.place as usize);
        let places: Vec<Place> = objects.iter().map(|o| o.place).collect();
        LAYOUTS.contains(&places.as_slice()).then_some(Scene { objects, background })
    }

    /// Scenes in the held-out eighth, chosen by a hash of the caption.
    pub fn held_out(&self) -> bool {
        Sha256::digest(self.caption())[0] < 32
    }

    /// Every scene with that many objects.
    pub fn all(objects: usize) -> Vec<Scene> {
        let mut out = Vec::new();
        for places in LAYOUTS.iter().filter(|l| l.len() == objects) {
            let choices: Vec<Vec<Object>> = places.iter().map(|&p| Object::all(p)).collect();
            let lists = choices.iter().fold(vec![Vec::new()], |lists, next| {
                lists.iter().flat_map(|l| next.iter().map(move |&o| [l.as_slice(), &[o]].concat())).collect()
            });
            for list in lists {
                out.extend(Background::ALL.iter().map(|&background| Scene { objects: list.clone(), background }));
            }
        }
        out
    }
}

impl Object {
    fn caption(&self) -> String {
        format!("a {} {} {} at the {}", self.size.word(), self.color.word(), self.shape.word(), self.place.word())
    }

    fn read(text: &str) -> Option<Object> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["a", size, color, shape, "at", "the", place] = words.as_slice() else { return None };
        Some(Object {
            size: Size::parse(size)?,
            color: Color::parse(color)?,
            shape: Shape::parse(shape)?,
            place: Place::parse(place)?,
        })
    }

    fn all(place: Place) -> Vec<Object> {
        let mut out = Vec::new();
        for &size in Size::ALL {
            for &color in Color::ALL {
                out.extend(Shape::ALL.iter().map(|&shape| Object { size, color, shape, place }));
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
        for scene in Scene::all(1).into_iter().chain(Scene::all(2).into_iter().step_by(37)) {
            assert_eq!(Scene::parse(&scene.caption()).unwrap(), scene);
        }
        assert_eq!(Scene::parse(EXAMPLE).unwrap().caption(), EXAMPLE);
    }

    #[test]
    fn objects_may_come_in_any_order() {
        let swapped = "a large blue square at the right and a small red ring at the left on cream";
        assert_eq!(Scene::parse(swapped).unwrap(), Scene::parse(EXAMPLE).unwrap());
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "a cat",
            "a small red ring at the left on cream",
            "a small red ring at the center on mud",
            "a small red ring at the left and a small red ring at the left on cream",
        ] {
            assert!(Scene::parse(text).unwrap_err().message.contains(text), "{text}");
        }
    }

    #[test]
    fn an_eighth_is_held_out() {
        let (one, two) = (Scene::all(1), Scene::all(2));
        assert_eq!((one.len(), two.len()), (256, 32768));
        for scenes in [one, two] {
            let share = scenes.iter().filter(|s| s.held_out()).count() as f64 / scenes.len() as f64;
            assert!((share - 0.125).abs() < 0.06, "{share}");
        }
    }
}
