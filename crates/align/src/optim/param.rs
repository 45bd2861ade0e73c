//! The trainable tensors of a model, with their names.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::{DType, Tensor};

/// Trainable tensors, each with the name it has in its model. Clones share the tensors.
#[derive(Clone, Default)]
pub struct Params {
    entries: Vec<(String, Tensor)>,
}

impl Params {
    /// From named tensors; each must be trainable (a variable) and f32 or f64.
    pub fn new(named: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let mut entries = Vec::new();
        for (name, tensor) in named {
            if !tensor.is_variable() {
                bail!(Value, "params: `{name}` must be trainable, got a constant tensor"; hint: "make it with param(tensor)");
            }
            if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
                bail!(Dtype, "params: `{name}` must be f32 or f64, got {:?}", tensor.dtype());
            }
            entries.push((name, tensor));
        }
        Ok(Self { entries })
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many numbers they hold together.
    pub fn elements(&self) -> usize {
        self.entries.iter().map(|(_, v)| v.elem_count()).sum()
    }

    pub fn name(&self, index: usize) -> &str {
        &self.entries[index].0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The tensors themselves, tracked, in order.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.entries.iter().map(|(_, v)| v.clone()).collect()
    }

    /// Moves every value towards that of the same name: `decay * own + (1 - decay) * other`.
    pub fn follow(&self, other: &Params, decay: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&decay) {
            bail!(Value, "follow: the decay must lie in [0, 1], got {decay}");
        }
        let moved = |name: &str, own: &Tensor| -> Result<Option<Tensor>> {
            let Some((_, to)) = other.iter().find(|(other, _)| *other == name) else { return Ok(None) };
            Ok(Some(((own.constant() * decay)? + (to.constant() * (1.0 - decay))?)?))
        };
        self.iter().try_for_each(|(name, own)| overwrite(own, moved(name, own)?, name))
    }

    /// Overwrites every value by the tensor of the same name; a missing or misshaped one is an error.
    pub fn load(&self, mut tensor: impl FnMut(&str) -> Option<Tensor>) -> Result<()> {
        for (name, var) in self.iter() {
            overwrite(var, tensor(name), name)?;
        }
        Ok(())
    }
}

/// Copies `value` into `var`, in `var`'s dtype and on its device.
pub(super) fn overwrite(var: &Tensor, value: Option<Tensor>, name: &str) -> Result<()> {
    let value = present(value, name)?;
    fits(value.dims(), var, name)?;
    // A copy: `set` refuses a source that shares storage with the variable.
    var.set(&value.to_dtype(var.dtype())?.to_device(var.device())?.copy()?)
}

pub(super) fn present<T>(value: Option<T>, name: &str) -> Result<T> {
    value.map_or_else(|| bail!(Missing, "load: `{name}` must be present, got no tensor of that name"), Ok)
}

/// Refuses the shape of a value that is not that of its variable.
pub(super) fn fits(dims: &[usize], var: &Tensor, name: &str) -> Result<()> {
    if dims != var.dims() {
        bail!(Shape, "load: `{name}` must have shape {:?}, got {dims:?}", var.dims());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Device;

    #[test]
    fn values_follow_others_of_their_name() {
        let make = |name: &str, x: f64| {
            let variable = Tensor::new(&[x], &Device::Cpu).unwrap().variable().unwrap();
            Params::new([(name.to_string(), variable)]).unwrap()
        };
        let (own, other) = (make("w", 1.0), make("w", 3.0));
        own.follow(&other, 0.75).unwrap();
        assert_eq!(own.tensors()[0].to_vec1::<f64>().unwrap(), [1.5]);
        assert_eq!(
            own.follow(&make("b", 0.0), 0.5).unwrap_err().message,
            "load: `w` must be present, got no tensor of that name"
        );
        assert!(own.follow(&other, 1.5).is_err());
    }
}
