//! The theory recipes in small settings: each checks its own numbers against closed forms and fails where they differ.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

/// Runs a recipe of `scripts/theory` with `--set` pairs into `out`; gives what it printed.
fn run(name: &str, out: &Path, set: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    command.arg("run").arg(format!("scripts/theory/{name}.rhai")).arg("--out").arg(out);
    for pair in set {
        command.args(["--set", pair]);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    assert!(output.status.success(), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn propositions_hold() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["steps=100", "widths=[[2.0, 1.0]]", "orders=[2, 4]", "etas=[1.0]"];
    let printed = run("propositions", folder.path(), &small);
    for row in ["[2.0, 1.0] t*", "[2.0, 1.0] R_4(0)", "memoryless() |u(0.5)|", "exploding eta 1.0 u*", "m 2.0 ridge t*"]
    {
        assert!(printed.contains(row), "{row}: {printed}");
    }
    for image in ["sources", "orders_2.0_1.0", "exploding", "preserving", "ridge"] {
        assert!(folder.path().join(format!("images/{image}.png")).exists(), "{image}");
    }
}

#[test]
fn the_memoryless_shift_is_the_tilt() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["steps=20", "targets=[1.0]", "paths=2000", "path_steps=200"];
    let printed = run("tilt", folder.path(), &small);
    for row in ["deterministic", "memoryless, the tilt", "sde(sine_squared(1)) correlation"] {
        assert!(printed.contains(row), "{row}: {printed}");
    }
}
