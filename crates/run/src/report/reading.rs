//! A run as its folder tells it: what is damaged or missing is noted, and the rest is read.

use crate::folder;
use crate::log::{Lines, Values};
use crate::progress::span;
use crate::record::{file_error, read_json};
use amscript_base::{bail, error::Result, file, permissions};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a folder holds of a run.
pub struct Reading {
    pub folder: PathBuf,
    /// What tells it from the others of a report.
    pub name: String,
    /// `run.json`; null where it cannot be read.
    pub record: Value,
    /// Step and values of each line of the log, by step.
    pub lines: Vec<(usize, Values)>,
    /// `result.json`, of a run that came to its end.
    pub result: Option<Value>,
    /// Where the run stands, in words.
    pub state: String,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// The runs in folders and below them, each once, and what is wrong with folders that have none.
pub fn find(paths: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let (mut found, mut wrong): (Vec<PathBuf>, Vec<String>) = Default::default();
    for path in paths {
        let place = path.display();
        let runs = match file::real(path) {
            Err(e) => {
                wrong.push(format!("cannot read `{place}` ({e})"));
                continue;
            }
            Ok(path) if file::is_folder(&path) => folder::runs(&path)?,
            Ok(_) => {
                wrong.push(format!("`{place}` must be the folder of a run, got a file"));
                continue;
            }
        };
        if runs.is_empty() {
            wrong.push(format!("`{place}` holds no run: there is no run.json in it or below"));
        }
        found.extend(runs);
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|run| seen.insert(run.clone()));
    if found.is_empty() {
        bail!(Missing, "report: {}", wrong.join("; "); hint: "give the folders that runs wrote, such as runs/flux_ode_am");
    }
    Ok((found, wrong))
}

/// Names by what the folders do not share.
pub fn names(folders: &[PathBuf]) -> Vec<String> {
    let mut shared = folders.first().and_then(|f| f.parent()).unwrap_or(Path::new("")).to_path_buf();
    while !folders.iter().all(|f| f.parent().is_some_and(|p| p.starts_with(&shared))) && shared.pop() {}
    folders.iter().map(|f| f.strip_prefix(&shared).unwrap_or(f).display().to_string()).collect()
}

impl Reading {
    /// Reads what is there.
    pub fn of(folder: &Path, name: String) -> Self {
        let mut notes = Vec::new();
        let record = json(&folder.join("run.json"), &mut notes).unwrap_or_default();
        let log = Lines::read(&folder.join("metrics.jsonl"));
        notes.extend(log.notes);
        let mut lines = log.read;
        lines.sort_by_key(|(step, _)| *step);
        let result = json(&folder.join("result.json"), &mut notes);
        let state = state(folder, &record, &lines, result.as_ref());
        let notes = notes.into_iter().map(|note| note.replace(&format!("{}/", folder.display()), "")).collect();
        Self { folder: folder.into(), name, record, lines, result, state, notes }
    }

    /// A setting that is a count.
    pub fn count(&self, setting: &str) -> Option<usize> {
        self.record["settings"][setting].as_u64().map(|n| n as usize)
    }
}

fn json(path: &Path, notes: &mut Vec<String>) -> Option<Value> {
    match file::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => {
            notes.push(unread(path, &e));
            None
        }
        Ok(_) => read_json(path).map_err(|e| notes.push(e.message)).ok(),
    }
}

/// Why a file of a run could not be read.
pub fn unread(path: &Path, error: &std::io::Error) -> String {
    match permissions::refused(error) {
        true => format!("`{}` is left out: it is a link that leads out of the run's folder", path.display()),
        false => file_error(path, "read", error).message,
    }
}

/// Where a run stands: at its end, or how far its log goes.
fn state(folder: &Path, record: &Value, lines: &[(usize, Values)], result: Option<&Value>) -> String {
    let last = lines.last().map(|(step, _)| *step);
    let age = |name: &str| file::modified(&folder.join(name)).ok()?.elapsed().ok();
    if let Some(result) = result {
        let steps = result["steps"].as_u64().unwrap_or(0);
        let again = last.is_some_and(|last| (last as u64) < steps) && age("metrics.jsonl") < age("result.json");
        return match (again, steps) {
            (true, _) => "started again since: the results are those of the run before".into(),
            (_, 0) => "finished".into(),
            (_, n) => format!("finished after {n} steps"),
        };
    }
    let total = record["settings"]["iterations"].as_u64().map_or(String::new(), |n| format!(" of {n}"));
    let written = age("metrics.jsonl").map(|t| Duration::from_secs(t.as_secs()));
    let written = written.map_or(String::new(), |t| format!(", written {} before this page", span(t)));
    match last {
        Some(step) => {
            format!("no results yet, the run goes on or was stopped: logged up to step {step}{total}{written}")
        }
        None => "no results and no log yet".into(),
    }
}
