//! Adjoint matching, deterministic (arXiv:2605.06583) and stochastic (arXiv:2409.08861), as a library over tensors: it knows no
//! model, no reward and no script, and can be read beside the paper.
//!
//! A flow `dX = v(X, t) dt` runs from noise at `t = 0` to data at `t = 1`. A policy is a flow whose control `u = v_policy - v_base`
//! is wanted small and its ends wanted good: minimise `E[sum of f(|u|) h + g(X_1)]` with `g = -lambda r`. Read in this order:
//!
//! | what | equation | where |
//! |---|---|---|
//! | path and parametrisations (Table 1) | `x_t = (1 - t) x_0 + t x_1`, `v = x_1 - x_0` | [`flow::interpolant`] |
//! | a model | `v(x, t; condition)` | [`flow::Velocity`] |
//! | times | `0 = t_0 < ... < t_N = 1` | [`flow::Grid`] |
//! | a step, with noise or without (Appendix D.2) | `X_{k+1} = X_k + h [(1 + rho) v - pull X_k] + sqrt(h w) z` | [`flow::Dynamics`], [`flow::Noise`] |
//! | samplers | Euler, Heun, the SDE, gDDIM | [`flow::Solver`] |
//! | rollout | `X_0, ..., X_N` of the policy | [`flow::rollout`] |
//! | terminal cost and its gradient (Algorithm 1) | `a_N = -lambda grad r(X_N)` | [`TerminalCost`], [`terminal_gradient`] |
//! | lean adjoint (Algorithm 1) | `a_k = a_{k+1} + h_k (d v_base / dx)^T a_{k+1}` | [`lean_adjoint`] |
//! | truncation | the last K steps, or those that hold a share of the control | [`Truncation`] |
//! | penalty and optimal control (Theorem 3.1) | `u = -(f')^{-1}(abs(a)) a / abs(a)` | [`Regularizer`], [`control_target`] |
//! | matching loss (Algorithm 1) | `mean of sum of abs(v_policy - v_base - u_k)^2` | [`velocity_matching`], [`matching_loss`] |
//! | matching loss under noise, any penalty | `f(abs(u)) + f*(sigma abs(a)) + sigma a u` | [`fenchel_young_matching`] |
//! | Algorithm 1 as one update | all of the above, each network run once | [`AdjointMatching`] |
//! | the weight of a path under another flow | `d (X_{k+1} - mean) / q - abs(d)^2 / 2q` | [`girsanov`] |
//! | particles drawn by weight | offspring in proportion to it | [`resample`], [`ess`] |
//! | control over time (Propositions 4.2, C.4) | `abs(v_policy - v_base)` at each step | [`control_intensity`] |
//! | baselines | the reward's gradient through the last steps, or through one | [`Draft`], [`Refl`] |
//! | policy gradients, forward-process methods, preferences | a ratio from stored noise; errors at noised ends | [`policy`] |
//! | a batch in parts | by one process or several, summed in the order of the parts | [`parts`] |
//! | optimizer | AdamW, schedules, averages of the weights | [`optim`] |
//!
//! All of them are a [`Method`]: from a [`Batch`] to the losses of an [`Update`].
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

pub mod flow;
pub mod optim;
pub mod policy;

mod adjoint;
mod cost;
mod draft;
mod girsanov;
mod guidance;
mod intensity;
mod loss;
mod matching;
mod method;
pub mod parts;
mod refl;
mod regularizer;
mod resample;
mod selection;
mod share;
mod truncation;

pub use adjoint::{Adjoint, AdjointIndex, lean_adjoint};
pub use cost::{RewardCost, Terminal, TerminalCost, rewards, terminal_gradient};
pub use draft::Draft;
pub use girsanov::girsanov;
pub use guidance::Guidance;
pub use intensity::{control_intensity, control_norms, norms};
pub use loss::{Loss, MatchingOptions, Reduction, Units, fenchel_young_matching, velocity_matching};
pub use matching::{AdjointMatching, control_mass, control_target, matching_loss, objective_mass, velocities};
pub use method::{Batch, Method, MethodState, Needs, Next, Trace, Update, update};
pub use parts::{Cut, update_in_parts};
pub use refl::Refl;
pub use regularizer::{Norm, Regularizer};
pub use resample::{Scheme, ess, resample};
pub use selection::Selection;
pub use share::Share;
pub use truncation::{Adaptive, EVERY, Measure, Truncation, Window, last_steps};
