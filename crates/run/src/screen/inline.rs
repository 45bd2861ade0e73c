//! Images in the protocols of kitty and iTerm2: PNG files as base64 text inside an escape code.

/// Bytes of text in one escape code; kitty takes no more.
const PIECE: usize = 4096;

/// kitty's graphics protocol: the file in pieces, shown over so many columns, the terminal silent about it.
pub fn kitty(png: &[u8], columns: usize) -> String {
    let text = base64::encode(png);
    let pieces = text.as_bytes().chunks(PIECE).map(String::from_utf8_lossy);
    let last = pieces.len().saturating_sub(1);
    let code = |(i, piece)| {
        let head = if i == 0 { format!("a=T,f=100,q=2,c={columns},") } else { String::new() };
        format!("\x1b_G{head}m={};{piece}\x1b\\", u8::from(i < last))
    };
    pieces.enumerate().map(code).collect()
}

/// iTerm2's inline image, over so many columns.
pub fn iterm(png: &[u8], columns: usize) -> String {
    let size = png.len();
    let head = format!("inline=1;size={size};width={columns};height=auto;preserveAspectRatio=1");
    format!("\x1b]1337;File={head}:{}\x07", base64::encode(png))
}

#[cfg(test)]
mod tests {
    use super::super::{Images, Screen};
    use super::*;
    use image::{Rgb, RgbImage};

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, ((x * x + y * 3) % 256) as u8]))
    }

    fn shown(images: Images, picture: &RgbImage) -> String {
        Screen { images, ..Screen::default() }.image(picture).unwrap().unwrap()
    }

    fn read_kitty(text: &str) -> (RgbImage, Vec<String>) {
        let codes = text.split("\x1b\\").filter(|code| !code.is_empty());
        let parts = codes.map(|code| code.strip_prefix("\x1b_G").unwrap().split_once(';').unwrap());
        let (heads, data): (Vec<&str>, Vec<&str>) = parts.unzip();
        assert!(data.iter().all(|piece| piece.len() <= PIECE));
        let file = image::load_from_memory(&base64::decode(data.concat()).unwrap()).unwrap();
        (file.to_rgb8(), heads.into_iter().map(String::from).collect())
    }

    #[test]
    fn kitty_gets_the_pixels_in_pieces() {
        for (width, height) in [(1, 1), (3, 7), (333, 201)] {
            let original = picture(width, height);
            let (back, heads) = read_kitty(&shown(Images::Kitty, &original));
            assert_eq!(back, original);
            assert_eq!(heads[0], format!("a=T,f=100,q=2,c={},m={}", width.div_ceil(8), u8::from(heads.len() > 1)));
            assert!(heads[1..].iter().enumerate().all(|(i, h)| *h == format!("m={}", u8::from(i + 2 < heads.len()))));
            assert!(heads.len() > 1 || width < 300);
        }
        let (huge, heads) = read_kitty(&shown(Images::Kitty, &picture(3000, 1500)));
        assert_eq!((huge.dimensions(), heads[0].contains("c=64,")), ((512, 256), true));
    }

    #[test]
    fn iterm_gets_the_file() {
        let text = shown(Images::Iterm, &picture(33, 21));
        let (head, data) = text.split_once(':').unwrap();
        let file = base64::decode(data.strip_suffix('\x07').unwrap()).unwrap();
        assert_eq!(image::load_from_memory(&file).unwrap().to_rgb8(), picture(33, 21));
        let size = file.len();
        assert_eq!(head, format!("\x1b]1337;File=inline=1;size={size};width=5;height=auto;preserveAspectRatio=1"));
    }
}
