//! The toys and the bench against what is known of them.

use crate::command::{measured, run};
use std::path::Path;

/// Measures of rows, each with what it should be and how far it may be off.
fn near(out: &Path, printed: &str, known: &[(&str, &str, f64, f64)]) {
    for (row, measure, expected, apart) in known {
        let found = measured(out, row, measure);
        assert!((found - expected).abs() < *apart, "{row}, {measure}: {found} {expected}\n{printed}");
    }
}

#[test]
fn maximal_entropy_visits_near_goals_alike_and_misses_far_ones() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/toys/multigoal.rhai", folder.path(), &["updates=1000"]);
    let goals = ["goal 0", "goal 1", "goal 2", "goal 3"].map(|goal| ("policy", goal, 0.25, 0.03));
    near(folder.path(), &printed, &goals);
    near(
        folder.path(),
        &printed,
        &[("policy", "effective goals", 3.998, 0.02), ("policy", "width of a goal", 0.52, 0.02)],
    );
    let far = folder.path().join("far");
    run("scripts/toys/multigoal.rhai", &far, &["updates=1000", "radius=1.5", "width=0.3"]);
    assert!(measured(&far, "policy", "effective goals") < 2.7);
}

#[test]
fn codes_gather_at_the_bonus_unless_they_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/toys/modes.rhai", folder.path(), &[]);
    let known = [
        ("flow itself", "success", 0.94, 0.01),
        ("flow itself", "effective modes", 8.0, 0.01),
        ("information 0.0", "success", 0.960, 0.012),
        ("information 0.0", "modes reached", 2.0, 0.1),
        ("information 0.0", "effective modes", 2.63, 0.2),
        ("information 0.0", "purity", 0.79, 0.06),
        ("information 0.3", "success", 0.945, 0.015),
        ("information 0.3", "modes reached", 7.0, 0.1),
        ("information 0.3", "effective modes", 7.42, 0.3),
        ("information 0.3", "purity", 0.88, 0.03),
    ];
    near(folder.path(), &printed, &known);
}

#[test]
fn walkers_keep_apart_at_the_price_of_accuracy() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/toys/walkers.rhai", folder.path(), &["pulls=[0.04, 3.0, 10.0]"]);
    // shares of 2000 samples, distances from other 50 truths than those of the figures
    let known = [
        ("predictor", "collisions", 0.438, 0.03),
        ("predictor", "disc", 0.142, 0.02),
        ("predictor", "minADE", 0.257, 0.03),
        ("Flow-GRPO, kl 0.04", "collisions", 0.0, 0.002),
        ("Flow-GRPO, kl 0.04", "disc", 0.0, 0.002),
        ("Flow-GRPO, kl 3.0", "disc", 0.006, 0.006),
        ("Flow-GRPO, kl 10.0", "collisions", 0.283, 0.04),
        ("Flow-GRPO, kl 10.0", "disc", 0.065, 0.02),
        ("Flow-GRPO, kl 10.0", "minADE", 0.258, 0.03),
    ];
    near(folder.path(), &printed, &known);
    let away =
        ["predictor", "Flow-GRPO, kl 3.0", "Flow-GRPO, kl 0.04"].map(|row| measured(folder.path(), row, "minADE"));
    assert!(away[1] - away[0] > 0.02 && away[2] - away[1] > 0.05, "{printed}");
}

#[test]
fn an_actor_for_a_fitted_critic_moves_towards_its_tilt() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/toys/fleet.rhai", folder.path(), &["rounds=1"]);
    near(folder.path(), &printed, &[("behaviour", "success", 0.4, 0.02), ("exact tilt", "success", 0.7208, 5.1e-5)]);
    let found = measured(folder.path(), "offline", "success");
    assert!(found > 0.62 && found < 0.74, "{printed}");
}

#[test]
fn training_with_more_noise_gives_more_reward_without() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/figures/gap.rhai", folder.path(), &[]);
    // of a network that starts otherwise: means of two seeds have an error of 0.015, and so have their differences 0.02
    let known = [
        ("a = 0.2", 0.435, 0.426),
        ("a = 0.5", 0.487, 0.482),
        ("a = 0.7", 0.496, 0.496),
        ("a = 1.0", 0.504, 0.524),
        ("a = 1.4", 0.508, 0.564),
    ];
    for (row, plain, noisy) in known {
        near(folder.path(), &printed, &[(row, "without noise", plain, 0.04), (row, "with noise", noisy, 0.04)]);
    }
    let gap = |row| measured(folder.path(), row, "with noise") - measured(folder.path(), row, "without noise");
    assert!(gap("a = 1.4") > gap("a = 0.7") + 0.03 && gap("a = 0.7") > gap("a = 0.2"), "{printed}");
    let plain = |row| measured(folder.path(), row, "without noise");
    assert!(plain("a = 0.7") > plain("a = 0.2") + 0.03 && plain("a = 1.4") > plain("a = 0.5"), "{printed}");
}

#[test]
fn methods_of_the_tilt_come_to_it() {
    let folder = tempfile::tempdir().unwrap();
    for (scale, tilt, modes) in [("scale=1.0", 0.449, 7.53), ("scale=3.0", 0.7016, 4.65)] {
        let out = folder.path().join(scale);
        let set = ["updates=200", scale, "methods=[\"RWR\", \"RAM\"]"];
        let printed = run("scripts/toys/bench.rhai", &out, &set);
        // RAM's fixed point is not the tilt, and falls short of a strong one
        let known =
            [("RWR", 0.015, 0.3), ("RAM", if tilt > 0.5 { 0.045 } else { 0.015 }, if tilt > 0.5 { 0.9 } else { 0.2 })];
        for (row, reward, apart) in known {
            near(&out, &printed, &[(row, "reward", tilt, reward), (row, "modes", modes, apart)]);
        }
    }
}
