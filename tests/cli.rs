//! The command from outside: what bad input prints, and that it ends with the right code.

use std::path::Path;
use std::process::{Command, Output};

/// A folder with `recipe.rhai` in it.
fn folder(recipe: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.rhai"), recipe).unwrap();
    folder
}

fn amscript(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    command.current_dir(folder).args(arguments).env_remove("AMSCRIPT_DEVICE");
    command
}

/// What the command prints for a recipe that must fail.
fn complaint(recipe: &str, arguments: &[&str]) -> String {
    let folder = folder(recipe);
    let output = amscript(folder.path(), &[&["recipe.rhai"], arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

/// Compares with `tests/snapshot/<name>.snap`; `INSTA_UPDATE=always` writes it.
fn snapshot(name: &str, text: &str) {
    insta::with_settings!({ snapshot_path => "snapshot", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn a_script_prints_and_ends_well() {
    let folder = folder("print(1 / 4);\nprint(tensor([1, 2]));");
    let output = amscript(folder.path(), &["run", "recipe.rhai"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"0.25\ntensor([1.0, 2.0])\n".as_slice()));
}

#[test]
fn options_may_stand_before_the_script() {
    let folder = folder("print(settings(#{ n: 1 }).n); print(2);");
    let output = amscript(folder.path(), &["--set", "n=3", "--models", ".", "recipe.rhai"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"3\n2\n".as_slice()));
    let output = amscript(folder.path(), &["--quiet", "-e", "print(4)"]); // a prompt's, as ever
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"4\n".as_slice()));
}

#[test]
fn a_profile_says_where_time_went() {
    let folder = folder("rollout(velocity_field(|x, t, c| softmax(x, 1)), zeros([1, 2]), (), #{ grid: uniform(3) });");
    let output = amscript(folder.path(), &["run", "recipe.rhai", "--profile"]);
    let text = String::from_utf8(output.stderr).unwrap();
    let words = |name: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).split_whitespace().map(String::from).collect()
    };
    let seconds = |name: &str, i: usize| words(name)[i].parse::<f64>().unwrap();
    assert_eq!((words("rollout")[1].as_str(), words("script")[1].as_str()), ("1", "1"));
    assert_eq!(words("softmax")[3], "3"); // three softmaxes
    assert!(seconds("script", 2) >= 0.0 && seconds("rollout", 2) >= seconds("softmax", 1));
}

#[test]
fn a_syntax_error_is_shown_in_its_line() {
    snapshot("syntax_error", &complaint("let x = 3\nlet y = 4;", &[]));
}

#[test]
fn an_unknown_function_names_the_nearest_one() {
    snapshot("unknown_function", &complaint("let x = zeroes([2, 3]);", &[]));
}

#[test]
fn a_wrong_argument_says_what_was_expected_and_what_came() {
    snapshot("wrong_argument", &complaint("let x = zeros([2, 3]);\nlet y = matmul(x, \"x\");", &[]));
}

#[test]
fn a_wrong_shape_names_both_shapes() {
    snapshot("wrong_shape", &complaint("let x = zeros([2, 3]);\nlet y = x + zeros([4]);", &[]));
}

#[test]
fn an_error_in_a_closure_shows_the_calls_that_led_there() {
    let recipe = "fn loss(x) {\n    let y = x * 2;\n    y.summ()\n}\nlet f = |x| loss(x);\ngrad(f, ones([2]));";
    snapshot("call_chain", &complaint(recipe, &[]));
}

#[test]
fn an_unknown_variable_names_the_nearest_one() {
    snapshot("unknown_variable", &complaint("let policy = 1;\nprint(polcy);", &[]));
}

#[test]
fn a_thrown_text_is_the_message() {
    snapshot("thrown", &complaint("if 1 < 2 { throw \"the reward must rise\" }", &[]));
}

#[test]
fn a_set_without_settings_is_refused() {
    snapshot("set_without_settings", &complaint("print(1)", &["--set", "steps=3"]));
}

#[test]
fn a_missing_script_and_an_unknown_device_are_refused() {
    let folder = folder("");
    let text = |arguments: &[&str]| String::from_utf8(amscript(folder.path(), arguments).stderr).unwrap();
    snapshot("missing_script", &text(&["nothing.rhai"]));
    snapshot("unknown_device", &text(&["recipe.rhai", "--device", "gpu"]));
}

#[test]
fn an_out_that_cannot_be_written_is_refused_before_the_script_runs() {
    let text = complaint("print(\"ran\")", &["--out", "recipe.rhai/run"]);
    snapshot("unwritable_out", &text);
}

#[test]
fn a_truncated_tensor_file_is_named() {
    let folder = folder("load_tensors(\"cut.safetensors\")");
    std::fs::write(folder.path().join("cut.safetensors"), [200, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
    let output = amscript(folder.path(), &["recipe.rhai"]);
    let said = String::from_utf8(output.stderr).unwrap();
    snapshot("truncated_safetensors", &said.replace(&format!("{}/", folder.path().display()), ""));
}

#[test]
fn files_outside_the_run_are_refused() {
    snapshot("forbidden_read", &complaint("load_tensors(\"/etc/hostname\")", &[]));
    snapshot("forbidden_write", &complaint("save_tensors(#{ a: ones([1]) }, \"../a.safetensors\")", &[]));
    snapshot("forbidden_import", &complaint("import \"/etc/hostname\" as a;", &[]));
}

#[test]
fn an_unknown_option_names_the_nearest_one() {
    let recipe =
        "let still = velocity_field(|x, t, c| 0 * x);\nrollout(still, ones([1, 2]), (), #{ gird: uniform(4) });";
    snapshot("unknown_option", &complaint(recipe, &[]));
}

#[test]
fn a_reward_that_is_not_a_number_names_the_step_the_time_and_the_sample() {
    let recipe = "let still = velocity_field(|x, t, c| 0 * x);\nlet run = start_run(#{});\nfor i in run.steps(3) {\n    \
                  let path = rollout(still, tensor([[4.0], [1.5 - i]]), (), #{ grid: uniform(1) });\n    \
                  path.terminal_gradient(terminal_cost(|x| x.sum(1).sqrt()));\n}";
    snapshot("nan_reward", &complaint(recipe, &[]));
}

#[test]
fn a_missing_model_says_where_it_was_looked_for() {
    let text = complaint("let base = flow(\"tiny/flux3\");", &[]);
    assert!(text.contains("got `tiny/flux3`") && text.contains("looked in"), "{text}");
}

#[test]
fn an_unknown_set_key_names_the_nearest_setting() {
    let recipe = "let s = settings(#{ steps: 20, rate: 1e-3, truncate: last(3) });";
    snapshot("unknown_set_key", &complaint(recipe, &["--set", "step=3"]));
    snapshot("ill_typed_set", &complaint(recipe, &["--set", "steps=many"]));
    snapshot("ill_called_set", &complaint(recipe, &["--set", "truncate=last(a)"]));
}

/// Counts when the experiment opens, measures that the images do not fit behind its first update.
#[test]
fn what_an_experiment_could_not_use_is_refused_by_its_name() {
    let recipe = "import \"stdlib/experiment\" as experiment;
        let s = experiment::settings(#{
            watch: [], rank: 2, batch: 1, steps: 2, panel: 0, test_prompts: 2, images_per_prompt: 2, neighbours: 1,
        });
        experiment::learn(experiment::open(s), start_run(s), draft(#{ grid: uniform(s.steps) }));";
    for (sets, words) in [
        ("images_per_prompt=1", "images_per_prompt must be a whole number of at least 2, got 1"),
        ("test_prompts=0", "test_prompts must be a whole number of at least 1, got 0"),
        ("panel_every=0", "panel_every must be a whole number of at least 1, got 0"),
        ("batch=-1", "batch must be a whole number of at least 1, got -1"),
        ("test_seed=1.5", "test_seed must be a whole number of at least 0, got 1.5"),
        ("features=tiny/clip neighbours=3", "neighbours must be at most 2 of the 4 images of all test prompts, got 3"),
        (
            "features=tiny/imagereward",
            "features = tiny/imagereward: clip_features: imagereward tiny/imagereward has no CLIP",
        ),
        ("lpips=tiny/lpips window=11", "window = 11: ms_ssim: with `win_size` 11 images must be at least 161 pixels"),
        ("watch=[3]", "watch must be names of rewards, got [3]"),
        ("watch=[\"\"]", "watch must be names of rewards, got [\"\"]"),
        ("prompts=", "prompts: expected the name of a file or folder, got \"\""),
    ] {
        let sets: Vec<&str> = sets.split(' ').flat_map(|pair| ["--set", pair]).collect();
        let complaint = complaint(recipe, &sets);
        assert!(complaint.contains(words), "{sets:?}: {complaint}");
    }
}

#[test]
fn a_set_is_a_value_or_text() {
    let folder =
        folder("let s = settings(#{ keep: last(3), model: \"a\", rate: 0.1 }); print([s.keep, s.model, s.rate]);");
    let sets = ["--set", "keep=full()", "--set", "model=tiny/flux2", "--set", "rate=1"];
    let output = amscript(folder.path(), &[&["recipe.rhai"], &sets[..]].concat());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "[full(), \"tiny/flux2\", 1]\n");
}

/// What opening an autoencoder prints after `change` was done to its weight file.
fn broken_weights(change: impl Fn(&Path)) -> String {
    const SIZES: &str = "#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }";
    let folder = folder(&format!("autoencoder({SIZES}, rng(0)).save(\"vae\");"));
    let made = amscript(folder.path(), &["recipe.rhai", "--out", "."]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    change(&folder.path().join("vae/diffusion_pytorch_model.safetensors"));
    std::fs::write(folder.path().join("recipe.rhai"), "autoencoder(\"vae\")").unwrap();
    let output = amscript(folder.path(), &["recipe.rhai", "--out", "."]);
    let text = String::from_utf8(output.stderr).unwrap();
    text.replace(&folder.path().canonicalize().unwrap().display().to_string(), "FOLDER")
}

#[test]
fn a_truncated_weight_file_is_named() {
    let text = broken_weights(|file| {
        let bytes = std::fs::read(file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() - 100]).unwrap();
    });
    snapshot("truncated_weights", &text);
}

#[test]
fn a_misnamed_weight_is_named() {
    let text = broken_weights(|file| {
        let mut tensors = amscript::tensor::file::load(file, &amscript::tensor::Device::Cpu).unwrap();
        let tensor = tensors.remove("decoder.conv_in.weight").unwrap();
        tensors.insert("decoder.conv_inn.weight".into(), tensor);
        let tensors = tensors.iter().map(|(name, x)| (name.as_str(), x));
        amscript::nn::archive::write(file, tensors, &Default::default()).unwrap();
    });
    snapshot("misnamed_weights", &text);
}

/// A folder of models: one whole, one with a truncated part, one in a Hugging Face cache with a link to nothing.
#[cfg(unix)]
fn models_folder() -> tempfile::TempDir {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let zeros =
        amscript::tensor::Tensor::zeros((3, 4), amscript::tensor::DType::BF16, &amscript::tensor::Device::Cpu).unwrap();
    let at = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let whole = at("models/flux2/transformer/diffusion_pytorch_model.safetensors");
    amscript::nn::archive::write(&whole, [("w", &zeros)], &Default::default()).unwrap();
    std::fs::write(at("models/flux2/model_index.json"), "{}").unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(at("models/flux2/vae/diffusion_pytorch_model.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
    let index = r#"{"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}"#;
    std::fs::write(at("models/flux2/text_encoder/model.safetensors.index.json"), index).unwrap();
    std::fs::copy(&whole, at("models/flux2/text_encoder/model-00001-of-00002.safetensors")).unwrap();
    let snapshot = at("hub/models--xswu--HPSv2/snapshots/abc/open_clip_model.safetensors");
    let blob = "0123456789abcdef".repeat(4);
    std::fs::copy(&whole, at(&format!("hub/models--xswu--HPSv2/blobs/{blob}"))).unwrap();
    symlink(format!("../../blobs/{blob}"), &snapshot).unwrap();
    symlink("../../blobs/absent", snapshot.with_file_name("HPS_v2.1_compressed.pt")).unwrap();
    folder
}

#[test]
#[cfg(unix)]
fn models_are_listed_with_their_files_and_what_is_wrong_with_them() {
    let folder = models_folder();
    let listed = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
        command.current_dir(folder.path()).env("HF_HUB_CACHE", "hub").env_remove("AMSCRIPT_MODELS").arg("models");
        let output = command.args(["--models", "models"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    snapshot("models_folder", &listed(&["flux2"]));
    snapshot("models_cache", &listed(&["hpsv2", "--hash"]));
    let all = listed(&[]);
    assert!(
        all.contains("tiny/flux2: embedded\n") && all.contains("flux2-distilled: not found; fetch it with"),
        "{all}"
    );
    let json: serde_json::Value = serde_json::from_str(&listed(&["flux2", "--json"])).unwrap();
    assert_eq!(json[0]["files"][3]["tensors"], serde_json::json!({ "count": 1, "parameters": 12, "types": ["bf16"] }));
}

/// What `--plan` prints for a recipe of this repository.
fn plan(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/flux_ode_am.rhai");
    // on one thread: what several hold at once differs by a little
    let arguments = [&["run", recipe.to_str().unwrap(), "--plan"], arguments].concat();
    let output = command(folder.path(), &arguments).env("RAYON_NUM_THREADS", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a plan writes nothing");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_plan_says_what_a_run_would_take() {
    snapshot("plan", &plan(&["--set", "batch=1"]));
    assert!(plan(&["--device", "cuda"]).contains("forwards per update"));
}

#[test]
fn a_plan_of_a_script_without_updates_lists_what_it_opens() {
    let folder = folder("print(flow(\"tiny/flux2\"));");
    let output = amscript(folder.path(), &["run", "recipe.rhai", "--plan"]);
    snapshot("plan_without_update", &String::from_utf8(output.stdout).unwrap());
}

#[test]
fn a_plan_of_full_training_by_hand_counts_every_weight() {
    let recipe = "let base = flow(\"tiny/flux2\");\nlet policy = base.trainable();\n\
                  let opt = adamw(policy.params());\nlet bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));\n\
                  let c = base.encode([\"a\"]);\n\
                  let path = rollout(policy, base.noise(1, rng(0)), c, #{ grid: uniform(4), truncate: last(2) });\n\
                  let adjoint = lean_adjoint(base, path, path.terminal_gradient(reward_cost(bright, c, 1)));\n\
                  opt.step(matching_loss(policy, base, path, control_target(adjoint, power(2))));";
    let folder = folder(recipe);
    let output = amscript(folder.path(), &["run", "recipe.rhai", "--plan"]);
    let text = String::from_utf8(output.stdout).unwrap();
    // 4 of the rollout, 2 along the adjoint, 2 of policy and base each in the loss
    assert!(text.contains("1,501,632 trained numbers"), "{text}");
    let forwards = text.lines().find(|line| line.contains("forwards per update")).unwrap();
    assert_eq!(forwards.split_whitespace().last(), Some("10"), "{text}");
}

/// What would be beyond the bound is refused before it is tried: an allocation that fails would end the process.
#[test]
fn what_does_not_fit_into_memory_is_an_error() {
    for (recipe, words) in [
        ("zeros([4294967296])", "a tensor of [4294967296]"),
        ("zeros([100000, 1]) + zeros([1, 100000])", "add of [100000, 100000]"),
        ("let a = []; loop { a.push(ones([10000000])); }", "a tensor of [10000000]"),
        ("uniform(1000000000000)", "uniform of 1000000000000 steps"),
        ("uniform(9223372036854775807)", "uniform of 9223372036854775807 steps"),
        ("shapes(1000000000000, rng(0))", "1000000000000 drawings"),
        ("flow(\"tiny/flux2\").noise(1000000000000, rng(0))", "random numbers of [1000000000000"),
        ("flow(\"tiny/flux2\").lora(#{ rank: 1000000000 })", "1000000000"),
        ("flow(\"tiny/flux2\", #{ max_sequence_length: 1000000000000 }).encode([\"a\"])", "1000000000000 tokens"),
        ("reward(\"tiny/hpsv2\").score(zeros([1, 3, 1, 20000]), \"a\")", "resize of"),
        (
            "let s = \"x\"; s.pad(15000000, \"y\"); let m = #{}; for i in 0..60000 { m[\"k\" + i] = s + i; }",
            "the script: ",
        ),
        ("prompts(\"shapes/train\").sample(1000000000000, rng(0))", "sample of 1000000000000 prompts"),
        ("arange(4294967296)", "arange of 4294967296"),
        ("linspace(0, 1, 4000000000)", "linspace of [4000000000]"),
        ("rng(0).integers(2, [4000000000])", "random numbers of [4000000000]"),
        ("resample(zeros([4]), rng(0), #{ count: 1000000000000 })", "1000000000000 particles"),
        ("flow(\"tiny/sit\").encode([3]).repeat(1000000000000)", "a condition of 1000000000000 samples"),
        ("let c = flow(\"tiny/sit\").encode([3]); for i in 0..40 { c = c + c; }", "a condition of"),
        ("flow(\"tiny/sit\").encode(zeros([1]).broadcast([300000000]))", "[300000000]"),
        ("zeros([1]).broadcast([4000000000]).reshape([2, 2000000000])", "reshape of [4000000000]"),
        ("zeros([1]).broadcast([4000000000]).max()", "reshape of [4000000000]"),
        ("zeros([1]).broadcast([4000000000]).norm()", "norm of [4000000000]"),
        ("let x = zeros([30000000]); cat([x, x, x, x, x, x, x, x, x, x], 0)", "cat of [300000000]"),
        ("let a = []; a.pad(200000, \"a small red ring on cream\"); draw(a, rng(0))", "200000 drawings"),
        (
            "reward(\"tiny/hpsv2\").score(zeros([1, 3, 1, 1]).broadcast([1000000000, 3, 1, 1]), \"a\")",
            "1000000000 texts",
        ),
        (
            "reward(\"tiny/hpsv2\").similarities(zeros([1, 3, 64, 64]).broadcast([300000, 3, 64, 64]), [\"a\"])",
            "[300000, 3, 64, 64]",
        ),
    ] {
        let complaint = complaint(recipe, &["--max-memory", "1GB"]);
        assert!(complaint.contains(words) && complaint.contains("--max-memory"), "{recipe}: {complaint}");
    }
}

#[test]
fn sizes_that_no_autoencoder_has_are_refused() {
    for option in
        ["norm_num_groups: 0", "block_out_channels: []", "layers_per_block: 0", "latent_channels: 1000000000000"]
    {
        let sizes = "#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }";
        let complaint = complaint(&format!("autoencoder({sizes} + #{{ {option} }}, rng(0))"), &[]);
        assert!(complaint.contains("must be above 0 and at most 65536"), "{option}: {complaint}");
    }
}

#[test]
fn a_loop_without_steps_is_told_that_it_logs_one_step() {
    let folder = folder("let run = start_run(#{}); for i in 0..3 { run.log(#{ loss: 1.0 * i }) }");
    let output = amscript(folder.path(), &["recipe.rhai"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.matches("warning: log: `loss` is logged at step 0 again").count(), 1, "{error}");
    let folder =
        self::folder("let run = start_run(#{}); run.log(#{ a: 1 }); for i in run.steps(2) { run.log(#{ a: 1 }) }");
    assert!(amscript(folder.path(), &["recipe.rhai"]).stderr.is_empty());
}

#[test]
fn a_picture_in_a_folder_that_nobody_named_is_told_of() {
    let folder = folder("for i in 0..2 { save_image(zeros([3, 8, 8]), `${i}.png`) }");
    let output = amscript(folder.path(), &["recipe.rhai"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "wrote runs/recipe/0.png\n");
    assert!(amscript(folder.path(), &["recipe.rhai", "--out", "here"]).stdout.is_empty());
}

#[test]
fn a_new_script_makes_its_folder_and_a_recipe_has_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    assert!(amscript(folder.path(), &["new", "sub/mine"]).status.success());
    assert!(folder.path().join("sub/mine.rhai").exists());
    let error = String::from_utf8(amscript(folder.path(), &["lock", "flux_ode_am"]).stderr).unwrap();
    assert!(error.contains("`amscript new mine --from flux_ode_am`"), "{error}");
}

#[test]
fn flags_of_a_run_do_not_stand_among_its_permissions() {
    let output = amscript(Path::new("."), &["run", "--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    let permissions = help.split("Permissions:").nth(1).unwrap();
    assert!(!permissions.contains("--plan") && help.contains("--plan"), "{help}");
}
