//! Flow matching: time grids, samplers, trajectories. Time runs 0 (noise) to 1 (data) everywhere.

mod grid;
pub mod interpolant;
mod noise;
mod sample;
mod trajectory;

pub use grid::{Grid, klein_grid, shifted, uniform};
pub use noise::{Dynamics, Level, Noise};
pub use sample::{Euler, Gddim, Heun, Sde, Solver};
pub use trajectory::{Draw, OnStep, RolloutOptions, Trajectory, Walk, draws, rollout, time_tensor};
