//! Reward alignment, one method per file: costs, penalties, lean adjoint, matching, truncation.

mod adjoint;
mod cost;
mod intensity;
mod matching;
mod regularizer;
mod truncation;

pub use adjoint::{Adjoint, AdjointIndex, lean_adjoint};
pub use cost::{RewardCost, Terminal, TerminalCost, terminal_gradient};
pub use intensity::{control_intensity, control_norms, norms};
pub use matching::{
    Matched, MatchingLoss, MatchingOptions, Reduction, adjoint_matching, control_target, matching_loss, velocities,
    velocity_matching,
};
pub use regularizer::Regularizer;
pub use truncation::Truncation;
