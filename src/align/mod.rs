//! Reward alignment, one method per file: costs, penalties, lean adjoint, matching and its losses, truncation, DRaFT, ReFL.

mod adjoint;
mod cost;
mod draft;
mod intensity;
mod loss;
mod matching;
mod refl;
mod regularizer;
mod selection;
mod truncation;

pub use adjoint::{Adjoint, AdjointIndex, lean_adjoint};
pub use cost::{RewardCost, Terminal, TerminalCost, terminal_gradient};
pub use draft::{Direct, DraftOptions, draft};
pub use intensity::{control_intensity, control_norms, norms};
pub use loss::{Criterion, MatchingLoss, Reduction, Units, fenchel_matching, velocity_matching};
pub use matching::{
    Matched, MatchingOptions, Recomputed, adjoint_matching, control_mass, control_target, matching_loss, velocities,
};
pub use refl::refl;
pub use regularizer::{Norm, Regularizer};
pub use selection::Selection;
pub use truncation::{Adaptive, EVERY, State, Truncation, last_steps};
