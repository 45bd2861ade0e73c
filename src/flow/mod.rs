//! Flow matching: time grids, samplers, trajectories. Time runs 0 (noise) to 1 (data) everywhere.

mod grid;
pub mod interpolant;
mod sample;
mod trajectory;

pub use grid::{Grid, klein_grid, shifted, uniform};
pub use sample::{Euler, Heun, Solver};
pub use trajectory::{OnStep, RolloutOptions, Trajectory, rollout, time_tensor};
