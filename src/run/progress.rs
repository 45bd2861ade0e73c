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
    first: usize,
    total: usize,
    started: Instant,
}

impl Progress {
    /// Steps `first..total` are to be done.
    pub fn new(first: usize, total: usize) -> Self {
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}").unwrap_or(ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr()).with_style(style);
        bar.set_position(first as u64);
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self { bar, first, total, started: Instant::now() }
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
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
    fn spans_show_two_units() {
        let text = |s: f64| span(Duration::from_secs_f64(s));
        assert_eq!([text(0.035), text(4.24), text(80.0), text(3900.0)], ["35ms", "4.2s", "1m 20s", "1h 05m"]);
    }
}
