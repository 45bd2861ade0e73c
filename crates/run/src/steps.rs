//! The steps of a run as an iterator: progress, and an end after the step in which Ctrl-C came.

use super::{
    Run,
    progress::{Progress, span},
};
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result, warn_once};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Steps of a run; ends with an error when the user interrupts.
pub struct Steps {
    run: Run,
    next: usize,
    first: usize,
    total: usize,
    started: Instant,
    running: bool,
}

impl Steps {
    pub(super) fn new(run: Run, total: usize) -> Self {
        let first = std::mem::take(&mut run.state().resumed).min(total);
        Self { run, next: first, first, total, started: Instant::now(), running: false }
    }

    fn begin(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.running, true) {
            self.run.confirm(self.total)?;
            self.run.0.console.finish_steps(true);
            self.started = Instant::now();
            Context::current().shares.store(false, Ordering::Relaxed);
            let mut state = self.run.state();
            state.total = self.total;
            state.since = Some(self.started);
            state.progress = Some(Progress::new("", self.first, self.total));
        }
        Ok(())
    }

    fn interrupted(&mut self) -> Error {
        let run = self.run.clone();
        let (folder, outer) = (run.folder().display(), run.0.outer.display());
        let error = Error::new(Kind::Interrupt, format!("interrupted after step {} of {}", self.next, self.total));
        self.end();
        match super::checkpoint::last_step(self.run.folder()) {
            Some(step) => error.hint(format!("run again with `--out {outer}` to go on after step {step}")),
            None => error.hint(format!("what was written is in {folder}")),
        }
    }

    /// Says that all ranks do the same, where they shared nothing of the first step.
    fn tell_of_repetition(&self) {
        let (context, group) = (Context::current(), Context::current().group());
        let alike = group.size() > 1 && group.speaks() && !context.shares.load(Ordering::Relaxed);
        if alike && self.next == self.first + 1 {
            let ranks = group.size();
            warn_once("repetition", &format!("all {ranks} ranks do the whole of each step; `in_parts` parts it"));
        }
    }

    /// Whether the loop is to end here; not behind a step whose checkpoint was passed over, which could not be gone on from.
    fn stops(&self) -> Result<bool> {
        let saved = self.run.state().unsaved != Some(self.next);
        Ok(saved && self.run.0.console.stop_requested()?)
    }

    /// Takes the bar away; says once how long the loop took.
    fn end(&mut self) {
        if std::mem::take(&mut self.running) {
            self.run.0.console.finish_steps(false);
            let mut state = self.run.state();
            state.progress = None;
            state.spent = state.spent();
            state.since = None;
            let stopped = state.stopped;
            drop(state);
            let done = self.next - self.first;
            if done > 0 && (self.next == self.total || stopped) {
                let time = self.started.elapsed();
                let each = span(time / done as u32);
                let s = if done == 1 { "" } else { "s" };
                self.run.print(&format!("{done} step{s} in {}, {each} a step", span(time)));
            }
        }
    }
}

impl Iterator for Steps {
    type Item = Result<usize>;

    fn next(&mut self) -> Option<Result<usize>> {
        if let Err(error) = self.begin() {
            return Some(Err(error));
        }
        if let Some(progress) = &self.run.state().progress {
            progress.tick(self.next);
        }
        self.tell_of_repetition();
        match self.stops() {
            Ok(false) => {}
            Ok(true) => return Some(Err(self.interrupted())),
            Err(error) => return Some(Err(error)),
        }
        if self.next >= self.total || self.run.state().stopped {
            self.end();
            self.run.0.console.begin_step(None);
            return None;
        }
        self.run.0.console.begin_step(Some(self.next));
        self.next += 1;
        let mut state = self.run.state();
        state.step = self.next;
        state.result = None; // of fewer steps
        drop(state);
        Some(Ok(self.next - 1))
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.end();
    }
}
