//! Flow matching: time grids, samplers, trajectories. Time runs 0 (noise) to 1 (data) everywhere.

mod condition;
mod grid;
pub mod interpolant;
mod noise;
mod sample;
mod trajectory;
mod velocity;

pub use condition::Condition;
pub use grid::{Grid, klein_grid, shifted, uniform};
pub use noise::{Dynamics, Level, Noise};
pub use sample::{Euler, Gddim, Heun, Sde, Solver};
pub use trajectory::{Draw, OnStep, RolloutOptions, Trajectory, Walk, draws, rollout, time_tensor};
pub use velocity::Velocity;
