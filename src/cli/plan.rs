//! `amscript run --plan`: the plan of a run as people read it.

use super::quantity::{bytes, count, flops};
use amscript_base::profile::Totals;
use amscript_model::text::CACHED_BYTES;
use amscript_nn::cost::Part;
use amscript_run::plan::{Plan, Update};
use amscript_run::roofline::{Bound, CARDS, LAUNCH};
use amscript_tensor::meta::{OpTotals, Ops};
use comfy_table::{CellAlignment, Table, presets};

/// Parts, work and memory, each as a small table.
pub fn text(plan: &Plan) -> String {
    let mut out = vec![parts(plan)];
    match (&plan.update, memory(plan)) {
        (Some(update), Some(memory)) => {
            out.extend([work(plan, update), phases(plan), memory]);
            out.extend(plan.card_ops.as_ref().map(roofline));
        }
        _ => match (&plan.whole, memory(plan)) {
            (Some(all), Some(memory)) => out.extend([drawing(all), phases(plan), memory]),
            _ => out.push("no update was reached, so there is no more to say".into()),
        },
    }
    out.join("\n\n")
}

pub(super) fn table(head: &str, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> = table.lines().map(|line| format!(" {}", line.trim_end())).collect();
    format!("{head}\n{}", lines.join("\n"))
}

fn parts(plan: &Plan) -> String {
    let row = |part: &Part| {
        vec![
            part.name.clone(),
            format!("{} tensors", count(part.tensors as u64)),
            format!("{} parameters", count(part.parameters)),
            bytes(part.bytes),
        ]
    };
    if plan.parts.is_empty() {
        return "weights: none were asked for".into();
    }
    table("weights", plan.parts.iter().map(row).collect())
}

fn work(plan: &Plan, update: &Update) -> String {
    let unknown = || "unknown".to_string();
    let [forwards, backwards] = update.passes.map(count);
    let rows = vec![
        vec!["images per update".into(), count(plan.batch as u64)],
        vec!["updates".into(), plan.iterations.map_or_else(unknown, |n| count(n as u64))],
        vec!["images of all updates".into(), plan.images().map_or_else(unknown, count)],
        vec!["forwards per update".into(), forwards],
        vec!["backwards per update".into(), backwards],
        vec!["an update".into(), flops(update.work)],
        vec!["all updates".into(), plan.iterations.map_or_else(unknown, |n| flops(update.work * n as f64))],
    ];
    table("work", rows)
}

/// What a script does that trains nothing.
fn drawing(all: &Update) -> String {
    let rows = vec![
        vec!["forwards, each of a batch".into(), count(all.passes[0])],
        vec!["all of the script".into(), flops(all.work)],
    ];
    table("work, without an update", rows)
}

/// Phases of the update with the work and the memory of each, the most work first.
fn phases(plan: &Plan) -> String {
    let mut phases: Vec<_> = plan.phases.iter().filter(|(_, totals)| totals.held > 0).collect();
    phases.sort_by(|a, b| b.1.work.total_cmp(&a.1.work));
    let row = |(name, totals): (&&str, &Totals)| vec![name.to_string(), flops(totals.work), bytes(totals.held as f64)];
    table("phases: work, most held", phases.into_iter().map(row).collect())
}

/// Times of the ops that matter at 70 % of what two cards' makers say, the longest first.
fn roofline(ops: &Ops) -> String {
    let head = "ops of an update, and milliseconds at 70 % of a card's rates, not measured (*: bound by memory)";
    let all = CARDS.each_ref().map(|card| card.seconds(ops));
    let milliseconds = |bound: Bound| format!("{:.2}{}", 1e3 * bound.seconds, if bound.by_memory { "*" } else { " " });
    let mut sorted: Vec<_> = ops.iter().collect();
    sorted.sort_by(|a, b| CARDS[0].bound(*b.0, *b.1).seconds.total_cmp(&CARDS[0].bound(*a.0, *a.1).seconds));
    let matters = |((name, dtype), op): &(&(&'static str, &'static str), &OpTotals)| {
        CARDS.iter().zip(all).any(|(card, all)| card.bound((name, dtype), **op).seconds > 0.01 * all)
    };
    let row = |(key, op): (&(&'static str, &'static str), &OpTotals)| {
        let name = format!("{} {}", key.0, key.1);
        let times = CARDS.each_ref().map(|card| milliseconds(card.bound(*key, *op)));
        [vec![name, count(op.calls), flops(op.work), bytes(op.moved)], times.to_vec()].concat()
    };
    let titles = ["", "calls", "work", "moved"].into_iter().chain(CARDS.iter().map(|card| card.name));
    let mut rows = vec![titles.map(String::from).collect()];
    rows.extend(sorted.into_iter().filter(matters).map(row));
    let sum = |f: fn(&OpTotals) -> f64| ops.values().map(f).sum::<f64>();
    let calls: u64 = ops.values().map(|op| op.calls).sum();
    let total = vec!["all".into(), count(calls), flops(sum(|op| op.work)), bytes(sum(|op| op.moved))];
    rows.push([total, all.map(|seconds| format!("{:.2} ", 1e3 * seconds)).to_vec()].concat());
    let launches = format!("{:.2} ", 1e3 * LAUNCH * calls as f64);
    let blank = || vec![String::new(); 2];
    rows.push(
        [vec!["launches, meanwhile, of one kernel a call".into(), count(calls)], blank(), vec![launches; 2]].concat(),
    );
    table(head, rows)
}

fn memory(plan: &Plan) -> Option<String> {
    let [most, freed] = plan.memory(CACHED_BYTES)?;
    let weights: f64 = plan.parts.iter().map(|part| part.bytes).sum();
    let trained = format!("{} trained numbers", count(plan.trained));
    let mut rows = vec![
        ("weights", weights),
        (trained.as_str(), 4.0 * plan.trained as f64),
        ("embeddings of the prompts of later updates", plan.prompts(CACHED_BYTES)),
        ("most at once, with a tenth for the allocator", most),
    ];
    if freed < most {
        rows.push(("the same without the text encoder", freed));
    }
    rows.retain(|(_, size)| *size > 0.0 || plan.update.is_some());
    let rows = rows.into_iter().map(|(name, size)| vec![name.to_string(), bytes(size)]);
    Some(table("memory", rows.collect()))
}
