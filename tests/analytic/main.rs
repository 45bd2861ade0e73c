//! The solver against closed forms, golden numbers and identities, in f64.

#![allow(clippy::unwrap_used)] // helpers of tests

mod gaussian;
mod golden;
mod identity;
mod toy;
