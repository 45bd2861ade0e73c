//! A 5x7 bitmap font for labels, so that pictures need no system font.

use image::{Rgb, RgbImage};

/// Pixels from one character, and from one line, to the next at scale 1.
pub const ADVANCE: u32 = 6;
pub const LINE: u32 = 10;

/// Characters 32 to 126: five columns of eight pixels each, first column in the highest byte, top pixel in the lowest bit.
#[rustfmt::skip]
const GLYPHS: [u64; 95] = [
    0x00_0000_0000, 0x00_005f_0000, 0x00_0700_0700, 0x14_7f14_7f14, 0x24_2a7f_2a12, 0x23_1308_6462,
    0x36_4956_2050, 0x00_0807_0300, 0x00_1c22_4100, 0x00_4122_1c00, 0x2a_1c7f_1c2a, 0x08_083e_0808,
    0x00_8070_3000, 0x08_0808_0808, 0x00_0060_6000, 0x20_1008_0402, 0x3e_5149_453e, 0x00_427f_4000,
    0x72_4949_4946, 0x21_4149_4d33, 0x18_1412_7f10, 0x27_4545_4539, 0x3c_4a49_4931, 0x41_2111_0907,
    0x36_4949_4936, 0x46_4949_291e, 0x00_0014_0000, 0x00_4034_0000, 0x00_0814_2241, 0x14_1414_1414,
    0x00_4122_1408, 0x02_0159_0906, 0x3e_415d_594e, 0x7c_1211_127c, 0x7f_4949_4936, 0x3e_4141_4122,
    0x7f_4141_413e, 0x7f_4949_4941, 0x7f_0909_0901, 0x3e_4141_5173, 0x7f_0808_087f, 0x00_417f_4100,
    0x20_4041_3f01, 0x7f_0814_2241, 0x7f_4040_4040, 0x7f_021c_027f, 0x7f_0408_107f, 0x3e_4141_413e,
    0x7f_0909_0906, 0x3e_4151_215e, 0x7f_0919_2946, 0x26_4949_4932, 0x03_017f_0103, 0x3f_4040_403f,
    0x1f_2040_201f, 0x3f_4038_403f, 0x63_1408_1463, 0x03_0478_0403, 0x61_5949_4d43, 0x00_7f41_4141,
    0x02_0408_1020, 0x00_4141_417f, 0x04_0201_0204, 0x40_4040_4040, 0x00_0307_0800, 0x20_5454_7840,
    0x7f_2844_4438, 0x38_4444_4428, 0x38_4444_287f, 0x38_5454_5418, 0x00_087e_0902, 0x18_a4a4_9c78,
    0x7f_0804_0478, 0x00_447d_4000, 0x20_4040_3d00, 0x7f_1028_4400, 0x00_417f_4000, 0x7c_0478_0478,
    0x7c_0804_0478, 0x38_4444_4438, 0xfc_1824_2418, 0x18_2424_18fc, 0x7c_0804_0408, 0x48_5454_5424,
    0x04_043f_4424, 0x3c_4040_207c, 0x1c_2040_201c, 0x3c_4030_403c, 0x44_2810_2844, 0x4c_9090_907c,
    0x44_6454_4c44, 0x00_0836_4100, 0x00_0077_0000, 0x00_4136_0800, 0x02_0102_0402,
];

/// Writes one line with its upper left corner at `(x, y)`; what falls outside is cut, what has no glyph reads `?`.
pub fn write(image: &mut RgbImage, (x, y): (i64, i64), text: &str, scale: u32, ink: Rgb<u8>) {
    each_pixel(text, scale, |dx, dy| {
        if let (Ok(x), Ok(y)) = (u32::try_from(x + dx), u32::try_from(y + dy))
            && let Some(pixel) = image.get_pixel_mut_checked(x, y)
        {
            *pixel = ink;
        }
    });
}

/// Calls `paint` for every inked pixel of the text.
pub fn each_pixel(text: &str, scale: u32, mut paint: impl FnMut(i64, i64)) {
    for (i, character) in text.chars().enumerate() {
        let index = if (' '..='~').contains(&character) { character } else { '?' } as usize - 32;
        let glyph = GLYPHS[index];
        for bit in (0..40u32).filter(|b| glyph >> b & 1 == 1) {
            let (column, row) = (4 - bit / 8, bit % 8);
            for (sx, sy) in (0..scale).flat_map(|sx| (0..scale).map(move |sy| (sx, sy))) {
                let x = (i as u32 * ADVANCE + column) * scale + sx;
                paint(i64::from(x), i64::from(row * scale + sy));
            }
        }
    }
}

/// Width of one line in pixels.
pub fn width(text: &str, scale: u32) -> u32 {
    (text.chars().count() as u32 * ADVANCE).saturating_sub(1) * scale
}

/// Breaks a text at spaces into lines of at most `width` pixels; longer words stand alone.
pub fn wrap(text: &str, width_limit: u32, scale: u32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), scale) <= width_limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(text: &str) -> Vec<String> {
        let mut image = RgbImage::new(width(text, 1), 8);
        write(&mut image, (0, 0), text, 1, Rgb([255; 3]));
        image.rows().map(|row| row.map(|p| if p.0[0] > 0 { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn letters_have_their_form() {
        let t = ["#####", "#.#.#", "..#..", "..#..", "..#..", "..#..", "..#..", "....."];
        assert_eq!(picture("T"), t);
        assert_eq!(picture("é"), picture("?"));
        assert_eq!(picture("~").concat().matches('#').count(), 5);
    }

    #[test]
    fn text_wraps_at_spaces() {
        assert_eq!(wrap("a small red ring", 8 * ADVANCE, 1), ["a small", "red ring"]);
        assert_eq!(wrap("", 10, 1), Vec::<String>::new());
    }
}
