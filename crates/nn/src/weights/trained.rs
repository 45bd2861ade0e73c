//! What is trained of weights: adapters, variables, and the same weights without either.

use super::Weights;
use amscript_base::error::Result;
use amscript_tensor::op::Lora;
use amscript_tensor::{DType, Tensor};
use std::collections::BTreeMap;

impl Weights {
    /// Low-rank changes by module name.
    pub fn adapters(&self) -> &BTreeMap<String, Lora> {
        &self.shared.adapters
    }

    /// The same tensors with these adapters instead; a model built from the result applies them.
    pub fn with_adapters(&self, adapters: BTreeMap<String, Lora>) -> Result<Self> {
        self.replaced(self.tensors()?, adapters)
    }

    /// A copy whose chosen tensors are variables that an optimizer can change, in f32 or f64.
    pub fn trainable(&self, chosen: impl Fn(&str) -> bool) -> Result<Self> {
        self.map(|name, tensor| match chosen(name) {
            true => {
                // half precision loses small steps
                let dtype = if tensor.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
                Ok(tensor.constant().to_dtype(dtype)?.variable()?)
            }
            false => Ok(tensor.constant()),
        })
    }

    /// The same tensors and adapters, sharing storage, with no gradient to any of them.
    pub fn frozen(&self) -> Result<Self> {
        let frozen = |lora: &Lora| Lora { a: lora.a.constant(), b: lora.b.constant(), scale: lora.scale };
        let adapters = self.adapters().iter().map(|(name, lora)| (name.clone(), frozen(lora))).collect();
        let tensors = self.tensors()?.into_iter().map(|(name, tensor)| (name, tensor.constant())).collect();
        self.replaced(tensors, adapters)
    }

    /// The variables among the tensors and adapters, by full name, in order.
    pub fn params(&self) -> Vec<(String, Tensor)> {
        let adapters = self.adapters().iter().flat_map(|(name, lora)| {
            [(format!("{name}.lora_A.weight"), lora.a.clone()), (format!("{name}.lora_B.weight"), lora.b.clone())]
        });
        let tensors = self.state().tensors.clone().into_iter().chain(adapters).filter(|(_, t)| t.is_variable());
        tensors.collect::<BTreeMap<_, _>>().into_iter().collect()
    }

    /// The variables at and below this prefix.
    pub fn variables(&self) -> Vec<Tensor> {
        let below =
            |name: &str| name.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.params().into_iter().filter(|(name, _)| self.prefix.is_empty() || below(name)).map(|(_, x)| x).collect()
    }
}
