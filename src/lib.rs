//! amscript: a scripting host that aligns flow-matching image models to rewards.
//!
//! Dependencies point one way: `cli > script > align, reward, metric, run > screen > model, flow, optim, data > nn > tensor > context, error`.

pub mod align;
pub mod cli;
pub mod context;
pub mod data;
pub mod error;
pub mod file;
pub mod flow;
pub mod metric;
pub mod model;
pub mod nn;
pub mod optim;
pub mod profile;
pub mod progress;
pub mod reward;
pub mod run;
pub mod screen;
pub mod script;
pub mod tensor;
pub mod terminal;

pub use error::{Error, Kind, Result};
