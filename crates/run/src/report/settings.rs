//! What runs were made from: the settings that differ, those that are the same, and where everything came from.

use super::markup::{Html, folded, row, table, tag, text, word};
use super::reading::Reading;
use crate::progress::span;
use serde_json::Value;
use std::time::Duration;

const ABSENT: &str = "–";

/// A JSON value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => ABSENT.into(),
        Value::String(text) => text.clone(),
        // a whole number is the same with and without a point
        Value::Number(n) if n.is_f64() => n.as_f64().unwrap_or(f64::NAN).to_string(),
        other => other.to_string(),
    }
}

/// Settings that differ between the runs, a column each; the same ones below.
pub fn section(runs: &[Reading]) -> Html {
    let mut names: Vec<&String> = Vec::new();
    for name in runs.iter().filter_map(|r| r.record["settings"].as_object()).flat_map(|s| s.keys()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value = |run: &Reading, name: &str| plain(&run.record["settings"][name]);
    let (same, differ): (Vec<&String>, Vec<&String>) =
        names.into_iter().partition(|name| runs.iter().all(|run| value(run, name) == value(&runs[0], name)));
    let list = || {
        let rows = same.iter().map(|name| row([text(name), text(value(&runs[0], name))]));
        table("settings that are the same", &["setting".into(), "value".into()], rows)
    };
    if runs.len() == 1 {
        return if same.is_empty() { word("p", "The run has no settings.") } else { list() };
    }
    let heads: Vec<String> = std::iter::once("run".to_string()).chain(differ.iter().map(ToString::to_string)).collect();
    let first = match differ.is_empty() {
        true => word("p", "All settings are the same."),
        false => {
            let cells = |run: &Reading| differ.iter().map(|name| text(value(run, name))).collect::<Vec<_>>();
            let rows = runs.iter().map(|run| row(std::iter::once(text(&run.name)).chain(cells(run))));
            table("settings that differ", &heads, rows)
        }
    };
    let rest =
        (!same.is_empty()).then(|| folded(format!("{} settings that are the same", same.len()), false, [list()]));
    std::iter::once(first).chain(rest).collect()
}

/// Seed, versions, hashes, rewards, device and recipe of each run.
pub fn provenance(runs: &[Reading]) -> Html {
    let one = runs.len() == 1;
    let each = runs.iter().enumerate().map(|(i, run)| {
        let rows = facts(run).into_iter().map(|(name, value)| row([text(name), text(value)]));
        let facts = table(&format!("provenance of {}", run.name), &["what".into(), "value".into()], rows);
        let hash = &run.record["recipe"]["sha256"];
        let twin = runs[..i].iter().find(|other| hash.is_string() && other.record["recipe"]["sha256"] == *hash);
        let recipe = match (twin, run.record["recipe"]["text"].as_str()) {
            (Some(twin), _) => word("p", format!("The recipe is that of {}.", twin.name)),
            (None, Some(recipe)) => folded("recipe", false, [tag("pre", &[("tabindex", "0")], [word("code", recipe)])]),
            (None, None) => Html::default(),
        };
        if one { [facts, recipe].into_iter().collect() } else { folded(&run.name, false, [facts, recipe]) }
    });
    each.collect()
}

fn facts(run: &Reading) -> Vec<(String, String)> {
    let (record, result) = (&run.record, run.result.as_ref().unwrap_or(&Value::Null));
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: &Value| {
        if !value.is_null() {
            facts.push((name.into(), plain(value)));
        }
    };
    for name in ["seed", "device", "threads"] {
        add(name, &record[name]);
    }
    add("recipe", &record["recipe"]["path"]);
    add("recipe, sha256", &record["recipe"]["sha256"]);
    for (name, version) in record["versions"].as_object().into_iter().flatten() {
        add(name, version);
    }
    // rewards that were opened after the run began stand with the results
    let rewards =
        [&result["rewards"], &record["rewards"]].into_iter().find_map(|r| r.as_array().filter(|r| !r.is_empty()));
    for reward in rewards.into_iter().flatten() {
        add("reward", reward);
    }
    for (file, hash) in result["sha256"].as_object().into_iter().flatten() {
        add(&format!("{file}, sha256"), hash);
    }
    add("steps", &result["steps"]);
    if let Some(seconds) = result["seconds"].as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()) {
        facts.push(("time of the last session".into(), span(seconds)));
    }
    for (name, key) in [("most memory", "peak_memory"), ("most memory of the card", "card_memory")] {
        if let Some(bytes) = result[key].as_f64() {
            facts.push((name.into(), format!("{:.2} GB", bytes / 1e9)));
        }
    }
    facts
}
