//! What every crate of amscript stands on: errors, what belongs to a host ([`context`]), the files it may reach.

pub mod card;
pub mod context;
pub mod error;
pub mod file;
pub mod group;
pub mod input;
pub mod memory;
pub mod permissions;
pub mod profile;
pub mod program;
pub mod progress;
pub mod terminal;
pub mod text;
#[cfg(feature = "rhai")]
pub mod thrown;

pub use error::{Error, Kind, Result};
