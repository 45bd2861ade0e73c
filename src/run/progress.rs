//! What a person sees of a step loop: a bar with the time left, and lines above it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The bar on the screen, so that lines from anywhere go above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes to the terminal without tearing the bar.
pub fn above_bar<T>(write: impl FnOnce() -> T) -> T {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Progress of one step loop; draws on stderr when that is a terminal.
pub struct Progress {
    bar: ProgressBar,
    outer: bool,
    first: usize,
    total: usize,
    started: Instant,
}

impl Progress {
    /// Steps `first..total` are to be done; `what` they are stands before the bar. One that begins inside another is not shown.
    pub fn new(what: &str, first: usize, total: usize) -> Self {
        let template = "{prefix}{bar:32} {pos}/{len} {msg}";
        let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
        let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let outer = shown.is_none();
        let target = if outer { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let prefix = if what.is_empty() { String::new() } else { format!("{what} ") };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target).with_style(style).with_prefix(prefix);
        bar.set_position(first as u64);
        if outer {
            *shown = Some(bar.clone());
        }
        Self { bar, outer, first, total, started: Instant::now() }
    }

    /// `done` steps of all are finished.
    pub fn tick(&self, done: usize) {
        self.bar.set_message(self.left(done));
        self.bar.set_position(done as u64);
    }

    /// For lines where no bar is drawn: `12/200, 1m 20s left`, else nothing.
    pub fn plain(&self, done: usize) -> Option<String> {
        self.bar.is_hidden().then(|| format!("{done}/{}, {}", self.total, self.left(done)))
    }

    fn left(&self, done: usize) -> String {
        let here = done.saturating_sub(self.first);
        if here == 0 {
            return "starting".into();
        }
        let per_step = self.started.elapsed() / here as u32;
        format!("{} left, {} a step", span(per_step * (self.total - done) as u32), span(per_step))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.outer {
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Counts `0..total` with a bar; where none is drawn, a line every half minute.
pub struct Counter {
    what: String,
    progress: Progress,
    print: Box<dyn Fn(&str) + Send + Sync>,
    next: usize,
    said: Instant,
}

impl Counter {
    pub fn new(what: &str, total: usize, print: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let progress = Progress::new(what, 0, total);
        Self { what: what.into(), progress, print: Box::new(print), next: 0, said: Instant::now() }
    }
}

impl Iterator for Counter {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let done = self.next;
        if done == self.progress.total {
            return None;
        }
        self.progress.tick(done);
        if self.progress.outer && self.said.elapsed() >= Duration::from_secs(30) {
            self.said = Instant::now();
            self.progress.plain(done).iter().for_each(|line| (self.print)(&format!("{} {line}", self.what)));
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
