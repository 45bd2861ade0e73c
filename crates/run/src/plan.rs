//! What a run will take, known before a number is read: its first update runs on tensors that have shapes and no numbers.

use amscript_align::flow::Condition;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::profile::Totals;
use amscript_nn::cost::Part;
use amscript_tensor::Tensor;
use amscript_tensor::meta::{Ops, Trace};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a script has shown of itself so far, when it runs only to be planned.
pub struct Planner {
    /// Counts what is held and computed.
    pub trace: Arc<Trace>,
    plan: Mutex<Plan>,
}

impl Planner {
    /// For the processor, or for a card.
    pub fn new(cpu: bool) -> Self {
        Self { trace: Trace::profiled(!cpu), plan: Mutex::default() }
    }

    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock()
    }

    /// Notes what is opened; what several things stand on is one.
    pub fn opens(&self, parts: Vec<Part>) {
        let known = &mut self.plan().parts;
        for part in parts {
            if !known.contains(&part) {
                known.push(part);
            }
        }
    }

    /// Notes the samples of an update.
    pub fn samples(&self, x0: &Tensor) {
        let mut plan = self.plan();
        plan.batch = plan.batch.max(x0.dims().first().copied().unwrap_or(0));
    }

    /// Notes what prompts are encoded as: it is kept for each of them.
    pub fn encodes(&self, condition: &Condition) {
        let bytes = |x: &Tensor| (x.elem_count() * x.dtype().size_in_bytes()) as f64;
        let rows = condition.samples().unwrap_or(1).max(1) as f64;
        self.plan().prompt = condition.tensors.values().map(bytes).sum::<f64>() / rows;
    }

    fn so_far(&self) -> Update {
        let trace = &self.trace;
        Update { passes: trace.passes(), work: trace.work() as f64, peak: trace.peak() }
    }

    /// Notes that the script has come to its end: what it did is all there is to plan, where it had no update but asked networks.
    pub fn ends(&self) {
        let mut plan = self.plan();
        plan.whole = Some(self.so_far()).filter(|all| plan.update.is_none() && all.passes[0] > 0);
    }

    /// Ends the run at the step of its first update, of which these gradients are there; none while nothing is planned.
    pub fn stops(&self, gradients: &[Tensor]) -> Result<()> {
        let mut plan = self.plan();
        plan.trained = gradients.iter().map(|g| g.elem_count() as u64).sum();
        let trace = &self.trace;
        plan.update = Some(self.so_far());
        plan.card_ops = Some(trace.ops()).filter(|_| trace.fused());
        Err(Error::new(Kind::Interrupt, "the plan is complete"))
    }
}

/// The plan of a run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Weights by part, in the order they are opened.
    pub parts: Vec<Part>,
    /// Samples of an update.
    pub batch: usize,
    /// Numbers that training changes.
    pub trained: u64,
    /// Updates of the first loop.
    pub iterations: Option<usize>,
    /// Bytes that are kept of a prompt.
    pub prompt: f64,
    /// The first update; none when the script ended without one.
    pub update: Option<Update>,
    /// All of a script without an update that drew from a flow.
    pub whole: Option<Update>,
    /// Operations and bytes by phase, `script` outside all others.
    pub phases: BTreeMap<&'static str, Totals>,
    /// The ops of the first update, where it is planned for a card.
    pub card_ops: Option<Ops>,
}

/// One update, with what came before it.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Forwards and backwards of networks.
    pub passes: [u64; 2],
    /// Multiplications and additions.
    pub work: f64,
    /// Bytes held at most.
    pub peak: u64,
}

/// Memory that an allocator takes from the system for each byte in use; measured 1.02 to 1.13 on Linux.
const ALLOCATOR: f64 = 1.1;

impl Plan {
    /// Images that all updates make.
    pub fn images(&self) -> Option<u64> {
        self.update?;
        Some(self.batch as u64 * self.iterations? as u64)
    }

    /// Bytes that the prompts of all updates are kept in, beside those of the first; at most `cached`.
    pub fn prompts(&self, cached: usize) -> f64 {
        let all = self.prompt * self.images().unwrap_or(self.batch as u64) as f64;
        (all.min(cached as f64) - self.prompt * self.batch as f64).max(0.0)
    }

    /// Bytes at most at once with what the allocator takes, and the same without what only prompts need.
    pub fn memory(&self, cached: usize) -> Option<[f64; 2]> {
        let live = self.update.or(self.whole)?.peak as f64 + self.prompts(cached);
        let passing: f64 = self.parts.iter().filter(|part| part.passing).map(|part| part.bytes).sum();
        Some([live * ALLOCATOR, (live - passing) * ALLOCATOR])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_kept_up_to_a_limit_and_freed_weights_are_left_out() {
        let part = Part { name: "text".into(), tensors: 1, parameters: 25, bytes: 100.0, passing: true };
        let update = Update { passes: [23, 6], work: 1e9, peak: 1000 };
        let plan = Plan {
            parts: vec![part],
            batch: 2,
            iterations: Some(5),
            prompt: 10.0,
            update: Some(update),
            ..Plan::default()
        };
        assert_eq!(plan.images(), Some(10));
        assert_eq!((plan.prompts(1000), plan.prompts(50)), (80.0, 30.0));
        assert_eq!(plan.memory(1000), Some([1.1 * 1080.0, 1.1 * 980.0]));
        assert_eq!(Plan::default().memory(1000), None);
    }
}
