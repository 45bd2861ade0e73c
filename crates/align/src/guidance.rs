//! Where an update is guided (classifier-free guidance, arXiv:2207.12598): each place is a choice of its own.

use crate::flow::Velocity;
use amscript_base::bail;
use amscript_base::error::Result;
use std::sync::Arc;

/// Guidance of an update of adjoint matching.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// 1 means none.
    pub scale: f64,
    /// Of what is rolled out.
    pub rollout: bool,
    /// Of the base that carries the adjoint back.
    pub adjoint: bool,
    /// Of policy and base in the control that is matched.
    pub control: bool,
}

impl Default for Guidance {
    fn default() -> Self {
        Self { scale: 1.0, rollout: true, adjoint: false, control: false }
    }
}

/// The field with guidance of that scale; none where that is the field itself.
pub(super) fn guided(field: &dyn Velocity, scale: f64) -> Result<Option<Arc<dyn Velocity>>> {
    if !scale.is_finite() {
        bail!(Value, "guidance: the scale must be finite, got {scale}");
    }
    if scale == 1.0 { Ok(None) } else { field.with_guidance(scale).map(Some) }
}

/// The fields of an update by their parts in it.
pub(super) struct Fields<'a> {
    /// Whose control is matched.
    policy: Owned<'a>,
    base: Owned<'a>,
    /// Rolled out in the policy's place.
    rollout: Option<Owned<'a>>,
    /// Carries the adjoint in the base's place.
    adjoint: Option<Owned<'a>>,
}

enum Owned<'a> {
    Given(&'a dyn Velocity),
    Made(Arc<dyn Velocity>),
}

impl Owned<'_> {
    fn get(&self) -> &dyn Velocity {
        match self {
            Owned::Given(field) => *field,
            Owned::Made(field) => &**field,
        }
    }
}

impl<'a> Fields<'a> {
    pub fn new(policy: &'a dyn Velocity, base: &'a dyn Velocity, guidance: &Guidance) -> Result<Self> {
        let pick = |field: &'a dyn Velocity, chosen: bool| -> Result<Owned<'a>> {
            let made = if chosen { guided(field, guidance.scale)? } else { None };
            Ok(made.map_or(Owned::Given(field), Owned::Made))
        };
        let other = |field: &'a dyn Velocity, chosen: bool| {
            let differs = guidance.scale != 1.0 && chosen != guidance.control;
            differs.then(|| pick(field, chosen)).transpose()
        };
        Ok(Self {
            policy: pick(policy, guidance.control)?,
            base: pick(base, guidance.control)?,
            rollout: other(policy, guidance.rollout)?,
            adjoint: other(base, guidance.adjoint)?,
        })
    }

    /// With these fields rolled out and carrying the adjoint, where there are any, guided as the ones whose place they take.
    pub fn with(
        mut self,
        rollout: &Option<Arc<dyn Velocity>>,
        adjoint: &Option<Arc<dyn Velocity>>,
        guidance: &Guidance,
    ) -> Result<Self> {
        let pick = |field: &Arc<dyn Velocity>, chosen: bool| -> Result<Owned<'a>> {
            let made = if chosen { guided(&**field, guidance.scale)? } else { None };
            Ok(Owned::Made(made.unwrap_or_else(|| field.clone())))
        };
        if let Some(field) = rollout {
            self.rollout = Some(pick(field, guidance.rollout)?);
        }
        if let Some(field) = adjoint {
            self.adjoint = Some(pick(field, guidance.adjoint)?);
        }
        Ok(self)
    }

    pub fn policy(&self) -> &dyn Velocity {
        self.policy.get()
    }

    pub fn base(&self) -> &dyn Velocity {
        self.base.get()
    }

    /// What is rolled out where that is not the policy.
    pub fn rollout(&self) -> Option<&dyn Velocity> {
        self.rollout.as_ref().map(Owned::get)
    }

    /// What carries the adjoint where that is not the base.
    pub fn adjoint(&self) -> Option<&dyn Velocity> {
        self.adjoint.as_ref().map(Owned::get)
    }
}
