//! Chapter `method`: what an update starts from, the update of any method, and what it found.

use super::align::Cost;
use super::flow::{Trajectory, condition};
use super::ranks::cut;
use super::*;
use crate::{options, script_value};
use amscript_align::flow::{Condition, Velocity as _};
use amscript_align::optim::NotFinite;
use amscript_align::{self as solver, Cut, Share};
use amscript_model::Flow;
use amscript_tensor::{Stream, Tensor};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

script_value!(Method, "a method such as `adjoint_matching(#{ truncate: last(3) })`");
script_value!(MethodState, "a method's state, from `method_state()`");

/// What one update starts from, as scripts hold it.
#[derive(Clone)]
pub struct Batch {
    pub x0: Tensor,
    pub condition: Condition,
    pub cost: Cost,
    pub options: BatchOptions,
}

options! {
    /// What a batch has beside noise, condition and cost.
    pub struct BatchOptions {
        /// How many samples each prompt has; they follow one another.
        per_prompt: usize = 1,
        /// Costs of further judges, which a method may ask how far the first is to be trusted.
        auxiliary: Vec<Cost> = Vec::new(),
        /// The samples that these are of a larger batch, and how many are taken at a time; () means that they are all, in one piece.
        share: Option<Share> = None,
        /// What the update draws from: a stochastic sampler's noise, the steps that it chooses.
        rng: Option<Stream> = None,
        /// What the method keeps from one update of a run to the next, which is changed; () means nothing.
        state: Option<MethodState> = None,
        /// What happens to an update with numbers that are NaN or infinite; how many were left out in a row is part of `state`.
        not_finite: NotFinite = NotFinite::Stop,
    }
}

/// What a method keeps from one update of a run to the next; clones share it.
#[derive(Clone, Default)]
pub struct MethodState(Arc<Mutex<solver::MethodState>>);

impl MethodState {
    pub fn lock(&self) -> MutexGuard<'_, solver::MethodState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for MethodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(f, "method_state({} numbers, {} tensors)", state.numbers.len(), state.tensors.len())
    }
}

/// A method with its choices, as scripts hold it.
#[derive(Clone)]
pub struct Method {
    core: Arc<dyn solver::Method>,
    /// As a script writes it: a run with other choices is another run.
    text: String,
    /// A stream of its own, before the batch's.
    rng: Option<Stream>,
}

impl Method {
    pub fn new(core: Arc<dyn solver::Method>, text: String) -> Self {
        Self { core, text, rng: None }
    }

    /// The method itself.
    pub fn core(&self) -> Arc<dyn solver::Method> {
        self.core.clone()
    }

    /// A method that has this one within, and draws from the same stream.
    pub fn around(&self, core: Arc<dyn solver::Method>, text: String) -> Self {
        Self { core, text, rng: self.rng.clone() }
    }

    /// The same method with a random stream of its own.
    pub fn drawing_from(self, rng: Option<Stream>) -> Self {
        Self { rng, ..self }
    }

    /// One update of a policy.
    pub fn run(&self, session: &Session, policy: Flow, base: &Flow, batch: &Batch) -> Result<Update> {
        session.planner().inspect(|planner| planner.samples(&batch.x0));
        let judge = |cost: &Cost| Ok(Arc::new(cost.of_states(&policy)?) as Arc<dyn solver::TerminalCost>);
        let auxiliary = batch.options.auxiliary.iter().map(judge).collect::<Result<_>>()?;
        let rng = self.rng.clone().or_else(|| batch.options.rng.clone());
        let given = solver::Batch { cost: judge(&batch.cost)?, auxiliary, rng, ..batch.core()? };
        let cut = cut(batch.options.share.as_ref(), || trained(&policy))?;
        let update = apart(session, &batch.options, |state| match &cut {
            // of a plan, one part stands for all
            Some(cut) if session.planner().is_some() => {
                solver::update(&*self.core, &policy, base, &given.rows(0..cut.largest())?, state)
            }
            Some(cut) => solver::update_in_parts(&*self.core, [&policy, base], &given, cut, state),
            None => solver::update(&*self.core, &policy, base, &given, state),
        })?;
        Ok(Update { update, policy: Some(policy) })
    }
}

/// The numbers that a policy trains.
fn trained(policy: &Flow) -> Result<Vec<Tensor>> {
    let known = policy.rerun().map(|(_, variables)| variables).filter(|variables| !variables.is_empty());
    known.ok_or_else(|| {
        let message = "update: a batch in parts needs a policy whose trained numbers it can name, got one without";
        Error::new(Kind::Type, message)
            .hint("make the policy with base.lora(..) or base.trainable(), or name them with in_parts(..)")
    })
}

/// Work on a copy of a batch's state, which becomes the state if it comes to its end; what is not finite is passed over as the batch has it.
pub fn apart(
    session: &Session,
    options: &BatchOptions,
    work: impl FnOnce(&mut solver::MethodState) -> Result<solver::Update>,
) -> Result<Result<solver::Update>> {
    let shared = options.state.clone().unwrap_or_default();
    // Closures of the script run within, and may ask for the state.
    let mut state = shared.lock().clone();
    let skipped = state.numbers.remove(SKIPPED).unwrap_or_default();
    let update = match work(&mut state) {
        Err(error) if options.not_finite.passes(&error, skipped as usize)? => {
            state.numbers.insert(SKIPPED.into(), skipped + 1.0);
            session.print(&format!("left out: {}", error.message));
            Err(error)
        }
        found => Ok(found?),
    };
    *shared.lock() = state;
    Ok(update)
}

impl Batch {
    /// As methods know it, but for its costs.
    pub fn core(&self) -> Result<solver::Batch> {
        let nothing = solver::RewardCost::new(|x| amscript_tensor::sample::sum_per_sample(&x.zeros_like()?), 1.0)?;
        let (per_prompt, rng) = (self.options.per_prompt, self.options.rng.clone());
        Ok(solver::Batch { per_prompt, rng, ..solver::Batch::new(&self.x0, &self.condition, nothing) })
    }

    /// A part of it.
    pub fn part(&self, part: &solver::Batch, cut: &Cut) -> Result<Self> {
        let Some(place) = &part.part else { return Ok(self.clone()) };
        let first = place.rows.first - cut.share.rows(&cut.share.own()).first;
        let rows = first..first + place.rows.len;
        let auxiliary = self.options.auxiliary.iter().map(|cost| cost.of_rows(rows.clone())).collect();
        let options = BatchOptions { auxiliary, share: None, rng: part.rng.clone(), ..self.options.clone() };
        Ok(Self { x0: part.x0.clone(), condition: part.condition.clone(), cost: self.cost.of_rows(rows), options })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// In a method's state: updates that were left out in a row.
const SKIPPED: &str = "skipped";

/// One update as scripts hold it, or why it was left out.
#[derive(Clone)]
pub struct Update {
    update: Result<solver::Update>,
    /// What was updated; a closure's update names none.
    policy: Option<Flow>,
}

impl Update {
    pub fn of(update: Result<solver::Update>, policy: Option<Flow>) -> Self {
        Self { update, policy }
    }

    fn found(&self) -> Result<&solver::Update> {
        self.update.as_ref().map_err(Error::clone)
    }

    fn trace(&self) -> Result<Option<&solver::Trace>> {
        Ok(self.found()?.trace.as_ref())
    }
}

fn map_of<T>(entries: impl IntoIterator<Item = (String, T)>, value: impl Fn(T) -> Dynamic) -> Map {
    entries.into_iter().map(|(name, v)| (name.into(), value(v))).collect()
}

/// What makes a method of a script's choices.
pub(super) type Constructor = dyn Fn(&mut Given) -> Result<Arc<dyn solver::Method>> + Send + Sync;

/// Makes `name(#{ .. })` and `name()` give the method that a constructor makes.
pub(super) fn register(engine: &mut Engine, name: &str, make: Arc<Constructor>) {
    let function = name.to_string();
    let construct = move |choices: Map| -> RhaiResultOf<Method> {
        let shown = Dynamic::from(choices.clone()).to_string();
        let mut given = Given::new(&function, choices);
        let core = make(&mut given)?;
        given.finish()?;
        Ok(Method::new(core, format!("{function}({shown})")))
    };
    let plain = construct.clone();
    engine.register_fn(name, construct);
    engine.register_fn(name, move || plain(Map::new()));
}

/// Batches, the update of any method, what it found, and what a run keeps of a method.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod method {
    use super::*;

    pub type Batch = super::Batch;
    pub type Method = super::Method;
    pub type MethodState = super::MethodState;
    pub type Update = super::Update;

    /// What one update starts from: noise, a condition from `encode` or `()`, and the cost of what comes of them.
    ///
    /// ```rhai
    /// let b = batch(tensor([[1.0], [2.0]]), (), terminal_cost(|x| x.sum(1)), #{ per_prompt: 2 });
    /// [b.x0.shape, b.per_prompt]   //=> [[2, 1], 2]
    /// batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)), #{ groups: 2 })   //=> error: unknown option `groups`
    /// ```
    #[rhai_fn(return_raw)]
    pub fn batch(x0: Tensor, condition: Dynamic, cost: Cost, options: Map) -> RhaiResultOf<Batch> {
        let condition = super::condition(condition, "batch")?;
        Ok(Batch { x0, condition, cost, options: BatchOptions::parse("batch", options)? })
    }

    /// The noise `[batch, ..]` that a batch starts from.
    ///
    /// ```rhai
    /// batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1))).x0.item()   //=> 1.0
    /// ```
    #[rhai_fn(get = "x0", pure)]
    pub fn x0(batch: &mut Batch) -> Tensor {
        batch.x0.clone()
    }

    /// The condition of a batch, a row for each sample.
    ///
    /// ```rhai
    /// let c = flow("tiny/sit").encode([3, 7]);
    /// batch(zeros([2, 4, 8, 8]), c, terminal_cost(|x| x.mean([1, 2, 3]))).condition.labels   //=> [3, 7]
    /// ```
    #[rhai_fn(get = "condition", pure)]
    pub fn condition_of(batch: &mut Batch) -> Condition {
        batch.condition.clone()
    }

    /// The cost of a batch.
    ///
    /// ```rhai
    /// batch(tensor([[1.0]]), (), terminal_cost(|x| 3 * x.sum(1))).cost.of(tensor([[2.0]])).item()   //=> 6.0
    /// ```
    #[rhai_fn(get = "cost", pure)]
    pub fn cost(batch: &mut Batch) -> Cost {
        batch.cost.clone()
    }

    /// How many samples each prompt of a batch has.
    ///
    /// ```rhai
    /// batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1))).per_prompt   //=> 1
    /// ```
    #[rhai_fn(get = "per_prompt", pure)]
    pub fn per_prompt(batch: &mut Batch) -> i64 {
        batch.options.per_prompt as i64
    }

    /// The random stream of a batch: its tensors have a row for each sample, the same in any part of a batch that has the sample.
    ///
    /// ```rhai
    /// batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)), #{ rng: rng(0) }).rng   //=> rng(0 numbers drawn)
    /// ```
    #[rhai_fn(get = "rng", pure)]
    pub fn rng_of(batch: &mut Batch) -> Dynamic {
        batch.options.rng.clone().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// What a method keeps from one update of a run to the next, empty at first; updates change what the batch names as its `state`.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let method = adjoint_matching(#{ grid: uniform(10), truncate: adaptive(0.5) });
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)), #{ state: method_state() });
    /// [method.update(base, base, b).adjoint.first, method.update(base, base, b).adjoint.first]   //=> [3, 3]
    /// ```
    pub fn method_state() -> MethodState {
        MethodState::default()
    }

    /// What a method has kept, for a checkpoint.
    ///
    /// ```rhai
    /// method_state().state()   //=> #{"numbers": #{}, "tensors": #{}}
    /// ```
    #[rhai_fn(name = "state")]
    pub fn state(state: MethodState) -> Map {
        let state = state.lock().clone();
        let numbers = map_of(state.numbers, Dynamic::from).into();
        [("numbers".into(), numbers), ("tensors".into(), map_of(state.tensors, Dynamic::from).into())].into()
    }

    /// Takes up what `state` gave.
    ///
    /// ```rhai
    /// let kept = method_state();
    /// kept.load_state(#{ numbers: #{ updates: 7, active: 4 }, tensors: #{} });
    /// kept.state().numbers         //=> #{"active": 4.0, "updates": 7.0}
    /// kept.load_state(#{})         //=> error: `numbers`: expected an object map
    /// ```
    #[rhai_fn(name = "load_state", return_raw)]
    pub fn load_state(state: MethodState, saved: Map) -> RhaiResultOf<()> {
        let part = |name: &str| -> Result<Map> {
            option::convert(saved.get(name).cloned().unwrap_or_default(), &format!("load_state: `{name}`"))
        };
        fn typed<T: option::FromScript>(part: Map) -> Result<std::collections::BTreeMap<String, T>> {
            let entry = |(name, v): (_, Dynamic)| Ok((format!("{name}"), option::convert(v, "load_state")?));
            part.into_iter().map(entry).collect()
        }
        *state.lock() = solver::MethodState { numbers: typed(part("numbers")?)?, tensors: typed(part("tensors")?)? };
        Ok(())
    }

    /// One update of a method: the losses of a batch, for the optimizer, and what was measured on the way.
    ///
    /// What the batch lacks for the method is an error before anything is computed.
    ///
    /// ```rhai
    /// let shift = param(tensor([0.0]));
    /// let base = velocity_field(|x, t, c| -x);
    /// let policy = velocity_field(|x, t, c| -x + shift);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)));
    /// let method = adjoint_matching(#{ grid: uniform(2), truncate: last(1) });
    /// method.update(policy, base, b).loss.item()                             //=> 0.25
    /// draft(#{ grid: uniform(2) }).update(policy, base, b).loss.item()       //=> 0.25
    /// ```
    #[rhai_fn(return_raw)]
    pub fn update(
        context: NativeCallContext,
        method: Method,
        policy: Flow,
        base: Flow,
        batch: Batch,
    ) -> RhaiResultOf<Update> {
        Ok(method.run(&Session::of(&context), policy, &base, &batch)?)
    }

    /// The next update of the same batch, for the policy as the optimizer's step has left it; () where there is none.
    ///
    /// Methods that go over a batch several times have some: `experiment::step` takes an optimizer's step for each.
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| w - x, w);
    /// let b = batch(tensor([[1.0], [2.0]]), (), terminal_cost(|x| x.sum(1)), #{ per_prompt: 2, rng: rng(0) });
    /// let first = grpo(#{ grid: uniform(3), passes: 2 }).update(policy, policy, b);
    /// let second = first.again();
    /// [second.measured.ratio.item(), second.again()]   //=> [1.0, ()]
    /// ```
    #[rhai_fn(name = "again", return_raw)]
    pub fn again(update: Update) -> RhaiResultOf<Dynamic> {
        let (Some(next), Some(policy)) = (&update.found()?.next, &update.policy) else { return Ok(Dynamic::UNIT) };
        let next = next(policy)?;
        Ok(Dynamic::from(Update { update: Ok(next), policy: update.policy }))
    }

    /// The loss of an update, for the optimizer: the sum of its `losses`.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(1) });
    /// [update.loss.item(), update.losses.len()]   //=> [4.0, 1]
    /// ```
    #[rhai_fn(get = "loss", pure, return_raw)]
    pub fn loss(update: &mut Update) -> RhaiResultOf<Tensor> {
        Ok(update.found()?.loss()?)
    }

    /// The losses of an update, one scalar or more.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)));
    /// adjoint_matching(#{ grid: uniform(1) }).update(base, base, b).losses.map(|loss| loss.item())   //=> [4.0]
    /// ```
    #[rhai_fn(get = "losses", pure, return_raw)]
    pub fn losses(update: &mut Update) -> RhaiResultOf<Array> {
        Ok(update.found()?.losses.iter().cloned().map(Dynamic::from).collect())
    }

    /// Whether an update was left out, by `not_finite: skip_updates(..)` of its batch; then it has nothing else.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| (-x).sqrt().sum(1)), #{ state: method_state(), not_finite: skip_updates(1) });
    /// let method = adjoint_matching(#{ grid: uniform(1) });
    /// method.update(base, base, b).skipped   //=> true
    /// method.update(base, base, b)           //=> error: 1 updates in a row were left out before
    /// ```
    #[rhai_fn(get = "skipped", pure)]
    pub fn skipped(update: &mut Update) -> bool {
        update.update.is_err()
    }

    /// The rewards `[batch]` that an update saw.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)));
    /// adjoint_matching(#{ grid: uniform(1) }).update(base, base, b).reward.to_array()   //=> [-2.0]
    /// ```
    #[rhai_fn(get = "reward", pure, return_raw)]
    pub fn reward(update: &mut Update) -> RhaiResultOf<Tensor> {
        Ok(update.found()?.reward.clone())
    }

    /// What an update measured, for `run.log`: loss and reward; of adjoint matching the mean size of the control at the active steps too, as
    /// `intensity` that at each of them, and their number where `adaptive` chooses it.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)));
    /// let update = adjoint_matching(#{ grid: uniform(1), truncate: adaptive(1) }).update(base, base, b);
    /// update.measured.keys()   //=> ["active", "control", "intensity", "loss", "reward"]
    /// ```
    #[rhai_fn(get = "measured", pure, return_raw)]
    pub fn measured(update: &mut Update) -> RhaiResultOf<Map> {
        let found = update.found()?;
        let mut map = map_of(found.measured.clone(), Dynamic::from);
        map.insert("loss".into(), Dynamic::from(found.loss()?.constant()));
        map.insert("reward".into(), Dynamic::from(found.reward.clone()));
        Ok(map)
    }

    /// The trajectory of an update of adjoint matching; `()` for methods that leave none, and of a batch in several parts.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)));
    /// let update = adjoint_matching(#{ grid: uniform(1) }).update(base, base, b);
    /// [update.path.last.item(), control_norm(update.path, update.adjoint)]   //=> [2.0, 0.0]
    /// ```
    #[rhai_fn(get = "path", pure, return_raw)]
    pub fn path(update: &mut Update) -> RhaiResultOf<Dynamic> {
        let (Some(trace), Some(flow)) = (update.trace()?, update.policy.clone()) else { return Ok(Dynamic::UNIT) };
        Ok(Dynamic::from(Trajectory { flow, path: trace.path.clone() }))
    }

    /// The adjoint of an update of adjoint matching; `()` for methods that have none.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)));
    /// adjoint_matching(#{ grid: uniform(1) }).update(base, base, b).adjoint.values[0].item()   //=> 2.0
    /// ```
    #[rhai_fn(get = "adjoint", pure, return_raw)]
    pub fn adjoint(update: &mut Update) -> RhaiResultOf<Dynamic> {
        let adjoint = update.trace()?.and_then(|trace| trace.adjoint.clone());
        Ok(adjoint.map_or(Dynamic::UNIT, Dynamic::from))
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_method(method: &mut Method) -> String {
        method.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_state(state: &mut MethodState) -> String {
        state.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_batch(batch: &mut Batch) -> String {
        format!("batch(noise {:?}, {} per prompt)", batch.x0.dims(), batch.options.per_prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Host, Request};
    use super::*;
    use amscript_align::Needs;
    use amscript_align::flow::Velocity;

    /// The spread of rewards about a level that it keeps, in groups.
    struct Spread {
        weight: f64,
    }

    impl solver::Method for Spread {
        fn name(&self) -> &str {
            "spread"
        }

        fn needs(&self) -> Needs {
            Needs { gradient: false, groups: true }
        }

        fn update(
            &self,
            policy: &dyn Velocity,
            _: &dyn Velocity,
            batch: &solver::Batch,
            state: &mut solver::MethodState,
        ) -> Result<solver::Update> {
            let t = amscript_align::flow::time_tensor(0.0, &batch.x0)?;
            let x1 = (&batch.x0 + policy.velocity(&batch.x0, &t, &batch.condition)?)?;
            let reward = solver::rewards(&*batch.cost, &x1, "spread")?;
            let level = state.number("level");
            state.numbers.insert("level".into(), level + 1.0);
            Ok(solver::Update::new(((&reward - level)?.sqr()?.mean_all()? * self.weight)?, &reward))
        }
    }

    fn host() -> Host {
        let mut host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        let make = |given: &mut Given| Ok(Spread { weight: given.take("weight", || 1.0)? });
        host.register_method("spread", make).unwrap();
        let again = host.register_method("spread", make).unwrap_err();
        assert_eq!(again.message, "register_method: the name must be free, got `spread`, which is taken");
        assert!(host.register_method("draft", make).is_err());
        host
    }

    #[test]
    fn a_method_of_the_program_is_one_of_scripts() {
        let text = "let f = velocity_field(|x, t, c| x);
            let cost = terminal_cost(|x| -x.sum(1).detach());
            let kept = method_state();
            let b = batch(tensor([[1.0], [2.0]]), (), cost, #{ per_prompt: 2, state: kept });
            let method = spread(#{ weight: 2 });
            let losses = [method.update(f, f, b).loss.item(), method.update(f, f, b).loss.item(), spread().update(f, f, b).losses.len()];
            losses + [kept.state().numbers.level, method.to_string()]";
        let found = host().run("test", text).map(|value| option::show(&value));
        assert_eq!(found.unwrap(), r##"[20.0, 10.0, 1, 3.0, "spread(#{\"weight\": 2})"]"##);
    }

    #[test]
    fn its_choices_and_its_batch_are_checked() {
        let message = |text: &str| host().run("test", text).map(|_| ()).unwrap_err().message;
        assert_eq!(message("spread(#{ wieght: 3 })"), "spread: unknown option `wieght`; did you mean `weight`?");
        let lone = "let f = velocity_field(|x, t, c| x);
            spread().update(f, f, batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1))))";
        assert_eq!(message(lone), "spread: there must be several samples of each prompt, got 1");
    }

    #[test]
    fn it_is_registered_before_the_first_script() {
        let mut host = host();
        assert!(host.run("test", "1").is_ok());
        let late = host.register_method("late", |_: &mut Given| Ok(Spread { weight: 1.0 })).unwrap_err();
        assert!(late.message.contains("before the first script"), "{late}");
    }
}
