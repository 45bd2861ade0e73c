//! Images as sixels: bands of six rows, in a palette of at most 256 colours.

use color_quant::NeuQuant;
use image::RgbImage;
use std::collections::{BTreeMap, BTreeSet};

/// Colours of a palette.
const MOST: usize = 256;

/// The image as one escape code.
pub fn encode(picture: &RgbImage) -> String {
    let (width, height) = picture.dimensions();
    let (palette, pixels) = indexed(picture);
    let mut out = format!("\x1bP0;1;0q\"1;1;{width};{height}");
    for (i, colour) in palette.iter().enumerate() {
        let [r, g, b] = colour.map(|v| (u32::from(v) * 100 + 127) / 255); // sixels know percents
        out += &format!("#{i};2;{r};{g};{b}");
    }
    for band in pixels.chunks(6 * width as usize) {
        let rows: Vec<&[u8]> = band.chunks(width as usize).collect();
        for colour in band.iter().collect::<BTreeSet<_>>() {
            out += &format!("#{colour}");
            let six = |x: usize| rows.iter().enumerate().map(|(i, row)| u8::from(row[x] == *colour) << i).sum::<u8>();
            repeats((0..width as usize).map(six), &mut out);
            out.push('$'); // back to the left
        }
        out.push('-'); // the next band
    }
    out + "\x1b\\"
}

/// Characters of six pixels each; `!n` repeats the next one.
fn repeats(sixels: impl Iterator<Item = u8>, out: &mut String) {
    let mut sixels = sixels.peekable();
    while let Some(six) = sixels.next() {
        let mut count = 1;
        while sixels.next_if_eq(&six).is_some() {
            count += 1;
        }
        let letter = char::from(63 + six);
        match count {
            1..4 => (0..count).for_each(|_| out.push(letter)),
            _ => *out += &format!("!{count}{letter}"),
        }
    }
}

/// The colours of an image, or 256 that are near them, and each pixel's number among them.
fn indexed(picture: &RgbImage) -> (Vec<[u8; 3]>, Vec<u8>) {
    let mut own: BTreeMap<[u8; 3], u8> = BTreeMap::new();
    for pixel in picture.pixels() {
        let next = own.len();
        if next < MOST || own.contains_key(&pixel.0) {
            own.entry(pixel.0).or_insert(next as u8);
            continue;
        }
        let with_alpha: Vec<u8> = picture.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2], 255]).collect();
        let quantised = NeuQuant::new(10, MOST, &with_alpha);
        let palette = quantised.color_map_rgb().chunks(3).map(|c| [c[0], c[1], c[2]]).collect();
        return (palette, with_alpha.chunks(4).map(|pixel| quantised.index_of(pixel) as u8).collect());
    }
    let mut palette = vec![[0; 3]; own.len()];
    own.iter().for_each(|(colour, i)| palette[usize::from(*i)] = *colour);
    (palette, picture.pixels().map(|pixel| own[&pixel.0]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// The pixels that the escape code paints, in percents.
    fn decode(text: &str) -> Vec<Vec<Option<[u32; 3]>>> {
        let body = text.strip_prefix("\x1bP0;1;0q\"1;1;").unwrap().strip_suffix("\x1b\\").unwrap();
        let end = body.find('#').unwrap();
        let size: Vec<usize> = body[..end].split(';').map(|n| n.parse().unwrap()).collect();
        let mut pixels = vec![vec![None; size[0]]; size[1]];
        let (mut palette, mut colour, mut x, mut top) = (BTreeMap::new(), 0, 0, 0);
        let letters = &body.as_bytes()[end..];
        let mut at = 0;
        let numbers = |at: &mut usize| {
            let start = *at;
            while letters.get(*at).is_some_and(|c| c.is_ascii_digit() || *c == b';') {
                *at += 1;
            }
            let text = std::str::from_utf8(&letters[start..*at]).unwrap();
            text.split(';').map(|n| n.parse::<u32>().unwrap()).collect::<Vec<_>>()
        };
        while at < letters.len() {
            let letter = letters[at];
            at += 1;
            let (count, six) = match letter {
                b'#' => {
                    let given = numbers(&mut at);
                    colour = given[0];
                    if let [_, 2, r, g, b] = given[..] {
                        palette.insert(colour, [r, g, b]);
                    }
                    continue;
                }
                b'$' | b'-' => {
                    (x, top) = (0, top + if letter == b'-' { 6 } else { 0 });
                    continue;
                }
                b'!' => {
                    let count = numbers(&mut at)[0];
                    at += 1;
                    (count, letters[at - 1] - 63)
                }
                letter => (1, letter - 63),
            };
            for _ in 0..count {
                (0..6).filter(|i| six >> i & 1 == 1).for_each(|i| pixels[top + i][x] = Some(palette[&colour]));
                x += 1;
            }
        }
        pixels
    }

    /// The largest difference in percents; every pixel must be painted.
    fn worst(picture: &RgbImage) -> u32 {
        let pixels = decode(&encode(picture));
        let away = |(x, y, pixel): (u32, u32, &Rgb<u8>)| {
            let painted = pixels[y as usize][x as usize].unwrap();
            (0..3).map(|i| painted[i].abs_diff((u32::from(pixel.0[i]) * 100 + 127) / 255)).max().unwrap()
        };
        picture.enumerate_pixels().map(away).max().unwrap()
    }

    #[test]
    fn few_colours_come_back_exactly() {
        for (width, height) in [(1, 1), (5, 7), (40, 13), (257, 6)] {
            let colour = |x: u32, y: u32| Rgb([(x % 5 * 60) as u8, (y % 7 * 40) as u8, ((x + y) % 6 * 50) as u8]);
            assert_eq!(worst(&RgbImage::from_fn(width, height, colour)), 0, "{width} x {height}");
        }
    }

    #[test]
    fn many_colours_come_back_nearly() {
        let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, 128]));
        assert!(worst(&picture) <= 12, "{}", worst(&picture));
    }
}
