//! Reward alignment: what a method is (`method.rs`), one method per file (`matching.rs`, `draft.rs`, `refl.rs`), and the parts of
//! adjoint matching: costs, penalties, lean adjoint, losses, truncation.
//!
//! Decisions:
//! * **A method is a value** (`method.rs`): from a batch to losses, rewards and what was passed on the way. [`update`] is the one caller: it
//!   refuses a batch that cannot serve, puts checks off to the end, and leaves the state of a failed update as it was.
//! * **Values do not remember.** What was measured is returned. What a method keeps from one update to the next, such as what `adaptive` has
//!   measured, is the run's [`MethodState`], which checkpoints hold as a whole. An update that measures is a full adjoint, cut afterwards.
//! * **Noise and a penalty that is not quadratic need Fenchel's loss** (`loss.rs`, derived in `docs/method.md`): the squared distance from a
//!   random target has the wrong mean. It is the default there and only there.
//! * **K graphs may be K runs instead** (`matching.rs`): the rollout's velocity is then the value of a node that runs the policy in its
//!   backward, so that one graph is there at a time, for K forwards more.
//! * **Guidance is a choice of a method** (`guidance.rs`): its scale, and whether it acts on what is rolled out, on what carries the adjoint,
//!   on the control that is matched.

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
pub use loss::{Loss, MatchingOptions, Reduction, Units, fenchel_young_matching, velocity_matching};
pub use matching::{AdjointMatching, control_mass, control_target, matching_loss, velocities};
pub use method::{Batch, Method, MethodState, Needs, Trace, Update, update};
pub use refl::Refl;
pub use regularizer::{Norm, Regularizer};
pub use selection::Selection;
pub use truncation::{Adaptive, EVERY, Truncation, Window, last_steps};
