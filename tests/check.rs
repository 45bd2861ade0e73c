//! `amscript check`, `recipes` and `new` from outside: scripts that are right pass, each mistake is named in its place.

use amscript::model::{Codec, Opener, Opening, Parts};
use amscript::script::check::{self, Severity};
use amscript::script::{Host, Request, Session, rename};
use amscript::tensor::Tensor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "../examples/embed.rs"]
mod embed;
#[path = "../examples/extend.rs"]
mod extend;

fn amscript(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_amscript")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into()
}

/// All scripts under a folder of the repository.
fn scripts(folder: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, out) } else { out.push(path) }
        }
    }
    let mut out = vec![];
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut out);
    out.retain(|path| path.extension().is_some_and(|e| e == "rhai"));
    out
}

#[test]
fn every_script_of_the_repository_is_clean() {
    let mut faults = vec![];
    for path in ["scripts", "stdlib", "examples"].iter().flat_map(|folder| scripts(folder)) {
        let report = check::check(Some(&path), &path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        let shown = |f: &check::Finding| format!("{}:{}: {}", path.display(), f.place().line, f.error.message);
        faults.extend(report.findings.iter().map(shown));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Script, then each finding as `line:column code message`, warnings with `?` in front.
const MISTAKES: &[(&str, &[&str])] = &[
    ("let x = 3\nlet y = 4;", &["2:1 syntax syntax error: Expecting ';' to terminate this statement"]),
    ("let x = zeroes([2]);", &["1:9 function no function `zeroes`; did you mean `zeros`?"]),
    ("let y = ones([2]);\ny.summ();", &["2:3 function no function `summ`; did you mean `sum`?"]),
    ("let policy = 1;\nprint(polcy);", &["2:7 variable no variable `polcy`; did you mean `policy`?"]),
    ("fn f(a) { a + b }\nf(1);", &["1:15 variable no variable `b`"]),
    ("let b = 1;\nfn f(a) { a + b }\nf(1);", &["2:15 variable no variable `b` here"]),
    ("let f = |x| x + z;", &["1:17 variable no variable `z`"]),
    ("let g = |z| z;\ng(2);\nlet h = |x| g(g(x));\nfn train(update) { update(1) }\ntrain(h);", &[]),
    ("let g = |z| z;\nfn f(a) { g(a) }\nf(1);", &["2:11 variable no variable `g` here"]),
    ("let g = |z| z;\ng(1) + g(b);", &["2:10 variable no variable `b`"]),
    (
        "let relu = |z| z;\nrelu(1, 2); let zeros = zeros([1]); zeros(2);",
        &["2:37 arguments `zeros`: expected (array), got (integer)"],
    ),
    ("fn f(a, b) { a + b }\nf(1);", &["2:1 arguments `f`: no form of it takes 1 argument"]),
    ("rollout(1);", &["1:1 arguments `rollout`: no form of it takes 1 argument"]),
    (
        "let y = ones([2]);\nmatmul(y, \"x\");",
        &["2:1 arguments `matmul`: expected (Tensor, Tensor), got (Tensor, string)"],
    ),
    ("print(zeros([2]).shap);", &["1:18 property a Tensor has no property `shap`; did you mean `shape`?"]),
    ("let f = |x| x.qqqzz;", &["?1:15 property nothing known has a property `qqqzz`"]),
    (
        "let f = velocity_field(|x, t, c| x);\nrollout(f, ones([1]), (), #{ gird: uniform(4), truncate: \"all\" });",
        &[
            "2:30 option rollout: unknown option `gird`; did you mean `grid`?",
            "2:58 option rollout: option `truncate`: expected a truncation such as `last(3)`, got \"all\"",
        ],
    ),
    (
        "let o = #{ gird: uniform(4) };\nlet f = velocity_field(|x, t, c| x);\nrollout(f, ones([1]), (), o);",
        &["1:12 option rollout: unknown option `gird`; did you mean `grid`?"],
    ),
    ("import \"stdlib/nothing\" as n;", &["1:8 import import: no module \"stdlib/nothing\""]),
    ("numeric::integral(|x| x, 0, 1);", &["1:10 import no module `numeric`"]),
    (
        "import \"stdlib/numeric\" as numeric;\nnumeric::integal(|x| x, 0, 1);\nnumeric::limit(1);",
        &[
            "2:10 function no function `numeric::integal`; did you mean `integral`?",
            "3:10 arguments `numeric::limit`: no form of it takes 1 argument",
        ],
    ),
    (
        "let s = settings(#{ steps: 20, unread: 3, seed: 0 });\nprint(s.stesp + s.steps);",
        &[
            "?1:32 setting the setting `unread` is never used",
            "2:9 setting s: unknown setting `stesp`; did you mean `steps`?",
        ],
    ),
    (
        "import \"stdlib/experiment\" as experiment;\nlet s = experiment::settings(#{ order: 2 });\nprint(s.stesp + s.steps + s.order);",
        &["3:9 setting s: unknown setting `stesp`; did you mean `steps`?"],
    ),
    (
        "let fs = [];\nfor i in 0..3 { fs.push(|| i); }",
        &["?2:25 capture a closure that outlives the loop sees the last `i`, not this one"],
    ),
    ("let fs = [];\nfor i in 0..3 { let mine = i; fs.push(|| mine); print([1].map(|x| x + i)); }", &[]),
    ("let m = #{ f: |x| x };\nm.f(1);\nm.g = |x| x;\nm.g(2);", &[]),
    ("def f(x):\n  x", &["1:1 syntax no variable `def`"]),
    ("let a = 1;\nlet b = not a;", &["2:9 syntax no variable `not`"]),
    ("if true { let z = 1; }\nprint(z);", &["2:7 variable no variable `z` here"]),
    ("let x = zeros([2]);\nx.shape();", &["2:3 function `shape` is a property, no function"]),
    ("let x = zeros([2]);\nx.size();", &["2:3 function no function `size`"]),
    ("let x = zeros([2]);\nlen(x);", &["2:1 arguments `len`: no form of it takes (Tensor)"]),
    ("let x = zeros([2]);\nx.cuda();", &["2:3 arguments `cuda`: expected (integer), got (Tensor)"]),
    ("let a = 1;\nprint(\"a\", a);", &["2:1 arguments `print`: no form of it takes 2 arguments"]),
    (
        "print(zeros([2]).sum() == 0);",
        &["1:24 arguments `==` and `!=` compare whole tensors, got a tensor and a number"],
    ),
    ("print(2 ^ 3);", &["?1:9 arguments `^` compares the bits of integers, it is no power"]),
    ("open(\"x\");", &["1:1 function no function `open`"]),
    ("let a = [zeros([1])];\nprint(zeros([1]));\na.push(zeros([2]));\nprint(a.contains(zeros([2])));", &[]),
    ("try { throw 1; } catch (e) { print(e); }\nswitch 3 { 1 => print(1), _ => print(2) }", &[]),
];

#[test]
fn every_mistake_is_named_in_its_place() {
    for (script, expected) in MISTAKES {
        let report = check::check(None, "script", script);
        let shown = |f: &check::Finding| {
            let mark = if f.severity == Severity::Warning { "?" } else { "" };
            format!("{mark}{}:{} {} {}", f.place().line, f.place().column, f.code, f.error.message)
        };
        let found: Vec<String> = report.findings.iter().map(shown).collect();
        assert_eq!(found, *expected, "{script}");
    }
}

#[test]
fn neighbouring_modules_are_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("part.rhai"), "fn double(x) { x * two }").unwrap();
    std::fs::write(folder.path().join("main.rhai"), "import \"part\" as part;\npart::double(1);\npart::triple(1);")
        .unwrap();
    let output = amscript(folder.path(), &["check", "main.rhai", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json[0]["line"], &json[0]["column"], &json[0]["end_column"]), (&3.into(), &7.into(), &13.into()));
    assert_eq!((&json[0]["severity"], &json[0]["code"]), (&"error".into(), &"function".into()));
    assert!(
        json[1]["file"].as_str().unwrap().ends_with("part.rhai") && json[1]["message"] == "no variable `two`",
        "{json}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "a check writes nothing");
}

#[test]
fn a_script_without_old_names_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let script = "// some_steps\r\nlet x = ones([2]);\nprint(x);";
    std::fs::write(folder.path().join("a.rhai"), script).unwrap();
    assert!(amscript(folder.path(), &["check", "--fix", "a.rhai"]).status.success());
    assert_eq!(std::fs::read_to_string(folder.path().join("a.rhai")).unwrap(), script);
}

/// A recipe of before the renaming.
const OLD: &str = r#"// recompute: some_steps, same_step()
let s = settings(#{ recompute: true, steps: 2 });
let base = flow("tiny/flux2", #{ recompute: true });
let policy = base.lora(#{ rank: 2 });
let x0 = base.noise(2, rng(0));
let c = base.encode(["a", "b"]);
let cost = terminal_cost(|images| images.mean([1, 2, 3]));
let o = #{ grid: uniform(s.steps), matched: some_steps(1, 0), rng: rng(1), recompute: s.recompute };
let update = adjoint_matching(policy, base, x0, c, cost, o + #{ rolled: base, carrying: base, criterion: fitting(), index: same_step() });
let path = rollout(policy, x0, c, #{ grid: uniform(s.steps), keep: last(1) });
let adjoint = lean_adjoint(base, path, path.terminal_gradient(cost), #{ index: next_step() });
print([fenchel_loss(policy, path, adjoint, quadratic()), fenchel(), update.reward]);
"#;

#[test]
fn an_old_recipe_is_rewritten_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.rhai");
    std::fs::write(&file, OLD).unwrap();
    assert!(!amscript(folder.path(), &["check", "old.rhai"]).status.success());
    let output = amscript(folder.path(), &["check", "--fix", "old.rhai"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    let fixed = std::fs::read_to_string(&file).unwrap();
    assert!(check::check(None, "old", &fixed).findings.is_empty());
    for line in [
        "// recompute: some_steps, same_step()",
        "flow(\"tiny/flux2\", #{ checkpoint_blocks: true })",
        "loss_steps: random_steps(1, 0), rng: rng(1), checkpoint_steps: s.recompute",
        "rollout_policy: base, adjoint_model: base, loss: automatic(), index: paper_adjoint()",
        "truncate: last(1)",
        "fenchel_young_loss(policy, path, adjoint, quadratic()), fenchel_young()",
    ] {
        assert!(fixed.contains(line), "{line}\n{fixed}");
    }
    let output = amscript(folder.path(), &["old.rhai"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn an_old_name_is_refused_with_the_new_one() {
    let update = "let f = velocity_field(|x, t, c| x); let cost = terminal_cost(|x| x.sum(1));";
    for (old, new) in rename::RENAMED {
        let script = match old.split_once('.') {
            None => format!("{old}()"),
            Some(("--set", _)) => continue, // still taken: `a_setting_is_taken_by_its_old_name`
            Some(("adjoint_matching", option)) => format!("adjoint_matching(#{{ {option}: 1 }})"),
            Some(("rollout", option)) => format!("{update} rollout(f, ones([1, 1]), (), #{{ {option}: 1 }})"),
            Some((function, option)) => format!("{function}(\"tiny/flux2\", #{{ {option}: 1 }})"),
        };
        let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        let error = host.run("script", &script).err().unwrap();
        let old = old.split_once('.').map_or(*old, |(_, option)| option);
        assert!(error.message.ends_with(&format!("`{old}` is now `{new}`")), "{script}: {error}");
    }
    for (old, new) in rename::MODULES {
        let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        let error = host.run("script", &format!("import \"{old}\" as m;")).err().unwrap();
        assert_eq!(error.hint.unwrap(), format!("it is now \"{new}\""));
    }
}

#[test]
fn a_setting_is_taken_by_its_old_name() {
    let folder = tempfile::tempdir().unwrap();
    for (old, new) in rename::RENAMED.iter().filter_map(|(old, new)| Some((old.strip_prefix("--set.")?, new))) {
        std::fs::write(folder.path().join("a.rhai"), format!("print(settings(#{{ {new}: 8 }}));")).unwrap();
        let output = amscript(folder.path(), &["a.rhai", "--set", &format!("{old}=1")]);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("#{{\"{new}\": 1}}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("warning: --set: the setting `{old}` is now `{new}`")), "{said}");
    }
}

#[test]
fn warnings_alone_do_not_fail() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.rhai"), "let s = settings(#{ unread: 3 });").unwrap();
    let output = amscript(folder.path(), &["check", "a.rhai"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stdout).contains("warning: the setting `unread`") && text(&output.stdout).contains("1 warning")
    );
}

#[test]
fn recipes_are_listed_printed_and_run_without_the_repository() {
    let folder = tempfile::tempdir().unwrap();
    let list = text(&amscript(folder.path(), &["recipes"]).stdout);
    for name in ["flux_ode_am ", "tables/flux ", "theory/tilt ", "examples/custom_reward "] {
        assert!(list.contains(name), "{list}");
    }
    let line = list.lines().find(|line| line.contains("  flux_ode_am ")).unwrap();
    assert!(
        line.contains("  Aligns a FLUX.2 model by truncated") && line.ends_with("  a minute on two cores"),
        "{line}"
    );
    let source = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tables/flux.rhai")).unwrap();
    assert!(amscript(folder.path(), &["recipes", "tables/flux"]).stdout == source);
    let settings = text(&amscript(folder.path(), &["recipes", "flux_ode_am", "--settings"]).stdout);
    for words in ["Aligns a FLUX.2 model by", "truncate", "`last(K)`", "held_out", "prompts that training never sees"] {
        assert!(settings.contains(words), "{words}: {settings}");
    }
    for (recipe, pair, wanted) in [
        ("flux_ode_am", "rate=true", "`rate` must be a value such as cosine(0.002), got true"),
        ("flux_ode_am", "order_of=2", "unknown setting `order_of`"),
        ("tables/noise", "seeds=[0, 0]", "seeds must be different whole numbers from 0 on, such as [0, 1], got [0, 0]"),
        ("tables/noise", "seeds=[]", "seeds must be different whole numbers"),
        ("tables/noise", "seed=5", "a table takes seeds=[5], got seed = 5"),
    ] {
        let refused = text(&amscript(folder.path(), &[recipe, "--set", pair]).stderr);
        assert!(refused.contains(wanted), "{refused}");
    }
    let few = ["evaluate", "--set", "test_prompts=1", "--set", "runs=[\"none\"]"];
    let refused = text(&amscript(folder.path(), &few).stderr);
    assert!(refused.contains("neighbours must be at least 1 and at most 4, of the 6 images"), "{refused}");
    let set = [
        "iterations=1",
        "batch=1",
        "steps=2",
        "truncate=last(2)",
        "rank=2",
        "test_prompts=1",
        "images_per_prompt=2",
        "watch=[]",
    ];
    let set: Vec<&str> = set.iter().flat_map(|pair| ["--set", pair]).collect();
    let output = amscript(folder.path(), &[&["flux_ode_am"], &set[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(folder.path().join("runs/flux_ode_am/lora.safetensors").exists());
    let unknown = text(&amscript(folder.path(), &["flux_ode_an"]).stderr);
    assert!(unknown.contains("did you mean the recipe `flux_ode_am`?"), "{unknown}");
}

#[test]
fn a_new_script_checks_clean_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let made = amscript(folder.path(), &["new", "mine"]);
    assert!(made.status.success() && text(&made.stdout).contains("amscript check mine.rhai"));
    assert!(amscript(folder.path(), &["check", "mine.rhai"]).status.success());
    let again = text(&amscript(folder.path(), &["new", "mine"]).stderr);
    assert!(again.contains("\"mine.rhai\" must not exist yet"), "{again}");
    let set = ["iterations=2", "batch=2", "steps=3", "rank=2", "shown=2"];
    let set: Vec<&str> = set.iter().flat_map(|pair| ["--set", pair]).collect();
    let output = amscript(folder.path(), &[&["mine.rhai"], &set[..]].concat());
    assert!(output.status.success() && text(&output.stdout).contains("reward"), "{}", text(&output.stderr));
    assert!(folder.path().join("runs/mine/images").exists());
    for (name, from) in [("am", "flux_ode_am"), ("weighted", "policy/awm")] {
        assert!(amscript(folder.path(), &["new", name, "--from", from]).status.success());
        let copy = std::fs::read_to_string(folder.path().join(name).with_extension("rhai")).unwrap();
        for words in [format!("`amscript {name}.rhai`"), format!("//! expect: of {from}, before changes: ")] {
            assert!(copy.contains(&words), "{copy}");
        }
    }
}

#[test]
fn every_example_runs() {
    let folder = tempfile::tempdir().unwrap();
    for (name, set, wanted) in [
        ("custom_reward", &[][..], "the gradient's size"),
        ("custom_penalty", &[], "quadratic"),
        ("custom_sampler", &[], "midpoint"),
        ("score_images", &["--set", "steps=2"], "tiny/clip"),
    ] {
        let output = amscript(folder.path(), &[&[name], set].concat());
        assert!(text(&output.stdout).contains(wanted), "{name}: {}", text(&output.stderr));
    }
    embed::main().unwrap();
}

struct Shapeless;

impl Codec for Shapeless {
    fn latent_shape(&self, _: Option<&[usize]>) -> amscript::Result<Vec<usize>> {
        Ok(vec![])
    }

    fn encode(&self, images: &Tensor) -> amscript::Result<Tensor> {
        Ok(images.clone())
    }

    fn decode(&self, latents: &Tensor) -> amscript::Result<Tensor> {
        Ok(latents.clone())
    }
}

/// A program's own family and reward are aligned by a script; what it registers twice, or lacks, is named.
#[test]
fn a_program_adds_its_own_family_reward_and_method() {
    use amscript::script::{Host, Request, Session};
    let host = || Host::new(Session::new(Request::default(), Box::new(|_| ())));
    extend::main().unwrap();
    let mut own = host();
    let [before, after] = extend::run(&mut own).unwrap();
    assert!(after > before + 0.1, "{before} before, {after} after");
    let refused = |script: &str| own.run("script", script).err().unwrap().message;
    let twice = own.register_family(extend::FAMILY).err().unwrap().message;
    assert_eq!(twice, "register_family: expected a new name, got `colours`, which is there already");
    let built_in = amscript::reward::Opener { name: "hpsv2", ..extend::REWARD };
    let twice = own.register_reward(built_in).err().unwrap().message;
    assert_eq!(twice, "register_reward: expected a new name, got `hpsv2`, which is there already");
    assert!(refused("flow(\"colours\", #{ classes: [\"a\"] })").contains("family `colours` has no option `classes`"));
    assert!(refused("flow(\"colours\").encode([3])").contains("takes prompts, got 1 labels"));
    let shapeless = |opening: &Opening| {
        let (parts, weights) = (extend::FAMILY.open)(opening)?;
        Ok((Parts { codec: std::sync::Arc::new(Shapeless), ..parts }, weights))
    };
    let lacking =
        Opener { name: "lacking", recognises: |found| found.name == "nothing", open: shapeless, ..extend::FAMILY };
    own.register_family(lacking).unwrap();
    let lacks = refused("flow(\"nothing\")");
    assert_eq!(lacks, "nothing: the codec of `lacking` must give the shape of one sample's latents, got []");
    // another host knows nothing of it
    let other = host().run("script", "flow(\"colours\")").err().unwrap().message;
    assert!(other.starts_with("expected a model folder or name, got `colours`"), "{other}");
}
