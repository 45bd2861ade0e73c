//! What people look at: plots of numbers, and pictures in a terminal.
//!
//! [`Plot`] is a plot, drawn as pixels, SVG or text. [`Screen`] is what a terminal can show; it draws images and plots as escape
//! codes of the best kind there is, or leaves them to a file.
//!
//! Decisions:
//! * **A terminal is not asked what it can show**: variables decide, since an answer that comes late would be read as typed.
//! * **Sixels are ours** (`sixel.rs`): `icy_sixel` 0.7 loses colours of pictures that have fewer than 256 (20 % at most, ours none), is off by
//!   22 % where ours is by 12 %, and brings twenty crates.

mod blocks;
mod canvas;
mod chart;
pub mod drawing;
mod inline;
mod pen;
pub mod plot;
mod scale;
mod sixel;

pub use pen::Colours;
pub use plot::{Labels, Plot, Series, Style};

use amscript_base::{
    bail,
    error::{Error, Kind, Result},
    terminal::{self, Size},
};
use image::{RgbImage, imageops};

/// How images are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Images {
    /// kitty's graphics protocol.
    Kitty,
    /// iTerm2's inline images.
    Iterm,
    Sixel,
    /// Coloured half blocks, or shades of ASCII without colour.
    Blocks,
    /// Written to a file, whose path is printed.
    File,
    /// Only named.
    None,
}

impl Images {
    const NAMES: [(&str, Images); 6] = [
        ("kitty", Self::Kitty),
        ("iterm", Self::Iterm),
        ("sixel", Self::Sixel),
        ("blocks", Self::Blocks),
        ("file", Self::File),
        ("none", Self::None),
    ];

    /// The way of that name.
    pub fn named(name: &str) -> Result<Self> {
        match Self::NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, images)) => Ok(*images),
            None => {
                let names = Self::NAMES.map(|(known, _)| known).join(", ");
                bail!(Value, "AMSCRIPT_IMAGES: must be one of {names}, got \"{name}\"")
            }
        }
    }

    /// Whether pixels are sent as they are.
    fn in_pixels(self) -> bool {
        matches!(self, Self::Kitty | Self::Iterm | Self::Sixel)
    }
}

/// What a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Screen {
    pub images: Images,
    pub colours: Colours,
    /// Whether text may hold more than ASCII.
    pub unicode: bool,
    pub size: Size,
}

impl Default for Screen {
    /// No terminal: images are named, plots are text without colour.
    fn default() -> Self {
        Self { images: Images::None, colours: Colours::None, unicode: true, size: Size::default() }
    }
}

impl Screen {
    /// What standard output leads to.
    pub fn detect() -> Result<Self> {
        let stream = terminal::StdStream::Output;
        let terminal = terminal::is_terminal(stream).then(|| terminal::size(stream));
        Self::of(terminal::variable, terminal)
    }

    /// The same from the variables of an environment and the size of a terminal, if there is one.
    pub fn of(variable: impl Fn(&str) -> Option<String>, terminal: Option<Size>) -> Result<Self> {
        let chosen = variable("AMSCRIPT_IMAGES").filter(|name| !name.is_empty());
        let chosen = chosen.map(|name| Images::named(&name)).transpose()?;
        let coloured = terminal.is_some() || chosen == Some(Images::Blocks);
        let images = chosen.unwrap_or_else(|| if terminal.is_some() { protocol(&variable) } else { Images::File });
        Ok(Self {
            images,
            colours: if coloured { Colours::of(&variable) } else { Colours::None },
            unicode: terminal::unicode(&variable),
            size: terminal.unwrap_or_default(),
        })
    }

    /// An image as text to print, or nothing where it is to be a file or only named.
    pub fn image(&self, picture: &RgbImage) -> Result<Option<String>> {
        let small = || self.shrunk(picture);
        Ok(match self.images {
            Images::Kitty => Some(inline::kitty(&png(&small())?, self.cells(&small()))),
            Images::Iterm => Some(inline::iterm(&png(&small())?, self.cells(&small()))),
            Images::Sixel => Some(sixel::encode(&small())),
            Images::Blocks => Some(self.blocks(picture)),
            Images::File | Images::None => None,
        })
    }

    /// A plot as text to print: an image where pixels can be shown, else drawn in characters.
    pub fn plot(&self, plot: &Plot) -> Result<String> {
        match self.images.in_pixels() {
            true => Ok(self.image(&plot.image()?)?.unwrap_or_default()),
            false => Ok(self.chart(plot)),
        }
    }

    /// Rows that a picture may take.
    fn rows(&self) -> usize {
        (self.size.rows * 2 / 3).max(1)
    }

    /// At most the terminal's width and two thirds of its height.
    fn shrunk(&self, picture: &RgbImage) -> RgbImage {
        let (width, height) = self.size.cell.unwrap_or(CELL);
        fitted(picture, self.size.columns as u32 * width, self.rows() as u32 * height)
    }

    /// Columns that an image of this many pixels takes.
    fn cells(&self, picture: &RgbImage) -> usize {
        picture.width().div_ceil(self.size.cell.unwrap_or(CELL).0) as usize
    }
}

/// Pixels of a cell where the terminal does not tell.
const CELL: (u32, u32) = (8, 16);

/// The picture, made smaller where it is larger than this; at least one pixel.
fn fitted(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (w, h) = picture.dimensions();
    let scale = (f64::from(width) / f64::from(w)).min(f64::from(height) / f64::from(h)).min(1.0);
    if scale == 1.0 {
        return picture.clone();
    }
    let side = |n: u32| (f64::from(n) * scale).round().max(1.0) as u32;
    imageops::resize(picture, side(w), side(h), imageops::FilterType::Triangle)
}

fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    match picture.write_to(&mut bytes, image::ImageFormat::Png) {
        Ok(()) => Ok(bytes.into_inner()),
        Err(e) => Err(Error::new(Kind::Internal, format!("show: the image cannot be encoded ({e})"))),
    }
}

/// How the terminal that set these variables shows images. What it would answer is not asked: an answer that comes late
/// would be read as typed.
fn protocol(variable: impl Fn(&str) -> Option<String>) -> Images {
    let has = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let (term, program) = (variable("TERM").unwrap_or_default(), variable("TERM_PROGRAM").unwrap_or_default());
    // these pass on nothing unless they are told to
    if has("TMUX") || has("STY") || term.starts_with("tmux") || term.starts_with("screen") {
        return Images::Blocks;
    }
    let konsole = variable("KONSOLE_VERSION").and_then(|version| version.parse::<u32>().ok());
    match program.as_str() {
        "WezTerm" | "iTerm.app" | "mintty" | "rio" => Images::Iterm,
        "ghostty" => Images::Kitty,
        "contour" => Images::Sixel,
        _ if has("WEZTERM_EXECUTABLE") || variable("LC_TERMINAL").as_deref() == Some("iTerm2") => Images::Iterm,
        _ if has("KITTY_WINDOW_ID") || term.contains("kitty") || term.contains("ghostty") => Images::Kitty,
        _ if konsole.is_some_and(|version| version >= 220_400) => Images::Kitty,
        _ if term.starts_with("foot") || term.starts_with("mlterm") || term.contains("sixel") => Images::Sixel,
        _ => Images::Blocks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(variables: &[(&str, &str)], terminal: Option<Size>) -> Result<Screen> {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string());
        Screen::of(variable, terminal)
    }

    #[test]
    fn terminals_are_known_by_their_variables() {
        let images = |variables: &[(&str, &str)]| screen(variables, Some(Size::default())).unwrap().images;
        assert_eq!(images(&[("TERM", "xterm-kitty")]), Images::Kitty);
        assert_eq!(images(&[("TERM", "xterm-256color"), ("KITTY_WINDOW_ID", "1")]), Images::Kitty);
        assert_eq!(images(&[("TERM_PROGRAM", "WezTerm")]), Images::Iterm);
        assert_eq!(images(&[("TERM_PROGRAM", "iTerm.app")]), Images::Iterm);
        assert_eq!(images(&[("TERM", "foot")]), Images::Sixel);
        assert_eq!(images(&[("KONSOLE_VERSION", "230804")]), Images::Kitty);
        assert_eq!(images(&[("KONSOLE_VERSION", "210400")]), Images::Blocks);
        assert_eq!(images(&[("TERM", "xterm-256color")]), Images::Blocks);
        assert_eq!(images(&[("TERM", "tmux-256color"), ("KITTY_WINDOW_ID", "1"), ("TMUX", "x")]), Images::Blocks);
        assert_eq!(images(&[("TERM", "xterm"), ("AMSCRIPT_IMAGES", "sixel")]), Images::Sixel);
    }

    #[test]
    fn without_a_terminal_images_are_files_and_nothing_is_coloured() {
        let found = screen(&[("TERM", "xterm-kitty"), ("COLORTERM", "truecolor")], None).unwrap();
        assert_eq!((found.images, found.colours, found.size.columns), (Images::File, Colours::None, 80));
        let blocks = screen(&[("COLORTERM", "truecolor"), ("AMSCRIPT_IMAGES", "blocks")], None).unwrap();
        assert_eq!((blocks.images, blocks.colours), (Images::Blocks, Colours::True));
    }

    #[test]
    fn a_wrong_choice_names_the_right_ones() {
        let error = screen(&[("AMSCRIPT_IMAGES", "png")], None).unwrap_err();
        let choices = "kitty, iterm, sixel, blocks, file, none";
        assert_eq!(error.message, format!("AMSCRIPT_IMAGES: must be one of {choices}, got \"png\""));
    }

    #[test]
    fn images_fit_the_width_and_two_thirds_of_the_height() {
        let at = |w, h| fitted(&RgbImage::new(w, h), 640, 256).dimensions();
        assert_eq!([at(64, 64), at(1280, 10), at(100, 512), at(1, 1)], [(64, 64), (640, 5), (50, 256), (1, 1)]);
        assert_eq!([at(100_000, 1), at(1, 9000)], [(640, 1), (1, 256)]);
        let sixel = Screen { images: Images::Sixel, ..Screen::default() };
        assert_eq!(sixel.shrunk(&RgbImage::new(2000, 1999)).dimensions(), (256, 256));
    }
}
