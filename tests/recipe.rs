//! Every recipe runs in a small setting, leaves what it promises, and repeats to the byte.

use crate::command::run;
use std::path::Path;

const SMALL: [&str; 6] = ["iterations=2", "batch=2", "steps=4", "rank=2", "test_prompts=2", "images_per_prompt=2"];

#[test]
fn flux_ode_am_leaves_a_run_and_repeats_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let small = [&SMALL[..], &["truncate=last(2)"]].concat();
    let printed = run("scripts/flux_ode_am.rhai", &first, &small);
    for row in ["reward", "oracle", "diversity"] {
        assert!(printed.contains(row), "{printed}");
    }
    for name in ["run.json", "metrics.jsonl", "result.json", "curves.png", "lora.safetensors", "images"] {
        assert!(first.join(name).exists(), "{name} in {:?}", first.read_dir().unwrap().collect::<Vec<_>>());
    }
    assert!(first.join("images/samples-000002.txt").exists() && first.join("report.html").exists());
    let log = std::fs::read_to_string(first.join("metrics.jsonl")).unwrap();
    let with = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert_eq!((log.lines().count(), with("\"intensity\":[")), (3, 2), "{log}");
    // the base and the policy after the last update, on the same panel
    for name in ["reward", "clip", "oracle", "diversity"] {
        assert_eq!(with(&format!("\"panel {name}\":[")), 2, "{log}");
    }
    assert!(log.starts_with("{\"step\":0,\"panel ") && with("\"panel drift\":") == 1, "{log}");
    assert!(printed.contains("panel reward") && !printed.contains("step 0 "), "{printed}");
    // the panel has noise of its own
    run("scripts/flux_ode_am.rhai", &second, &[&small[..], &["panel=0"]].concat());
    assert!(!second.join("images/samples-000002.png").exists());
    let lora = |run: &Path| std::fs::read(run.join("lora.safetensors")).unwrap();
    assert!(lora(&first) == lora(&second), "the same seed gives the same LoRA");
    run("scripts/flux_ode_am.rhai", &folder.path().join("third"), &[&small[..], &["seed=1"]].concat());
    assert!(lora(&first) != lora(&folder.path().join("third")), "another seed gives another LoRA");
}

/// Trained for brightness and watched for darkness, which is the same the other way round.
const BRIGHT: &str = r#"
    import "stdlib/experiment" as experiment;
    let s = experiment::settings(#{
        watch: [], reward_scale: 2e3, iterations: 12, steps: 4, rank: 2, test_prompts: 8, images_per_prompt: 2, panel_every: 3,
    });
    let experiment = experiment::open(s);
    let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    experiment.reward_model = bright;
    experiment.rewards = #{ reward: bright, dark: -1.0 * bright };
    experiment::train(experiment, start_run(s), adjoint_matching(#{ grid: uniform(4), truncate: last(2) }));"#;

#[test]
fn a_drift_is_told_and_may_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("bright.rhai");
    std::fs::write(&script, BRIGHT).unwrap();
    let last_step = |out: &str| {
        let log = std::fs::read_to_string(folder.path().join(out).join("metrics.jsonl")).unwrap();
        serde_json::from_str::<serde_json::Value>(log.lines().last().unwrap()).unwrap()["step"].as_u64().unwrap()
    };
    let steps = |out: &str, set: &[&str]| {
        let printed = run(script.to_str().unwrap(), &folder.path().join(out), set);
        assert!(printed.contains("drift at step") && printed.contains("dark"), "{printed}");
        last_step(out)
    };
    assert_eq!(steps("on", &[]), 12);
    let last = steps("stopped", &["stop_on_drift=true"]);
    assert!(last < 12, "{last}");
    // behind its checkpoint too
    std::fs::remove_file(folder.path().join("stopped/result.json")).unwrap();
    let again = run(script.to_str().unwrap(), &folder.path().join("stopped"), &["stop_on_drift=true"]);
    assert!(
        again.contains(&format!("resuming after step {last}")) && !again.contains(&format!("step {}", last + 1)),
        "{again}"
    );
    // and no longer where that is given up
    let mut on = std::process::Command::new(env!("CARGO_BIN_EXE_amscript"));
    on.arg("run").arg(&script).args(["--set", "stop_on_drift=false", "--resume-anyway", "--out"]);
    assert!(on.arg(folder.path().join("stopped")).output().unwrap().status.success());
    assert_eq!(last_step("stopped"), 12);
}

#[test]
fn flux_ode_am_takes_other_truncations_and_orders() {
    let folder = tempfile::tempdir().unwrap();
    run("scripts/flux_ode_am.rhai", folder.path(), &[&SMALL[..], &["truncate=full()", "order=4"]].concat());
}

/// A run as it is when it was killed after a checkpoint at `step`: what came later is gone, but for lines of the log.
fn cut(run: &Path, step: usize) {
    for entry in std::fs::read_dir(run).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let later = name.strip_prefix("step-").is_some_and(|n| n.parse::<usize>().unwrap() > step);
        if later {
            std::fs::remove_dir_all(&path).unwrap();
        } else if ["result.json", "result.csv", "lora.safetensors"].contains(&name) {
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let files = |run: &Path| ["lora.safetensors", "metrics.jsonl"].map(|name| std::fs::read(run.join(name)).unwrap());
    let small = ["iterations=3", "every=2", "batch=2", "steps=4", "rank=2", "watch=[]"];
    for (recipe, rest) in [
        ("flux_ode_am", ["truncate=adaptive(0.5)", "test_prompts=1", "images_per_prompt=2"]),
        ("sit_ode_am", ["order=2", "test_prompts=1", "images_per_prompt=2"]),
        ("flux_sde_am", ["noise=memoryless()", "test_prompts=1", "images_per_prompt=2"]),
        ("sit_sde_am", ["truncate=last(2)", "test_prompts=1", "images_per_prompt=2"]),
        ("draft", ["low_variance=1", "test_prompts=1", "images_per_prompt=2"]),
        ("refl", ["truncate=last(3)", "test_prompts=1", "images_per_prompt=2"]),
        ("policy/gardo", ["per_prompt=2", "watch=[\"tiny/clip\"]", "test_prompts=1"]),
        ("policy/ddpo", ["remembered=2", "test_prompts=1", "images_per_prompt=2"]),
        ("policy/diffusion_nft", ["per_prompt=2", "test_prompts=1", "images_per_prompt=2"]),
    ] {
        let (script, out) = (format!("scripts/{recipe}.rhai"), folder.path().join(recipe));
        let set = [&small[..], &rest[..]].concat();
        run(&script, &out, &set);
        let whole = files(&out);
        cut(&out, 2);
        assert!(run(&script, &out, &set).contains("resuming after step 2"));
        assert!(files(&out) == whole, "{recipe}: the same LoRA and log");
    }
}

/// The base's panel is judged again where its line of the log is lost, to the same numbers; a tuned one is not taken for it.
#[test]
fn a_run_whose_first_line_is_lost_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let small = [&SMALL[..], &["iterations=3", "every=1", "panel_every=1", "watch=[]"]].concat();
    run("scripts/flux_ode_am.rhai", folder.path(), &small);
    let file = folder.path().join("metrics.jsonl");
    let whole = std::fs::read_to_string(&file).unwrap();
    let (_, rest) = whole.split_once('\n').unwrap();
    for damaged in [format!("{{\"step\":0,\"panel div\n{rest}"), String::new()] {
        cut(folder.path(), 2);
        std::fs::write(&file, &damaged).unwrap();
        let printed = run("scripts/flux_ode_am.rhai", folder.path(), &small);
        assert!(printed.contains("metrics.jsonl") && printed.contains("resuming after step 2"), "{printed}");
        let log = std::fs::read_to_string(&file).unwrap();
        assert_eq!(log.lines().last(), whole.lines().last());
    }
}

#[test]
fn an_evaluation_that_fails_does_not_lose_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let small = [&SMALL[..], &["watch=[]"]].concat();
    run("scripts/flux_ode_am.rhai", folder.path(), &small);
    let lora = || std::fs::read(folder.path().join("lora.safetensors")).unwrap();
    let (before, log) = (lora(), std::fs::read(folder.path().join("metrics.jsonl")).unwrap());
    cut(folder.path(), 2); // the last step is 2: only what the evaluation leaves is gone
    let printed = run("scripts/flux_ode_am.rhai", folder.path(), &small);
    assert!(printed.contains("resuming after step 2") && printed.contains("oracle"), "{printed}");
    assert!(lora() == before && std::fs::read(folder.path().join("metrics.jsonl")).unwrap() == log);
}

#[test]
fn every_method_leaves_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let small = [&SMALL[..], &["watch=[]"]].concat();
    for (recipe, rest) in [
        ("flux_sde_am", &["noise=linear_decay()"][..]),
        ("adjoint_matching", &["always=2", "drawn=1"]),
        ("draft", &["low_variance=1", "per_prompt=2", "rate=constant_rate(1e-3)"]),
        ("refl", &["truncate=last(2)", "hinge=2.0"]),
    ] {
        let out = folder.path().join(recipe);
        let printed = run(&format!("scripts/{recipe}.rhai"), &out, &[&small[..], rest].concat());
        assert!(["reward", "oracle", "diversity"].iter().all(|row| printed.contains(row)), "{recipe}: {printed}");
        assert!(out.join("lora.safetensors").exists(), "{recipe}");
    }
}

#[test]
fn every_policy_method_leaves_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let small = [&SMALL[..], &["watch=[\"tiny/clip\"]", "panel=0"]].concat();
    let recipes = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/policy")).unwrap();
    for recipe in recipes.map(|file| file.unwrap().path()) {
        let (name, out) =
            (recipe.file_stem().unwrap().to_str().unwrap(), folder.path().join(recipe.file_stem().unwrap()));
        let rest = match name {
            "nrg" => &["steps=4"][..],
            "leap_align" | "vgg_flow" | "ddpo" | "rwr" | "ram" => &[],
            "mix_grpo" => &["per_prompt=2", "batch=4", "micro_batch=2", "noisy_steps=2"],
            _ => &["per_prompt=2", "batch=4", "micro_batch=2"], // in two parts
        };
        let set = if name == "nrg" { &["test_prompts=2", "images_per_prompt=2", "watch=[]"][..] } else { &small[..] };
        let printed = run(recipe.to_str().unwrap(), &out, &[set, rest].concat());
        assert!(["reward", "oracle", "diversity"].iter().all(|row| printed.contains(row)), "{name}: {printed}");
        assert!(name == "nrg" || out.join("lora.safetensors").exists(), "{name}");
    }
}

#[test]
fn the_bench_trades_modes_for_reward() {
    let folder = tempfile::tempdir().unwrap();
    let some = "methods=[\"DiffusionNFT\", \"AdvantageFlow\", \"Flow-GRPO\", \"RWR\"]";
    let small = ["updates=12", some, "samples=2000"];
    let printed = run("scripts/toys/bench.rhai", folder.path(), &small);
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("result.json")).unwrap()).unwrap();
    assert!(printed.contains("tilt by 3") && folder.path().join("images/modes.png").exists(), "{printed}");
    assert!(result.to_string().contains("DiffusionNFT"), "{result}");
    let reward = |name: &str| {
        let line = printed.lines().find(|line| line.starts_with(&format!("{name}: reward"))).unwrap();
        line.split_whitespace()
            .nth(name.split_whitespace().count() + 1)
            .unwrap()
            .trim_end_matches(',')
            .parse::<f64>()
            .unwrap()
    };
    // of the tilts of the ring by the bump: reward and effective modes
    for (name, expected, modes) in
        [("tilt by 0.0", 0.328, 8.0), ("tilt by 1.0", 0.449, 7.53), ("tilt by 3.0", 0.7016, 4.65)]
    {
        let of = |measure: &str| result["measures"][name][measure]["mean"].as_f64().unwrap();
        let off = [of("reward") - expected, (of("modes") - modes) / 10.0].map(f64::abs);
        assert!(off.iter().all(|x| *x < 4e-3), "{name}: {} {}", of("reward"), of("modes"));
    }
    // the base's is 0.328
    let [nft, weighted, grpo] = ["DiffusionNFT", "AdvantageFlow", "Flow-GRPO"].map(reward);
    assert!(nft > 0.6 && weighted > 0.7 && grpo > 0.45, "{printed}");
}

#[test]
fn a_flow_in_two_jumps_takes_a_reward() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["updates=100", "tuned=30", "samples=2000", "weights=[[1.0, 0.0], [1.0, 5.0]]"];
    let printed = run("scripts/toys/few.rhai", folder.path(), &small);
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("result.json")).unwrap()).unwrap();
    let of = |measure: &str, row: &str| result["measures"][row][measure]["mean"].as_f64().unwrap();
    let [plain, tuned] = [0, 5].map(|reward| format!("consistency 1.0, reward {reward}.0"));
    // all modes from the first, half of the samples within 0.75 of one; then the reward at the cost of modes
    assert!(of("modes", &plain) > 7.8 && of("within 0.75", &plain) > 0.4, "{printed}");
    assert!(
        of("reward", &tuned) > of("reward", &plain) + 0.2 && of("modes", &tuned) < of("modes", &plain),
        "{printed}"
    );
}

#[test]
fn the_gap_between_training_and_sampling_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let printed =
        run("scripts/figures/gap.rhai", folder.path(), &["levels=[0.7]", "seeds=[0]", "updates=1", "samples=500"]);
    let result = std::fs::read_to_string(folder.path().join("result.json")).unwrap();
    // p = 0.245: 0.88417 - 0.86082
    assert!(result.contains("0.0233") && folder.path().join("images/gap.png").exists(), "{printed}{result}");
}

#[test]
fn adaptive_truncation_stands_beside_fixed_ones() {
    let folder = tempfile::tempdir().unwrap();
    let set = [&TABLE[..], &["watch=[]", "seeds=[0]", "fixed=[1]", "masses=[0.5]"]].concat();
    let printed = run("scripts/adaptive.rhai", folder.path(), &set);
    assert!(printed.contains("K = 1") && printed.contains("adaptive(0.5)"), "{printed}");
    assert!(folder.path().join("images/control.png").exists());
}

#[test]
fn a_table_of_methods_compares_at_equal_reward() {
    let folder = tempfile::tempdir().unwrap();
    let small = [
        "budget=60",
        "batch=2",
        "per_prompt=2",
        "steps=6",
        "test_prompts=2",
        "images_per_prompt=2",
        "lpips=",
        "features=",
    ];
    let some = ["watch=[]", "parts=[1.0]", "only=[\"ODE-AM-3 x 1.0\", \"MixGRPO\"]"];
    let printed = run("scripts/tables/methods.rhai", folder.path(), &[&small[..], &some[..]].concat());
    let table = printed.rsplit("reward ").next().unwrap();
    for word in ["base", "MixGRPO", "ODE-AM-3 x 1.0", "oracle over"] {
        assert!(table.contains(word), "{word}: {printed}");
    }
    assert!(folder.path().join("images/reward-oracle.png").exists());
}

/// Rhai 1.27 keeps functions that it found inside a module by their bare name for the script too.
#[test]
fn a_module_that_trains_leaves_the_runs_functions_alone() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("several.rhai");
    let text = r#"import "stdlib/experiment" as experiment;
        let s = #{ iterations: 1, batch: 1, steps: 2, rank: 2, test_prompts: 1, images_per_prompt: 2, watch: [] };
        let experiment = experiment::open(s);
        for seed in 0..3 {
            let run = start_run(s, #{ name: `seed-${seed}` });
            experiment::train(experiment, run, draft(#{ grid: uniform(2) }));
        }
        start_run(#{}).finish([#{ name: "drafted", x: [1.0, 2.0] }], #{ columns: ["x"] });"#;
    std::fs::write(&script, text).unwrap();
    let printed = run(script.to_str().unwrap(), &folder.path().join("out"), &[]);
    assert!(printed.contains("drafted   1.50 ± 0.50   2"), "{printed}");
}

/// A table at its smallest.
const TABLE: [&str; 6] = ["iterations=2", "batch=2", "steps=4", "rank=2", "test_prompts=4", "images_per_prompt=2"];

#[test]
fn a_table_fills_in_from_runs_that_are_done_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("flux");
    let set = [&TABLE[..], &["watch=[]", "seeds=[0, 1]", "only=[\"2nd-AM-3\", \"DRaFT-1\"]"]].concat();
    let table = |printed: &str| printed.rsplit("reward ").next().unwrap().to_string();
    let first = run("scripts/tables/flux.rhai", &out, &set);
    for word in ["base", "2nd-AM-3", "DRaFT-1", "oracle", "LPIPS", "1 - MS-SSIM", "recall", "coverage", "seconds", "±"]
    {
        assert!(table(&first).contains(word), "{word}: {first}");
    }
    let lora = out.join("draft-1/seed-1/lora.safetensors");
    let trained = std::fs::read(&lora).unwrap();
    assert!(trained != std::fs::read(out.join("draft-1/seed-0/lora.safetensors")).unwrap(), "seeds differ");

    let again = run("scripts/tables/flux.rhai", &out, &set);
    assert_eq!(again.matches("done before").count(), 4, "{again}");
    assert_eq!(table(&again), table(&first));

    cut(&out.join("draft-1/seed-1"), 0);
    let resumed = run("scripts/tables/flux.rhai", &out, &set);
    assert_eq!(resumed.matches("done before").count(), 3, "{resumed}");
    assert!(std::fs::read(&lora).unwrap() == trained, "the row that was lost comes out the same");

    for (recipe, wanted) in [("curves", "images/reward-1.png"), ("control", "images/control-2nd-am-3-seed-0.png")] {
        let drawn = folder.path().join(recipe);
        run(&format!("scripts/figures/{recipe}.rhai"), &drawn, &[&format!("table={}", out.display())]);
        assert!(drawn.join(wanted).exists(), "{wanted}");
    }
}

#[test]
fn a_row_that_ends_in_an_error_leaves_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("rows.rhai");
    let text = r#"import "stdlib/experiment" as experiment;
        import "stdlib/table" as table;
        let s = experiment::settings(#{
            iterations: 1, batch: 1, steps: 2, rank: 2, test_prompts: 1, images_per_prompt: 2, watch: [], seeds: [0], only: [],
        });
        let methods = map(["first", "second", "third"], |name| #{ name: name, method: draft(#{ grid: uniform(2) }) });
        methods[1].method = |experiment, batch, run| { throw "it runs away" };
        let run = start_run(s);
        finish(run, table::fill(experiment::open(s), methods, ["reward"]), #{ columns: ["reward"] });"#;
    std::fs::write(&script, text).unwrap();
    let printed = run(script.to_str().unwrap(), &folder.path().join("out"), &[]);
    assert!(printed.contains("warning: second, seed 0 is left out: it runs away"), "{printed}");
    let table = printed.rsplit("reward ").next().unwrap();
    assert!(table.contains("first") && table.contains("third") && !table.contains("second"), "{printed}");
}

#[test]
fn every_table_runs() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = [&TABLE[..], &["watch=[]", "seeds=[0]", "lpips=", "features="]].concat();
    for (recipe, rest, rows) in [
        (
            "sit",
            &["only=[\"SDE-AM-2\", \"6th-ODE-AM-10\", \"ReFL-10\"]"][..],
            &["SDE-AM-2", "6th-ODE-AM-10", "ReFL-10"][..],
        ),
        ("noise", &["active=2"], &["none", "memoryless", "1 - t", "sin^2", "constant"]),
        ("settings", &["active=[1]", "orders=[2, 6]"], &["p = 2, K = 1", "p = 6, K = 1"]),
    ] {
        let out = folder.path().join(recipe);
        let printed = run(&format!("scripts/tables/{recipe}.rhai"), &out, &[&tiny[..], rest].concat());
        let table = printed.rsplit("reward ").next().unwrap();
        assert!(rows.iter().all(|row| table.contains(row)), "{recipe}: {printed}");
    }
    let out = folder.path().join("time");
    let printed = run("scripts/tables/time.rhai", &out, &["batch=1", "steps=4", "rounds=1", "active=[1]"]);
    for row in ["one forward", "ODE-AM-Full", "SDE-AM-1", "DRaFT-1", "ReFL-5", "predicted"] {
        assert!(printed.contains(row), "{row}: {printed}");
    }
}

#[test]
fn every_conversion_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/tables/conversions.rhai", folder.path(), &[]);
    assert!(printed.contains("all agree to within 0.0001"), "{printed}");
}

#[test]
fn hacking_compares_at_equal_reward() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["iterations=2", "batch=2", "steps=4", "test_prompts=2", "images_per_prompt=2", "lpips="];
    let some = ["methods=[\"6th-AM-Full\", \"DRaFT-1\"]", "strengths=[0.5, 2.0]"];
    let printed = run("scripts/hacking.rhai", folder.path(), &[&small[..], &some[..]].concat());
    let table = printed.rsplit("highest reward").next().unwrap();
    assert!(table.contains("6th-AM-Full") && table.contains("DRaFT-1") && !table.contains(" x "), "{printed}");
    assert!(folder.path().join("images/reward-oracle.png").exists());
    assert_eq!(std::fs::read_to_string(folder.path().join("points.csv")).unwrap().matches("reward,").count(), 5);
}

#[test]
fn a_model_and_a_lora_are_probed() {
    let folder = tempfile::tempdir().unwrap();
    let trained = folder.path().join("trained");
    run("scripts/flux_ode_am.rhai", &trained, &[&SMALL[..], &["watch=[]"]].concat());
    let lora = format!("lora={}", trained.join("lora.safetensors").display());
    let small = ["steps=3", "batch=2", "watch=[]", "penalties=[power(4)]", "truncations=[1]", "strengths=[0.0, 1.0]"];
    for (name, set, image) in [("lora", &lora[..], "strength"), ("sit", "model=tiny/sit", "penalty")] {
        let out = folder.path().join(name);
        let printed = run("scripts/probe.rhai", &out, &[&small[..], &[set]].concat());
        for word in ["adaptive(0.5)", "the adjoint is right", "oracle", "diversity", "change"] {
            assert!(printed.contains(word), "{name}: {word}: {printed}");
        }
        assert_eq!(printed.contains("the policy's own"), name == "lora", "{printed}");
        for image in ["control", "shares", "adjoint", "steps", image] {
            assert!(out.join(format!("images/{image}.png")).exists(), "{name}: {image}");
        }
    }
}

#[test]
fn sit_ode_am_leaves_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run("scripts/sit_ode_am.rhai", folder.path(), &SMALL);
    assert!(["reward", "oracle", "diversity"].iter().all(|row| printed.contains(row)), "{printed}");
    assert!(folder.path().join("lora.safetensors").exists());
}

#[test]
fn the_tiny_class_conditional_model_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let family = folder.path().join("family");
    run("scripts/pretrain/vae.rhai", &family, &["layout=AutoencoderKL", "channels=8", "steps=30", "batch=1"]);
    let place = format!("family={}", family.display());
    run(
        "scripts/pretrain/sit.rhai",
        &folder.path().join("sit"),
        &[&place, "scenes=64", "steps=4", "warmup=1", "batch=2"],
    );
    for name in ["model.safetensors", "config.json", "classes.txt"] {
        assert!(folder.path().join("sit").join(name).exists(), "{name}");
    }
}

#[test]
fn the_tiny_family_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let family = folder.path().join("family");
    run("scripts/pretrain/text.rhai", &family, &[]);
    let vae = folder.path().join("vae");
    run("scripts/pretrain/vae.rhai", &vae, &["steps=30", "batch=1"]);
    std::fs::rename(vae.join("vae"), family.join("vae")).unwrap();
    let place = format!("family={}", family.display());
    run("scripts/pretrain/flow.rhai", &folder.path().join("flow"), &[&place, "scenes=64", "steps=100", "batch=1"]);
    assert!(folder.path().join("flow/transformer/diffusion_pytorch_model.safetensors").exists());
}

#[test]
fn the_tiny_reward_can_be_made_again() {
    let (folder, pool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run("scripts/pretrain/samples.rhai", pool.path(), &["captions=4", "part=2", "candidates=2", "steps=2"]);
    let pools = format!("pools=[\"{}\"]", pool.path().display());
    let small = ["steps=2", "warmup=1", "captions=2", "candidates=2", "held=4", "parts=2", &pools];
    let printed = run("scripts/pretrain/preference.rhai", folder.path(), &small);
    assert!(printed.contains("agreement"), "{printed}");
    assert!(folder.path().join("model/open_clip_model.safetensors").exists());
}

#[test]
fn the_tiny_imagereward_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let small =
        ["matching=1", "choosing=1", "warmup=1", "batch=2", "captions=2", "held=2", "layers=1", "text_layers=1"];
    let printed = run("scripts/pretrain/imagereward.rhai", folder.path(), &small);
    assert!(printed.contains("agreement"), "{printed}");
    assert!(folder.path().join("model/ImageReward.safetensors").exists());
}

#[test]
fn the_tiny_clip_and_a_head_on_it_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip");
    run("scripts/pretrain/clip.rhai", &clip, &["steps=2", "batch=4", "warmup=1", "width=32", "layers=1", "held=4"]);
    assert!(clip.join("model/model.safetensors").exists());
    let place = format!("clip={}", clip.join("model").display());
    let small = [&place, "steps=2", "warmup=1", "batch=2", "held=4"];
    let printed = run("scripts/pretrain/aesthetic.rhai", &folder.path().join("head"), &small);
    assert!(printed.contains("squared error"), "{printed}");
    assert!(folder.path().join("head/model/aesthetic.safetensors").exists());
}

#[test]
fn evaluate_compares_runs_with_their_base() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    for (out, seed) in [(&first, "seed=0"), (&second, "seed=1")] {
        run("scripts/flux_ode_am.rhai", out, &[&SMALL[..], &[seed, "watch=[]"]].concat());
    }
    let runs = format!("runs=[\"{}\", \"{}\"]", first.display(), second.display());
    let out = folder.path().join("table");
    let small = [&runs, "test_prompts=4", "images_per_prompt=2", "steps=2", "neighbours=3"];
    let printed = run("scripts/evaluate.rhai", &out, &small);
    for word in ["oracle", "recall", "coverage", "LPIPS", "imagereward", "second", "in brackets"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["measures"]["hpsv2"]["first"]["change"]["count"], 4);
    assert!(result["measures"]["coverage"]["base"].is_null());
    assert!(result["rewards"].to_string().contains("sha256"), "{}", result["rewards"]);
    assert!(std::fs::read_to_string(out.join("result.csv")).unwrap().lines().count() > 20);
    let of = format!("run={}", first.display());
    let printed = run("scripts/figures/pictures.rhai", &folder.path().join("pictures"), &[&of, "images=4", "steps=2"]);
    assert!(printed.contains("shape") && folder.path().join("pictures/images/pictures.png").exists(), "{printed}");
    let blind = folder.path().join("blind");
    run("scripts/figures/blind.rhai", &blind, &[&of, "images=4", "steps=2", "least=0.0"]);
    assert!(blind.join("images/blind.png").exists());
    assert_eq!(std::fs::read_to_string(blind.join("key.csv")).unwrap().lines().count(), 1 + 2 * 4);
    let small = [&runs, "rewards=[\"tiny/clip\"]", "prompts=3", "images=3", "steps=2", "margin=0.0"];
    let printed = run("scripts/tables/agreement.rhai", &folder.path().join("agreement"), &small);
    assert!(printed.contains("drawings") && printed.contains("second"), "{printed}");
}

#[test]
fn the_tiny_perceptual_distance_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["reading=2", "choosing=2", "warmup=1", "images=4", "pairs=4", "held=8"];
    let printed = run("scripts/pretrain/lpips.rhai", folder.path(), &small);
    assert!(printed.contains("agreement"), "{printed}");
    for name in ["alexnet.safetensors", "alex.safetensors"] {
        assert!(folder.path().join("model").join(name).exists(), "{name}");
    }
}
