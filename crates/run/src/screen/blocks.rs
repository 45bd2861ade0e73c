//! Images in characters: two pixels in each half block, or shades of ASCII.

use super::pen::{Colours, Pen};
use super::{Screen, fitted};
use image::{RgbImage, imageops};

/// Shades from dark to light.
pub(super) const SHADES: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];

impl Screen {
    /// An image in characters, at most the terminal's width and two thirds of its height.
    pub(super) fn blocks(&self, picture: &RgbImage) -> String {
        let small = fitted(picture, self.size.columns as u32, 2 * self.rows() as u32);
        let mut pen = Pen::new(self.colours);
        if self.unicode && self.colours != Colours::None {
            for row in (0..small.height()).step_by(2) {
                for column in 0..small.width() {
                    let below = small.get_pixel_checked(column, row + 1).map(|pixel| pixel.0);
                    pen.put('\u{2580}', Some(small.get_pixel(column, row).0), below);
                }
                pen.line();
            }
            return pen.finish();
        }
        // a character is twice as high as wide
        let (width, height) = (small.width(), small.height().div_ceil(2));
        let cells = imageops::resize(&small, width, height, imageops::FilterType::Triangle);
        for row in cells.rows() {
            for pixel in row {
                match self.colours {
                    Colours::None => pen.put(shade(pixel.0), None, None),
                    _ => pen.put(' ', None, Some(pixel.0)),
                }
            }
            pen.line();
        }
        pen.finish()
    }
}

/// The character that is as light as a colour.
fn shade([r, g, b]: [u8; 3]) -> char {
    let light = 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    SHADES[((light / 25.6) as usize).min(9)]
}

#[cfg(test)]
mod tests {
    use super::super::Images;
    use super::*;
    use image::Rgb;

    fn screen(colours: Colours, unicode: bool) -> Screen {
        Screen { images: Images::Blocks, colours, unicode, ..Screen::default() }
    }

    /// The pixels that true colour half blocks show, row by row.
    fn read(text: &str) -> Vec<Vec<[u8; 3]>> {
        let mut rows = Vec::new();
        for line in text.lines() {
            let (mut colours, mut upper, mut lower) = ([None, None], vec![], vec![]);
            let mut rest = line;
            while let Some(glyph) = rest.chars().next() {
                if let Some(codes) = rest.strip_prefix("\x1b[") {
                    let (codes, after) = codes.split_once('m').unwrap();
                    let codes: Vec<u8> = codes.split(';').map(|code| code.parse().unwrap()).collect();
                    for part in codes.chunks(5) {
                        match part {
                            [38, 2, r, g, b] => colours[0] = Some([*r, *g, *b]),
                            [48, 2, r, g, b] => colours[1] = Some([*r, *g, *b]),
                            _ => colours = [None, None],
                        }
                    }
                    rest = after;
                    continue;
                }
                assert_eq!(glyph, '\u{2580}');
                upper.extend(colours[0]);
                lower.extend(colours[1]);
                rest = &rest[glyph.len_utf8()..];
            }
            rows.extend([upper, lower]);
        }
        rows.retain(|row| !row.is_empty());
        rows
    }

    #[test]
    fn blocks_hold_the_pixels() {
        for (width, height) in [(1, 1), (5, 4), (7, 3), (80, 32)] {
            let picture = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8 * 3, y as u8 * 5, (x * y % 251) as u8]));
            let rows = read(&screen(Colours::True, true).blocks(&picture));
            let expected: Vec<Vec<[u8; 3]>> = picture.rows().map(|row| row.map(|p| p.0).collect()).collect();
            assert_eq!(rows, expected, "{width} x {height}");
        }
        let huge = screen(Colours::True, true).blocks(&RgbImage::new(5000, 4000));
        assert_eq!((huge.lines().count(), huge.lines().next().unwrap().matches('\u{2580}').count()), (16, 40));
    }

    #[test]
    fn without_colour_there_are_shades_and_no_codes() {
        let picture = RgbImage::from_fn(10, 4, |x, _| Rgb([x as u8 * 28; 3]));
        let text = screen(Colours::None, true).blocks(&picture);
        assert_eq!(text, " .:-=+*#%@\n .:-=+*#%@");
    }

    #[test]
    fn without_unicode_colours_stand_behind_spaces() {
        let text = screen(Colours::Indexed, false).blocks(&RgbImage::from_pixel(2, 2, Rgb([255, 0, 0])));
        assert_eq!(text, "\x1b[48;5;196m  \x1b[0m");
    }
}
