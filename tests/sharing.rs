//! What a recipe, a LoRA, an image tell of themselves; locks; runs that are repeated.

use std::path::{Path, PathBuf};
use std::process::Command;

const RECIPE: &str = "//! Prose.
//! ---
//! title: Rings
//! models: tiny/flux2
//! permissions: read=more
//! ---
import \"own\" as own;
let s = settings(#{ rate: 0.5, iterations: 20, model: \"tiny/flux2\", other: (), grid: uniform(3), few: [1, \"a\"], kept: #{ x: 1.5 } });
let all = prompts(\"p.txt\");
let run = start_run(s);
for i in run.steps(s.iterations) { run.log(#{ loss: own::half(s.rate) * i, time: 0.1 }); }
run.images(\"a\", zeros([3, 8, 8]));
run.save(flow(s.model).lora(#{ rank: 1 }));
";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.at("more")).unwrap();
        for (name, text) in
            [("recipe.rhai", RECIPE), ("own.rhai", "fn half(x) { x / 2 }"), ("p.txt", "a ring"), ("q.txt", "a dot")]
        {
            std::fs::write(place.at(name), text).unwrap();
        }
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Whether the command ended well, and what it said.
    fn amscript(&self, arguments: &str) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
        command.current_dir(self.0.path()).args(arguments.split(' ')).env_remove("AMSCRIPT_DEVICE");
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn well(&self, arguments: &str) -> String {
        let (well, said) = self.amscript(arguments);
        assert!(well, "{arguments}: {said}");
        said
    }

    fn refused(&self, arguments: &str) -> String {
        let (well, said) = self.amscript(arguments);
        assert!(!well, "{arguments}: {said}");
        said
    }

    fn change(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.at(name)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(self.at(name), text.replace(from, to)).unwrap();
    }
}

fn hash(path: &Path) -> String {
    amscript::nn::digest::hash(&std::fs::read(path).unwrap())
}

#[test]
fn info_tells_what_a_recipe_asks_for_without_running_it() {
    let place = Place::new();
    let said = place.well("info recipe.rhai");
    for words in [
        "title        Rings",
        "needs        --allow-read=more",
        "import       own",
        "prompts      p.txt",
        "model        tiny/flux2",
        "iterations  20",
        "lock         none",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!place.at("runs").exists());
    place.change("recipe.rhai", "title:", "titel:");
    for command in ["info", "check", "run", "lock"] {
        assert!(
            place.refused(&format!("{command} recipe.rhai")).contains("unknown key `titel`; did you mean `title`?")
        );
    }
}

#[test]
fn a_recipe_runs_with_the_permissions_it_asks_for_or_not_at_all() {
    let place = Place::new();
    assert!(place.refused("recipe.rhai").contains("the recipe asks for --allow-read=more"));
    assert!(!place.at("runs").exists());
}

#[test]
fn loras_and_images_tell_recipe_and_lock() {
    let place = Place::new();
    place.well("lock recipe.rhai --allow-read=more");
    place.well("recipe.rhai --allow-read=more");
    let (recipe, lock) = (hash(&place.at("recipe.rhai")), hash(&place.at("recipe.lock")));
    for file in ["runs/recipe/lora.safetensors", "runs/recipe/images/a.png"] {
        let said = place.well(&format!("info {file}"));
        assert!(
            said.contains(&format!("recipe     {recipe}")) && said.contains(&format!("lock       {lock}")),
            "{said}"
        );
    }
    assert!(image::open(place.at("runs/recipe/images/a.png")).is_ok());
}

#[test]
fn a_frozen_run_refuses_what_differs_from_its_lock() {
    let place = Place::new();
    let frozen = "recipe.rhai --allow-read=more --frozen";
    assert!(place.refused(frozen).contains("`amscript lock` writes one"));
    place.well("lock recipe.rhai --allow-read=more");
    assert!(place.well("lock recipe.rhai --allow-read=more").starts_with("nothing has changed"));
    place.well(frozen);
    // once more, over the run that is there
    place.well(frozen);
    for (name, from, to) in [("p.txt", "ring", "dot"), ("own.rhai", "/ 2", "/ 3")] {
        place.change(name, from, to);
        assert!(place.refused(frozen).contains(&format!("`recipe/{name}` differs from the lock")));
        place.change(name, to, from);
    }
    std::fs::rename(place.at("p.txt"), place.at("r.txt")).unwrap();
    assert!(place.refused(frozen).contains("`recipe/p.txt` of the lock is not here"));
    std::fs::rename(place.at("r.txt"), place.at("p.txt")).unwrap();
    std::fs::remove_dir_all(place.at("runs")).unwrap();
    place.change("recipe.rhai", "0.5", "0.25");
    assert!(place.refused(frozen).contains("the recipe `recipe.rhai` differs from its lock"));
    // what the lock does not list is not read
    place.change("recipe.rhai", "prompts(\"p.txt\")", "prompts(if s.rate == 0.5 { \"q.txt\" } else { \"p.txt\" })");
    place.well("lock recipe.rhai --allow-read=more");
    place.well(frozen);
    assert!(place.refused(&format!("{frozen} --set rate=0.5")).contains("it is not in the lock"));
}

#[test]
fn verify_says_same_or_different() {
    let place = Place::new();
    place.well("recipe.rhai --allow-read=more --set rate=0.25");
    let verify = "verify runs/recipe --recipe recipe.rhai";
    assert_eq!(place.well(verify), "same: 3 steps, every number equal\n");
    assert_eq!(place.well(&format!("{verify} --steps 5")), "same: 5 steps, every number equal\n");
    place.change("runs/recipe/metrics.jsonl", "0.125", "0.12500001");
    assert!(place.well(verify).starts_with("within tolerance: 3 steps, largest relative difference 8.0e-8"));
    place.change("runs/recipe/metrics.jsonl", "0.12500001", "0.5");
    assert_eq!(place.refused(verify), "different: `loss` at step 2: 0.5 in the run, 0.125 now\n");
    place.change("own.rhai", "/ 2", "/ 4");
    assert!(place.refused(verify).starts_with("different: `loss` at step 2"));
    place.change("recipe.rhai", "Prose", "Other");
    assert!(place.refused(verify).contains("is not that of the run"));
    // without the recipe's file its modules are not read: the settings of a run name nothing
    assert!(place.refused("verify runs/recipe").contains("import: only"));
}
