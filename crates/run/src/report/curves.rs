//! The numbers that the page draws: curves, and the control's size over updates and steps.

use super::reading::Reading;
use crate::log::{self, PROFILE};
use crate::panel;
use serde_json::{Map, Value, json};

/// Points of a curve, and updates of a heat map, that a page holds at most.
const POINTS: usize = 2000;
const UPDATES: usize = 400;

/// Names, curves and heat maps of the runs, and what was thinned out.
pub fn data(runs: &[Reading]) -> (Value, Vec<String>) {
    let mut notes = Vec::new();
    let of = |run: &Reading| json!({ "name": run.name, "curves": curves(run, &mut notes), "profile": profile(run) });
    let runs: Vec<Value> = runs.iter().map(of).collect();
    (json!({ "runs": runs }), notes)
}

fn curves(run: &Reading, notes: &mut Vec<String>) -> Value {
    let mut out = Map::new();
    for (series, beside) in panel::curves(&run.lines) {
        let points = thinned(&series.points);
        if points.len() < series.points.len() {
            let (name, own, n, all) = (&series.name, &run.name, points.len(), series.points.len());
            notes.push(format!(
                "{name} of {own}: {n} of {all} points are drawn, the lowest and highest of each stretch"
            ));
        }
        let (x, y): (Vec<u64>, Vec<Value>) = points.iter().map(|(x, y)| (*x as u64, short(*y))).unzip();
        let level = beside.level.map(short);
        let drawn = series.errors().filter(|[(step, _), _]| x.contains(&(*step as u64)));
        let errors: Vec<[Value; 3]> =
            drawn.map(|[(step, low), (_, high)]| [json!(step), short(low), short(high)]).collect();
        out.insert(series.name, json!({ "x": x, "y": y, "level": level, "errors": errors, "drifts": beside.drifts }));
    }
    Value::Object(out)
}

/// Of each stretch of neighbours the lowest and the highest point, so that nothing that stands out is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS / 2);
    let ends = |part: &[(f64, f64)]| {
        let known = || (0..part.len()).filter(|i| part[*i].1.is_finite());
        let low = known().min_by(|a, b| part[*a].1.total_cmp(&part[*b].1)).unwrap_or(0);
        let high = known().max_by(|a, b| part[*a].1.total_cmp(&part[*b].1)).unwrap_or(0);
        let mut ends = vec![low.min(high), low.max(high)];
        ends.dedup();
        ends.into_iter().map(|i| part[i]).collect::<Vec<_>>()
    };
    points.chunks(stretch).flat_map(ends).collect()
}

/// `x`, the updates, and for each of them the control's size at its active steps, the last one last; `of` is the number of all updates.
fn profile(run: &Reading) -> Value {
    let values = |(step, values): &(usize, log::Values)| {
        let own = values.iter().find(|(name, _)| name == PROFILE)?;
        Some((*step, own.1.iter().map(|v| short(*v)).collect()))
    };
    let rows: Vec<(usize, Vec<Value>)> = run.lines.iter().filter_map(values).collect();
    if rows.is_empty() {
        return Value::Null;
    }
    let all = rows.len();
    let every = all.div_ceil(UPDATES);
    let (x, rows): (Vec<usize>, Vec<Vec<Value>>) = rows.into_iter().step_by(every).unzip();
    json!({ "x": x, "rows": rows, "steps": run.count("steps"), "of": all })
}

/// Seven digits; null where it is not finite.
fn short(value: f64) -> Value {
    format!("{value:.6e}").parse::<f64>().ok().filter(|v| v.is_finite()).map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_what_stands_out() {
        let mut points: Vec<(f64, f64)> = (0..10_001).map(|i| (f64::from(i), 0.5)).collect();
        (points[7003].1, points[7004].1, points[20].1) = (9.0, -9.0, f64::NAN);
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS && thin.is_sorted_by_key(|p| p.0), "{}", thin.len());
        assert!(thin.contains(&(7003.0, 9.0)) && thin.contains(&(7004.0, -9.0)));
        assert_eq!(thinned(&points[..50]).len(), 50);
        assert!(thinned(&vec![(0.0, f64::NAN); 3000]).len() <= POINTS);
    }
}
