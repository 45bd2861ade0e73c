//! amscript: a scripting host that aligns flow-matching image models to rewards.
//!
//! The layers below the host are crates of their own, which a program finds here by their names.

pub mod cli;
pub mod script;

pub use amscript_align::{self as align, flow, optim};
pub use amscript_base::{Error, Kind, Result, bail, context, error, file, permissions, profile, progress, terminal};
pub use amscript_model as model;
pub use amscript_nn::{self as nn, data};
pub use amscript_reward::{self as reward, metric};
pub use amscript_run::{self as run, screen};
pub use amscript_tensor as tensor;
