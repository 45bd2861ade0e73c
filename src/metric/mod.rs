//! Measures of a set of images: within-prompt diversity and statistics with standard errors.

pub mod estimate;
pub mod pairwise;

pub use estimate::Estimate;
