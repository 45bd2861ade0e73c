//! Where a run writes: the folder asked for, or the next free one, and whose it is.

use super::{
    checkpoint,
    record::{Recipe, file_error, read_json, write_json},
};
use crate::{bail, error::Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder asked for, or `runs/<recipe>-001`, `-002`, .. Makes it.
pub fn open(out: Option<&Path>, recipe: &Recipe) -> Result<PathBuf> {
    let refused = |path: &Path, e: std::io::Error| {
        file_error(path, "make", &e).within("start_run").hint("choose a folder that can be written with `--out`")
    };
    if let Some(out) = out {
        std::fs::create_dir_all(out).map_err(|e| refused(out, e))?;
        return Ok(out.to_path_buf());
    }
    let runs = Path::new("runs");
    std::fs::create_dir_all(runs).map_err(|e| refused(runs, e))?;
    let name = recipe.path.as_ref().and_then(|p| p.file_stem()).map_or("run".into(), |s| s.to_string_lossy());
    for number in 1.. {
        let folder = runs.join(format!("{name}-{number:03}"));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(refused(&folder, e)),
        }
    }
    bail!(Limit, "start_run: no free folder in `runs`")
}

/// Writes `run.json`; a folder with checkpoints of other settings is refused, since going on would mix two runs.
pub fn claim(folder: &Path, record: &Value) -> Result<()> {
    let path = folder.join("run.json");
    if path.exists() && checkpoint::latest(folder)?.is_some() {
        let old = read_json(&path)?;
        for (key, value) in record["settings"].as_object().into_iter().flatten() {
            let before = &old["settings"][key];
            if before != value {
                bail!(
                    Value, "start_run: `{}` holds checkpoints of a run with {key} = {before}, got {key} = {value}", folder.display();
                    hint: "give the same settings to go on, or another `--out`"
                );
            }
        }
    }
    write_json(&path, record)
        .map_err(|e| e.within("start_run").hint("choose a folder that can be written with `--out`"))
}
