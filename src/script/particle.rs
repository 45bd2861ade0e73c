//! Chapter `particle`: weights of particles and of paths.

use super::flow::Trajectory;
use super::*;
use crate::options;
use amscript_align::flow::Velocity;
use amscript_align::{self as solver, Scheme};
use amscript_base::{bail, memory};
use amscript_model::Flow;
use amscript_tensor::check::{deferred_checks, read};
use amscript_tensor::{Stream, Tensor};

options! {
    /// How particles are drawn anew.
    pub struct ResampleOptions {
        /// How offspring are drawn.
        scheme: Scheme = Scheme::Systematic,
        /// Particles of so many groups, one after the other, that never mix: prompts, say.
        groups: usize = 1,
        /// How many are drawn in each group; () means as many as there are.
        count: Option<usize> = None,
    }
}

options! {
    /// What is told of the two flows.
    pub struct GirsanovOptions {
        /// A row for each kept step instead of their sum.
        by_step: bool = false,
        /// Without the part that noise makes, which has no mean: minus the paths' divergence, with less variance.
        quadratic: bool = false,
    }
}

/// Numbers of a vector.
fn vector(x: &Tensor, function: &str) -> Result<Vec<f64>> {
    match x.rank() == 1 && x.elem_count() > 0 {
        true => read(x),
        false => {
            bail!(Shape, "{function}: log weights must be a vector with a number for each particle, got {:?}", x.dims())
        }
    }
}

/// The places of all groups' draws.
fn drawn(log_weights: &Tensor, rng: &Stream, options: &ResampleOptions) -> Result<Vec<usize>> {
    let (all, groups) = (vector(log_weights, "resample")?, options.groups);
    if groups == 0 || !all.len().is_multiple_of(groups) {
        bail!(Value, "resample: groups must divide the {} particles, got {groups}", all.len());
    }
    let each = all.len() / groups;
    let count = options.count.unwrap_or(each);
    memory::room(memory::bytes(&[groups, count], 48), || format!("resample of {groups} x {count} particles"))?;
    let mut places = Vec::new();
    for (group, own) in all.chunks(each).enumerate() {
        let found = rng.draw(|rng| solver::resample(own, count, options.scheme, rng));
        let found = found.map_err(|e| if groups > 1 { e.within(format!("group {group}")) } else { e })?;
        places.extend(found.into_iter().map(|i| group * each + i));
    }
    Ok(places)
}

/// Particles drawn by weight, how good weights are, and the weight of a path under another flow; `stdlib/particles` is made of them.
#[export_module(manifest)]
pub mod particle {
    use super::*;

    /// The places of particles drawn by their log weights `[particles]`, an array: `x[[places]]` and `condition.rows(places)` are they.
    ///
    /// The expected number of copies is proportional to the weight. Drawn on the processor in f64, so that a seed gives the same on every
    /// device. Log weights may be minus infinity, but not all of a group. It costs no forward.
    ///
    /// ```rhai
    /// let never = -infinity();
    /// resample(tensor([0, never, 0, never]), rng(0))                              //=> [0, 0, 2, 2]
    /// resample(tensor([0, never, never, 0]), rng(0), #{ groups: 2 })              //=> [0, 0, 3, 3]
    /// resample(tensor([0, never, never, 0]), rng(0), #{ groups: 2, count: 1 })    //=> [0, 3]
    /// resample(zeros([4]), rng(0), #{ scheme: ssp() })                            //=> [0, 1, 2, 3]
    /// resample(tensor([never, never]), rng(0))   //=> error: a log weight must be above minus infinity
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn resample(log_weights: Tensor, rng: Stream, options: Map) -> RhaiResultOf<Array> {
        let options = ResampleOptions::parse("resample", options)?;
        Ok(drawn(&log_weights, &rng, &options)?.into_iter().map(|i| Dynamic::from(i as i64)).collect())
    }

    /// How many particles of equal weight would be as good as those with these log weights `[particles]`: `(sum w)^2 / sum w^2`.
    ///
    /// ```rhai
    /// ess(zeros([8]))                       //=> 8.0
    /// ess(tensor([0, -infinity()]))         //=> 1.0
    /// ess(tensor([0, sqrt(-1.0)]))          //=> error: must be numbers, got NaN for particle 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ess(log_weights: Tensor) -> RhaiResultOf<f64> {
        Ok(solver::ess(&vector(&log_weights, "ess")?)?)
    }

    /// `log dP_other / dP_flow` of each path `[batch]`, in f64: with weights `exp` of it, paths of `flow` count as paths of `other`.
    ///
    /// `path` is a rollout with noise, of which all kept steps count. It is exact for the path's own steps, of whatever width, and
    /// summed over the latent's entries. Where a step has no noise both velocities must agree. The path's own flow is as it was when the
    /// path was drawn, whatever was trained since, and costs no forward; the other costs one for each kept step.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| -x);
    /// let moved = velocity_field(|x, t, c| 0.5 - x);
    /// let o = #{ grid: uniform(4), solver: sde(constant(1)), rng: rng(0) };
    /// let path = rollout(base, zeros([20000, 1]), (), o);
    /// girsanov(path, base, base).max().item()                                             //=> 0.0
    /// assert_close(girsanov(path, base, moved).exp().mean().item(), 1.0, 0.02);
    /// girsanov(path, base, moved, #{ quadratic: true, by_step: true }).shape              //=> [4, 20000]
    /// girsanov(rollout(base, zeros([1, 1]), (), #{ grid: uniform(4) }), base, moved)      //=> error: different velocities at step 0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn girsanov(path: Trajectory, flow: Flow, other: Flow, options: Map) -> RhaiResultOf<Tensor> {
        let options = GirsanovOptions::parse("girsanov", options)?;
        let fresh = |field: &Flow| match field.frozen()? {
            Some(field) => solver::velocities(&*field, &path.path),
            None => solver::velocities(field, &path.path),
        };
        let ratio = deferred_checks(|| {
            let then = if flow.is(&path.flow) { path.path.velocities.clone() } else { fresh(&flow)? };
            solver::girsanov(&path.path, &then, &fresh(&other)?, options.quadratic)
        })?;
        Ok(if options.by_step { ratio } else { ratio.sum(0)? })
    }
}
