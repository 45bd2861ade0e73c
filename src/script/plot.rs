//! Chapter `plot`: pictures of numbers.

use super::*;
use crate::data::image::from_rgb;
use crate::options;
use crate::run::plot::{self as plots, Labels, Series};
use crate::tensor::{Tensor, show};

options! {
    /// Names around a plot.
    pub struct PlotOptions {
        /// Above the plot.
        title: String = String::new(),
        /// Under the horizontal axis.
        x_label: String = String::new(),
        /// Beside the vertical axis.
        y_label: String = String::new(),
    }
}

options! {
    /// Names around a histogram, and its parts.
    pub struct HistogramOptions {
        /// Above the plot.
        title: String = String::new(),
        /// Under the horizontal axis.
        x_label: String = String::new(),
        /// Beside the vertical axis.
        y_label: String = String::from("count"),
        /// Number of bars.
        bins: usize = 20,
    }
}

impl PlotOptions {
    fn labels(self) -> Labels {
        Labels { title: self.title, x: self.x_label, y: self.y_label }
    }
}

fn numbers(value: Dynamic, function: &str) -> Result<Vec<f64>> {
    if let Some(tensor) = value.read_lock::<Tensor>() {
        return show::values(&tensor);
    }
    option::list(option::convert(value, function)?, function)
}

/// A line per entry of a map, or one line; x counts from 0.
fn series(values: Dynamic) -> Result<Vec<Series>> {
    let line = |name: String, value: Dynamic| {
        let values = numbers(value, "plot")?.into_iter().enumerate();
        Ok(Series { name, points: values.map(|(i, y)| (i as f64, y)).collect() })
    };
    match values.is_map() {
        true => {
            option::convert::<Map>(values, "plot")?.into_iter().map(|(name, v)| line(name.to_string(), v)).collect()
        }
        false => Ok(vec![line(String::new(), values)?]),
    }
}

/// Pictures of numbers as images, for `save_image`, `run.images` and `show`.
#[export_module(manifest)]
pub mod plot {
    use super::*;

    /// Lines: of an array or a tensor, or one for each entry of a map.
    ///
    /// ```rhai
    /// plot([1, 3, 2]).shape                                          //=> [1, 3, 400, 640]
    /// plot(#{ base: [1, 3], tuned: [2, 4] }, #{ title: "reward" }).shape   //=> [1, 3, 400, 640]
    /// plot([])                                                       //=> error: plot: needs at least one finite value
    /// ```
    #[rhai_fn(return_raw)]
    pub fn plot(values: Dynamic, options: Map) -> RhaiResultOf<Tensor> {
        let labels = PlotOptions::parse("plot", options)?.labels();
        Ok(from_rgb(&plots::lines(&series(values)?, &labels)?)?)
    }

    /// Points at `(x, y)`.
    ///
    /// ```rhai
    /// scatter([1, 2, 3], [1, 4, 9], #{ x_label: "x", y_label: "x squared" }).shape   //=> [1, 3, 400, 640]
    /// scatter([1, 2], [1])                                                           //=> error: one y for each x
    /// ```
    #[rhai_fn(return_raw)]
    pub fn scatter(x: Dynamic, y: Dynamic, options: Map) -> RhaiResultOf<Tensor> {
        let labels = PlotOptions::parse("scatter", options)?.labels();
        let (x, y) = (numbers(x, "scatter")?, numbers(y, "scatter")?);
        if x.len() != y.len() {
            let message = format!("scatter: needs one y for each x, got {} and {}", x.len(), y.len());
            return Err(Error::new(Kind::Shape, message).into());
        }
        let points: Vec<(f64, f64)> = x.into_iter().zip(y).collect();
        Ok(from_rgb(&plots::scatter(&points, &labels)?)?)
    }

    /// How often values fall in each of `bins` equal parts of their range.
    ///
    /// ```rhai
    /// histogram(rng(0).normal([1000]), #{ bins: 30 }).shape   //=> [1, 3, 400, 640]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn histogram(values: Dynamic, options: Map) -> RhaiResultOf<Tensor> {
        let options = HistogramOptions::parse("histogram", options)?;
        let labels = Labels { title: options.title, x: options.x_label, y: options.y_label };
        Ok(from_rgb(&plots::histogram(&numbers(values, "histogram")?, options.bins, &labels)?)?)
    }

    /// A cell per number of a matrix `[rows, columns]`, dark for the smallest, yellow for the largest; row 0 at the bottom.
    ///
    /// ```rhai
    /// heatmap(arange(12).reshape([3, 4])).shape   //=> [1, 3, 400, 640]
    /// heatmap(zeros([3]))                         //=> error: heatmap: needs a matrix, got [3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn heatmap(matrix: Tensor, options: Map) -> RhaiResultOf<Tensor> {
        let labels = PlotOptions::parse("heatmap", options)?.labels();
        let Ok((_, columns)) = matrix.dims2() else {
            return Err(Error::new(Kind::Shape, format!("heatmap: needs a matrix, got {:?}", matrix.dims())).into());
        };
        Ok(from_rgb(&plots::heatmap(&show::values(&matrix)?, columns, &labels)?)?)
    }
}
