//! Checkpoints of a run: `step-000100/` with tensors and JSON, written under a temporary name, synced, renamed.

use super::record::{file_error, hash_file, read_json, write_json};
use amscript_base::{
    bail,
    error::{Error, Kind, Result},
    file,
};
use amscript_nn::archive::{self, Archive};
use amscript_tensor::Tensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What a script saves: tensors and plain values in any nesting.
#[derive(Clone, Debug)]
pub enum Saved {
    Tensor(Tensor),
    Number(f64),
    /// An integer, text, truth value or null.
    Plain(Value),
    Map(Vec<(String, Saved)>),
    List(Vec<Saved>),
}

/// A checkpoint read back.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps that were done.
    pub step: usize,
    pub state: Saved,
    /// Counters of the run's random streams.
    pub streams: BTreeMap<String, u128>,
    /// Time that the steps took.
    pub seconds: f64,
}

/// Good checkpoints that are kept.
const KEPT: usize = 2;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";
/// Keys of the JSON objects that stand for a tensor and for a number; numbers go as text, which keeps every digit.
const TENSOR: &str = "$tensor";
const NUMBER: &str = "$number";

/// Writes `step-<step>` in the run's folder and removes older ones but the last.
pub fn save(run: &Path, checkpoint: &Checkpoint) -> Result<PathBuf> {
    let name = format!("step-{:06}", checkpoint.step);
    let (draft, folder) = (run.join(format!(".{name}.tmp")), run.join(name));
    remove(&draft)?;
    file::make_folder(&draft).map_err(|e| file_error(&draft, "make", &e))?;
    let mut tensors = Vec::new();
    let tree = flatten(&checkpoint.state, "", &mut tensors);
    archive::write(&draft.join(TENSORS), tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new())?;
    let streams: Map<String, Value> =
        checkpoint.streams.iter().map(|(name, at)| (name.clone(), at.to_string().into())).collect();
    let sha256 = hash_file(&draft.join(TENSORS))?;
    let record = json!({ "step": checkpoint.step, "seconds": checkpoint.seconds, "streams": streams, "sha256": sha256, "state": tree });
    write_json(&draft.join(STATE), &record)?;
    sync(&draft)?;
    remove(&folder)?;
    file::rename(&draft, &folder).map_err(|e| file_error(&folder, "write", &e))?;
    sync(run)?;
    for (_, old) in list(run)?.iter().rev().skip(KEPT) {
        remove(old)?;
    }
    Ok(folder)
}

/// The last checkpoint that reads back whole; an error when there are some and none does.
pub fn latest(run: &Path) -> Result<Option<Checkpoint>> {
    let mut damage: Option<Error> = None;
    for (_, folder) in list(run)?.iter().rev() {
        match read(folder) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(e) => damage = damage.or(Some(e.within(folder.display()))),
        }
    }
    damage.map_or(Ok(None), Err)
}

fn read(folder: &Path) -> Result<Checkpoint> {
    let record = read_json(&folder.join(STATE))?;
    let file = folder.join(TENSORS);
    if record["sha256"] != hash_file(&file)? {
        bail!(File, "the checkpoint's tensors differ from what was written");
    }
    let damaged = || Error::new(Kind::File, format!("{STATE} lacks a part"));
    let archive = Archive::open(&file)?;
    let streams = record["streams"].as_object().ok_or_else(damaged)?;
    let counter = |v: &Value| v.as_str().and_then(|t| t.parse().ok()).ok_or_else(damaged);
    Ok(Checkpoint {
        step: record["step"].as_u64().ok_or_else(damaged)? as usize,
        state: restore(&record["state"], &archive)?,
        seconds: record["seconds"].as_f64().unwrap_or(0.0), // not in older ones
        streams: streams.iter().map(|(name, at)| Ok((name.clone(), counter(at)?))).collect::<Result<_>>()?,
    })
}

/// Tensors go to the list under their path; a marker stands in their place.
fn flatten(state: &Saved, path: &str, tensors: &mut Vec<(String, Tensor)>) -> Value {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}/{key}") };
    match state {
        Saved::Plain(value) => value.clone(),
        Saved::Number(number) => json!({ NUMBER: format!("{number:?}") }),
        Saved::List(items) => {
            let items = items.iter().enumerate().map(|(i, item)| flatten(item, &below(&i.to_string()), tensors));
            Value::Array(items.collect())
        }
        Saved::Map(entries) => {
            Value::Object(entries.iter().map(|(k, v)| (k.clone(), flatten(v, &below(k), tensors))).collect())
        }
        Saved::Tensor(tensor) => {
            let name = path.to_string();
            tensors.push((name.clone(), tensor.clone()));
            json!({ TENSOR: name })
        }
    }
}

fn restore(value: &Value, archive: &Archive) -> Result<Saved> {
    Ok(match value {
        Value::Array(items) => Saved::List(items.iter().map(|v| restore(v, archive)).collect::<Result<_>>()?),
        Value::Object(map) => {
            match (map.get(TENSOR).and_then(Value::as_str), map.get(NUMBER).and_then(Value::as_str)) {
                (Some(name), _) => Saved::Tensor(archive.read(name)?),
                (_, Some(text)) => Saved::Number(
                    text.parse().map_err(|e| Error::new(Kind::File, format!("{STATE} has a damaged number ({e})")))?,
                ),
                _ => Saved::Map(map.iter().map(|(k, v)| Ok((k.clone(), restore(v, archive)?))).collect::<Result<_>>()?),
            }
        }
        plain => Saved::Plain(plain.clone()),
    })
}

/// Checkpoint folders with their steps, oldest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = file::entries(run).map_err(|e| file_error(run, "read", &e))?;
    let step = |name: &OsStr| name.to_str()?.strip_prefix("step-")?.parse().ok();
    let mut found: Vec<(usize, PathBuf)> =
        entries.into_iter().filter_map(|(name, _)| Some((step(&name)?, run.join(name)))).collect();
    found.sort();
    Ok(found)
}

fn remove(folder: &Path) -> Result<()> {
    match file::remove_folder(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file_error(folder, "remove", &e)),
        _ => Ok(()),
    }
}

/// Makes the folder's entries last through a power cut.
fn sync(folder: &Path) -> Result<()> {
    file::sync_folder(folder).map_err(|e| file_error(folder, "sync", &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Device;
    use std::fs;

    fn at(step: usize) -> Checkpoint {
        let tensor = Tensor::new(&[step as f32, 2.0], &Device::Cpu).unwrap();
        let moments = Saved::List(vec![Saved::Tensor(tensor.clone()), Saved::Number(3.3479716097422684)]);
        let state = Saved::Map(vec![
            ("weights".into(), Saved::Map(vec![("a.b".into(), Saved::Tensor(tensor))])),
            ("moments".into(), moments),
            ("name".into(), Saved::Plain(json!("x"))),
        ]);
        Checkpoint { step, state, streams: BTreeMap::from([("noise".into(), u128::MAX)]), seconds: 0.5 }
    }

    #[test]
    fn the_last_checkpoint_comes_back_and_two_are_kept() {
        let run = tempfile::tempdir().unwrap();
        assert!(latest(run.path()).unwrap().is_none());
        for step in [5, 10, 100] {
            save(run.path(), &at(step)).unwrap();
        }
        let back = latest(run.path()).unwrap().unwrap();
        assert_eq!((back.step, back.streams["noise"]), (100, u128::MAX));
        assert_eq!(format!("{:?}", back.state), format!("{:?}", at(100).state));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), KEPT);
    }

    #[test]
    fn a_damaged_checkpoint_gives_way_to_the_one_before() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), &at(1)).unwrap();
        let last = save(run.path(), &at(2)).unwrap();
        fs::create_dir(run.path().join(".step-000003.tmp")).unwrap();
        let file = last.join(TENSORS);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(latest(run.path()).unwrap().unwrap().step, 1);
        fs::remove_dir_all(run.path().join("step-000001")).unwrap();
        assert!(latest(run.path()).unwrap_err().message.contains("step-000002"));
    }
}
