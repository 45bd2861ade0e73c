//! What it costs that the loop is a script: updates of AM-1 on tiny/flux2, the cheapest there are, from Rhai (`script.rhai`) and from
//! Rust, in turn and with the same losses; a loss written in Rhai beside the native one (`loss.rhai`); the time outside all phases of an
//! update, by the profile; and how long a start takes.
//!
//! `cargo bench --bench script`
#![allow(clippy::print_stdout)]

use amscript::align::{AdjointMatching, Batch, MethodState, RewardCost, Truncation, update};
use amscript::data::prompts::Prompts;
use amscript::flow::uniform;
use amscript::model::adapter::Targets;
use amscript::model::{ModelOptions, open};
use amscript::nn::module::Module;
use amscript::nn::opener::Found;
use amscript::nn::source::Sources;
use amscript::optim::{AdamW, OptimizerOptions, Params, StepOptions, constant_rate};
use amscript::profile::Profile;
use amscript::reward::clip_encoder::ClipCache;
use amscript::script::session::Request;
use amscript::script::{Host, Session};
use amscript::tensor::{Device, Rng};
use amscript::{Result, reward};
use serde::Deserialize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("script.rhai");
const UPDATES: usize = 8;
const ROUNDS: usize = 10;

#[derive(Deserialize)]
struct Loop {
    seconds: Vec<f64>,
    losses: Vec<f64>,
}

/// Seconds of a step on the native loss and on the same loss written in Rhai.
fn losses() -> Result<[f64; 2]> {
    #[derive(Deserialize)]
    struct Seconds {
        native: Vec<f64>,
        own: Vec<f64>,
    }
    let printed = Arc::new(Mutex::new(String::new()));
    let out = printed.clone();
    let write = move |line: &str| *out.lock().expect("one thread prints") = line.into();
    Host::new(Session::new(Request::default(), Box::new(write)))
        .run("loss.rhai", include_str!("loss.rhai"))
        .map(drop)?;
    let line = printed.lock().expect("one thread prints").clone();
    let found: Seconds = serde_json::from_str(&line).expect("the script prints JSON");
    Ok([median(found.native[2..].to_vec()), median(found.own[2..].to_vec())])
}

/// The loop in Rhai, and where its time went if that is measured.
fn in_rhai(updates: usize, measured: bool) -> Result<(Loop, Profile)> {
    let printed = Arc::new(Mutex::new(String::new()));
    let (overrides, out) = (vec![("updates".into(), updates.to_string())], printed.clone());
    let write = move |line: &str| *out.lock().expect("one thread prints") = line.into();
    let session = Session::new(Request { overrides, ..Request::default() }, Box::new(write));
    let context = session.context().clone();
    if measured {
        context.profile.start(None);
    }
    Host::new(session).run("script.rhai", SCRIPT).map(drop)?;
    let line = printed.lock().expect("one thread prints").clone();
    let found = serde_json::from_str(&line).expect("the script prints JSON");
    Ok((found, context.profile.finish().unwrap_or_default()))
}

/// The same loop in Rust.
fn in_rust(updates: usize) -> Result<Loop> {
    let (sources, device) = (Sources::new(None), Device::Cpu);
    let base = open("tiny/flux2", &sources, &ModelOptions::default(), &device)?;
    let policy = base.lora(8, 1.0, &Targets::Usual, &Rng::new(0).split("lora"))?;
    let found = Found::in_folder("tiny/hpsv2", sources.named("tiny/hpsv2")?);
    let judge = reward::open::open(&found, &Default::default(), &ClipCache::default(), &sources, &device)?;
    let train = Prompts::open("shapes/train")?;
    let options = OptimizerOptions { rate: constant_rate(1e-4)?, ..OptimizerOptions::default() };
    let mut optimizer = AdamW::new(Params::new(policy.params())?, options)?;
    let (mut prompts, mut noise) = (Rng::new(0), Rng::new(1));
    let mut found = Loop { seconds: vec![], losses: vec![] };
    for _ in 0..updates {
        let begun = Instant::now();
        let texts = train.sample(8, &mut prompts)?;
        let c = base.encode(&texts)?;
        let x0 = base.noise(8, None, &mut noise)?;
        let (flow, judge) = (base.clone(), judge.clone());
        let cost = RewardCost::new(move |x| judge.score(&flow.decode(x)?, &texts), 100.0)?;
        let method = AdjointMatching { truncate: Truncation::Last(1), ..AdjointMatching::new(uniform(20)?) };
        let batch = Batch::new(&x0, &c, cost);
        let loss = update(&method, &policy, &base, &batch, &mut MethodState::default())?.loss()?;
        optimizer.step(&loss, &StepOptions { clip: Some(1.0), ..StepOptions::default() })?;
        found.losses.push(loss.to_scalar::<f32>()? as f64);
        found.seconds.push(begun.elapsed().as_secs_f64());
    }
    Ok(found)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds that `updates` updates spend outside all phases, and in all.
fn outside(updates: usize) -> Result<[f64; 2]> {
    let phases = in_rhai(updates, true)?.1.phases;
    let seconds = |time: Duration| time.as_secs_f64();
    let all = phases.values().map(|totals| seconds(totals.time)).sum();
    Ok([phases.get("script").map_or(0.0, |totals| seconds(totals.time)), all])
}

/// Milliseconds from the start to the end of the command on a script.
fn start_up(script: &Path) -> f64 {
    let once = |_| {
        let begun = Instant::now();
        let status = Command::new(env!("CARGO_BIN_EXE_amscript")).arg(script).stdout(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "{} must run", script.display());
        begun.elapsed().as_secs_f64() * 1e3
    };
    median((0..20).map(once).collect())
}

fn main() -> Result<()> {
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().ok();
    let (mut rhai, mut rust) = (vec![], vec![]);
    for round in 0..ROUNDS {
        // Whoever comes second finds the memory of the first; so they change places.
        let (a, b) = match round % 2 {
            0 => (in_rhai(UPDATES, false)?.0, in_rust(UPDATES)?),
            _ => {
                let b = in_rust(UPDATES)?;
                (in_rhai(UPDATES, false)?.0, b)
            }
        };
        assert_eq!(a.losses, b.losses, "both loops must take the same updates");
        rhai.extend(&a.seconds[1..]);
        rust.extend(&b.seconds[1..]);
    }
    let (rhai, rust) = (median(rhai), median(rust));
    println!(
        "an update: {:.2} ms from Rhai, {:.2} ms from Rust: {:+.2} %",
        rhai * 1e3,
        rust * 1e3,
        (rhai / rust - 1.0) * 1e2
    );
    let [native, own] = losses()?;
    println!("a step on a loss: {:.2} ms native, {:.2} ms in Rhai: {:.3}", native * 1e3, own * 1e3, own / native);
    let (few, many) = (outside(2)?, outside(UPDATES + 2)?);
    let [script, all] = [0, 1].map(|i| (many[i] - few[i]) / UPDATES as f64);
    println!("outside all phases: {:.3} ms of {:.2} ms: {:.2} %", script * 1e3, all * 1e3, script / all * 1e2);
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in
        [("an empty script", ""), ("tiny/flux2 and tiny/hpsv2 opened", "flow(\"tiny/flux2\"); reward(\"tiny/hpsv2\");")]
    {
        let path = folder.path().join("start.rhai");
        std::fs::write(&path, text).expect("a script in it");
        println!("start to end, {name}: {:.0} ms", start_up(&path));
    }
    Ok(())
}
