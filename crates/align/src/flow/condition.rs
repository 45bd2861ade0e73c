//! What a velocity is conditioned on: prompts, class labels, and named tensors, one row per sample.

use amscript_base::error::Result;
use amscript_base::{bail, memory};
use amscript_tensor::{Tensor, op};
use std::collections::BTreeMap;

/// What a velocity is conditioned on; one row per sample in whatever is there.
#[derive(Clone, Default)]
pub struct Condition {
    /// Prompts as given, or the sentences of the labels; rewards judge by them.
    pub text: Vec<String>,
    /// What networks read, by name (see [`Condition::IDS`], [`Condition::EMBEDDINGS`]), each `[batch, ..]`.
    pub tensors: BTreeMap<String, Tensor>,
    /// Class labels.
    pub labels: Option<Vec<u32>>,
}

impl Condition {
    /// Token ids `[batch, tokens]`, u32.
    pub const IDS: &str = "ids";
    /// Prompt embeddings `[batch, tokens, features]`.
    pub const EMBEDDINGS: &str = "embeddings";

    /// Prompts, so far without tensors.
    pub fn of_text(text: &[String]) -> Self {
        Self { text: text.to_vec(), ..Self::default() }
    }

    /// The same with a named tensor `[batch, ..]`.
    pub fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A tensor that a network cannot do without.
    pub fn need(&self, name: &str) -> Result<&Tensor> {
        let Some(tensor) = self.get(name) else {
            let has = self.tensors.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let has = if has.is_empty() { "none".into() } else { has };
            bail!(Value, "velocity: expected a condition with a tensor `{name}`, got {has}"; hint: "make one with flow.encode(prompts)");
        };
        Ok(tensor)
    }

    /// Samples it speaks of; none where nothing says.
    pub fn samples(&self) -> Option<usize> {
        let text = Some(self.text.len()).filter(|n| *n > 0);
        text.or(self.labels.as_ref().map(Vec::len)).or(self
            .tensors
            .values()
            .next()
            .and_then(|t| t.dims().first().copied()))
    }

    /// Errs where there is no room for texts and labels of so many samples with texts like these.
    fn room(&self, samples: usize) -> Result<()> {
        let longest = self.text.iter().map(String::len).max().unwrap_or(0);
        memory::room(memory::bytes(&[samples, longest + 64], 1), || format!("a condition of {samples} samples"))
    }

    /// The condition of these samples, in this order; a sample may be there several times.
    pub fn rows(&self, rows: &[u32]) -> Result<Self> {
        if let Some(n) = self.samples()
            && let Some(row) = rows.iter().find(|row| **row as usize >= n)
        {
            bail!(Value, "condition: rows must be below {n}, got {row}");
        }
        self.room(rows.len())?;
        let pick = |tensor: &Tensor| tensor.index_select(&Tensor::new(rows, tensor.device())?, 0);
        let tensors = self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), pick(tensor)?)));
        Ok(Self {
            text: rows.iter().filter_map(|row| self.text.get(*row as usize).cloned()).collect(),
            tensors: tensors.collect::<Result<_>>()?,
            labels: self.labels.as_ref().map(|all| rows.iter().map(|row| all[*row as usize]).collect()),
        })
    }

    /// Each sample `times` in a row: the condition of groups.
    pub fn repeat(&self, times: usize) -> Result<Self> {
        let n = self.samples().unwrap_or(0);
        self.room(n.saturating_mul(times))?;
        let n = n as u32;
        self.rows(&(0..n).flat_map(|row| std::iter::repeat_n(row, times)).collect::<Vec<_>>())
    }

    /// One condition behind another; both must hold the same things.
    pub fn cat(&self, next: &Self) -> Result<Self> {
        let kinds = |c: &Self| -> (bool, bool, Vec<String>) {
            (c.text.is_empty(), c.labels.is_none(), c.tensors.keys().cloned().collect())
        };
        if kinds(self) != kinds(next) {
            bail!(
                Value,
                "condition: expected two that hold the same tensors, labels and text, got {:?} and {:?}",
                self.tensors.keys(),
                next.tensors.keys()
            );
        }
        for part in [self, next] {
            part.room(self.samples().unwrap_or(0) + next.samples().unwrap_or(0))?;
        }
        let joined = self.tensors.iter().zip(next.tensors.values());
        let tensors = joined.map(|((name, a), b)| Ok((name.clone(), op::cat(&[a, b], 0)?)));
        let labels = self.labels.iter().chain(&next.labels).flatten().copied().collect();
        Ok(Self {
            text: self.text.iter().chain(&next.text).cloned().collect(),
            tensors: tensors.collect::<Result<_>>()?,
            labels: self.labels.as_ref().map(|_| labels),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Device;

    fn condition() -> Condition {
        let tensor = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
        let text = ["a", "b", "c"].map(String::from).to_vec();
        Condition { text, labels: Some(vec![7, 8, 9]), ..Condition::default() }.with("pooled", tensor)
    }

    fn numbers(c: &Condition) -> Vec<f32> {
        c.need("pooled").unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_are_picked_repeated_and_joined_in_all_that_is_there() {
        let picked = condition().rows(&[2, 0]).unwrap();
        assert_eq!((picked.text.join(""), picked.labels.clone()), ("ca".into(), Some(vec![9, 7])));
        assert_eq!(numbers(&picked), [5.0, 6.0, 1.0, 2.0]);
        let groups = condition().repeat(2).unwrap();
        assert_eq!((groups.text.join(""), groups.labels.clone()), ("aabbcc".into(), Some(vec![7, 7, 8, 8, 9, 9])));
        let joined = picked.cat(&condition().rows(&[1]).unwrap()).unwrap();
        assert_eq!((joined.text.join(""), joined.labels.clone()), ("cab".into(), Some(vec![9, 7, 8])));
        assert_eq!(numbers(&joined), [5.0, 6.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(Condition::default().rows(&[0, 4]).unwrap().samples(), None);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let message = |r: Result<Condition>| r.err().unwrap().message;
        assert_eq!(message(condition().rows(&[3])), "condition: rows must be below 3, got 3");
        assert!(message(condition().cat(&Condition::default())).contains("expected two that hold the same"));
        let error = condition().need("ids").err().unwrap();
        assert_eq!(error.message, "velocity: expected a condition with a tensor `ids`, got `pooled`");
    }
}
