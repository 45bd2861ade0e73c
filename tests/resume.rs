//! Runs that are killed go on to the same bytes, in fresh processes; what would make them other runs is named.

use amscript::run::checkpoint;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder in which scripts run.
struct Desk(tempfile::TempDir);

impl Desk {
    /// With one script, `s.rhai`.
    fn new(script: &str) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("s.rhai", script);
        desk
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.at(name), text).unwrap();
    }

    fn command(&self, out: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
        command.current_dir(self.0.path()).env_remove("AMSCRIPT_DEVICE");
        command.args(["s.rhai", "--out", out]).args(arguments);
        command
    }

    fn run(&self, out: &str, arguments: &[&str]) -> Output {
        self.command(out, arguments).output().unwrap()
    }

    /// What it prints, of a run that must end well.
    fn good(&self, out: &str, arguments: &[&str]) -> String {
        let output = self.run(out, arguments);
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// What it says, of a run that must be refused.
    fn refused(&self, out: &str, arguments: &[&str]) -> String {
        let output = self.run(out, arguments);
        assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stderr)
    }

    /// Starts the script, and kills it when it has printed a line with `word`.
    fn killed_at(&self, out: &str, arguments: &[&str], word: &str) {
        let mut child = self.command(out, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = lines.map_while(Result::ok).any(|line| line.contains(word));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen, "{word}");
    }

    /// Everything that a run leaves and that must not depend on when it was killed: files with their bytes, but seconds.
    fn left(&self, out: &str) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for name in ["end.safetensors", "metrics.jsonl"] {
            found.insert(name.to_string(), std::fs::read(self.at(out).join(name)).unwrap_or_default());
        }
        for entry in std::fs::read_dir(self.at(out)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with("step-") {
                continue;
            }
            let tensors = std::fs::read(entry.path().join("state.safetensors")).unwrap();
            let record = std::fs::read_to_string(entry.path().join("state.json")).unwrap();
            let mut record: serde_json::Value = serde_json::from_str(&record).unwrap();
            record["seconds"] = 0.into();
            found.insert(format!("{name}/state.safetensors"), tensors);
            found.insert(format!("{name}/state.json"), record.to_string().into_bytes());
        }
        found
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).to_string()
}

/// Names of the files that differ.
fn differing(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

const MICRO: &str = include_str!("resume/micro.rhai");
const STEPS: usize = 5;

#[test]
fn a_run_killed_once_or_twice_at_any_step_leaves_the_same_bytes() {
    let desk = Desk::new(MICRO);
    desk.good("whole", &[]);
    let whole = desk.left("whole");
    assert_eq!(whole.len(), 6, "{:?}", whole.keys());
    for first in 0..STEPS {
        for second in first..STEPS {
            let out = format!("{first}-{second}");
            for stop in if first == second { vec![first] } else { vec![first, second] } {
                desk.killed_at(&out, &["--set", &format!("stop={stop}")], "stopped");
            }
            let said = desk.good(&out, &[]);
            assert!(said.contains(&format!("resuming after step {second}")) || second == 0, "{said}");
            assert_eq!(
                differing(&whole, &desk.left(&out)),
                Vec::<String>::new(),
                "killed in steps {first} and {second}"
            );
        }
    }
}

/// The negative control: a restore that leaves any part of the state out leaves other bytes.
#[test]
fn a_part_of_the_state_that_is_left_out_is_noticed() {
    let desk = Desk::new(MICRO);
    desk.good("whole", &[]);
    let whole = desk.left("whole");
    let parts =
        ["weights", "step", "first.w", "second.w", "average", "method", "prompts", "noise", "path", "position", "log"];
    for part in parts {
        desk.killed_at(part, &["--set", "stop=3"], "stopped");
        if part == "log" {
            std::fs::remove_file(desk.at(part).join("metrics.jsonl")).unwrap();
        }
        desk.good(part, &["--set", &format!("skip={part}")]);
        assert!(!differing(&whole, &desk.left(part)).is_empty(), "{part}");
    }
}

/// SIGKILL at random moments of a script that does little but save; a thousand in `examples/soak.rs`.
#[test]
fn a_kill_at_any_moment_leaves_a_whole_checkpoint() {
    let desk = Desk::new(include_str!("resume/saving.rhai"));
    let (mut last, mut random) = (0, 1_u64);
    for _ in 0..25 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut child = desk.command("o", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let resumed = lines.find(|line| line.contains(if last > 0 { "resuming" } else { "run directory" }));
        std::thread::sleep(Duration::from_micros((random >> 33) % 200_000));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(resumed.is_some() && output.stderr.is_empty(), "{} after {:?}", text(&output.stderr), begun.elapsed());
        let (found, damage) = checkpoint::latest(&desk.at("o")).unwrap();
        let step = found.map_or(0, |found| found.step);
        assert!(step >= last && damage.is_empty(), "step {step} after {last}: {damage:?}");
        last = step;
    }
    assert!(last > 5, "{last}");
    // at most one checkpoint more than two, of a kill while it was removed, and one draft
    let names =
        std::fs::read_dir(desk.at("o")).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.contains("step-") || name.contains(".tmp")).collect();
    assert!(left.len() <= 4, "{left:?}");
}

/// Counts, with a checkpoint at each step.
const COUNTING: &str = "let s = settings(#{ stop: 99, steps: 6, rate: 0.5 });
    let run = start_run(#{ seed: 1, steps: s.steps, rate: s.rate });
    let found = run.restore();
    let x = if found == () { 0.0 } else { found.x };
    for i in run.steps(s.steps) {
        if i == s.stop { break; }
        x += run.rng(\"n\").normal([1]).item();
        run.log(#{ x: x });
        run.checkpoint(|| #{ x: x }, #{ every: 1 });
    }
    save_results(#{ x: #{ end: [x] } }, \"end.csv\");";

/// Every kind of damage to every file of the last checkpoint is named, and the run goes on to the same numbers.
#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_taken() {
    let desk = Desk::new(COUNTING);
    desk.good("whole", &[]);
    let log = |out: &str| std::fs::read(desk.at(out).join("metrics.jsonl")).unwrap();
    for name in ["state.json", "state.safetensors", "SHA256SUMS"] {
        for damage in ["missing", "edited", "cut"] {
            let out = format!("{damage}-{name}");
            desk.good(&out, &["--set", "stop=4"]);
            let file = desk.at(&out).join("step-000004").join(name);
            let bytes = std::fs::read(&file).unwrap();
            match damage {
                "missing" => std::fs::remove_file(&file).unwrap(),
                "edited" => {
                    // a digit, so that JSON stays JSON
                    let digit = bytes.iter().rposition(u8::is_ascii_digit).unwrap_or(bytes.len() - 1);
                    let changed = [&bytes[..digit], &[bytes[digit] ^ 1], &bytes[digit + 1..]].concat();
                    std::fs::write(&file, changed).unwrap();
                }
                _ => std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap(),
            }
            let said = desk.good(&out, &[]);
            assert!(said.contains("damaged: step-000004: ") && said.contains("of step 3"), "{out}: {said}");
            assert!(said.contains("resuming after step 3") && log(&out) == log("whole"), "{out}: {said}");
        }
    }
}

#[test]
fn a_damaged_log_is_named_and_loses_no_other_line() {
    let desk = Desk::new(COUNTING);
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage, usize); 5] = [
        (
            "metrics.jsonl was changed: not the 4 lines that the checkpoint knew; 8 are kept",
            |bytes| bytes.extend_from_within(..),
            10,
        ),
        ("1 damaged and left out (line 1)", |bytes| bytes[5] = b')', 5),
        ("1 damaged and left out (line 1)", |bytes| bytes[5] = 0xff, 5),
        ("metrics.jsonl was changed", |bytes| bytes.iter_mut().filter(|b| **b == b'5').for_each(|b| *b = b'6'), 6),
        (
            "is cut and left out\nmetrics.jsonl was changed: not the 4 lines that the checkpoint knew; 1 are kept",
            |bytes| bytes.truncate(bytes.iter().position(|b| *b == b'\n').unwrap() + 5),
            3,
        ),
    ];
    for (i, (words, damage, lines)) in damages.into_iter().enumerate() {
        let out = i.to_string();
        desk.good(&out, &["--set", "stop=4"]);
        let file = desk.at(&out).join("metrics.jsonl");
        let mut bytes = std::fs::read(&file).unwrap();
        damage(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let said = desk.good(&out, &[]);
        assert!(said.contains(words), "{said}");
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), lines);
    }
}

/// What a run began with and does not go on with is an error that names it; `--resume-anyway` goes on and records it.
#[test]
fn another_run_is_named_and_goes_on_only_if_told() {
    let script = format!(
        "let words = prompts(\"p.txt\"); import \"m\" as m; load_tensors(\"w.safetensors\"); load_image(\"i.png\"); {COUNTING}"
    );
    let desk = Desk::new(&script);
    let tensors = |desk: &Desk, x: f32| {
        let tensor = amscript::tensor::Tensor::new(&[x], &amscript::tensor::Device::Cpu).unwrap();
        amscript::nn::archive::write(&desk.at("w.safetensors"), [("w", &tensor)], &Default::default()).unwrap();
    };
    let image = |desk: &Desk, x: u8| {
        amscript::nn::data::image::write(&image::RgbImage::from_pixel(2, 2, image::Rgb([x; 3])), &desk.at("i.png"))
            .unwrap();
    };
    let reset = || {
        image(&desk, 1);
        desk.write("s.rhai", &script);
        desk.write("p.txt", "red\n");
        desk.write("m.rhai", "fn f() { 1 }");
        tensors(&desk, 1.0);
    };
    type Change<'a> = Box<dyn Fn(&Path) + 'a>;
    let changes: [(&str, Change); 7] = [
        ("another text of the recipe", Box::new(|_| desk.write("s.rhai", &format!("{script} // changed")))),
        ("p.txt", Box::new(|_| desk.write("p.txt", "green\n"))),
        ("m.rhai", Box::new(|_| desk.write("m.rhai", "fn f() { 2 }"))),
        ("w.safetensors", Box::new(|_| tensors(&desk, 2.0))),
        ("i.png", Box::new(|_| image(&desk, 2))),
        ("version 9.9.9 of amscript", Box::new(|out| edit(&out.join("run.json"), "versions", "amscript", "9.9.9"))),
        ("rate = \"1\"", Box::new(|out| edit(&out.join("run.json"), "settings", "rate", "1"))),
    ];
    for (i, (words, change)) in changes.iter().enumerate() {
        reset();
        let out = i.to_string();
        desk.good(&out, &["--set", "stop=4"]);
        assert!(desk.good(&out, &["--set", "stop=5"]).contains("resuming after step 4"));
        change(&desk.at(&out));
        let said = desk.refused(&out, &[]);
        assert!(said.contains(words) && said.contains("--resume-anyway"), "{words}: {said}");
        let said = desk.good(&out, &["--resume-anyway"]);
        assert!(said.contains("going on all the same") && said.contains("resuming after step 5"), "{words}: {said}");
        let record = std::fs::read_to_string(desk.at(&out).join("run.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["earlier"][0]["up_to_step"], 5, "{words}");
        assert!(desk.good(&out, &[]).contains("resuming after step 6"), "{words}: it is now what the run goes on with");
    }
}

/// A file that is opened behind `start_run` is compared before the first step.
#[test]
fn a_file_that_is_opened_late_is_compared_too() {
    let desk = Desk::new(&COUNTING.replace("let x =", "let words = prompts(\"p.txt\"); let x ="));
    desk.write("p.txt", "red\n");
    desk.good("o", &["--set", "stop=4"]);
    desk.write("p.txt", "green\n");
    assert!(desk.refused("o", &["--set", "stop=5"]).contains("p.txt"));
    assert!(desk.good("o", &["--set", "stop=5", "--resume-anyway"]).contains("going on all the same"));
    assert!(desk.good("o", &[]).contains("resuming after step 5"));
}

#[test]
fn a_run_whose_record_is_lost_goes_on_if_told() {
    let desk = Desk::new(COUNTING);
    type Loss = fn(&Path);
    let losses: [(&str, Loss); 2] = [
        ("must hold JSON", |file| std::fs::write(file, "").unwrap()),
        ("without a run.json", |file| std::fs::remove_file(file).unwrap()),
    ];
    for (words, lose) in losses {
        let out = words.replace(' ', "-");
        desk.good(&out, &["--set", "stop=4"]);
        lose(&desk.at(&out).join("run.json"));
        let said = desk.refused(&out, &[]);
        assert!(said.contains(words) && said.contains("--resume-anyway"), "{said}");
        assert!(desk.good(&out, &["--resume-anyway"]).contains("resuming after step 4"));
        assert!(desk.good(&out, &[]).contains("resuming after step 6"), "{words}");
    }
}

fn edit(file: &Path, part: &str, key: &str, value: &str) {
    let mut record: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    record[part][key] = value.into();
    std::fs::write(file, record.to_string()).unwrap();
}

#[test]
fn a_finished_run_becomes_longer_by_its_length_alone() {
    let desk = Desk::new(COUNTING);
    desk.good("o", &[]);
    desk.good("eight", &["--set", "steps=8"]);
    let log = |out: &str| std::fs::read(desk.at(out).join("metrics.jsonl")).unwrap();
    for other in [&["--set", "steps=7", "--set", "rate=0.1"][..], &["--set", "rate=6.0"], &["--set", "steps=5"]] {
        assert!(desk.refused("o", other).contains("holds a run with"), "{other:?}");
    }
    let said = desk.good("o", &["--set", "steps=8"]);
    assert!(said.contains("resuming after step 6") && said.contains("to go on to step 8"), "{said}");
    assert!(log("o") == log("eight"));
    assert!(desk.good("o", &["--set", "steps=8"]).contains("resuming after step 8"));
    assert!(desk.refused("o", &["--set", "steps=6"]).contains("steps = 8, got steps = 6"));
}

#[test]
fn a_longer_run_does_not_keep_the_result_of_the_shorter() {
    let desk = Desk::new(
        "let s = settings(#{ steps: 2, pause: 0 });
        let run = start_run(#{ steps: s.steps });
        run.restore();
        for i in run.steps(s.steps) { run.checkpoint(|| #{}, #{ every: 1 }); }
        if run.result() != () { print(\"done before\"); exit(); }
        print(\"evaluates\");
        sleep(s.pause);
        run.finish([#{ name: \"end\", steps: s.steps }], #{ columns: [\"steps\"] });",
    );
    assert!(desk.good("o", &[]).contains("evaluates") && desk.good("o", &[]).contains("done before"));
    desk.killed_at("o", &["--set", "steps=4", "--set", "pause=20"], "evaluates");
    let longer = ["--set", "steps=4"];
    assert!(desk.good("o", &longer).contains("evaluates"), "its own result, not that of 2 steps");
    assert!(desk.good("o", &longer).contains("done before"));
}

#[test]
fn other_threads_are_told_also_of_a_run_that_becomes_longer_or_differs() {
    let desk = Desk::new(COUNTING);
    let said = |threads: &str, arguments: &[&str]| {
        let output = desk.command("o", arguments).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    said("1", &["--set", "stop=4"]);
    for (threads, arguments) in
        [("2", &["--set", "steps=8"][..]), ("1", &["--set", "steps=8", "--set", "rate=0.1", "--resume-anyway"])]
    {
        assert!(said(threads, arguments).contains("last digits may differ"), "{arguments:?}");
    }
}

#[test]
fn folders_of_others_lose_nothing() {
    let desk = Desk::new(COUNTING);
    for step in [1, 2, 50] {
        std::fs::create_dir_all(desk.at(&format!("o/step-{step}"))).unwrap();
        desk.write(&format!("o/step-{step}/thesis.txt"), "mine");
    }
    desk.good("o", &[]);
    assert!([1, 2, 50].iter().all(|step| desk.at(&format!("o/step-{step}/thesis.txt")).exists()));
    assert!(desk.at("o/step-000006/SHA256SUMS").exists());
    desk.write("o/.amscript-9-0.tmp", "");
    std::fs::create_dir_all(desk.at("o/sub/other")).unwrap();
    let drafts = [desk.at("o/sub/.amscript-9-0.tmp"), desk.at("o/sub/other/.amscript-9-0.tmp")];
    drafts.iter().for_each(|draft| std::fs::write(draft, "").unwrap());
    desk.write("o/sub/other/run.json", "{}");
    desk.good("o", &[]);
    assert!(!drafts[0].exists() && drafts[1].exists(), "those of another run stay");
    for name in ["step-000003/thesis.txt", "metrics.jsonl", "lora.safetensors", "curves.png", "result.csv"] {
        let out = name.replace('/', "-");
        let file = desk.at(&out).join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "mine").unwrap();
        assert!(desk.refused(&out, &[]).contains("without a run.json"), "{name}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }
}

#[test]
fn weights_of_a_finished_run_are_not_written_over() {
    let desk = Desk::new(
        "let s = settings(#{ a: 1 }); let run = start_run(s); save_tensors(#{ a: ones([1]) * s.a }, \"lora.safetensors\");",
    );
    desk.good("o", &[]);
    let lora = || std::fs::read(desk.at("o/lora.safetensors")).unwrap();
    let before = lora();
    assert!(desk.refused("o", &["--set", "a=2"]).contains("a = 1, got a = 2"));
    assert!(lora() == before);
    desk.good("o", &[]);
}

#[test]
fn two_runs_do_not_share_a_directory() {
    let desk = Desk::new(&format!("{COUNTING} if s.stop == 3 {{ print(\"stopped\"); sleep(600); }}"));
    let mut child = desk.command("o", &["--set", "stop=3"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "stopped"));
    let said = desk.refused("o", &[]);
    assert!(said.contains(&format!("process {}", child.id())) && said.contains("--out"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(desk.good("o", &[]).contains("resuming after step 3"), "the lock dies with its process");
}

#[test]
fn a_state_that_could_not_be_read_back_is_refused() {
    let deep =
        "let r = start_run(#{}); let a = []; for i in 0..130 { a = [a]; } for i in r.steps(1) { r.checkpoint(|| a); }";
    let desk = Desk::new(deep);
    let said = desk.refused("o", &[]);
    assert!(said.contains("checkpoint: maps and arrays may be 64 deep"), "{said}");
    desk.write(
        "s.rhai",
        &deep.replace("130", "60").replace("r.checkpoint(|| a)", "r.checkpoint(|| a); print(r.restore() == a)"),
    );
    assert!(desk.good("p", &[]).contains("true"));
}

#[test]
#[cfg(unix)]
fn signals_of_schedulers_and_terminals_save() {
    let script = COUNTING
        .replace("run.log", "if i == 1 { print(\"stopped\"); sleep(0.3); } run.log")
        .replace("every: 1", "every: 100");
    let desk = Desk::new(&script);
    for (signal, ignored) in [("TERM", false), ("XCPU", false), ("HUP", false), ("INT", false), ("HUP", true)] {
        if signal == "HUP" && !ignored && crate::output::hangup_is_ignored() {
            continue;
        }
        let out = format!("{signal}-{ignored}");
        let mut command = desk.command(&out, &[]);
        if ignored {
            // as `nohup` does
            let plain = command;
            command = Command::new("sh");
            command.current_dir(desk.0.path()).args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(plain.get_program());
            command.args(plain.get_args());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "stopped"));
        Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        let code = child.wait().unwrap().code();
        let ended = if ["TERM", "XCPU"].contains(&signal) { 75 } else { 130 };
        assert_eq!(code, Some(if ignored { 0 } else { ended }), "{out}");
        assert!(desk.at(&out).join(if ignored { "step-000006" } else { "step-000002" }).exists(), "{out}");
    }
}

#[test]
#[cfg(unix)]
fn a_script_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new("");
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe.rhai");
    std::fs::write(desk.0.path().join(name), "print(1);").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_amscript")).current_dir(desk.0.path()).arg(name).output().unwrap();
    assert_eq!(text(&output.stdout), "1\n", "{}", text(&output.stderr));
}

#[test]
fn every_recipe_can_begin_from_a_lora() {
    let desk = Desk::new("");
    let small = ["batch=1", "steps=3", "test_prompts=1", "images_per_prompt=2", "watch=[]", "panel=0", "every=100"];
    let run = |recipe: &str, out: &str, set: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
        command.current_dir(desk.0.path()).args([recipe, "--out", out]);
        for pair in small.iter().chain(set) {
            command.args(["--set", pair]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{recipe}: {}", text(&output.stderr));
        (std::fs::read(desk.at(out).join("lora.safetensors")).unwrap(), text(&output.stdout))
    };
    let first = run("flux_ode_am", "first", &["iterations=1", "rank=2"]).0;
    // the same command has nothing left to do
    let result = || std::fs::read(desk.at("first/result.json")).unwrap();
    let before = result();
    let said = run("flux_ode_am", "first", &["iterations=1", "rank=2"]).1;
    assert!(said.contains("came to its end before") && result() == before, "{said}");
    // at a rate of zero the LoRA comes out as it went in, of its own rank
    let still = ["iterations=1", "rate=constant_rate(0)", "start=first/lora.safetensors"];
    assert!(run("flux_ode_am", "same", &still).0 == first);
    for recipe in ["draft", "flux_sde_am"] {
        assert!(run(recipe, recipe, &["iterations=1", "start=first/lora.safetensors"]).0 != first, "{recipe}");
    }
}
