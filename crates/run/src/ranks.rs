//! What the processes of one run tell one another of its directory. The first reads what is there and writes; each sees that it is the
//! same run as the first.

use super::checkpoint::{self, Checkpoint, Tensors};
use super::folder::{Claim, Length};
use super::identity;
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::group::Ask;
use serde_json::{Map, Value, json};
use std::path::Path;

const UNREADABLE: &str = "ranks: what the first says must be JSON";

fn parse(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(Kind::Internal, format!("{UNREADABLE} ({e})")))
}

/// What the first finds in the directory, after all have been found to be the same run by their records.
pub fn claim(record: &Value, claim: impl FnOnce() -> Result<Claim>) -> Result<Claim> {
    let group = Context::current().group();
    if group.size() == 1 {
        return claim();
    }
    group.same("start_run", record.to_string().as_bytes(), |rank, first, other| {
        let [first, other] = [first, other].map(|bytes| parse(bytes).unwrap_or_default());
        let found = identity::differences(&first, &other).first()?.to_string();
        Some(apart(rank, &found))
    })?;
    let mut own = None;
    let said = group.from_first("run directory", || {
        let claim = own.insert(claim()?);
        let (finished, goes_on, record) = (&claim.finished, claim.goes_on, &claim.record);
        let length = claim.length.as_ref().map(|length| length.now);
        Ok(json!({ "finished": finished, "goes_on": goes_on, "record": record, "length": length })
            .to_string()
            .into_bytes())
    })?;
    if let Some(own) = own {
        return Ok(own);
    }
    let said = parse(&said)?;
    let refused = Error::new(Kind::Value, "start_run: the loop has another length than the first rank's");
    Ok(Claim {
        record: said["record"].clone(),
        finished: Some(said["finished"].clone()).filter(|finished| !finished.is_null()),
        length: said["length"].as_u64().map(|now| Length { now: now as usize, refused }),
        goes_on: said["goes_on"] == true,
        notes: Vec::new(),
    })
}

fn apart(rank: usize, found: &str) -> Error {
    let message = format!("ranks: all must be the same run, got rank 0 with {found} on rank {rank}");
    Error::new(Kind::Value, message).hint("give every process the same command line, files and binary")
}

/// All have read files of the same content.
pub fn same_inputs(own: &Map<String, Value>) -> Result<()> {
    let group = Context::current().group();
    if group.size() == 1 {
        return Ok(());
    }
    group.same("files read", Value::from(own.clone()).to_string().as_bytes(), |rank, first, other| {
        let [first, other] = [first, other].map(|bytes| json!({ "inputs": parse(bytes).unwrap_or_default() }));
        let found = identity::differences(&first, &other).first()?.to_string();
        Some(apart(rank, &found))
    })
}

/// All see the checkpoint of the same step.
pub fn found(folder: &Path, step: Option<usize>) -> Result<()> {
    let group = Context::current().group();
    let own = step.map_or("none".into(), |step| format!("the one of step {step}"));
    group.same("restore", own.as_bytes(), |rank, first, other| {
        let [first, other] = [first, other].map(String::from_utf8_lossy);
        let message = format!(
            "restore: all ranks must see the same checkpoint in `{}`, got {first} on rank 0 and {other} on rank {rank}",
            folder.display()
        );
        let error = || Error::new(Kind::File, message).hint("give an `--out` in a file system that all machines share");
        (first != other).then(error)
    })
}

/// The first saves what is the same on all ranks, and what it asks the others for.
pub fn save(checkpoint: &Checkpoint, save: impl FnOnce(Ask) -> Result<()>) -> Result<()> {
    let group = Context::current().group();
    if group.size() == 1 {
        return save(&|rank, name| bail!(Internal, "checkpoint: `{name}` is on rank {rank}, and there is none"));
    }
    group.same("checkpoint", checkpoint::digest(checkpoint)?.as_bytes(), |rank, first, other| {
        let message = format!("checkpoint: all ranks must have the same state, got another one on rank {rank}");
        (first != other)
            .then(|| Error::new(Kind::Value, message).hint("what a script does must not depend on the rank"))
    })?;
    let (tensors, _) = Tensors::of(&checkpoint.state);
    let have = |name: &str| tensors.shard(name);
    group.from_first_asking("checkpoint saved", have, |ask| save(ask).map(|()| Vec::new())).map(drop)
}

/// What the first wrote as the result.
pub fn result(write: impl FnOnce() -> Result<Value>) -> Result<Value> {
    let group = Context::current().group();
    if group.size() == 1 {
        return write();
    }
    let said = group.from_first("results", || Ok(write()?.to_string().into_bytes()))?;
    match parse(&said)? {
        Value::Null => bail!(Internal, "results: the first rank must have some, got none"),
        found => Ok(found),
    }
}
