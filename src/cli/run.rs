//! Runs one script: check everything first, then run it on a thread with a large stack, then report.

use super::recipe::{self, Source};
use super::{RunArgs, SessionArgs, fault};
use crate::bail;
use crate::error::{Error, Kind, Result, show_warnings_with};
use crate::profile;
use crate::run::progress::above_bar;
use crate::screen::Screen;
use crate::script::session::{Printer, Request};
use crate::script::{Host, Session};
use crate::tensor::{Device, interrupt, place};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The backward pass walks its graph by recursion; pages of the stack are only taken when touched.
const STACK: usize = 1 << 30;

/// `amscript run`.
pub fn run(arguments: RunArgs) -> ExitCode {
    show_warnings_with(|line| above_bar(|| eprintln!("{line}")));
    let prepared = match prepare(&arguments) {
        Ok(prepared) => prepared,
        Err(error) => return fail(&error, None),
    };
    let (mut request, name, text) = prepared;
    // what a planned script writes is thrown away
    let draft = match arguments.plan.then(tempfile::tempdir).transpose() {
        Ok(draft) => draft,
        Err(e) => return fail(&Error::new(Kind::File, format!("--plan: no temporary folder: {e}")), None),
    };
    request.out = draft.as_ref().map(|draft| draft.path().into()).or(request.out);
    let printer: Printer = match arguments.plan {
        true => Box::new(|_| ()),
        false => Box::new(|line| above_bar(|| println!("{line}"))),
    };
    if arguments.profile {
        profile::start();
    }
    let session = Session::new(request, printer);
    let code = on_large_stack(move || execute(session, &name, &text));
    if let Some(found) = profile::finish() {
        eprintln!("\n{}", super::profile::text(&found));
    }
    code
}

/// Runs on a thread with room for the recursion of backward passes. It is one of those that share work: handing all of it to
/// others would cost two wake-ups for each op.
pub fn on_large_stack(work: impl FnOnce() -> ExitCode + Send + 'static) -> ExitCode {
    let share_and_work = || {
        rayon::ThreadPoolBuilder::new().use_current_thread().build_global().ok();
        work()
    };
    let worker = std::thread::Builder::new().stack_size(STACK).spawn(share_and_work);
    match worker.map(|w| w.join()) {
        Ok(Ok(code)) => code,
        Ok(Err(_)) => ExitCode::from(101), // the panic has printed itself
        Err(e) => fail(&Error::new(Kind::Internal, format!("run: no thread to run the script on: {e}")), None),
    }
}

fn execute(session: Session, name: &str, text: &str) -> ExitCode {
    let host = Host::new(session);
    heed_ctrl_c(host.session());
    let outcome = host.run(name, text).and_then(|_| all_used(host.session()));
    let planned = host.session().planner().map(|planner| planner.plan());
    match (outcome, planned) {
        (outcome, Some(plan)) if outcome.is_ok() || plan.update.is_some() => {
            println!("{}", super::plan::text(&plan));
            ExitCode::SUCCESS
        }
        (Ok(_), _) => ExitCode::SUCCESS,
        (Err(error), _) => fail(&error, Some(host.session())),
    }
}

fn fail(error: &Error, session: Option<&Arc<Session>>) -> ExitCode {
    eprint!("{}", fault::render(error, |name| session.and_then(|s| s.source(name))));
    if let Some(step) = session.and_then(|s| s.step()).filter(|_| error.kind != Kind::Interrupt) {
        eprintln!("the last step begun was step {step}");
    }
    if error.kind == Kind::Interrupt { ExitCode::from(130) } else { ExitCode::FAILURE }
}

/// Everything that can be known to be wrong before the script runs.
fn prepare(arguments: &RunArgs) -> Result<(Request, String, String)> {
    let Source { path: script, name, text } = recipe::read(&arguments.script)?;
    if let Some(out) = arguments.session.out.as_ref().filter(|_| !arguments.plan) {
        try_writing(out)?;
    }
    let mut request = request(&arguments.session, arguments.plan)?;
    request.script = script;
    Ok((request, name, text))
}

/// What the command line decided, for a script that is run, planned or typed.
pub fn request(arguments: &SessionArgs, plan: bool) -> Result<Request> {
    Ok(Request {
        script: None,
        overrides: arguments.set.clone(),
        seed: arguments.seed,
        device: if plan { Device::Cpu } else { device(arguments.device.as_deref())? },
        out: arguments.out.clone(),
        models: models_folder(arguments.models.as_deref())?,
        deadline: None,
        screen: Screen::detect()?,
        plan: plan.then(|| wanted(arguments.device.as_deref()).is_none_or(|name| name == "cpu")),
    })
}

/// Ctrl-C reaches the session, and every op once the session will not wait; without a handler it still ends the process.
pub fn heed_ctrl_c(session: &Arc<Session>) {
    let session = session.clone();
    let handler = move || {
        session.interrupt();
        interrupt::wish(session.check().is_err());
    };
    ctrlc::set_handler(handler).ok();
}

/// `--models`, if it is a folder.
fn models_folder(argument: Option<&Path>) -> Result<Option<PathBuf>> {
    match argument {
        Some(folder) if !folder.is_dir() => bail!(Missing, "--models: expected a folder, got \"{}\"", folder.display()),
        folder => Ok(folder.map(PathBuf::from)),
    }
}

/// Makes the folder and writes a file in it, so that a run does not end in a surprise.
fn try_writing(folder: &Path) -> Result<()> {
    let attempt = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    match attempt {
        Ok(_) => Ok(()),
        Err(e) => bail!(File, "--out: cannot write in \"{}\": {e}", folder.display()),
    }
}

/// `--device`, else `AMSCRIPT_DEVICE`.
fn wanted(argument: Option<&str>) -> Option<String> {
    argument.map(String::from).or_else(|| std::env::var("AMSCRIPT_DEVICE").ok()).filter(|name| !name.is_empty())
}

/// The device asked for, else the processor.
fn device(argument: Option<&str>) -> Result<Device> {
    match argument {
        Some(name) => place::named(name).map_err(|e| e.within("--device")),
        None => place::from_environment().map_err(|e| e.within("AMSCRIPT_DEVICE")),
    }
}

/// `--set` on a script that never asks for settings would be lost without a word.
fn all_used(session: &Session) -> Result<()> {
    match session.request().overrides.first() {
        Some((key, _)) if session.settings().is_none() => {
            bail!(Option, "--set {key}: the script must declare its settings with `settings(..)`, got none")
        }
        _ => Ok(()),
    }
}
