//! Several updates from one batch, and what they are held against.

use super::follow::{Follow, Follower};
use crate::flow::{Condition, Velocity};
use crate::guidance::guided;
use crate::{MethodState, Next, Update};
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::check::deferred_checks;
use std::sync::Arc;

/// The updates of one batch, an optimizer's step each.
pub(super) trait Passes: Send + Sync + 'static {
    fn count(&self) -> usize;

    fn pass(&self, i: usize, policy: &dyn Velocity) -> Result<Update>;
}

/// The update that gives pass `i` and those behind it; none behind the last.
pub(super) fn following<P: Passes>(passes: &Arc<P>, i: usize) -> Option<Next> {
    if i >= passes.count() {
        return None;
    }
    let passes = passes.clone();
    Some(Arc::new(move |policy: &dyn Velocity| {
        let update = deferred_checks(|| passes.pass(i, policy))?;
        Ok(Update { next: following(&passes, i + 1), ..update })
    }))
}

/// What a policy is held near.
#[derive(Clone, Default)]
pub enum Reference {
    #[default]
    Base,
    /// Another field.
    Field(Arc<dyn Velocity>),
    /// A copy of the policy.
    Copy(Follow),
}

/// The name of the copy in a method's state.
const NAME: &str = "reference";

impl Reference {
    /// Lets a copy follow the policy; once an update.
    pub(super) fn follow(&self, policy: &dyn Velocity, state: &mut MethodState) -> Result<()> {
        let Reference::Copy(follow) = self else { return Ok(()) };
        follow.check()?;
        Follower::new(NAME, policy)?.follow(follow, state)
    }

    /// What `f` finds with the reference, guided by `scale`.
    pub(super) fn with<T>(
        &self,
        [policy, base]: [&dyn Velocity; 2],
        scale: f64,
        state: &MethodState,
        f: impl FnOnce(&dyn Velocity) -> Result<T>,
    ) -> Result<T> {
        let f = |field: &dyn Velocity| f(guided(field, scale)?.as_deref().unwrap_or(field));
        match self {
            Reference::Base => f(base),
            Reference::Field(field) => f(&**field),
            Reference::Copy(_) => Follower::new(NAME, policy)?.with(state, f),
        }
    }
}

/// A velocity without a graph.
pub(super) fn value(field: &dyn Velocity, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
    let frozen = field.frozen()?;
    let v = frozen.as_deref().unwrap_or(field).velocity(x, t, condition)?;
    v.constant().to_dtype(x.dtype())
}

/// The mean over everything but the batch: `[batch, ..]` to `[batch]`.
pub(super) fn mean_per_sample(x: &Tensor) -> Result<Tensor> {
    amscript_tensor::sample::sum_per_sample(x)? * (1.0 / (x.elem_count() / x.dim(0)?.max(1)).max(1) as f64)
}
