//! The solver against closed forms, golden numbers and identities, in f64, and on a small FLUX.2 in f32.

mod gaussian;
mod golden;
mod identity;
mod model;
mod policy;
mod regularizer;
mod stochastic;
mod toy;
