//! What a command does when its output is closed or full or a signal ends it, and who may read what it writes.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SAVES: &str = "print(1);\nsave_tensors(#{ a: ones([1]) }, \"a.safetensors\");\nprint(2);";

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A disk that is full.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn amscript(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    command.current_dir(folder).args(arguments).env_remove("AMSCRIPT_DEVICE").stdin(Stdio::null());
    command
}

/// Runs it with that standard output; the exit code and what it says on standard error.
fn outcome(command: &mut Command, out: Stdio) -> (Option<i32>, String) {
    let output = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_command_whose_reader_has_gone_ends_quietly_and_a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let full_disk = "error: standard output cannot be written: No space left on device (os error 28)\n";
    std::fs::write(folder.path().join("script.rhai"), "let x = 1;").unwrap();
    for arguments in [&["recipes"][..], &["recipes", "flux_ode_am"], &["models"], &["check", "script.rhai"]] {
        assert_eq!(outcome(&mut amscript(folder.path(), arguments), closed()), (Some(0), "".into()), "{arguments:?}");
        let (code, said) = outcome(&mut amscript(folder.path(), arguments), full());
        assert_eq!((code, said.as_str()), (Some(1), full_disk), "{arguments:?}");
    }
}

#[test]
fn a_script_goes_on_without_its_output() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script.rhai"), SAVES).unwrap();
    let saved = folder.path().join("out/a.safetensors");
    let run = |out: Stdio, err: Stdio| {
        std::fs::remove_file(&saved).ok();
        let mut command = amscript(folder.path(), &["run", "script.rhai", "--out", "out"]);
        let code = command.stdout(out).stderr(err).status().unwrap().code();
        assert!(saved.exists());
        code
    };
    assert_eq!(run(closed(), closed()), Some(0));
    assert_eq!(run(full(), full()), Some(1));
    let mut command = amscript(folder.path(), &["run", "script.rhai", "--out", "out"]);
    let (code, said) = outcome(&mut command, full());
    assert!(code == Some(1) && said.starts_with("warning: standard output cannot be written"), "{code:?} {said}");
    assert_eq!(said.matches("No space left").count(), 2, "as it happens and at the end: {said}");
    let mut prompt = amscript(folder.path(), &["-e", "1 + 1", "-e", SAVES, "--out", "out"]);
    std::fs::remove_file(&saved).unwrap();
    assert_eq!(outcome(&mut prompt, closed()), (Some(0), "".into()));
    assert!(saved.exists());
}

#[test]
fn a_failing_script_fails_also_where_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script.rhai"), "print(1); throw \"no\";").unwrap();
    let (code, said) = outcome(&mut amscript(folder.path(), &["script.rhai"]), closed());
    assert!(code == Some(1) && said.starts_with("error: no"), "{code:?} {said}");
}

/// Whether these tests run under `nohup`, which programs inherit.
#[cfg(target_os = "linux")]
pub fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 == 1
}

#[cfg(not(target_os = "linux"))]
pub fn hangup_is_ignored() -> bool {
    false
}

#[test]
fn signals_of_schedulers_and_closed_terminals_end_a_run_after_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let steps = "let run = start_run(#{});\nfor i in run.steps(1000000) { print(i); run.checkpoint(|| #{ i: i }, #{ every: 1000000 }); }";
    std::fs::write(folder.path().join("script.rhai"), steps).unwrap();
    for signal in ["TERM", "USR1", "HUP", "INT"].into_iter().filter(|signal| *signal != "HUP" || !hangup_is_ignored()) {
        let mut command = amscript(folder.path(), &["script.rhai", "--out", signal]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let first = lines.by_ref().lines().map(Result::unwrap).find(|line| line == "0");
        assert!(first.is_some(), "a step has begun");
        let id = child.id().to_string(); // twice, as `timeout` does
        assert!(Command::new("kill").args([&format!("-{signal}"), &id, &id]).status().unwrap().success());
        lines.read_to_end(&mut vec![]).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let saved =
            folder.path().join(signal).read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(saved.into_iter().any(|name| name.starts_with("step-")), "{signal}: {said}");
        // SLURM's are told to start the run again
        let code = if signal == "TERM" || signal == "USR1" { 75 } else { 130 };
        assert!(output.status.code() == Some(code) && said.contains("interrupted after step"), "{signal}: {said}");
    }
}

#[test]
fn a_signal_ends_a_prompt_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = amscript(folder.path(), &[]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"1 + 1\n").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    assert_eq!(answer, "2\n");
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "it must end");
        Command::new("kill").args(["-TERM".into(), child.id().to_string()]).status().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn files_have_the_mode_that_the_umask_leaves() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script.rhai"), format!("start_run(#{{}});\n{SAVES}")).unwrap();
    for (umask, mode) in [("022", 0o644), ("027", 0o640), ("000", 0o666)] {
        let mut shell = Command::new("sh");
        shell.current_dir(folder.path()).args(["-c", "umask $0 && exec $1 script.rhai --out $0", umask]);
        let output = shell.arg(env!("CARGO_BIN_EXE_amscript")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for name in ["a.safetensors", "run.json"] {
            let found = folder.path().join(umask).join(name).metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{name} with umask {umask}: {found:o}");
        }
    }
}
