//! The run directory and whose it is.

use super::{
    checkpoint,
    identity::{self, Difference},
    lock,
    record::{file_error, read_json, write_json},
};
use amscript_base::{
    bail,
    error::{Error, Kind, Result},
    file::{self, FileType},
};
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

/// The folder of a run inside another's.
pub fn inside(outer: &Path, name: &str) -> Result<PathBuf> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain {
        let message = format!("start_run: the name must be a folder inside the run's, got \"{name}\"");
        return Err(Error::new(Kind::Value, message).hint("such as \"am-3\" or \"am-3/seed-0\""));
    }
    Ok(outer.join(name))
}

/// The runs in a folder, itself first if it is one, and those below it; links are not followed, and what is hidden is passed by.
pub fn runs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if file::exists(&folder.join("run.json")) {
        found.push(folder.to_path_buf());
    }
    let refused = |e| file_error(folder, "read", &e);
    let folders = file::entries(folder)
        .map_err(refused)?
        .into_iter()
        .filter(|(name, kind)| *kind == FileType::Folder && !name.as_encoded_bytes().starts_with(b"."));
    let mut below: Vec<PathBuf> = folders.map(|(name, _)| folder.join(name)).collect();
    below.sort();
    for inner in below {
        found.extend(runs(&inner)?);
    }
    Ok(found)
}

/// What a run finds in its directory.
#[derive(Debug)]
pub struct Claim {
    /// What `run.json` is to hold, or holds.
    pub record: Value,
    /// What a run of the same settings came to, if one did.
    pub finished: Option<Value>,
    /// The one setting that differs is what the loop's length was: to be confirmed by the loop.
    pub length: Option<Length>,
    /// Whether a run goes on whose record is complete.
    pub goes_on: bool,
    /// What is different from before and said, not refused.
    pub notes: Vec<String>,
}

impl Claim {
    pub fn new(record: Value) -> Self {
        Self { record, finished: None, length: None, goes_on: false, notes: Vec::new() }
    }
}

/// A loop that goes on to another length.
#[derive(Clone, Debug)]
pub struct Length {
    pub now: usize,
    /// The error where the loop has not that length.
    pub refused: Error,
}

/// Takes a directory that is locked: a run that has something to lose there must be the same run, or a longer one.
///
/// `anyway` goes on with what differs and records it. A run inside another that came to its end is not done again.
pub fn claim(folder: &Path, record: Value, inner: bool, anyway: bool) -> Result<Claim> {
    checkpoint::recover(folder)?;
    [folder.into(), folder.join("images")].iter().for_each(|f: &PathBuf| file::remove_drafts(f));
    let (path, result) = (folder.join("run.json"), folder.join("result.json"));
    let Some(old) = earlier(folder, &path, anyway)? else {
        write_json(&path, &record)?;
        return Ok(Claim::new(record));
    };
    remove_drafts_below(folder);
    let precious = checkpoint::last_step(folder).is_some()
        || inner && file::exists(&result)
        || has_any(folder, &WEIGHTS).is_some();
    let differences = identity::differences(&old, &record);
    let same = differences.is_empty();
    let moved = identity::place(&old, &record);
    let mut claim = Claim::new(record);
    if same && file::exists(&result) {
        claim.finished = Some(read_json(&result)?["measures"].take());
    }
    if !precious {
        if !same && has_any(folder, &["metrics.jsonl"]).is_some() {
            claim.notes = vec![format!("written over: {}, which left no weights", listed(&differences))];
        }
        write_json(&path, &claim.record)?;
    } else if same {
        (claim.record, claim.notes, claim.goes_on) = (old, moved, true);
    } else if anyway {
        let said = differences.iter().map(|found| format!("going on all the same: {found}"));
        claim.notes = said.chain(moved).collect();
        claim.record = identity::after(old, claim.record, checkpoint::last_step(folder));
        forget_result(folder)?;
        write_json(&path, &claim.record)?;
    } else {
        let refused = refusal(folder, &differences);
        let now = identity::length(&differences, checkpoint::total(folder)).ok_or_else(|| refused.clone())?;
        claim.record = identity::after(old, claim.record, checkpoint::last_step(folder));
        (claim.length, claim.notes, claim.goes_on) = (Some(Length { now, refused }), moved, true);
    }
    Ok(claim)
}

/// Removes the result of a run that goes on as another one: it would be taken for the other's, were that ended before its own is written.
pub fn forget_result(folder: &Path) -> Result<()> {
    let path = folder.join("result.json");
    file::remove(&path).map_err(|e| file_error(&path, "remove", &e))
}

/// What `run.json` holds. None of a new folder; nor, `anyway`, where it is gone or cannot be read.
fn earlier(folder: &Path, path: &Path, anyway: bool) -> Result<Option<Value>> {
    const HINT: &str = "`--resume-anyway` goes on with what is there, another `--out` begins anew";
    if file::exists(path) {
        return match read_json(path) {
            Err(_) if anyway => Ok(None),
            read => read.map(Some).map_err(|e| e.within("start_run").hint(HINT)),
        };
    }
    if let Some(found) = foreign(folder)?.filter(|_| !anyway) {
        bail!(
            File, "start_run: `{}` must be new or hold a run, got `{found}` without a run.json", folder.display();
            hint: "{HINT}"
        );
    }
    Ok(None)
}

/// Removes drafts in the folders of a run, but for those of other runs, which may be writing.
fn remove_drafts_below(folder: &Path) {
    for (name, _) in file::entries(folder).unwrap_or_default().iter().filter(|(_, kind)| *kind == FileType::Folder) {
        let inner = folder.join(name);
        if !lock::is_of_a_run(&inner) && !file::exists(&inner.join("run.json")) {
            file::remove_drafts(&inner);
            remove_drafts_below(&inner);
        }
    }
}

/// What a training leaves under these names, beside its checkpoints.
const WEIGHTS: [&str; 2] = ["lora.safetensors", "model"];

/// Errs where a file is of the weights that a run with another recipe's text has left; `own` knows the hashes of one's own texts.
pub fn spare_weights(path: &Path, own: impl Fn(&str) -> bool) -> Result<()> {
    let named = |place: &&Path| place.file_name().is_some_and(|name| WEIGHTS.iter().any(|known| name == *known));
    for folder in path.ancestors().filter(named).filter(|place| file::exists(place)).filter_map(Path::parent) {
        let record = folder.join("run.json");
        if file::exists(&record) && read_json(&record)?["recipe"]["sha256"].as_str().is_some_and(|hash| !own(hash)) {
            bail!(
                File, "`{}` holds the weights of a run with another text of the recipe", folder.display();
                hint: "give another name, or another `--out`; `--resume-anyway` writes over them"
            );
        }
    }
    Ok(())
}

/// What a run would write over in a directory that is no run's.
fn foreign(folder: &Path) -> Result<Option<String>> {
    let obstacle =
        checkpoint::obstacle(folder)?.or_else(|| Some(folder.join(checkpoint::name(checkpoint::last_step(folder)?))));
    let named = obstacle.and_then(|path| Some(path.file_name()?.display().to_string()));
    let others = [&WEIGHTS[..], &["metrics.jsonl", "result.json", "result.csv", "curves.png"]].concat();
    Ok(named.or_else(|| has_any(folder, &others).map(String::from)))
}

/// The first of these names that a folder has.
fn has_any<'a>(folder: &Path, names: &[&'a str]) -> Option<&'a str> {
    names.iter().find(|name| file::exists(&folder.join(name))).copied()
}

/// The error about what differs.
pub fn refusal(folder: &Path, differences: &[Difference]) -> Error {
    let message = format!("start_run: `{}` holds {}", folder.display(), listed(differences));
    Error::new(Kind::Value, message)
        .hint("give the same to go on, `--resume-anyway` to go on with what differs, or another `--out` to begin anew")
}

/// `a run with steps = 3, got steps = 4, and with another text of the recipe`
fn listed(differences: &[Difference]) -> String {
    let shown: Vec<String> = differences.iter().take(3).map(Difference::to_string).collect();
    let more = match differences.len().saturating_sub(shown.len()) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("a run with {}{more}", shown.join(", and with "))
}
