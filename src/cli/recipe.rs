//! The recipes in the binary: `amscript recipes` lists them, `amscript new` starts a script from one, and a script's name that
//! is no file is looked for among them.

use super::{NewArgs, output, setting};
use crate::script::header::Header;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, nearest};
use amscript_base::file;
use amscript_base::text::{AS_UTF8, decoded};
use include_dir::{Dir, include_dir};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

static SCRIPTS: Dir = include_dir!("$CARGO_MANIFEST_DIR/scripts");
static EXAMPLES: Dir = include_dir!("$CARGO_MANIFEST_DIR/examples");

/// What `amscript new` starts from unless told.
const TEMPLATE: &str = "examples/own_method";

/// A script that travels in the binary.
pub struct Recipe {
    /// `flux_ode_am`, `tables/flux`, `examples/custom_reward`.
    pub name: String,
    pub text: &'static str,
}

impl Recipe {
    /// Its title, and what is to be expected first of all: the time that it takes.
    fn told(&self) -> [String; 2] {
        let header = Header::read(self.text).unwrap_or_default();
        let get = |key| header.get(key).unwrap_or_default();
        [get("title").into(), get("expect").split(';').next().unwrap_or_default().into()]
    }

    fn folder(&self) -> &str {
        self.name.rsplit_once('/').map_or("", |(folder, _)| folder)
    }
}

/// All of them: methods first, then folder by folder.
pub fn all() -> Vec<Recipe> {
    fn walk(dir: &'static Dir, prefix: &str, out: &mut Vec<Recipe>) {
        for file in dir.files() {
            let name = file.path().with_extension("").display().to_string().replace('\\', "/");
            let script = file.path().extension().is_some_and(|e| e == "rhai");
            if let Some(text) = file.contents_utf8().filter(|_| script) {
                out.push(Recipe { name: format!("{prefix}{name}"), text });
            }
        }
        dir.dirs().for_each(|inner| walk(inner, prefix, out));
    }
    let mut out = vec![];
    walk(&SCRIPTS, "", &mut out);
    walk(&EXAMPLES, "examples/", &mut out);
    out.sort_by(|a, b| (a.folder(), &a.name).cmp(&(b.folder(), &b.name)));
    out
}

/// The recipe of a name, which may be a path in the repository: `flux_ode_am`, `scripts/flux_ode_am.rhai`, `custom_reward`.
pub fn named(name: &str) -> Option<Recipe> {
    let name = name.strip_suffix(".rhai").unwrap_or(name);
    let name = name.strip_prefix("scripts/").unwrap_or(name);
    all().into_iter().find(|r| r.name == name || r.name.strip_prefix("examples/") == Some(name))
}

/// A script with its text; `path` is `None` where it has no file or place of its own.
pub struct Source {
    pub path: Option<PathBuf>,
    /// How errors call it.
    pub name: String,
    pub text: String,
}

/// Reads a script: `-` is standard input, then a file, then a recipe in the binary.
pub fn read(script: &Path) -> Result<Source> {
    if script == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().take(file::TEXT).read_to_end(&mut bytes);
        let refused =
            |e| Error::new(Kind::File, format!("run: standard input must be text, got \"{e}\"")).hint(AS_UTF8);
        let text = read.and_then(|_| decoded(bytes)).map_err(refused)?;
        return Ok(Source { path: None, name: "standard input".into(), text });
    }
    let name = script.display().to_string();
    match (file::read_text(script), named(&name)) {
        (Ok(text), _) => Ok(Source { path: Some(script.into()), name, text }),
        // its path says how the run's folder is called
        (Err(e), Some(recipe)) if e.kind() == ErrorKind::NotFound => {
            Ok(Source { path: Some(recipe.name.clone().into()), name: recipe.name, text: recipe.text.into() })
        }
        (Err(e), _) => {
            let error = Error::new(Kind::Missing, format!("run: cannot read the script \"{name}\": {e}"));
            Err(error.hint(if e.kind() == ErrorKind::InvalidData { AS_UTF8.into() } else { unknown(&name) }))
        }
    }
}

/// What was probably meant by a name that is neither a file nor a recipe.
fn unknown(name: &str) -> String {
    let recipes = all();
    let stem = Path::new(name).file_stem().and_then(|s| s.to_str()).unwrap_or(name);
    match nearest(stem, recipes.iter().map(|r| r.name.as_str())) {
        Some(near) => {
            format!("did you mean the recipe `{near}`? `amscript recipes` lists all that travel in the binary")
        }
        None => "give a file, or one of the recipes that `amscript recipes` lists".into(),
    }
}

/// `amscript recipes [NAME [--settings]]`.
pub fn list(name: Option<&str>, settings: bool) -> anyhow::Result<()> {
    let Some(name) = name else { return output::line(&table()) };
    let none = || Error::new(Kind::Missing, format!("recipes: no recipe \"{name}\"")).hint(unknown(name));
    let recipe = named(name).ok_or_else(none)?;
    let [title, _] = recipe.told();
    match settings {
        true => {
            let table = setting::table(recipe.text).unwrap_or_else(|| format!("{name} has no settings"));
            output::line(&format!("{title}\n\n{table}"))
        }
        false => output::text(recipe.text),
    }
}

/// A line each, under the name of their folder: name, title, and how long it takes.
fn table() -> String {
    let recipes = all();
    let told: Vec<[String; 2]> = recipes.iter().map(Recipe::told).collect();
    let names = recipes.iter().map(|r| r.name.len()).max().unwrap_or(0);
    let titles = told.iter().map(|[title, _]| title.chars().count()).max().unwrap_or(0);
    let mut out = vec![];
    let mut folder = None;
    for (recipe, [title, time]) in recipes.iter().zip(&told) {
        if folder != Some(recipe.folder()) {
            folder = Some(recipe.folder());
            let head = if recipe.folder().is_empty() { "methods" } else { recipe.folder() };
            out.push(format!("{}{head}", if out.is_empty() { "" } else { "\n" }));
        }
        out.push(format!("  {:<names$}  {title:<titles$}  {time}", recipe.name));
    }
    out.push("\n`amscript NAME` runs one, `amscript info NAME` tells what it does, asks for and is to give, `amscript recipes NAME` prints it,\n`amscript new MINE --from NAME` copies it to change.".into());
    out.join("\n")
}

/// `amscript new NAME [--from RECIPE]`.
pub fn start(arguments: &NewArgs) -> anyhow::Result<()> {
    let file = begin(arguments)?;
    output::line(&format!(
        "wrote {file}; next:\n
  amscript check {file}     what is wrong with it, without running it
  amscript {file} --plan    what it would take in weights, work and memory
  amscript {file}           runs it; results go to runs/"
    ))
}

fn begin(arguments: &NewArgs) -> Result<String> {
    let from = arguments.from.as_deref().unwrap_or(TEMPLATE);
    let Some(recipe) = named(from) else {
        return Err(Error::new(Kind::Missing, format!("new: --from: no recipe \"{from}\"")).hint(unknown(from)));
    };
    let file = arguments.name.with_extension("rhai");
    let shown = file.display().to_string();
    let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    let mut open = std::fs::OpenOptions::new();
    let written = folder.and_then(|()| open.write(true).create_new(true).open(&file));
    let written = written.and_then(|mut file| std::io::Write::write_all(&mut file, mine(&recipe, &shown).as_bytes()));
    match written {
        Ok(()) => Ok(shown),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!(File, "new: \"{shown}\" must not exist yet"; hint: "give another name")
        }
        Err(e) => bail!(File, "new: cannot write \"{shown}\": {e}"),
    }
}

/// The recipe's text with its own command replaced by that of the copy; what its head says to expect is said to be the recipe's.
fn mine(recipe: &Recipe, file: &str) -> String {
    let name = &recipe.name;
    let folder = if name.starts_with("examples/") { "" } else { "scripts/" };
    let text = recipe.text.replace(&format!("`amscript {folder}{name}.rhai"), &format!("`amscript {file}"));
    let text = text.replace(&format!("`amscript {name}`"), &format!("`amscript {file}`"));
    text.replacen("//! expect: ", &format!("//! expect: of {name}, before changes: "), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_says_what_it_is_for_and_what_to_expect() {
        let recipes = all();
        assert!(recipes.len() > 90, "{}", recipes.len());
        for recipe in &recipes {
            let header = Header::read(recipe.text).unwrap();
            let title = header.get("title").unwrap_or_default();
            assert!((20..=76).contains(&title.chars().count()), "{}: title \"{title}\"", recipe.name);
            assert!(header.get("expect").is_some_and(|expect| !expect.is_empty()), "{} expects nothing", recipe.name);
            let command = [format!("amscript scripts/{}.rhai", recipe.name), format!("amscript {}", recipe.name)];
            assert!(command.iter().any(|command| recipe.text.contains(command)), "{}: its command", recipe.name);
        }
    }

    #[test]
    fn a_recipe_is_known_by_name_and_by_path() {
        for name in ["tables/flux", "scripts/tables/flux.rhai", "tables/flux.rhai"] {
            assert_eq!(named(name).unwrap().name, "tables/flux");
        }
        assert_eq!(named("custom_reward").unwrap().name, "examples/custom_reward");
        assert!(named("tables").is_none());
    }

    #[test]
    fn the_template_is_there() {
        assert!(named(TEMPLATE).is_some());
    }
}
