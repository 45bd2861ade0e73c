//! The solver against closed forms, golden numbers and identities, in f64, and on a small FLUX.2 in f32.

#![allow(clippy::unwrap_used)] // helpers of tests

mod gaussian;
mod golden;
mod identity;
mod model;
mod regularizer;
mod stochastic;
mod toy;
