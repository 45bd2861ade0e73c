//! A wish to stop that every op of a model looks at, so that a call ends within one of them.

use amscript_base::context::Context;
use amscript_base::error::Result;

/// Errs once the host in whose context this runs is to stop.
pub fn check() -> Result<()> {
    Context::current().interrupt.check()
}
