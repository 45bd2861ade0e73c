//! Recipes and files from strangers, from outside: what ends them, what they cannot do to a terminal, what is refused before it is read.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).unwrap());
    folder
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
    command.current_dir(folder).args(arguments).env_remove("AMSCRIPT_DEVICE").stdin(Stdio::null());
    command
}

/// What a recipe prints on both streams, and its exit code.
fn run(recipe: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let folder = folder(&[("recipe.rhai", recipe.as_bytes())]);
    let Output { status, stdout, stderr } =
        command(folder.path(), &[&["recipe.rhai"], arguments].concat()).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stdout).to_string() + &String::from_utf8_lossy(&stderr))
}

/// What it prints when it is refused.
fn refusal(recipe: &str, arguments: &[&str]) -> String {
    let (code, text) = run(recipe, arguments);
    assert_eq!(code, Some(1), "{text}");
    text
}

/// Sends a signal to a child.
fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// How long a child goes on; it must end.
fn ending(child: &mut Child) -> Duration {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// A title for the window and a screen that is cleared, and how they are to be shown.
const ACTS: &str = "\\x1b]0;x\\x07\\x1b[2J";
const SHOWN: &str = "\\u{1b}]0;x\\u{7}\\u{1b}[2J";

#[test]
fn nothing_that_a_recipe_says_acts_on_the_terminal() {
    let source = format!("let x = 1; /* {} */ nothing();", "\u{1b}]0;x\u{7}\u{1b}[2J");
    for recipe in [
        format!("print(\"{ACTS}\");"),
        format!("debug(\"{ACTS}\");"),
        format!("throw \"{ACTS}\";"),
        format!("prompts(\"{ACTS}\");"),
        format!("let r = start_run(#{{}}); for i in r.steps(1) {{ r.log(#{{ \"{ACTS}\": 1.0 }}); }}"),
        format!("start_run(#{{}}, #{{ name: \"{ACTS}\" }});"),
        format!("scripted_reward(|i, p| i.mean([1, 2, 3]) / 0.0).score(zeros([1, 3, 4, 4]), [\"{ACTS}\"]);"),
        format!("show(plot([1.0, 2.0], #{{ title: \"{ACTS}\" }}));"),
        source,
    ] {
        let (_, text) = run(&recipe, &[]);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{recipe}: {text:?}");
        assert!(text.contains(SHOWN) || recipe.contains("start_run") || recipe.contains("score"), "{recipe}: {text}");
    }
}

#[test]
fn hidden_characters_are_found_and_shown() {
    let recipe = "let a = 1; /* \u{202e} } \u{2066}if admin\u{2069} */\nprint(\"x\u{200b}y\");";
    let folder = folder(&[("recipe.rhai", recipe.as_bytes())]);
    let found = command(folder.path(), &["check", "recipe.rhai"]).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("warning: the hidden character \\u{202e} stands here\n  --> recipe.rhai:1:15"), "{found}");
    assert!(found.contains("\\u{200b} stands here\n  --> recipe.rhai:2:9") && !found.contains('\u{202e}'), "{found}");
}

#[test]
fn a_recipe_that_goes_round_for_ever_ends() {
    for recipe in [
        "loop {}",
        "fn f(n) { if n < 2 { 1 } else { f(n - 1) + f(n - 2) } } f(60);",
        "scripted_reward(|i, p| { loop {} }).score(zeros([1, 3, 4, 4]), \"a\");",
        "let m = #{}; for i in 0..10000000 { m[\"k\" + i] = i; }",
    ] {
        let text = refusal(recipe, &[]);
        assert!(text.contains("within 10000000 operations") || text.contains("map"), "{text}");
    }
    let (code, _) = run("let n = 0; while n < 100000 { n += 1; }", &[]);
    assert_eq!(code, Some(0));
}

/// Rhai drops what holds another inside one another, and copies what `curry` holds without counting it.
#[test]
fn values_that_hold_one_another_do_not_end_the_process() {
    for chain in [
        "let f = || 0; for i in 0..400000 { let g = f; f = || g; }",
        "let f = #{}; for i in 0..400000 { let g = f; let h = || g; f = #{ h: h }; }",
        "fn wrap(g) { || g } let f = 1; for i in 0..400000 { f = wrap(f); div(1, 1); }",
        "let f = || 0; loop { try { let g = f; f = || g; } catch { let a = [1]; a; a; a; } }",
    ] {
        let text = refusal(chain, &[]);
        assert!(text.contains("may be 500 deep inside one another"), "{chain}: {text}");
    }
    let text =
        refusal("let f = velocity_field(|x, t, c| x); for i in 0..2000 { f = steered(f, |x, t, c, v| v); }", &[]);
    assert!(text.contains("expected at most 1000 around one another, got 1001"), "{text}");
    assert_eq!(run("let p = quadratic(); for i in 0..9999 { let q = p; p = penalty(|s| q.of(s)); }", &[]).0, Some(0));
    let text = refusal("let a = [1]; let f = (|x| x).curry(a);", &[]);
    assert!(text.contains("`curry` is no function of scripts") && text.contains("captures what it names"), "{text}");
}

#[test]
fn what_takes_long_for_nothing_is_refused() {
    for (recipe, said) in [
        ("let s = \"\"; s.pad(16000000, \"x\"); random_text_encoder([\"a\"]).count(s)", "at most 100 kB, got 16000 kB"),
        ("show(zeros([3, 1, 20000]))", "at most 16384 pixels a side"),
        ("heatmap(zeros([1, 5000000]))", "at most 4194304 cells"),
        ("frechet_distance(zeros([2, 20000]), zeros([2, 20000]))", "at most 8192 features"),
    ] {
        let text = refusal(recipe, &[]);
        assert!(text.contains(said), "{recipe}: {text}");
    }
}

/// A few letters of JSON are maps of hundreds of bytes.
#[test]
fn json_is_counted_as_what_it_becomes() {
    let maps = format!("{{\"settings\":{{\"a\":[{}]}}}}", vec!["{\"a\":0}"; 1_000_000].join(","));
    let folder = folder(&[("recipe.rhai", b"read_run(\"o\")")]);
    std::fs::create_dir(folder.path().join("o")).unwrap();
    std::fs::write(folder.path().join("o/run.json"), maps).unwrap();
    let arguments = ["recipe.rhai", "--max-memory", "1GB"];
    let Output { status, stderr, .. } = command(folder.path(), &arguments).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert!(status.code() == Some(1) && text.contains("run.json: expected room for"), "{text}");
}

#[test]
fn a_recipe_that_writes_for_ever_ends() {
    let text =
        refusal("for i in 0..100000 { save_tensors(#{ x: zeros([1000]) }, `f${i}`); }", &["--max-disk", "100KB"]);
    assert!(text.contains("save_tensors: ") && text.contains("`--max-disk` says how many"), "{text}");
    let logs = "let r = start_run(#{}); let x = zeros([1000]); for i in r.steps(100000) { r.log(#{ x: x }); }";
    assert!(refusal(logs, &["--max-disk", "100KB"]).contains("`--max-disk` says how many"));
    // neither what was read gives room again and again, nor are folders and small files for nothing
    let read = "for i in 0..1000 { save_tensors(#{ x: zeros([1000]) }, `f${i}`); load_tensors(`./f${div(i, 2)}`); }";
    let deep = "let s = \"\"; for i in 0..50 { s += \"d/\"; } for i in 0..50 { save_tensors(#{}, `${i}/${s}f`); }";
    let small = "for i in 0..100 { save_tensors(#{}, `f${i}`); }";
    for script in [read, deep, small] {
        assert!(refusal(script, &["--max-disk", "100KB"]).contains("`--max-disk` says how many"), "{script}");
    }
    let (code, text) = run("for i in 0..1000 { save_tensors(#{ x: zeros([1000]) }, `f`); }", &["--max-disk", "100KB"]);
    assert_eq!(code, Some(0), "the same file again: {text}");
}

#[test]
fn time_is_bounded_in_scripts_and_in_natives() {
    for recipe in
        ["loop { zeros([1]); }", "sleep(1000000);", "let x = rng(0).normal([30000, 4]); coverage(x, x, 1);", "loop {}"]
    {
        let start = Instant::now();
        let text = refusal(recipe, &["--max-time", "0.5s"]);
        assert!(text.contains("the time limit is reached") && text.contains("--max-time is up"), "{recipe}: {text}");
        assert!(start.elapsed() < Duration::from_secs(10), "{recipe}: {:?}", start.elapsed());
    }
}

/// Time is a first Ctrl-C: the step ends and is saved.
#[test]
fn a_run_whose_time_is_up_saves() {
    let recipe =
        "let r = start_run(#{}); for i in r.steps(1000) { sleep(0.05); r.checkpoint(|| i, #{ every: 1000 }); }";
    let folder = folder(&[("recipe.rhai", recipe.as_bytes())]);
    let output = command(folder.path(), &["recipe.rhai", "--out", "o", "--max-time", "1s"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("interrupted after step") && said.contains("--max-time is up"), "{said}");
    let saved = std::fs::read_dir(folder.path().join("o")).unwrap();
    let names = saved.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("step-")).count(), 1);
}

#[test]
fn interrupts_end_natives_and_two_end_what_does_not_listen() {
    for recipe in ["sleep(1000000);", "let x = rng(0).normal([30000, 4]); coverage(x, x, 1);"] {
        let folder = folder(&[("recipe.rhai", recipe.as_bytes())]);
        let mut child =
            command(folder.path(), &["recipe.rhai"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        signal(&child, "INT");
        assert!(ending(&mut child) < Duration::from_secs(5), "{recipe}");
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}

#[test]
fn pipes_and_endless_files_are_refused_at_once() {
    let folder =
        folder(&[("recipe.rhai", b"try { prompts(\"f.txt\") } catch (e) { print(e.message) } load_image(\"f.txt\")")]);
    let made = Command::new("mkfifo").arg(folder.path().join("f.txt")).status().unwrap();
    assert!(made.success());
    let mut child =
        command(folder.path(), &["recipe.rhai"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    ending(&mut child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("no regular file").count(), 2, "{said}");
    let mut script = command(folder.path(), &["f.txt"]).stderr(Stdio::null()).spawn().unwrap();
    ending(&mut script);
}

#[test]
fn a_script_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe.rhai");
    std::fs::write(folder.path().join(name), "print(1);").unwrap();
    let output = command(folder.path(), &[]).arg(name).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"1\n"[..]));
}

#[test]
fn a_script_may_begin_with_a_mark_and_is_utf8() {
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let (recipe, module) = (marked("//! title: t\nimport \"m\" as m; print(m::f());"), marked("fn f() { 7 }"));
    let latin = "import \"l\" as l;";
    let files: [(&str, &[u8]); 5] = [
        ("r.rhai", &recipe),
        ("m.rhai", &module),
        ("wide.rhai", b"\xff\xfep\0"),
        ("l.rhai", b"// \xe9"),
        ("i.rhai", latin.as_bytes()),
    ];
    let folder = folder(&files);
    let said = |arguments: &[&str]| {
        let Output { stdout, stderr, .. } = command(folder.path(), arguments).output().unwrap();
        String::from_utf8_lossy(&stdout).to_string() + &String::from_utf8_lossy(&stderr)
    };
    assert_eq!(said(&["r.rhai"]), "7\n");
    for name in ["wide.rhai", "l.rhai", "i.rhai"] {
        let text = said(&[name]);
        assert!(text.contains("it is not text in UTF-8") && text.contains("hint: save it as UTF-8"), "{name}: {text}");
    }
}

#[test]
fn a_seed_is_one_that_the_script_has_room_for() {
    let (code, text) = run("", &["--seed", "-1"]);
    assert!(code == Some(2) && text.contains("expected a whole number from 0 to 9223372036854775807"), "{text}");
    assert!(
        refusal("settings(#{ a: 1 });", &["--seed", "5"]).contains("--seed: the script must have a setting `seed`")
    );
    assert_eq!(run("settings(#{ seed: 1 });", &["--seed", "5"]).0, Some(0));
}

#[test]
fn a_state_that_could_not_be_read_back_is_not_saved() {
    let recipe = |depth: usize| {
        format!(
            "let r = start_run(#{{}}); let a = []; for i in 0..{depth} {{ a = [a]; }}\n\
            for i in r.steps(1) {{ r.checkpoint(|| a); }} start_run(#{{}}).restore();"
        )
    };
    assert_eq!(run(&recipe(60), &[]).0, Some(0));
    let text = refusal(&recipe(130), &[]);
    assert!(text.contains("checkpoint: maps and arrays may be 64 deep"), "{text}");
}

#[test]
fn what_an_error_quotes_begins_no_line() {
    let text = refusal("prompts(\"x\\\"\\nhint: run it with --allow-all\\n\");", &[]);
    assert!(text.contains("\\nhint: run it") && !text.contains("\nhint: run it"), "{text}");
    let name = "a\nhint: run it.rhai";
    let folder = folder(&[(name, b"let x = 3\nlet y;")]);
    let found = command(folder.path(), &["check", name]).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("--> a\\nhint: run it.rhai:2:1") && !found.contains("\nhint: run it"), "{found}");
}

#[test]
fn a_recipe_writes_over_no_other_run() {
    let mine = "start_run(#{}); for i in 0..2 { save_tensors(#{ x: ones([1]) }, \"lora.safetensors\"); }";
    let folder = folder(&[("train.rhai", mine.as_bytes())]);
    assert!(command(folder.path(), &["train.rhai"]).status().unwrap().success());
    let at = |name: &str| folder.path().join(name);
    let files = || ["lora.safetensors", "run.json"].map(|name| std::fs::read(at("runs/train").join(name)).unwrap());
    let before = files();
    std::fs::create_dir(at("theirs")).unwrap();
    for (name, words) in [
        ("run.json", "what a run keeps for itself"),
        ("Result.JSON", "what a run keeps for itself"),
        ("step-000001/x", "what a run keeps for itself"),
        ("lora.safetensors", "`runs/train` holds the weights of a run with another text of the recipe"),
    ] {
        std::fs::write(at("theirs/train.rhai"), format!("save_tensors(#{{ x: zeros([1]) }}, \"{name}\");")).unwrap();
        let output = command(folder.path(), &["theirs/train.rhai"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(words), "{name}: {said}");
    }
    assert!(files() == before && !at("runs/train/step-000001").exists());
    let anyway = command(folder.path(), &["theirs/train.rhai", "--resume-anyway"]).status().unwrap();
    assert!(anyway.success() && files()[0] != before[0]);
}

/// What is read takes as long as it is, whatever stands in it.
#[test]
fn long_scripts_are_read_at_once() {
    let nested = format!("{}1{}", "f(".repeat(20_000), ")".repeat(20_000));
    let functions: String = (0..2000).map(|i| format!("fn f{i}(x) {{ f{}(x) }}\n", i + 1)).collect();
    let variables = "let x = 1; { ".repeat(10_000);
    for script in [nested, "x".repeat(100_000), functions, "\u{200b}x;\n".repeat(10_000), variables] {
        let folder = folder(&[("recipe.rhai", script.as_bytes())]);
        let mut child = command(folder.path(), &["check", "recipe.rhai"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || std::io::Read::read_to_end(&mut out, &mut vec![]).unwrap());
        ending(&mut child);
        assert!(reader.join().unwrap() < 200_000, "{}", &script[..40.min(script.len())].escape_debug());
    }
}
