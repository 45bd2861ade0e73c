//! Images: tensors in `[0, 1]` to and from files, and grids with labels.

use super::font;
use amscript_base::{
    bail,
    error::{Error, Kind, Result},
};
use amscript_tensor::{DType, Device, Tensor};
use image::{ImageFormat, ImageReader, Rgb, RgbImage, imageops};
use std::path::Path;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40; 3]);
/// Pixels between cells.
const GAP: u32 = 6;

/// Reads a PNG or JPEG file as `[1, 3, height, width]`, f32 in `[0, 1]`.
pub fn load(path: &Path) -> Result<Tensor> {
    let name = path.display();
    let open = || {
        let bytes = std::fs::read(path)?;
        let reader = ImageReader::new(std::io::Cursor::new(&bytes)).with_guessed_format()?;
        if reader.format() == Some(ImageFormat::Jpeg) && !ends(&bytes) {
            return Err(std::io::Error::other("the JPEG is cut off"));
        }
        reader.decode().map_err(std::io::Error::other)
    };
    let file = open().map_err(|e| Error::new(Kind::File, format!("load_image: cannot read `{name}` ({e})")))?;
    from_rgb(&file.to_rgb8())
}

/// Whether a JPEG has its end behind where its pixels begin: without, its reader fills what is missing with grey.
fn ends(jpeg: &[u8]) -> bool {
    let last = |marker: u8| jpeg.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
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
    let mut bytes = std::io::Cursor::new(Vec::new());
    let failed = |e: std::io::Error| Error::new(Kind::File, format!("save_image: cannot write `{name}` ({e})"));
    image.write_to(&mut bytes, format).map_err(|e| failed(std::io::Error::other(e)))?;
    amscript_base::file::write_whole(path, bytes.get_ref()).map_err(failed)
}

/// `[1, 3, height, width]` from 8-bit pixels.
pub fn from_rgb(image: &RgbImage) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = Tensor::from_slice(image.as_raw(), (1, height, width, 3), &Device::Cpu)?;
    (pixels.permute((0, 3, 1, 2))?.to_dtype(DType::F32)? / 255.0)?.contiguous()
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
    let zoom = (128 / height.max(1)).clamp(1, 8) as u32;
    let (cell_width, cell_height) = (width as u32 * zoom, height as u32 * zoom);
    let captions: Vec<Vec<String>> = text.captions.iter().map(|c| font::wrap(c, cell_width - 4, 1)).collect();
    let text_height = captions.iter().map(|c| c.len() as u32 * font::LINE).max().map_or(0, |h| h + 4);
    let header_height = if text.header.is_empty() { 0 } else { 2 * font::LINE };
    let (step_x, step_y) = (cell_width + GAP, cell_height + text_height + GAP);
    let rows = batch.div_ceil(columns) as u32;
    let mut page = RgbImage::from_pixel(GAP + columns as u32 * step_x, GAP + header_height + rows * step_y, PAPER);
    for i in 0..batch {
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
        std::fs::write(&path, [&bytes[..], b"\0\0"].concat()).unwrap();
        assert!(load(&path).is_ok());
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
