//! What a run will cost, known before a weight is read: parts, operations, memory.

use crate::model::estimate::Work;
use crate::model::text::CACHED_BYTES;
use crate::nn::cost::{Cost, Part};
use crate::tensor::cuda::SCRATCH;
use parking_lot::{Mutex, MutexGuard};

/// What a script has shown of itself so far, when it runs only to be planned.
pub struct Planner {
    /// Whether the device is the CPU.
    pub cpu: bool,
    plan: Mutex<Plan>,
}

impl Planner {
    pub fn new(cpu: bool) -> Self {
        Self { cpu, plan: Mutex::new(Plan { cpu, ..Plan::default() }) }
    }

    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock()
    }
}

/// The plan of a run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Weights by part, in the order they are opened.
    pub parts: Vec<Part>,
    /// Numbers that training changes.
    pub trainable: u64,
    /// Whether that is every weight, not adapters alone.
    pub whole: bool,
    /// Whether the device is the CPU.
    pub cpu: bool,
    /// The work of the reward that was last asked for.
    pub reward: Cost,
    /// Updates of the first loop.
    pub iterations: Option<usize>,
    /// One update; none when the script ended without one.
    pub update: Option<Update>,
}

/// How an update is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// `adjoint_matching`: the rollout's graph and the adjoint's velocities serve the loss.
    Fused,
    /// The same with `recompute`: the policy's active steps run again in the loss's backward, one after the other.
    Stepwise,
    /// `rollout`, `lean_adjoint`, `matching_loss`: the loss computes the policy's active steps again.
    Separate,
    /// `draft`: one graph through the last steps, decoder and reward.
    Draft,
    /// `refl`: the graph of one step, decoder and reward.
    Refl,
}

impl Method {
    /// Whether an adjoint is carried back and matched.
    pub fn matches(self) -> bool {
        matches!(self, Method::Fused | Method::Stepwise | Method::Separate)
    }
}

/// One update.
#[derive(Clone, Debug)]
pub struct Update {
    pub method: Method,
    pub batch: usize,
    /// Steps of the rollout, N.
    pub steps: usize,
    /// Active steps, K.
    pub active: usize,
    /// Numbers of one sample's latents.
    pub latent: usize,
    /// The policy at work.
    pub work: Work,
    pub passes: Passes,
}

/// Forwards of the network that one velocity takes, by use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passes {
    /// Of what is rolled out.
    pub rollout: f64,
    /// Of the policy, with a graph.
    pub policy: f64,
    /// Whether the loss computes those, because the rollout's do not serve it.
    pub again: bool,
    /// Of what carries the adjoint, with a graph.
    pub adjoint: f64,
    /// Of the base for the loss; none where the adjoint's serve it.
    pub base: f64,
}

/// Memory that an allocator takes from the system for each byte in use; measured 1.02 to 1.13 on Linux.
const ALLOCATOR: f64 = 1.1;

/// Bytes at the moment of an update that needs most.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    pub weights: f64,
    /// Trained numbers with their gradient and two moments, in f32.
    pub training: f64,
    /// States, velocities, adjoints and targets of the active steps.
    pub states: f64,
    /// Graphs of the policy's active steps.
    pub policy: f64,
    /// Graph of one velocity of the base, with what its backward needs.
    pub adjoint: f64,
    /// Graph from the end states through decoder and reward, with what its backward needs.
    pub judging: f64,
    /// Embeddings of all prompts met.
    pub prompts: f64,
    /// All that is there at once, with [`ALLOCATOR`].
    pub peak: f64,
    /// The same once what only prompts need was freed.
    pub freed: f64,
}

impl Update {
    /// Forwards of the network, with those of blocks that run again.
    pub fn forwards(&self) -> f64 {
        let (k, p) = (self.active as f64, &self.passes);
        let recomputed = if self.work.recompute { p.policy + p.adjoint } else { 0.0 };
        let times = usize::from(p.again) + usize::from(self.method == Method::Stepwise);
        self.steps as f64 * p.rollout + k * (p.adjoint + p.base + times as f64 * p.policy + recomputed)
    }

    /// Backwards of the network: along the adjoint, and of the loss.
    pub fn backwards(&self) -> f64 {
        self.active as f64 * (self.passes.policy + self.passes.adjoint)
    }
}

impl Plan {
    /// Images that all updates make.
    pub fn images(&self) -> Option<u64> {
        Some(self.update.as_ref()?.batch as u64 * self.iterations? as u64)
    }

    /// Operations of an update. The little that adapters add is left out.
    pub fn flops_per_update(&self) -> Option<f64> {
        let u = self.update.as_ref()?;
        let w = &u.work;
        let weights = if self.whole { u.active as f64 * u.passes.policy * w.network.forward } else { 0.0 };
        let judged = w.decode.forward + w.decode.vjp + self.reward.forward + self.reward.vjp;
        let network = u.forwards() * w.network.forward + u.backwards() * w.network.vjp;
        Some(u.batch as f64 * (network + weights + judged))
    }

    /// Operations of all updates, with every image's prompt encoded.
    pub fn flops(&self) -> Option<f64> {
        let encoded = self.update.as_ref()?.work.encode * self.images()? as f64;
        Some(self.iterations? as f64 * self.flops_per_update()? + encoded)
    }

    pub fn memory(&self) -> Option<Memory> {
        let u = self.update.as_ref()?;
        let (w, k, batch) = (&u.work, u.active as f64, u.batch as f64);
        let graph = if w.recompute { w.network.outline } else { w.network.kept };
        // What a backward needs at once: a block that runs again, and an op's gradients with its unrolled or gated inputs.
        let inside = if w.recompute { w.network.block } else { 0.0 };
        let decoder = if w.recompute { w.decode.outline + w.decode.block } else { w.decode.kept };
        let jobs = if self.cpu { batch.min(rayon::current_num_threads() as f64) } else { batch };
        let most = if self.cpu { f64::INFINITY } else { SCRATCH as f64 };
        let scratch = (2.0 * jobs * w.decode.scratch.max(self.reward.scratch)).min(most);
        let prompts = w.prompt * self.images().unwrap_or(u.batch as u64) as f64;
        let mut memory = Memory {
            weights: self.parts.iter().map(|p| p.bytes).sum(),
            training: 16.0 * self.trainable as f64,
            states: 4.0 * batch * u.latent as f64 * (5.0 * k + 1.0),
            policy: batch * graph * u.passes.policy * if u.method == Method::Stepwise { 1.0 } else { k },
            adjoint: batch * (u.passes.adjoint * graph + inside + 2.0 * w.network.scratch),
            judging: batch * (decoder + self.reward.kept) + scratch,
            prompts: prompts.min(CACHED_BYTES as f64),
            peak: 0.0,
            freed: 0.0,
        };
        let held = memory.weights + memory.training + memory.states + memory.prompts;
        // The base's graph and the judge's come one after the other; a policy's that the rollout kept stays beside them.
        let graphs = memory.adjoint.max(memory.judging);
        let live = match u.method {
            Method::Fused | Method::Draft | Method::Refl => held + memory.policy + graphs,
            Method::Stepwise | Method::Separate => held + memory.policy.max(graphs),
        };
        let passing: f64 = self.parts.iter().filter(|part| part.passing).map(|part| part.bytes).sum();
        memory.peak = live * ALLOCATOR;
        memory.freed = (live - passing) * ALLOCATOR;
        Some(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Networks of round sizes: forward 10, gradient 11, graph 100 bytes or 5 with blocks of 20.
    fn plan(method: Method, recompute: bool) -> Plan {
        let network = Cost { forward: 10.0, vjp: 11.0, kept: 100.0, outline: 5.0, block: 20.0, scratch: 1.0 };
        let decode = Cost { forward: 2.0, vjp: 3.0, kept: 30.0, outline: 6.0, block: 5.0, ..Cost::default() };
        let work = Work { network, recompute, passes: 1.0, decode, encode: 1.0, prompt: 4.0 };
        let again = method == Method::Separate;
        let passes = Passes { rollout: 1.0, policy: 1.0, again, adjoint: 1.0, base: 0.0 };
        let update = Update { method, batch: 2, steps: 20, active: 3, latent: 8, work, passes };
        let part = Part { name: "all".into(), tensors: 1, parameters: 250, bytes: 1000.0, passing: true };
        Plan {
            parts: vec![part],
            trainable: 10,
            cpu: true,
            iterations: Some(5),
            update: Some(update),
            ..Plan::default()
        }
    }

    #[test]
    fn a_fused_update_takes_n_plus_3_k() {
        let fused = plan(Method::Fused, false);
        let counts = |plan: &Plan| plan.update.as_ref().map(|u| (u.forwards(), u.backwards())).unwrap();
        assert_eq!(counts(&fused), (23.0, 6.0));
        assert_eq!(counts(&plan(Method::Separate, false)), (26.0, 6.0));
        assert_eq!(counts(&plan(Method::Fused, true)), (29.0, 6.0));
        assert_eq!(counts(&plan(Method::Stepwise, false)), (26.0, 6.0));
        let mut guided = fused.clone(); // in the rollout and along the adjoint
        guided.update.as_mut().unwrap().passes =
            Passes { rollout: 2.0, policy: 1.0, again: true, adjoint: 2.0, base: 1.0 };
        assert_eq!(counts(&guided), (40.0 + 3.0 * 4.0, 9.0));
        assert_eq!(fused.images(), Some(10));
        assert_eq!(fused.flops_per_update(), Some(2.0 * (230.0 + 66.0 + 5.0)));
        assert_eq!(fused.flops(), Some(5.0 * 602.0 + 10.0));
    }

    #[test]
    fn the_two_graphs_of_one_update_are_not_there_together() {
        let memory = plan(Method::Fused, false).memory().unwrap();
        assert_eq!((memory.training, memory.states, memory.prompts), (160.0, 1024.0, 40.0));
        assert_eq!((memory.policy, memory.adjoint, memory.judging), (600.0, 204.0, 60.0));
        assert_eq!(memory.peak, ALLOCATOR * (1000.0 + 160.0 + 1024.0 + 40.0 + 600.0 + 204.0));
        assert_eq!(memory.freed, memory.peak - ALLOCATOR * 1000.0);
        let again = plan(Method::Fused, true).memory().unwrap();
        assert_eq!((again.policy, again.adjoint, again.judging), (30.0, 54.0, 22.0));
        let separate = plan(Method::Separate, false).memory().unwrap();
        assert_eq!(separate.peak, ALLOCATOR * (2224.0 + 600.0));
        let stepwise = plan(Method::Stepwise, false).memory().unwrap();
        assert_eq!(stepwise.peak, ALLOCATOR * (2224.0 + 204.0));
    }
}
