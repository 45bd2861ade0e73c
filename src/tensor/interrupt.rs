//! A wish to stop that every op of a model looks at, so that a call ends within one of them.

use crate::bail;
use crate::error::Result;
use std::sync::atomic::{AtomicBool, Ordering};

static WISHED: AtomicBool = AtomicBool::new(false);

/// Ops end with an error from now on, or no longer do.
pub fn wish(stop: bool) {
    WISHED.store(stop, Ordering::Relaxed);
}

/// Errs once a stop is wished.
pub fn check() -> Result<()> {
    if WISHED.load(Ordering::Relaxed) {
        bail!(Interrupt, "interrupted");
    }
    Ok(())
}
