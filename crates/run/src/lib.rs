//! The run directory: settings, log, images, checkpoints, plots, provenance.
//!
//! `run.json` what it was made from, `metrics.jsonl` one line per log, `images/`, `step-000100/` checkpoints, `curves.png`,
//! `result.json` what came out, `report.html` all of it as a page. Files appear whole or not at all. A run may hold others in folders of its own.
//!
//! Decisions:
//! * **Samples while training use no stream of the run**: the same prompts and noise each time, and a run with them is the run without.
//! * **`intensity` is the one profile in a log**: the control at each active step, drawn as a heat map, never among curves or printed lines.

pub mod estimate;
pub mod screen;

mod background;
pub mod checkpoint;
pub mod folder;
pub mod identity;
pub mod lock;
pub mod log;
pub mod panel;
pub mod plan;
mod ranks;
pub mod record;
pub mod report;
pub mod result;
pub mod roofline;
pub mod steps;
pub mod tensorboard;

pub use amscript_base::progress;
pub use checkpoint::{Checkpoint, Saved};
pub use estimate::Estimate;
pub use log::Values;
pub use record::Recipe;
pub use result::{Row, Table};
pub use steps::Steps;

use crate::screen::drawing;
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Result, warn_once};
use amscript_base::file;
use amscript_base::permissions::is_name;
use amscript_nn::data::image;
use amscript_tensor::{Rng, Stream, Tensor};
use background::Background;
use lock::{Lock, Locks};
use log::{Lines, Log};
use parking_lot::{Mutex, MutexGuard};
use progress::Progress;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The person who watches a run.
pub trait Console: Send + Sync {
    /// Shows a line; where a bar may be drawn, through [`progress::above_bar`].
    fn print(&self, line: &str);

    /// Whether the run is to end after the step that is running.
    ///
    /// All ranks ask at the same points, and get the same answer.
    fn stop_requested(&self) -> Result<bool>;

    /// Steps are running that end by themselves when that is requested.
    fn finish_steps(&self, running: bool);
    /// The rewards that the script opened: model, version, hash, preprocessing.
    fn rewards(&self) -> Vec<String> {
        Vec::new()
    }

    /// The run directories that this host holds.
    fn locks(&self) -> &Locks;

    /// A step begins, or (`None`) the last one ended well.
    fn begin_step(&self, step: Option<usize>);
}

/// What a run starts from.
pub struct Start {
    /// Where it writes; made if absent.
    pub folder: PathBuf,
    /// The name of a run inside that folder.
    pub name: Option<String>,
    pub recipe: Recipe,
    /// Resolved settings, as JSON.
    pub settings: Map<String, Value>,
    pub seed: u64,
    /// The device's name, for the record.
    pub device: String,
    pub console: Arc<dyn Console>,
    /// Whether another process writes this run, which only runs inside it are started from.
    pub observes: bool,
    /// Whether what differs from the run in the folder is recorded and no error.
    pub anyway: bool,
    /// Whether the files that were read are hashed and recorded.
    pub inputs: bool,
}

/// Takes the directory of a run inside another's, for a run that starts there while it is held; none where another process has it.
pub fn hold(outer: &Path, name: &str, locks: &Locks) -> Result<Option<Arc<Lock>>> {
    let folder = folder::inside(outer, name)?;
    file::make_folder(&folder).map_err(|e| record::file_error(&folder, "make", &e))?;
    locks.take_free(&folder)
}

/// A run; clones share it.
#[derive(Clone)]
pub struct Run(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    /// What to give as `--out` to go on.
    outer: PathBuf,
    root: Rng,
    console: Arc<dyn Console>,
    started: Instant,
    inputs: bool,
    anyway: bool,
    background: Mutex<Background>,
    /// Held by the process that writes.
    _lock: Option<Arc<Lock>>,
    state: Mutex<RunState>,
}

/// What changes as the run goes.
struct RunState {
    streams: BTreeMap<String, Stream>,
    log: Log,
    /// Steps done, counting the one that is running.
    step: usize,
    /// Steps of the loop that is running.
    total: usize,
    /// Names that were logged before there was a loop.
    ahead: BTreeSet<String>,
    /// Set by [`Run::restore`]: the loop starts behind these steps.
    resumed: usize,
    /// The last step in which a checkpoint was found not to be due.
    unsaved: Option<usize>,
    progress: Option<Progress>,
    /// Time that the steps took, in this and earlier sessions, and since when the loop has been running.
    spent: Duration,
    since: Option<Instant>,
    /// The loop ends after the step that is running.
    stopped: bool,
    /// `measures` of `result.json`, once a run with these settings came to its end.
    result: Option<Value>,
    /// What `run.json` holds, and of how many files it tells.
    record: Value,
    noted: usize,
    /// To be confirmed by the loop: see [`folder::Claim`].
    length: Option<folder::Length>,
    goes_on: bool,
}

impl RunState {
    /// Time that all steps took so far.
    fn spent(&self) -> Duration {
        self.spent + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Run {
    /// Makes the run directory, takes it, and writes `run.json`; see [`folder::claim`] for one that holds a run.
    pub fn start(start: Start) -> Result<Run> {
        let folder = match &start.name {
            Some(name) => folder::inside(&start.folder, name)?,
            None => start.folder.clone(),
        };
        let refused = |e: Error| e.within("start_run").hint("choose a folder that can be written with `--out`");
        let mut record = record::record(&start.recipe, &start.settings, start.seed, &start.device);
        record["rewards"] = start.console.rewards().into();
        let noted = Context::current().inputs.count();
        if start.inputs {
            record["inputs"] = identity::inputs(&start.folder)?.into();
        }
        let mut lock = None;
        let claim = ranks::claim(&record, || {
            if start.observes {
                return Ok(folder::Claim::new(record.clone()));
            }
            file::make_folder(&folder).map_err(|e| refused(record::file_error(&folder, "make", &e)))?;
            lock = Some(start.console.locks().take(&folder).map_err(|e| e.within("start_run"))?);
            folder::claim(&folder, record.clone(), start.name.is_some(), start.anyway)
        })?;
        let done = if start.name.is_some() && claim.finished.is_some() { ", done before" } else { "" };
        start.console.print(&format!("run directory {}{done}", folder.display()));
        claim.notes.iter().for_each(|note| start.console.print(note));
        let state = RunState {
            streams: BTreeMap::new(),
            log: Log::new(folder.join("metrics.jsonl")),
            step: 0,
            total: 0,
            ahead: BTreeSet::new(),
            resumed: 0,
            unsaved: None,
            progress: None,
            spent: Duration::ZERO,
            since: None,
            stopped: false,
            result: claim.finished,
            record: claim.record,
            noted,
            length: claim.length,
            goes_on: claim.goes_on,
        };
        Ok(Run(Arc::new(Inner {
            folder,
            outer: start.folder,
            root: Rng::new(start.seed),
            console: start.console,
            started: Instant::now(),
            inputs: start.inputs,
            anyway: start.anyway,
            background: Mutex::default(),
            _lock: lock,
            state: Mutex::new(state),
        })))
    }

    fn state(&self) -> MutexGuard<'_, RunState> {
        self.0.state.lock()
    }

    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    fn print(&self, line: &str) {
        self.0.console.print(line);
    }

    /// The random stream of that name; asked for again, it goes on where it was.
    pub fn stream(&self, name: &str) -> Stream {
        let fresh = || Stream::new(self.0.root.split(name));
        self.state().streams.entry(name.to_string()).or_insert_with(fresh).clone()
    }

    /// Steps `0..total`, or those that are left after [`Run::restore`].
    pub fn steps(&self, total: usize) -> Steps {
        Steps::new(self.clone(), total)
    }

    /// The loop of steps ends, as at its end, after the one that is running; before the loop, without a step.
    pub fn stop(&self) {
        self.state().stopped = true;
    }

    /// Adds a line to `metrics.jsonl`; about twenty of a loop, and one every half minute, are printed too.
    pub fn log(&self, values: Values) -> Result<()> {
        let mut state = self.state();
        let (step, ahead) = (state.step, state.step == 0 && state.total == 0);
        let again = values.iter().find(|(name, _)| ahead && !state.ahead.insert(name.clone()));
        if let Some((name, _)) = again {
            let hint = "write `for i in run.steps(n)`, or give the step, `run.log(values, i)`";
            warn_once("logged again", &format!("log: `{name}` is logged at step 0 again: {hint}"));
        }
        drop(state);
        self.log_at(step, values)
    }

    /// The same of another step than the one that is running.
    pub fn log_at(&self, step: usize, values: Values) -> Result<()> {
        let mut state = self.state();
        let total = state.total;
        let line = state.log.add(step, total, values)?;
        let plain = state.progress.as_ref().and_then(|p| p.plain(step.saturating_sub(1)));
        drop(state);
        if let Some(line) = line {
            self.print(&plain.map_or(line.clone(), |left| format!("{line}  ({left})")));
        }
        Ok(())
    }

    /// Writes `images/<name>-<step>.png` (without the step outside a loop): a grid of a batch, or one image as it is. Captions
    /// stand under the images, and line by line in a `.txt` of the same name. The file is there when the run is finished or dropped.
    pub fn images(&self, name: &str, images: &Tensor, captions: &[String]) -> Result<PathBuf> {
        if !is_name(name.as_ref()) {
            bail!(Value, "images: the name must be that of a file, got \"{name}\""; hint: "such as \"samples\"");
        }
        let folder = self.folder().join("images");
        if !Context::current().group().speaks() {
            return Ok(folder);
        }
        file::make_folder(&folder).map_err(|e| record::file_error(&folder, "make", &e))?;
        let state = self.state();
        let file = match state.progress {
            Some(_) => format!("{name}-{:06}", state.step),
            None => name.to_string(),
        };
        drop(state);
        let path = folder.join(format!("{file}.png"));
        let batch = images.dims().first().copied().unwrap_or(1);
        let alone = images.rank() == 3 || (batch == 1 && captions.is_empty());
        let picture = if alone {
            image::to_rgb(images)?
        } else {
            let text = image::GridText { captions: captions.to_vec(), header: Vec::new() };
            image::grid(images, batch.min(8), &text)?
        };
        let lines: String = captions.iter().map(|c| c.replace(['\r', '\n'], " ") + "\n").collect();
        let (to, text) = (path.clone(), folder.join(format!("{file}.txt")));
        self.0.background.lock().push(move || {
            image::write(&picture, &to)?;
            if lines.is_empty() { Ok(()) } else { record::write_text(&text, &lines) }
        })?;
        Ok(path)
    }

    /// Whether a checkpoint is due in this step: every so many steps, at the loop's end, and after Ctrl-C. Where it is not, Ctrl-C
    /// later in the step ends the next one.
    pub fn due(&self, every: usize) -> Result<bool> {
        let (step, total, stopped) = {
            let state = self.state();
            (state.step, state.total, state.stopped)
        };
        let last = step == total || stopped;
        let asked = step.is_multiple_of(every.max(1)) || last || self.0.console.stop_requested()?;
        self.state().unsaved = (!asked).then_some(step);
        Ok(step > 0 && asked)
    }

    /// Writes `step-<step>/`: the script's state and the counters of the random streams.
    pub fn checkpoint(&self, saved: Saved) -> Result<()> {
        let checkpoint = {
            let mut state = self.state();
            let counters = state.streams.iter().map(|(name, s)| (name.clone(), s.draw(|rng| rng.counter()))).collect();
            let (step, total, seconds, log) = (state.step, state.total, state.spent().as_secs_f64(), state.log.sync()?);
            Checkpoint { step, total, state: saved, streams: counters, seconds, log }
        };
        ranks::save(&checkpoint, |ask| {
            self.note_inputs()?;
            self.0.background.lock().check()?;
            checkpoint::save(self.folder(), &checkpoint, ask).map(drop)
        })
    }

    /// The state of the last whole checkpoint in the run directory, if there is one; the next step loop goes on behind it.
    pub fn restore(&self) -> Result<Option<Saved>> {
        let (found, damage) = checkpoint::latest(self.folder())?;
        ranks::found(self.folder(), found.as_ref().map(|found| found.step))?;
        let Some(found) = found else { return Ok(None) };
        for note in damage {
            self.print(&format!("damaged: {note}; the checkpoint before is taken, of step {}", found.step));
        }
        for (name, counter) in &found.streams {
            self.stream(name).draw(|rng| rng.set_counter(*counter));
        }
        let mut state = self.state();
        let notes = state.log.keep(Lines::read(&self.folder().join("metrics.jsonl")), found.step, &found.log);
        (state.resumed, state.step) = (found.step, found.step);
        state.spent = Duration::try_from_secs_f64(found.seconds).unwrap_or_default();
        drop(state);
        notes.iter().for_each(|note| self.print(note));
        self.print(&format!("resuming after step {}", found.step));
        Ok(Some(found.state))
    }

    /// Before the first step: the loop has the length that was taken for granted, and files are those that the run began with.
    fn confirm(&self, total: usize) -> Result<()> {
        let (length, done) = {
            let mut state = self.state();
            (state.length.take(), state.step)
        };
        if let Some(length) = length {
            if length.now != total || done == 0 {
                return Err(length.refused);
            }
            folder::forget_result(self.folder())?;
            record::write_json(&self.folder().join("run.json"), &self.state().record)?;
            self.print(&format!("to go on to step {total}; a schedule over the length is that of the new one"));
        }
        if self.0.inputs {
            ranks::same_inputs(&identity::inputs(&self.0.outer)?)?;
        }
        self.note_inputs()?;
        self.state().goes_on = false;
        Ok(())
    }

    /// Takes the files that were read since into the record. One whose content is not what the run began with is an error; so is one
    /// that it did not begin with, until the steps of a run that goes on.
    fn note_inputs(&self) -> Result<()> {
        let count = Context::current().inputs.count();
        if !self.0.inputs || self.state().noted == count {
            return Ok(());
        }
        let read = identity::inputs(&self.0.outer)?;
        let mut state = self.state();
        let known = state.record["inputs"].as_object().cloned().unwrap_or_default();
        let other = |(path, hash): &(&String, &Value)| match known.get(*path) {
            Some(before) => before != *hash,
            None => state.goes_on && !known.values().any(|before| before == *hash),
        };
        let others: Vec<_> =
            read.iter().filter(other).map(|(path, _)| identity::Difference::Input(path.clone())).collect();
        if !others.is_empty() {
            if !self.0.anyway {
                return Err(folder::refusal(self.folder(), &others));
            }
            others.iter().for_each(|found| self.print(&format!("going on all the same: {found}")));
            let old = state.record.clone();
            state.record = identity::after(old.clone(), old, checkpoint::last_step(self.folder()));
        }
        state.record["inputs"] = known.into_iter().chain(read).collect::<Map<_, _>>().into();
        state.noted = count;
        record::write_json(&self.folder().join("run.json"), &state.record)
    }

    /// Steps done, counting the one that is running.
    pub fn step(&self) -> usize {
        self.state().step
    }

    /// Mean seconds of a step so far, those before a resume included.
    pub fn seconds_per_step(&self) -> f64 {
        let state = self.state();
        state.spent().as_secs_f64() / state.step as f64
    }

    /// Row, column, estimate: what `result.json` holds if a run with these settings came to its end, also before this session, and made no step since.
    pub fn result(&self) -> Option<Value> {
        self.state().result.clone()
    }

    /// Writes `result.json`, `result.csv`, `curves.png` and `report.html` and prints the table.
    pub fn finish(&self, table: &Table) -> Result<()> {
        let result = ranks::result(|| {
            self.write_results(table)?;
            Ok(self.result().unwrap_or_default())
        })?;
        self.state().result = Some(result);
        Ok(())
    }

    fn write_results(&self, table: &Table) -> Result<()> {
        self.note_inputs()?;
        self.0.background.lock().wait()?;
        let lines = self.state().log.lines();
        panel::text(&lines).iter().for_each(|line| self.print(line));
        let seconds = self.0.started.elapsed().as_secs_f64();
        let mut result = result::json(self.folder(), table, self.step(), seconds)?;
        result["rewards"] = self.0.console.rewards().into();
        record::write_json(&self.folder().join("result.json"), &result)?;
        self.state().result = Some(result["measures"].take());
        if !table.rows.is_empty() {
            record::write_text(&self.folder().join("result.csv"), &table.csv()?)?;
            self.print(&table.text()?);
        }
        let curves: Vec<_> = panel::curves(&lines.read).into_iter().filter(|(s, _)| s.drawable()).collect();
        if !curves.is_empty() {
            image::write(&drawing::panels(&curves)?, &self.folder().join("curves.png"))?;
        }
        let page = self.folder().join("report.html");
        // the results are written: a page that cannot be is no reason to fail
        match report::Report::of(&[self.folder().into()]).and_then(|report| report.write(&page)) {
            Ok(_) => self.print(&format!("results in {}, to look at in {}", self.folder().display(), page.display())),
            Err(e) => self.print(&format!("results in {}, without a page: {}", self.folder().display(), e.message)),
        }
        Ok(())
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "run({})", self.folder().display())
    }
}

#[cfg(test)]
mod tests;
