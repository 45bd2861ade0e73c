//! The theory recipes in small settings: each checks its own numbers against closed forms and fails where they differ.

use crate::command;
use std::path::Path;

fn run(name: &str, out: &Path, set: &[&str]) -> String {
    command::run(&format!("scripts/theory/{name}.rhai"), out, set)
}

#[test]
fn propositions_hold() {
    let folder = tempfile::tempdir().unwrap();
    for (recipe, small, rows, images) in [
        (
            "propositions",
            &["steps=100", "widths=[[2.0, 1.0]]", "orders=[2, 4]"][..],
            &["[2.0, 1.0] t*", "[2.0, 1.0] R_4(0)", "memoryless() |u(0.5)|"][..],
            &["sources", "orders_2.0_1.0"][..],
        ),
        (
            "processes",
            &["steps=100", "etas=[1.0]"],
            &["exploding eta 1.0 u*", "m 2.0 ridge t*"],
            &["exploding", "preserving", "ridge"],
        ),
    ] {
        let out = folder.path().join(recipe);
        let printed = run(recipe, &out, small);
        assert!(rows.iter().all(|row| printed.contains(row)), "{recipe}: {printed}");
        for image in images {
            assert!(out.join(format!("images/{image}.png")).exists(), "{image}");
        }
    }
}

#[test]
fn the_memoryless_shift_is_the_tilt() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["steps=20", "targets=[1.0, 2.0]", "paths=2000", "path_steps=200"];
    let printed = run("tilt", folder.path(), &small);
    for row in ["deterministic", "memoryless, the tilt", "sde(sine_squared(1)) correlation"] {
        assert!(printed.contains(row), "{row}: {printed}");
    }
}

#[test]
fn penalties_under_noise_have_their_optimal_controls() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("regularizer", folder.path(), &["steps=5"]);
    assert_eq!(printed.matches("from the closed form").count(), 4, "{printed}");
    assert!(folder.path().join("images/controls.png").exists());
}

#[test]
fn fenchels_criterion_is_nearer_the_optimum_than_squared_distance() {
    let folder = tempfile::tempdir().unwrap();
    run("criterion", folder.path(), &["steps=5", "updates=200", "batch=256", "paths=5000"]);
    let error = |row: &str| command::measured(folder.path(), row, "error of u");
    assert!(
        error("Fenchel") < 0.08 && error("Fenchel") < 0.7 * error("squared"),
        "{} {}",
        error("Fenchel"),
        error("squared")
    );
}

#[test]
fn the_mixture_is_compared_with_its_tilt() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["steps=10", "window=2", "iterations=60", "batch=64", "hidden=32", "samples=3000", "sample_steps=40"];
    run("mixture", folder.path(), &small);
    let distance = |row: &str| command::measured(folder.path(), row, "distance");
    let [exact, memoryless] = ["exact tilt", "memoryless, sampled with noise"].map(distance);
    assert!(exact < 0.17 && memoryless < 0.3, "{exact} {memoryless}");
    assert!(distance("base") > 0.4 && distance("deterministic, last K") > 0.3);
}
