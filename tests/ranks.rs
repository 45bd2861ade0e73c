//! Several processes on one machine against one that takes as many parts: bytes compared, and what is said where ranks differ or end.
//!
//! They need `--features mpi` and `mpirun`. What needs neither is in `crates/align/src/parts/tests.rs`, with threads as ranks.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_amscript");

/// A folder in which scripts run, and the device they run on.
pub struct Desk {
    folder: tempfile::TempDir,
    pub device: &'static str,
}

impl Desk {
    /// None where processes cannot be started together.
    pub fn new(script: &str) -> Option<Self> {
        let launcher = || Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
        if !cfg!(feature = "mpi") || !launcher() {
            eprintln!("skipped: needs `--features mpi`, and `mpirun`");
            return None;
        }
        let desk = Self { folder: tempfile::tempdir().unwrap(), device: "cpu" };
        std::fs::write(desk.at("s.rhai"), script).unwrap();
        Some(desk)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The script on so many ranks.
    pub fn command(&self, ranks: usize, out: &str, settings: &[&str]) -> Command {
        let arguments: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        if ranks > 1 {
            return self.launch(out, &[(ranks, &arguments)]);
        }
        let mut command = Command::new(BINARY);
        command.args(["s.rhai", "--out", out]).args(arguments);
        self.here(command)
    }

    /// The script on ranks of several kinds: how many, with which arguments.
    fn launch(&self, out: &str, kinds: &[(usize, &[&str])]) -> Command {
        let mut command = Command::new("mpirun");
        command.args(["--oversubscribe", "--bind-to", "none"]);
        for (i, (ranks, arguments)) in kinds.iter().enumerate() {
            command.args((i > 0).then_some(":")).args(["-n", &ranks.to_string(), BINARY]);
            command.args(["s.rhai", "--out", out]).args(*arguments);
        }
        self.here(command)
    }

    /// In the folder, with one thread for each rank.
    fn here(&self, mut command: Command) -> Command {
        command.current_dir(self.folder.path()).env("AMSCRIPT_DEVICE", self.device).env("RAYON_NUM_THREADS", "1");
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("OMPI_MCA_btl", "self,vader").env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
        command
    }

    fn run(&self, ranks: usize, out: &str, settings: &[&str]) -> Output {
        self.command(ranks, out, settings).output().unwrap()
    }

    /// What a run that must end well prints.
    pub fn good(&self, ranks: usize, out: &str, settings: &[&str]) -> String {
        let output = self.run(ranks, out, settings);
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        assert!(!text(&output.stderr).contains("do the whole of each step"), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The weights that a run ends with, and its log.
    pub fn left(&self, out: &str) -> [Vec<u8>; 2] {
        ["end.safetensors", "metrics.jsonl"].map(|name| std::fs::read(self.at(out).join(name)).unwrap())
    }

    fn start(&self, ranks: usize, out: &str, settings: &[&str]) -> Child {
        self.command(ranks, out, settings).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).to_string()
}

pub const METHODS: &str = include_str!("ranks/methods.rhai");

#[test]
fn ranks_come_to_the_bytes_of_as_many_micro_batches() {
    let Some(desk) = Desk::new(METHODS) else { return };
    for method in ["am", "draft", "own", "grpo", "full"] {
        let chosen = format!("method={method}");
        for ranks in 2..=4 {
            // 10 samples, which 3 and 4 do not divide
            let size = format!("micro_batch={}", 10usize.div_ceil(ranks));
            let (alone, together) = (format!("{method}-{ranks}-parts"), format!("{method}-{ranks}-ranks"));
            desk.good(1, &alone, &[&chosen, &size]);
            let said = desk.good(ranks, &together, &[&chosen]);
            assert_eq!(said.matches("run directory").count(), 1, "one rank speaks: {said}");
            assert!(desk.left(&alone) == desk.left(&together), "{method} on {ranks} ranks");
        }
    }
}

#[test]
fn what_some_ranks_save_others_go_on_with() {
    let Some(desk) = Desk::new(METHODS) else { return };
    let parts = "micro_batch=3"; // 4 parts, whoever takes them
    for method in ["method=am", "method=full"] {
        let whole = format!("{method}-whole");
        desk.good(1, &whole, &[parts, method]);
        for (before, after) in [1, 2, 4].iter().flat_map(|before| [1, 2, 4].map(|after| (*before, after))) {
            let out = format!("{method}-{before}-{after}");
            let stopped = desk.run(before, &out, &[parts, method, "stop=2"]);
            assert!(!stopped.status.success() && text(&stopped.stderr).contains("stopped here"));
            let said = desk.good(after, &out, &[parts, method]);
            assert!(said.contains("resuming after step 2"), "{said}");
            assert!(desk.left(&out) == desk.left(&whole), "{method}: saved by {before}, resumed by {after}");
        }
    }
}

#[test]
fn ranks_that_differ_are_told_before_the_first_update() {
    let Some(desk) = Desk::new(METHODS) else { return };
    let differ = |name: &str, other: &[&str]| {
        let output = desk.launch(name, &[(1, &[]), (1, other)]).output().unwrap();
        assert!(!output.status.success() && !desk.at(name).join("metrics.jsonl").exists());
        text(&output.stderr)
    };
    let said = differ("seed", &["--seed", "7"]);
    assert!(said.contains("all must be the same run, got rank 0 with seed = 0, got seed = 7 on rank 1"), "{said}");
    let said = differ("setting", &["--set", "steps=4"]);
    assert!(said.contains("steps = 3, got steps = 4 on rank 1"), "{said}");
}

#[test]
fn ranks_that_all_do_the_same_are_told_so_once() {
    let Some(desk) = Desk::new("let run = start_run(#{}); for i in run.steps(4) { run.log(#{ i: i }); }") else {
        return;
    };
    let output = desk.run(3, "alike", &[]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.matches("all 3 ranks do the whole of each step").count() == 1, "{said}");
    assert!(!text(&desk.run(1, "alone", &[]).stderr).contains("do the whole"));
}

/// The code when all are gone, and what they said.
fn gone(mut child: Child) -> (Option<i32>, String) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "it must end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// Starts a run of many steps; gives the process of one of its ranks when they have begun.
fn running(desk: &Desk, ranks: usize, out: &str, rank: usize) -> (Child, String) {
    let child = desk.start(ranks, out, &["iterations=100000"]);
    let start = Instant::now();
    while !desk.at(out).join("step-000002").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let found = Command::new("ps").args(["-eo", "pid,args"]).output().unwrap();
    let of_run = |line: &&str| line.contains(&format!("{BINARY} s.rhai --out {out}")) && !line.contains("mpirun");
    let ids: Vec<String> = text(&found.stdout)
        .lines()
        .filter(of_run)
        .filter_map(|line| Some(line.split_whitespace().next()?.to_string()))
        .filter(|id| {
            let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            text(&environment).split('\0').any(|entry| entry == format!("OMPI_COMM_WORLD_RANK={rank}"))
        })
        .collect();
    assert_eq!(ids.len(), 1, "{}", text(&found.stdout));
    (child, ids[0].clone())
}

fn signal(name: &str, id: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), id]).status().unwrap().success());
}

#[test]
#[cfg(target_os = "linux")]
fn a_rank_that_is_killed_or_stopped_ends_all_and_the_run_goes_on() {
    let Some(desk) = Desk::new(METHODS) else { return };
    for (name, word) in [("KILL", "signal 9"), ("STOP", "rank 1 has been silent")] {
        let (child, id) = running(&desk, 3, name, 1);
        signal(name, &id);
        let (code, said) = gone(child);
        assert!(code != Some(0) && said.contains(word), "{name}: {code:?}, {said}");
        let said = text(&desk.run(2, name, &["iterations=100000", "stop=1"]).stdout);
        assert!(said.contains("resuming after step"), "{said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_cannot_be_written_and_a_script_that_fails_on_one_rank_end_all_with_their_message() {
    let Some(desk) = Desk::new(METHODS) else { return };
    let (child, _) = running(&desk, 2, "blocked", 1);
    for step in 10..100_000 {
        let folder = desk.at(&format!("blocked/step-{step:06}"));
        if !folder.exists() && std::fs::create_dir(&folder).is_ok() {
            std::fs::write(folder.join("mine"), "kept").unwrap();
            if step > 60 {
                break;
            }
        }
    }
    let (code, said) = gone(child);
    assert!(code == Some(1) && said.contains("must be a checkpoint or not there"), "{code:?} {said}");
    let (code, said) = gone(desk.start(3, "fails", &["fails=1"]));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("rank 1: error: only here"), "{said}");
    let (code, said) = gone(desk.start(2, "apart", &["apart=true"]));
    assert!(
        code == Some(1) && said.contains("all ranks must have the same state, got another one on rank 1"),
        "{said}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_scheduler_that_warns_one_rank_has_all_save_and_ends_with_its_code() {
    let Some(desk) = Desk::new(METHODS) else { return };
    let (child, id) = running(&desk, 2, "warned", 1);
    signal("USR1", &id);
    let (code, said) = gone(child);
    assert_eq!(code, Some(75), "{said}");
    assert_eq!(said.matches("interrupted after step").count(), 1, "one rank speaks: {said}");
    assert!(text(&desk.run(1, "warned", &["iterations=100000", "stop=1"]).stdout).contains("resuming after step"));
}

#[test]
fn half_an_environment_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.rhai"), "print(1);").unwrap();
    let said = |set: &[(&str, &str)]| {
        let mut command = Command::new(BINARY);
        let output = command.current_dir(folder.path()).arg("s.rhai").envs(set.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    assert!(said(&[("WORLD_SIZE", "4")]).contains("WORLD_SIZE is set and RANK is not"));
    let alone = said(&[("RANK", "0"), ("WORLD_SIZE", "4")]);
    assert!(alone.contains("torchrun started 4 processes (WORLD_SIZE)") || alone.contains("MPI found 1"), "{alone}");
}

/// A sweep of three runs, each of which says who takes it.
const SWEEP: &str = "let outer = start_run(#{});
    for name in [\"a\", \"b\", \"c\"] {
        let run = claim_run(#{}, #{ name: name });
        if type_of(run) == \"()\" { continue; }
        if type_of(run.result()) != \"()\" { continue; }
        print(`took ${name}`);
        for i in run.steps(2) { sleep(1); }
        run.finish(#{ x: #{ tuned: tensor([1.0, 2.0]) } });
    }
    if is_job() { exit(); }
    print(\"the table\");";

#[test]
fn jobs_take_each_run_once_and_one_makes_the_table() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.rhai"), SWEEP).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        let output =
            command.current_dir(folder.path()).args(["s.rhai", "--out", "o"]).args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, errors) = run(&["--jobs", "2"]);
    assert_eq!(code, Some(0), "{said}{errors}");
    for name in ["a", "b", "c"] {
        assert_eq!(said.matches(&format!("took {name}")).count(), 1, "{said}");
    }
    assert!(said.contains("job 0: took") && said.contains("job 1: took"), "{said}");
    assert!(said.ends_with("the table\n") && said.matches("the table").count() == 1, "{said}");
    let (code, _, errors) = run(&["--jobs", "0"]);
    assert!(code == Some(1) && errors.contains("there must be at least 1 job"), "{errors}");
}

#[test]
#[cfg(unix)]
fn jobs_end_with_a_schedulers_code_and_go_on() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.rhai"), SWEEP).unwrap();
    let command = || {
        let mut command = Command::new(BINARY);
        command.current_dir(folder.path()).args(["s.rhai", "--out", "o", "--jobs", "2"]);
        command
    };
    let mut child = command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("took")));
    signal("USR1", &child.id().to_string());
    let (code, said) = gone(child);
    assert!(code == Some(75) && said.contains("the same command goes on"), "{code:?} {said}");
    assert!(text(&command().output().unwrap().stdout).ends_with("the table\n"));
}

#[test]
fn a_model_says_what_more_cards_give() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(BINARY);
    let output = command.current_dir(folder.path()).args(["tables/ranks", "--out", "o"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let csv = std::fs::read_to_string(folder.path().join("o/result.csv")).unwrap();
    let result = std::fs::read_to_string(folder.path().join("o/result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    let cell = |cards: &str, column: &str| result["measures"][cards][column]["mean"].as_f64().unwrap_or(f64::NAN);
    // 64 samples of 0.326 s; eight cards of one machine, 96.4 MB of gradients: 2.608 + 0.0337 + 0.0193 + 0.0096 s
    assert!((cell("1", "LoRA") - 64.0 * 0.326).abs() < 1e-9, "{csv}\n{result:#}");
    assert!((cell("8", "LoRA") - 2.67068).abs() < 1e-4, "{csv}");
    assert!(cell("8", "LoRA efficiency") > 0.95 && cell("8", "all efficiency") < 0.5, "{csv}");
    // 15.6 GB of numbers, three times 7/8 of them over the bus at 5 GB/s, added, and three times between card and host
    assert!((cell("8", "all") - (2.608 + 8.19 + 3.12 + 2.34)).abs() < 1e-4, "{csv}");
    assert!((cell("8", "moments of all, GB") - 3.9).abs() < 1e-9, "{csv}");
}
