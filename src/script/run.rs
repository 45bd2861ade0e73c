//! Chapter `run`: settings, steps, log, images and checkpoints of a run.

use super::*;
use crate::options;
use amscript_align::optim::Shard;
use amscript_base::bail;
use amscript_model::Flow;
use amscript_nn::lora::Form;
use amscript_nn::module::Module as _;
use amscript_reward::RewardModel;
use amscript_run::checkpoint::DEEPEST;
use amscript_run::lock::Locks;
use amscript_run::progress::Counter;
use amscript_run::{Console, Recipe, Saved, Start, Steps as Iterating, Values};
use amscript_tensor::{Stream, Tensor, show as text};
use parking_lot::Mutex;
use serde_json::Value;

options! {
    /// Where a run is.
    pub struct StartOptions {
        /// A folder in the run directory, for one of several runs in one script; such a run is done once.
        name: Option<String> = None,
    }
}

options! {
    /// When a checkpoint is written.
    pub struct CheckpointOptions {
        /// Steps between checkpoints; the last step and Ctrl-C write one too.
        every: usize = 100,
    }
}

impl Console for Session {
    fn print(&self, line: &str) {
        Session::print(self, line);
    }
    fn stop_requested(&self) -> Result<bool> {
        let interrupt = &self.context().interrupt;
        let own = if !interrupt.asked() { 0 } else { 1 + u8::from(interrupt.requeues()) };
        let most = self.context().group().all("stop", &[own])?.into_iter().flatten().max().unwrap_or_default();
        if most == 2 {
            interrupt.ask_to_requeue();
        }
        let slice = self.request().slice;
        Ok(most > 0 || slice.is_some_and(|n| self.step().is_some_and(|step| step + 1 >= n)))
    }
    fn finish_steps(&self, running: bool) {
        self.context().interrupt.finish_steps(running);
    }
    fn begin_step(&self, step: Option<usize>) {
        Session::begin_step(self, step);
    }
    fn locks(&self) -> &Locks {
        Session::locks(self)
    }
    fn rewards(&self) -> Vec<String> {
        self.clip_cache.details()
    }
}

/// The steps of a run, for one `for` loop.
#[derive(Clone)]
pub struct Steps(Arc<Mutex<Option<Iterating>>>);

/// A count with a progress bar, for one `for` loop.
#[derive(Clone)]
pub struct Counting(Arc<Mutex<Option<Checked>>>);

/// A count, and the session that may be interrupted.
type Checked = (Counter, Arc<Session>);

/// Makes [`Steps`] and [`Counting`] something that `for` runs over.
pub(super) fn iterators(module: &mut Module) {
    module.set_iter_result(TypeId::of::<Counting>(), |value: Dynamic| {
        let counting = value.cast::<Counting>().0.lock().take();
        Box::new(counting.into_iter().flat_map(|(counter, session)| {
            counter.map(move |i| {
                session.check()?;
                Ok(Dynamic::from(i as i64))
            })
        }))
    });
    module.set_iter_result(TypeId::of::<Steps>(), |value: Dynamic| {
        let steps = value.cast::<Steps>().0.lock().take();
        Box::new(steps.into_iter().flatten().map(|step| Ok(Dynamic::from(step? as i64))))
    });
}

/// The numbers of a value: one, an array of them, or a tensor.
pub(super) fn numbers(value: Dynamic, place: &str) -> Result<Vec<f64>> {
    if let Some(tensor) = value.read_lock::<Tensor>() {
        return text::values(&tensor);
    }
    match value.is_array() {
        true => option::list(option::convert(value, place)?, place),
        false => Ok(vec![option::convert(value, place)?]),
    }
}

fn logged(values: Map) -> Result<Values> {
    let named = |(name, v): (rhai::Identifier, Dynamic)| Ok((name.to_string(), numbers(v, &format!("log: `{name}`"))?));
    values.into_iter().map(named).collect()
}

/// A setting as JSON; values that JSON lacks as the text that `--set` takes.
fn setting(engine: &Engine, value: &Dynamic) -> Value {
    let value = value.flatten_clone();
    match (value.as_int(), value.as_float(), value.as_bool()) {
        (Ok(i), _, _) => Value::from(i),
        (_, Ok(f), _) => Value::from(f),
        (_, _, Ok(b)) => Value::from(b),
        _ if value.is_unit() => Value::from("()"),
        _ if value.is_string() || value.is_array() || value.is_map() => Value::from(value.to_string()),
        _ => {
            let mut scope = Scope::new();
            scope.push_dynamic("value", value);
            let shown = engine.eval_with_scope::<String>(&mut scope, "value.to_string()");
            Value::from(shown.unwrap_or_default())
        }
    }
}

/// What a script saves, from its values, which are so `deep` inside others.
fn saved(value: Dynamic, place: &str, deep: usize) -> Result<Saved> {
    let value = value.flatten();
    if deep > DEEPEST {
        bail!(Limit, "checkpoint: maps and arrays may be {DEEPEST} deep inside one another, got more");
    }
    if let Some(tensor) = value.read_lock::<Tensor>() {
        return Ok(Saved::Tensor(tensor.constant()));
    }
    if let Some(shard) = value.read_lock::<Shard>() {
        return Ok(Saved::Shard(shard.clone()));
    }
    if value.is_map() {
        let entries = option::convert::<Map>(value, place)?.into_iter();
        let saved = entries.map(|(key, v)| Ok((key.to_string(), saved(v, &format!("{place}.{key}"), deep + 1)?)));
        return Ok(Saved::Map(saved.collect::<Result<_>>()?));
    }
    if value.is_array() {
        let items = option::convert::<Array>(value, place)?.into_iter().enumerate();
        let saved = items.map(|(i, v)| saved(v, &format!("{place}[{i}]"), deep + 1));
        return Ok(Saved::List(saved.collect::<Result<_>>()?));
    }
    if let Ok(number) = value.as_float() {
        return Ok(Saved::Number(number));
    }
    let plain = match (value.as_int(), value.as_bool(), value.is_unit()) {
        (Ok(i), _, _) => Value::from(i),
        (_, Ok(b), _) => Value::from(b),
        (_, _, true) => Value::Null,
        _ if value.is_string() => Value::from(option::convert::<String>(value, place)?),
        _ => bail!(
            Type,
            "checkpoint: {place} must be tensors, numbers, texts, arrays or maps, got {}",
            option::show(&value)
        ),
    };
    Ok(Saved::Plain(plain))
}

/// The values again; tensors on the session's device.
fn restored(saved: Saved, session: &Session) -> Result<Dynamic> {
    Ok(match saved {
        Saved::Tensor(tensor) => Dynamic::from(tensor.to_device(session.device())?),
        Saved::Shard(shard) => Dynamic::from(shard),
        Saved::Number(number) => number.into(),
        Saved::Plain(Value::Bool(b)) => b.into(),
        Saved::Plain(Value::String(text)) => text.into(),
        Saved::Plain(Value::Null) => Dynamic::UNIT,
        Saved::Plain(value) => match value.as_i64() {
            Some(i) => i.into(),
            None => bail!(
                File,
                "restore: the state of a checkpoint is damaged: expected a whole number of 64 bits, got {value}"
            ),
        },
        Saved::List(items) => items.into_iter().map(|v| restored(v, session)).collect::<Result<Array>>()?.into(),
        Saved::Map(entries) => {
            let values = entries.into_iter().map(|(key, v)| Ok((key.into(), restored(v, session)?)));
            values.collect::<Result<Map>>()?.into()
        }
    })
}

fn count(n: i64) -> Result<usize> {
    usize::try_from(n).or_else(|_| bail!(Value, "progress: the count must not be negative, got {n}"))
}

fn start(context: &NativeCallContext, settings: Map, options: StartOptions) -> RhaiResultOf<amscript_run::Run> {
    let session = Session::of(context);
    let (path, anyway) = (session.request().script.clone(), session.request().resume_anyway);
    let source = session.source(context.call_source().unwrap_or_default()).unwrap_or_default();
    let seed = settings.get("seed").cloned().unwrap_or(Dynamic::from(0_i64));
    Ok(amscript_run::Run::start(Start {
        folder: session.run_folder(),
        observes: session.request().job && options.name.is_none(),
        name: options.name,
        recipe: Recipe { path, text: source },
        settings: settings.iter().map(|(key, v)| (key.to_string(), setting(context.engine(), v))).collect(),
        seed: option::convert(seed, "start_run: `seed`")?,
        device: amscript_tensor::place::name(session.device()),
        anyway,
        inputs: session.planner().is_none(),
        console: session,
    })?)
}

/// A run: its directory, settings, steps, log, images, checkpoints; its end is in chapter `result`.
#[export_module(manifest)]
pub mod run {
    use super::*;

    pub type Run = amscript_run::Run;
    pub type Steps = super::Steps;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_run(run: &mut Run) -> String {
        run.to_string()
    }

    /// The settings of a recipe: these defaults, with what `--set key=value` and `--seed` override.
    ///
    /// ```rhai
    /// settings(#{ steps: 20, seed: 0 }).steps   //=> 20
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn settings(context: NativeCallContext, defaults: Map) -> RhaiResultOf<Map> {
        let settled = Session::of(&context).settle(defaults.clone())?;
        for (key, value) in &settled {
            option::alike(&format!("--set: `{key}`"), &defaults[key], value)?;
        }
        Ok(settled)
    }

    /// The settings of a recipe that shares some with others: the `shared` ones, changed and added to by its own.
    ///
    /// ```rhai
    /// settings(#{ steps: 20, seed: 0 }, #{ steps: 4, order: 2 })   //=> #{"order": 2, "seed": 0, "steps": 4}
    /// settings(#{ steps: 20 }, #{ steps: "many" })                 //=> error: settings: `steps` must be a value such as 20, got "many"
    /// let warm = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// settings(#{ reward: "tiny/hpsv2" }, #{ reward: warm }).reward == "tiny/hpsv2"   //=> false
    /// ```
    #[rhai_fn(name = "settings", return_raw, volatile)]
    pub fn shared_settings(context: NativeCallContext, shared: Map, own: Map) -> RhaiResultOf<Map> {
        let mut own = own;
        for (key, value) in &mut own {
            // a reward may stand for the name of one
            let reward = |default: &&Dynamic| default.is_string() && value.is::<RewardModel>();
            if let Some(default) = shared.get(key).filter(|default| !reward(default)) {
                *value = optim::as_rate(value.clone(), default)?;
                option::alike(&format!("settings: `{key}`"), default, value)?;
            }
        }
        settings(context, shared.into_iter().chain(own).collect())
    }

    /// Starts a run: makes its directory (`--out`, else `runs/<recipe>`) and writes down what it is made from.
    ///
    /// A `seed` in the settings seeds all of the run's random streams. A directory that holds a training is taken up again only by the
    /// same run: other settings, another text of the recipe, version, or content of a file that was read is an error that names it, and
    /// `--resume-anyway` goes on and records it. A loop may become longer. No other process can start a run there meanwhile. A run with a
    /// `name` has a directory of its own inside that, with its own log and checkpoints.
    ///
    /// ```rhai
    /// let run = start_run(#{ seed: 3 });
    /// run.rng("noise").normal([2]) == rng(3).split("noise").normal([2])   //=> true
    /// start_run(#{ seed: -1 })                                            //=> error: start_run: `seed`: expected a count
    /// start_run(#{ order: 4 }, #{ name: "am-3/order-4" }).folder.ends_with("am-3/order-4")   //=> true
    /// start_run(#{}, #{ name: "../am-3" })                                //=> error: must be a folder inside the run's
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn start_run(context: NativeCallContext, settings: Map, options: Map) -> RhaiResultOf<Run> {
        let options = StartOptions::parse("start_run", options)?;
        start(&context, settings, options)
    }

    /// Starts a run with a `name`, as `start_run` does, unless another process works in its directory: then `()`.
    ///
    /// So several processes that run one script share its runs, first come, first served: `amscript --jobs 4 tables/flux`.
    ///
    /// ```rhai
    /// claim_run(#{}, #{ name: "am-3" }).folder.ends_with("am-3")   //=> true
    /// claim_run(#{}, #{})                                          //=> error: claim_run: a run must have a `name`
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn claim_run(context: NativeCallContext, settings: Map, options: Map) -> RhaiResultOf<Dynamic> {
        let options = StartOptions::parse("claim_run", options)?;
        let session = Session::of(&context);
        let Some(name) = &options.name else {
            return Err(Error::new(Kind::Missing, "claim_run: a run must have a `name`, got none").into());
        };
        let held = if session.request().job {
            amscript_run::hold(&session.run_folder(), name, session.locks())?
        } else {
            None
        };
        if session.request().job && held.is_none() {
            return Ok(Dynamic::UNIT);
        }
        Ok(Dynamic::from(start(&context, settings, options)?))
    }

    /// Whether this is one of the processes of `--jobs`, each of which leaves the end of the script to the one that started them.
    ///
    /// ```rhai
    /// is_job()   //=> false
    /// ```
    #[rhai_fn(volatile)]
    pub fn is_job(context: NativeCallContext) -> bool {
        Session::of(&context).request().job
    }

    /// Numbers from 0 for a `for` loop with a progress bar; Ctrl-C ends it after the step that is running.
    ///
    /// After `restore` it starts behind the steps that were done.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// let seen = [];
    /// for i in run.steps(3) { seen.push(i); }
    /// seen   //=> [0, 1, 2]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn steps(context: NativeCallContext, run: Run, n: i64) -> RhaiResultOf<Steps> {
        let n = option::convert(n.into(), "steps")?;
        if let Some(planner) = Session::of(&context).planner() {
            planner.plan().iterations.get_or_insert(n);
        }
        Ok(Steps(Arc::new(Mutex::new(Some(run.steps(n))))))
    }

    /// Logs numbers of this step: a line in `metrics.jsonl`, about twenty lines of a loop also on the screen.
    ///
    /// Several numbers under one name are shown by their mean. The name `intensity` is for the control's size at each active step, as
    /// `control_norms` gives it: the report draws it as a heat map, and it is not shown among the lines and curves.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// for i in run.steps(2) { run.log(#{ loss: 0.5, norms: tensor([1.0, 2.0]) }); }
    /// run.log(#{ loss: "low" })   //=> error: log: `loss`: expected a number, got "low"
    /// ```
    #[rhai_fn(return_raw)]
    pub fn log(run: Run, values: Map) -> RhaiResultOf<()> {
        Ok(run.log(logged(values)?)?)
    }

    /// Logs numbers of another step than the one that is running, such as those of the base, step 0, when the first is done.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// for i in run.steps(1) { run.log(#{ loss: 0.5 }, 0); run.log(#{ loss: 0.25 }); }
    /// read_run(run.folder).log.loss.x   //=> [0.0, 1.0]
    /// ```
    #[rhai_fn(name = "log", return_raw)]
    pub fn log_at(run: Run, values: Map, step: i64) -> RhaiResultOf<()> {
        Ok(run.log_at(option::convert(step.into(), "log: step")?, logged(values)?)?)
    }

    /// Ends the run's loop, as at its end, after the step that is running.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// for i in run.steps(9) { if i == 3 { run.stop(); } }
    /// run.step   //=> 4
    /// ```
    pub fn stop(run: Run) {
        run.stop();
    }

    /// Writes images into the run: `images/<name>-<step>.png`, a grid of a batch, or one image as it is.
    ///
    /// ```rhai
    /// start_run(#{}).images("samples", shapes(4, rng(0)).images)   //=> ()
    /// ```
    #[rhai_fn(return_raw)]
    pub fn images(run: Run, name: &str, images: Tensor) -> RhaiResultOf<()> {
        run.images(name, &images, &[])?;
        Ok(())
    }

    /// Writes images with a caption under each.
    ///
    /// ```rhai
    /// let world = shapes(4, rng(0));
    /// start_run(#{}).images("samples", world.images, world.captions)   //=> ()
    /// ```
    #[rhai_fn(name = "images", return_raw)]
    pub fn images_captioned(run: Run, name: &str, images: Tensor, captions: Dynamic) -> RhaiResultOf<()> {
        run.images(name, &images, &data::captions(captions, "images")?)?;
        Ok(())
    }

    /// Saves a policy in the run's directory: its adapters as `lora.safetensors`, or all of a trainable network below `model`.
    ///
    /// ```rhai no_run
    /// let run = start_run(#{});
    /// run.save(flow("tiny/flux2").lora(#{ rank: 4 }))
    /// ```
    #[rhai_fn(name = "save", return_raw)]
    pub fn save_policy(run: Run, policy: Flow) -> RhaiResultOf<()> {
        match policy.is_adapted() {
            false if !policy.params().is_empty() => Ok(policy.save(&run.folder().join("model"), None)?),
            _ => Ok(policy.save_lora(&run.folder().join("lora.safetensors"), Form::Diffusers, None)?),
        }
    }

    /// The run's random stream of that name; asked for again it goes on where it was, also after a resume.
    ///
    /// ```rhai
    /// let run = start_run(#{ seed: 0 });
    /// run.rng("noise").normal([2]) == run.rng("noise").normal([2])   //=> false
    /// ```
    #[rhai_fn(name = "rng")]
    pub fn run_rng(run: Run, name: &str) -> Stream {
        run.stream(name)
    }

    /// The run's directory.
    ///
    /// ```rhai
    /// start_run(#{}).folder.len > 0   //=> true
    /// ```
    #[rhai_fn(get = "folder", pure)]
    pub fn folder(run: &mut Run) -> String {
        run.folder().display().to_string()
    }

    /// Steps done, counting the one that is running.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// for i in run.steps(3) { if run.step != i + 1 { throw "counted"; } }
    /// run.step   //=> 3
    /// ```
    #[rhai_fn(get = "step", pure)]
    pub fn step(run: &mut Run) -> i64 {
        run.step() as i64
    }

    /// Mean seconds of a step of the run's loop so far, those before a resume included; NaN before the first.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// for i in run.steps(3) { rng(i).normal([1000]); }
    /// run.step_seconds < 1.0   //=> true
    /// ```
    #[rhai_fn(get = "step_seconds", pure)]
    pub fn step_seconds(run: &mut Run) -> f64 {
        run.seconds_per_step()
    }

    /// Saves what a closure returns, when a checkpoint is due: maps and arrays of tensors, numbers and texts.
    ///
    /// Call it at the end of each step; the closure runs only when its value is needed. Random streams of the run are saved too. The
    /// last two checkpoints are kept.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// let w = tensor([1.0]);
    /// for i in run.steps(5) { w += 1; run.checkpoint(|| #{ w: w, step: i }, #{ every: 2 }); }
    /// run.restore()   //=> #{"step": 4, "w": tensor([6.0])}
    /// ```
    #[rhai_fn(return_raw)]
    pub fn checkpoint(context: NativeCallContext, run: Run, state: FnPtr, options: Map) -> RhaiResultOf<()> {
        if run.due(CheckpointOptions::parse("checkpoint", options)?.every)? {
            let state: Dynamic = Callback::new(&context, "checkpoint", state).call(())?;
            run.checkpoint(saved(state, "state", 0)?)?;
        }
        Ok(())
    }

    /// What the last checkpoint in the run's directory holds, or `()` without one; `steps` then goes on behind it.
    ///
    /// One that is damaged is named and passed over.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// run.restore()   //=> ()
    /// ```
    #[rhai_fn(return_raw)]
    pub fn restore(context: NativeCallContext, run: Run) -> RhaiResultOf<Dynamic> {
        match run.restore()? {
            Some(state) => Ok(restored(state, &Session::of(&context))?),
            None => Ok(Dynamic::UNIT),
        }
    }

    /// Counts `0..n` in a `for` loop, with a progress bar and the time left; `what` stands before the bar.
    ///
    /// ```rhai
    /// let sum = 0;
    /// for i in progress(4, "adding") { sum += i; }
    /// sum                          //=> 6
    /// progress(-1, "nothing")      //=> error: must not be negative, got -1
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn progress(context: NativeCallContext, n: i64, what: &str) -> RhaiResultOf<Counting> {
        let session = Session::of(&context);
        let total = count(n)?;
        let printer = session.clone();
        let counter = Counter::new(what, total, move |line| printer.print(line));
        Ok(Counting(Arc::new(Mutex::new(Some((counter, session))))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, overrides: &[(&str, &str)]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let overrides = overrides.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let request = Request { out: Some(folder.path().into()), overrides, ..Request::default() };
        let host = Host::new(Session::new(request, Box::new(|_| ())));
        host.run("test", text).map(|value| option::show(&value))
    }

    #[test]
    fn settings_take_overrides_of_the_same_kind() -> Result<()> {
        let recipe = "let s = settings(#{ steps: 20, rate: 0.5, truncate: last(3), name: \"a\" });
            [s.steps, s.rate, s.truncate.to_string(), s.name]";
        assert_eq!(run(recipe, &[("truncate", "full()"), ("rate", "1")])?, r#"[20, 1, "full()", "a"]"#);
        assert_eq!(run(recipe, &[("name", "tiny/flux2")])?, r#"[20, 0.5, "last(3)", "tiny/flux2"]"#);
        for (key, value, message) in [
            ("stepz", "3", "unknown setting `stepz`; did you mean `steps`?"),
            ("steps", "2.5", "`steps` must be a value such as 20, got 2.5"),
            ("truncate", "3", "`truncate` must be a value such as"),
            ("rate", "fast", "`rate` must be a value such as 0.5"),
        ] {
            let error = run(recipe, &[(key, value)]).unwrap_err();
            assert!(error.message.contains(message), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_number_is_a_constant_rate() {
        let recipe = "settings(#{ rate: cosine(2e-3) }).rate";
        assert_eq!(run(recipe, &[("rate", "1e-3")]).unwrap(), "constant_rate(0.001)");
        assert_eq!(run(recipe, &[("rate", "cosine(0.5)")]).unwrap(), "cosine(0.5)");
        assert!(run(recipe, &[("rate", "-1")]).is_err());
        let error = run(recipe, &[("rate", "true")]).unwrap_err();
        assert!(error.message.contains("`rate` must be a value such as cosine(0.002), got true"), "{error}");
        let shared = "settings(#{ rate: cosine(2e-3) }, #{ rate: 1e-3 }).rate";
        assert_eq!(run(shared, &[]).unwrap(), "constant_rate(0.001)");
    }

    #[test]
    fn a_script_goes_on_behind_its_checkpoint() -> Result<()> {
        let text = "let s = #{ seed: 1 };
            let train = |run, upto| {
                let found = run.restore();
                let sum = if found == () { 0.0 } else { found.sum };
                for i in run.steps(6) {
                    if i == upto { break; }
                    sum += run.rng(\"x\").uniform([1]).item();
                    run.log(#{ sum: sum });
                    run.checkpoint(|| #{ sum: sum, list: [tensor([1, 2]), true, \"a\", ()] }, #{ every: 2 });
                }
                sum
            };
            train.call(start_run(s), 3);
            let again = train.call(start_run(s), 99);
            let r = rng(1).split(\"x\");
            let whole = 0.0;
            for i in 0..6 { whole += r.uniform([1]).item(); }
            [again == whole, start_run(s).restore().list.to_string()]";
        assert_eq!(run(text, &[])?, "[true, \"[tensor([1.0, 2.0]), true, \\\"a\\\", ()]\"]");
        Ok(())
    }

    #[test]
    fn a_number_that_a_script_cannot_hold_is_damage() {
        let session = Session::new(Request::default(), Box::new(|_| ()));
        let back = |value: Value| restored(Saved::Plain(value), &session);
        assert_eq!(back(Value::from(i64::MAX)).unwrap().as_int(), Ok(i64::MAX));
        assert!(back(Value::Null).unwrap().is_unit());
        let error = back(Value::from(u64::MAX)).unwrap_err();
        assert!(error.message.contains("damaged: expected a whole number"), "{error}");
    }
}
