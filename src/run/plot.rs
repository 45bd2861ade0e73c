//! Plots as pictures: lines, scatter, histogram, heat map, and the curves of a run.

use super::canvas::Canvas;
use super::scale::{Scale, widen};
use crate::{bail, error::Result};
use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;
use std::ops::Range;

/// What is around a plot: names, of which empty ones are left out, and which axes are logarithmic.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    pub title: String,
    pub x: String,
    pub y: String,
    pub log_x: bool,
    pub log_y: bool,
}

/// A named line; a missing or infinite value breaks it.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub const SIZE: (u32, u32) = (640, 400);

const COLORS: [RGBColor; 12] = [
    RGBColor(31, 90, 180),
    RGBColor(214, 90, 20),
    RGBColor(40, 140, 70),
    RGBColor(190, 40, 60),
    RGBColor(120, 70, 170),
    RGBColor(120, 90, 60),
    RGBColor(220, 120, 180),
    RGBColor(110, 110, 110),
    RGBColor(20, 160, 170),
    RGBColor(205, 165, 20),
    RGBColor(20, 20, 20),
    RGBColor(130, 180, 240),
];

/// How series are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Style {
    Lines,
    /// Lines with their points.
    Marked,
    /// Points joined by thin lines.
    Joined,
}

/// A line per series.
pub fn lines(series: &[Series], style: Style, labels: &Labels) -> Result<RgbImage> {
    let points = || series.iter().flat_map(|s| &s.points).filter(|p| finite(p));
    let keys = if series.len() > 1 { series.len() } else { 0 };
    let around = Around { labels, keys, room: if style == Style::Lines { 0.0 } else { 0.02 } };
    frame("plot", around, points(), |chart| {
        for (i, one) in series.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let line = if style == Style::Joined { color.mix(0.5).stroke_width(1) } else { color.stroke_width(2) };
            for part in one.points.split(|p| !finite(p)) {
                chart.draw_series(LineSeries::new(part.iter().copied(), line))?;
            }
            if style != Style::Lines {
                let known = one.points.iter().filter(|p| finite(p));
                chart.draw_series(known.map(|&p| Circle::new(p, 3, color.filled())))?;
            }
            let key = chart.draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?;
            // plotters measures a name as about a fifth narrower than our font draws it
            key.label(format!("{}{}", one.name, " ".repeat(1 + one.name.chars().count() / 5)))
                .legend(move |(x, y)| Rectangle::new([(x, y - 1), (x + 14, y + 1)], color.filled()));
        }
        Ok(())
    })
}

fn finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

/// Points.
pub fn scatter(points: &[(f64, f64)], labels: &Labels) -> Result<RgbImage> {
    let known = || points.iter().filter(|p| finite(p));
    frame("scatter", Around { labels, keys: 0, room: 0.02 }, known(), |chart| {
        chart.draw_series(known().map(|&p| Circle::new(p, 2, COLORS[0].mix(0.7).filled()))).map(drop)
    })
}

/// Counts of values in `bins` equal parts of their range; the values at the upper end fall in the last part.
pub fn counts(values: &[f64], bins: usize) -> (Range<f64>, Vec<usize>) {
    let finite = values.iter().copied().filter(|v| v.is_finite());
    let range =
        widen(finite.clone().fold(f64::INFINITY, f64::min)..finite.clone().fold(f64::NEG_INFINITY, f64::max), 0.0);
    let mut counts = vec![0; bins.max(1)];
    for value in finite {
        let share = (value - range.start) / (range.end - range.start);
        counts[((share * bins as f64) as usize).min(bins.max(1) - 1)] += 1;
    }
    (range, counts)
}

/// A bar per part of the range.
pub fn histogram(values: &[f64], bins: usize, labels: &Labels) -> Result<RgbImage> {
    let (range, counts) = counts(values, bins);
    let width = (range.end - range.start) / counts.len() as f64;
    let bars: Vec<[(f64, f64); 2]> = counts
        .iter()
        .enumerate()
        .map(|(i, &n)| [(range.start + i as f64 * width, 0.0), (range.start + (i + 1) as f64 * width, n as f64)])
        .collect();
    let corners = bars.iter().flatten().filter(|_| !values.is_empty());
    frame("histogram", Around::alone(labels), corners, |chart| {
        chart.draw_series(bars.iter().map(|&bar| Rectangle::new(bar, COLORS[0].mix(0.75).filled()))).map(drop)
    })
}

/// A cell per value, dark blue for the smallest and yellow for the largest; the first row at the bottom. The cells fill the ranges
/// `x` and `y`, by default their counts.
pub fn heatmap(values: &[f64], columns: usize, ranges: [Option<[f64; 2]>; 2], labels: &Labels) -> Result<RgbImage> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let [x, y] = [(ranges[0], columns), (ranges[1], rows)].map(|(range, n)| {
        let [from, to] = range.unwrap_or([0.0, n as f64]);
        move |i: usize| from + (to - from) * i as f64 / n as f64
    });
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let range = widen(finite().fold(f64::INFINITY, f64::min)..finite().fold(f64::NEG_INFINITY, f64::max), 0.0);
    let cells: Vec<([(f64, f64); 2], RGBColor)> = (0..rows * columns)
        .map(|i| {
            let (column, row) = (i % columns, i / columns);
            (
                [(x(column), y(row)), (x(column + 1), y(row + 1))],
                shade((values[i] - range.start) / (range.end - range.start)),
            )
        })
        .collect();
    let corners = cells.iter().flat_map(|(cell, _)| cell).filter(|_| finite().next().is_some());
    frame("heatmap", Around::alone(labels), corners, |chart| {
        chart.draw_series(cells.iter().map(|(cell, color)| Rectangle::new(*cell, color.filled()))).map(drop)
    })
}

/// One panel per series, two beside each other: values pale, their running mean dark.
pub fn panels(series: &[Series]) -> Result<RgbImage> {
    let columns = series.len().clamp(1, 2) as u32;
    let rows = series.len().div_ceil(columns as usize) as u32;
    let mut page = RgbImage::from_pixel(columns * SIZE.0, rows.max(1) * SIZE.1, Rgb([255; 3]));
    for (i, one) in series.iter().enumerate() {
        let finite = || one.points.iter().filter(|p| p.1.is_finite());
        if finite().next().is_none() {
            continue;
        }
        let labels = Labels { title: one.name.clone(), x: "step".into(), ..Labels::default() };
        let mean = running_mean(&one.points, one.points.len() / 20);
        let panel = frame("curves", Around::alone(&labels), finite(), |chart| {
            chart.draw_series(LineSeries::new(finite().copied(), COLORS[0].mix(0.3).stroke_width(1)))?;
            chart.draw_series(LineSeries::new(mean, COLORS[0].stroke_width(2))).map(drop)
        })?;
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        imageops::replace(&mut page, &panel, i64::from(column * SIZE.0), i64::from(row * SIZE.1));
    }
    Ok(page)
}

/// Mean over the points at most `reach` places away, of those that are finite.
fn running_mean(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let near = |i: usize| &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
    let mean = |i: usize| {
        let (sum, n) = near(i).iter().filter(|p| p.1.is_finite()).fold((0.0, 0.0), |(s, n), p| (s + p.1, n + 1.0));
        (points[i].0, sum / n)
    };
    (0..points.len()).map(mean).filter(|p| p.1.is_finite()).collect()
}

type Chart<'a, 'b> = ChartContext<'a, Canvas<'b>, Cartesian2d<Scale, Scale>>;
type Drawing = std::result::Result<(), DrawingAreaErrorKind<std::convert::Infallible>>;

/// What stands around the points: names and axes, how many series are named in a key, and the share of the horizontal axis
/// that is free at both ends.
struct Around<'a> {
    labels: &'a Labels,
    keys: usize,
    room: f64,
}

impl<'a> Around<'a> {
    fn alone(labels: &'a Labels) -> Self {
        Self { labels, keys: 0, room: 0.0 }
    }

    /// The corner for the key: that with the fewest points.
    fn corner(&self, points: &[(f64, f64)], [x, y]: &[Scale; 2]) -> SeriesLabelPosition {
        const ALL: [(bool, bool, SeriesLabelPosition); 4] = [
            (true, false, SeriesLabelPosition::LowerRight),
            (true, true, SeriesLabelPosition::UpperRight),
            (false, true, SeriesLabelPosition::UpperLeft),
            (false, false, SeriesLabelPosition::LowerLeft),
        ];
        let height = (60 * self.keys + 60) as i32;
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
}

/// Axes around the points, then what `fill` draws, and a key of the named series.
fn frame<'p>(
    function: &str,
    around: Around,
    points: impl Iterator<Item = &'p (f64, f64)>,
    fill: impl FnOnce(&mut Chart) -> Drawing,
) -> Result<RgbImage> {
    let (labels, points): (_, Vec<(f64, f64)>) = (around.labels, points.copied().collect());
    let none = (f64::INFINITY..f64::NEG_INFINITY, f64::INFINITY..f64::NEG_INFINITY);
    let (x, y) =
        points.iter().fold(none, |(x, y), p| (x.start.min(p.0)..x.end.max(p.0), y.start.min(p.1)..y.end.max(p.1)));
    if !(x.start.is_finite() && y.start.is_finite() && x.end.is_finite() && y.end.is_finite()) {
        bail!(Value, "{function}: needs at least one finite value, got none");
    }
    for (axis, log, range) in [("x", labels.log_x, &x), ("y", labels.log_y, &y)] {
        if log && range.start <= 0.0 {
            bail!(Value, "{function}: a logarithmic axis needs values above 0, got {} on {axis}", range.start);
        }
    }
    let mut image = RgbImage::from_pixel(SIZE.0, SIZE.1, Rgb([255; 3]));
    let scales = [Scale::new(x, labels.log_x, around.room), Scale::new(y, labels.log_y, 0.04)];
    let key = (around.keys > 0).then(|| around.corner(&points, &scales));
    let drawn = axes(&mut image, labels, scales, key, fill);
    match drawn {
        Ok(()) => Ok(image),
        Err(e) => bail!(Internal, "{function}: cannot draw ({e})"),
    }
}

fn axes(
    image: &mut RgbImage,
    labels: &Labels,
    [x, y]: [Scale; 2],
    key: Option<SeriesLabelPosition>,
    fill: impl FnOnce(&mut Chart) -> Drawing,
) -> Drawing {
    let root = Canvas(image).into_drawing_area();
    let widest = y.ticks(7).iter().map(|v| y.text(*v).len()).max().unwrap_or(1) as u32;
    let mut builder = ChartBuilder::on(&root);
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
fn shade(value: f64) -> RGBColor {
    const STOPS: [[f64; 3]; 4] = [[40.0, 30.0, 90.0], [40.0, 110.0, 142.0], [70.0, 185.0, 115.0], [250.0, 230.0, 50.0]];
    if value.is_nan() {
        return RGBColor(200, 200, 200);
    }
    let at = value.clamp(0.0, 1.0) * 3.0;
    let (low, part) = ((at as usize).min(2), at - (at as usize).min(2) as f64);
    let [r, g, b] = [0, 1, 2].map(|i| (STOPS[low][i] + part * (STOPS[low + 1][i] - STOPS[low][i])).round() as u8);
    RGBColor(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(name: &str, phase: f64) -> Series {
        let points = (0..200).map(|i| (f64::from(i), (f64::from(i) / 20.0 + phase).sin())).collect();
        Series { name: name.into(), points }
    }

    #[test]
    fn every_plot_has_ink_and_size() {
        let labels = Labels { title: "title".into(), x: "steps".into(), y: "loss".into(), ..Labels::default() };
        let waves = [wave("first", 0.0), wave("second", 1.0)];
        let values: Vec<f64> = waves[0].points.iter().map(|p| p.1).collect();
        for (plot, size) in [
            (lines(&waves, Style::Lines, &labels), SIZE),
            (lines(&waves, Style::Joined, &labels), SIZE),
            (scatter(&waves[0].points, &labels), SIZE),
            (histogram(&values, 12, &labels), SIZE),
            (heatmap(&values, 20, [Some([0.0, 1.0]), None], &labels), SIZE),
            (panels(&waves), (2 * SIZE.0, SIZE.1)),
        ] {
            let plot = plot.unwrap();
            assert_eq!(plot.dimensions(), size);
            let share = plot.pixels().filter(|p| p.0 != [255; 3]).count() as f64 / f64::from(size.0 * size.1);
            assert!(share > 0.01 && share < 0.95, "{share}");
        }
    }

    #[test]
    fn a_line_runs_where_the_numbers_say() {
        let line = Series { name: String::new(), points: vec![(0.0, 0.0), (1.0, 1.0)] };
        let plot = lines(&[line], Style::Lines, &Labels::default()).unwrap();
        let blue: Vec<(u32, u32)> =
            plot.enumerate_pixels().filter(|p| p.2.0 == [31, 90, 180]).map(|(x, y, _)| (x, y)).collect();
        let (first, last) = (blue.iter().min().unwrap(), blue.iter().max().unwrap());
        assert!(first.1 > 330 && last.1 < 40 && last.0 > 610, "{first:?} {last:?}");
    }

    #[test]
    fn powers_are_straight_on_logarithmic_axes() {
        let points = (0..9).map(|i| (2_f64.powi(i), 4_f64.powi(i))).collect();
        let labels = Labels { log_x: true, log_y: true, ..Labels::default() };
        let plot = lines(&[Series { name: String::new(), points }], Style::Marked, &labels).unwrap();
        let blue: Vec<(u32, u32)> =
            plot.enumerate_pixels().filter(|p| p.2.0 == [31, 90, 180]).map(|(x, y, _)| (x, y)).collect();
        let (first, last) = (blue.iter().min().unwrap(), blue.iter().max().unwrap());
        let middle = blue.iter().filter(|p| p.0 == first.0.midpoint(last.0)).map(|p| p.1);
        let (low, high) = (middle.clone().max().unwrap(), middle.min().unwrap());
        assert!(low.abs_diff(first.1.midpoint(last.1)) < 6 && low - high < 9, "{first:?} {last:?} {low} {high}");
    }

    #[test]
    fn counts_are_complete() {
        let (range, counts) = counts(&[0.0, 0.1, 0.5, 1.0, f64::NAN], 2);
        assert_eq!((range, counts), (0.0..1.0, vec![2, 2]));
    }

    #[test]
    fn running_mean_of_a_line_is_the_line() {
        let line: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        assert_eq!(running_mean(&line, 2)[2..7], line[2..7]);
        assert_eq!(running_mean(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)], 1)[1], (1.0, 2.0));
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let empty = Series { name: String::new(), points: vec![(0.0, f64::NAN)] };
        assert!(lines(&[empty], Style::Lines, &Labels::default()).unwrap_err().message.contains("finite"));
        let labels = Labels { log_y: true, ..Labels::default() };
        let waves = [wave("sine", 0.0)];
        assert!(lines(&waves, Style::Lines, &labels).unwrap_err().message.contains("above 0"));
        assert!(histogram(&[], 3, &Labels::default()).is_err());
    }
}
