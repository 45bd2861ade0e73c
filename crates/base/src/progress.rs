//! What a person sees of work that takes long: a bar with the time left on standard error, and lines above it.
//!
//! Work begins a [`Progress`] and ticks it, which stores a number. A thread draws while there is work, after a second: the outermost work that
//! knows its size as a bar, and behind it what is done inside. Nothing is drawn where standard error is no terminal. It is not `indicatif`: of
//! that only the thread would be taken; the one line, the stack behind the bar and what it says would stay ours.

use crate::context::Context;
use crate::terminal::{self, StdStream};
use crate::text::visible;
use parking_lot::Mutex;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Work that takes less is not shown.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between drawings.
const PACE: Duration = Duration::from_millis(150);
/// Characters of a bar.
const BAR: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Steps,
    Bytes,
    /// Nobody knows how much there is to do.
    Unknown,
}

struct Task {
    what: Cow<'static, str>,
    unit: Unit,
    first: u64,
    total: u64,
    done: AtomicU64,
    started: Instant,
    /// Milliseconds after the start when the last of it was done.
    ticked: AtomicU64,
}

/// What is being done, the outermost first, and whether the last line of the terminal shows it.
#[derive(Default)]
struct Shown {
    tasks: Vec<Arc<Task>>,
    drawn: bool,
    /// Whether a thread draws.
    painted: bool,
}

/// The bar of a context.
pub struct Board {
    shown: Arc<Mutex<Shown>>,
    /// Whether bars are drawn at all.
    drawing: bool,
    unicode: bool,
}

impl Default for Board {
    fn default() -> Self {
        let (drawing, unicode) = (terminal::is_terminal(StdStream::Error), terminal::unicode(terminal::variable));
        Self { shown: Arc::default(), drawing, unicode }
    }
}

impl Board {
    fn begin(&self, task: Arc<Task>) {
        let mut shown = self.shown.lock();
        shown.tasks.push(task);
        if self.drawing && !std::mem::replace(&mut shown.painted, true) {
            let (shown, unicode) = (self.shown.clone(), self.unicode);
            std::thread::spawn(move || {
                while shown.lock().draw(unicode) {
                    std::thread::sleep(PACE)
                }
            });
        }
    }

    fn end(&self, task: &Arc<Task>) {
        let mut shown = self.shown.lock();
        shown.tasks.retain(|other| !Arc::ptr_eq(other, task));
        if shown.tasks.is_empty() {
            shown.erase();
        }
    }
}

/// Writes to the terminal without tearing the bar.
pub fn above_bar<T>(write: impl FnOnce() -> T) -> T {
    let context = Context::current();
    let mut shown = context.progress.shown.lock();
    shown.erase();
    write()
}

/// So many bytes were read or written, for the innermost work that counts them.
pub fn bytes(count: u64) {
    let context = Context::current();
    let shown = context.progress.shown.lock();
    if let Some(task) = shown.tasks.iter().rev().find(|task| task.unit == Unit::Bytes) {
        task.tick(task.done() + count);
    }
}

impl Shown {
    fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            terminal::note("\r\x1b[2K");
        }
    }

    /// Draws what is being done; false, and no longer painted, where nothing is.
    fn draw(&mut self, unicode: bool) -> bool {
        let columns = terminal::size(StdStream::Error).columns;
        if let Some(line) = line(&self.tasks, columns.saturating_sub(1), unicode) {
            terminal::note(&format!("\r\x1b[2K{line}"));
            self.drawn = true;
        }
        self.painted = !self.tasks.is_empty();
        self.painted
    }
}

/// The outermost work with a size that has lasted, and the innermost behind it; at most so many characters.
fn line(tasks: &[Arc<Task>], width: usize, unicode: bool) -> Option<String> {
    let lasting = || tasks.iter().filter(|task| task.started.elapsed() >= PATIENCE);
    let outer = lasting().find(|task| task.unit != Unit::Unknown).or_else(|| lasting().next())?;
    let inner = lasting().next_back().filter(|inner| !Arc::ptr_eq(inner, outer) && inner.what != outer.what);
    let behind = inner.map(|inner| format!(" {} {}", if unicode { '·' } else { '|' }, inner.brief()));
    let line = match (outer.unit, behind) {
        (Unit::Unknown, behind) => outer.brief() + &behind.unwrap_or_default(),
        (_, Some(behind)) => format!("{}, {}{behind}", outer.bar(unicode), outer.left()),
        (_, None) => format!("{}, {}", outer.bar(unicode), outer.pace()),
    };
    Some(visible(&line).chars().take(width).collect())
}

impl Task {
    fn tick(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.ticked.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn bar(&self, unicode: bool) -> String {
        let share = self.done() as f64 / self.total.max(1) as f64;
        let full = ((share * BAR as f64) as usize).min(BAR);
        let (ink, paper) = if unicode { ("█", "░") } else { ("#", ".") };
        let gap = if self.what.is_empty() { "" } else { " " };
        format!("{}{gap}{}{} {}", self.what, ink.repeat(full), paper.repeat(BAR - full), self.count())
    }

    /// `12/200`, or bytes.
    fn count(&self) -> String {
        let size = |bytes: u64| match bytes {
            1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
            _ => format!("{:.1} MB", bytes as f64 / 1e6),
        };
        match self.unit {
            Unit::Bytes => format!("{} of {}", size(self.done()), size(self.total)),
            _ => format!("{}/{}", self.done(), self.total),
        }
    }

    fn ticked(&self) -> Duration {
        Duration::from_millis(self.ticked.load(Ordering::Relaxed))
    }

    fn per_step(&self) -> Option<Duration> {
        let here = self.done().saturating_sub(self.first);
        (here > 0).then(|| self.ticked().div_f64(here as f64))
    }

    fn left(&self) -> String {
        let ahead = self.total.saturating_sub(self.done());
        let since = self.started.elapsed().saturating_sub(self.ticked());
        let left = |each: Duration| each.mul_f64(ahead as f64).saturating_sub(since);
        self.per_step().map_or("starting".into(), |each| format!("{} left", span(left(each))))
    }

    /// Time left, and what a step takes.
    fn pace(&self) -> String {
        match self.per_step() {
            Some(each) if self.unit == Unit::Steps => format!("{}, {} a step", self.left(), span(each)),
            _ => self.left(),
        }
    }

    /// Without a bar.
    fn brief(&self) -> String {
        match self.unit {
            Unit::Unknown => format!("{}, {}", self.what, span(self.started.elapsed())),
            _ => format!("{} {}, {}", self.what, self.count(), self.left()).trim_start().into(),
        }
    }
}

/// Work that is being done, until this is dropped.
pub struct Progress {
    task: Arc<Task>,
    context: Context,
}

impl Progress {
    /// Steps `first..total` are to be done; `what` they are stands before the bar.
    pub fn new(what: impl Into<Cow<'static, str>>, first: usize, total: usize) -> Self {
        Self::begin(what.into(), Unit::Steps, first as u64, total as u64)
    }

    /// So many bytes are to be read or written; [`bytes`] counts them.
    pub fn bytes(what: impl Into<Cow<'static, str>>, total: u64) -> Self {
        Self::begin(what.into(), Unit::Bytes, 0, total)
    }

    /// Work of unknown size.
    pub fn named(what: &'static str) -> Self {
        Self::begin(what.into(), Unit::Unknown, 0, 0)
    }

    fn begin(what: Cow<'static, str>, unit: Unit, first: u64, total: u64) -> Self {
        let (done, ticked, started) = (first.into(), AtomicU64::default(), Instant::now());
        let task = Arc::new(Task { what, unit, first, total, done, started, ticked });
        let context = Context::current();
        context.progress.begin(task.clone());
        Self { task, context }
    }

    /// `done` steps of all are finished.
    pub fn tick(&self, done: usize) {
        self.context.interrupt.called(); // work that is counted does not go round for ever
        self.task.tick(done as u64);
    }

    /// For lines where no bar is drawn: `12/200, 1m 20s left, 0.4s a step`, else nothing.
    pub fn plain(&self, done: usize) -> Option<String> {
        self.tick(done);
        (!self.context.progress.drawing).then(|| format!("{}, {}", self.task.count(), self.task.pace()))
    }

    /// Whether other work goes on around this.
    fn inside(&self) -> bool {
        let shown = self.context.progress.shown.lock();
        shown.tasks.first().is_some_and(|first| !Arc::ptr_eq(first, &self.task))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.context.progress.end(&self.task);
    }
}

/// Counts `0..total` with a bar; where none is drawn, a line every half minute.
pub struct Counter {
    progress: Progress,
    print: Box<dyn Fn(&str) + Send + Sync>,
    next: usize,
    said: Instant,
}

impl Counter {
    pub fn new(what: &str, total: usize, print: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let progress = Progress::new(what.to_string(), 0, total);
        Self { progress, print: Box::new(print), next: 0, said: Instant::now() }
    }
}

impl Iterator for Counter {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let done = self.next;
        self.progress.tick(done);
        if done as u64 == self.progress.task.total {
            return None;
        }
        if self.said.elapsed() >= Duration::from_secs(30) && !self.progress.inside() {
            self.said = Instant::now();
            let what = &self.progress.task.what;
            self.progress.plain(done).iter().for_each(|line| (self.print)(&format!("{what} {line}")));
        }
        self.next += 1;
        Some(done)
    }
}

/// A duration in the two largest units: `1h 05m`, `1m 20s`, `4.2s`, `35ms`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        3600.. => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        60.. => format!("{}m {:02}s", seconds / 60, seconds % 60),
        1.. => format!("{:.1}s", time.as_secs_f64()),
        _ => format!("{}ms", time.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(what: &'static str, unit: Unit, done: u64, total: u64, seconds: u64) -> Arc<Task> {
        let started = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let ticked = (1000 * seconds).into();
        Arc::new(Task { what: what.into(), unit, first: 0, total, done: done.into(), started, ticked })
    }

    #[test]
    fn the_outermost_is_a_bar_and_the_innermost_stands_behind_it() {
        let outer = task("evaluating", Unit::Steps, 7, 12, 61);
        let bar = format!("evaluating {}{} 7/12, ", "#".repeat(14), ".".repeat(10));
        let shown = |tasks: &[Arc<Task>]| line(tasks, 120, false);
        assert_eq!(shown(std::slice::from_ref(&outer)), Some(format!("{bar}43.6s left, 8.7s a step")));
        let inner = task("rollout", Unit::Steps, 10, 50, 10);
        let phase = task("prompts", Unit::Unknown, 0, 0, 20);
        let young = task("decode", Unit::Unknown, 0, 0, 0);
        assert_eq!(
            shown(&[outer.clone(), phase.clone(), inner.clone(), young]),
            Some(format!("{bar}43.6s left | rollout 10/50, 40.0s left"))
        );
        assert_eq!(line(&[outer, inner], 20, false).unwrap().len(), 20);
        assert_eq!(shown(&[phase]), Some("prompts, 20.0s".into()));
    }

    #[test]
    fn short_work_is_not_shown() {
        assert_eq!(line(&[], 80, true), None);
        assert_eq!(line(&[task("saving", Unit::Bytes, 1, 2, 0)], 80, true), None);
    }

    #[test]
    fn the_time_left_runs_down_within_a_step() {
        let slow = task("steps", Unit::Steps, 2, 4, 20);
        slow.ticked.store(16_000, Ordering::Relaxed);
        assert_eq!((slow.left(), slow.per_step()), ("12.0s left".into(), Some(Duration::from_secs(8))));
    }

    #[test]
    fn bytes_have_their_units() {
        let reading = task("reading x", Unit::Bytes, 2_000_000_000, 8_000_000_000, 10);
        assert_eq!(
            line(&[reading], 80, true).unwrap(),
            format!("reading x {}{} 2.0 GB of 8.0 GB, 30.0s left", "█".repeat(6), "░".repeat(18))
        );
        let start = task("reading x", Unit::Bytes, 0, 5_000_000, 10);
        assert!(line(&[start], 80, true).unwrap().ends_with(" 0.0 MB of 5.0 MB, starting"));
    }

    #[test]
    fn a_counter_counts_also_inside_another() {
        let inner = |n| Counter::new("inner", n, |_| ()).collect::<Vec<_>>();
        let all: Vec<_> = Counter::new("outer", 2, |_| ()).map(|i| (i, inner(3))).collect();
        assert_eq!(all, [(0, vec![0, 1, 2]), (1, vec![0, 1, 2])]);
    }

    #[test]
    fn spans_show_two_units() {
        let text = |s: f64| span(Duration::from_secs_f64(s));
        assert_eq!([text(0.035), text(4.24), text(80.0), text(3900.0)], ["35ms", "4.2s", "1m 20s", "1h 05m"]);
    }
}
