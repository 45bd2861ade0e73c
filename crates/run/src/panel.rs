//! The panel: measures of the same few prompts and noise while a policy learns, logged as step 0 of the base and then of the
//! policy. Their curves have the base's level and errors beside them, and marks where the reward rises and something else falls.

use crate::estimate::Estimate;
use crate::log::{self, Lines, Values};
use crate::screen::Series;

/// What the names of its measures begin with.
pub const PREFIX: &str = "panel ";
/// How many measures fall while the reward rises.
pub const DRIFT: &str = "panel drift";

/// What is drawn beside the curve of one measure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Beside {
    /// The base's value.
    pub level: Option<f64>,
    /// The steps with a drift.
    pub drifts: Vec<f64>,
}

/// The curves of a log but for the drift and the profile, each with what is drawn beside it.
pub fn curves(lines: &[(usize, Values)]) -> Vec<(Series, Beside)> {
    let (drift, series): (Vec<_>, Vec<_>) =
        log::series(lines).into_iter().filter(|s| s.name != log::PROFILE).partition(|s| s.name == DRIFT);
    let fallen = drift.iter().flat_map(|s| &s.points).filter(|(_, fallen)| *fallen > 0.0);
    let drifts: Vec<f64> = fallen.map(|(step, _)| *step).collect();
    let with = |one: Series| match one.name.starts_with(PREFIX) {
        true => {
            let level = one.points.first().filter(|(step, _)| *step == 0.0).map(|(_, value)| *value);
            let bars = errors(lines, &one.name);
            (Series { bars, ..one }, Beside { level, drifts: drifts.clone() })
        }
        false => (one, Beside::default()),
    };
    series.into_iter().map(with).collect()
}

/// By step, the value less and plus the standard error of its change from the base, prompt by prompt.
fn errors(lines: &[(usize, Values)], name: &str) -> Vec<(f64, [f64; 2])> {
    let mut under = log::under(lines, name);
    let Some((0, base)) = under.next() else { return Vec::new() };
    let ends = |(step, values)| {
        let change = Estimate::paired(base, values).ok().filter(|change| change.error.is_finite())?;
        let value = Estimate::of(values).mean;
        Some((step as f64, [value - change.error, value + change.error]))
    };
    under.filter_map(ends).collect()
}

/// A line per measure: its course from the base on, and the last change from the base, prompt by prompt. None where the base's line is lost.
pub fn text(log: &Lines) -> Vec<String> {
    let names: Vec<String> =
        log::series(&log.read).into_iter().map(|s| s.name).filter(|n| n.starts_with(PREFIX) && n != DRIFT).collect();
    let widest = names.iter().map(|n| n.len()).max().unwrap_or(0);
    let line = |name: &String| {
        let all = log.numbers(name);
        let (base, last) = (log.at(0, name)?, all.last()?);
        let change = Estimate::paired(base, last).ok()?;
        let means: Vec<f64> = all.iter().map(|values| Estimate::of(values).mean).collect();
        Some(format!("{name:widest$}  {}  {change:+}", sparks(&means)))
    };
    names.iter().filter_map(line).collect()
}

/// `▁▃▆█`: each value between the least and the largest.
fn sparks(values: &[f64]) -> String {
    const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let spark = |v: &f64| match v.is_finite() {
        true => EIGHTHS[((v - low) / (high - low).max(1e-12) * 7.0).round() as usize],
        false => ' ',
    };
    values.iter().map(spark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_has_its_base_its_errors_and_its_drifts_beside() {
        let line = |step: usize, values: &[(&str, &[f64])]| {
            (step, values.iter().map(|(name, numbers)| (name.to_string(), numbers.to_vec())).collect())
        };
        let lines: [(usize, Values); 3] = [
            line(0, &[("panel reward", &[0.25, 0.75])]),
            line(10, &[("loss", &[3.0]), ("panel reward", &[0.5, 1.5]), (DRIFT, &[0.0])]),
            line(20, &[("loss", &[2.0]), (DRIFT, &[2.0])]),
        ];
        let found = curves(&lines);
        let names: Vec<&str> = found.iter().map(|(series, _)| series.name.as_str()).collect();
        assert_eq!(names, ["panel reward", "loss"]);
        let [(panel, beside), (loss, nothing)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(beside, &Beside { level: Some(0.5), drifts: vec![20.0] });
        // changes of 0.25 and 0.75: their error is half their difference
        assert_eq!(panel.bars, [(10.0, [0.75, 1.25])]);
        assert_eq!((&loss.bars[..], nothing), (&[][..], &Beside::default()));
        let (without, _) = &curves(&lines[1..])[1];
        assert_eq!((without.name.as_str(), &without.bars[..]), ("panel reward", &[][..]), "nothing to compare with");
    }

    #[test]
    fn the_course_is_told_from_the_base_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = log::Log::new(path.clone());
        for (step, values) in [(0, [0.1, 0.3]), (10, [0.2, 0.4]), (20, [0.5, 0.8])] {
            let fallen = (DRIFT.to_string(), vec![0.0]);
            log.add(step, 20, vec![("panel reward".into(), values.to_vec()), fallen]).unwrap();
        }
        assert_eq!(text(&Lines::read(&path)), ["panel reward  ▁▃█  +0.450 ± 0.050"]);
        let rest = std::fs::read_to_string(&path).unwrap().split_once('\n').unwrap().1.to_string();
        std::fs::write(&path, rest).unwrap();
        assert_eq!(text(&Lines::read(&path)), [""; 0], "a tuned panel is not taken for the base's");
        assert_eq!(sparks(&[0.0, f64::NAN, 1.0]), "▁ █");
    }
}
