//! A recipe as a user runs it, for tests of what it leaves and prints.

use std::path::Path;
use std::process::Command;

/// Runs a recipe with `--set` pairs into `out`; gives what it printed.
pub fn run(script: &str, out: &Path, set: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    command.arg("run").arg(script).arg("--out").arg(out);
    for pair in set {
        command.args(["--set", pair]);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    assert!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
