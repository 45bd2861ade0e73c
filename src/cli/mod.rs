//! Commands: parse, call, print one error, exit code. Nothing here computes.
//!
//! Decisions:
//! * **A closed or full standard output ends no script** (`output.rs`); nor do SIGTERM and SIGHUP, which end a run after its step, as Ctrl-C does.
//! * **The script's thread is one of rayon's own** (`run.rs`), so that an op wakes nobody who is awake.

pub mod check;
pub mod doc;
pub mod editor;
pub mod fault;
mod info;
mod jobs;
mod lock;
pub mod models;
#[cfg(feature = "mpi")]
mod mpi;
pub mod output;
pub mod page;
pub mod plan;
pub mod profile;
pub mod quantity;
pub mod ranks;
pub mod recipe;
pub mod repl;
pub mod report;
pub mod run;
mod setting;
mod verify;

use amscript_base::error::Error;
use amscript_base::memory;
use amscript_base::permissions::{Allowed, Rights};
use amscript_base::terminal;
use amscript_base::text::{is_hidden, visible};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Aligns flow-matching image models to rewards, by short scripts.
#[derive(Parser)]
#[command(
    name = "amscript",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "`amscript` alone opens a prompt; `amscript SCRIPT` is short for `amscript run SCRIPT`."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    prompt: PromptArgs,
}

/// A prompt, or code to run as if it were typed there.
#[derive(Args)]
pub struct PromptArgs {
    /// Run this code and print its value; may be given several times.
    #[arg(short, long, value_name = "CODE", allow_hyphen_values = true)]
    pub eval: Vec<String>,
    /// No greeting.
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub session: SessionArgs,
}

/// What a script or a prompt runs with.
#[derive(Args, Default)]
pub struct SessionArgs {
    /// Replace one of a script's settings: a number, a value such as `full()`, or text.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Replace the `seed` setting of scripts; adapters are drawn from it too.
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    pub seed: Option<u64>,
    /// Where tensors live: `cpu`, `cuda` or `cuda:N`; the default is AMSCRIPT_DEVICE or `cpu`.
    #[arg(long)]
    pub device: Option<String>,
    /// The folder that is written to.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with a run in that folder whatever differs from what it began with, and record it.
    #[arg(long)]
    pub resume_anyway: bool,
    /// The most memory that may be held, such as `8GB`; the default is nine tenths of what is free.
    #[arg(long, value_name = "SIZE", value_parser = quantity::read_bytes)]
    pub max_memory: Option<usize>,
    /// What stays free of the disk, such as `10GB`; the default is a tenth of what is free at the start.
    #[arg(long, value_name = "SIZE", value_parser = quantity::read_bytes)]
    pub min_free: Option<usize>,
    /// What the files of a script may take, such as `500GB`, beside ten times what it has read; the default is 1 GB, at a prompt no bound.
    #[arg(long, value_name = "SIZE", value_parser = quantity::read_bytes)]
    pub max_disk: Option<usize>,
    /// The longest that it may run, such as `90s` or `8h`; a run saves and ends after the step in which this has passed.
    #[arg(long, value_name = "TIME", value_parser = quantity::read_time)]
    pub max_time: Option<Duration>,
    /// A folder with models, searched first.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a script.
    Run(RunArgs),
    /// Say what is wrong with scripts, without running them.
    Check(CheckArgs),
    /// List the recipes in the binary, or print one.
    Recipes {
        /// The recipe to print, such as `flux_ode_am` or `tables/flux`.
        name: Option<String>,
        /// Print its settings with their defaults instead, those that it shares with others included.
        #[arg(long, requires = "name")]
        settings: bool,
    },
    /// Start a script of your own.
    New(NewArgs),
    /// List the models that are known, those that are found, and their files.
    Models(ModelsArgs),
    /// Say what a recipe asks for, without running it, or what a LoRA or an image was made from.
    Info {
        /// A script, a recipe in the binary, a `.safetensors` or a `.png` file.
        file: PathBuf,
    },
    /// Write the hashes of every model, reward, prompt file and module that a script reads.
    Lock(LockArgs),
    /// Run the first steps of a run again, and say whether they come out the same.
    Verify(VerifyArgs),
    /// Write one HTML page of one or several runs: results, curves, images, control, settings, provenance.
    Report(ReportArgs),
    /// Write the reference manual to docs/ and what editors need to docs/ and editors/.
    Doc {
        /// Compare with what is there instead, and fail when it is old.
        #[arg(long)]
        check: bool,
    },
}

/// A script, what to change about it, and what it may reach.
#[derive(Args)]
pub struct ScriptArgs {
    /// The script, or a recipe in the binary; `-` reads it from standard input.
    pub script: PathBuf,
    #[command(flatten)]
    pub session: SessionArgs,
    #[command(flatten)]
    pub allow: AllowArgs,
}

/// What to run.
#[derive(Args)]
pub struct RunArgs {
    /// Print what the run would take in weights, work and memory, from the headers of the weights alone, and end.
    #[arg(long)]
    pub plan: bool,
    /// Print where time and memory went, by phase and by op, when the run has ended.
    #[arg(long)]
    pub profile: bool,
    /// Refuse what differs from the script's lock, and to read what is not in it.
    #[arg(long)]
    pub frozen: bool,
    /// Run the rows of a table in so many processes of this machine at once.
    #[arg(long, value_name = "N", conflicts_with_all = ["plan", "profile"])]
    pub jobs: Option<usize>,
    /// Be one of these processes.
    #[arg(long, hide = true)]
    pub job: Option<usize>,
    // last, for the heading of its permissions goes on
    #[command(flatten)]
    pub script: ScriptArgs,
}

/// What to lock.
#[derive(Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub script: ScriptArgs,
}

/// Which run to repeat.
#[derive(Args)]
pub struct VerifyArgs {
    /// The folder of the run.
    pub run: PathBuf,
    /// The recipe's file, where it imports modules or reads files beside it; it must be that of the run.
    #[arg(long, value_name = "SCRIPT")]
    pub recipe: Option<PathBuf>,
    /// Steps to repeat.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub steps: u16,
    /// The largest relative difference of a number that is not a difference.
    #[arg(long, default_value_t = 1e-3)]
    pub tolerance: f64,
    /// Where tensors live: `cpu`, `cuda` or `cuda:N`; the default is AMSCRIPT_DEVICE or `cpu`.
    #[arg(long)]
    pub device: Option<String>,
    /// A folder with models, searched first.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    #[command(flatten)]
    pub allow: AllowArgs,
}

/// What a script may reach beside its own folder, the model folders and the run's folder.
#[derive(Args)]
#[command(next_help_heading = "Permissions")]
pub struct AllowArgs {
    /// Let the script read these files and folders too; all, where none are named.
    #[arg(long, value_name = "PATHS", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub allow_read: Option<Vec<PathBuf>>,
    /// Let it write these files and folders too.
    #[arg(long, value_name = "PATHS", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub allow_write: Option<Vec<PathBuf>>,
    /// Let it reach these hosts.
    #[arg(long, value_name = "HOSTS", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub allow_net: Option<Vec<String>>,
    /// Let it run these programs.
    #[arg(long, value_name = "PROGRAMS", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub allow_run: Option<Vec<String>>,
    /// Let it do all that you may.
    #[arg(long)]
    pub allow_all: bool,
}

impl AllowArgs {
    /// What the flags allow; one without names allows all of its kind.
    pub fn rights(&self) -> Rights<PathBuf> {
        fn allowed<T: Clone>(flag: &Option<Vec<T>>) -> Allowed<T> {
            match flag.as_deref() {
                None => Allowed::default(),
                Some([]) => Allowed::All,
                Some(those) => Allowed::These(those.to_vec()),
            }
        }
        if self.allow_all {
            return Rights::all();
        }
        let (read, write) = (allowed(&self.allow_read), allowed(&self.allow_write));
        Rights { read, write, net: allowed(&self.allow_net), run: allowed(&self.allow_run) }
    }
}

/// What to check.
#[derive(Args)]
pub struct CheckArgs {
    /// The scripts, or recipes in the binary; `-` reads one from standard input.
    #[arg(required = true, value_name = "SCRIPT")]
    pub scripts: Vec<PathBuf>,
    /// Print one JSON array, for editors.
    #[arg(long)]
    pub json: bool,
    /// First write the new names of what was renamed into the scripts.
    #[arg(long)]
    pub fix: bool,
}

/// What to start.
#[derive(Args)]
pub struct NewArgs {
    /// The new script: NAME.rhai is written.
    pub name: PathBuf,
    /// Start from a recipe that `amscript recipes` lists instead of the commented template.
    #[arg(long, value_name = "RECIPE")]
    pub from: Option<String>,
}

/// What to list.
#[derive(Args)]
pub struct ModelsArgs {
    /// One model, by name or path, with all of its files.
    pub name: Option<String>,
    /// A folder with models, searched first.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Hash large files too.
    #[arg(long)]
    pub hash: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which runs to report.
#[derive(Args)]
pub struct ReportArgs {
    /// Folders of runs, or folders with runs inside, such as the one that a table wrote.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page; the default is `report.html`, in the folder of a single run, else in the current one.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write event files for TensorBoard too, with scalars and images, in a folder for each run.
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
}

fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|seed| *seed <= i64::MAX as u64);
    seed.ok_or_else(|| format!("expected a whole number from 0 to {}", i64::MAX))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().into(), value.trim().into())),
        _ => Err(format!("expected KEY=VALUE, got \"{text}\"")),
    }
}

/// Runs one command line; a first argument that is no command is a script, and options may stand before it.
///
/// # Errors
/// What the command did not report itself: an [`Error`], or that standard output cannot be written; for [`fail`].
pub fn main(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let named = |name: &str| name == "help" || Cli::command().find_subcommand(name).is_some();
    let is_script = |a: &OsString| a.to_str().is_none_or(|a| a == "-" || !(a.starts_with('-') || named(a)));
    let options_first = |a: &OsString| a.to_str().is_some_and(|a| a.starts_with('-'));
    let mut run = arguments.clone();
    run.insert(run.len().min(1), "run".into());
    let first = arguments.get(1);
    if first.is_some_and(is_script) || first.is_some_and(options_first) && Cli::try_parse_from(&run).is_ok() {
        arguments = run;
    }
    let hidden = arguments.iter().any(|argument| argument.to_string_lossy().contains(is_hidden));
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) if hidden && e.use_stderr() => {
            terminal::note(&visible(&e.render().to_string()));
            return Ok(ExitCode::from(2));
        }
        Err(e) => e.exit(),
    };
    memory::free().into_iter().for_each(memory::set_bound);
    match cli.command {
        None => return repl::command(cli.prompt),
        Some(Command::Run(arguments)) => return run::run(arguments),
        Some(Command::Lock(arguments)) => return lock::command(arguments),
        Some(Command::Verify(arguments)) => return verify::command(arguments),
        Some(Command::Check(arguments)) => return check::command(&arguments),
        Some(Command::Recipes { name, settings }) => recipe::list(name.as_deref(), settings),
        Some(Command::New(arguments)) => recipe::start(&arguments),
        Some(Command::Info { file }) => info::command(&file),
        Some(Command::Models(arguments)) => models::command(&arguments),
        Some(Command::Report(arguments)) => report::command(&arguments),
        Some(Command::Doc { check }) => doc::command(check),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Prints an error and gives the exit code: 130 after an interrupt, 0 where only the reader of the output has gone.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    if output::unread(error) {
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<Error>() {
        Some(error) => fault::report(error, |_| None),
        None => {
            terminal::note(&visible(&format!("error: {error:#}\n")));
            ExitCode::FAILURE
        }
    }
}
