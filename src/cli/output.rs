//! Standard output, which may be closed (`| head`) or full.
//!
//! A command whose reader has gone ends quietly with status 0; one that cannot write for another reason says so and fails. A script
//! goes on either way, so that what it trains is saved, and ends like this afterwards.

use crate::script::session::Printer;
use amscript_base::terminal;
use amscript_base::text::visible;
use amscript_run::progress::above_bar;
use anyhow::Context as _;
use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::Arc;

/// Writes text at once.
pub fn text(text: &str) -> anyhow::Result<()> {
    write(text).context("standard output cannot be written")
}

/// Writes a line at once, safe to show.
pub fn line(line: &str) -> anyhow::Result<()> {
    text(&format!("{}\n", visible(line)))
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Whether an error says that nobody reads standard output any more.
pub fn unread(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The lines of a script: all after the first that cannot be written are dropped.
#[derive(Default)]
pub struct Lines(Mutex<Option<anyhow::Error>>);

impl Lines {
    /// Writes a line above the progress bar, as it is: it may be a picture.
    pub fn line(&self, line: &str) {
        let mut fault = self.0.lock();
        if fault.is_some() {
            return;
        }
        *fault = above_bar(|| text(&format!("{line}\n"))).err();
        if let Some(fault) = fault.as_ref().filter(|fault| !unread(fault)) {
            above_bar(|| terminal::note(&format!("warning: {fault:#}; the script goes on\n")));
        }
    }

    /// What a session prints with.
    pub fn printer(self: &Arc<Self>) -> Printer {
        let lines = self.clone();
        Box::new(move |line| lines.line(line))
    }

    /// What kept lines from being written.
    pub fn end(&self) -> anyhow::Result<()> {
        let fault = self.0.lock().take();
        fault.map_or(Ok(()), Err)
    }
}
