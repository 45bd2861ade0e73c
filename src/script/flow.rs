//! Chapter `flow`: interpolant, conversions, time grids, rollouts.

use super::sampler::Sampler;
use super::*;
use crate::{options, script_value};
use amscript_align as align;
use amscript_align::flow::{Condition, OnStep, Velocity, draws, interpolant, time_tensor};
use amscript_align::optim::Params;
use amscript_base::bail;
use amscript_model::Flow;
use amscript_tensor::check::{deferred_checks, require};
use amscript_tensor::{Stream, Tensor};

script_value!(amscript_align::flow::Grid, "a time grid such as `uniform(20)`", |grid| {
    let n = grid.steps();
    match amscript_align::flow::uniform(n).is_ok_and(|uniform| uniform == *grid) {
        true => format!("uniform({n})"),
        false => format!("grid of {n} steps, the last {:.4} wide", grid.width(n - 1)),
    }
});

/// The straight line from noise to data, as scripts hold it.
#[derive(Clone, Copy)]
pub struct Linear;

/// A velocity given by a script closure.
#[derive(Clone)]
struct ClosureField {
    closure: Arc<Callback>,
    /// What the closure is trained by, where it was said.
    params: Params,
}

impl ClosureField {
    fn flow(context: &NativeCallContext, closure: FnPtr, params: Params) -> Flow {
        let closure = Arc::new(Callback::new(context, "velocity_field", closure));
        Flow::new("|x, t, c| ..", Arc::new(Self { closure, params }))
    }
}

impl Velocity for ClosureField {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        self.closure.call((x.clone(), t.clone(), condition.clone()))
    }

    fn rerun(&self) -> Option<(Arc<dyn Velocity>, Vec<Tensor>)> {
        (!self.params.is_empty()).then(|| (Arc::new(self.clone()) as Arc<dyn Velocity>, self.params.tensors()))
    }
}

/// A rollout as scripts hold it: what was kept, and by which flow, whose decoder makes images of its states.
#[derive(Clone)]
pub struct Trajectory {
    pub flow: Flow,
    pub path: amscript_align::flow::Trajectory,
}

options! {
    /// How to roll out.
    pub struct RolloutOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: amscript_align::flow::Grid = amscript_align::flow::uniform(20).unwrap_or_else(|_| unreachable!()),
        /// How to step from one time to the next.
        solver: Sampler = Sampler::euler(),
        /// Which steps to keep, for the adjoint and the loss.
        truncate: align::Truncation = align::Truncation::Full,
        /// The random stream of a stochastic sampler.
        rng: Option<Stream> = None,
        /// Keep the noise of the kept steps too, for `transition`.
        noises: bool = false,
    }
}

/// Lets an interrupt end a rollout between two steps.
pub fn watched(context: &NativeCallContext) -> OnStep {
    let session = Session::of(context);
    Arc::new(move |_, _| session.check())
}

/// A condition, or `()` where a flow needs none.
pub fn condition(value: Dynamic, function: &str) -> Result<Condition> {
    let shown = option::show(&value);
    match value.is_unit() {
        true => Ok(Condition::default()),
        false => match value.flatten().try_cast() {
            Some(condition) => Ok(condition),
            None => bail!(Type, "{function}: the condition must be one from `encode` or (), got {shown}"),
        },
    }
}

/// A time, a number or `[batch]` numbers, as `[batch]` for the samples of `x`.
pub fn times(t: Dynamic, x: &Tensor, function: &str) -> Result<Tensor> {
    if let Some(t) = <f64 as option::FromScript>::from_script(t.clone()) {
        return time_tensor(t, x);
    }
    let t: Tensor = option::convert(t, &format!("{function}: time"))?;
    match t.elem_count() == x.dim(0)? {
        true => Ok(t.flatten_all()?.to_dtype(x.dtype())?),
        false => bail!(Shape, "{function}: the time must be a number or [{}], got shape {:?}", x.dim(0)?, t.dims()),
    }
}

/// [`times`] for a flow: a model's lie between noise and data, a field in data space may have others.
pub fn times_for(flow: &Flow, t: Dynamic, x: &Tensor, function: &'static str) -> Result<Tensor> {
    let number = <f64 as option::FromScript>::from_script(t.clone());
    let times = times(t, x, function)?;
    match number {
        _ if !flow.is_model() => {}
        Some(t) => between_noise_and_data(function, &[t])?,
        None => require(&times, move |times| between_noise_and_data(function, times))?,
    }
    Ok(times)
}

fn between_noise_and_data(function: &str, times: &[f64]) -> Result<()> {
    match times.iter().find(|t| !(-ROUNDING..=1.0 + ROUNDING).contains(*t)) {
        Some(t) => bail!(Value, "{function}: time runs from 0 (noise) to 1 (data), got {}", *t as f32),
        None => Ok(()),
    }
}

/// By how much sums of steps may miss an end.
const ROUNDING: f64 = 1e-6;

fn numbers(values: &[f64]) -> Array {
    values.iter().map(|v| Dynamic::from(*v)).collect()
}

/// Interpolant, time grids and rollouts. Time runs from 0 (noise) to 1 (data).
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod flow {
    use super::*;

    pub type Grid = amscript_align::flow::Grid;
    pub type Trajectory = super::Trajectory;
    pub type Interpolant = super::Linear;

    /// The linear interpolant `x_t = (1 - t) x_0 + t x_1`.
    ///
    /// ```rhai
    /// let line = linear();
    /// line.interpolate(tensor([[0.0]]), tensor([[8.0]]), 0.25).to_array()   //=> [[2.0]]
    /// ```
    pub fn linear() -> Interpolant {
        Linear
    }

    /// The state between noise `x0` and data `x1` at time `t`.
    ///
    /// ```rhai
    /// linear().interpolate(tensor([[0.0], [0.0]]), tensor([[8.0], [8.0]]), tensor([0.25, 1.0])).to_array()   //=> [[2.0], [8.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn interpolate(_line: Interpolant, x0: Tensor, x1: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::interpolate(&x0, &x1, &times(t, &x0, "interpolate")?)?)
    }

    /// The velocity of the line from `x0` to `x1`, which a flow learns: `x1 - x0`.
    ///
    /// ```rhai
    /// linear().velocity(tensor([[1.0]]), tensor([[8.0]])).to_array()   //=> [[7.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn velocity(_line: Interpolant, x0: Tensor, x1: Tensor) -> RhaiResultOf<Tensor> {
        Ok(interpolant::velocity(&x0, &x1)?)
    }

    /// Velocity of the linear interpolant from a prediction of the data: `(x1 - x) / (1 - t)`, for `t` below 1.
    ///
    /// ```rhai
    /// velocity_from_data(tensor([[8.0]]), tensor([[2.0]]), 0.25).to_array()   //=> [[8.0]]
    /// velocity_from_data(tensor([[8.0]]), tensor([[2.0]]), 1)                 //=> error: must be below 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn velocity_from_data(x1: Tensor, x: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::velocity_from_data(&x1, &x, &times(t, &x, "velocity_from_data")?)?)
    }

    /// Velocity of the linear interpolant from a prediction of the noise: `(x - x0) / t`, for `t` above 0.
    ///
    /// ```rhai
    /// velocity_from_noise(tensor([[0.0]]), tensor([[2.0]]), 0.25).to_array()   //=> [[8.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn velocity_from_noise(x0: Tensor, x: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::velocity_from_noise(&x0, &x, &times(t, &x, "velocity_from_noise")?)?)
    }

    /// Velocity of the linear interpolant from the score: `(x + (1 - t) s) / t`, for `t` above 0.
    ///
    /// ```rhai
    /// velocity_from_score(tensor([[0.0]]), tensor([[2.0]]), 0.25).to_array()   //=> [[8.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn velocity_from_score(score: Tensor, x: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::velocity_from_score(&score, &x, &times(t, &x, "velocity_from_score")?)?)
    }

    /// Prediction of the data from the velocity of the linear interpolant: `x + (1 - t) v`.
    ///
    /// ```rhai
    /// data_from_velocity(tensor([[8.0]]), tensor([[2.0]]), 0.25).to_array()   //=> [[8.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn data_from_velocity(v: Tensor, x: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::data_from_velocity(&v, &x, &times(t, &x, "data_from_velocity")?)?)
    }

    /// Prediction of the noise from the velocity of the linear interpolant: `x - t v`.
    ///
    /// ```rhai
    /// noise_from_velocity(tensor([[8.0]]), tensor([[2.0]]), 0.25).to_array()   //=> [[0.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn noise_from_velocity(v: Tensor, x: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::noise_from_velocity(&v, &x, &times(t, &x, "noise_from_velocity")?)?)
    }

    /// Score from the velocity of the linear interpolant: `(t v - x) / (1 - t)`, for `t` below 1.
    ///
    /// ```rhai
    /// score_from_velocity(tensor([[8.0]]), tensor([[3.0]]), 0.5).to_array()   //=> [[2.0]]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn score_from_velocity(v: Tensor, x: Tensor, t: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(interpolant::score_from_velocity(&v, &x, &times(t, &x, "score_from_velocity")?)?)
    }

    /// A time grid of `n` equal steps.
    ///
    /// ```rhai
    /// uniform(4).times   //=> [0.0, 0.25, 0.5, 0.75, 1.0]
    /// uniform(0)         //=> error: there must be at least 1 step
    /// ```
    #[rhai_fn(return_raw)]
    pub fn uniform(n: i64) -> RhaiResultOf<Grid> {
        Ok(amscript_align::flow::uniform(option::convert(n.into(), "uniform")?)?)
    }

    /// A time grid of `n` steps that linger near noise: `t = s / (s + factor (1 - s))` for equally spaced `s`.
    ///
    /// ```rhai
    /// shifted(2, 3).times   //=> [0.0, 0.25, 1.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn shifted(n: i64, factor: f64) -> RhaiResultOf<Grid> {
        Ok(amscript_align::flow::shifted(option::convert(n.into(), "shifted")?, factor)?)
    }

    /// The time grid of FLUX.2 [klein] for `n` steps and an image of `image_tokens` tokens (16 x 16 pixels each).
    ///
    /// ```rhai
    /// let grid = klein_grid(20, 256);
    /// assert_close(1 - grid.times[19], 0.25002, 1e-5);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn klein_grid(n: i64, image_tokens: i64) -> RhaiResultOf<Grid> {
        let n = option::convert(n.into(), "klein_grid")?;
        Ok(amscript_align::flow::klein_grid(n, option::convert(image_tokens.into(), "klein_grid: image_tokens")?)?)
    }

    /// A time grid of the given times, which rise from 0 to 1.
    ///
    /// ```rhai
    /// grid([0, 0.1, 0.5, 1]).steps   //=> 3
    /// grid([0, 0.5, 0.2, 1])         //=> error: grid: times must rise from 0 to 1, got [0.0, 0.5, 0.2, 1.0]
    /// ```
    #[rhai_fn(name = "grid", return_raw)]
    pub fn grid_of(times: Array) -> RhaiResultOf<Grid> {
        Ok(Grid::new(option::list(times, "grid")?)?)
    }

    /// The times of a grid, from 0 to 1, or of a trajectory's kept states.
    ///
    /// ```rhai
    /// uniform(2).times   //=> [0.0, 0.5, 1.0]
    /// ```
    #[rhai_fn(get = "times", pure)]
    pub fn grid_times(grid: &mut Grid) -> Array {
        numbers(grid.times())
    }

    /// The number of steps of a grid.
    ///
    /// ```rhai
    /// uniform(20).steps   //=> 20
    /// ```
    #[rhai_fn(get = "steps", pure)]
    pub fn grid_steps(grid: &mut Grid) -> i64 {
        grid.steps() as i64
    }

    /// A flow whose velocity is a closure of state, time `[batch]` and condition.
    ///
    /// It has no decoder: rewards see its end states.
    ///
    /// ```rhai
    /// let pull = velocity_field(|x, t, c| 1 - x);
    /// rollout(pull, tensor([[0.0]]), (), #{ grid: uniform(2) }).last.to_array()   //=> [[0.75]]
    /// ```
    pub fn velocity_field(context: NativeCallContext, closure: FnPtr) -> Flow {
        ClosureField::flow(&context, closure, Params::default())
    }

    /// The same with the trained tensors that the closure uses, so that methods can hold copies of it.
    ///
    /// ```rhai
    /// let w = param(tensor([1.0]));
    /// velocity_field(|x, t, c| x * w, w).params().len   //=> 1
    /// ```
    #[rhai_fn(name = "velocity_field", return_raw)]
    pub fn trained_field(context: NativeCallContext, closure: FnPtr, params: Dynamic) -> RhaiResultOf<Flow> {
        Ok(ClosureField::flow(&context, closure, super::super::optim::params(params, "velocity_field")?))
    }

    /// The same flow, what a closure of state, time `[batch]`, condition and velocity gives added to its velocity.
    ///
    /// Decoder, prompts, adapters and guidance stay, so evaluation, rollouts and updates take it. What `grad` gives in the closure
    /// has no graph; a network's output has one, so that it can be trained. A velocity costs one forward, and those of the closure.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// steered(base, |x, t, c, v| 0.1 * v)                                     //=> flow(tiny/flux2, steered)
    /// let still = steered(velocity_field(|x, t, c| x), |x, t, c, v| -v);
    /// rollout(still, tensor([[1.0]]), (), #{ grid: uniform(4) }).last.item()   //=> 1.0
    /// steered(still, |x, t, c, v| zeros([3])).velocity(ones([1, 1]), 0.5, ())  //=> error: the velocity's shape [1, 1], got [3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn steered(context: NativeCallContext, flow: Flow, closure: FnPtr) -> RhaiResultOf<Flow> {
        let callback = Callback::new(&context, "steered", closure);
        let steer = move |x: &Tensor, t: &Tensor, c: &Condition, v: &Tensor| {
            callback.call::<Tensor>((x.clone(), t.clone(), c.clone(), v.clone()))
        };
        Ok(flow.steered(Arc::new(steer))?)
    }

    /// The data that a flow predicts at a state, time and condition: `x + (1 - t) v`. One forward.
    ///
    /// ```rhai
    /// look_ahead(velocity_field(|x, t, c| 2 * x), tensor([[1.0]]), 0.5, ()).item()   //=> 2.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn look_ahead(flow: Flow, x: Tensor, t: Dynamic, condition: Dynamic) -> RhaiResultOf<Tensor> {
        let t = times_for(&flow, t, &x, "look_ahead")?;
        let v = flow.velocity(&x, &t, &super::condition(condition, "look_ahead")?)?;
        Ok(interpolant::data_from_velocity(&v, &x, &t)?)
    }

    /// Carries noise `x0` along a flow to data.
    ///
    /// `condition` is one from `encode`, or `()`. The last steps named by `truncate` stay in the trajectory, for the adjoint and
    /// the loss. States are f32 (or f64) and constants: no gradient passes through them.
    ///
    /// ```rhai
    /// let field = velocity_field(|x, t, c| 2 * x);
    /// let path = rollout(field, tensor([[1.0], [2.0]]), (), #{ grid: uniform(4), truncate: last(2) });
    /// path.last.to_array()    //=> [[5.0625], [10.125]]
    /// path.states.len()       //=> 3
    /// path.times              //=> [0.5, 0.75, 1.0]
    /// rollout(field, tensor([[1.0]]), (), #{ steps: 3 })   //=> error: unknown option `steps`
    /// ```
    #[rhai_fn(return_raw)]
    pub fn rollout(
        context: NativeCallContext,
        flow: Flow,
        x0: Tensor,
        condition: Dynamic,
        options: Map,
    ) -> RhaiResultOf<Trajectory> {
        let condition = super::condition(condition, "rollout")?;
        let options = RolloutOptions::parse("rollout", options)?;
        Session::of(&context).planner().inspect(|planner| planner.samples(&x0));
        let keep = options.truncate.active(options.grid.steps())?;
        let options = amscript_align::flow::RolloutOptions {
            solver: options.solver.0,
            draw: options.rng.map(draws),
            keep,
            noises: options.noises,
            on_step: Some(watched(&context)),
            ..amscript_align::flow::RolloutOptions::new(options.grid)
        };
        let path = deferred_checks(|| amscript_align::flow::rollout(&flow, &x0, &condition, &options))?;
        Ok(Trajectory { flow, path })
    }

    /// The kept states of a trajectory, the last one included.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// path.states.map(|x| x.item())   //=> [1.0, 1.5, 2.25]
    /// ```
    #[rhai_fn(get = "states", pure)]
    pub fn states(path: &mut Trajectory) -> Array {
        path.path.states.iter().cloned().map(Dynamic::from).collect()
    }

    /// The velocities of a trajectory at its kept steps.
    ///
    /// ```rhai
    /// let path = rollout(velocity_field(|x, t, c| x), tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// path.velocities.map(|v| v.item())   //=> [1.0, 1.5]
    /// ```
    #[rhai_fn(get = "velocities", pure)]
    pub fn velocities(path: &mut Trajectory) -> Array {
        path.path.velocities.iter().cloned().map(Dynamic::from).collect()
    }

    /// The unit noise of each kept step, () where a step has none; empty unless `noises: true` was asked for.
    ///
    /// ```rhai
    /// let options = #{ grid: uniform(2), solver: sde(constant(0.5)), rng: rng(0), noises: true };
    /// rollout(velocity_field(|x, t, c| x), tensor([[1.0]]), (), options).noises.len()   //=> 2
    /// ```
    #[rhai_fn(get = "noises", pure)]
    pub fn noises(path: &mut Trajectory) -> Array {
        path.path.noises.iter().map(|z| z.clone().map_or(Dynamic::UNIT, Dynamic::from)).collect()
    }

    #[rhai_fn(get = "times", pure)]
    pub fn times_of(path: &mut Trajectory) -> Array {
        numbers(path.path.times())
    }

    /// The end state of a trajectory.
    ///
    /// ```rhai
    /// rollout(velocity_field(|x, t, c| x), tensor([[1.0]]), (), #{ grid: uniform(2) }).last.item()   //=> 2.25
    /// ```
    #[rhai_fn(get = "last", pure)]
    pub fn last_state(path: &mut Trajectory) -> Tensor {
        path.path.last().clone()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_grid(grid: &mut Grid) -> String {
        option::FromScript::show(grid)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_trajectory(path: &mut Trajectory) -> String {
        let (first, steps) = (path.path.first, path.path.steps());
        format!("trajectory(steps {first}..{steps} of {}, states {:?})", path.flow, path.path.last().dims())
    }
}
