//! Where tests/standin takes the place of the card: its numbers beside the processor's, its memory beside the plan, and cards that are
//! missing, old, full or busy, for which there is one clear sentence each.

use crate::ranks::{Desk, METHODS, text};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// A script on a card under these circumstances; nothing where there is no stand-in.
fn on(script: &str, circumstances: &[(&str, &str)]) -> Option<Output> {
    std::env::var_os("STANDIN")?;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.rhai"), script).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    command.current_dir(folder.path()).args(["recipe.rhai", "--device", "cuda"]).envs(circumstances.iter().copied());
    Some(command.output().unwrap())
}

const SOME: &str = "print(silu(tensor([[1.0, 2.0]])).sum().item() > 0.0);";

fn runs(script: &str, circumstances: &[(&str, &str)]) {
    let Some(output) = on(script, circumstances) else { return };
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.ends_with("true\n"), "{said}{error}");
}

/// The command ends with an error that holds all of `words`.
fn complains(script: &str, circumstances: &[(&str, &str)], words: &[&str]) {
    let Some(output) = on(script, circumstances) else { return };
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn a_missing_card_is_said() {
    complains(SOME, &[("STANDIN_DEVICES", "0")], &["NO_DEVICE", "nvidia-smi"]);
    complains("cuda(1);", &[("STANDIN_DEVICES", "1")], &["no card 1", "choose `cuda:0`"]);
}

#[test]
fn an_old_card_is_refused() {
    complains(SOME, &[("STANDIN_CAPABILITY", "75")], &["compute capability 7.5", "at least 8.0"]);
}

#[test]
fn kernels_are_compiled_for_what_the_compiler_knows() {
    runs(SOME, &[("STANDIN_CAPABILITY", "120"), ("STANDIN_ARCHITECTURES", "80,89,90")]);
    complains(SOME, &[("STANDIN_ARCHITECTURES", "90,100")], &["NVRTC compiles for [90, 100]", "CUDA 13"]);
}

#[test]
fn a_card_without_pools_works() {
    runs(SOME, &[("STANDIN_POOLS", "0")]);
}

#[test]
fn an_old_driver_and_a_busy_card_are_said() {
    complains(SOME, &[("STANDIN_FAIL", "cuModuleLoadData=222")], &["UNSUPPORTED_PTX_VERSION", "install a driver"]);
    complains(SOME, &[("STANDIN_FAIL", "cuDevicePrimaryCtxRetain=46")], &["DEVICE_UNAVAILABLE", "another process"]);
    complains(SOME, &[("STANDIN_FAIL", "cuInit=803")], &["SYSTEM_DRIVER_MISMATCH", "restart"]);
}

#[test]
fn a_full_card_is_said() {
    let large = "let x = zeros([1024, 1024]); for i in 0..8 { x = cat([x, x], 0); } print(x.shape);";
    complains(large, &[("STANDIN_MEMORY", "100000000")], &["OUT_OF_MEMORY", "lower the batch"]);
}

#[test]
fn a_launch_that_fails_is_said_with_its_kernel() {
    complains(SOME, &[("STANDIN_FAIL", "value=719")], &["value", "LAUNCH_FAILED"]);
}

#[test]
fn a_script_uses_two_cards() {
    let script = "let x = silu(tensor([1.0, 2.0])); let y = x.to(cuda(1)); print((y + y - x.to(cuda(1)) * 2).abs().sum().item() == 0.0 && x.to(cuda(0)) == x);";
    runs(script, &[("STANDIN_DEVICES", "2")]);
}

#[test]
fn ranks_with_a_card_each_come_to_the_bytes_of_one_card() {
    if std::env::var("STANDIN_DEVICES").as_deref() != Ok("2") {
        return eprintln!("skipped: needs two cards of tests/standin");
    }
    let Some(mut desk) = Desk::new(METHODS) else { return };
    desk.device = "cuda";
    for method in ["method=am", "method=full"] {
        let few = ["batch=2", "iterations=2", "steps=2", method];
        let [alone, together] = ["parts", "ranks"].map(|name| format!("{method}-{name}"));
        desk.good(1, &alone, &[&few[..], &["micro_batch=1"]].concat());
        desk.good(2, &together, &few);
        assert!(desk.left(&alone) == desk.left(&together), "{method}");
    }
    let output = desk.command(2, "one-card", &[]).env("STANDIN_DEVICES", "1").output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("rank 1: error: --device: device cuda:1: no card 1"), "{said}");
}

fn amscript(arguments: &[&str], out: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    let output = command.arg("run").args(arguments).arg("--out").arg(out).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The largest difference of numbers in the logs of a recipe's updates on processor and card, relative to the larger of the two.
fn difference(recipe: &str, set: &[&str]) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let [there, here] = ["cuda", "cpu"].map(|device| {
        let out = folder.path().join(device);
        let small = ["watch=[]", "panel=0", "test_prompts=1", "images_per_prompt=2"];
        let set = small.iter().chain(set).flat_map(|pair| ["--set", pair]);
        amscript(&[recipe, "--device", device].into_iter().chain(set).collect::<Vec<_>>(), &out);
        let log = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    assert_eq!(there.len(), here.len());
    let mut largest = 0.0f64;
    for (there, here) in there.iter().zip(&here) {
        for (name, value) in here.as_object().unwrap().iter().filter(|(name, _)| !name.contains("seconds")) {
            let numbers = |v: &Value| v.as_array().cloned().unwrap_or(vec![v.clone()]);
            for (a, b) in numbers(&there[name]).iter().zip(numbers(value)) {
                let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                largest = largest.max((a - b).abs() / a.abs().max(b.abs()).max(1e-6));
            }
        }
    }
    largest
}

#[test]
fn recipes_give_the_numbers_of_the_processor() {
    if std::env::var_os("STANDIN").is_none() {
        return;
    }
    for (recipe, set) in [("scripts/flux_ode_am.rhai", "iterations=2"), ("scripts/sit_ode_am.rhai", "iterations=1")] {
        let difference = difference(recipe, &[set]);
        assert!(difference < 1e-3, "{recipe}: {difference:e}");
    }
}

#[test]
fn a_card_holds_what_was_planned() {
    if std::env::var_os("STANDIN").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for set in ["rank=8", "rank=0", "by_hand=true", "active=4", "dtype=bf16()"] {
        let out = folder.path().join(set);
        let arguments = ["benches/memory.rhai", "--device", "cuda", "--set", set];
        let plan = amscript(&[&arguments[..], &["--plan"]].concat(), &out);
        let line = plan.lines().find(|line| line.contains("most at once")).unwrap();
        let planned: f64 = line.trim_end_matches(" MB").rsplit(' ').next().unwrap().parse().unwrap();
        amscript(&arguments, &out);
        let result: Value = serde_json::from_str(&std::fs::read_to_string(out.join("result.json")).unwrap()).unwrap();
        let held = result["card_memory"].as_f64().unwrap() / 1e6;
        let ratio = planned / 1.1 / held; // without the tenth for an allocator
        assert!((0.95..1.05).contains(&ratio), "{set}: {planned} MB planned, {held} MB held");
    }
}
