//! The run directory and whose it is.

use super::{
    checkpoint,
    record::{file_error, read_json, write_json},
};
use crate::{
    bail,
    error::{Error, Result},
};
use serde_json::Value;
use std::path::Path;

/// Makes the folder and writes `run.json`; one with checkpoints of other settings is refused, since going on would mix runs.
pub fn claim(folder: &Path, record: &Value) -> Result<()> {
    let refused = |e: Error| e.within("start_run").hint("choose a folder that can be written with `--out`");
    std::fs::create_dir_all(folder).map_err(|e| refused(file_error(folder, "make", &e)))?;
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
    write_json(&path, record).map_err(refused)
}
