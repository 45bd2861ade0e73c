//! All integration tests, as one binary: `cargo test suite::` runs those of a module.
#![allow(clippy::unwrap_used)] // helpers of tests

mod analytic;
mod budget;
#[cfg(feature = "cuda")]
mod card;
mod check;
mod cli;
mod closed_forms;
mod command;
mod doc;
mod fuzz;
mod gradient;
mod graph;
mod host;
mod inference;
mod inference_toys;
mod judge;
mod lora;
mod output;
mod permissions;
mod ranks;
mod recipe;
mod reference;
mod repl;
mod report;
mod resume;
mod reward;
mod screen;
mod sharing;
mod sit;
mod strangers;
mod suite;
mod theory;
mod toys;
mod weights;
