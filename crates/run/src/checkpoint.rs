//! Checkpoints of a run: `step-000100/` with tensors, JSON and the SHA-256 of both, written under a temporary name, synced, renamed.
//!
//! Decisions:
//! * **What is damaged is passed over, with a line that says so**: a checkpoint counts if its files are what `SHA256SUMS` says.
//! * **Only the three files of a checkpoint are ever removed**, and its folder when nothing else is in it.
//! * **A checkpoint takes the place of those of later steps**, which a session that began anew has left behind.

use super::record::{file_error, hash_file, read_json, write_json, write_text};
use amscript_align::optim::{Shard, Stored};
use amscript_base::{
    bail,
    error::{Error, Kind, Result},
    file,
    group::Ask,
};
use amscript_nn::archive::{self, Archive};
use amscript_tensor::{DType, Tensor, bytes};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a script saves: tensors and plain values in any nesting.
#[derive(Clone, Debug)]
pub enum Saved {
    Tensor(Tensor),
    /// A tensor that one rank has; it is read back as a tensor of all.
    Shard(Shard),
    Number(f64),
    /// An integer, text, truth value or null.
    Plain(Value),
    Map(Vec<(String, Saved)>),
    List(Vec<Saved>),
}

/// A checkpoint, written or read back.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps that were done, and those that the loop had.
    pub step: usize,
    pub total: usize,
    pub state: Saved,
    /// Counters of the run's random streams.
    pub streams: BTreeMap<String, u128>,
    /// Time that the steps took.
    pub seconds: f64,
    /// What the log was then: lines and their digest.
    pub log: Value,
}

/// Maps and arrays that a state may have inside one another; JSON readers have a bound.
pub const DEEPEST: usize = 64;
/// Good checkpoints that are kept.
const KEPT: usize = 2;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";
/// Hashes of the others, as `sha256sum --check` reads them.
const SUMS: &str = "SHA256SUMS";
const FILES: [&str; 3] = [TENSORS, STATE, SUMS];
/// Keys of the JSON objects that stand for a tensor and for a number; numbers go as text, which keeps every digit. Keys of a
/// script that begin like them get one sign more.
const TENSOR: &str = "$tensor";
const NUMBER: &str = "$number";
const SIGN: char = '$';

/// Writes `step-<step>` in the run's folder and removes older ones but the last. Tensors that other ranks have are asked for one by one.
pub fn save(run: &Path, checkpoint: &Checkpoint, ask: Ask) -> Result<PathBuf> {
    let folder = run.join(name(checkpoint.step));
    let (draft, old) = (beside(&folder, "tmp"), beside(&folder, "old"));
    remove(&draft)?;
    file::make_folder(&draft).map_err(|e| file_error(&draft, "make", &e))?;
    write(&draft, checkpoint, ask)?;
    if file::exists(&folder) {
        if !is_ours(&folder) {
            bail!(File, "`{}` must be a checkpoint or not there, got something else", folder.display();
                hint: "move it away, or give another `--out`");
        }
        rename(&folder, &old)?;
    }
    rename(&draft, &folder)?;
    sync(run)?;
    remove(&old)?;
    let found = list(run)?;
    let (own, later) = found.split_at(found.partition_point(|(step, _)| *step <= checkpoint.step));
    for (_, past) in own.iter().rev().skip(KEPT).chain(later) {
        remove(past)?;
    }
    Ok(folder)
}

fn write(folder: &Path, checkpoint: &Checkpoint, ask: Ask) -> Result<()> {
    let (tensors, state) = Tensors::of(&checkpoint.state);
    let shapes = tensors.0.iter().map(|(name, tensor)| (name.as_str(), (tensor.dtype(), tensor.dims()))).collect();
    archive::write_each(&folder.join(TENSORS), &shapes, &BTreeMap::new(), |name| match &tensors.0[name] {
        Stored::Whole(tensor) | Stored::Shard(Shard { own: Some(tensor), .. }) => Ok(tensor.clone()),
        Stored::Shard(Shard { owner, dtype, dims, .. }) => bytes::read(&ask(*owner, name)?, *dtype, dims),
    })?;
    let streams: Map<String, Value> =
        checkpoint.streams.iter().map(|(name, at)| (name.clone(), at.to_string().into())).collect();
    let Checkpoint { step, total, seconds, log, .. } = checkpoint;
    let record =
        json!({ "step": step, "total": total, "seconds": seconds, "streams": streams, "log": log, "state": state });
    write_json(&folder.join(STATE), &record)?;
    let sum = |name| Ok(format!("{}  {name}\n", hash_file(&folder.join(name))?));
    write_text(&folder.join(SUMS), &[TENSORS, STATE].into_iter().map(sum).collect::<Result<String>>()?)?;
    sync(folder)
}

/// A digest of everything in a checkpoint that must be the same on all ranks; of tensors that one has, which one.
pub fn digest(checkpoint: &Checkpoint) -> Result<String> {
    let (tensors, state) = Tensors::of(&checkpoint.state);
    let mut digest = Sha256::new_with_prefix(format!("{state}{:?}{}", checkpoint.streams, checkpoint.step));
    for stored in tensors.0.values() {
        let dtype = stored.dtype();
        digest.update(format!("{dtype:?}{:?}", stored.dims()));
        match stored {
            Stored::Shard(shard) => digest.update(shard.owner.to_le_bytes()),
            Stored::Whole(tensor) if dtype.is_float() => digest.update(bytes::of(tensor)?),
            Stored::Whole(tensor) => digest.update(bytes::of(&tensor.to_dtype(DType::F64)?)?),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The last checkpoint that is whole, and what is wrong with those after it; an error when there are some and none is whole.
pub fn latest(run: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let mut damage = Vec::new();
    for (step, folder) in list(run)?.iter().rev() {
        match read(folder, *step) {
            Ok(checkpoint) => return Ok((Some(checkpoint), damage)),
            Err(e) => damage.push(format!("{}: {}", name(*step), e.message)),
        }
    }
    if !damage.is_empty() {
        bail!(File, "no checkpoint in {} is whole: {}", run.display(), damage.join("; ");
            hint: "begin anew with another `--out`");
    }
    Ok((None, damage))
}

/// The step of the last checkpoint, whole or not.
pub fn last_step(run: &Path) -> Option<usize> {
    Some(list(run).ok()?.last()?.0)
}

/// The steps that the loop of the last readable checkpoint had.
pub fn total(run: &Path) -> Option<usize> {
    let records = list(run).ok()?.into_iter().rev().filter_map(|(_, folder)| read_json(&folder.join(STATE)).ok());
    records.filter_map(|record| record["total"].as_u64()).next().map(|total| total as usize)
}

/// Undoes what a process that was killed while saving left: drafts go, and what was about to be replaced stays.
pub fn recover(run: &Path) -> Result<()> {
    for entry in entries(run)? {
        let parts = entry.strip_prefix('.').and_then(|name| name.rsplit_once('.'));
        let Some((name, ending)) = parts.filter(|(name, _)| step_of(name).is_some()) else { continue };
        let (at, to) = (run.join(&entry), run.join(name));
        match ending {
            "old" if !file::exists(&to) && is_ours(&at) => rename(&at, &to)?,
            "old" | "tmp" => remove(&at)?,
            _ => {}
        }
    }
    Ok(())
}

/// What stands where a checkpoint may have to: a folder or file named like one that is none.
pub fn obstacle(run: &Path) -> Result<Option<PathBuf>> {
    let named = entries(run)?.into_iter().filter(|name| step_of(name).is_some()).map(|name| run.join(name));
    Ok(named.into_iter().find(|path| !is_ours(path)))
}

fn read(folder: &Path, step: usize) -> Result<Checkpoint> {
    let sums = file::read_text(&folder.join(SUMS)).map_err(|e| lacking(SUMS, &e))?;
    for name in [TENSORS, STATE] {
        let found = amscript_nn::digest::hash_file(&folder.join(name)).map_err(|e| lacking(name, &e))?;
        if !sums.lines().any(|line| line == format!("{found}  {name}")) {
            bail!(File, "{name} is not what was written");
        }
    }
    let record = read_json(&folder.join(STATE))?;
    let archive = Archive::open(&folder.join(TENSORS))?;
    let damaged = || Error::new(Kind::File, format!("{STATE} lacks a part"));
    let number = |name: &str| record[name].as_u64().map(|n| n as usize).ok_or_else(damaged);
    if number("step")? != step {
        bail!(File, "it is the checkpoint of step {}", record["step"]);
    }
    let streams = record["streams"].as_object().ok_or_else(damaged)?;
    let counter = |v: &Value| v.as_str().and_then(|t| t.parse().ok()).ok_or_else(damaged);
    Ok(Checkpoint {
        step,
        total: number("total")?,
        state: restore(&record["state"], &archive)?,
        seconds: record["seconds"].as_f64().ok_or_else(damaged)?,
        streams: streams.iter().map(|(name, at)| Ok((name.clone(), counter(at)?))).collect::<Result<_>>()?,
        log: record["log"].clone(),
    })
}

fn lacking(name: &str, e: &std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(Kind::File, format!("{name} is missing")),
        std::io::ErrorKind::InvalidData => Error::new(Kind::File, format!("{name} is not what was written")),
        _ => file_error(Path::new(name), "read", e),
    }
}

/// Tensors of a state by a name that only one has.
#[derive(Default)]
pub(super) struct Tensors(BTreeMap<String, Stored>);

impl Tensors {
    /// Those of a state, and the state with markers in their place.
    pub fn of(state: &Saved) -> (Self, Value) {
        let mut tensors = Self::default();
        let state = tensors.take(state, "state");
        (tensors, state)
    }

    /// The bytes of one that this rank has for all.
    pub fn shard(&self, name: &str) -> Result<Vec<u8>> {
        match self.0.get(name) {
            Some(Stored::Shard(Shard { own: Some(tensor), .. })) => bytes::of(tensor),
            _ => bail!(Internal, "checkpoint: this rank must have `{name}`, and has not"),
        }
    }

    /// Tensors go to the list under their path; a marker stands in their place.
    fn take(&mut self, state: &Saved, path: &str) -> Value {
        match state {
            Saved::Plain(value) => value.clone(),
            Saved::Number(number) => json!({ NUMBER: format!("{number:?}") }),
            Saved::List(items) => Value::Array(
                items.iter().enumerate().map(|(i, item)| self.take(item, &format!("{path}/{i}"))).collect(),
            ),
            Saved::Map(entries) => {
                let escaped = |key: &str| format!("{}{key}", if key.starts_with(SIGN) { "$" } else { "" });
                let entries = entries.iter().map(|(k, v)| (escaped(k), self.take(v, &format!("{path}/{k}"))));
                Value::Object(entries.collect())
            }
            Saved::Tensor(tensor) => self.add(Stored::Whole(tensor.clone()), path),
            Saved::Shard(shard) => self.add(Stored::Shard(shard.clone()), path),
        }
    }

    fn add(&mut self, stored: Stored, path: &str) -> Value {
        let mut names = std::iter::once(path.to_string()).chain((2..).map(|i| format!("{path}#{i}")));
        let name = names.find(|name| !self.0.contains_key(name)).unwrap_or_default();
        self.0.insert(name.clone(), stored);
        json!({ TENSOR: name })
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
                _ => {
                    let plain = |key: &str| key.strip_prefix(SIGN).unwrap_or(key).to_string();
                    Saved::Map(map.iter().map(|(k, v)| Ok((plain(k), restore(v, archive)?))).collect::<Result<_>>()?)
                }
            }
        }
        plain => Saved::Plain(plain.clone()),
    })
}

/// What the folder of a step's checkpoint is called.
pub fn name(step: usize) -> String {
    format!("step-{step:06}")
}

/// The step of a folder that is named as a checkpoint is.
fn step_of(folder: &str) -> Option<usize> {
    folder.strip_prefix("step-")?.parse().ok().filter(|step| name(*step) == folder)
}

/// `.step-000100.tmp` for `step-000100`.
fn beside(folder: &Path, ending: &str) -> PathBuf {
    folder.with_file_name(format!(".{}.{ending}", folder.file_name().unwrap_or_default().display()))
}

/// Whether a folder, and no link to one, holds a file of a checkpoint, or nothing: a kill while it was removed leaves it empty.
fn is_ours(folder: &Path) -> bool {
    let empty = || file::entries(folder).is_ok_and(|inside| inside.is_empty());
    let has = |name: &&str| file::exists(&folder.join(name));
    file::itself(folder) == Some(file::FileType::Folder) && (FILES.iter().any(has) || empty())
}

/// Names of what is in a folder.
fn entries(run: &Path) -> Result<BTreeSet<String>> {
    let found = file::entries(run).map_err(|e| file_error(run, "read", &e))?;
    Ok(found.into_iter().filter_map(|(name, _)| name.into_string().ok()).collect())
}

/// Checkpoint folders with their steps, oldest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let named = entries(run)?.into_iter().filter_map(|name| Some((step_of(&name)?, run.join(name))));
    let mut found: Vec<_> = named.filter(|(_, folder)| is_ours(folder)).collect();
    found.sort();
    Ok(found)
}

fn remove(folder: &Path) -> Result<()> {
    file::remove_folder(folder, &FILES).map(drop).map_err(|e| file_error(folder, "remove", &e))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    file::rename(from, to).map_err(|e| file_error(to, "write", &e))
}

fn sync(folder: &Path) -> Result<()> {
    file::sync_folder(folder).map_err(|e| file_error(folder, "sync", &e))
}

#[cfg(test)]
mod tests;
