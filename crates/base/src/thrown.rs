//! Errors as scripts catch them, for the host (feature `rhai`, off otherwise): of a conversion between two types one must be
//! the crate's own, and [`Error`] is.

use crate::error::{Error, Kind};
use rhai::{Dynamic, EvalAltResult, Position};

/// Scripts see the error itself in `catch (e)`; an interrupt cannot be caught.
impl From<Error> for Box<EvalAltResult> {
    fn from(error: Error) -> Self {
        let interrupted = error.kind == Kind::Interrupt;
        let value = Dynamic::from(error);
        match interrupted {
            true => EvalAltResult::ErrorTerminated(value, Position::NONE).into(),
            false => EvalAltResult::ErrorRuntime(value, Position::NONE).into(),
        }
    }
}
