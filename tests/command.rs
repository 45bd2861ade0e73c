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

/// The mean of a measure in a row of a run's result.
pub fn measured(folder: &Path, row: &str, measure: &str) -> f64 {
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("result.json")).unwrap()).unwrap();
    result["measures"][row][measure]["mean"].as_f64().unwrap_or_else(|| panic!("{measure} of {row}: {result}"))
}
