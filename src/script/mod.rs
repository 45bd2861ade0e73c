//! The only folder that knows Rhai: one file per manual chapter, and what reads the chapters back as help.
//!
//! How to add a chapter `<name>`:
//! 1. `src/script/<name>.rs` with `use super::*;` and `#[export_module(manifest)] pub mod <name> { use super::*; .. }` (see
//!    `language.rs`), `pub mod <name>;` and one line in [`CHAPTERS`] here.
//! 2. Each function is `pub fn` with `#[rhai_fn(return_raw)]` when it returns `RhaiResultOf<T>`; our errors pass with `?`.
//!    The doc comment is the manual: one sentence, blank line, details, a `rhai` fence with `//=> value` or
//!    `//=> error: part of the message` behind the lines it checks.
//! 3. Parameters: `Tensor` and other handles by value, `f64`, `i64`, `bool`, `Array`, `Map`, `FnPtr`, `ImmutableString`,
//!    `Dynamic`. An integer is accepted for every `f64`; a last parameter `options: Map` may be left out by scripts. Neither
//!    needs an overload. A first parameter `context: NativeCallContext` gives [`Session::of`]`(&context)`: device, seed,
//!    folders, interrupt.
//! 4. Types that scripts hold: `pub type Grid = amscript_align::flow::Grid;` inside the module names it; give it `Display` and
//!    `script_value!(Grid, "a time grid such as `uniform(20)`")` so that it can be an option; add
//!    `#[rhai_fn(global, name = "to_string", name = "to_debug", pure)] pub fn show_grid(grid: &mut Grid) -> String`.
//!    Properties: `#[rhai_fn(get = "times", pure, return_raw)] pub fn times(grid: &mut Grid) -> ..`.
//! 5. Options: an [`crate::options!`] struct, `RolloutOptions::parse("rollout", options)?` in the body, and
//!    `"rollout" => amscript_align::flow::RolloutOptions` in the chapter's line of the table. Options that other functions have too are a struct
//!    of their own, taken in by `..loss: LossOptions`.
//! 6. Closures: [`Callback::new`]`(&context, "scripted_reward", closure)`, then `callback.call::<Tensor>((x, t))`, also later,
//!    from other threads and inside a backward pass.
//!    Its result may be any [`option::FromScript`] type.
//! 7. Random streams are [`amscript_tensor::Stream`] (shared, so that a draw moves the script's stream on):
//!    `rng.draw(|rng| rng.normal(..))`.
//! 8. Arrays and other values: [`option::list`], [`option::convert`].
//! 9. A choice without parameters is one line of `choices!` in `choice.rs`. The core's enums do not know how scripts write them.
//! 10. A function or option that changes its name gets a line in [`rename::RENAMED`].
#![allow(clippy::unwrap_used)] // written by rhai's macro for `&mut` receivers

pub mod adapter;
pub mod align;
pub mod array;
pub mod autoencoder;
pub mod callback;
pub mod catalog;
pub mod check;
#[macro_use]
pub mod choice;
mod compare;
pub mod condition;
pub mod data;
pub mod elementwise;
pub mod example;
pub mod fault;
mod files;
pub mod flow;
mod foreign;
pub mod grad;
mod guard;
pub mod header;
pub mod help;
pub mod image;
pub mod import;
pub mod judge;
pub mod language;
pub mod method;
pub mod metric;
pub mod model;
mod nesting;
pub mod operator;
pub mod optim;
pub mod option;
pub mod particle;
pub mod penalty;
pub mod plot;
pub mod policy;
pub mod policy_choice;
pub mod random;
pub mod ranks;
pub mod reduction;
pub mod registry;
pub mod rename;
pub mod result;
pub mod reward;
pub mod run;
pub mod sampler;
mod scopes;
pub mod session;
mod sort;
mod source;
pub mod storage;
mod suggest;
pub mod tensor;
pub mod text;
pub mod update;
mod word;

pub use callback::Callback;
pub use fault::RhaiResultOf;
pub use session::{Request, Session};

use amscript_align::Method;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use option::{Field, Given};
use rhai::packages::{Package, StandardPackage};
use rhai::plugin::*;
use rhai::{AST, Array, FnPtr, Map, OptimizationLevel, Scope};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The options of one function, for the manual.
pub type OptionTable = (&'static str, fn() -> Vec<Field>);

/// One chapter of the manual: its name, its natives, the options of its functions.
pub struct Chapter {
    pub name: &'static str,
    /// What opens it: the first sentence stands in `help()`.
    pub about: &'static str,
    pub manifest: &'static ModuleManifest,
    pub options: &'static [OptionTable],
}

/// `chapter!(flow, "Rollouts of a flow.", "rollout" => RolloutOptions)`: the file `flow.rs` with its module `flow`.
macro_rules! chapter {
    ($name:ident, $about:expr $(, $function:literal => $options:ty)* $(,)?) => {
        Chapter {
            name: stringify!($name),
            about: $about,
            manifest: exported_manifest!($name::$name),
            options: &[$( ($function, <$options>::fields) ),*],
        }
    };
}

/// All chapters, in the order of the manual.
pub const CHAPTERS: &[Chapter] = &[
    chapter!(
        language,
        "Help, checks and timing, beside all of Rhai.\n\n\
        `x ?? y` is `y` where `x` is `()`. A closure that a variable holds is called by the variable's name, `f(x)`."
    ),
    chapter!(tensor, "Making tensors, their shape, indexing."),
    chapter!(storage, "Kinds of number, devices, tensor files."),
    chapter!(operator, "Arithmetic and comparison of tensors with tensors and numbers on either side."),
    chapter!(elementwise, "Functions of each number."),
    chapter!(reduction, "Sums, extremes, norms, softmax, the matrix product."),
    chapter!(array, "Arrays of numbers: extremes, sum, mean, pairs."),
    chapter!(random, "Seeded streams of random numbers."),
    chapter!(grad, "Derivatives of script functions."),
    chapter!(
        model,
        "Flow models, opened, asked, saved.",
        "flow" => model::FlowOptions,
        "save" => model::SaveOptions,
    ),
    chapter!(condition, "What a model is conditioned on: prompts, labels, named tensors."),
    chapter!(autoencoder, "Image codecs that are made and trained on their own.", "save" => model::SaveOptions),
    chapter!(
        adapter,
        "Low-rank adapters (LoRA): made, loaded, saved, made weaker or stronger, merged.",
        "lora" => adapter::LoraOptions,
        "load_lora" => adapter::LoadLoraOptions,
        "save_lora" => adapter::SaveLoraOptions,
    ),
    chapter!(
        flow,
        "Interpolant, time grids and rollouts; time runs from 0 (noise) to 1 (data).",
        "rollout" => flow::RolloutOptions,
    ),
    chapter!(
        sampler,
        "How a rollout steps: methods and noise.",
        "sde" => sampler::SdeOptions,
    ),
    chapter!(
        particle,
        "Particles drawn by weight, and the weight of a path under another flow.",
        "resample" => particle::ResampleOptions,
        "girsanov" => particle::GirsanovOptions,
    ),
    chapter!(
        method,
        "What an update starts from, the update of any method, what it found, what a run keeps of a method.",
        "batch" => method::BatchOptions,
    ),
    chapter!(
        update,
        "The methods: adjoint matching, DRaFT, ReFL.",
        "adjoint_matching" => update::UpdateOptions,
        "draft" => update::DraftOptions,
        "refl" => update::ReflOptions,
    ),
    chapter!(
        ranks,
        "Batches in parts, by one process or by several that work together.",
        "share" => ranks::ShareOptions,
    ),
    chapter!(
        align,
        "The parts of adjoint matching: costs, the lean adjoint, losses; control intensity.",
        "lean_adjoint" => align::AdjointOptions,
        "matching_loss" => align::LossOptions,
        "fenchel_young_loss" => align::LossOptions,
    ),
    chapter!(
        penalty,
        "Control penalties and the controls they ask for.",
        "control_target" => penalty::TargetOptions,
    ),
    chapter!(choice, "How an update goes about it, as values.", "adaptive" => choice::AdaptiveOptions),
    chapter!(
        policy,
        "Methods that ask a reward for its value alone: policy gradients, losses at noised ends, preferences; and neighbours that follow its gradient.",
        "grpo" => policy::GrpoOptions,
        "forward_process" => policy::ForwardOptions,
        "leap_align" => policy::LeapOptions,
        "vgg_flow" => policy::VggOptions,
        "explore" => policy::ExploreOptions,
        "advantages" => policy::AdvantageOptions,
        "transition" => policy::TransitionOptions,
        "noised" => policy::NoisedOptions,
    ),
    chapter!(
        policy_choice,
        "What those methods differ in, as values.",
        "group_std" => policy_choice::StdOptions,
        "window" => policy_choice::WindowOptions,
        "random_window" => policy_choice::RandomWindowOptions,
        "ramp" => policy_choice::RampOptions,
        "by_advantage" => policy_choice::ByAdvantageOptions,
    ),
    chapter!(
        optim,
        "Optimizers and learning-rate schedules.",
        "adamw" => optim::OptimizerOptions,
        "step" => optim::StepOptions,
    ),
    chapter!(
        reward,
        "Judges of images, their arithmetic, and what trains them.",
        "reward" => reward::RewardOptions,
        "clip_reward" => reward::ClipOptions,
        "image_reward" => reward::ImageRewardOptions,
    ),
    chapter!(judge, "Rewards that a server or a program gives.", "judge" => judge::JudgeOptions),
    chapter!(data, "Prompt sets, the shapes world and its oracle."),
    chapter!(
        image,
        "Image files and grids.",
        "image_grid" => image::GridOptions,
        "compare_grid" => image::GridOptions,
    ),
    chapter!(
        plot,
        "Pictures of numbers.",
        "plot" => plot::PlotOptions,
        "scatter" => plot::PlotOptions,
        "histogram" => plot::HistogramOptions,
        "heatmap" => plot::HeatmapOptions,
    ),
    chapter!(
        run,
        "The run directory: settings, steps, log, images, checkpoints.",
        "start_run" => run::StartOptions,
        "checkpoint" => run::CheckpointOptions,
    ),
    chapter!(
        result,
        "The table at a run's end, and what earlier runs left.",
        "finish" => result::TableOptions,
        "results_table" => result::TableOptions,
        "save_results" => result::TableOptions,
    ),
    chapter!(
        metric,
        "Distances of images, diversity, sets of features against each other, means with standard errors.",
        "lpips" => metric::LpipsOptions,
        "lpips_net" => metric::LpipsNetOptions,
        "ssim" => metric::SsimOptions,
        "ms_ssim" => metric::SsimOptions,
        "ms_ssim_distance" => metric::SsimOptions,
    ),
    chapter!(text, "Text encoders outside a flow.", "random_text_encoder" => text::EncoderOptions),
];

/// Rhai's own functions and the natives of every chapter: made once, they serve any number of hosts.
#[derive(Clone)]
pub struct Natives([rhai::Shared<rhai::Module>; 2]);

impl Default for Natives {
    fn default() -> Self {
        let manifests: Vec<_> = CHAPTERS.iter().map(|c| c.manifest).collect();
        let mut natives = guard::widen(&manifests);
        language::arithmetic(&mut natives);
        language::texts(&mut natives);
        compare::register(&mut natives);
        run::iterators(&mut natives);
        source::calls(&mut natives);
        sort::register(&mut natives);
        Self([StandardPackage::new().as_shared_module(), natives.into()])
    }
}

/// An engine with every chapter, and the session its natives see.
pub struct Host {
    engine: Arc<Engine>,
    session: Arc<Session>,
    /// Constructors that the program registered.
    registered: BTreeSet<String>,
}

impl Host {
    pub fn new(session: Session) -> Self {
        Self::with(&Natives::default(), session)
    }

    /// A host for one more session, without making the natives again.
    pub fn with(natives: &Natives, session: Session) -> Self {
        let session = Arc::new(session);
        let mut engine = Engine::new_raw();
        engine.set_module_resolver(import::Imports::default());
        limit(&mut engine);
        engine.set_default_tag(Dynamic::from(session.clone()));
        for module in natives.0.iter().cloned() {
            engine.register_global_module(module);
        }
        connect(&mut engine, &session);
        Self { engine: Arc::new(engine), session, registered: BTreeSet::new() }
    }

    pub fn engine(&self) -> &Engine {
        self.session.attach(&self.engine);
        &self.engine
    }

    /// Gives scripts a method of the program's own: `name(#{ .. })` makes it, `method.update(policy, base, batch)` runs it, and the
    /// tables, experiments and checkpoints of `stdlib` take it like the built-in ones. Before the first script, under a free name.
    pub fn register_method<M: Method + 'static>(
        &mut self,
        name: &str,
        make: impl Fn(&mut Given) -> Result<M> + Send + Sync + 'static,
    ) -> Result<()> {
        let native = CHAPTERS.iter().flat_map(|c| c.manifest.functions()).any(|f| f.name() == name);
        if native || self.registered.contains(name) {
            bail!(Value, "register_method: the name must be free, got `{name}`, which is taken");
        }
        let Some(engine) = Arc::get_mut(&mut self.engine) else {
            bail!(
                Value,
                "register_method: `{name}` must be registered before the first script, got a host that has begun"
            );
        };
        self.registered.insert(name.into());
        method::register(
            engine,
            name,
            Arc::new(move |given: &mut Given| Ok(Arc::new(make(given)?) as Arc<dyn Method>)),
        );
        Ok(())
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Parses a script; `name` stands in errors.
    pub fn compile(&self, name: &str, text: &str) -> Result<AST> {
        self.compile_in(&Scope::new(), name, text)
    }

    /// Parses a script that sees the variables of a scope.
    pub fn compile_in(&self, scope: &Scope, name: &str, text: &str) -> Result<AST> {
        self.session.add_source(name, text);
        self.parse(&AST::empty(), scope, name, text)
    }

    /// Parses a text whose source is known under that name, and which will run beside the functions of a library.
    pub fn parse(&self, library: &AST, scope: &Scope, name: &str, text: &str) -> Result<AST> {
        let variables = scope.iter_raw().map(|(variable, ..)| variable).collect();
        let functions = self.session.functions_in(library);
        let around = source::Around { variables, functions, suffix: source::suffix(0), check: false };
        let read = self.session.read(name, text, &around);
        let parsed = self.engine().compile_with_scope(scope, read);
        let mut ast = parsed.map_err(|e| fault::from_script(e.into(), name, &self.session))?;
        ast.set_source(name);
        self.session.add_functions(&ast);
        Ok(ast)
    }

    /// Runs a parsed script, in the host's context, and returns its last value.
    pub fn run_in(&self, scope: &mut Scope, name: &str, ast: &AST) -> Result<Dynamic> {
        let result = self.session.context().enter(|| self.engine().eval_ast_with_scope::<Dynamic>(scope, ast));
        result.map_err(|e| fault::from_script(*e, name, &self.session))
    }

    /// Runs a script and returns its last value.
    pub fn run(&self, name: &str, text: &str) -> Result<Dynamic> {
        let ast = self.compile(name, text)?;
        self.run_in(&mut Scope::new(), name, &ast)
    }

    /// Runs a script file.
    pub fn run_file(&self, path: &std::path::Path) -> Result<Dynamic> {
        let name = path.display().to_string();
        let text = file::read_text(path)
            .map_err(|e| Error::new(Kind::File, format!("{name}: a script to read is needed, got \"{e}\"")))?;
        self.run(&name, &text)
    }
}

/// Bounds on what a script may use, and strictness that finds typing mistakes early.
fn limit(engine: &mut Engine) {
    engine.set_optimization_level(OptimizationLevel::None);
    engine.set_fast_operators(false); // so that `/` on integers is ours
    engine.set_strict_variables(true);
    engine.set_fail_on_invalid_map_property(true);
    engine.set_max_call_levels(64);
    engine.set_max_expr_depths(128, 64);
    engine.set_max_strings_interned(256);
    engine.set_max_string_size(language::MOST_TEXT);
    engine.set_max_array_size(tensor::MOST_ITEMS);
    engine.set_max_map_size(1 << 14); // its check walks the map each time it grows
    engine.disable_symbol("eval");
    engine.disable_symbol("curry"); // what it holds is counted nowhere, and copied with the closure
}

/// An engine that reads scripts as deep as they may be, without running them.
fn reader() -> Engine {
    let mut engine = Engine::new();
    engine.set_max_expr_depths(128, 64);
    engine
}

/// Output, interrupt and limits.
fn connect(engine: &mut Engine, session: &Arc<Session>) {
    let printer = session.clone();
    engine.on_print(move |text| printer.print(text));
    let printer = session.clone();
    engine.on_debug(move |text, _, _| printer.print(text));
    let watched = session.clone();
    let alone = move || watched.check().and_then(|()| watched.context().interrupt.work_alone());
    engine.on_progress(move |_| alone().err().map(Dynamic::from));
    #[allow(deprecated)] // not deprecated but marked volatile; rhai is pinned
    engine.on_var(|name, index, context| nesting::check(name, index, context.scope()).map(|()| None));
}

/// `amscript::flow::Grid` as `Grid`.
pub(crate) fn short_type(name: &str) -> &str {
    let head = name.split('<').next().unwrap_or(name);
    head.rsplit("::").next().unwrap_or(head)
}
