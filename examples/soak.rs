//! What takes too long for the suite: kills while saving, kills in a recipe, and a run of many updates.
//!
//! `cargo run --release --example soak` prints a line for each; `-- kills 100`, `-- recipe 5` or `-- updates 2000` is one of them,
//! shorter. It fails where a promise of `docs/trust.md` does not hold.
#![allow(clippy::print_stdout)]

use amscript::run::checkpoint;
use amscript::script::{Host, Request, Session};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const SAVING: &str = include_str!("../tests/resume/saving.rhai");
const RECIPE: &str = include_str!("../scripts/flux_ode_am.rhai");
const UPDATES: &str = r#"
    let s = settings(#{ updates: 10000 });
    let run = start_run(#{ seed: 1 });
    let w = param(tensor([0.5, -0.5]));
    let optimizer = adamw(#{ w: w }, #{ rate: 1e-3 });
    let base = velocity_field(|x, t, c| -x);
    let policy = velocity_field(|x, t, c| w * x - x);
    let method = adjoint_matching(#{ grid: uniform(6), truncate: last(3) });
    let kept = method_state();
    let aside = [0.0, 0.0];
    for i in run.steps(s.updates) {
        let b = batch(run.rng("noise").normal([64, 2]), (), terminal_cost(|x| (x * x).sum(1)), #{ rng: run.rng("path"), state: kept });
        let update = method.update(policy, base, b);
        optimizer.step(update.loss, #{ clip: 1.0 });
        let measured = update.measured;
        aside[0] += time(|| run.log(measured));
        if i % 100 == 99 { aside[1] += time(|| run.images("samples", zeros([4, 3, 64, 64]))); }
        run.checkpoint(|| #{ w: w.detach(), optimizer: optimizer.state() }, #{ every: 500 });
        if run.step % 1000 == 0 { print(`at ${run.step} ${aside[0]} ${aside[1]}`); }
    }
"#;
/// The recipe at a size that is run many times.
const SMALL: [&str; 9] = [
    "iterations=4",
    "every=1",
    "batch=1",
    "steps=4",
    "rank=2",
    "watch=[]",
    "panel=0",
    "test_prompts=1",
    "images_per_prompt=2",
];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let count = |at: usize, usual: usize| words.get(at).map_or(Ok(usual), |n| n.parse());
    match words.first().copied() {
        Some("child") => child(words[1], Path::new(words[2]), &words[3..]),
        Some("kills") => kills(count(1, 1000)?),
        Some("recipe") => recipe(count(1, 20)?),
        Some("updates") => updates(count(1, 10_000)?),
        _ => kills(1000).and_then(|()| recipe(20)).and_then(|()| updates(10_000)),
    }
}

/// A process of its own: runs a script into a folder.
fn child(which: &str, out: &Path, set: &[&str]) -> Outcome<()> {
    let overrides = set.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
    let request = Request { out: Some(out.into()), overrides, ..Request::default() };
    let host = Host::new(Session::new(request, Box::new(|line| println!("{line}"))));
    let text = match which {
        "saving" => SAVING,
        "recipe" => RECIPE,
        _ => UPDATES,
    };
    let worker = std::thread::Builder::new().stack_size(64 << 20).spawn(move || host.run("soak", text).map(drop));
    worker?.join().map_err(|_| "the script panicked")??;
    Ok(())
}

fn start(which: &str, out: &Path, set: &[&str]) -> Outcome<(Child, impl Iterator<Item = String> + use<>)> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args(["child", which]).arg(out).args(set).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines().map_while(Result::ok);
    Ok((child, lines))
}

/// Numbers from 0 to `most`, always the same.
fn random(state: &mut u64, most: u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) % most
}

/// SIGKILL at random moments of a script that does little but save: the last checkpoint is always whole and never an older one.
fn kills(count: usize) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let (out, mut last, mut state) = (folder.path().join("o"), 0, 1);
    let begun = Instant::now();
    for i in 0..count {
        let (mut child, mut lines) = start("saving", &out, &[])?;
        let seen = lines.find(|line| line.contains(if last > 0 { "resuming" } else { "run directory" }));
        std::thread::sleep(Duration::from_micros(random(&mut state, 200_000)));
        child.kill()?;
        child.wait()?;
        let (found, damage) = checkpoint::latest(&out)?;
        let step = found.map_or(0, |found| found.step);
        if seen.is_none() || step < last || !damage.is_empty() {
            return Err(format!("kill {i}: step {step} after {last}, {seen:?}, {damage:?}").into());
        }
        last = step;
    }
    println!("{count} kills while saving: {last} checkpoints, every last one whole ({:.0?})", begun.elapsed());
    Ok(())
}

/// SIGKILL at random moments of a recipe, again and again until it ends: the same LoRA and log as without.
fn recipe(count: usize) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let files = |out: &Path| -> Outcome<[Vec<u8>; 2]> {
        Ok([std::fs::read(out.join("lora.safetensors"))?, std::fs::read(out.join("metrics.jsonl"))?])
    };
    let whole = folder.path().join("whole");
    let (begun, mut state, mut killed) = (Instant::now(), 1, 0);
    end(start("recipe", &whole, &SMALL)?)?;
    let (expected, takes) = (files(&whole)?, begun.elapsed());
    for i in 0..count {
        let out = folder.path().join(i.to_string());
        for _ in 0..3 {
            let (mut child, _lines) = start("recipe", &out, &SMALL)?;
            std::thread::sleep(takes.mul_f64(random(&mut state, 1000) as f64 / 1000.0));
            child.kill()?;
            killed += usize::from(!child.wait()?.success());
        }
        end(start("recipe", &out, &SMALL)?)?;
        if files(&out)? != expected {
            return Err(format!("run {i} left other bytes").into());
        }
    }
    let bytes = count * expected.iter().map(Vec::len).sum::<usize>();
    println!("{count} runs of a recipe killed {killed} times: {bytes} bytes of LoRA and log, all equal");
    Ok(())
}

fn end((mut child, lines): (Child, impl Iterator<Item = String>)) -> Outcome<()> {
    let said: Vec<String> = lines.collect();
    if child.wait()?.success() { Ok(()) } else { Err(said.join("\n").into()) }
}

/// Many updates of a micro model: memory and open files stay, and log and images take little of the time.
fn updates(count: usize) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let begun = Instant::now();
    let (mut child, lines) = start("updates", folder.path(), &[&format!("updates={count}")])?;
    let (mut first, mut last, mut aside) = (None, (0, 0), [0.0, 0.0]);
    for line in lines {
        let Some(rest) = line.strip_prefix("at ") else { continue };
        if let Ok(memory) = resident(child.id()) {
            // not so when it ended meanwhile
            last = (memory, std::fs::read_dir(format!("/proc/{}/fd", child.id()))?.count());
            first.get_or_insert(last);
        }
        for (sum, word) in aside.iter_mut().zip(rest.split(' ').skip(1)) {
            *sum = word.parse()?;
        }
    }
    let (seconds, first) = (begun.elapsed().as_secs_f64(), first.ok_or("no thousandth update")?);
    if !child.wait()?.success() {
        return Err("the run failed".into());
    }
    let checkpoints = std::fs::read_dir(folder.path())?.flatten();
    let checkpoints = checkpoints.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-")).count();
    let share = |seconds_of: f64| 100.0 * seconds_of / seconds;
    let growth = last.0 as i64 - first.0 as i64;
    println!(
        "{count} updates in {seconds:.1} s: {growth} kB more than at the first thousandth of {} kB, {} files open as against {}, \
         {checkpoints} checkpoints; a line of the log {:.3} ms, {:.2} % of the time of these smallest of updates; images {:.2} %",
        first.0,
        last.1,
        first.1,
        1000.0 * aside[0] / count as f64,
        share(aside[0]),
        share(aside[1]),
    );
    if growth > 4096 || last.1 > first.1 || checkpoints > 2 {
        return Err("memory, files or checkpoints grow".into());
    }
    Ok(())
}

/// Resident memory of a process in kB, as Linux tells it.
fn resident(process: u32) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
