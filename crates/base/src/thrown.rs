//! Errors as scripts catch them, for the host (feature `rhai`, off otherwise): of a conversion between two types one must be
//! the crate's own, and [`Error`] is.

use crate::error::{Error, Kind};
use rhai::{Dynamic, EvalAltResult, Map, Position};

/// Scripts see `#{kind, message, hint}` in `catch (e)`; an interrupt cannot be caught.
impl From<Error> for Box<EvalAltResult> {
    fn from(error: Error) -> Self {
        if error.kind == Kind::Interrupt {
            return EvalAltResult::ErrorTerminated(Dynamic::from(error), Position::NONE).into();
        }
        let mut map = Map::new();
        map.insert("kind".into(), error.kind.name().into());
        map.insert("message".into(), error.message.clone().into());
        map.insert("hint".into(), error.hint.clone().map_or(Dynamic::UNIT, Dynamic::from));
        map.insert(CARRIED.into(), Dynamic::from(error));
        EvalAltResult::ErrorRuntime(map.into(), Position::NONE).into()
    }
}

/// The key under which the whole [`Error`] travels through a script.
pub const CARRIED: &str = "error";
