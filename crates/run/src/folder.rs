//! The run directory and whose it is.

use super::{
    checkpoint,
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

/// Makes the folder and writes `run.json`; one with checkpoints of other settings is refused, since going on would mix runs.
///
/// Gives what a run of the same settings came to, if one did. A run inside another is not done again, so that its record stays,
/// and one that came to its end with other settings is refused like one with checkpoints.
pub fn claim(folder: &Path, record: &Value, inner: bool) -> Result<Option<Value>> {
    let refused = |e: Error| e.within("start_run").hint("choose a folder that can be written with `--out`");
    file::make_folder(folder).map_err(|e| refused(file_error(folder, "make", &e)))?;
    let (path, result) = (folder.join("run.json"), folder.join("result.json"));
    let mut finished = None;
    if file::exists(&path) {
        let old = read_json(&path)?;
        let mut settings = record["settings"].as_object().into_iter().flatten();
        let changed = settings.find(|(key, value)| old["settings"][key.as_str()] != **value);
        if let Some((key, value)) = changed
            && (checkpoint::latest(folder)?.is_some() || (inner && file::exists(&result)))
        {
            let (before, place) = (&old["settings"][key], folder.display());
            bail!(
                Value, "start_run: `{place}` holds a run with {key} = {before}, got {key} = {value}";
                hint: "give the same settings to go on, or another `--out`"
            );
        }
        if changed.is_none() && file::exists(&result) {
            finished = Some(read_json(&result)?["measures"].take());
        }
    }
    if !(inner && finished.is_some()) {
        write_json(&path, record).map_err(refused)?;
    }
    Ok(finished)
}
