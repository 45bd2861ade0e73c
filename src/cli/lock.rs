//! `amscript lock`: a file with the hashes of all that a script reads; with `--frozen` a run keeps to it.
//!
//! What is read is found out by a plan, which opens all models, rewards, prompts and modules and computes nothing. Files are named by where they
//! are looked up, so that the lock holds on another machine: `recipe/..` beside the recipe, `models/..` in the model folders.

use super::recipe::Source;
use super::{LockArgs, output, run};
use crate::script::{Host, Request, Session};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_nn::digest;
use amscript_nn::source::Sources;
use amscript_run::record;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `amscript lock SCRIPT`: writes `SCRIPT.lock` beside it, where that changes something.
pub fn command(arguments: LockArgs) -> anyhow::Result<ExitCode> {
    run::on_large_stack(move || {
        let (path, changed) = write(&arguments)?;
        output::line(&format!("{} {}", if changed { "wrote" } else { "nothing has changed in" }, path.display()))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn write(arguments: &LockArgs) -> Result<(PathBuf, bool)> {
    let (mut request, source) = run::prepare(&arguments.script, true, None)?;
    let path = place(&source)?;
    let draft = tempfile::tempdir().map_err(|e| Error::new(Kind::File, format!("lock: no temporary folder: {e}")))?;
    request.out = Some(draft.path().into());
    let places = places(&request);
    let host = Host::new(Session::new(request, Box::new(|_| ())));
    let context = host.session().context();
    let outcome = host.run(&source.name, &source.text);
    if host.session().planner().is_none_or(|planner| planner.plan().update.is_none()) {
        drop(outcome?); // else it ended where its first update would begin
    }
    let own = file::real(draft.path()).unwrap_or_default();
    let read = context.inputs.paths().into_iter().filter(|file| !file.starts_with(&own));
    let files = read.map(|file| Ok((key(&file, &places), entry(&file)?))).collect::<Result<Map<_, _>>>()?;
    let lock = json!({ "amscript": env!("CARGO_PKG_VERSION"), "recipe": digest::hash(source.text.as_bytes()), "files": files });
    let changed = record::read_json(&path).ok() != Some(lock.clone());
    if changed {
        record::write_json(&path, &lock).map_err(|e| e.within("lock"))?;
    }
    Ok((path, changed))
}

/// Where the lock of a script is.
fn place(source: &Source) -> Result<PathBuf> {
    match source.path.as_ref().filter(|path| file::is_file(path)) {
        Some(path) => Ok(path.with_extension("lock")),
        None => {
            let name = &source.name;
            let hint = match super::recipe::named(name) {
                Some(recipe) => format!(
                    "a lock stands beside its script: `amscript new mine --from {}` makes a file of it",
                    recipe.name
                ),
                None => "`amscript new` makes one".into(),
            };
            bail!(Value, "lock: expected a script in a file, got {name}"; hint: "{hint}")
        }
    }
}

/// The hash of a script's lock, where it has one.
pub fn hash(source: &Source) -> Option<String> {
    file::read(&place(source).ok()?).ok().map(|bytes| digest::hash(&bytes))
}

/// The files that a frozen run may open.
///
/// # Errors
/// What differs from the lock, by name: the recipe, a file, the version; or that there is no lock.
pub fn frozen(source: &Source, request: &Request) -> Result<BTreeSet<PathBuf>> {
    let path = place(source)?;
    let none = |e: Error| e.within("--frozen").hint("`amscript lock` writes one");
    let lock = record::read_json(&path).map_err(none)?;
    if lock["recipe"] != digest::hash(source.text.as_bytes()) {
        bail!(File, "--frozen: the recipe `{}` differs from its lock", source.name; hint: "`amscript lock` writes another");
    }
    if lock["amscript"] != env!("CARGO_PKG_VERSION") {
        bail!(File, "--frozen: the lock is of amscript {}, this is {}", lock["amscript"], env!("CARGO_PKG_VERSION"));
    }
    let places = places(request);
    let files = lock["files"].as_object().into_iter().flatten();
    files.map(|(name, locked)| same(name, locked, &places)).collect()
}

/// The file that an entry of a lock names, if it is the same.
fn same(name: &str, locked: &Value, places: &[(&str, PathBuf)]) -> Result<PathBuf> {
    let inside =
        places.iter().filter_map(|(label, folder)| Some(folder.join(name.strip_prefix(label)?.strip_prefix('/')?)));
    let Some(file) = inside.chain([PathBuf::from(name)]).find_map(|path| file::real(&path).ok()) else {
        bail!(Missing, "--frozen: `{name}` of the lock is not here");
    };
    let here = entry(&file)?;
    let short = |value: &Value| value["sha256"].as_str().unwrap_or_default().chars().take(12).collect::<String>();
    match here["sha256"] == locked["sha256"] {
        true => Ok(file),
        false => {
            bail!(File, "--frozen: `{name}` differs from the lock: sha256 {}.., got {}..", short(locked), short(&here))
        }
    }
}

fn entry(file: &Path) -> Result<Value> {
    let bytes = file::size(file).map_err(|e| record::file_error(file, "read", &e))?;
    Ok(json!({ "sha256": record::hash_file(file)?, "bytes": bytes }))
}

/// Folders by the names that locks have for them.
fn places(request: &Request) -> Vec<(&'static str, PathBuf)> {
    let own = request.script.as_ref().and_then(|script| file::real(script).ok());
    let own = own.and_then(|script| Some(("recipe", script.parent()?.to_path_buf())));
    let sources = Sources::new(request.models.as_deref());
    let models = sources.places().filter_map(|folder| Some(("models", file::real(folder).ok()?)));
    models.chain(own).collect()
}

fn key(file: &Path, places: &[(&str, PathBuf)]) -> String {
    let inside = places.iter().find_map(|(label, folder)| Some((label, file.strip_prefix(folder).ok()?)));
    inside.map_or(file.display().to_string(), |(label, rest)| format!("{label}/{}", rest.display()))
}
