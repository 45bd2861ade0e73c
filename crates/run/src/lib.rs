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

pub mod checkpoint;
pub mod folder;
pub mod log;
pub mod panel;
pub mod plan;
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
use amscript_base::error::Result;
use amscript_nn::data::image;
use amscript_tensor::{Rng, Stream, Tensor};
use log::Log;
use parking_lot::{Mutex, MutexGuard};
use progress::Progress;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The person who watches a run.
pub trait Console: Send + Sync {
    /// Shows a line; where a bar may be drawn, through [`progress::above_bar`].
    fn print(&self, line: &str);

    /// Whether the run is to end after the step that is running.
    fn stop_requested(&self) -> bool;

    /// Steps are running that end by themselves when that is requested.
    fn finish_steps(&self, running: bool);
    /// The rewards that the script opened: model, version, hash, preprocessing.
    fn rewards(&self) -> Vec<String> {
        Vec::new()
    }

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
}

impl RunState {
    /// Time that all steps took so far.
    fn spent(&self) -> Duration {
        self.spent + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Run {
    /// Makes the run directory and writes `run.json`.
    pub fn start(start: Start) -> Result<Run> {
        let folder = match &start.name {
            Some(name) => folder::inside(&start.folder, name)?,
            None => start.folder.clone(),
        };
        let mut record = record::record(&start.recipe, &start.settings, start.seed, &start.device);
        record["rewards"] = start.console.rewards().into();
        let result = folder::claim(&folder, &record, start.name.is_some())?;
        let done = if start.name.is_some() && result.is_some() { ", done before" } else { "" };
        start.console.print(&format!("run directory {}{done}", folder.display()));
        let state = RunState {
            streams: BTreeMap::new(),
            log: Log::new(folder.join("metrics.jsonl")),
            step: 0,
            total: 0,
            resumed: 0,
            unsaved: None,
            progress: None,
            spent: Duration::ZERO,
            since: None,
            stopped: false,
            result,
        };
        Ok(Run(Arc::new(Inner {
            folder,
            outer: start.folder,
            root: Rng::new(start.seed),
            console: start.console,
            started: Instant::now(),
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
        let step = self.state().step;
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
    /// stand under the images, and line by line in a `.txt` of the same name.
    pub fn images(&self, name: &str, images: &Tensor, captions: &[String]) -> Result<PathBuf> {
        let folder = self.folder().join("images");
        std::fs::create_dir_all(&folder).map_err(|e| record::file_error(&folder, "make", &e))?;
        let state = self.state();
        let file = match state.progress {
            Some(_) => format!("{name}-{:06}", state.step),
            None => name.to_string(),
        };
        drop(state);
        let path = folder.join(format!("{file}.png"));
        let alone = images.rank() == 3 || (images.dims()[0] == 1 && captions.is_empty());
        let picture = if alone {
            image::to_rgb(images)?
        } else {
            let text = image::GridText { captions: captions.to_vec(), header: Vec::new() };
            image::grid(images, images.dims()[0].min(8), &text)?
        };
        image::write(&picture, &path)?;
        if !captions.is_empty() {
            let lines: String = captions.iter().map(|c| c.replace(['\r', '\n'], " ") + "\n").collect();
            record::write_text(&folder.join(format!("{file}.txt")), &lines)?;
        }
        Ok(path)
    }

    /// Whether a checkpoint is due in this step: every so many steps, at the loop's end, and after Ctrl-C. Where it is not, Ctrl-C
    /// later in the step ends the next one.
    pub fn due(&self, every: usize) -> bool {
        let mut state = self.state();
        let step = state.step;
        let last = step == state.total || state.stopped;
        let asked = step.is_multiple_of(every.max(1)) || last || self.0.console.stop_requested();
        state.unsaved = (!asked).then_some(step);
        step > 0 && asked
    }

    /// Writes `step-<step>/`: the script's state and the counters of the random streams.
    pub fn checkpoint(&self, saved: Saved) -> Result<()> {
        let checkpoint = {
            let state = self.state();
            let counters = state.streams.iter().map(|(name, s)| (name.clone(), s.draw(|rng| rng.counter())));
            let seconds = state.spent().as_secs_f64();
            Checkpoint { step: state.step, state: saved, streams: counters.collect(), seconds }
        };
        checkpoint::save(self.folder(), &checkpoint).map(drop)
    }

    /// The state of the last good checkpoint in the run directory, if there is one; the next step loop goes on behind it.
    pub fn restore(&self) -> Result<Option<Saved>> {
        let Some(found) = checkpoint::latest(self.folder())? else { return Ok(None) };
        for (name, counter) in &found.streams {
            self.stream(name).draw(|rng| rng.set_counter(*counter));
        }
        let mut state = self.state();
        state.log.keep(found.step)?;
        (state.resumed, state.step) = (found.step, found.step);
        state.spent = Duration::try_from_secs_f64(found.seconds).unwrap_or_default();
        drop(state);
        self.print(&format!("resuming after step {}", found.step));
        Ok(Some(found.state))
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

    /// Row, column, estimate: what `result.json` holds if a run with these settings came to its end, also before this session.
    pub fn result(&self) -> Option<Value> {
        self.state().result.clone()
    }

    /// Writes `result.json`, `result.csv`, `curves.png` and `report.html` and prints the table.
    pub fn finish(&self, table: &Table) -> Result<()> {
        let (series, panel, steps) = {
            let state = self.state();
            let curves = state.log.series().into_iter().filter(|s| s.name != log::PROFILE);
            (panel::beside(curves.collect()), panel::text(&state.log), state.step)
        };
        if !series.is_empty() {
            image::write(&drawing::panels(&series)?, &self.folder().join("curves.png"))?;
        }
        panel.iter().for_each(|line| self.print(line));
        let seconds = self.0.started.elapsed().as_secs_f64();
        let mut result = result::json(self.folder(), table, steps, seconds)?;
        result["rewards"] = self.0.console.rewards().into();
        record::write_json(&self.folder().join("result.json"), &result)?;
        self.state().result = Some(result["measures"].take());
        if !table.rows.is_empty() {
            record::write_text(&self.folder().join("result.csv"), &table.csv()?)?;
            self.print(&table.text()?);
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
