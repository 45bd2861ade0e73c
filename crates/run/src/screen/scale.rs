//! An axis of a plot: linear or logarithmic.

use plotters::coord::ranged1d::{BoldPoints, DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use std::ops::Range;

#[derive(Clone, Debug)]
pub struct Scale {
    range: Range<f64>,
    log: bool,
}

impl Scale {
    /// From the smallest to the largest value, with that share of the axis free at both ends.
    pub fn new(range: Range<f64>, log: bool, share: f64) -> Self {
        match log {
            false => Self { range: widen(range, share), log },
            true => {
                let wide = widen(range.start.log10()..range.end.log10(), share);
                Self { range: 10_f64.powf(wide.start)..10_f64.powf(wide.end), log }
            }
        }
    }

    /// About `most` values to write at the axis.
    pub fn ticks(&self, most: usize) -> Vec<f64> {
        if !self.log {
            return RangedCoordf64::from(self.range.clone()).key_points(BoldPoints(most));
        }
        let decades = self.range.start.log10().floor() as i32..=self.range.end.log10().ceil() as i32;
        let ticks = |digits: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|d| digits.iter().map(move |digit| digit * 10_f64.powi(d)));
            all.filter(|v| self.range.contains(v)).collect()
        };
        let (finest, fine, coarse) =
            (ticks(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]), ticks(&[1.0, 2.0, 5.0]), ticks(&[1.0]));
        match fine.len() {
            // a short piece of the axis has few round numbers, and is nearly linear
            0..3 if finest.len() < 3 => RangedCoordf64::from(self.range.clone()).key_points(BoldPoints(most)),
            0..3 => finest,
            n if n <= most.max(3) || coarse.len() < 2 => fine,
            _ => coarse,
        }
    }

    /// The text of a tick: enough digits to tell it from its neighbours.
    pub fn text(&self, value: f64) -> String {
        match self.log {
            true if (1e-3..1e5).contains(&value) => format!("{}", (value * 1e6).round() / 1e6),
            true => format!("{value:.0e}"),
            false => tick(value, self.range.end - self.range.start),
        }
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        match self.log {
            false => RangedCoordf64::from(self.range.clone()).map(value, limit),
            true => {
                let logs = self.range.start.log10()..self.range.end.log10();
                RangedCoordf64::from(logs).map(&value.log10(), limit)
            }
        }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        self.ticks(hint.max_num_points())
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// A range of some width, with that share of it added at both ends.
pub fn widen(range: Range<f64>, share: f64) -> Range<f64> {
    let (width, size) = (range.end - range.start, range.start.abs().max(range.end.abs()));
    // closer numbers are one to an axis
    let room = if width > 1e-12 * size && width > 1e-100 { share * width } else { 0.5 * size.max(1e-3) };
    range.start - room..range.end + room
}

/// Enough digits to tell ticks of a range apart.
fn tick(value: f64, range: f64) -> String {
    let size = value.abs().max(range);
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.1e}");
    }
    let digits = (1.5 - range.log10()).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_tell_neighbours_apart() {
        assert_eq!(
            (tick(0.25, 1.0), tick(1200.0, 3000.0), tick(0.0015, 0.002)),
            ("0.25".into(), "1200".into(), "0.00150".into())
        );
    }

    #[test]
    fn a_logarithmic_axis_gives_decades_equal_room() {
        let scale = Scale::new(1.0..100.0, true, 0.0);
        assert_eq!([1.0, 10.0, 100.0].map(|v| scale.map(&v, (0, 200))), [0, 100, 200]);
        assert_eq!(Scale::new(0.9..60.0, true, 0.0).ticks(7), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(Scale::new(0.9..2e4, true, 0.0).ticks(7), [1.0, 10.0, 100.0, 1000.0, 10000.0]);
        let short = Scale::new(0.55..0.85, true, 0.0);
        assert_eq!(short.ticks(7).into_iter().map(|v| short.text(v)).collect::<Vec<_>>(), ["0.6", "0.7", "0.8"]);
        assert!(Scale::new(0.051..0.055, true, 0.0).ticks(7).len() >= 3);
        assert_eq!([0.05, 200.0, 1e6].map(|v| scale.text(v)), ["0.05", "200", "1e6"]);
    }
}
