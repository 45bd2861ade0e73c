//! The run directory: settings, log, images, checkpoints, plots, provenance.
