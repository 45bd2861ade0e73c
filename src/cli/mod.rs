//! Commands: parse, call, print one error, exit code. Nothing here computes.
//!
//! Decisions:
//! * **A closed or full standard output ends no script** (`output.rs`); nor do SIGTERM and SIGHUP, which end a run after its step, as Ctrl-C does.
//! * **The script's thread is one of rayon's own** (`run.rs`), so that an op wakes nobody who is awake.

pub mod check;
pub mod doc;
pub mod editor;
pub mod fault;
mod jobs;
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

use amscript_base::error::Error;
use amscript_base::terminal;
use amscript_base::text::visible;
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
#[derive(Args)]
pub struct SessionArgs {
    /// Replace one of a script's settings: a number, a value such as `full()`, or text.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Replace the `seed` setting of scripts; adapters are drawn from it too.
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
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
    /// Write one HTML page of one or several runs: results, curves, images, control, settings, provenance.
    Report(ReportArgs),
    /// Write the reference manual to docs/ and what editors need to docs/ and editors/.
    Doc {
        /// Compare with what is there instead, and fail when it is old.
        #[arg(long)]
        check: bool,
    },
}

/// What to run, and what to change about it.
#[derive(Args)]
pub struct RunArgs {
    /// The script, or a recipe in the binary; `-` reads it from standard input.
    pub script: PathBuf,
    #[command(flatten)]
    pub session: SessionArgs,
    /// Print what the run would take in weights, work and memory, from the headers of the weights alone, and end.
    #[arg(long)]
    pub plan: bool,
    /// Print where time and memory went, by phase and by op, when the run has ended.
    #[arg(long)]
    pub profile: bool,
    /// Run the rows of a table in so many processes of this machine at once.
    #[arg(long, value_name = "N", conflicts_with_all = ["plan", "profile"])]
    pub jobs: Option<usize>,
    /// Be one of these processes.
    #[arg(long, hide = true)]
    pub job: Option<usize>,
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

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().into(), value.trim().into())),
        _ => Err(format!("expected KEY=VALUE, got \"{text}\"")),
    }
}

/// Runs one command line; a first argument that is no command is a script.
///
/// # Errors
/// What the command did not report itself: an [`Error`], or that standard output cannot be written; for [`fail`].
pub fn main(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let named = |name: &str| name == "help" || Cli::command().find_subcommand(name).is_some();
    let is_script = |a: &OsString| a.to_str().is_none_or(|a| a == "-" || !(a.starts_with('-') || named(a)));
    if arguments.get(1).is_some_and(is_script) {
        arguments.insert(1, "run".into());
    }
    let cli = Cli::parse_from(arguments);
    match cli.command {
        None => return repl::command(cli.prompt),
        Some(Command::Run(arguments)) => return run::run(arguments),
        Some(Command::Check(arguments)) => return check::command(&arguments),
        Some(Command::Recipes { name, settings }) => recipe::list(name.as_deref(), settings),
        Some(Command::New(arguments)) => recipe::start(&arguments),
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
