//! Copies of the policy's trained numbers that follow it, kept in a method's state.

use crate::MethodState;
use crate::flow::Velocity;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_tensor::Tensor;
use std::sync::Arc;

/// The weight of a copy's own values when it follows the policy after update `i`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Follow {
    /// The same at each update; 0 is a hard copy.
    Decay(f64),
    /// 0 until `start`, then `slope (i - start)`, `most` at most (DiffusionNFT).
    Ramp { slope: f64, most: f64, start: usize },
    /// A hard copy every so many updates.
    Every(usize),
}

impl Follow {
    /// The weight after update `i`.
    pub fn decay(&self, i: usize) -> f64 {
        match *self {
            Follow::Decay(decay) => decay,
            Follow::Ramp { slope, most, start } => (slope * i.saturating_sub(start) as f64).min(most),
            Follow::Every(n) => {
                if i.is_multiple_of(n.max(1)) {
                    0.0
                } else {
                    1.0
                }
            }
        }
    }

    /// Refuses weights that are none.
    pub fn check(&self) -> Result<()> {
        let (Follow::Decay(most) | Follow::Ramp { most, .. }) = *self else { return Ok(()) };
        match (0.0..=1.0).contains(&most) {
            true => Ok(()),
            false => bail!(Value, "follow: the weight of the old values must lie in [0, 1], got {most}"),
        }
    }
}

/// A copy of the policy under a name in a method's state.
pub struct Follower<'a> {
    name: &'a str,
    policy: Arc<dyn Velocity>,
    variables: Vec<Tensor>,
}

impl<'a> Follower<'a> {
    /// The copy of that name; the policy must be able to name its trained numbers.
    pub fn new(name: &'a str, policy: &dyn Velocity) -> Result<Self> {
        let Some((policy, variables)) = policy.rerun().filter(|(_, variables)| !variables.is_empty()) else {
            let message = "a copy of the policy needs one whose trained numbers it can name, got one without";
            let hint = "make the policy with base.lora(..) or base.trainable(); give velocity_field(closure, params) its parameters";
            return Err(Error::new(Kind::Type, message).hint(hint));
        };
        Ok(Self { name, policy, variables })
    }

    fn key(&self, i: usize) -> String {
        format!("{} {i:04}", self.name)
    }

    /// Copies the policy at first, and lets the copy follow it afterwards; once an update.
    pub fn follow(&self, follow: &Follow, state: &mut MethodState) -> Result<()> {
        let count = format!("{} updates", self.name);
        let updates = state.numbers.get(&count).copied();
        let decay = updates.map_or(0.0, |n| follow.decay(n as usize + 1));
        state.numbers.insert(count, updates.map_or(0.0, |n| n + 1.0));
        for (i, variable) in self.variables.iter().enumerate() {
            let value = variable.constant();
            let next = match state.tensors.get(&self.key(i)) {
                Some(own) if decay > 0.0 => {
                    let own = own.to_device(value.device())?.to_dtype(value.dtype())?;
                    ((own * decay)? + (value * (1.0 - decay))?)?
                }
                _ => value.copy()?,
            };
            state.tensors.insert(self.key(i), next);
        }
        Ok(())
    }

    /// `f` with the policy as the copy has it; afterwards it is as before, also where `f` fails.
    pub fn with<T>(&self, state: &MethodState, f: impl FnOnce(&dyn Velocity) -> Result<T>) -> Result<T> {
        let own = self.variables.iter().map(|variable| variable.constant().copy()).collect::<Result<Vec<_>>>()?;
        let copies = (0..own.len()).map(|i| match state.tensors.get(&self.key(i)) {
            Some(copy) if copy.dims() == own[i].dims() => copy.to_device(own[i].device())?.to_dtype(own[i].dtype()),
            _ => bail!(Missing, "the state must hold a copy `{}` of the policy, got one of another policy", self.name),
        });
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let put =
            |values: &[Tensor]| self.variables.iter().zip(values).try_for_each(|(variable, value)| variable.set(value));
        put(&copies)?;
        let result = f(&*self.policy);
        put(&own)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decays_are_the_published_ones() {
        let nft = Follow::Ramp { slope: 0.001, most: 0.5, start: 0 };
        assert_eq!([1, 100, 900].map(|i| nft.decay(i)), [0.001, 0.1, 0.5]);
        let late = Follow::Ramp { slope: 0.0075, most: 0.999, start: 75 };
        assert_eq!([10, 75, 95, 400].map(|i| late.decay(i)), [0.0, 0.0, 0.15, 0.999]);
        assert_eq!([1, 14, 15, 30].map(|i| Follow::Every(15).decay(i)), [1.0, 1.0, 0.0, 0.0]);
        assert!(Follow::Decay(1.5).check().is_err() && Follow::Decay(1.0).check().is_ok());
    }
}
