//! Images: tensors in `[0, 1]` to and from files, and grids with labels.

use super::font;
use amscript_base::{
    bail,
    context::Context,
    error::{Error, Kind, Result, warn_once},
    file, memory,
};
use amscript_tensor::{DType, Device, Tensor, interrupt};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Rgb, RgbImage, RgbaImage, imageops};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40; 3]);
/// Pixels between cells.
const GAP: u32 = 6;
/// Most lines of a caption that are shown.
const LINES: usize = 12;

/// Most bytes of an image file.
pub const MAX_FILE: u64 = 256 << 20;
/// Most pixels of an image that is read.
const MAX_PIXELS: u64 = 1 << 26;
/// Most pixels of a side of an image that is shown by itself.
const MAX_SIDE: usize = 1 << 14;
/// Most pixels of a page that is laid out.
const MAX_PAGE: u64 = 1 << 28;

/// Reads a PNG or JPEG file, whatever its name, as `[1, 3, height, width]`, f32 in `[0, 1]`; see [`decode`].
pub fn load(path: &Path) -> Result<Tensor> {
    let name = path.display();
    let refused = |e: std::io::Error| Error::new(Kind::File, e.to_string());
    let image = file::read_within(path, MAX_FILE).map_err(refused).and_then(|bytes| decode(&bytes));
    from_rgb(&image.map_err(|e| e.within(format_args!("load_image: cannot read `{name}`")))?)
}

/// A PNG or JPEG as it is to be seen: turned as it says, what is transparent on white.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    if bytes.is_empty() {
        bail!(File, "expected a PNG or JPEG, got 0 bytes"; hint: "fetch or save it again");
    }
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        Ok(other) => bail!(File, "expected a PNG or JPEG, got {other:?}"; hint: "convert it to PNG"),
        Err(_) => bail!(File, "expected a PNG or JPEG, got neither"; hint: "convert it to PNG"),
    };
    if format == ImageFormat::Jpeg && !ends(bytes) {
        bail!(File, "the JPEG is cut off"; hint: "fetch it again");
    }
    let damaged = |e: image::ImageError| {
        Error::new(Kind::File, e.to_string()).hint("it is damaged or cut off: fetch or save it again")
    };
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        bail!(Limit, "expected at most {MAX_PIXELS} pixels, got {width} x {height}"; hint: "make it smaller");
    }
    let held = usize::try_from(decoder.total_bytes()).ok().and_then(|bytes| bytes.checked_mul(3));
    memory::room(held, || format!("an image of {width} x {height}"))?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { on_white(&image.to_rgba8()) } else { image.to_rgb8() })
}

/// An image on white paper, as viewers show it: the colours below transparent pixels are whatever its program left there.
fn on_white(image: &RgbaImage) -> RgbImage {
    if image.pixels().any(|p| p.0[3] < 255) {
        warn_once("transparent pixels", "images with transparent pixels are put on white");
    }
    let mix = |c: u8, alpha: u8| ((u32::from(c) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8;
    let mut out = RgbImage::new(image.width(), image.height());
    for (to, from) in out.pixels_mut().zip(image.pixels()) {
        let [r, g, b, alpha] = from.0;
        *to = Rgb([r, g, b].map(|c| mix(c, alpha)));
    }
    out
}

/// Whether a JPEG has the end of its first image: without, its reader fills what is missing with grey. Other images may lie in its
/// segments and behind it.
fn ends(jpeg: &[u8]) -> bool {
    let mut rest = jpeg;
    loop {
        rest = match rest {
            [0xff, 0xd9, ..] => return true,
            // pixels, and marks without a length
            [0xff, 0x00 | 0x01 | 0xd0..=0xd8, rest @ ..] => rest,
            [0xff, 0x02..=0xfe, high, low, ..] => {
                let length = 2 + usize::from(u16::from_be_bytes([*high, *low]));
                rest.get(length..).unwrap_or_default()
            }
            [_, rest @ ..] => rest,
            [] => return false,
        }
    }
}

/// Writes one image, `[3, height, width]` or `[1, 3, height, width]`, as PNG or JPEG by the ending of `path`.
pub fn save(image: &Tensor, path: &Path) -> Result<()> {
    write(&to_rgb(image)?, path)
}

/// Writes to a temporary name beside `path`, then renames.
pub fn write(image: &RgbImage, path: &Path) -> Result<()> {
    let name = path.display();
    let Ok(format @ (image::ImageFormat::Png | image::ImageFormat::Jpeg)) = image::ImageFormat::from_path(path) else {
        bail!(Value, "save_image: file must end in .png, .jpg or .jpeg, got `{name}`")
    };
    let failed = |e: std::io::Error| Error::new(Kind::File, format!("save_image: cannot write `{name}` ({e})"));
    let bytes = match format {
        ImageFormat::Png => png(image, &Context::current().origin())?,
        _ => {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).map_err(|e| failed(std::io::Error::other(e)))?;
            bytes.into_inner()
        }
    };
    file::write_whole(path, &bytes).map_err(failed)
}

/// The bytes of a PNG, with texts by name before its pixels.
pub fn png(image: &RgbImage, texts: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    let failed = |e: png::EncodingError| Error::new(Kind::Internal, format!("an image as PNG: {e}"));
    for (name, value) in texts {
        encoder.add_text_chunk(name.clone(), value.clone()).map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image).and_then(|()| writer.finish()).map_err(failed)?;
    Ok(bytes)
}

/// The texts before the pixels of a PNG.
pub fn texts(png: &[u8]) -> Result<BTreeMap<String, String>> {
    let reader = png::Decoder::new(Cursor::new(png)).read_info();
    let reader = reader.map_err(|e| Error::new(Kind::File, format!("expected a PNG, got an error ({e})")))?;
    let texts = &reader.info().uncompressed_latin1_text;
    Ok(texts.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect())
}

/// `[1, 3, height, width]` from 8-bit pixels.
pub fn from_rgb(image: &RgbImage) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = width * height;
    memory::room(memory::bytes(&[3, pixels], size_of::<f32>()), || format!("an image of {width} x {height}"))?;
    let mut planes = vec![0.0; 3 * pixels];
    for (i, pixel) in image.as_raw().chunks_exact(3).enumerate() {
        for (c, &value) in pixel.iter().enumerate() {
            planes[c * pixels + i] = f32::from(value) * (1.0 / 255.0);
        }
    }
    Tensor::from_vec(planes, (1, 3, height, width), &Device::Cpu)
}

/// 8-bit pixels of one image; values outside `[0, 1]` are cut, NaN is black.
pub fn to_rgb(image: &Tensor) -> Result<RgbImage> {
    let one = match image.dims() {
        [3, _, _] => image.clone(),
        [1, 3, _, _] => image.squeeze(0)?,
        other => {
            bail!(Shape, "save_image: image must be [3, height, width], got {other:?}"; hint: "lay out a batch with `image_grid(images, columns)`")
        }
    };
    let (_, height, width) = one.dims3()?;
    memory::room(memory::bytes(&[3, height, width], 12), || format!("an image of {width} x {height}"))?;
    let pixels = one.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.permute((1, 2, 0))?.flatten_all()?;
    let bytes = pixels.to_vec1::<f32>()?.into_iter().map(|v| (v * 255.0).round() as u8).collect();
    RgbImage::from_raw(width as u32, height as u32, bytes)
        .ok_or_else(|| Error::new(Kind::Internal, "save_image: pixel count differs from the shape"))
}

/// What stands around the images of a grid.
#[derive(Clone, Debug, Default)]
pub struct GridText {
    /// Under each cell; shorter lists leave the rest bare.
    pub captions: Vec<String>,
    /// Above the columns, evenly spread over each cell.
    pub header: Vec<String>,
}

/// Lays out `[batch, 3, height, width]` row by row; small images are enlarged by whole factors.
pub fn grid(images: &Tensor, columns: usize, text: &GridText) -> Result<RgbImage> {
    let Ok((batch, 3, height, width)) = images.dims4() else {
        bail!(Shape, "image_grid: images must be [batch, 3, height, width], got {:?}", images.dims())
    };
    if columns == 0 || batch == 0 {
        bail!(Value, "image_grid: needs at least one column and one image, got {columns} and {batch}");
    }
    let columns = columns.min(batch);
    let zoom = (128 / height.max(1)).clamp(1, 8);
    let rows = batch.div_ceil(columns);
    // captions are at most so many lines, about as high as the smallest cells
    let room = [columns, width * zoom + 8, rows, height * zoom + 128].map(|n| n as f64).iter().product::<f64>();
    if room > MAX_PAGE as f64 {
        bail!(Limit, "image_grid: expected at most {MAX_PAGE} pixels, got {batch} images of {width} x {height}"; hint: "lay out fewer");
    }
    memory::room(Some(room as usize * 3), || "image_grid")?;
    let (cell_width, cell_height) = ((width * zoom) as u32, (height * zoom) as u32);
    let wrapped =
        |caption: &String| font::wrap(caption, cell_width.saturating_sub(4), 1).into_iter().take(LINES).collect();
    let captions: Vec<Vec<String>> = text.captions.iter().map(wrapped).collect();
    let text_height = captions.iter().map(|c| c.len() as u32 * font::LINE).max().map_or(0, |h| h + 4);
    let header_height = if text.header.is_empty() { 0 } else { 2 * font::LINE };
    let (step_x, step_y) = (cell_width + GAP, cell_height + text_height + GAP);
    let mut page =
        RgbImage::from_pixel(GAP + columns as u32 * step_x, GAP + header_height + rows as u32 * step_y, PAPER);
    for i in 0..batch {
        interrupt::check()?;
        let (column, row) = ((i % columns) as u32, (i / columns) as u32);
        let (x, y) = (i64::from(GAP + column * step_x), i64::from(GAP + header_height + row * step_y));
        let cell = imageops::resize(&to_rgb(&images.get(i)?)?, cell_width, cell_height, imageops::FilterType::Nearest);
        imageops::replace(&mut page, &cell, x, y);
        for (line, words) in captions.get(i).into_iter().flatten().enumerate() {
            let below = y + i64::from(cell_height + 3 + line as u32 * font::LINE);
            font::write(&mut page, (x, below), words, 1, INK);
        }
        for (j, name) in text.header.iter().enumerate().filter(|_| row == 0) {
            let over = x + i64::from(j as u32 * cell_width / text.header.len() as u32);
            font::write(&mut page, (over, i64::from(GAP)), name, 2, INK);
        }
    }
    Ok(page)
}

/// Grids of the same prompts side by side: each cell holds one image of every set, in order, with the sets' names above.
pub fn compare(sets: &[(String, Tensor)], columns: usize, captions: &[String]) -> Result<RgbImage> {
    let Some((_, first)) = sets.first() else {
        bail!(Value, "compare_grid: needs at least one set of images, got none")
    };
    let Ok((batch, 3, height, _)) = first.dims4() else {
        bail!(Shape, "compare_grid: images must be [batch, 3, height, width], got {:?}", first.dims())
    };
    let gap = Tensor::ones((batch, 3, height, 1), first.dtype(), first.device())?;
    let mut parts = Vec::new();
    for (name, images) in sets {
        if images.dims() != first.dims() {
            bail!(
                Shape,
                "compare_grid: sets must have one shape, got {:?} and {:?} (`{name}`)",
                first.dims(),
                images.dims()
            );
        }
        parts.extend([images, &gap]);
    }
    parts.pop();
    let header = sets.iter().map(|(name, _)| name.clone()).collect();
    grid(&Tensor::cat(&parts, 3)?, columns, &GridText { captions: captions.to_vec(), header })
}

/// One image, or a batch as a grid of at most 8 columns; small ones are enlarged by whole factors.
pub fn picture(images: &Tensor) -> Result<RgbImage> {
    match images.dims() {
        [n, 3, h, w] if n * h * w > 0 && *n > 1 => grid(images, 8, &GridText::default()),
        [3, h, w] | [1, 3, h, w] if h * w > 0 => {
            if *h.max(w) > MAX_SIDE {
                bail!(Limit, "show: expected an image of at most {MAX_SIDE} pixels a side, got {w} x {h}"; hint: "make it smaller");
            }
            let one = to_rgb(images)?;
            let zoom = (128 / (*h).max(*w)).clamp(1, 8) as u32;
            Ok(imageops::resize(&one, one.width() * zoom, one.height() * zoom, imageops::FilterType::Nearest))
        }
        other => bail!(Shape, "show: expected images [batch, 3, height, width] or [3, height, width], got {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::shapes;
    use amscript_tensor::Rng;

    #[test]
    fn a_jpeg_that_is_cut_off_is_refused() {
        let (images, _) = shapes(1, &mut Rng::new(0)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jpg");
        save(&images, &path).unwrap();
        assert_eq!(load(&path).unwrap().dims(), [1, 3, 64, 64]);
        let bytes = std::fs::read(&path).unwrap();
        for share in [40, 70, 95] {
            std::fs::write(&path, &bytes[..bytes.len() * share / 100]).unwrap();
            assert!(load(&path).unwrap_err().message.contains("cut off"));
        }
        let motion = b"\0\0ftypmp42\xff\xd9\x12\xff\xda\x34";
        std::fs::write(&path, [&bytes[..], motion].concat()).unwrap();
        assert!(load(&path).is_ok());
        // with another image in a segment, which ends
        let thumbnail =
            [&bytes[..2], &[0xff, 0xe1], &(bytes.len() as u16 + 2).to_be_bytes(), &bytes[..], &bytes[2..]].concat();
        std::fs::write(&path, &thumbnail).unwrap();
        assert!(load(&path).is_ok());
        std::fs::write(&path, &thumbnail[..thumbnail.len() - 10]).unwrap();
        assert!(load(&path).unwrap_err().message.contains("cut off"));
    }

    /// The bytes of an image, changed.
    fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// A JPEG of 16 x 8 pixels, left half black, right half white, whose EXIF says how it is to be turned.
    fn turned(orientation: u8) -> Vec<u8> {
        let image = RgbImage::from_fn(16, 8, |x, _| Rgb([if x < 8 { 0 } else { 255 }; 3]));
        let bytes = encoded(image.into(), ImageFormat::Jpeg);
        let exif =
            [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0][..], &[0; 4]].concat();
        let marker = [&[0xff, 0xe1, 0, exif.len() as u8 + 2][..], &exif].concat();
        [&bytes[..2], &marker, &bytes[2..]].concat()
    }

    #[test]
    fn images_are_turned_as_they_say() {
        let corner = |orientation| {
            let image = decode(&turned(orientation)).unwrap();
            (image.dimensions(), image.get_pixel(0, 0).0[0] > 128, image.get_pixel(image.width() - 1, 0).0[0] > 128)
        };
        assert_eq!(corner(1), ((16, 8), false, true));
        assert_eq!(corner(3), ((16, 8), true, false));
        assert_eq!(corner(6), ((8, 16), false, false));
        assert_eq!(corner(8), ((8, 16), true, true));
    }

    #[test]
    fn what_is_transparent_is_white_and_other_formats_are_named() {
        let see_through = RgbaImage::from_fn(3, 1, |x, _| image::Rgba([200, 0, 0, [0, 128, 255][x as usize]]));
        let seen = decode(&encoded(see_through.into(), ImageFormat::Png)).unwrap();
        assert_eq!(seen.pixels().map(|p| p.0).collect::<Vec<_>>(), [[255; 3], [227, 127, 127], [200, 0, 0]]);
        for (bytes, name) in [
            (&b""[..], "0 bytes"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
            (b"GIF89a", "Gif"),
            (b"BM", "Bmp"),
            (b"text", "neither"),
        ] {
            let error = decode(bytes).unwrap_err();
            assert!(error.message == format!("expected a PNG or JPEG, got {name}") && error.hint.is_some(), "{error}");
        }
        let png = encoded(RgbImage::new(9, 9).into(), ImageFormat::Png);
        assert!(decode(&png[..png.len() / 2]).unwrap_err().hint.unwrap().starts_with("it is damaged or cut off"));
    }

    #[test]
    fn images_that_claim_to_be_huge_are_refused_before_they_are_read() {
        let mut jpeg = turned(1);
        let sizes = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
        jpeg[sizes..sizes + 4].copy_from_slice(&[50, 200, 50, 200]);
        let error = decode(&jpeg).unwrap_err();
        assert_eq!((error.kind, error.message.ends_with("got 13000 x 13000")), (Kind::Limit, true), "{error}");
        let many = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap().broadcast_as((20_000, 3, 64, 64)).unwrap();
        assert_eq!(grid(&many, 100, &GridText::default()).unwrap_err().kind, Kind::Limit);
    }

    #[test]
    fn png_round_trip() {
        let (images, _) = shapes(1, &mut Rng::new(0)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        save(&images, &path).unwrap();
        let back = load(&path).unwrap();
        let worst = (back - images).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(worst.to_scalar::<f32>().unwrap() <= 0.5 / 255.0 + 1e-6);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn small_pictures_are_enlarged() {
        let size =
            |shape: &[usize]| picture(&Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()).unwrap().dimensions();
        assert_eq!([size(&[3, 4, 6]), size(&[1, 3, 100, 40]), size(&[3, 300, 1])], [(48, 32), (40, 100), (1, 300)]);
        assert_eq!(size(&[3, 3, 64, 64]), (3 * 134 + 6, 134 + 6));
        assert!(picture(&Tensor::zeros((0, 3, 4, 4), DType::F32, &Device::Cpu).unwrap()).is_err());
    }

    #[test]
    fn grid_places_cells_and_text() {
        let images = Tensor::zeros((3, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        let bare = grid(&images, 2, &GridText::default()).unwrap();
        assert_eq!(bare.dimensions(), (2 * 134 + 6, 2 * 134 + 6));
        assert_eq!((bare.get_pixel(6, 6).0[0], bare.get_pixel(140, 140).0[0]), (0, 255));
        let text = GridText { captions: vec!["one two".into()], header: vec!["base".into()] };
        let thin = Tensor::zeros((2, 3, 200, 1), DType::F32, &Device::Cpu).unwrap();
        let long = GridText { captions: vec!["word ".repeat(1000)], ..GridText::default() };
        assert_eq!(grid(&thin, 2, &long).unwrap().height(), 6 + 200 + 120 + 4 + 6);
        let labelled = grid(&images, 2, &text).unwrap();
        assert_eq!(labelled.height(), bare.height() + 2 * 14 + 20);
        assert!(labelled.pixels().any(|p| *p == INK));
    }

    #[test]
    fn mistakes_are_named() {
        let images = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let message = |e: Error| e.to_string();
        assert!(message(save(&images, Path::new("x.png")).unwrap_err()).contains("image_grid"));
        let one = images.get(0).unwrap();
        assert!(message(save(&one, Path::new("x.gif")).unwrap_err()).contains(".png"));
        assert!(message(save(&one, Path::new("/nowhere/x.png")).unwrap_err()).contains("/nowhere/x.png"));
        assert!(message(load(Path::new("absent.png")).unwrap_err()).contains("absent.png"));
        let other = ("b".into(), Tensor::zeros((1, 3, 4, 4), DType::F32, &Device::Cpu).unwrap());
        assert!(message(compare(&[("a".into(), images), other], 1, &[]).unwrap_err()).contains("one shape"));
    }
}
