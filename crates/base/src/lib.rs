//! What every crate of amscript stands on: errors, what belongs to a host ([`context`]), files and who may reach them.

pub mod card;
pub mod context;
pub mod error;
pub mod file;
pub mod ledger;
pub mod memory;
pub mod permissions;
pub mod profile;
pub mod progress;
pub mod terminal;
#[cfg(feature = "rhai")]
pub mod thrown;

pub use error::{Error, Kind, Result};
