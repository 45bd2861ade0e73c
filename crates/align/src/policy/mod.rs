//! Methods that ask a reward for its value alone: policy gradients on a stochastic path, regression at noised ends, preferences; and neighbours
//! of adjoint matching that follow a reward's gradient.
//!
//! Decisions:
//! * **Five updates, and every published method is an option set of one** ([`Grpo`], [`Forward`], [`LeapAlign`], [`VggFlow`], [`Explore`]): the
//!   option sets are scripts (`stdlib/policy.rhai`).
//! * **The ratio comes from the change of velocity and the stored noise** (`transition.rs`), never from two log-densities: it is exactly 1 where
//!   the policy has not changed, in every number type. The first pass takes the rollout's own velocities, with their graphs.
//! * **Copies of the policy are a method's state** (`follow.rs`), so checkpoints hold them.
//! * **What later passes need is computed once** and held by the update that [`crate::Update::next`] gives: old and reference velocities, noise.

mod advantage;
mod ends;
mod explore;
mod follow;
mod forward;
mod grpo;
mod leap;
mod pass;
mod regression;
mod steps;
mod transition;
mod trust;
mod vgg;

pub use advantage::{Advantage, Combine, Scale, combined, diversity, nearest, win_rates};
pub use ends::{Ends, Noised, Times, noised};
pub use explore::{Explore, Kept, pairs, select};
pub use follow::{Follow, Follower};
pub use forward::{Forward, RowWeight};
pub use grpo::{Divergence, Grpo};
pub use leap::LeapAlign;
pub use pass::Reference;
pub use regression::{Errors, Gamma, Regression};
pub use steps::{StepWeight, Trained};
pub use transition::{Normalise, Transition};
pub use trust::Trust;
pub use vgg::{Eta, VggFlow};
