//! `metrics.jsonl`: one JSON object per logged step, and the lines people see.

use super::{panel, record::file_error, report::reading::unread};
use crate::screen::Series;
use amscript_base::{
    bail,
    context::Context,
    error::Result,
    file::{self, File},
    memory,
};
use amscript_tensor::show::number;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Logged values by name; each a number or several (NaN and infinities allowed, `null` in the file).
pub type Values = Vec<(String, Vec<f64>)>;

/// The name of the control's size at each active step: a profile, whose mean is logged beside it. It is neither printed nor drawn as a curve.
pub const PROFILE: &str = "intensity";

/// The log of a run. It holds no line that is in the file.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Lines taken over from before, as they were: parsing would change last digits. The file begins with them.
    kept: String,
    written: Written,
    /// The next step whose line is printed, and when the last one was.
    next: usize,
    printed: Instant,
}

/// How many lines a log has, and a digest of them.
#[derive(Clone, Default)]
struct Written {
    lines: usize,
    digest: Sha256,
}

impl Written {
    fn add(&mut self, line: &str) {
        self.lines += 1;
        self.digest.update(line);
        self.digest.update("\n");
    }

    fn sha256(&self) -> String {
        self.digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Most bytes of a log that is read.
const MOST: u64 = 4 << 30;

/// Lines printed of a loop, and the longest silence.
const LINES: usize = 20;
const SILENCE: Duration = Duration::from_secs(30);

impl Log {
    pub fn new(path: PathBuf) -> Self {
        let (written, printed) = (Written::default(), Instant::now());
        Self { path, file: None, kept: String::new(), written, next: 0, printed }
    }

    /// Adds a line to the file; returns its text where it should be printed.
    pub fn add(&mut self, step: usize, total: usize, values: Values) -> Result<Option<String>> {
        if let Some((name, _)) = values.iter().find(|(name, _)| name == "step") {
            bail!(Value, "log: `{name}` is set by the run; choose another name");
        }
        let line = as_json(step, &values).to_string();
        self.write(&format!("{line}\n")).map_err(|e| file_error(&self.path, "write", &e))?;
        self.written.add(&line);
        let due = step >= self.next || step == total || self.printed.elapsed() > SILENCE;
        let text = due.then(|| text(step, &values)).flatten();
        if text.is_some() {
            let every = (total / LINES).max(1);
            self.next = (step / every + 1) * every;
            self.printed = Instant::now();
        }
        Ok(text)
    }

    /// Appends to the file; the first time, starts it with the lines kept from before.
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        if !Context::current().group().speaks() {
            return Ok(());
        }
        if self.file.is_none() {
            file::write_whole(&self.path, std::mem::take(&mut self.kept).as_bytes())?;
            self.file = Some(file::append(&self.path)?);
        }
        self.file.iter_mut().try_for_each(|f| file::add(f, &self.path, line.as_bytes()))
    }

    /// Makes what was written last through a power cut; what a checkpoint remembers of it.
    pub fn sync(&mut self) -> Result<Value> {
        self.file.iter().try_for_each(File::sync_data).map_err(|e| file_error(&self.path, "sync", &e))?;
        Ok(json!({ "lines": self.written.lines, "sha256": self.written.sha256() }))
    }

    /// Takes over the lines of an earlier session up to a step; what is damaged, or not as a checkpoint remembers it, is said.
    /// What this session wrote before is written anew: a script that goes on repeats what comes before its steps.
    pub fn keep(&mut self, old: Lines, step: usize, remembered: &Value) -> Vec<String> {
        let (mut kept, mut written, mut same) = (String::new(), Written::default(), remembered["lines"] == 0);
        let mut added = false;
        for ((at, _), line) in old.read.iter().zip(&old.texts) {
            if *at <= step {
                // behind what the checkpoint knew stand lines of its own step alone
                added |= same && *at < step;
                kept.extend([line, "\n"]);
                written.add(line);
                same |= remembered["lines"] == written.lines && remembered["sha256"] == written.sha256();
            }
        }
        let mut notes = old.notes;
        if (!same || added) && !remembered.is_null() {
            let (n, left) = (&remembered["lines"], written.lines);
            notes.push(format!(
                "metrics.jsonl was changed: not the {n} lines that the checkpoint knew; {left} are kept"
            ));
        }
        (self.kept, self.written, self.file) = (kept, written, None);
        notes
    }

    /// What this session, and those that it took over from, wrote.
    pub fn lines(&self) -> Lines {
        if self.file.is_some() || !self.kept.is_empty() { Lines::read(&self.path) } else { Lines::default() }
    }
}

/// A log that was read.
#[derive(Default)]
pub struct Lines {
    /// Step and values of each line.
    pub read: Vec<(usize, Values)>,
    /// The same lines as they are.
    texts: Vec<String>,
    /// What could not be read, in words.
    pub notes: Vec<String>,
}

impl Lines {
    /// The lines of a log that can be read; the others are counted and the first few named.
    pub fn read(path: &Path) -> Self {
        let bytes = match file::read_within(path, MOST) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::default(),
            Err(e) => return Self { notes: vec![unread(path, &e)], ..Self::default() },
        };
        let (mut found, mut damaged, mut last) = (Self::default(), Vec::new(), 0);
        for (i, line) in
            bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty())
        {
            // what is read of it takes several times as much
            if let Err(e) = memory::room(line.len().checked_mul(16), || path.display()) {
                found.notes.push(format!("{}; what follows line {last} is left out", e.message));
                return found;
            }
            last = i + 1;
            let text = std::str::from_utf8(line).ok();
            match text.and_then(|text| Some((parse(serde_json::from_str(text).ok()?)?, text))) {
                Some((values, text)) => {
                    found.read.push(values);
                    found.texts.push(text.into());
                }
                None => damaged.push(last),
            }
        }
        // a line that is being written, or was when the run was killed
        if !bytes.ends_with(b"\n") && damaged.last() == Some(&last) {
            damaged.pop();
            found.notes.push(format!("metrics.jsonl: its last line, {last}, is cut and left out"));
        }
        if !damaged.is_empty() {
            let named: Vec<String> = damaged.iter().take(5).map(usize::to_string).collect();
            let more = if damaged.len() > named.len() { ", .." } else { "" };
            let (n, lines, read) = (damaged.len(), named.join(", "), found.read.len());
            found.notes.push(format!("metrics.jsonl: {n} damaged and left out (line {lines}{more}), {read} read"));
        }
        found
    }

    /// The numbers under one name, a line each.
    pub fn numbers(&self, name: &str) -> Vec<&[f64]> {
        under(&self.read, name).map(|(_, numbers)| numbers).collect()
    }

    /// The first numbers under one name at a step.
    pub fn at(&self, step: usize, name: &str) -> Option<&[f64]> {
        under(&self.read, name).find(|(at, _)| *at == step).map(|(_, numbers)| numbers)
    }
}

/// Step and numbers of each line that has something under one name.
pub fn under<'a>(lines: &'a [(usize, Values)], name: &str) -> impl Iterator<Item = (usize, &'a [f64])> {
    lines.iter().filter_map(move |(step, values)| {
        let (_, numbers) = values.iter().find(|(other, _)| other == name)?;
        Some((*step, numbers.as_slice()))
    })
}

/// Each value over the steps, of several numbers the mean; by name in the order they first came.
pub fn series(lines: &[(usize, Values)]) -> Vec<Series> {
    let mut out: Vec<Series> = Vec::new();
    for (step, values) in lines {
        for (name, numbers) in values {
            let point = (*step as f64, mean(numbers));
            match out.iter_mut().find(|s| s.name == *name) {
                Some(series) => series.points.push(point),
                None => out.push(Series { name: name.clone(), points: vec![point], ..Series::default() }),
            }
        }
    }
    out.retain(|s| s.points.iter().any(|p| p.1.is_finite()));
    out
}

/// Step and values of a line that was read; `None` without a step.
pub fn parse(line: Value) -> Option<(usize, Values)> {
    let Value::Object(mut map) = line else { return None };
    let step = map.shift_remove("step")?.as_u64()? as usize;
    Some((step, map.iter().map(|(name, v)| (name.clone(), from_json(v))).collect()))
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

fn as_json(step: usize, values: &Values) -> Value {
    let mut map = Map::from_iter([("step".to_string(), json!(step))]);
    map.extend(values.iter().map(|(name, numbers)| match numbers.as_slice() {
        [one] => (name.clone(), json!(one)),
        several => (name.clone(), json!(several)),
    }));
    Value::Object(map)
}

fn from_json(value: &Value) -> Vec<f64> {
    let one = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    value.as_array().map_or_else(|| vec![one(value)], |items| items.iter().map(one).collect())
}

/// `step 120  loss 0.1234  reward 0.5671`; of several numbers the mean. Nothing of a line with the panel alone.
fn text(step: usize, values: &Values) -> Option<String> {
    let shown = values.iter().filter(|(name, _)| name != PROFILE && !name.starts_with(panel::PREFIX));
    let words: Vec<String> = shown.map(|(name, v)| format!("{name} {}", number(mean(v)))).collect();
    (!words.is_empty()).then(|| format!("step {step:<5} {}", words.join("  ")))
}
