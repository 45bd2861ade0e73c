//! Chapter `image`: image files and grids.

use super::*;
use crate::options;
use amscript_base::input;
use amscript_nn::data::image as pictures;
use amscript_tensor::Tensor;

options! {
    /// What stands around the images of a grid.
    pub struct GridOptions {
        /// A text under each image: an array, a prompt set or a condition.
        captions: Dynamic = Dynamic::from(Array::new()),
    }
}

impl GridOptions {
    fn captions(self, function: &str) -> Result<Vec<String>> {
        data::captions(self.captions, &format!("{function}: option `captions`"))
    }
}

/// Images are `[batch, 3, height, width]` in `[0, 1]`.
#[export_module(manifest)]
pub mod image {
    use super::*;

    /// Reads a PNG or JPEG file as `[1, 3, height, width]`; its content decides which it is, not its name.
    ///
    /// It is turned as its EXIF says. Transparent pixels are put on white, with a warning: the colours below them are whatever their
    /// program left there. Files that are cut off, other formats and more than 67 million pixels are refused.
    ///
    /// ```rhai
    /// save_image(ones([3, 4, 5]), "white.png");
    /// load_image("white.png").shape   //=> [1, 3, 4, 5]
    /// load_image("absent.png")        //=> error: no file "absent.png"
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn load_image(context: NativeCallContext, path: &str) -> RhaiResultOf<Tensor> {
        let session = Session::of(&context);
        let file = session.readable(path).map_err(|e| e.within("load_image"))?;
        input::note(&file).map_err(|e| Error::new(Kind::File, format!("load_image: {path}: {e}")))?;
        Ok(pictures::load(&file)?.to_device(session.device())?)
    }

    /// Writes one image, `[3, height, width]` or `[1, 3, height, width]`, as PNG or JPEG into the run's folder.
    ///
    /// ```rhai
    /// save_image(zeros([1, 3, 8, 8]), "black.png");
    /// save_image(zeros([2, 3, 8, 8]), "two.png")   //=> error: save_image: image must be [3, height, width], got [2, 3, 8, 8]
    /// save_image(zeros([3, 8, 8]), "black.gif")    //=> error: save_image: file must end in .png, .jpg or .jpeg
    /// ```
    #[rhai_fn(return_raw)]
    pub fn save_image(context: NativeCallContext, image: Tensor, path: &str) -> RhaiResultOf<()> {
        let session = Session::of(&context);
        let file = session.writable(path).map_err(|e| e.within("save_image"))?;
        pictures::save(&image, &file)?;
        session.tell_written(&file);
        Ok(())
    }

    /// Lays out a batch row by row as one image; small ones are enlarged by whole factors.
    ///
    /// ```rhai
    /// let world = shapes(6, rng(0));
    /// image_grid(world.images, 3).shape                                     //=> [1, 3, 274, 408]
    /// image_grid(world.images, 3, #{ captions: world.captions }).shape[1]   //=> 3
    /// image_grid(world.images, 0)                                           //=> error: needs at least one column
    /// ```
    #[rhai_fn(return_raw)]
    pub fn image_grid(images: Tensor, columns: i64, options: Map) -> RhaiResultOf<Tensor> {
        let captions = GridOptions::parse("image_grid", options)?.captions("image_grid")?;
        let text = pictures::GridText { captions, header: Vec::new() };
        let columns = option::convert(columns.into(), "image_grid")?;
        Ok(pictures::from_rgb(&pictures::grid(&images, columns, &text)?)?)
    }

    /// Sets of images of the same prompts side by side, such as before and after: each cell holds one image of every set.
    ///
    /// ```rhai
    /// let a = zeros([4, 3, 64, 64]);
    /// compare_grid(["base", "tuned"], [a, a + 1], 2).shape   //=> [1, 3, 294, 534]
    /// compare_grid(["base"], [a, a], 2)                      //=> error: compare_grid: needs one name per set, got 1 and 2
    /// ```
    #[rhai_fn(return_raw)]
    pub fn compare_grid(names: Array, sets: Array, columns: i64, options: Map) -> RhaiResultOf<Tensor> {
        let captions = GridOptions::parse("compare_grid", options)?.captions("compare_grid")?;
        let sets = named(option::list(names, "compare_grid: names")?, option::list(sets, "compare_grid: sets")?)?;
        let columns = option::convert(columns.into(), "compare_grid")?;
        Ok(pictures::from_rgb(&pictures::compare(&sets, columns, &captions)?)?)
    }

    /// Shows one image, or a batch as a grid of at most 8 columns, in the terminal.
    ///
    /// The terminal's own way is taken: the graphics of kitty or iTerm2, sixels, else coloured half blocks, and shades of ASCII
    /// where there is no colour. Without a terminal a PNG file is written, and its path printed. `AMSCRIPT_IMAGES` set to
    /// `kitty`, `iterm`, `sixel`, `blocks`, `file` or `none` decides otherwise.
    ///
    /// ```rhai
    /// show(shapes(2, rng(0)).images)   //=> ()
    /// show(zeros([3]))                 //=> error: show: expected images [batch, 3, height, width] or [3, height, width], got [3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn show(context: NativeCallContext, images: Tensor) -> RhaiResultOf<()> {
        Ok(Session::of(&context).show_image(&pictures::picture(&images)?)?)
    }
}

fn named(names: Vec<String>, sets: Vec<Tensor>) -> Result<Vec<(String, Tensor)>> {
    if names.len() != sets.len() {
        amscript_base::bail!(Shape, "compare_grid: needs one name per set, got {} and {}", names.len(), sets.len());
    }
    Ok(names.into_iter().zip(sets).collect())
}
