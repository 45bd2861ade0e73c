//! Chapter `plot`: pictures of numbers.

use super::*;
use crate::options;
use amscript_base::bail;
use amscript_nn::data::image as pictures;
use amscript_run::Run;
use amscript_run::screen::{Labels, Series, Style};
use amscript_tensor::{Tensor, show};

options! {
    /// Names around a plot.
    pub struct LabelOptions {
        /// Above the plot.
        title: String = String::new(),
        /// Under the horizontal axis.
        x_label: String = String::new(),
        /// Beside the vertical axis.
        y_label: String = String::new(),
    }
}

options! {
    /// What is around lines and points.
    pub struct PlotOptions {
        /// Equal factors are equally far apart on the horizontal axis.
        log_x: bool = false,
        /// The same of the vertical axis.
        log_y: bool = false,
        /// Mark the points of lines.
        points: bool = false,
        ..labels: LabelOptions,
    }
}

options! {
    /// What is around a heat map.
    pub struct HeatmapOptions {
        /// Where the first column begins and the last ends; () counts them.
        x: Option<[f64; 2]> = None,
        /// Where the first row begins and the last ends; () counts them.
        y: Option<[f64; 2]> = None,
        ..labels: LabelOptions,
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

impl LabelOptions {
    fn core(self) -> Labels {
        Labels { title: self.title, x: self.x_label, y: self.y_label, ..Labels::default() }
    }
}

impl PlotOptions {
    fn labels(self) -> Labels {
        Labels { log_x: self.log_x, log_y: self.log_y, ..self.labels.core() }
    }
}

fn numbers(value: Dynamic, function: &str) -> Result<Vec<f64>> {
    if let Some(tensor) = value.read_lock::<Tensor>() {
        return show::values(&tensor);
    }
    option::list(option::convert(value, function)?, function)
}

/// A line: `#{ x: .., y: .. }`, with `error` upright bars too, or values alone, whose x counts from 0.
fn line(name: String, value: Dynamic, function: &str) -> Result<Series> {
    if !value.is_map() {
        let points = numbers(value, function)?.into_iter().enumerate().map(|(i, y)| (i as f64, y)).collect();
        return Ok(Series { name, points, ..Series::default() });
    }
    let mut parts: Map = option::convert(value, function)?;
    let mut part = |name: &str| -> Result<Option<Vec<f64>>> {
        parts.remove(name).map(|part| numbers(part, &format!("{function}: `{name}`"))).transpose()
    };
    let (x, y, error) = (part("x")?, part("y")?, part("error")?);
    if let Some(other) = parts.keys().next() {
        bail!(Value, "{function}: a line has `x`, `y` and `error`, got `{other}`");
    }
    let given = |part: Option<Vec<f64>>, name: &str| match part {
        Some(part) => Ok(part),
        None => bail!(Missing, "{function}: a line needs `x` and `y`, got no `{name}`"),
    };
    let points = paired(given(x, "x")?, given(y, "y")?, function)?;
    let error = error.unwrap_or_else(|| vec![f64::NAN; points.len()]);
    if error.len() != points.len() {
        bail!(Shape, "{function}: needs one error for each point, got {} and {}", error.len(), points.len());
    }
    let bars = points.iter().zip(error).map(|((x, y), e)| (*x, [y - e.abs(), y + e.abs()])).collect();
    Ok(Series { name, points, bars })
}

fn paired(x: Vec<f64>, y: Vec<f64>, function: &str) -> Result<Vec<(f64, f64)>> {
    if x.len() != y.len() {
        bail!(Shape, "{function}: needs one y for each x, got {} and {}", x.len(), y.len());
    }
    Ok(x.into_iter().zip(y).collect())
}

/// A line per entry of a map, or one line.
fn series(values: Dynamic, function: &str) -> Result<Vec<Series>> {
    match values.is_map() {
        true => {
            let lines = option::convert::<Map>(values, function)?.into_iter();
            lines.map(|(name, value)| line(name.to_string(), value, function)).collect()
        }
        false => Ok(vec![line(String::new(), values, function)?]),
    }
}

/// Writes a plot by the ending of its file.
fn save(plot: &amscript_run::screen::Plot, file: &std::path::Path) -> Result<()> {
    let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "svg" => {
            let written = amscript_base::file::write_whole(file, plot.svg()?.as_bytes());
            written.map_err(|e| Error::new(Kind::File, format!("save_image: cannot write `{}` ({e})", file.display())))
        }
        "png" | "jpg" | "jpeg" => pictures::write(&plot.image()?, file),
        _ => bail!(Value, "save_image: a plot's file must end in .png, .jpg, .jpeg or .svg, got `{}`", file.display()),
    }
}

/// Pictures of numbers: `show` draws them in the terminal, `save_image` writes PNG or SVG, `run.images` keeps them.
#[export_module(manifest)]
pub mod plot {
    use super::*;

    pub type Plot = amscript_run::screen::Plot;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_plot(plot: &mut Plot) -> String {
        plot.to_string()
    }

    /// Lines: of an array or a tensor, or one for each entry of a map; an entry may be a map of its own `x` and `y`, and of the `error` of
    /// each y, which pictures show as a bar.
    ///
    /// ```rhai
    /// plot([1, 3, 2])                                                //=> plot of 1 line, 640 x 400
    /// plot(#{ base: [1, 3], tuned: [2, 4] }, #{ title: "reward" }).shape   //=> [1, 3, 400, 640]
    /// plot(#{ "AM-1": #{ x: [1, 10, 100], y: [1, 3, 2] } }, #{ log_x: true, points: true }).shape   //=> [1, 3, 400, 640]
    /// plot(#{ "AM-1": #{ x: [1, 2], y: [0.5, 0.6], error: [0.02, 0.01] } }).shape                 //=> [1, 3, 400, 640]
    /// plot([])                                                       //=> error: plot: needs at least one finite value
    /// plot([0, 1], #{ log_y: true })                                 //=> error: plot: a logarithmic axis needs values above 0
    /// plot(#{ a: #{ x: [1, 2], y: [1] } })                           //=> error: plot: needs one y for each x
    /// ```
    #[rhai_fn(return_raw)]
    pub fn plot(values: Dynamic, options: Map) -> RhaiResultOf<Plot> {
        let options = PlotOptions::parse("plot", options)?;
        let style = if options.points { Style::Marked } else { Style::Lines };
        Ok(Plot::lines(series(values, "plot")?, style, options.labels())?)
    }

    /// Points at `(x, y)`; of several series, given as for `plot`, joined by thin lines in their order.
    ///
    /// ```rhai
    /// scatter([1, 2, 3], [1, 4, 9], #{ x_label: "x", y_label: "x squared" }).shape   //=> [1, 3, 400, 640]
    /// scatter([1, 2], [1])                                                           //=> error: one y for each x
    /// scatter(#{ "AM-1": #{ x: [1, 2], y: [1, 3] }, "AM-3": #{ x: [2, 1], y: [1, 3] } }).shape   //=> [1, 3, 400, 640]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn scatter(x: Dynamic, y: Dynamic, options: Map) -> RhaiResultOf<Plot> {
        let labels = PlotOptions::parse("scatter", options)?.labels();
        let (x, y) = (numbers(x, "scatter")?, numbers(y, "scatter")?);
        Ok(Plot::scatter(paired(x, y, "scatter")?, labels)?)
    }

    #[rhai_fn(name = "scatter", return_raw)]
    pub fn scatter_series(series: Map, options: Map) -> RhaiResultOf<Plot> {
        let labels = PlotOptions::parse("scatter", options)?.labels();
        Ok(Plot::lines(super::series(series.into(), "scatter")?, Style::Joined, labels)?)
    }

    /// How often values fall in each of `bins` equal parts of their range.
    ///
    /// ```rhai
    /// histogram(rng(0).normal([1000]), #{ bins: 30 }).shape   //=> [1, 3, 400, 640]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn histogram(values: Dynamic, options: Map) -> RhaiResultOf<Plot> {
        let options = HistogramOptions::parse("histogram", options)?;
        let labels = Labels { title: options.title, x: options.x_label, y: options.y_label, ..Labels::default() };
        Ok(Plot::histogram(&numbers(values, "histogram")?, options.bins, labels)?)
    }

    /// A cell per number of a matrix `[rows, columns]`, dark for the smallest, yellow for the largest; row 0 at the bottom.
    ///
    /// ```rhai
    /// heatmap(arange(12).reshape([3, 4])).shape   //=> [1, 3, 400, 640]
    /// heatmap(arange(12).reshape([3, 4]), #{ x: [0, 50], y: [0.85, 1], y_label: "t" }).shape   //=> [1, 3, 400, 640]
    /// heatmap(zeros([3]))                         //=> error: heatmap: needs a matrix, got [3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn heatmap(matrix: Tensor, options: Map) -> RhaiResultOf<Plot> {
        let o = HeatmapOptions::parse("heatmap", options)?;
        let labels = o.labels.core();
        let Ok((_, columns)) = matrix.dims2() else {
            return Err(Error::new(Kind::Shape, format!("heatmap: needs a matrix, got {:?}", matrix.dims())).into());
        };
        Ok(Plot::heatmap(show::values(&matrix)?, columns, [o.x, o.y], labels)?)
    }

    /// Its picture as an image `[1, 3, 400, 640]`, for a grid or a product of them.
    ///
    /// ```rhai
    /// cat([plot([1, 2]).image, plot([2, 1]).image], 3).shape   //=> [1, 3, 400, 1280]
    /// ```
    #[rhai_fn(get = "image", pure, return_raw)]
    pub fn plot_image(plot: &mut Plot) -> RhaiResultOf<Tensor> {
        Ok(pictures::from_rgb(&plot.image()?)?)
    }

    /// The shape of its image.
    ///
    /// ```rhai
    /// plot([1, 2]).shape   //=> [1, 3, 400, 640]
    /// ```
    #[rhai_fn(get = "shape", pure)]
    pub fn plot_shape(_plot: &mut Plot) -> Array {
        let (width, height) = amscript_run::screen::drawing::SIZE;
        [1, 3, height, width].map(|n| Dynamic::from(i64::from(n))).to_vec()
    }

    /// Shows a plot in the terminal: drawn in characters, or as an image where the terminal shows pixels.
    ///
    /// ```rhai
    /// show(plot([1, 3, 2]))   //=> ()
    /// ```
    #[rhai_fn(name = "show", return_raw)]
    pub fn show_in_terminal(context: NativeCallContext, plot: Plot) -> RhaiResultOf<()> {
        Ok(Session::of(&context).show_plot(&plot)?)
    }

    /// Writes a plot as PNG, JPEG or SVG into the run's folder, by the ending of `path`.
    ///
    /// ```rhai
    /// save_image(plot([1, 3, 2]), "line.svg");
    /// save_image(plot([1, 3, 2]), "line.png");
    /// load_image("line.png").shape               //=> [1, 3, 400, 640]
    /// save_image(plot([1, 3, 2]), "line.pdf")    //=> error: save_image: a plot's file must end in .png, .jpg, .jpeg or .svg
    /// ```
    #[rhai_fn(name = "save_image", return_raw)]
    pub fn save_plot(context: NativeCallContext, plot: Plot, path: &str) -> RhaiResultOf<()> {
        let session = Session::of(&context);
        let file = session.writable(path).map_err(|e| e.within("save_image"))?;
        super::save(&plot, &file)?;
        session.tell_written(&file);
        Ok(())
    }

    /// Writes a plot into the run: `images/<name>-<step>.png`, without the step outside a loop.
    ///
    /// ```rhai
    /// start_run(#{}).images("rewards", plot([1, 3, 2]))   //=> ()
    /// ```
    #[rhai_fn(name = "images", return_raw)]
    pub fn plot_of_run(run: Run, name: &str, plot: Plot) -> RhaiResultOf<()> {
        run.images(name, &pictures::from_rgb(&plot.image()?)?, &[])?;
        Ok(())
    }
}
