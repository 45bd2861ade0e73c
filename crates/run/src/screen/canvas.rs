//! A plotters backend on an RGB image, with the bitmap font for text: no system fonts.

use amscript_nn::data::font;
use image::{Rgb, RgbImage};

use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontTransform};
use std::convert::Infallible;

pub struct Canvas<'a>(pub &'a mut RgbImage);

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// Font scale of a text style: 1 below 16 pixels, then 2, ..
fn scale(size: f64) -> u32 {
    (size / 8.0).floor().clamp(1.0, 4.0) as u32
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Drawn {
        if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
            && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
        {
            let (r, g, b) = color.rgb;
            let mix =
                |old: u8, new: u8| (f64::from(old) + color.alpha * (f64::from(new) - f64::from(old))).round() as u8;
            *pixel = Rgb([mix(pixel.0[0], r), mix(pixel.0[1], g), mix(pixel.0[2], b)]);
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let scale = scale(style.size());
        Ok((font::width(text, scale), 7 * scale))
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Drawn {
        let scale = scale(style.size());
        let (width, height) = (font::width(text, scale) as i32, 7 * scale as i32);
        let left = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        let top = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let (turn, color): (FontTransform, _) = (style.transform(), style.color());
        let mut pixels = Vec::new();
        font::each_pixel(text, scale, |dx, dy| pixels.push((dx as i32, dy as i32)));
        for (dx, dy) in pixels {
            let (dx, dy) = turn.transform(left + dx, top + dy);
            self.draw_pixel((x + dx, y + dy), color)?;
        }
        Ok(())
    }
}
