//! The tables of a report's results: each run's as it was printed, and several runs beside one another.

use super::markup::{Html, folded, row, table, tag, text, word};
use super::reading::Reading;
use crate::Estimate;
use serde_json::{Map, Value};

/// Changes of at least so many standard errors count.
const SURE: f64 = 2.0;
/// Tables of runs that are shown one by one.
const FEW: usize = 6;

pub fn section(runs: &[Reading]) -> Html {
    let tables: Vec<(&Reading, Results)> =
        runs.iter().filter_map(|run| Some((run, Results::of(run.result.as_ref()?)?))).collect();
    if tables.is_empty() {
        return word("p", "No results yet: a run writes them when it ends.");
    }
    let beside = across(&tables);
    let (one, open) = (runs.len() == 1, beside.is_none() && tables.len() < 4);
    let own = tables.iter().map(|(run, results)| match one {
        true => results.html(&run.name),
        false => folded(&run.name, open, [results.html(&run.name)]),
    });
    let own: Html = own.collect();
    let own = if tables.len() > FEW { folded(format!("tables of {} runs", tables.len()), false, [own]) } else { own };
    beside.into_iter().chain([own]).collect()
}

/// `measures` of a `result.json`.
struct Results {
    rows: Vec<(String, Map<String, Value>)>,
    columns: Vec<String>,
    /// Rows are measures, whose columns are compared with the first one.
    compared: bool,
}

impl Results {
    fn of(result: &Value) -> Option<Self> {
        let rows: Vec<(String, Map<String, Value>)> = result["measures"]
            .as_object()?
            .iter()
            .map(|(k, v)| (k.clone(), v.as_object().cloned().unwrap_or_default()))
            .collect();
        let mut columns: Vec<String> = Vec::new();
        for name in rows.iter().flat_map(|(_, cells)| cells.keys()) {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        columns.sort_by_key(|name| name != "base");
        let changes = rows.iter().flat_map(|(_, cells)| cells.values()).any(|cell| cell["change"].is_object());
        let compared = result["compared"].as_bool().unwrap_or(changes);
        (!rows.is_empty()).then_some(Self { rows, columns, compared })
    }

    /// The table that the run printed; the best of each measure is marked.
    fn html(&self, name: &str) -> Html {
        let two = self.compared && self.columns.len() == 2;
        let mut heads = vec![if self.compared { "measure".to_string() } else { String::new() }];
        heads.extend(self.columns.iter().cloned());
        heads.extend(if two { &["change", "in errors", "n"][..] } else { &["n"] }.iter().map(ToString::to_string));
        let rows = self.rows.iter().enumerate().map(|(i, (row_name, cells))| {
            let estimates = |column: &String| cells.get(column).map(estimate);
            let mut out = vec![text(row_name)];
            out.extend(self.columns.iter().map(|column| match estimates(column) {
                Some(own) => marked(text(own), self.is_best(i, column)),
                None => Html::default(),
            }));
            if two {
                let change = cells.get(&self.columns[1]).and_then(change);
                out.push(text(change.map_or(String::new(), |c| format!("{c:+}"))));
                out.push(text(change.map_or(String::new(), |c| sigmas(&c))));
            }
            out.push(text(self.columns.iter().filter_map(estimates).map(|e| e.count).max().unwrap_or(0)));
            row(out)
        });
        let note = match self.compared {
            true => {
                "Means with standard errors. Marked: the better one, where the change is more than two standard errors."
            }
            false => "Means with standard errors. Marked: the best of each column.",
        };
        [table(&format!("results of {name}"), &heads, rows), legend(note)].into_iter().collect()
    }

    /// Of measures the best column of a row, where its change is sure; of things the best row of a column.
    fn is_best(&self, row: usize, column: &String) -> bool {
        let (measure, cells) = &self.rows[row];
        let mean =
            |cells: &Map<String, Value>, column: &String| cells.get(column).map_or(f64::NAN, |c| estimate(c).mean);
        if !self.compared {
            let means: Vec<f64> = self.rows.iter().map(|(_, cells)| mean(cells, column)).collect();
            return best(column, &means) == Some(row);
        }
        let means: Vec<f64> = self.columns.iter().map(|column| mean(cells, column)).collect();
        let sure = |column: &String| cells.get(column).and_then(change).is_some_and(|c| c.sigmas().abs() >= SURE);
        match best(measure, &means) {
            Some(0) => self.columns[0] == *column && self.columns[1..].iter().all(sure),
            Some(i) => self.columns[i] == *column && sure(column),
            None => false,
        }
    }
}

/// What the measure `reward` of a run is of: the setting, else all rewards that it opened.
fn reward_of(run: &Reading) -> &Value {
    let told = &run.record["settings"]["reward"];
    if told.is_null() { &run.record["rewards"] } else { told }
}

/// Runs beside one another by what each came to: a row per run, a column per measure. `None` where fewer than two compare.
fn across(tables: &[(&Reading, Results)]) -> Option<Html> {
    let compared: Vec<_> = tables.iter().filter(|(_, r)| r.compared && r.columns.len() > 1).collect();
    if compared.len() < 2 {
        return None;
    }
    let mut measures: Vec<&String> = Vec::new();
    for (name, _) in compared.iter().flat_map(|(_, r)| &r.rows) {
        if !measures.contains(&name) {
            measures.push(name);
        }
    }
    let cell = |results: &Results, measure: &str, last: bool| {
        let column = if last { results.columns.last() } else { results.columns.first() };
        results.rows.iter().find(|(name, _)| name == measure)?.1.get(column?).cloned()
    };
    let column = |measure: &str, last: bool| -> Vec<Option<Value>> {
        compared.iter().map(|(_, results)| cell(results, measure, last)).collect()
    };
    let one_reward = compared.iter().all(|(run, _)| reward_of(run) == reward_of(compared[0].0));
    let best_of = |measure: &&String| {
        let cells = column(measure, true);
        let means: Vec<f64> = cells.iter().map(|c| c.as_ref().map_or(f64::NAN, |c| estimate(c).mean)).collect();
        best(measure, &means).filter(|_| one_reward || *measure != "reward")
    };
    let bests: Vec<Option<usize>> = measures.iter().map(best_of).collect();
    let rows = compared.iter().enumerate().map(|(i, (run, results))| {
        let cells = measures.iter().zip(&bests).map(|(measure, best)| match cell(results, measure, true) {
            Some(found) => {
                let sure = change(&found).map(|c| tag("small", &[], [text(format!("{} errors", sigmas(&c)))]));
                marked([text(estimate(&found))].into_iter().chain(sure).collect(), *best == Some(i))
            }
            None => Html::default(),
        });
        row(std::iter::once(text(&run.name)).chain(cells))
    });
    // the base is the same where the runs were evaluated on the same prompts and noise
    let base: Vec<Vec<Option<Value>>> = measures.iter().map(|m| column(m, false)).collect();
    let same = base.iter().all(|cells| cells.iter().all(|c| *c == cells[0]));
    let first = same.then(|| {
        let cells = base.iter().map(|cells| cells[0].as_ref().map_or(Html::default(), |c| text(estimate(c))));
        row(std::iter::once(text(&compared[0].1.columns[0])).chain(cells))
    });
    let heads: Vec<String> =
        std::iter::once("run".to_string()).chain(measures.iter().map(ToString::to_string)).collect();
    let note = "Means with standard errors, and below them the change from the base in its standard errors. Marked: the best of each column.";
    let own = (!one_reward && measures.iter().any(|m| *m == "reward")).then(|| {
        word("p", "These runs have different rewards: the column `reward` is each run's own, and not compared.")
    });
    let table = table("results of all runs", &heads, first.into_iter().chain(rows));
    Some([table, legend(note)].into_iter().chain(own).collect())
}

fn legend(note: &str) -> Html {
    tag(
        "p",
        &[("class", "note")],
        [text(note), text(" The highest is best; of times, memory, losses and Frechet distances the lowest.")],
    )
}

fn marked(inner: Html, best: bool) -> Html {
    match best {
        true => tag("strong", &[("class", "best"), ("title", "best")], [inner]),
        false => inner,
    }
}

/// The place of the best of finite values, where there are two that differ.
fn best(measure: &str, means: &[f64]) -> Option<usize> {
    const LOW: [&str; 6] = ["second", "time", "memory", "loss", "frechet", "fid"];
    let name = measure.to_lowercase();
    let sign = if LOW.iter().any(|word| name.contains(word)) { -1.0 } else { 1.0 };
    let finite = || means.iter().enumerate().filter(|(_, m)| m.is_finite());
    let (place, top) = finite().max_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1)))?;
    finite().any(|(_, m)| m != top).then_some(place)
}

fn estimate(cell: &Value) -> Estimate {
    let number = |key: &str| cell[key].as_f64().unwrap_or(f64::NAN);
    Estimate { mean: number("mean"), error: number("error"), count: cell["count"].as_u64().unwrap_or(0) as usize }
}

fn change(cell: &Value) -> Option<Estimate> {
    cell["change"].is_object().then(|| estimate(&cell["change"]))
}

fn sigmas(change: &Estimate) -> String {
    if change.error > 0.0 { format!("{:+.1}", change.sigmas()) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(name: &str, settings: Value, rewards: Value, tuned: f64) -> Reading {
        let cell = |mean: f64| json!({ "mean": mean, "error": 0.01, "count": 9, "change": { "mean": 0.1, "error": 0.01, "count": 9 } });
        let both = |tuned: f64| json!({ "base": cell(0.1), "tuned": cell(tuned) });
        Reading {
            folder: Default::default(),
            name: name.into(),
            record: json!({ "settings": settings, "rewards": rewards }),
            lines: Vec::new(),
            result: Some(json!({ "measures": { "reward": both(tuned), "oracle": both(tuned) } })),
            state: String::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn different_rewards_are_not_compared() {
        let page = |runs: [Reading; 2]| format!("{:?}", section(&runs));
        let beside =
            |page: &str| page.split("results of all runs").nth(1).unwrap_or_default().matches("title=").count();
        let named = |reward: &str| json!({ "reward": reward });
        let same = page([run("a", named("x"), json!([]), 0.3), run("b", named("x"), json!(["w"]), 0.7)]);
        let other = page([run("a", named("x"), json!([]), 0.3), run("b", named("y"), json!([]), 0.7)]);
        assert!(!same.contains("different rewards") && other.contains("different rewards"), "{other}");
        assert_eq!(beside(&same), beside(&other) + 1);
        let closure = page([run("a", named("x"), json!(["x"]), 0.3), run("b", json!({}), json!([]), 0.7)]);
        assert!(closure.contains("different rewards"));
    }

    #[test]
    fn the_best_is_the_highest_but_of_times() {
        assert_eq!(best("reward", &[0.1, f64::NAN, 0.3]), Some(2));
        assert_eq!(best("seconds", &[0.1, f64::NAN, 0.3]), Some(0));
        assert_eq!((best("reward", &[0.3, 0.3]), best("reward", &[f64::NAN])), (None, None));
    }
}
