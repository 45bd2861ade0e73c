//! Linear layers taken from `Weights`, and the low-rank adapters (LoRA) that attach to them by module name.

use crate::weights::{Init, Weights};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::op::{self, Lora};
use amscript_tensor::{DType, Device, Rng, Tensor};
use std::collections::BTreeMap;

/// `y = x W^T + b`, with its adapter if it has one.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub lora: Option<Lora>,
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        op::linear(x, &self.weight, self.bias.as_ref(), self.lora.as_ref())
    }
}

impl Linear {
    /// The layer that computes outputs `start..start + len` only; weights are shared.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        let part = |x: &Tensor| x.narrow(0, start, len);
        let lora = match &self.lora {
            Some(l) => Some(Lora { a: l.a.clone(), b: part(&l.b)?, scale: l.scale }),
            None => None,
        };
        let (weight, bias) = (part(&self.weight)?, self.bias.as_ref().map(part).transpose()?);
        Ok(Self { weight, bias, lora })
    }
}

impl Weights {
    /// The linear layer at this prefix; random weights begin uniform in `1 / sqrt(inner)`, biases at zero.
    pub fn linear(&self, inner: usize, out: usize, bias: bool) -> Result<Linear> {
        self.linear_from(inner, out, bias, Init::Uniform(1.0 / (inner as f64).sqrt()))
    }

    /// Like [`Weights::linear`], with the weight's beginning given.
    pub fn linear_from(&self, inner: usize, out: usize, bias: bool, init: Init) -> Result<Linear> {
        let weight = self.get("weight", &[out, inner], init)?;
        let bias = if bias { Some(self.get("bias", &[out], Init::Zeros)?) } else { None };
        self.state().linears.insert(self.prefix().to_string(), [out, inner]);
        Ok(Linear { lora: self.adapters().get(self.prefix()).cloned(), ..Linear::new(weight, bias) })
    }

    /// Linear modules of the models built from these weights, by name: `[out, in]`.
    pub fn linears(&self) -> BTreeMap<String, [usize; 2]> {
        self.state().linears.clone()
    }

    /// Trainable adapters on the chosen linear modules: `A` normal with deviation `1 / rank`, `B` zero, so nothing changes yet.
    pub fn with_lora(&self, chosen: impl Fn(&str) -> bool, rank: usize, scale: f64, rng: &Rng) -> Result<Weights> {
        if rank == 0 {
            bail!(Value, "lora: the rank must be at least 1, got 0");
        }
        let linears = self.linears();
        let mut adapters = BTreeMap::new();
        for (name, [out, inner]) in linears.iter().filter(|(name, _)| chosen(name)) {
            let normal = (rng.split(name).normal(&[rank, *inner], DType::F64, &Device::Cpu)? / rank as f64)?;
            let a = normal.to_dtype(self.adapter_dtype())?.to_device(self.device())?;
            let b = Tensor::zeros(&[*out, rank][..], self.adapter_dtype(), self.device())?;
            let (a, b) = (self.parameter(&a)?, self.parameter(&b)?);
            adapters.insert(name.clone(), Lora { a, b, scale });
        }
        if adapters.is_empty() {
            let some: Vec<&str> = linears.keys().map(String::as_str).take(3).collect();
            bail!(Value, "lora: must choose at least one linear module, got none of {}", linears.len();
                hint: "modules are named like {}", some.join(", "));
        }
        self.adapted(adapters)
    }

    /// Adapters in place of none: an error where there are some.
    pub fn adapted(&self, adapters: BTreeMap<String, Lora>) -> Result<Weights> {
        if !self.adapters().is_empty() {
            bail!(Value, "expected a model without adapters, got {} of them", self.adapters().len();
                hint: "add them into the weights with merge() first");
        }
        self.with_adapters(adapters)
    }

    /// The same weights, their adapters' change multiplied; the factors are shared, so later training shows.
    pub fn scaled(&self, strength: f64) -> Result<Weights> {
        if !strength.is_finite() {
            bail!(Value, "strength: the factor must be finite, got {strength}");
        }
        if strength == 0.0 {
            return self.with_adapters(BTreeMap::new());
        }
        let scaled = |lora: &Lora| Lora { scale: lora.scale * strength, ..lora.clone() };
        self.with_adapters(self.adapters().iter().map(|(name, lora)| (name.clone(), scaled(lora))).collect())
    }

    /// Constant weights with the adapters added in, computed in the adapters' dtype; tensors without adapters are shared.
    pub fn merged(&self) -> Result<Weights> {
        let sum = |name: &str, weight: &Tensor| match name.strip_suffix(".weight").and_then(|m| self.adapters().get(m))
        {
            Some(Lora { a, b, scale }) => {
                let change = (b.constant().matmul(&a.constant())? * *scale)?;
                Ok((weight.constant().to_dtype(change.dtype())? + change)?.to_dtype(weight.dtype())?)
            }
            None => Ok(weight.constant()),
        };
        self.map(sum)?.with_adapters(BTreeMap::new())
    }

    /// The dtype of adapters: f32, or f64 for f64 weights.
    pub fn adapter_dtype(&self) -> DType {
        if self.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Weights {
        let weights = Weights::random(&Rng::new(0), DType::F64, &Device::Cpu);
        weights.pp("one").linear(3, 2, true).unwrap();
        weights.pp("two").linear(2, 2, false).unwrap();
        weights
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_a_set_one_adds_its_product() {
        let weights = base();
        let adapted = weights.with_lora(|name| name == "one", 2, 0.5, &Rng::new(1)).unwrap();
        let x = Rng::new(2).normal(&[4, 3], DType::F64, &Device::Cpu).unwrap();
        let y = |w: &Weights| w.pp("one").linear(3, 2, true).unwrap().forward(&x).unwrap();
        let difference = || (y(&adapted) - y(&weights)).unwrap();
        assert_eq!(difference().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap(), 0.0);
        let params = adapted.params();
        assert_eq!(params.iter().map(|p| p.0.as_str()).collect::<Vec<_>>(), ["one.lora_A.weight", "one.lora_B.weight"]);
        let b = Rng::new(3).normal(&[2, 2], DType::F64, &Device::Cpu).unwrap();
        params[1].1.set(&b).unwrap();
        let product = (b.matmul(&params[0].1).unwrap() * 0.5).unwrap();
        let expected = x.matmul(&product.t().unwrap()).unwrap();
        let error = (difference() - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(error < 1e-12, "{error}");
    }

    #[test]
    fn adapters_are_chosen_and_not_stacked() {
        let weights = base();
        assert!(weights.with_lora(|_| false, 2, 1.0, &Rng::new(1)).err().unwrap().message.contains("none of 2"));
        let one = weights.with_lora(|name| name == "one", 2, 1.0, &Rng::new(1)).unwrap();
        let twice = one.with_lora(|_| true, 2, 1.0, &Rng::new(1)).err().unwrap();
        assert!(
            twice.to_string().contains("got 1 of them\nhint: add them into the weights with merge() first"),
            "{twice}"
        );
    }
    #[test]
    fn adapters_of_half_precision_weights_are_f32_and_merge_in_f32() {
        let weights = Weights::random(&Rng::new(0), DType::BF16, &Device::Cpu);
        weights.pp("one").linear(3, 2, false).unwrap();
        let adapted = weights.with_lora(|_| true, 2, 0.5, &Rng::new(1)).unwrap();
        let b = Rng::new(3).normal(&[2, 2], DType::F32, &Device::Cpu).unwrap();
        adapted.adapters()["one"].b.set(&b).unwrap();
        let weight = |w: &Weights| w.get("one.weight", &[2, 3], Init::Zeros).unwrap();
        let sum = weight(&weights).to_dtype(DType::F32).unwrap()
            + (b.matmul(&adapted.adapters()["one"].a.constant()).unwrap() * 0.5).unwrap();
        let expected = sum.unwrap().to_dtype(DType::BF16).unwrap();
        let merged = adapted.merged().unwrap();
        assert!(merged.adapters().is_empty());
        let bits = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(bits(&weight(&merged)), bits(&expected));
        assert_eq!(weight(&merged).dtype(), DType::BF16);
    }
}
