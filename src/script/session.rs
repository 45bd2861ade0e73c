//! What one run of a script was asked for, shared by all natives: overrides, seed, device, folders, interrupt.

use super::registry::Registry;
use super::rename::{self, RENAMED};
use super::source::{self, Around, Insert};
use super::word::words;
use super::{fault, optim, option};
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result, warn_once};
use amscript_base::permissions::Rights;
use amscript_base::text::visible;
use amscript_base::{file, memory};
use amscript_nn::digest;
use amscript_reward::clip_encoder::ClipCache;
use amscript_run::lock::Locks;
use amscript_run::plan::Planner;
use amscript_run::screen::{Images, Plot, Screen};
use amscript_tensor::{Device, place};
use image::RgbImage;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rhai::{AST, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, ParseErrorType, Scope};
use std::collections::BTreeMap;
#[cfg(unix)]
use std::os::unix::prelude::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// What the command line decided.
#[derive(Clone)]
pub struct Request {
    /// The script's path as given; `None` for text.
    pub script: Option<PathBuf>,
    /// `--set key=value`, in order.
    pub overrides: Vec<(String, String)>,
    /// `--seed`: replaces the recipe's `seed` setting.
    pub seed: Option<u64>,
    /// `--device`: where tensors and models are made.
    pub device: Device,
    /// `--out`: the run directory.
    pub out: Option<PathBuf>,
    /// `--resume-anyway`: a run goes on with what differs from what it began with.
    pub resume_anyway: bool,
    /// `--jobs`: this is one of several processes that run the script, each the named runs that no other has.
    pub job: bool,
    /// `--models`: looked in first for weights.
    pub models: Option<PathBuf>,
    /// `--allow-read` and the like: what a script may reach beside what all may.
    pub allow: Rights<PathBuf>,
    /// The overrides are those of a run that is repeated: they are not the user's, and name nothing that may be read.
    pub replay: bool,
    /// Runs end after so many steps.
    pub slice: Option<usize>,
    /// `--min-free`: bytes of the disk that stay free.
    pub min_free: Option<u64>,
    /// `--max-disk`: bytes that files may take which are written, beside ten times what was read.
    pub max_disk: Option<u64>,
    /// `--max-time`: what runs ends when so much has passed.
    pub max_time: Option<Duration>,
    /// Most operations of a script without a call of a native, for one that goes round for ever.
    pub max_alone: Option<usize>,
    /// `--plan`: weights are not read, and the script ends where its first update would begin. The value says whether the
    /// device planned for is the CPU; that device need not be there.
    pub plan: Option<bool>,
    /// What shows images and plots.
    pub screen: Screen,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            script: None,
            overrides: Vec::new(),
            seed: None,
            device: Device::Cpu,
            out: None,
            resume_anyway: false,
            job: false,
            models: None,
            allow: Rights::default(),
            replay: false,
            slice: None,
            min_free: None,
            max_disk: None,
            max_time: None,
            max_alone: None,
            plan: None,
            screen: Screen::default(),
        }
    }
}

/// A script that was compiled.
#[derive(Default)]
struct Source {
    text: String,
    /// The functions that it defines.
    functions: Vec<source::Function>,
    /// What was put into it for Rhai.
    inserts: Vec<Insert>,
}

/// Where `print` goes.
pub type Printer = Box<dyn Fn(&str) + Send + Sync>;

/// The state of one run; natives reach it with [`Session::of`].
pub struct Session {
    request: RwLock<Request>,
    device: Device,
    print: Printer,
    context: Context,
    step: Mutex<Option<usize>>,
    engine: OnceLock<Weak<Engine>>,
    sources: Mutex<BTreeMap<String, Source>>,
    functions: Mutex<BTreeMap<String, String>>,
    /// How many parameters closures have, with the variables that they use.
    closures: Mutex<BTreeMap<String, usize>>,
    settings: Mutex<Option<Map>>,
    /// Whether anything was drawn from `--seed`.
    seeded: AtomicBool,
    planner: Option<Planner>,
    registry: RwLock<Registry>,
    /// What is shown where there is no run's folder.
    shown: Mutex<Option<PathBuf>>,
    locks: Locks,
    /// Rewards that are open, and the networks they share.
    pub clip_cache: ClipCache,
}

impl Session {
    pub fn new(request: Request, print: Printer) -> Self {
        let context = Context::new(request.permissions());
        request.min_free.into_iter().for_each(|bytes| context.disk.spare(bytes));
        request.max_disk.into_iter().for_each(|bytes| context.disk.bound(bytes));
        request.max_time.into_iter().for_each(|time| context.interrupt.end_after(time));
        request.max_alone.into_iter().for_each(|most| context.interrupt.end_alone(most));
        Self {
            planner: request.plan.map(Planner::new),
            device: request.device.clone(),
            request: RwLock::new(request),
            print,
            context,
            step: Mutex::default(),
            engine: OnceLock::new(),
            sources: Mutex::default(),
            functions: Mutex::default(),
            closures: Mutex::default(),
            settings: Mutex::default(),
            seeded: AtomicBool::default(),
            registry: RwLock::default(),
            shown: Mutex::default(),
            locks: Locks::default(),
            clip_cache: ClipCache::default(),
        }
    }

    /// The session a native is called in.
    pub fn of(context: &NativeCallContext) -> Arc<Session> {
        Session::on(context.engine())
    }

    /// The session of an engine made by [`super::Host`].
    pub fn on(engine: &Engine) -> Arc<Session> {
        engine
            .default_tag()
            .clone()
            .try_cast()
            .unwrap_or_else(|| Arc::new(Self::new(Request::default(), Box::new(drop_text))))
    }

    /// What the command line decided, and a prompt has changed since.
    pub fn request(&self) -> RwLockReadGuard<'_, Request> {
        self.request.read()
    }

    /// `--seed`, for what is drawn from it.
    pub fn seed(&self) -> Option<u64> {
        self.seeded.store(true, Ordering::Relaxed);
        self.request().seed
    }

    /// Whether [`Session::seed`] was ever asked.
    pub fn is_seeded(&self) -> bool {
        self.seeded.load(Ordering::Relaxed)
    }

    /// A prompt changes what the command line decided: settings, seed, the script that runs. The device stays.
    pub fn amend(&self, change: impl FnOnce(&mut Request)) {
        change(&mut self.request.write());
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Begins to measure where time goes. A card is waited for after each op, which takes a little itself.
    pub fn measure(&self) {
        self.context.profile.start(place::wait(&self.device));
    }

    /// The families and rewards that scripts can open.
    pub fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read()
    }

    /// A program adds to the families and rewards.
    pub(super) fn register(&self, add: impl FnOnce(&mut Registry) -> Result<()>) -> Result<()> {
        add(&mut self.registry.write())
    }

    /// The run directories that are held.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// What is noted of a script that runs only to be planned.
    pub fn planner(&self) -> Option<&Planner> {
        self.planner.as_ref()
    }

    /// Writes one line for the user, safe to show.
    pub fn print(&self, line: &str) {
        (self.print)(&visible(line));
    }

    /// Shows an image in the terminal, or writes it to a file and prints its path.
    pub fn show_image(&self, picture: &RgbImage) -> Result<()> {
        let screen = self.request().screen;
        if let Some(text) = screen.image(picture)? {
            (self.print)(&text);
            return Ok(());
        }
        let what = format!("image of {} x {} pixels", picture.width(), picture.height());
        if screen.images != Images::File {
            self.print(&what);
            return Ok(());
        }
        let file = self.shown_file(picture)?;
        self.print(&format!("{what}: {}", file.display()));
        Ok(())
    }

    /// Shows a plot in the terminal.
    pub fn show_plot(&self, plot: &Plot) -> Result<()> {
        (self.print)(&self.request().screen.plot(plot)?);
        Ok(())
    }

    /// Writes a file that is not there yet, `images/shown-1.png` in the run's folder; where there is none, in a temporary folder
    /// that nobody else may enter.
    fn shown_file(&self, picture: &RgbImage) -> Result<PathBuf> {
        let write = |folder: &Path| {
            let refused = |e| Error::new(Kind::File, format!("show: cannot write in {}: {e}", folder.display()));
            file::make_folder(folder).map_err(refused)?;
            let mut files = (1..).map(|i| folder.join(format!("shown-{i}.png")));
            let free = files.find(|file| !file::exists(file));
            let free = free.ok_or_else(|| Error::new(Kind::Internal, "show: no name is free"))?;
            amscript_nn::data::image::write(picture, &free).map(|()| free)
        };
        if { self.request().out.is_some() } || file::is_folder(&self.run_folder()) {
            return write(&self.run_folder().join("images"));
        }
        let mut shown = self.shown.lock();
        let folder = match shown.take() {
            Some(folder) => folder,
            None => {
                let mut builder = tempfile::Builder::new();
                builder.prefix("shown-by-amscript-");
                #[cfg(unix)]
                builder.permissions(PermissionsExt::from_mode(0o700));
                builder.tempdir().map_err(|e| Error::new(Kind::File, format!("show: no temporary folder: {e}")))?.keep()
            }
        };
        // the host's own folder, which no script names
        Context::permitting(Rights::all(), || write(shown.insert(folder)))
    }

    /// What is entered while scripts of this session run.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Ctrl-C was pressed: once ends the run after its step if it has steps, twice stops at once.
    pub fn interrupt(&self) {
        self.context.interrupt.ask();
    }

    /// A prompt is ready for the next call.
    pub fn forget_interrupts(&self) {
        self.context.interrupt.forget();
        self.begin_step(None);
    }

    /// A loop over steps notes the step that begins, and `None` when it came to its end.
    pub fn begin_step(&self, step: Option<usize>) {
        *self.step.lock() = step;
    }

    /// The last step that began in a loop that did not come to its end.
    pub fn step(&self) -> Option<usize> {
        *self.step.lock()
    }

    /// Errs when the user interrupted or time is up; long native loops call it once per step.
    pub fn check(&self) -> Result<()> {
        self.context.interrupt.check()?;
        memory::check()
    }

    pub(super) fn attach(&self, engine: &Arc<Engine>) {
        self.engine.get_or_init(|| Arc::downgrade(engine));
    }

    /// The engine that runs the script, while it is alive.
    pub fn engine(&self) -> Result<Arc<Engine>> {
        let gone = || Error::new(Kind::Internal, "the script that made this closure has ended");
        self.engine.get().and_then(Weak::upgrade).ok_or_else(gone)
    }

    /// Remembers a script's text so that errors can show it.
    pub fn add_source(&self, name: &str, text: &str) {
        let mut sources = self.sources.lock();
        let source = sources.entry(name.into()).or_default();
        if !text.starts_with(&source.text) {
            source.inserts.clear();
        }
        source.text = text.into();
    }

    /// A script's text as Rhai is to read it; what is put in is remembered for the places of errors.
    pub(super) fn read(&self, name: &str, text: &str, around: &Around) -> String {
        let words = words(text);
        let functions = source::functions(&words);
        let inserts = source::inserts(&words, &functions, around);
        let read = source::apply(text, &inserts);
        let mut sources = self.sources.lock();
        let source = sources.entry(name.into()).or_default();
        source.inserts.extend(inserts);
        source.functions.extend(functions);
        read
    }

    /// The functions of a library that earlier texts made.
    pub(super) fn functions_in(&self, library: &AST) -> Vec<source::Function> {
        let sources = self.sources.lock();
        let known: Vec<&source::Function> = sources.values().flat_map(|source| &source.functions).collect();
        let one = |f: rhai::ScriptFnMetadata| {
            let (name, parameters) = (source::own_name(f.name).to_string(), f.params.len());
            let method = known.iter().any(|k| k.name == name && k.parameters == parameters && k.method);
            source::Function { name, parameters, method }
        };
        library.iter_functions().map(one).collect()
    }

    /// Where in a script a place is in what Rhai read.
    pub(super) fn column(&self, name: &str, line: usize, column: usize) -> usize {
        self.sources.lock().get(name).map_or(column, |source| source::column(&source.inserts, line, column))
    }

    /// The text of a script that was run or imported.
    pub fn source(&self, name: &str) -> Option<String> {
        self.sources.lock().get(name).map(|source| source.text.clone())
    }

    /// Whether a script that was run or imported has a text with this hash.
    pub(super) fn has_text(&self, hash: &str) -> bool {
        self.sources.lock().values().any(|source| digest::hash(source.text.as_bytes()) == hash)
    }

    /// Remembers the functions of a script so that errors can suggest them.
    pub(super) fn add_functions(&self, ast: &AST) {
        let named = ast.iter_functions().filter(|f| !f.name.starts_with("anon$"));
        let one = |f: rhai::ScriptFnMetadata| (source::own_name(f.name).into(), format!("({})", f.params.join(", ")));
        self.functions.lock().extend(named.map(one));
        let closures = ast.iter_functions().filter(|f| f.name.starts_with("anon$"));
        self.closures.lock().extend(closures.map(|f| (f.name.into(), f.params.len())));
    }

    /// The number of parameters of a closure, with the variables that it uses.
    pub(super) fn closure(&self, name: &str) -> Option<usize> {
        self.closures.lock().get(name).copied()
    }

    /// The functions of the scripts that were compiled: names and parameters.
    pub fn functions(&self) -> BTreeMap<String, String> {
        self.functions.lock().clone()
    }

    /// The debug text of a value, as scripts print it.
    pub fn show(&self, value: Dynamic) -> Result<String> {
        let mut scope = Scope::new();
        scope.push_dynamic("value", value);
        let shown = self.engine()?.eval_with_scope::<String>(&mut scope, "value.to_debug()");
        shown.map_err(|e| fault::from_script(*e, "", self))
    }

    /// The recipe's settings: `defaults` with `--set` and `--seed` applied; an unknown key is an error.
    pub fn settle(&self, defaults: Map) -> Result<Map> {
        let mut settings = defaults;
        let overrides = self.request().overrides.clone();
        for (key, text) in &overrides {
            let renamed = rename::option(RENAMED, "--set", key, settings.keys().map(|k| k.as_str()));
            if let Some(new) = renamed {
                warn_once(key, &format!("--set: the setting `{key}` is now `{new}`, which is set"));
            }
            let key = renamed.unwrap_or(key);
            let Some(default) = settings.get(key) else {
                return Err(option::unknown("--set", "setting", key, settings.keys().map(|k| k.as_str())));
            };
            if key == "seed"
                && let Some(seed) = self.request().seed
            {
                bail!(
                    Option, "--set: `seed` must be given once, got {text} and, by `--seed`, {seed}";
                    hint: "leave one of them out"
                );
            }
            let mut value = optim::as_rate(self.parse(key, text, default)?, default)?;
            if let Some(whole) = value.as_float().ok().filter(|v| default.is_int() && v.fract() == 0.0) {
                if whole.abs() >= i64::MAX as f64 {
                    bail!(Option, "--set: `{key}` must be at most {}, got {text}", i64::MAX);
                }
                value = Dynamic::from(whole as i64);
            }
            settings.insert(key.into(), value);
        }
        if settings.contains_key("seed")
            && let Some(seed) = self.seed()
        {
            settings.insert("seed".into(), Dynamic::from(seed as i64));
        }
        *self.settings.lock() = Some(settings.clone());
        Ok(settings)
    }

    /// What [`Session::settle`] returned last; `None` when the script declares no settings.
    pub fn settings(&self) -> Option<Map> {
        self.settings.lock().clone()
    }

    /// `--set` text as a value: an expression, or plain text such as `tiny/flux2`.
    fn parse(&self, key: &str, text: &str, default: &Dynamic) -> Result<Dynamic> {
        let plain = || Dynamic::from(text.to_string());
        let quoted = text.starts_with('"');
        if default.is_string() && !quoted {
            return Ok(plain());
        }
        // a value, which nothing is read for
        let engine = self.engine()?;
        match Context::permitting(Rights::default(), || engine.eval_expression::<Dynamic>(text)) {
            Ok(value) => Ok(value),
            Err(e) if is_plain_text(&e) => {
                bail!(Option, "--set: `{key}` must be a value such as {}, got \"{text}\"", self.show(default.clone())?)
            }
            Err(e) => Err(fault::from_script(*e, "", self).within(format_args!("--set {key}={text}"))),
        }
    }
}

fn drop_text(_: &str) {}

fn is_plain_text(error: &EvalAltResult) -> bool {
    match error {
        EvalAltResult::ErrorVariableNotFound(..) => true,
        EvalAltResult::ErrorParsing(kind, _) => !matches!(kind, ParseErrorType::BadInput(_)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;

    fn settle(overrides: &[(&str, &str)]) -> Result<Map> {
        let overrides = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let host =
            Host::new(Session::new(Request { overrides, seed: Some(7), ..Request::default() }, Box::new(|_| ())));
        let defaults = "#{ steps: 20, rate: 0.1, model: \"tiny/flux2\", grid: zeros([1]), seed: 0 }";
        let defaults = host.run("test", defaults)?.cast::<Map>();
        host.session().settle(defaults)
    }

    fn shown(settings: &Map, key: &str) -> String {
        option::show(&settings[key])
    }

    #[test]
    fn overrides_are_values_or_text() -> Result<()> {
        let text = [("steps", "4 * 2"), ("rate", "1e-3"), ("model", "other/model"), ("grid", "ones([2])")];
        let settings = settle(&text)?;
        assert_eq!((shown(&settings, "steps"), shown(&settings, "rate")), ("8".into(), "0.001".into()));
        assert_eq!((shown(&settings, "model"), shown(&settings, "seed")), ("\"other/model\"".into(), "7".into()));
        assert_eq!(shown(&settings, "grid"), "tensor[2] f32 cpu");
        Ok(())
    }

    #[test]
    fn whole_numbers_stay_whole_up_to_the_largest() -> Result<()> {
        let steps = |text| settle(&[("steps", text)]).map(|settings| settings["steps"].as_int().ok());
        assert_eq!([steps("5.0")?, steps("1e3")?], [Some(5), Some(1000)]);
        let error = steps("18446744073709551615").unwrap_err();
        assert_eq!(error.message, "--set: `steps` must be at most 9223372036854775807, got 18446744073709551615");
        Ok(())
    }

    #[test]
    fn a_seed_is_given_once() {
        let error = settle(&[("seed", "2")]).unwrap_err();
        assert_eq!(error.message, "--set: `seed` must be given once, got 2 and, by `--seed`, 7");
    }

    #[test]
    fn wrong_overrides_are_named() {
        assert_eq!(
            settle(&[("step", "3")]).unwrap_err().message,
            "--set: unknown setting `step`; did you mean `steps`?"
        );
        let error = settle(&[("Rate", "3")]).unwrap_err();
        assert_eq!(error.message, "--set: unknown setting `Rate`; did you mean `rate`?");
        let error = settle(&[("steps", "many")]).unwrap_err();
        assert_eq!(error.message, "--set: `steps` must be a value such as 20, got \"many\"");
        let error = settle(&[("grid", "ones(2)")]).unwrap_err();
        assert!(error.message.starts_with("--set grid=ones(2): `ones`: expected (array), got (integer)"), "{error}");
    }
}
