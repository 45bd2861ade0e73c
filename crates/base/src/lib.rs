//! What every crate of amscript stands on: errors, what belongs to a host ([`context`]), files that appear whole or not at all.

pub mod card;
pub mod context;
pub mod error;
pub mod file;
pub mod group;
pub mod input;
pub mod memory;
pub mod profile;
pub mod progress;
pub mod terminal;
pub mod text;
#[cfg(feature = "rhai")]
pub mod thrown;

pub use error::{Error, Kind, Result};
