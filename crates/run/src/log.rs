//! `metrics.jsonl`: one JSON object per logged step, and the lines people see.

use super::{panel, record::file_error};
use crate::screen::Series;
use amscript_base::{
    bail,
    error::{Error, Kind, Result},
};
use amscript_tensor::show::number;
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Logged values by name; each a number or several (NaN and infinities allowed, `null` in the file).
pub type Values = Vec<(String, Vec<f64>)>;

/// The name of the control's size at each active step: a profile, whose mean is logged beside it. It is neither printed nor drawn as a curve.
pub const PROFILE: &str = "intensity";

/// The log of a run.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    lines: Vec<(usize, Values)>,
    /// Text of the lines taken over from before, as it was: parsing would change last digits.
    kept: String,
    /// The next step whose line is printed, and when the last one was.
    next: usize,
    printed: Instant,
}

/// Lines printed of a loop, and the longest silence.
const LINES: usize = 20;
const SILENCE: Duration = Duration::from_secs(30);

impl Log {
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, lines: Vec::new(), kept: String::new(), next: 0, printed: Instant::now() }
    }

    /// Adds a line to the file; returns its text where it should be printed.
    pub fn add(&mut self, step: usize, total: usize, values: Values) -> Result<Option<String>> {
        if let Some((name, _)) = values.iter().find(|(name, _)| name == "step") {
            bail!(Value, "log: `{name}` is set by the run; choose another name");
        }
        let line = as_json(step, &values);
        self.write(&format!("{line}\n")).map_err(|e| file_error(&self.path, "write", &e))?;
        let due = step >= self.next || step == total || self.printed.elapsed() > SILENCE;
        let text = due.then(|| text(step, &values)).flatten();
        if text.is_some() {
            let every = (total / LINES).max(1);
            self.next = (step / every + 1) * every;
            self.printed = Instant::now();
        }
        self.lines.push((step, values));
        Ok(text)
    }

    /// Appends to the file; the first time, starts it with the lines kept from before.
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        if self.file.is_none() {
            amscript_nn::files::write_whole(&self.path, self.kept.as_bytes())?;
            self.file = Some(OpenOptions::new().append(true).open(&self.path)?);
        }
        self.file.iter_mut().try_for_each(|f| f.write_all(line.as_bytes()))
    }

    /// Takes over the lines of an earlier run up to a step.
    pub fn keep(&mut self, step: usize) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let text = std::fs::read_to_string(&self.path).map_err(|e| file_error(&self.path, "read", &e))?;
        let damaged = || Error::new(Kind::File, format!("`{}` has a damaged line", self.path.display()));
        let (mut lines, mut kept) = (Vec::new(), String::new());
        for line in text.lines() {
            // the last line may be cut where the run was killed
            let Ok(map @ Value::Object(_)) = serde_json::from_str(line) else { break };
            let (at, values) = parse(map).ok_or_else(damaged)?;
            if at <= step {
                kept += &format!("{line}\n");
                lines.push((at, values));
            }
        }
        (self.lines, self.kept, self.file) = (lines, kept, None);
        Ok(())
    }

    /// The numbers under one name, a line each.
    pub fn numbers(&self, name: &str) -> Vec<&[f64]> {
        let own = self.lines.iter().filter_map(|(_, values)| values.iter().find(|(other, _)| other == name));
        own.map(|(_, numbers)| numbers.as_slice()).collect()
    }

    pub fn series(&self) -> Vec<Series> {
        series(&self.lines)
    }
}

/// Each value over the steps, of several numbers the mean; by name in the order they first came.
pub fn series(lines: &[(usize, Values)]) -> Vec<Series> {
    let mut out: Vec<Series> = Vec::new();
    for (step, values) in lines {
        for (name, numbers) in values {
            let point = (*step as f64, mean(numbers));
            match out.iter_mut().find(|s| s.name == *name) {
                Some(series) => series.points.push(point),
                None => out.push(Series { name: name.clone(), points: vec![point] }),
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
