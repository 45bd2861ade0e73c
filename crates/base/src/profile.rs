//! Where time and memory of a run go: by phase of an update and by op, for `amscript run --profile`.
//!
//! Times exclude what is measured inside: a phase's those of phases within it, an op's backward those of ops run again in it. What
//! passes between two ops counts for the later one. An op says its own name; phases are named where an update is put together.

use crate::context::Context;
use crate::progress::Progress;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Totals under one name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub calls: usize,
    pub time: Duration,
    /// Bytes held at most: by the process at the end of a phase (0 where that is not known), or by tensors without numbers at any time.
    pub held: u64,
    /// Multiplications and additions: of an op's kernels, or of a phase on tensors without numbers.
    pub work: f64,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// By name; `script` is everything outside the others.
    pub phases: BTreeMap<&'static str, Totals>,
    /// Forward and backward, by name.
    pub ops: BTreeMap<&'static str, [Totals; 2]>,
}

struct ProfileState {
    found: Profile,
    /// Phases that have begun and not ended, the innermost last.
    open: Vec<&'static str>,
    /// Since when time is the innermost phase's.
    phase: Instant,
    /// Since when time is the next op's.
    op: Instant,
    /// Whether a run on tensors without numbers has said what it holds.
    traced: bool,
    /// Called before time is taken.
    wait: Option<Wait>,
}

/// Waits until a device has done what it was asked for.
pub type Wait = Box<dyn Fn() + Send + Sync>;

/// The measuring of a context.
#[derive(Default)]
pub struct Recorder {
    on: AtomicBool,
    state: Mutex<Option<ProfileState>>,
}

impl Recorder {
    /// Begins to measure. With a `wait`, work that goes on by itself counts for what asked for it.
    pub fn start(&self, wait: Option<Wait>) {
        let now = Instant::now();
        let (found, open) = (Profile::default(), vec!["script"]);
        *self.state.lock() = Some(ProfileState { found, open, phase: now, op: now, traced: false, wait });
        self.on.store(true, Ordering::Relaxed);
    }

    /// Ends it; nothing where it was not begun.
    pub fn finish(&self) -> Option<Profile> {
        self.on.store(false, Ordering::Relaxed);
        let mut state = self.state.lock().take()?;
        while !state.open.is_empty() {
            state.leave();
        }
        Some(state.found)
    }

    /// `f` on the state while it is measured.
    fn note(&self, f: impl FnOnce(&mut ProfileState)) {
        if self.on.load(Ordering::Relaxed) {
            self.state.lock().as_mut().map(f);
        }
    }
}

impl ProfileState {
    /// Gives the time since the last change to the innermost phase.
    fn settle(&mut self) -> Option<&mut Totals> {
        let now = self.now();
        let passed = now - std::mem::replace(&mut self.phase, now);
        self.op = now;
        let totals = self.found.phases.entry(self.open.last()?).or_default();
        totals.time += passed;
        Some(totals)
    }

    fn now(&self) -> Instant {
        if let Some(wait) = &self.wait {
            wait();
        }
        Instant::now()
    }

    /// Bytes of the process, unless tensors without numbers say what is held.
    fn measured(&self) -> u64 {
        if self.traced { 0 } else { resident() }
    }

    fn mark(&mut self, op: &'static str, direction: usize, work: f64) {
        let now = self.now();
        let totals = &mut self.found.ops.entry(op).or_default()[direction];
        totals.calls += 1;
        totals.work += work;
        totals.time += now - std::mem::replace(&mut self.op, now);
    }

    fn leave(&mut self) {
        let held = self.measured();
        if let Some(totals) = self.settle() {
            totals.calls += 1;
            totals.held = totals.held.max(held);
        }
        self.open.pop();
    }
}

/// `f`, its time under `name`, which also stands behind the progress bar.
pub fn phase<T>(name: &'static str, f: impl FnOnce() -> T) -> T {
    let _shown = Progress::named(name);
    let context = Context::current();
    context.profile.note(|state| {
        state.settle();
        state.open.push(name);
    });
    let value = f();
    context.profile.note(ProfileState::leave);
    value
}

/// Whether something is measured, for what costs more than it is worth otherwise.
pub fn on() -> bool {
    Context::current().profile.on.load(Ordering::Relaxed)
}

/// To be called where the forward of an op of so much work ends.
pub fn forward(op: &'static str, work: impl FnOnce() -> f64) {
    Context::current().profile.note(|state| state.mark(op, 0, work()));
}

/// `f`, the backward of an op of so much work.
pub fn backward<T>(op: &'static str, work: impl FnOnce() -> f64, f: impl FnOnce() -> T) -> T {
    let context = Context::current();
    context.profile.note(|state| state.op = state.now());
    let value = f();
    context.profile.note(|state| state.mark(op, 1, work()));
    value
}

/// Operations that a run on tensors without numbers would compute in the innermost phase, and bytes that it holds.
pub fn traced(work: f64, held: u64) {
    Context::current().profile.note(|state| {
        state.traced = true;
        let Some(phase) = state.open.last() else { return };
        let totals = state.found.phases.entry(phase).or_default();
        totals.work += work;
        totals.held = totals.held.max(held);
    });
}

/// Bytes of the process in memory, on Linux.
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
