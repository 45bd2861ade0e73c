//! `amscript run --plan`: the plan of a run as people read it.

use super::quantity::{bytes, count, flops};
use crate::run::plan::{Memory, Method, Plan, Update};
use comfy_table::{CellAlignment, Table, presets};

/// Parts, work and memory, each as a small table.
pub fn text(plan: &Plan) -> String {
    let mut out = vec![parts(plan)];
    match (&plan.update, plan.memory()) {
        (Some(update), Some(memory)) => out.extend([work(plan, update), self::memory(plan, update, &memory)]),
        _ => out.push("no update was reached, so there is no more to say".into()),
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
    let row = |part: &crate::nn::cost::Part| {
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
    let (n, k) = (update.steps, update.active);
    let method = match update.method {
        Method::Fused => "fused adjoint matching",
        Method::Stepwise => "fused adjoint matching, the policy's steps run again",
        Method::Separate => "adjoint matching by hand",
        Method::Draft => "DRaFT",
        Method::Refl => "ReFL",
    };
    let unknown = || "unknown".to_string();
    let mut rows = vec![
        vec!["images per update".into(), count(update.batch as u64)],
        vec!["updates".into(), plan.iterations.map_or_else(unknown, |n| count(n as u64))],
        vec!["images of all updates".into(), plan.images().map_or_else(unknown, count)],
        vec!["forwards per update".into(), number(update.forwards())],
        vec!["backwards per update".into(), number(update.backwards())],
    ];
    if update.work.network.forward > 0.0 {
        rows.extend([
            vec!["one forward of one image".into(), flops(update.work.network.forward)],
            vec!["an update".into(), plan.flops_per_update().map_or_else(unknown, flops)],
            vec!["all updates".into(), plan.flops().map_or_else(unknown, flops)],
        ]);
    }
    table(&format!("work: {method}, N = {n} steps, K = {k} active"), rows)
}

fn number(n: f64) -> String {
    if n.fract() == 0.0 { format!("{n:.0}") } else { format!("{n:.1}") }
}

fn memory(plan: &Plan, update: &Update, memory: &Memory) -> String {
    let graph = match update.work.recompute {
        true => "graph of the policy, blocks run again",
        false => "graph of the policy",
    };
    let trained = format!("{} trained numbers, gradient, moments", count(plan.trainable));
    let mut rows = vec![
        ("weights", memory.weights),
        (trained.as_str(), memory.training),
        ("states, adjoints, targets", memory.states),
        (graph, memory.policy),
        ("or: graph of the base along the adjoint", memory.adjoint),
        ("or: graph through decoder and reward", memory.judging),
        ("embeddings of the prompts", memory.prompts),
        ("most at once, with a tenth for the allocator", memory.peak),
    ];
    if memory.freed < memory.peak {
        rows.push(("the same without the text encoder", memory.freed));
    }
    let rows = rows.into_iter().map(|(name, size)| vec![name.to_string(), bytes(size)]);
    let mut text = table("memory", rows.collect());
    if update.work.network.forward == 0.0 {
        text += "\n  of the flow and its graphs nothing is known: it is a closure";
    }
    text
}
