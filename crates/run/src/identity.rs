//! What makes a run the same run: recipe, settings, seed, versions, and the files it reads, by their hashes.

use super::record::hash_file;
use amscript_base::context::Context;
use amscript_base::error::Result;
use amscript_base::file;
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::Path;

/// One thing that a run began with and does not go on with.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// A setting, or the seed.
    Setting { key: String, before: Value, now: Value },
    /// A version: of amscript, candle, Rhai, the random numbers.
    Version { of: String, before: Value, now: Value },
    /// The recipe's text.
    Recipe,
    /// A file by its path.
    Input(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { key, before, now } => write!(f, "{key} = {before}, got {key} = {now}"),
            Self::Version { of, before, now } => {
                let plain = |version: &Value| version.as_str().unwrap_or("unknown").to_string();
                write!(f, "version {} of {of}, got {}", plain(before), plain(now))
            }
            Self::Recipe => f.write_str("another text of the recipe"),
            Self::Input(path) => write!(f, "another content of the file `{path}`"),
        }
    }
}

/// What differs between the `run.json` that is there and the one that a run would write.
pub fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let mut found =
        changed(&old["settings"], &new["settings"], |key, before, now| Difference::Setting { key, before, now });
    if found.is_empty() && old["seed"] != new["seed"] {
        found.push(Difference::Setting { key: "seed".into(), before: old["seed"].clone(), now: new["seed"].clone() });
    }
    if old["recipe"]["sha256"] != new["recipe"]["sha256"] {
        found.push(Difference::Recipe);
    }
    found.extend(changed(&old["versions"], &new["versions"], |of, before, now| Difference::Version {
        of,
        before,
        now,
    }));
    found.extend(
        inputs_of(new)
            .filter(|(_, hash)| !inputs_of(old).any(|(_, known)| known == *hash))
            .map(|(path, _)| Difference::Input(path.clone())),
    );
    found
}

fn inputs_of(record: &Value) -> impl Iterator<Item = (&String, &Value)> {
    record["inputs"].as_object().into_iter().flatten()
}

fn changed(old: &Value, new: &Value, difference: impl Fn(String, Value, Value) -> Difference) -> Vec<Difference> {
    let keys = |value: &Value| value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    let mut all = keys(new);
    all.extend(keys(old).into_iter().filter(|key| new.get(key).is_none()));
    let differing = all.into_iter().filter(|key| old[key.as_str()] != new[key.as_str()]);
    differing.map(|key| difference(key.clone(), old[key.as_str()].clone(), new[key.as_str()].clone())).collect()
}

/// The new length of the loop, if the one thing that differs is a setting that was `total`, the loop's length, and is more now.
pub fn length(differences: &[Difference], total: Option<usize>) -> Option<usize> {
    let [Difference::Setting { before, now, .. }] = differences else { return None };
    let (before, now) = (before.as_u64()? as usize, now.as_u64()? as usize);
    (Some(before) == total && now > before).then_some(now)
}

/// What may change the last digits and is no other run: device and threads.
pub fn place(old: &Value, new: &Value) -> Vec<String> {
    let differing = ["device", "threads"].into_iter().filter(|key| old[*key] != new[*key]);
    let said = |key: &str| {
        format!("warning: begun with {key} {}, goes on with {}: last digits may differ", old[key], new[key])
    };
    differing.map(said).collect()
}

/// The record of a run that goes on with what differs: the present one, and under `earlier` those before, each with the step
/// up to which it held.
pub fn after(mut old: Value, mut new: Value, step: Option<usize>) -> Value {
    let mut earlier = old["earlier"].take().as_array().cloned().unwrap_or_default();
    if let Some(fields) = old.as_object_mut() {
        fields.shift_remove("earlier");
        fields.insert("up_to_step".into(), json!(step.unwrap_or(0)));
    }
    earlier.push(old);
    new["earlier"] = earlier.into();
    new
}

/// The files that this host has read so far, with their hashes, but those in the run's own folder.
pub fn inputs(run: &Path) -> Result<Map<String, Value>> {
    let context = Context::current();
    let own = file::real(run).unwrap_or_else(|_| run.into());
    let read = context.inputs.hashed(|path| hash_file(path).or_else(|e| context.interrupt.check().and(Err(e))))?;
    let others = read.into_iter().filter(|(path, _)| !path.starts_with(&own));
    Ok(others.map(|(path, hash)| (path.display().to_string(), hash.into())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(steps: i64, batch: i64) -> Value {
        json!({
            "settings": { "steps": steps, "batch": batch }, "seed": 1, "recipe": { "sha256": "a" },
            "versions": { "amscript": "1" }, "inputs": { "/p.txt": "x" }, "device": "cpu", "threads": 2,
        })
    }

    #[test]
    fn each_part_is_told_apart() {
        let same = record(4, 4);
        assert_eq!(differences(&same, &same), []);
        let changes = [
            ("settings", "steps", "steps = 4, got steps = \"other\""),
            ("versions", "amscript", "version 1 of amscript, got other"),
            ("recipe", "sha256", "another text of the recipe"),
            ("inputs", "/p.txt", "another content of the file `/p.txt`"),
        ];
        for (part, key, words) in changes {
            let mut other = same.clone();
            other[part][key] = "other".into();
            let found = differences(&same, &other);
            assert_eq!(found.iter().map(Difference::to_string).collect::<Vec<_>>(), [words]);
        }
        let mut moved = same.clone();
        moved["inputs"] = json!({ "/elsewhere.txt": "x" });
        assert_eq!(differences(&same, &moved), [], "a file may lie elsewhere");
        moved["settings"] = json!({ "steps": 4 });
        assert_eq!(differences(&same, &moved).len(), 1, "a setting that is gone");
        moved["device"] = "cuda".into();
        assert_eq!(place(&same, &moved).len(), 1);
    }

    #[test]
    fn only_the_loops_length_alone_is_a_length() {
        let length_of = |new: Value, total| length(&differences(&record(4, 4), &new), total);
        assert_eq!(length_of(record(6, 4), Some(4)), Some(6));
        assert_eq!(length_of(record(6, 4), Some(5)), None);
        assert_eq!(length_of(record(3, 4), Some(4)), None);
        assert_eq!(length_of(record(6, 6), Some(4)), None);
        assert_eq!(length_of(record(6, 4), None), None);
    }

    #[test]
    fn records_of_before_are_kept() {
        let twice = after(after(record(1, 1), record(2, 1), Some(1)), record(3, 1), Some(2));
        assert_eq!(twice["earlier"][0]["up_to_step"], 1);
        assert_eq!(twice["earlier"][1]["settings"]["steps"], 2);
        assert!(twice["earlier"][1]["earlier"].is_null() && twice["settings"]["steps"] == 3);
    }
}
