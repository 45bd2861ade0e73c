//! Flow matching: time grids, samplers, trajectories. Time runs 0 (noise) to 1 (data) everywhere.
//!
//! Decisions:
//! * **A step is a linear map** (`noise.rs`): `x + h [(1 + rho) v - pull x] + sqrt(h w) z`, Euler's with zeros. Rollout, lean adjoint, control
//!   target and loss read these four numbers, so stochastic adjoint matching is the same code as deterministic.
//! * **[`Velocity`] and [`Condition`] are all that a method knows of a model.** A model's own time and sign are converted in its folder.

mod condition;
mod grid;
pub mod interpolant;
mod noise;
mod sample;
mod steered;
mod trajectory;
mod velocity;

pub use condition::Condition;
pub use grid::{Grid, klein_grid, shifted, uniform};
pub use noise::{Dynamics, Level, Noise};
pub use sample::{AtSteps, Cps, Euler, Gddim, Heun, Sde, Solver};
pub use steered::{Steer, Steered};
pub use trajectory::{Draw, OnStep, RolloutOptions, Stepper, Trajectory, draws, rollout, time_tensor};
pub use velocity::Velocity;
