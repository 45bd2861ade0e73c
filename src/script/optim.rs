//! Chapter `optim`: AdamW, learning-rate schedules, moving averages.

use super::*;
use crate::{options, script_value};
use amscript_align::optim as optimizers;
use amscript_align::optim::{NotFinite, Params, Schedule, Stored};
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::group::Alone;
use amscript_nn::module::Module as _;
use amscript_tensor::Tensor;
use parking_lot::{Mutex, MutexGuard};
use std::fmt;

script_value!(Schedule, "a rate such as `1e-3` or `cosine(1e-3, 200, 10)`");

/// A learning rate: a schedule, or a number for a constant one.
#[derive(Clone)]
pub struct Rate(Schedule);

impl option::FromScript for Rate {
    fn expected() -> String {
        Schedule::expected()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        match f64::from_script(value.clone()) {
            Some(rate) => optimizers::constant_rate(rate).ok().map(Self),
            None => Schedule::from_script(value).map(Self),
        }
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// A number where a schedule stands is a constant rate; anything else stays.
pub fn as_rate(value: Dynamic, default: &Dynamic) -> Result<Dynamic> {
    match <f64 as option::FromScript>::from_script(value.clone()).filter(|_| default.is::<Schedule>()) {
        Some(rate) => Ok(Dynamic::from(optimizers::constant_rate(rate)?)),
        None => Ok(value),
    }
}

/// An optimizer as scripts hold it; clones share it.
#[derive(Clone)]
pub struct Optimizer(pub Arc<Mutex<optimizers::AdamW>>);

impl Optimizer {
    pub fn lock(&self) -> MutexGuard<'_, optimizers::AdamW> {
        self.0.lock()
    }
}

options! {
    /// Settings of the optimizer.
    pub struct OptimizerOptions {
        /// The learning rate.
        rate: Rate = Rate(optimizers::OptimizerOptions::default().rate),
        /// Decay of the first and second moment.
        betas: Vec<f64> = optimizers::OptimizerOptions::default().betas.to_vec(),
        /// Added to the root of the second moment.
        epsilon: f64 = optimizers::OptimizerOptions::default().epsilon,
        /// Pull of the weights towards zero, times the rate.
        weight_decay: f64 = optimizers::OptimizerOptions::default().weight_decay,
        /// Refuse to start when a tensor gets no gradient, or one that is zero.
        check: bool = true,
        /// Of several processes each keeps the moments of a share of the numbers; all must step with the same gradients.
        sharded: bool = false,
    }
}

impl OptimizerOptions {
    fn core(self) -> Result<optimizers::OptimizerOptions> {
        let &[first, second] = &self.betas[..] else {
            bail!(Value, "adamw: betas must be two numbers, got {}", self.betas.len());
        };
        let Self { rate, epsilon, weight_decay, check, .. } = self;
        if rate.0.is_open() {
            bail!(
                Value, "adamw: the rate must know its length, got {}", rate.0;
                hint: "write `cosine(rate, steps, warmup)` or `rate.over(steps, warmup)`"
            );
        }
        Ok(optimizers::OptimizerOptions { rate: rate.0, betas: [first, second], epsilon, weight_decay, check })
    }
}

options! {
    /// Settings of one step.
    pub struct StepOptions {
        /// Longest global gradient norm; longer gradients are scaled down to it.
        clip: Option<f64> = None,
        /// What happens to a gradient that is NaN or infinite.
        not_finite: NotFinite = NotFinite::Stop,
    }
}

script_value!(NotFinite, "a choice such as `skip_updates(5)`", |value| match value {
    NotFinite::Stop => "stop_run()".into(),
    NotFinite::Skip(most) => format!("skip_updates({most})"),
    NotFinite::Clip(limit) => format!("clip_gradient({limit:?})"),
});

/// Trainable tensors: a model's, or tensors made by `param`; alone, several in an array, or tensors by name in a map.
pub fn params(value: Dynamic, function: &str) -> Result<Params> {
    let shown = option::show(&value);
    let value = value.flatten();
    if let Some(params) = value.clone().try_cast::<Params>() {
        return Ok(params);
    }
    if let Some(flow) = value.clone().try_cast::<amscript_model::Flow>() {
        return Params::new(flow.params());
    }
    if let Some(tensor) = value.clone().try_cast::<Tensor>() {
        return Params::new([("param".to_string(), tensor)]);
    }
    if let Some(map) = value.clone().try_cast::<Map>() {
        let named = map
            .into_iter()
            .map(|(name, v)| Ok((name.to_string(), option::convert(v, &format!("{function}: `{name}`"))?)));
        return Params::new(named.collect::<Result<Vec<(String, Tensor)>>>()?);
    }
    match value.into_array() {
        Ok(items) => {
            let mut named = Vec::new();
            for (i, item) in items.into_iter().enumerate() {
                match item.clone().try_cast::<Params>() {
                    Some(params) => named.extend(params.iter().map(|(name, var)| (name.into(), var.clone()))),
                    None => {
                        named.push((format!("param {i}"), option::convert(item, &format!("{function}: item {i}"))?))
                    }
                }
            }
            Params::new(named)
        }
        Err(_) => bail!(Type, "{function}: expected trainable tensors such as `policy.params()`, got {shown}"),
    }
}

fn to_map(tensors: Vec<(String, Tensor)>) -> Map {
    tensors.into_iter().map(|(name, tensor)| (name.into(), Dynamic::from(tensor))).collect()
}

fn stored_in(map: &Map) -> impl FnMut(&str) -> Option<Stored> {
    |name| {
        let value = map.get(name)?;
        value.clone().try_cast().map(Stored::Whole).or_else(|| value.clone().try_cast().map(Stored::Shard))
    }
}

fn in_map(map: &Map) -> impl FnMut(&str) -> Option<Tensor> {
    |name| map.get(name).and_then(|v| v.clone().try_cast())
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opt = self.lock();
        let (tensors, numbers, steps) = (opt.params().len(), opt.params().elements(), opt.steps());
        write!(f, "adamw({tensors} tensors, {numbers} numbers, {steps} steps taken)")
    }
}

/// Optimizers and learning-rate schedules.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod optim {
    use super::*;

    pub type Schedule = optimizers::Schedule;
    pub type Params = optimizers::Params;
    pub type Ema = optimizers::Ema;
    pub type Optimizer = super::Optimizer;
    pub type Shard = optimizers::Shard;

    /// The same learning rate at every step, after a linear rise over `warmup` steps if that is given.
    ///
    /// ```rhai
    /// constant_rate(1e-3).at(100)                        //=> 0.001
    /// [constant_rate(1.0, 4).at(0), constant_rate(1.0, 4).at(9)]   //=> [0.25, 1.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn constant_rate(rate: f64) -> RhaiResultOf<Schedule> {
        Ok(optimizers::constant_rate(rate)?)
    }

    #[rhai_fn(name = "constant_rate", return_raw)]
    pub fn constant_rate_warm(rate: f64, warmup: i64) -> RhaiResultOf<Schedule> {
        let warmup = option::convert(warmup.into(), "constant_rate: warmup")?;
        Ok(optimizers::constant_rate(rate)?.over(usize::MAX, warmup)?)
    }

    /// A learning rate that rises over `warmup` steps and falls to 0 at `steps` along half a cosine.
    ///
    /// With the rate alone its length is open: `over` fills it in, as `stdlib/experiment` does.
    ///
    /// ```rhai
    /// let rate = cosine(1.0, 110, 10);
    /// [rate.at(0), rate.at(10), rate.at(60), rate.at(110)]   //=> [0.1, 1.0, 0.5, 0.0]
    /// cosine(1.0, 5, 9)                                      //=> error: warmup must lie in 0..=steps
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cosine(rate: f64, steps: i64, warmup: i64) -> RhaiResultOf<Schedule> {
        let steps = option::convert(steps.into(), "cosine: steps")?;
        Ok(optimizers::cosine(rate, steps, option::convert(warmup.into(), "cosine: warmup")?)?)
    }

    #[rhai_fn(name = "cosine", return_raw)]
    pub fn cosine_open(rate: f64) -> RhaiResultOf<Schedule> {
        Ok(optimizers::open_cosine(rate)?)
    }

    /// The same schedule for a run of `steps` steps that begins with a rise over `warmup` of them; what it says itself stays.
    ///
    /// ```rhai
    /// cosine(1.0).over(110, 10)            //=> cosine(1.0, 110, 10)
    /// constant_rate(1.0).over(110, 10)     //=> constant_rate(1.0, 10)
    /// cosine(1.0, 50, 5).over(110, 10)     //=> cosine(1.0, 50, 5)
    /// adamw(param(tensor([1.0])), #{ rate: cosine(1.0) })   //=> error: the rate must know its length
    /// ```
    #[rhai_fn(return_raw)]
    pub fn over(schedule: Schedule, steps: i64, warmup: i64) -> RhaiResultOf<Schedule> {
        let steps = option::convert(steps.into(), "over: steps")?;
        Ok(schedule.over(steps, option::convert(warmup.into(), "over: warmup")?)?)
    }

    /// The learning rate of a step, counted from 0.
    ///
    /// ```rhai
    /// cosine(1.0, 10, 4).at(0)   //=> 0.25
    /// ```
    #[rhai_fn(return_raw)]
    pub fn at(schedule: Schedule, step: i64) -> RhaiResultOf<f64> {
        Ok(schedule.rate(option::convert(step.into(), "at")?))
    }

    /// The AdamW optimizer of trainable tensors: `policy.params()`, or tensors made by `param`.
    ///
    /// ```rhai
    /// let w = param(tensor([3.0]));
    /// let opt = adamw(w, #{ rate: 0.1, weight_decay: 0 });
    /// for i in 0..200 { opt.step(((w - 1) * (w - 1)).sum()); }
    /// assert_close(w.item(), 1, 0.01);
    /// adamw(tensor([1.0]))   //=> error: `param` must be trainable
    /// ```
    ///
    /// With `sharded`, of several processes each keeps the moments of a share of the numbers, steps these, and gives them to the others;
    /// the numbers are the same. What `state` gives of them is then for `checkpoint` and `load_state`. One process keeps all.
    #[rhai_fn(return_raw)]
    pub fn adamw(params: Dynamic, options: Map) -> RhaiResultOf<Optimizer> {
        let options = OptimizerOptions::parse("adamw", options)?;
        let group = if options.sharded { Context::current().group() } else { Arc::new(Alone) };
        let optimizer = optimizers::AdamW::sharded(super::params(params, "adamw")?, options.core()?, group)?;
        Ok(Optimizer(Arc::new(Mutex::new(optimizer))))
    }

    /// Differentiates a scalar loss and takes one step; gives the `rate` used and the gradient's `norm` before clipping, and whether
    /// the step was `skipped`.
    ///
    /// At the first step every tensor must get a gradient, or the step is refused and names the tensor. So it is where a gradient is not
    /// finite, unless `not_finite` says otherwise.
    ///
    /// ```rhai
    /// let w = param(tensor([3.0, 4.0]));
    /// let opt = adamw(w, #{ rate: 0.1 });
    /// opt.step((w * w).sum() / 2, #{ clip: 1 })   //=> #{"norm": 5.0, "rate": 0.1, "skipped": false}
    /// opt.steps                                   //=> 1
    /// opt.step((w * (infinity() * 0.0)).sum())     //=> error: the gradient of `param` must be finite, got NaN
    /// opt.step((w * (infinity() * 0.0)).sum(), #{ not_finite: skip_updates(1) }).skipped   //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn step(context: NativeCallContext, optimizer: Optimizer, loss: Tensor, options: Map) -> RhaiResultOf<Map> {
        let options = StepOptions::parse("step", options)?;
        if let Some(planner) = Session::of(&context).planner() {
            planner.stops(&amscript_base::profile::phase("backward", || optimizer.lock().gradients(&loss))?)?;
        }
        let chosen = optimizers::StepOptions { clip: options.clip, not_finite: options.not_finite };
        let report = optimizer.lock().step(&loss, &chosen)?;
        let (rate, norm, skipped) = (report.rate.into(), report.norm.into(), report.skipped.into());
        Ok([("rate".into(), rate), ("norm".into(), norm), ("skipped".into(), skipped)].into_iter().collect())
    }

    /// For `not_finite`: numbers that are NaN or infinite are an error with step, time, sample or tensor.
    ///
    /// ```rhai
    /// stop_run()   //=> stop_run()
    /// ```
    pub fn stop_run() -> NotFinite {
        NotFinite::Stop
    }

    /// For `not_finite`: an update with such numbers is left out, at most so many in a row.
    ///
    /// ```rhai
    /// skip_updates(5)    //=> skip_updates(5)
    /// skip_updates(-1)   //=> error: skip_updates: expected a count
    /// ```
    #[rhai_fn(return_raw)]
    pub fn skip_updates(most: i64) -> RhaiResultOf<NotFinite> {
        Ok(NotFinite::Skip(option::convert(most.into(), "skip_updates")?))
    }

    /// For `not_finite`: in gradients NaN counts as 0, and every entry as one of at most this size; elsewhere as `stop_run()`.
    ///
    /// ```rhai
    /// let w = param(tensor([1.0, 2.0]));
    /// let opt = adamw(w, #{ check: false });
    /// opt.step((w * tensor([infinity() * 0.0, 1.0])).sum(), #{ not_finite: clip_gradient(100.0) }).norm   //=> 1.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn clip_gradient(limit: f64) -> RhaiResultOf<NotFinite> {
        match limit > 0.0 {
            true => Ok(NotFinite::Clip(limit)),
            false => {
                Err(Error::new(Kind::Value, format!("clip_gradient: the bound must be above 0, got {limit}")).into())
            }
        }
    }

    /// The number of steps an optimizer has taken.
    ///
    /// ```rhai
    /// adamw(param(tensor([1.0]))).steps   //=> 0
    /// ```
    #[rhai_fn(get = "steps", pure)]
    pub fn steps(optimizer: &mut Optimizer) -> i64 {
        optimizer.lock().steps() as i64
    }

    /// The learning rate of an optimizer's next step.
    ///
    /// ```rhai
    /// adamw(param(tensor([1.0])), #{ rate: cosine(1, 10, 4) }).rate   //=> 0.25
    /// ```
    #[rhai_fn(get = "rate", pure)]
    pub fn rate(optimizer: &mut Optimizer) -> f64 {
        optimizer.lock().rate()
    }

    /// Everything a resume needs, as named tensors: values of parameters, an optimizer's step and moments, averages of `ema`.
    ///
    /// ```rhai
    /// adamw(#{ w: param(tensor([1.0])) }).state().keys()   //=> ["first.w", "second.w", "step"]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn state(optimizer: Optimizer) -> RhaiResultOf<Map> {
        let value = |stored| match stored {
            Stored::Whole(tensor) => Dynamic::from(tensor),
            Stored::Shard(shard) => Dynamic::from(shard),
        };
        Ok(optimizer.lock().state()?.into_iter().map(|(name, stored)| (name.into(), value(stored))).collect())
    }

    /// Takes up what `state` gave.
    ///
    /// ```rhai
    /// let opt = adamw(#{ w: param(tensor([1.0])) });
    /// opt.load_state(opt.state());
    /// opt.load_state(#{})   //=> error: `step` must be present
    /// ```
    #[rhai_fn(return_raw)]
    pub fn load_state(optimizer: Optimizer, state: Map) -> RhaiResultOf<()> {
        Ok(optimizer.lock().load_state(stored_in(&state))?)
    }

    /// The exponential moving average of trainable tensors; `update` after each step, `swap` to evaluate with it.
    ///
    /// ```rhai
    /// let w = param(tensor([1.0]));
    /// let average = ema(w, 0.5);
    /// adamw(w, #{ rate: 1, weight_decay: 0 }).step(w.sum());
    /// average.update();
    /// average.swap();
    /// assert_close(w.item(), 0.5, 1e-6);
    /// ema(w, 1)   //=> error: the decay must lie in [0, 1)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ema(params: Dynamic, decay: f64) -> RhaiResultOf<Ema> {
        Ok(Ema::new(super::params(params, "ema")?, decay)?)
    }

    /// Moves an average towards the present values: `decay * average + (1 - decay) * value`.
    ///
    /// ```rhai
    /// let average = ema(#{ w: param(tensor([1.0])) }, 0.9);
    /// average.update();
    /// average.state().w.to_array()   //=> [1.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn update(average: Ema) -> RhaiResultOf<()> {
        Ok(average.update()?)
    }

    /// Exchanges parameters and averages; a second call exchanges them back.
    ///
    /// ```rhai
    /// let w = param(tensor([1.0]));
    /// ema(w, 0.9).swap();
    /// w.item()   //=> 1.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn swap(average: Ema) -> RhaiResultOf<()> {
        Ok(average.swap()?)
    }

    /// Moves trainable tensors towards others of the same names: `decay * own + (1 - decay) * other`; 0 is a copy.
    ///
    /// ```rhai
    /// let policy = flow("tiny/flux2").lora(#{ rank: 2, targets: ["to_q"] });
    /// let old = flow("tiny/flux2").lora(#{ rank: 2, targets: ["to_q"], seed: 1 });
    /// old.params().follow(policy.params(), 0.0);
    /// ```
    #[rhai_fn(name = "follow", return_raw)]
    pub fn follow_params(params: Params, other: Params, decay: f64) -> RhaiResultOf<()> {
        Ok(params.follow(&other, decay)?)
    }

    #[rhai_fn(name = "state", return_raw)]
    pub fn values(params: Params) -> RhaiResultOf<Map> {
        let copies = params.iter().map(|(name, var)| Ok((name.to_string(), var.constant().copy()?)));
        Ok(to_map(copies.collect::<Result<_>>()?))
    }

    #[rhai_fn(name = "load_state", return_raw)]
    pub fn load_values(params: Params, state: Map) -> RhaiResultOf<()> {
        Ok(params.load(in_map(&state))?)
    }

    #[rhai_fn(name = "state", return_raw)]
    pub fn averages(average: Ema) -> RhaiResultOf<Map> {
        Ok(to_map(average.state()?))
    }

    #[rhai_fn(name = "load_state", return_raw)]
    pub fn load_averages(average: Ema, state: Map) -> RhaiResultOf<()> {
        Ok(average.load_state(in_map(&state))?)
    }

    /// How many trainable tensors there are.
    ///
    /// ```rhai
    /// flow("tiny/flux2").lora(#{ rank: 2, targets: ["to_q"] }).params().len   //=> 4
    /// ```
    #[rhai_fn(get = "len", pure)]
    pub fn count_params(params: &mut Params) -> i64 {
        params.len() as i64
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_optimizer(optimizer: &mut Optimizer) -> String {
        optimizer.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_shard(shard: &mut Shard) -> String {
        shard.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_not_finite(choice: &mut NotFinite) -> String {
        option::FromScript::show(choice)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_schedule(schedule: &mut Schedule) -> String {
        schedule.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_params(params: &mut Params) -> String {
        format!("params({} tensors, {} numbers)", params.len(), params.elements())
    }
}
