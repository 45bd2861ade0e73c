//! Reward alignment: what a method is (`method.rs`), one method per file (`matching.rs`, `draft.rs`, `refl.rs`), and the parts of
//! adjoint matching: costs, penalties, lean adjoint, losses, truncation.

mod adjoint;
mod cost;
mod draft;
mod guidance;
mod intensity;
mod loss;
mod matching;
mod method;
mod refl;
mod regularizer;
mod selection;
mod truncation;

pub use adjoint::{Adjoint, AdjointIndex, lean_adjoint};
pub use cost::{RewardCost, Terminal, TerminalCost, rewards, terminal_gradient};
pub use draft::Draft;
pub use guidance::Guidance;
pub use intensity::{control_intensity, control_norms, norms};
pub use loss::{Criterion, MatchingLoss, Reduction, Units, fenchel_matching, velocity_matching};
pub use matching::{AdjointMatching, control_mass, control_target, matching_loss, velocities};
pub use method::{Batch, Method, MethodState, Needs, Trace, Update, update};
pub use refl::Refl;
pub use regularizer::{Norm, Regularizer};
pub use selection::Selection;
pub use truncation::{Adaptive, EVERY, Truncation, Window, last_steps};
