//! What a recipe may reach: nothing outside its own folder, the model folders and its run's folder, unless a flag allows it.
#![cfg(unix)]

use amscript::permissions::{Allowed, Rights};
use amscript::script::catalog::Catalog;
use amscript::script::{Host, Request, Session};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SECRET: &str = "TOPSECRET";

/// `rec/` for a recipe, with links in it that lead out; `outside/` with a file and a folder; `home/`; the recipe's run goes to `rec/run`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for folder in ["rec/run/images", "outside/afolder", "home"] {
            std::fs::create_dir_all(place.at(folder)).unwrap();
        }
        std::fs::write(place.at("outside/afile"), SECRET).unwrap();
        std::fs::write(place.at(&format!("outside/afolder/{SECRET}")), SECRET).unwrap();
        std::fs::write(place.at("rec/recipe.rhai"), "").unwrap();
        symlink(place.at("outside"), place.at("rec/link")).unwrap();
        symlink(place.at("outside"), place.at("rec/run/link")).unwrap();
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(path)
    }

    /// Ways to what lies outside.
    fn ways(&self) -> [String; 3] {
        [self.at("outside").display().to_string(), "../outside".into(), "link".into()]
    }

    /// What a recipe's last value or error says.
    fn said(&self, code: &str, allow: Rights<PathBuf>) -> Result<String, String> {
        let (script, out) = (Some(self.at("rec/recipe.rhai")), Some(self.at("rec/run")));
        let host = Host::new(Session::new(Request { script, out, allow, ..Request::default() }, Box::new(|_| ())));
        host.run("recipe", code).map(|value| value.to_string()).map_err(|e| e.to_string())
    }

    /// Names below `outside`.
    fn outside(&self) -> Vec<String> {
        let names = |folder: &str| std::fs::read_dir(self.at(folder)).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names("outside").chain(names("outside/afolder")).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    fn amscript(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
        command.current_dir(self.0.path()).args(arguments).env("HOME", self.at("home")).env_remove("AMSCRIPT_DEVICE");
        command.output().unwrap()
    }

    /// What the command says of a recipe.
    fn run(&self, recipe: &str, arguments: &[&str]) -> String {
        std::fs::write(self.at("rec/recipe.rhai"), recipe).unwrap();
        let output = self.amscript(&[&["rec/recipe.rhai"], arguments].concat());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }
}

fn reading(path: &Path) -> Rights<PathBuf> {
    Rights { read: Allowed::These(vec![path.into()]), ..Rights::default() }
}

fn writing(path: &Path) -> Rights<PathBuf> {
    Rights { write: Allowed::These(vec![path.into()]), ..Rights::default() }
}

/// Text parameters that name nothing on disk: function and parameter.
const NAMES: &[(&str, &str)] = &[
    ("apropos", "word"),
    ("options", "function"),
    ("split", "name"),
    ("is_scene", "text"),
    ("rng", "name"),
    ("progress", "what"),
    ("read_log", "name"),
    ("lpips_net", "net"),
    ("trainable", "part"),
    ("count", "prompt"),
    ("[]", "name"),
];

/// Calls with a path in each of the others, by function and the parameters' types.
const READS: &[(&str, &str)] = &[
    ("load_tensors(string)", "load_tensors(P)"),
    ("flow(string, map)", "flow(P)"),
    ("autoencoder(string)", "autoencoder(P)"),
    ("load_lora(Flow, string, map)", "flow(\"tiny/flux2\").load_lora(P)"),
    ("reward(string, map)", "reward(P)"),
    ("prompts(string)", "prompts(P)[0]"),
    ("load_image(string)", "load_image(P)"),
    ("read_run(string)", "read_run(P)"),
    ("read_log(string, string)", "read_log(P, \"loss\")"),
    ("lpips(string, map)", "lpips(P)"),
];
const WRITES: &[(&str, &str)] = &[
    ("save_tensors(map, string)", "save_tensors(#{ x: zeros([1]) }, P)"),
    ("save(Flow, string, map)", "flow(\"tiny/sit\").save(P)"),
    (
        "save(Autoencoder, string, map)",
        "autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0)).save(P)",
    ),
    ("save_lora(Flow, string, map)", "flow(\"tiny/flux2\").lora().save_lora(P)"),
    ("save(Reward, string)", "reward(\"tiny/hpsv2\").save(P)"),
    ("save_image(Tensor, string)", "save_image(zeros([3, 8, 8]), P + \".png\")"),
    ("save_image(Plot, string)", "save_image(plot([1, 2]), P + \".svg\")"),
    ("images(Run, string, Plot)", "start_run(#{}).images(P, plot([1, 2]))"),
    ("images(Run, string, Tensor)", "start_run(#{}).images(P, zeros([3, 8, 8]))"),
    ("images(Run, string, Tensor, any)", "start_run(#{}).images(P, zeros([1, 3, 8, 8]), [\"text\"])"),
    ("save_results(map, string)", "save_results(#{ a: #{ b: [1.0] } }, P)"),
    ("save_results(array, string, map)", "save_results([#{ name: \"a\", b: [1.0] }], P)"),
    ("save(Distance, string)", "lpips(\"tiny/lpips\").save(P)"),
    ("save(TextEncoder, string)", "random_text_encoder([\"a\"]).save(P)"),
];
/// Options that name files to read: a call with the option.
const OPTIONS: &[(&str, &str)] = &[
    ("flow", "flow(\"tiny/flux2\", O)"),
    ("reward", "reward(\"tiny/hpsv2\", O)"),
    ("lpips", "lpips(\"tiny/lpips\", O)"),
];
/// Options of text that name nothing on disk; `name` of `start_run` is written below the run's folder.
const CHOICES: &[&str] = &[
    "family", "kind", "version", "resize", "crop", "prefix", "layout", "net", "range", "title", "x_label", "y_label",
    "name",
];

/// The natives of the manual that take text, as `function(types)`.
fn natives() -> Vec<(String, Vec<String>)> {
    let mut out = vec![];
    for entry in &Catalog::get().entries {
        for overload in &entry.overloads {
            let texts = overload.parameters.iter().filter(|(_, kind)| kind == "string");
            let texts: Vec<String> = texts.map(|(name, _)| name.clone()).collect();
            let types: Vec<&str> = overload.parameters.iter().map(|(_, kind)| kind.as_str()).collect();
            let paths = texts.iter().any(|text| !NAMES.contains(&(entry.name.as_str(), text.as_str())));
            if paths {
                out.push((format!("{}({})", entry.name, types.join(", ")), texts));
            }
        }
    }
    out
}

#[test]
fn every_native_that_takes_text_is_in_the_tables() {
    let known = |native: &str| READS.iter().chain(WRITES).any(|(name, _)| *name == native);
    let unknown: Vec<_> = natives().into_iter().filter(|(native, _)| !known(native)).collect();
    assert!(unknown.is_empty(), "a path, or a name for NAMES? {unknown:#?}");
    let native = |name: &str| natives().iter().any(|(native, _)| native == name);
    let gone: Vec<_> = READS.iter().chain(WRITES).filter(|(name, _)| !native(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");
}

#[test]
fn no_native_reads_outside() {
    let place = Place::new();
    let mut faults = vec![];
    for (native, call) in READS {
        for way in place.ways() {
            let said = |path: &str, allow| place.said(&call.replace('P', &format!("\"{way}/{path}\"")), allow);
            let refused = ["afile", "afolder", "anothing"].map(|path| said(path, Rights::default()));
            let names_flag = |said: &Result<String, String>| said.as_ref().is_err_and(|e| e.contains("--allow-read"));
            // the same whether it is there or not
            let told = refused
                .iter()
                .zip(["afile", "afolder", "anothing"])
                .map(|(said, path)| format!("{said:?}").replace(path, "_"));
            let told: std::collections::BTreeSet<String> = told.collect();
            if !refused.iter().all(names_flag) || told.len() != 1 || format!("{refused:?}").contains(SECRET) {
                faults.push(format!("{native} of {way}: {told:#?}"));
            }
            let allowed = ["afile", "afolder"].map(|path| said(path, reading(&place.at("outside"))));
            if allowed.iter().any(names_flag) {
                faults.push(format!("{native} of {way}, allowed: {allowed:#?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_option_reads_outside() {
    let place = Place::new();
    let mut faults = vec![];
    for entry in &Catalog::get().entries {
        let texts =
            entry.options.iter().filter(|field| field.expected.contains("text") && !field.expected.contains("array"));
        for field in texts.filter(|field| !CHOICES.contains(&field.name)) {
            let Some((_, call)) = OPTIONS.iter().find(|(name, _)| *name == entry.name) else {
                faults.push(format!("option `{}` of {}: a path, or a name for CHOICES?", field.name, entry.name));
                continue;
            };
            for way in &place.ways()[..2] {
                let option = format!("#{{ {}: \"{way}/afile\" }}", field.name);
                let said = place.said(&call.replace('O', &option), Rights::default());
                if !said.as_ref().is_err_and(|e| e.contains("--allow-read") && !e.contains(SECRET)) {
                    faults.push(format!("{} {option}: {said:?}", entry.name));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_native_writes_outside() {
    let place = Place::new();
    let before = place.outside();
    let mut faults = vec![];
    for (native, call) in WRITES {
        let ways = place.ways();
        for (i, way) in ways.iter().enumerate() {
            // from the images' folder one more step leads out
            let way = if native.starts_with("images") && i == 1 { "../../../outside" } else { way };
            let said = place.said(&call.replace('P', &format!("\"{way}/new\"")), Rights::default());
            if said.is_ok() || place.outside() != before {
                faults.push(format!("{native} in {way}: {said:?}, {:?}", place.outside()));
            }
        }
        let allowed = place.said(&call.replace('P', &format!("\"{}/new\"", ways[0])), writing(&place.at("outside")));
        if !native.starts_with("images") && (allowed.is_err() || place.outside() == before) {
            faults.push(format!("{native}, allowed: {allowed:?}"));
        }
        for name in place.outside().iter().filter(|name| name.starts_with("new")) {
            let path = place.at(&format!("outside/{name}"));
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn links_in_a_run_folder_lead_nowhere() {
    let place = Place::new();
    std::fs::remove_dir(place.at("rec/run/images")).unwrap();
    symlink(place.at("outside"), place.at("rec/run/images")).unwrap();
    let before = place.outside();
    for code in [
        "start_run(#{}, #{ name: \"link/c\" })",
        "start_run(#{}).images(\"d\", zeros([2, 3, 8, 8]))",
        "start_run(#{}, #{ name: \"../outside\" })",
    ] {
        let said = place.said(code, Rights::default());
        assert!(said.is_err() && place.outside() == before, "{code}: {said:?}");
    }
    // nor does the folder itself, where the command line does not name it
    std::fs::create_dir(place.at("runs")).unwrap();
    symlink(place.at("outside"), place.at("runs/recipe")).unwrap();
    let said = place.run("start_run(#{}); save_tensors(#{ x: zeros([1]) }, \"x.safetensors\");", &[]);
    assert!(said.contains("error:") && place.outside() == before, "{said}");
    let said = place.run("save_tensors(#{ x: zeros([1]) }, \"x.safetensors\");", &["--out", "runs/recipe"]);
    assert!(said.is_empty() && place.outside() != before, "{said}");
}

#[test]
fn what_is_hidden_is_not_part_of_a_recipes_folder() {
    let place = Place::new();
    std::fs::create_dir(place.at("rec/.ssh")).unwrap();
    std::fs::write(place.at("rec/.ssh/id"), SECRET).unwrap();
    std::fs::write(place.at("rec/prompts.txt"), "a ring").unwrap();
    let read = |path: &str| place.run(&format!("print(prompts(\"{path}\")[0]);"), &[]);
    assert_eq!(read("prompts.txt"), "a ring\n");
    assert!(
        ["id", "nothing"]
            .iter()
            .all(|name| read(&format!(".ssh/{name}")).contains(&format!("--allow-read=rec/.ssh/{name}`")))
    );
    assert_eq!(place.run("print(prompts(\".ssh/id\")[0]);", &["--allow-read=rec/.ssh"]), format!("{SECRET}\n"));
    // a recipe in the home folder has none of its own
    std::fs::write(place.at("home/prompts.txt"), SECRET).unwrap();
    std::fs::write(place.at("home/recipe.rhai"), "print(prompts(\"prompts.txt\")[0]);").unwrap();
    let run = |arguments: &[&str]| String::from_utf8(place.amscript(arguments).stdout).unwrap();
    assert_eq!(run(&["home/recipe.rhai"]), "");
    assert_eq!(run(&["home/recipe.rhai", "--allow-read=home"]), format!("{SECRET}\n"));
}

#[test]
fn links_lead_from_one_allowed_folder_to_another() {
    let place = Place::new();
    std::fs::create_dir_all(place.at("hub/blobs")).unwrap();
    std::fs::write(place.at("hub/blobs/p"), "a ring").unwrap();
    std::fs::create_dir(place.at("models")).unwrap();
    symlink("../hub/blobs", place.at("models/m")).unwrap();
    symlink(place.at("models/m/p"), place.at("rec/p.txt")).unwrap();
    let read = |arguments: &[&str]| place.run("print(prompts(\"p.txt\")[0]);", arguments);
    assert!(read(&[]).contains("--allow-read=rec/p.txt`"));
    assert!(read(&["--models", "models"]).contains("--allow-read=rec/p.txt`"));
    for allow in [
        "--allow-read=hub",
        "--allow-read",
        "--allow-all",
        "--allow-read=rec/p.txt",
        "--allow-read=nothing,hub/blobs/p",
    ] {
        assert_eq!(read(&["--models", "models", allow]), "a ring\n", "{allow}");
    }
}

#[test]
fn what_the_command_line_names_is_readable_and_its_values_read_nothing() {
    let place = Place::new();
    let recipe = "let s = settings(#{ file: \"\", x: 1 }); print(prompts(s.file)[0]);";
    assert_eq!(place.run(recipe, &["--set", "file=outside/afile"]), format!("{SECRET}\n"));
    let path = place.at("outside/afile").display().to_string();
    let said = place.run("settings(#{ x: [\"\"] });", &["--set", &format!("x=[prompts(\"{path}\")[0]]")]);
    assert!(said.contains("may not read") && !said.contains(SECRET), "{said}");
}

#[test]
fn a_prompt_has_the_users_rights() {
    let place = Place::new();
    let file = place.at("outside/afile").display().to_string();
    let output = place.amscript(&["--eval", &format!("prompts(\"{file}\")[0]")]);
    assert!(String::from_utf8(output.stdout).unwrap().contains(SECRET));
}

#[test]
fn a_script_named_with_dots_writes_below_runs() {
    let place = Place::new();
    std::fs::write(
        place.at("rec/...rhai"),
        "save_tensors(#{ x: zeros([1]) }, \"home/x.safetensors\"); start_run(#{});",
    )
    .unwrap();
    assert!(place.amscript(&["rec/...rhai"]).status.success());
    assert!(place.at("runs/script/home/x.safetensors").exists() && !place.at("run.json").exists());
}

#[test]
fn what_is_shown_without_a_run_is_private() {
    let place = Place::new();
    let said = place.run("show(zeros([3, 8, 8])); show(ones([3, 8, 8]));", &[]);
    let files: Vec<PathBuf> = said.lines().map(|line| line.rsplit_once(": ").unwrap().1.into()).collect();
    let folder = files[0].parent().unwrap();
    assert!(files.len() == 2 && files.iter().all(|file| file.exists() && file.parent() == Some(folder)), "{said}");
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_report_copies_nothing_from_outside_and_waits_for_no_pipe() {
    let place = Place::new();
    std::fs::create_dir_all(place.at("r/images")).unwrap();
    let png = place.at("outside/x.png");
    image::RgbImage::new(4, 4).save(&png).unwrap();
    std::fs::write(place.at("outside/x.json"), format!("{{\"settings\":{{\"k\":\"{SECRET}\"}}}}")).unwrap();
    for link in ["run.json", "result.json"] {
        symlink(place.at("outside/x.json"), place.at(&format!("r/{link}"))).unwrap();
    }
    assert!(!place.amscript(&["report", "r"]).status.success() && !place.at("r/report.html").exists());
    std::fs::remove_file(place.at("r/run.json")).unwrap();
    std::fs::write(place.at("r/run.json"), "{}").unwrap();
    symlink(&png, place.at("r/images/a-000001.png")).unwrap();
    image::RgbImage::new(4, 4).save(place.at("r/images/b-000001.png")).unwrap();
    assert!(Command::new("mkfifo").arg(place.at("r/metrics.jsonl")).status().unwrap().success());
    let output = place.amscript(&["report", "r"]);
    let (page, said) =
        (std::fs::read_to_string(place.at("r/report.html")).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((page.matches("data:image/png").count(), page.contains(SECRET)), (1, false), "{said}");
    assert!(said.contains("no regular file") && said.matches("leads out of the run's folder").count() == 2, "{said}");
}
