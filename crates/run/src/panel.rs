//! The panel: measures of the same few prompts and noise while a policy learns, logged as step 0 of the base and then of the
//! policy. Their curves have the base's level beside them, and marks where the reward rises and something else falls.

use crate::estimate::Estimate;
use crate::log::{self, Lines};
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

/// The curves but for the drift, each with what is drawn beside it.
pub fn beside(mut series: Vec<Series>) -> Vec<(Series, Beside)> {
    let drift = series.iter().position(|s| s.name == DRIFT).map(|i| series.remove(i));
    let drifts: Vec<f64> =
        drift.iter().flat_map(|s| &s.points).filter(|(_, fallen)| *fallen > 0.0).map(|(step, _)| *step).collect();
    let with = |one: Series| match one.name.starts_with(PREFIX) {
        true => {
            let level = one.points.first().filter(|(step, _)| *step == 0.0).map(|(_, value)| *value);
            (one, Beside { level, drifts: drifts.clone() })
        }
        false => (one, Beside::default()),
    };
    series.into_iter().map(with).collect()
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
    fn a_panel_has_its_base_and_its_drifts_beside() {
        let series = |name: &str, points: &[(f64, f64)]| Series { name: name.into(), points: points.to_vec() };
        let all = vec![
            series("loss", &[(1.0, 3.0)]),
            series("panel reward", &[(0.0, 0.4), (10.0, 0.5)]),
            series(DRIFT, &[(10.0, 0.0), (20.0, 2.0)]),
        ];
        let found: Vec<_> = beside(all).into_iter().map(|(s, b)| (s.name, b)).collect();
        let panel = Beside { level: Some(0.4), drifts: vec![20.0] };
        assert_eq!(found, [("loss".into(), Beside::default()), ("panel reward".into(), panel)]);
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
