//! `amscript run --profile`: where time and memory went, as people read it.

use super::plan::table;
use super::quantity::bytes;
use amscript_base::error::Result;
use amscript_base::profile::{Profile, Totals};
use amscript_tensor::rate::rates;
use std::time::Duration;

/// Phases and ops, the longest first.
pub fn text(profile: &Profile) -> String {
    let total: Duration = profile.phases.values().map(|t| t.time).sum();
    let share = |time: Duration| format!("{:.1} %", 100.0 * time.as_secs_f64() / total.as_secs_f64().max(1e-9));
    let mut phases: Vec<(&&str, &Totals)> = profile.phases.iter().collect();
    phases.sort_by_key(|(_, t)| std::cmp::Reverse(t.time));
    let head = ["", "calls", "time", "share", "in memory at the end, at most"].map(String::from).to_vec();
    let row = |(name, t): &(&&str, &Totals)| {
        let memory = if t.held == 0 { String::new() } else { bytes(t.held as f64) };
        vec![name.to_string(), t.calls.to_string(), seconds(t.time), share(t.time), memory]
    };
    let first = table("phases", std::iter::once(head).chain(phases.iter().map(row)).collect());
    let mut ops: Vec<(&&str, &[Totals; 2])> = profile.ops.iter().collect();
    ops.sort_by_key(|(_, [a, b])| std::cmp::Reverse(a.time + b.time));
    let head = ["", "forward", "calls", "backward", "calls", "share", "GFLOP/s"].map(String::from).to_vec();
    let row = |(name, [a, b]): &(&&str, &[Totals; 2])| {
        let part = |t: &Totals| [seconds(t.time), t.calls.to_string()];
        let reached = (a.work + b.work) / (a.time + b.time).as_secs_f64().max(1e-9);
        let rest = [share(a.time + b.time), giga(reached)];
        [vec![name.to_string()], part(a).to_vec(), part(b).to_vec(), rest.to_vec()].concat()
    };
    let second = table("ops", std::iter::once(head).chain(ops.iter().map(row)).collect());
    format!("{first}\n\n{second}")
}

/// What products reach on this processor now, to compare an op's rate with.
pub fn machine() -> Result<String> {
    let rates = rates()?;
    let [large, bf16, cold] = [rates.large, rates.bf16, rates.cold].map(giga);
    Ok(format!(
        "this processor: {large} GFLOP/s of f32 in large products ({bf16} of bf16), {cold} in 320 x 1024 x 3072 with a weight from memory"
    ))
}

fn giga(rate: f64) -> String {
    format!("{:.1}", rate / 1e9)
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}
