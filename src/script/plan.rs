//! What a script that runs only to be planned shows of its first update. The script ends where that would begin.

use super::align::Cost;
use super::flow::Trajectory;
use crate::align::Terminal;
use crate::error::{Error, Kind, Result};
use crate::model::Flow;
use crate::model::adapter::Targets;
use crate::nn::module::Module as _;
use crate::run::plan::{Method, Passes, Planner, Update};
use crate::tensor::{Rng, Tensor};

/// Notes that every weight is trained; small adapters stand in for the copy.
pub fn whole(planner: &Planner, flow: &Flow) -> Result<Flow> {
    let mut plan = planner.plan();
    (plan.whole, plan.trainable) = (true, flow.trainable_numbers() as u64);
    flow.lora(1, 1.0, &Targets::Usual, &Rng::new(0))
}

/// The flows of an update.
pub struct Flows<'a> {
    pub rolled: &'a Flow,
    pub policy: &'a Flow,
    pub carrying: &'a Flow,
    pub base: &'a Flow,
}

/// Notes a fused update from `x0 [batch, ..]`, of so many steps and active ones, whose policy runs again if `recompute`.
pub fn fused(planner: &Planner, flows: &Flows, x0: &Tensor, steps: [usize; 2], recompute: bool, cost: &Cost) -> Error {
    planner.plan().reward = cost.work(planner.cpu);
    let method = if recompute { Method::Stepwise } else { Method::Fused };
    note(planner, method, flows, x0, steps)
}

/// Notes an update that follows the reward's own gradient, of so many velocities and those with a graph.
pub fn direct(planner: &Planner, method: Method, policy: &Flow, x0: &Tensor, steps: [usize; 2], cost: &Cost) -> Error {
    planner.plan().reward = cost.work(planner.cpu);
    note(planner, method, &Flows { rolled: policy, policy, carrying: policy, base: policy }, x0, steps)
}

/// Notes the cost of end states; they are not judged, their gradient is zero.
pub fn judged(planner: &Planner, path: &Trajectory, cost: &Cost) -> Result<Terminal> {
    planner.plan().reward = cost.work(planner.cpu);
    let last = path.path.last();
    Ok(Terminal { gradient: last.zeros_like()?, reward: last.flatten_from(1)?.sum(1)?.zeros_like()? })
}

/// Notes an update by hand: the rollout is over, the adjoint would begin. The policy is taken to be what was rolled out.
pub fn separate(planner: &Planner, path: &Trajectory, base: &Flow) -> Error {
    let steps = [path.path.steps(), path.path.window().len()];
    let flows = Flows { rolled: &path.flow, policy: &path.flow, carrying: base, base };
    note(planner, Method::Separate, &flows, path.path.last(), steps)
}

fn note(planner: &Planner, method: Method, flows: &Flows, x: &Tensor, [steps, active]: [usize; 2]) -> Error {
    let mut plan = planner.plan();
    let (batch, numbers) = (x.dims()[0], x.elem_count());
    if plan.trainable == 0 {
        plan.trainable = flows.policy.params().iter().map(|(_, t)| t.elem_count() as u64).sum();
    }
    let passes = |flow: &Flow| flow.work(x.dims(), planner.cpu).passes;
    let passes = Passes {
        rollout: passes(flows.rolled),
        policy: passes(flows.policy),
        again: method == Method::Separate || !flows.rolled.is(flows.policy),
        adjoint: if method.matches() { passes(flows.carrying) } else { 0.0 },
        base: if flows.carrying.is(flows.base) { 0.0 } else { passes(flows.base) },
    };
    let (work, latent) = (flows.policy.work(x.dims(), planner.cpu), numbers / batch.max(1));
    plan.update = Some(Update { method, batch, steps, active, latent, work, passes });
    Error::new(Kind::Interrupt, "the plan is complete")
}
