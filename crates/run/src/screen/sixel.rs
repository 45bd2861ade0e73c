//! Images as sixels: bands of six rows, in a palette of at most 256 colours.

use image::RgbImage;
use std::collections::BTreeSet;

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

/// Pixels of like colours: how far they reach in the channel in which they reach farthest, and its middle.
struct Group {
    reach: u8,
    channel: usize,
    middle: u8,
    members: Vec<usize>,
}

impl Group {
    fn new(members: Vec<usize>, pixels: &[[u8; 3]]) -> Self {
        let ends = |channel: usize| {
            let values = members.iter().map(|&i| pixels[i][channel]);
            values.fold((u8::MAX, u8::MIN), |(low, high), v| (low.min(v), high.max(v)))
        };
        let all = [0, 1, 2].map(|channel| (ends(channel), channel));
        let ((low, high), channel) =
            all.into_iter().max_by_key(|((low, high), _)| high.saturating_sub(*low)).unwrap_or_default();
        Self { reach: high.saturating_sub(low), channel, middle: low.midpoint(high), members }
    }

    fn mean(&self, pixels: &[[u8; 3]]) -> [u8; 3] {
        let count = self.members.len().max(1);
        [0, 1, 2].map(|c| {
            ((self.members.iter().map(|&i| usize::from(pixels[i][c])).sum::<usize>() + count / 2) / count) as u8
        })
    }
}

/// The colours of an image, or 256 that are near them, and each pixel's number among them: groups are cut in the middle, the
/// farthest reaching first.
fn indexed(picture: &RgbImage) -> (Vec<[u8; 3]>, Vec<u8>) {
    let pixels: Vec<[u8; 3]> = picture.pixels().map(|pixel| pixel.0).collect();
    let mut groups = vec![Group::new((0..pixels.len()).collect(), &pixels)];
    while groups.len() < MOST {
        let widest = (0..groups.len()).max_by_key(|&i| groups[i].reach).unwrap_or_default();
        if groups[widest].reach == 0 {
            break;
        }
        let Group { channel, middle, members, .. } = groups.swap_remove(widest);
        let (low, high) = members.into_iter().partition(|&i| pixels[i][channel] <= middle);
        groups.extend([low, high].map(|members| Group::new(members, &pixels)));
    }
    let mut numbers = vec![0; pixels.len()];
    for (number, group) in groups.iter().enumerate() {
        group.members.iter().for_each(|&i| numbers[i] = number as u8);
    }
    (groups.iter().map(|group| group.mean(&pixels)).collect(), numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use std::collections::BTreeMap;

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
