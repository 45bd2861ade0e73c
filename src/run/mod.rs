//! The run directory: settings, log, images, checkpoints, plots, provenance.

mod canvas;
pub mod plot;
