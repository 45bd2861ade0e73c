//! Chapter `sampler`: how a rollout steps, and the noise of stochastic ones.

use super::option::FromScript;
use super::*;
use crate::{options, script_value};
use amscript_align::flow::{AtSteps, Cps, Dynamics, Euler, Gddim, Grid, Heun, Noise, Sde, Solver};
use amscript_base::bail;
use std::fmt;

script_value!(Sampler, "a sampler such as `euler()`");

/// A sampler with the name it goes by.
#[derive(Clone)]
pub struct Sampler(pub Arc<dyn Solver>, String);

impl Sampler {
    pub fn new(solver: impl Solver + 'static, name: impl Into<String>) -> Self {
        Self(Arc::new(solver), name.into())
    }

    /// Euler's method.
    pub fn euler() -> Self {
        Self::new(Euler, "euler()")
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

script_value!(Noise, "a noise level such as `memoryless()`", |noise| match noise {
    Noise::Memoryless { offset: None } => "memoryless()".into(),
    Noise::Memoryless { offset: Some(o) } => format!("memoryless({o})"),
    Noise::Constant(c) => format!("constant({c})"),
    Noise::LinearDecay(c) => format!("linear_decay({c})"),
    Noise::SineSquared(c) => format!("sine_squared({c})"),
    Noise::FlowGrpo(a) => format!("flow_grpo_noise({a})"),
    Noise::Schedule(_) => "noise_schedule(|t| ..)".into(),
});

options! {
    /// Where a stochastic sampler adds noise.
    pub struct SdeOptions {
        /// In the last so many steps only, with Euler's steps before; () means in all.
        last: Option<usize> = None,
    }
}

/// What a step of a schedule does; `t` must leave room for the step.
fn step(noise: &Noise, t: f64, h: f64) -> Result<Dynamics> {
    match (0.0..1.0).contains(&t) && h > 0.0 {
        true => noise.dynamics(t, h),
        false => bail!(Value, "noise: the time must lie in [0, 1) and the width above 0, got {t} and {h}"),
    }
}

/// Refuses a sampler whose step no numbers tell.
fn one_stage(sampler: &Sampler) -> Result<()> {
    if !sampler.0.one_stage() {
        bail!(Value, "step: a step of {sampler} takes two velocities, so that no numbers tell what it does"; hint: "take `euler()`, or step with `rollout`");
    }
    Ok(())
}

/// Step `k` of a grid that the sampler fits.
fn step_of(sampler: &Sampler, grid: &Grid, k: i64) -> Result<Dynamics> {
    one_stage(sampler)?;
    sampler.0.check(grid)?;
    match usize::try_from(k) {
        Ok(k) if k < grid.steps() => sampler.0.dynamics(grid, k),
        _ => bail!(Value, "step: k must be below the {} steps of the grid, got {k}", grid.steps()),
    }
}

/// A step's numbers by name.
fn numbers(step: &Dynamics) -> Map {
    let w = step.w.unwrap_or_default();
    let parts = [("w", w), ("rho", step.rho), ("mean_reversion", step.mean_reversion), ("gain", w / (1.0 + step.rho))];
    parts.into_iter().map(|(name, x)| (name.into(), x.into())).collect()
}

/// Samplers for `rollout` and the updates. Stochastic ones add noise and keep the flow's marginals; they need `rng`.
#[export_module(manifest)]
pub mod sampler {
    use super::*;

    pub type Sampler = super::Sampler;
    pub type NoiseLevel = Noise;

    /// Euler's method: one velocity per step, order 1.
    ///
    /// ```rhai
    /// euler()   //=> euler()
    /// ```
    pub fn euler() -> Sampler {
        Sampler::euler()
    }

    /// Heun's method: two velocities per step, order 2.
    ///
    /// ```rhai
    /// let grow = velocity_field(|x, t, c| x);
    /// let end = rollout(grow, tensor([[1.0]]), (), #{ grid: uniform(50), solver: heun() }).last;
    /// assert_close(end.item(), 2.71828, 3e-4);
    /// ```
    pub fn heun() -> Sampler {
        Sampler::new(Heun, "heun()")
    }

    /// The stochastic differential equation with noise `w(t)` and the flow's marginals, by Euler and Maruyama's method.
    ///
    /// `dX = [v + w/2 score] dt + sqrt(w) dB`. Noise that is infinite on the grid, negative, or so strong that steps overshoot is an error.
    ///
    /// ```rhai
    /// let field = velocity_field(|x, t, c| -x);
    /// let options = #{ grid: uniform(4), solver: sde(linear_decay()), rng: rng(0) };
    /// rollout(field, zeros([3, 2]), (), options).last.shape              //=> [3, 2]
    /// sde(sine_squared(), #{ last: 3 })                                  //=> sde(sine_squared(1), #{ last: 3 })
    /// rollout(field, zeros([3, 2]), (), #{ solver: sde(constant(1)) })   //=> error: needs a random stream
    /// rollout(field, zeros([1, 1]), (), #{ solver: sde(noise_schedule(|t| 1 / t)), rng: rng(0) })   //=> error: must be finite
    /// ```
    #[rhai_fn(return_raw)]
    pub fn sde(noise: NoiseLevel, options: Map) -> RhaiResultOf<Sampler> {
        let (shown, last) = (noise.show(), SdeOptions::parse("sde", options)?.last);
        let name = last.map_or(format!("sde({shown})"), |k| format!("sde({shown}, #{{ last: {k} }})"));
        Ok(Sampler::new(Sde { noise, last }, name))
    }

    /// The implicit sampler with stochasticity `eta`: 0 is Euler's method, 1 ancestral sampling (arXiv:2206.05564).
    ///
    /// It keeps the marginals at any step width where the velocity's prediction of the data is exact, else in the limit of narrow
    /// steps: wide ones leave the ends too close together. Its last step is free of noise.
    ///
    /// ```rhai
    /// let field = velocity_field(|x, t, c| -x);
    /// let end = |solver| rollout(field, ones([1, 1]), (), #{ grid: uniform(4), solver: solver, rng: rng(0) }).last.item();
    /// end.call(gddim(0)) == end.call(euler())   //=> true
    /// gddim(-1)                                 //=> error: at least 0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn gddim(eta: f64) -> RhaiResultOf<Sampler> {
        Ok(Sampler::new(Gddim::new(eta)?, format!("gddim({eta})")))
    }

    /// The sampler that keeps the coefficients of data and noise, Flow-CPS (arXiv:2509.05952); `eta` in [0, 1] is how much of the noise is drawn anew.
    ///
    /// 0 is Euler's method. As with `gddim`, the amount of noise is right and the law is not: wide steps leave the ends too close together. Its
    /// last step is free of noise.
    ///
    /// ```rhai
    /// cps(0.8)   //=> cps(0.8)
    /// cps(2)     //=> error: eta must lie in [0, 1]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cps(eta: f64) -> RhaiResultOf<Sampler> {
        Ok(Sampler::new(Cps::new(eta)?, format!("cps({eta})")))
    }

    /// A sampler at some steps of the grid, counted from 0, and Euler's method at the others.
    ///
    /// ```rhai
    /// let field = velocity_field(|x, t, c| -x);
    /// let path = rollout(field, ones([1, 1]), (), #{ grid: uniform(4), solver: at_steps(cps(0.8), [1]), rng: rng(0), noises: true });
    /// path.noises.map(|z| z != ())      //=> [false, true, false, false]
    /// at_steps(cps(0.8), [1, 2])        //=> at_steps(cps(0.8), [1, 2])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn at_steps(solver: Sampler, steps: Array) -> RhaiResultOf<Sampler> {
        let steps: Vec<usize> = option::list(steps, "at_steps")?;
        let name = format!("at_steps({solver}, {steps:?})");
        Ok(Sampler::new(AtSteps { solver: solver.0, steps }, name))
    }

    /// Flow-GRPO's noise `a^2 (1 - t) / t` (arXiv:2505.05470), `a^2 / 2` times memoryless; at `t = 0` it is `a^2` over the step's width.
    ///
    /// ```rhai
    /// assert_close(flow_grpo_noise(0.7).step(0.5, 0.1).w, 0.49, 1e-12);
    /// assert_close(flow_grpo_noise(0.7).step(0.0, 0.1).w, 4.9, 1e-12);
    /// ```
    pub fn flow_grpo_noise(a: f64) -> NoiseLevel {
        Noise::FlowGrpo(a)
    }

    /// The noise `2 (1 - t) / t`, with which the end does not depend on the start, as adjoint matching asks for.
    ///
    /// It diverges at `t = 0` and is clipped: `2 (1 - t + o) / (t + o)`; where the offset `o` is left out it is the width of each step.
    ///
    /// ```rhai
    /// memoryless().step(0.5, 0.1)                       //=> #{"gain": 1.0, "mean_reversion": 1.66667, "rho": 1.0, "w": 2.0}
    /// memoryless(0.25).step(0.0, 0.1).w    //=> 10.0
    /// ```
    #[rhai_fn(name = "memoryless")]
    pub fn memoryless() -> NoiseLevel {
        Noise::Memoryless { offset: None }
    }

    #[rhai_fn(name = "memoryless")]
    pub fn memoryless_beyond(offset: f64) -> NoiseLevel {
        Noise::Memoryless { offset: Some(offset) }
    }

    /// The same noise `c` at all times.
    ///
    /// ```rhai
    /// constant(0.5).step(0.5, 0.1).w   //=> 0.5
    /// ```
    pub fn constant(c: f64) -> NoiseLevel {
        Noise::Constant(c)
    }

    /// The noise `c (1 - t)`; `c` is 1 where it is left out.
    ///
    /// ```rhai
    /// linear_decay().step(0.75, 0.1).w    //=> 0.25
    /// linear_decay(2).step(0.75, 0.1).w   //=> 0.5
    /// ```
    #[rhai_fn(name = "linear_decay")]
    pub fn linear_decay() -> NoiseLevel {
        Noise::LinearDecay(1.0)
    }

    #[rhai_fn(name = "linear_decay")]
    pub fn linear_decay_times(c: f64) -> NoiseLevel {
        Noise::LinearDecay(c)
    }

    /// The noise `c sin^2(pi t)`, which vanishes at both ends; `c` is 1 where it is left out.
    ///
    /// ```rhai
    /// sine_squared().step(0.5, 0.1).w   //=> 1.0
    /// ```
    #[rhai_fn(name = "sine_squared")]
    pub fn sine_squared() -> NoiseLevel {
        Noise::SineSquared(1.0)
    }

    #[rhai_fn(name = "sine_squared")]
    pub fn sine_squared_times(c: f64) -> NoiseLevel {
        Noise::SineSquared(c)
    }

    /// Any noise level, as a closure of time.
    ///
    /// ```rhai
    /// noise_schedule(|t| 0.245 * 2 * (1 - t) / max(t, 0.05)).step(0.5, 0.05).w   //=> 0.49
    /// ```
    pub fn noise_schedule(context: NativeCallContext, closure: FnPtr) -> NoiseLevel {
        let callback = Callback::new(&context, "noise_schedule", closure);
        Noise::Schedule(Arc::new(move |t| callback.call((t,))))
    }

    /// What the step from time `t`, `h` wide, does: `x + h [(1 + rho) v - mean_reversion x] + sqrt(h w) z`.
    ///
    /// `gain` is `G = w / (1 + rho)`: the quadratic penalty's target is `-G a`.
    ///
    /// ```rhai
    /// linear_decay().step(0.5, 0.1)   //=> #{"gain": 0.4, "mean_reversion": 0.5, "rho": 0.25, "w": 0.5}
    /// linear_decay().step(1.0, 0.1)   //=> error: must lie in [0, 1)
    /// ```
    #[rhai_fn(name = "step", return_raw)]
    pub fn noise_step(noise: NoiseLevel, t: f64, h: f64) -> RhaiResultOf<Map> {
        Ok(numbers(&super::step(&noise, t, h)?))
    }

    /// What a sampler's step from time `t`, `h` wide, does, as `step` of a noise level; zeros for a method without noise.
    ///
    /// A sampler with noise in its last steps only must see the grid: `step(grid, k)`.
    ///
    /// ```rhai
    /// euler().step(0.5, 0.1)                       //=> #{"gain": 0.0, "mean_reversion": 0.0, "rho": 0.0, "w": 0.0}
    /// sde(linear_decay()).step(0.5, 0.1).w         //=> 0.5
    /// gddim(1).step(0.9, 0.1).w                    //=> 0.0
    /// sde(constant(1), #{ last: 3 }).step(0.5, 0.1)   //=> error: needs the grid
    /// heun().step(0.5, 0.1)                        //=> error: takes two velocities
    /// ```
    #[rhai_fn(name = "step", return_raw)]
    pub fn sampler_step(sampler: Sampler, t: f64, h: f64) -> RhaiResultOf<Map> {
        one_stage(&sampler)?;
        Ok(numbers(&sampler.0.dynamics_at(t, h)?))
    }

    /// What step `k` of a grid does.
    ///
    /// ```rhai
    /// let some = sde(constant(1), #{ last: 1 });
    /// [0, 1].map(|k| some.step(uniform(2), k).w)   //=> [0.0, 1.0]
    /// some.step(uniform(2), 2)                     //=> error: step: k must be below the 2 steps of the grid, got 2
    /// ```
    #[rhai_fn(name = "step", return_raw)]
    pub fn sampler_step_of_grid(sampler: Sampler, grid: Grid, k: i64) -> RhaiResultOf<Map> {
        Ok(numbers(&step_of(&sampler, &grid, k)?))
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_sampler(sampler: &mut Sampler) -> String {
        sampler.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_noise(noise: &mut NoiseLevel) -> String {
        noise.show()
    }
}
