//! Plots of numbers: lines, points, bars and cells, as values that can be drawn in several ways.

use super::scale::{Scale, widen};
use amscript_base::{bail, error::Result, text::visible};
use std::ops::Range;

/// Most cells of a heat map.
const MOST_CELLS: usize = 1 << 22;

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
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Upright bars, of errors: where, and between which values.
    pub bars: Vec<(f64, [f64; 2])>,
}

impl Series {
    /// Whether any of its points can be drawn.
    pub fn drawable(&self) -> bool {
        self.points.iter().any(finite)
    }

    /// The two ends of each bar that can be drawn.
    pub fn errors(&self) -> impl Iterator<Item = [(f64, f64); 2]> {
        let ends = self.bars.iter().map(|(x, [low, high])| [(*x, *low), (*x, *high)]);
        ends.filter(|ends| ends.iter().all(finite))
    }
}

/// How series are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Style {
    Lines,
    /// Lines with their points.
    Marked,
    /// Points joined by thin lines.
    Joined,
    /// Points alone.
    Points,
}

/// Numbers in rows, the first at the bottom; the cells fill the ranges `x` and `y`.
#[derive(Clone, Debug)]
pub struct Cells {
    pub values: Vec<f64>,
    pub columns: usize,
    pub rows: usize,
    pub x: [f64; 2],
    pub y: [f64; 2],
}

/// What a plot shows.
#[derive(Clone, Debug)]
pub enum Figure {
    Lines(Vec<Series>, Style),
    /// Counts in equal parts of a range.
    Bars(Range<f64>, Vec<usize>),
    Cells(Cells),
}

/// A plot, and the two axes that its numbers need.
#[derive(Clone, Debug)]
pub struct Plot {
    pub figure: Figure,
    pub labels: Labels,
    pub(super) axes: [Scale; 2],
}

/// Numbers beyond are not drawn: the width of their axis could not be counted.
const LARGEST: f64 = 1e100;
/// Most bars.
const MOST_BARS: usize = 100_000;

/// Whether a number can be drawn.
fn drawable(value: &f64) -> bool {
    value.abs() <= LARGEST
}

pub(super) fn finite(point: &(f64, f64)) -> bool {
    drawable(&point.0) && drawable(&point.1)
}

impl Plot {
    /// A line per series.
    pub fn lines(series: Vec<Series>, style: Style, labels: Labels) -> Result<Self> {
        Self::new("plot", Figure::Lines(series, style), labels)
    }

    /// Points.
    pub fn scatter(points: Vec<(f64, f64)>, labels: Labels) -> Result<Self> {
        let series = vec![Series { points, ..Series::default() }];
        Self::new("scatter", Figure::Lines(series, Style::Points), labels)
    }

    /// A bar per part of the range.
    pub fn histogram(values: &[f64], bins: usize, labels: Labels) -> Result<Self> {
        if bins > MOST_BARS {
            bail!(Limit, "histogram: expected at most {MOST_BARS} bins, got {bins}");
        }
        let (range, counts) = counts(values, bins);
        Self::new("histogram", Figure::Bars(range, counts), labels)
    }

    /// A cell per value of rows of `columns`; the cells fill the ranges `x` and `y`, by default their counts.
    pub fn heatmap(values: Vec<f64>, columns: usize, [x, y]: [Option<[f64; 2]>; 2], labels: Labels) -> Result<Self> {
        let rows = values.len().checked_div(columns).unwrap_or(0);
        if values.len() > MOST_CELLS {
            bail!(Limit, "heatmap: expected at most {MOST_CELLS} cells, got {rows} x {columns}"; hint: "take means of them");
        }
        if let Some(end) = [x, y].iter().flatten().flatten().find(|end| !drawable(end)) {
            bail!(Value, "heatmap: expected ends of `x` and `y` of at most {LARGEST:e} in size, got {end:?}");
        }
        let (x, y) = (x.unwrap_or([0.0, columns as f64]), y.unwrap_or([0.0, rows as f64]));
        Self::new("heatmap", Figure::Cells(Cells { values, columns, rows, x, y }), labels)
    }

    fn new(function: &str, mut figure: Figure, mut labels: Labels) -> Result<Self> {
        let names = if let Figure::Lines(series, _) = &mut figure { series.as_mut_slice() } else { &mut [] };
        let texts = names.iter_mut().map(|one| &mut one.name).chain([&mut labels.title, &mut labels.x, &mut labels.y]);
        texts.for_each(|text| *text = visible(text).into_owned());
        if let (Figure::Lines(series, _), true) = (&mut figure, labels.log_y) {
            // what reaches down to 0 has no end on such an axis: it is cut at the lowest point
            let above = |y: &f64| *y > 0.0;
            let lowest = series.iter().flat_map(|s| &s.points).map(|p| p.1).filter(above).fold(f64::INFINITY, f64::min);
            let bars = series.iter_mut().flat_map(|s| &mut s.bars);
            bars.filter(|(_, [low, _])| !above(low)).for_each(|(_, [low, _])| *low = lowest);
        }
        let none = (f64::INFINITY..f64::NEG_INFINITY, f64::INFINITY..f64::NEG_INFINITY);
        let points = figure.corners();
        let (x, y) =
            points.iter().fold(none, |(x, y), p| (x.start.min(p.0)..x.end.max(p.0), y.start.min(p.1)..y.end.max(p.1)));
        if points.is_empty() {
            bail!(Value, "{function}: needs at least one finite value, got none");
        }
        for (axis, log, range) in [("x", labels.log_x, &x), ("y", labels.log_y, &y)] {
            if log && range.start < 1.0 / LARGEST {
                bail!(Value, "{function}: a logarithmic axis needs values above 0, got {:?} on {axis}", range.start);
            }
        }
        let room = if matches!(&figure, Figure::Lines(_, style) if *style != Style::Lines) { 0.02 } else { 0.0 };
        let axes = [Scale::new(x, labels.log_x, room), Scale::new(y, labels.log_y, 0.04)];
        Ok(Self { figure, labels, axes })
    }

    /// The names that a key needs: those of several series.
    pub(super) fn names(&self) -> Vec<&str> {
        match &self.figure {
            Figure::Lines(series, _) if series.len() > 1 => series.iter().map(|one| one.name.as_str()).collect(),
            _ => Vec::new(),
        }
    }
}

impl std::fmt::Display for Plot {
    /// `plot of 3 lines, 640 x 400`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let shown = match &self.figure {
            Figure::Lines(series, Style::Points) => many(series.iter().map(|s| s.points.len()).sum(), "point"),
            Figure::Lines(series, _) => many(series.len(), "line"),
            Figure::Bars(_, counts) => many(counts.len(), "bar"),
            Figure::Cells(cells) => format!("{} x {} cells", cells.rows, cells.columns),
        };
        write!(f, "plot of {shown}, {} x {}", super::drawing::SIZE.0, super::drawing::SIZE.1)
    }
}

impl Figure {
    /// The finite points that the axes must reach; none where there is nothing to draw.
    pub(super) fn corners(&self) -> Vec<(f64, f64)> {
        match self {
            Self::Lines(series, _) if !series.iter().any(Series::drawable) => Vec::new(),
            Self::Lines(series, _) => {
                let ends = series.iter().flat_map(Series::errors).flatten();
                series.iter().flat_map(|s| &s.points).copied().filter(finite).chain(ends).collect()
            }
            Self::Bars(_, counts) if counts.iter().all(|n| *n == 0) => Vec::new(),
            Self::Bars(range, counts) => {
                let most = counts.iter().copied().max().unwrap_or(0);
                vec![(range.start, 0.0), (range.end, most as f64)]
            }
            Self::Cells(cells) if !cells.values.iter().any(drawable) => Vec::new(),
            Self::Cells(Cells { x, y, .. }) => vec![(x[0], y[0]), (x[1], y[1])],
        }
    }
}

impl Cells {
    /// The smallest and the largest value.
    pub(super) fn range(&self) -> Range<f64> {
        let finite = || self.values.iter().copied().filter(drawable);
        widen(finite().fold(f64::INFINITY, f64::min)..finite().fold(f64::NEG_INFINITY, f64::max), 0.0)
    }
}

/// Counts of values in `bins` equal parts of their range; the values at the upper end fall in the last part.
pub fn counts(values: &[f64], bins: usize) -> (Range<f64>, Vec<usize>) {
    let finite = values.iter().copied().filter(drawable);
    let range =
        widen(finite.clone().fold(f64::INFINITY, f64::min)..finite.clone().fold(f64::NEG_INFINITY, f64::max), 0.0);
    let mut counts = vec![0; bins.max(1)];
    for value in finite {
        let share = (value - range.start) / (range.end - range.start);
        counts[((share * bins as f64) as usize).min(bins.max(1) - 1)] += 1;
    }
    (range, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_too_large_or_too_close_to_draw_end_all_the_same() {
        let drawn = |ys: &[f64], log_y: bool| {
            let points = ys.iter().enumerate().map(|(i, y)| (i as f64, *y)).collect();
            let labels = Labels { log_y, ..Labels::default() };
            Plot::lines(vec![Series { points, ..Series::default() }], Style::Lines, labels)
                .map(|plot| plot.axes[1].ticks(7).len())
        };
        assert!(drawn(&[1e308, -1e308], false).is_err());
        assert!(drawn(&[1.0, 1e308, 2.0, f64::MAX], false).is_ok_and(|ticks| ticks < 20));
        for close in [[1e17, 1e17 + 16.0], [5e-324, 1e-323], [-0.0, 5e-324], [1.0, 1.0 + f64::EPSILON]] {
            assert!(drawn(&close, false).is_ok_and(|ticks| ticks < 20), "{close:?}");
        }
        assert!(drawn(&[5e-324, 1.0], true).is_err() && drawn(&[1e-99, 1e99], true).is_ok_and(|ticks| ticks < 300));
        assert!(Plot::histogram(&[0.0, 1.0], 1 << 40, Labels::default()).is_err());
        for ends in [[-1e308, 1e308], [0.0, f64::INFINITY], [f64::NAN, 1.0]] {
            for place in [[Some(ends), None], [None, Some(ends)]] {
                assert!(Plot::heatmap(vec![0.0; 4], 2, place, Labels::default()).is_err(), "{ends:?}");
            }
        }
    }

    #[test]
    fn counts_are_complete() {
        let (range, counts) = counts(&[0.0, 0.1, 0.5, 1.0, f64::NAN], 2);
        assert_eq!((range, counts), (0.0..1.0, vec![2, 2]));
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let series = |points| vec![Series { points, ..Series::default() }];
        let labels = Labels::default;
        let error = Plot::lines(series(vec![(0.0, f64::NAN)]), Style::Lines, labels()).unwrap_err();
        assert_eq!(error.message, "plot: needs at least one finite value, got none");
        let log = Labels { log_y: true, ..labels() };
        let error = Plot::lines(series(vec![(0.0, 0.0)]), Style::Lines, log).unwrap_err();
        assert_eq!(error.message, "plot: a logarithmic axis needs values above 0, got 0.0 on y");
        assert!(Plot::histogram(&[], 3, labels()).is_err());
        assert!(Plot::heatmap(vec![f64::NAN; 4], 2, [None, None], labels()).is_err());
        assert!(Plot::scatter(Vec::new(), labels()).is_err());
    }

    #[test]
    fn a_plot_says_what_it_is() {
        let text = |plot: Result<Plot>| plot.unwrap().to_string();
        let line = Series { name: "a".into(), points: vec![(0.0, 1.0)], ..Series::default() };
        let lines = vec![line.clone(), line.clone(), line];
        assert_eq!(text(Plot::lines(lines, Style::Lines, Labels::default())), "plot of 3 lines, 640 x 400");
        assert_eq!(text(Plot::scatter(vec![(0.0, 1.0)], Labels::default())), "plot of 1 point, 640 x 400");
        assert_eq!(text(Plot::histogram(&[1.0], 20, Labels::default())), "plot of 20 bars, 640 x 400");
        let map = Plot::heatmap(vec![0.0; 12], 4, [None, None], Labels::default());
        assert_eq!(text(map), "plot of 3 x 4 cells, 640 x 400");
    }
}
