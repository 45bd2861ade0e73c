//! Plots as pictures: an image of pixels, or SVG text.

use super::canvas::Canvas;
use super::plot::{Cells, Figure, Labels, Plot, Series, Style, finite};
use super::scale::Scale;
use crate::panel::Beside;
use amscript_base::{bail, error::Result};
use image::{Rgb, RgbImage, imageops};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Pixels of a plot: width, height.
pub const SIZE: (u32, u32) = (640, 400);

/// Colours of series, in order.
pub(super) const COLORS: [[u8; 3]; 12] = [
    [31, 90, 180],
    [214, 90, 20],
    [40, 140, 70],
    [190, 40, 60],
    [120, 70, 170],
    [120, 90, 60],
    [220, 120, 180],
    [110, 110, 110],
    [20, 160, 170],
    [205, 165, 20],
    [20, 20, 20],
    [130, 180, 240],
];

fn color(i: usize) -> RGBColor {
    let [r, g, b] = COLORS[i % COLORS.len()];
    RGBColor(r, g, b)
}

impl Plot {
    /// The plot as pixels.
    pub fn image(&self) -> Result<RgbImage> {
        let mut image = RgbImage::from_pixel(SIZE.0, SIZE.1, Rgb([255; 3]));
        let drawn = self.draw(&Canvas(&mut image).into_drawing_area());
        match drawn {
            Ok(()) => Ok(image),
            Err(e) => bail!(Internal, "plot: cannot draw ({e})"),
        }
    }

    /// The plot as an SVG document.
    pub fn svg(&self) -> Result<String> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = area.fill(&WHITE).and_then(|()| self.draw(&area)).and_then(|()| area.present());
        drop(area);
        match drawn {
            Ok(()) => Ok(text),
            Err(e) => bail!(Internal, "plot: cannot draw ({e})"),
        }
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Drawing<B> {
        let names = self.names();
        let key = (!names.is_empty()).then(|| corner(names.len(), &self.figure.corners(), &self.axes));
        framed(area, &self.labels, &self.axes, key, |chart| match &self.figure {
            Figure::Lines(series, style) => draw_lines(chart, series, *style),
            Figure::Bars(range, counts) => {
                let width = (range.end - range.start) / counts.len() as f64;
                let left = |i: usize| range.start + i as f64 * width;
                let bar = |(i, n): (usize, &usize)| {
                    Rectangle::new([(left(i), 0.0), (left(i + 1), *n as f64)], color(0).mix(0.75).filled())
                };
                chart.draw_series(counts.iter().enumerate().map(bar)).map(drop)
            }
            Figure::Cells(cells) => draw_cells(chart, cells),
        })
    }
}

fn draw_lines<B: DrawingBackend>(chart: &mut Chart<B>, series: &[Series], style: Style) -> Drawing<B> {
    for (i, one) in series.iter().enumerate() {
        let color = color(i);
        let known = one.points.iter().copied().filter(finite);
        draw_errors(chart, one, color)?;
        if style == Style::Points {
            chart.draw_series(known.map(|p| Circle::new(p, 2, color.mix(0.7).filled())))?;
            continue;
        }
        let line = if style == Style::Joined { color.mix(0.5).stroke_width(1) } else { color.stroke_width(2) };
        for part in one.points.split(|p| !finite(p)) {
            chart.draw_series(LineSeries::new(part.iter().copied(), line))?;
        }
        if style != Style::Lines {
            chart.draw_series(known.map(|p| Circle::new(p, 3, color.filled())))?;
        }
        let key = chart.draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?;
        // plotters measures a name as about a fifth narrower than our font draws it
        key.label(format!("{}{}", one.name, " ".repeat(1 + one.name.chars().count() / 5)))
            .legend(move |(x, y)| Rectangle::new([(x, y - 1), (x + 14, y + 1)], color.filled()));
    }
    Ok(())
}

fn draw_errors<B: DrawingBackend>(chart: &mut Chart<B>, series: &Series, color: RGBColor) -> Drawing<B> {
    for bar in series.errors() {
        chart.draw_series(LineSeries::new(bar, color.mix(0.6).stroke_width(1)))?;
    }
    Ok(())
}

fn draw_cells<B: DrawingBackend>(chart: &mut Chart<B>, cells: &Cells) -> Drawing<B> {
    let range = cells.range();
    let place = |[from, to]: [f64; 2], n: usize, i: usize| from + (to - from) * i as f64 / n as f64;
    let (x, y) = (|i| place(cells.x, cells.columns, i), |i| place(cells.y, cells.rows, i));
    let cell = |i: usize| {
        let (column, row) = (i % cells.columns, i / cells.columns);
        let [r, g, b] = shade((cells.values[i] - range.start) / (range.end - range.start));
        Rectangle::new([(x(column), y(row)), (x(column + 1), y(row + 1))], RGBColor(r, g, b).filled())
    };
    chart.draw_series((0..cells.rows * cells.columns).map(cell)).map(drop)
}

/// One panel per series, two beside each other: values pale, their running mean dark; the base's level as a grey line, a bar over each
/// error, and a red line at each drift.
pub fn panels(series: &[(Series, Beside)]) -> Result<RgbImage> {
    let columns = series.len().clamp(1, 2) as u32;
    let rows = series.len().div_ceil(columns as usize) as u32;
    let mut page = RgbImage::from_pixel(columns * SIZE.0, rows.max(1) * SIZE.1, Rgb([255; 3]));
    for (i, (one, beside)) in series.iter().enumerate() {
        let known: Vec<(f64, f64)> = one.points.iter().copied().filter(finite).collect();
        if known.is_empty() {
            continue;
        }
        let labels = Labels { title: one.name.clone(), x: "step".into(), ..Labels::default() };
        let plot = Plot::lines(vec![Series { points: known.clone(), ..one.clone() }], Style::Lines, labels)?;
        let mean = running_mean(&one.points, one.points.len() / 20);
        let mut panel = RgbImage::from_pixel(SIZE.0, SIZE.1, Rgb([255; 3]));
        let area = Canvas(&mut panel).into_drawing_area();
        let drawn = framed(&area, &plot.labels, &plot.axes, None, |chart| {
            let (x, y) = (plot.axes[0].range(), plot.axes[1].range());
            let across =
                beside.level.filter(|v| y.contains(v)).map(|v| (vec![(x.start, v), (x.end, v)], BLACK.mix(0.5)));
            let drifts = beside.drifts.iter().map(|&step| (vec![(step, y.start), (step, y.end)], RED.mix(0.6)));
            for (line, color) in across.into_iter().chain(drifts) {
                chart.draw_series(LineSeries::new(line, color.stroke_width(1)))?;
            }
            draw_errors(chart, one, color(0))?;
            chart.draw_series(LineSeries::new(known, color(0).mix(0.3).stroke_width(1)))?;
            chart.draw_series(LineSeries::new(mean, color(0).stroke_width(2))).map(drop)
        });
        drop(area);
        if let Err(e) = drawn {
            bail!(Internal, "curves: cannot draw ({e})");
        }
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        imageops::replace(&mut page, &panel, i64::from(column * SIZE.0), i64::from(row * SIZE.1));
    }
    Ok(page)
}

/// Mean over the points at most `reach` places away, of those that can be drawn.
fn running_mean(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let near = |i: usize| &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
    let mean = |i: usize| {
        let (sum, n) = near(i).iter().filter(|p| finite(p)).fold((0.0, 0.0), |(s, n), p| (s + p.1, n + 1.0));
        (points[i].0, sum / n)
    };
    (0..points.len()).map(mean).filter(finite).collect()
}

type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<Scale, Scale>>;
type Drawing<B> = std::result::Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// The corner for a key of so many names: that with the fewest points.
fn corner(keys: usize, points: &[(f64, f64)], [x, y]: &[Scale; 2]) -> SeriesLabelPosition {
    const ALL: [(bool, bool, SeriesLabelPosition); 4] = [
        (true, false, SeriesLabelPosition::LowerRight),
        (true, true, SeriesLabelPosition::UpperRight),
        (false, true, SeriesLabelPosition::UpperLeft),
        (false, false, SeriesLabelPosition::LowerLeft),
    ];
    let height = (60 * keys + 60) as i32;
    let inside = |from_end: bool, at: i32, size: i32| if from_end { at > 1000 - size } else { at < size };
    let covered = |right: bool, upper: bool| {
        let under = |p: &&(f64, f64)| {
            inside(right, x.map(&p.0, (0, 1000)), 300) && inside(upper, y.map(&p.1, (0, 1000)), height)
        };
        points.iter().filter(under).count()
    };
    let best = ALL.into_iter().min_by_key(|(right, upper, _)| covered(*right, *upper));
    best.map_or(SeriesLabelPosition::LowerRight, |(_, _, position)| position)
}

/// Axes, then what `fill` draws, and a key of the named series.
fn framed<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    labels: &Labels,
    [x, y]: &[Scale; 2],
    key: Option<SeriesLabelPosition>,
    fill: impl FnOnce(&mut Chart<B>) -> Drawing<B>,
) -> Drawing<B> {
    let widest = y.ticks(7).iter().map(|v| y.text(*v).len()).max().unwrap_or(1) as u32;
    let mut builder = ChartBuilder::on(root);
    builder
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(14 + 6 * widest + if labels.y.is_empty() { 0 } else { 16 });
    if !labels.title.is_empty() {
        builder.caption(&labels.title, ("sans-serif", 16));
    }
    let mut chart = builder.build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .x_labels(8)
        .y_labels(7)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_label_formatter(&|v| x.text(*v))
        .y_label_formatter(&|v| y.text(*v))
        .x_desc(&labels.x)
        .y_desc(&labels.y)
        .label_style(("sans-serif", 10))
        .draw()?;
    fill(&mut chart)?;
    if let Some(corner) = key {
        let mut keys = chart.configure_series_labels();
        keys.position(corner).margin(10);
        keys.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).label_font(("sans-serif", 10)).draw()?;
    }
    Ok(())
}

/// Dark blue, teal, green, yellow for 0 to 1; grey for NaN.
pub(super) fn shade(value: f64) -> [u8; 3] {
    const STOPS: [[f64; 3]; 4] = [[40.0, 30.0, 90.0], [40.0, 110.0, 142.0], [70.0, 185.0, 115.0], [250.0, 230.0, 50.0]];
    if value.is_nan() {
        return [200, 200, 200];
    }
    let at = value.clamp(0.0, 1.0) * 3.0;
    let (low, part) = ((at as usize).min(2), at - (at as usize).min(2) as f64);
    [0, 1, 2].map(|i| (STOPS[low][i] + part * (STOPS[low + 1][i] - STOPS[low][i])).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(name: &str, phase: f64) -> Series {
        let points = (0..200).map(|i| (f64::from(i), (f64::from(i) / 20.0 + phase).sin())).collect();
        Series { name: name.into(), points, ..Series::default() }
    }

    fn line(points: Vec<(f64, f64)>, style: Style, labels: Labels) -> RgbImage {
        Plot::lines(vec![Series { points, ..Series::default() }], style, labels).unwrap().image().unwrap()
    }

    #[test]
    fn every_plot_has_ink_and_size() {
        let labels = || Labels { title: "title".into(), x: "steps".into(), y: "loss".into(), ..Labels::default() };
        let waves = vec![wave("first", 0.0), wave("second", 1.0)];
        let values: Vec<f64> = waves[0].points.iter().map(|p| p.1).collect();
        let plots = [
            Plot::lines(waves.clone(), Style::Lines, labels()),
            Plot::lines(waves.clone(), Style::Joined, labels()),
            Plot::scatter(waves[0].points.clone(), labels()),
            Plot::histogram(&values, 12, labels()),
            Plot::heatmap(values, 20, [Some([0.0, 1.0]), None], labels()),
        ];
        let images = plots.into_iter().map(|plot| (plot.unwrap().image(), SIZE));
        let beside = waves.into_iter().map(|wave| (wave, Beside::default())).collect::<Vec<_>>();
        for (plot, size) in images.chain([(panels(&beside), (2 * SIZE.0, SIZE.1))]) {
            let plot = plot.unwrap();
            assert_eq!(plot.dimensions(), size);
            let share = plot.pixels().filter(|p| p.0 != [255; 3]).count() as f64 / f64::from(size.0 * size.1);
            assert!(share > 0.01 && share < 0.95, "{share}");
        }
    }

    #[test]
    fn a_panel_shows_the_base_its_errors_and_its_drifts() {
        let count = |beside: Beside| {
            let image = panels(&[(wave("panel reward", 0.0), beside)]).unwrap();
            let red = image.pixels().filter(|p| p.0[0] > 200 && p.0[1] < 150 && p.0[2] < 150).count();
            let grey =
                image.pixels().filter(|p| p.0[0] == p.0[1] && p.0[1] == p.0[2] && (100..160).contains(&p.0[0])).count();
            (red, grey)
        };
        let (plain, marked) = (count(Beside::default()), count(Beside { level: Some(0.5), drifts: vec![100.0] }));
        assert!(marked.0 > plain.0 + 200 && marked.1 > plain.1 + 200, "{plain:?} {marked:?}");
        let tallest = |image: RgbImage| {
            let blue = |x, y| image.get_pixel(x, y).0[2] > image.get_pixel(x, y).0[0].saturating_add(50);
            (0..SIZE.0).map(|x| (0..SIZE.1).filter(|y| blue(x, *y)).count()).max().unwrap()
        };
        let page = |bars| panels(&[(Series { bars, ..wave("panel reward", 0.0) }, Beside::default())]).unwrap();
        let plot = |bars| {
            let series = vec![Series { bars, ..wave("", 0.0) }];
            Plot::lines(series, Style::Joined, Labels::default()).unwrap().image().unwrap()
        };
        let bar = || vec![(100.0, [-3.0, 3.0]), (120.0, [f64::NAN, 1.0])];
        for (without, with) in [(page(vec![]), page(bar())), (plot(vec![]), plot(bar()))] {
            let (without, with) = (tallest(without), tallest(with));
            assert!(without < 100 && with > 250, "{without} {with}");
        }
    }

    #[test]
    fn a_line_runs_where_the_numbers_say() {
        let plot = line(vec![(0.0, 0.0), (1.0, 1.0)], Style::Lines, Labels::default());
        let blue: Vec<(u32, u32)> =
            plot.enumerate_pixels().filter(|p| p.2.0 == COLORS[0]).map(|(x, y, _)| (x, y)).collect();
        let (first, last) = (blue.iter().min().unwrap(), blue.iter().max().unwrap());
        assert!(first.1 > 330 && last.1 < 40 && last.0 > 610, "{first:?} {last:?}");
    }

    #[test]
    fn powers_are_straight_on_logarithmic_axes() {
        let points = (0..9).map(|i| (2_f64.powi(i), 4_f64.powi(i))).collect();
        let plot = line(points, Style::Marked, Labels { log_x: true, log_y: true, ..Labels::default() });
        let blue: Vec<(u32, u32)> =
            plot.enumerate_pixels().filter(|p| p.2.0 == COLORS[0]).map(|(x, y, _)| (x, y)).collect();
        let (first, last) = (blue.iter().min().unwrap(), blue.iter().max().unwrap());
        let middle = blue.iter().filter(|p| p.0 == first.0.midpoint(last.0)).map(|p| p.1);
        let (low, high) = (middle.clone().max().unwrap(), middle.min().unwrap());
        assert!(low.abs_diff(first.1.midpoint(last.1)) < 6 && low - high < 9, "{first:?} {last:?} {low} {high}");
    }

    #[test]
    fn an_svg_holds_its_lines_and_words() {
        let labels = Labels { title: "reward & \"cost\"".into(), x: "step".into(), ..Labels::default() };
        let svg =
            Plot::lines(vec![wave("base", 0.0), wave("tuned", 1.0)], Style::Lines, labels).unwrap().svg().unwrap();
        assert!(svg.starts_with("<svg width=\"640\" height=\"400\""), "{svg}");
        assert!(svg.trim_end().ends_with("</svg>") && svg.matches("<polyline").count() >= 2, "{svg}");
        assert!(["base", "tuned", "step", "reward &amp;"].iter().all(|word| svg.contains(word)), "{svg}");
    }

    #[test]
    fn running_mean_of_a_line_is_the_line() {
        let line: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        assert_eq!(running_mean(&line, 2)[2..7], line[2..7]);
        assert_eq!(running_mean(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)], 1)[1], (1.0, 2.0));
    }
}
