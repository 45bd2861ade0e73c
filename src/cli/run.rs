//! Runs one script: check everything first, then run it on a thread with a large stack, then report.

use super::output::{self, Lines};
use super::recipe::{self, Source};
use super::{RunArgs, ScriptArgs, SessionArgs, fault, jobs, lock, ranks};
use crate::script::header::Header;
use crate::script::session::{Printer, Request};
use crate::script::{Host, Session};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::group::Group;
use amscript_base::permissions::resolved;
use amscript_base::terminal::note;
use amscript_base::{file, memory};
use amscript_nn::digest;
use amscript_run::screen::Screen;
use amscript_tensor::{Device, place};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rhai walks a script by recursion, 64 calls of expressions 64 deep at most, and drops values that hold each other so, some 350 bytes a
/// level: reserved are as many levels as a script makes before it is taken for one that goes round for ever, unless addresses are bounded.
const STACK: usize = 1 << 30;
const SMALL_STACK: usize = 64 << 20;

/// Operations of a script without a call of a native, some seconds, before it is taken for one that goes round for ever.
const MAX_ALONE: usize = 10_000_000;

/// Bytes that a script's files may take, beside ten times what it has read.
pub const MAX_DISK: u64 = 1 << 30;

/// What a call that was twice asked to end may still take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Signals closer together are one: `timeout` and schedulers send theirs to a process and to its group.
const ECHO: Duration = Duration::from_millis(100);

/// `amscript run`.
pub fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    if let (Some(jobs), None) = (arguments.jobs, arguments.job)
        && let Some(code) = jobs::run(&arguments, jobs)?
    {
        return Ok(code);
    }
    let group = if arguments.plan { None } else { ranks::join()? };
    let code = alone_or_in(group.clone(), arguments);
    if let Some(group) = group {
        if let Err(error) = &code {
            note(&group.prefix());
            super::fail(error);
        }
        let well = code.as_ref().is_ok_and(|code| *code == ExitCode::SUCCESS);
        group.leave(well);
        return Ok(code.unwrap_or(ExitCode::FAILURE));
    }
    code
}

fn alone_or_in(group: Option<Arc<dyn Group>>, arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let (mut request, source) = prepare(&arguments.script, arguments.plan, group.as_deref())?;
    request.job = arguments.job.is_some();
    let frozen = arguments.frozen.then(|| lock::frozen(&source, &request)).transpose()?;
    // what a planned script writes is thrown away
    let draft = arguments.plan.then(tempfile::tempdir).transpose();
    let draft = draft.map_err(|e| Error::new(Kind::File, format!("--plan: no temporary folder: {e}")))?;
    request.out = draft.as_ref().map(|draft| draft.path().into()).or(request.out);
    let lines = Arc::new(Lines::default());
    let printer: Printer = match arguments.plan {
        true => Box::new(|_| ()),
        false if group.as_ref().is_some_and(|group| !group.speaks()) => Box::new(|_| ()),
        false => lines.printer(),
    };
    let session = Session::new(request, printer);
    let context = session.context().clone();
    if let Some(files) = frozen {
        let own = std::path::absolute(session.run_folder());
        let own = own.map_err(|e| Error::new(Kind::File, format!("--frozen: no folder of the run: {e}")))?;
        context.inputs.keep_to(files, resolved(&own, true));
    }
    context.made_from("amscript", env!("CARGO_PKG_VERSION"));
    context.made_from("recipe", &digest::hash(source.text.as_bytes()));
    if let Some(lock) = lock::hash(&source) {
        context.made_from("lock", &lock);
    }
    group.into_iter().for_each(|group| drop(context.group.set(group)));
    if arguments.profile {
        session.measure();
    }
    let code = on_large_stack(move || {
        let code = execute(session, &source.name, &source.text)?;
        if let Some(found) = context.profile.finish() {
            note(&format!("\n{}\n\n{}\n", super::profile::text(&found), super::profile::machine()?));
        }
        Ok(code)
    })?;
    if code == ExitCode::SUCCESS {
        lines.end()?;
    }
    Ok(code)
}

/// Runs on a thread with room for the recursion of backward passes. It is one of those that share work: handing all of it to
/// others would cost two wake-ups for each op.
pub fn on_large_stack(work: impl FnOnce() -> anyhow::Result<ExitCode> + Send + 'static) -> anyhow::Result<ExitCode> {
    let share_and_work = || {
        rayon::ThreadPoolBuilder::new().use_current_thread().build_global().ok();
        work()
    };
    let on = |size| std::thread::Builder::new().stack_size(size);
    let large = memory::address_space().is_none() && on(STACK).spawn(|| ()).is_ok();
    match on(if large { STACK } else { SMALL_STACK }).spawn(share_and_work).map(|w| w.join()) {
        Ok(Ok(code)) => code,
        Ok(Err(_)) => Ok(ExitCode::from(101)), // the panic has printed itself
        Err(e) => Err(Error::new(Kind::Internal, format!("run: no thread to run the script on: {e}")).into()),
    }
}

fn execute(session: Session, name: &str, text: &str) -> anyhow::Result<ExitCode> {
    let host = Host::new(session);
    heed_signals(host.session(), Arc::default());
    let profile = &host.session().context().profile;
    if host.session().planner().is_some() {
        profile.start(None);
    }
    let outcome = host.run(name, text).and_then(|_| all_used(host.session()));
    let planned = host.session().planner().map(|planner| {
        planner.ends();
        let mut plan = planner.plan();
        plan.phases = profile.finish().unwrap_or_default().phases;
        plan
    });
    match (outcome, planned) {
        (outcome, Some(plan)) if outcome.is_ok() || plan.update.is_some() => {
            output::line(&super::plan::text(&plan))?;
            Ok(ExitCode::SUCCESS)
        }
        (Ok(_), _) => Ok(ExitCode::SUCCESS),
        (Err(error), _) => Ok(fail(&error, host.session())),
    }
}

fn fail(error: &Error, session: &Session) -> ExitCode {
    let (group, interrupt) = (session.context().group(), &session.context().interrupt);
    let code = fault::code(error, interrupt.requeues());
    if group.is_said(error) {
        return code;
    }
    note(&group.prefix());
    fault::report(error, |name| session.source(name));
    if interrupt.late() {
        note("the time of --max-time is up\n");
    }
    if let Some(step) = session.step().filter(|_| error.kind != Kind::Interrupt) {
        note(&format!("the last step begun was step {step}\n"));
    }
    code
}

/// Everything that can be known to be wrong before the script runs.
pub fn prepare(arguments: &ScriptArgs, plan: bool, group: Option<&dyn Group>) -> Result<(Request, Source)> {
    let source = recipe::read(&arguments.script)?;
    let allow = arguments.allow.rights();
    Header::read(&source.text)?.allowed(&allow)?;
    if let Some(out) = arguments.session.out.as_ref().filter(|_| !plan) {
        try_writing(out)?;
    }
    let mut request = request(&arguments.session, plan, group)?;
    (request.script, request.allow) = (source.path.clone(), allow);
    request.max_disk = request.max_disk.or(Some(MAX_DISK));
    Ok((request, source))
}

/// What the command line decided, for a script that is run, planned or typed.
pub fn request(arguments: &SessionArgs, plan: bool, group: Option<&dyn Group>) -> Result<Request> {
    if let Some(bytes) = arguments.max_memory {
        memory::set_bound(bytes);
    }
    let out = arguments.out.as_deref().unwrap_or(Path::new("."));
    Ok(Request {
        overrides: arguments.set.clone(),
        seed: arguments.seed,
        device: if plan { Device::Cpu } else { device(arguments.device.as_deref(), group)? },
        out: arguments.out.clone(),
        resume_anyway: arguments.resume_anyway,
        job: false,
        models: models_folder(arguments.models.as_deref())?,
        min_free: arguments.min_free.map(|bytes| bytes as u64).or_else(|| Some(file::free(out)? / 10)),
        max_disk: arguments.max_disk.map(|bytes| bytes as u64),
        max_time: arguments.max_time,
        max_alone: arguments.max_time.is_none().then_some(MAX_ALONE),
        screen: Screen::detect()?,
        plan: plan.then(|| wanted(arguments.device.as_deref()).is_none_or(|name| name == "cpu")),
        ..Request::default()
    })
}

/// Ctrl-C, SIGTERM and SIGHUP reach the session, or end the process while it is waiting for input; without a handler they still end it.
/// Where a call does not hear the second of them, nor the end of its time, the process ends.
pub fn heed_signals(session: &Arc<Session>, waiting: Arc<AtomicBool>) {
    let (context, user) = (session.context().clone(), Arc::new(AtomicBool::new(false)));
    let (asked, watching) = (user.clone(), session.clone());
    let spent = Arc::new(AtomicBool::new(false));
    let processor = spent.clone();
    std::thread::spawn(move || {
        let (mut heard, mut told) = (Instant::now(), false);
        while heard.elapsed() < PATIENCE {
            std::thread::sleep(PATIENCE / 10);
            // the time of the processor is up anew each second
            if asked.swap(false, Ordering::Relaxed)
                || processor.load(Ordering::Relaxed) && !std::mem::replace(&mut told, true)
            {
                watching.interrupt();
            }
            if !context.interrupt.insisted() {
                heard = Instant::now();
            }
        }
        note("error: what runs does not end by itself, so the process does\n");
        context.programs.end();
        std::process::exit(130);
    });
    let requeue = session.context().interrupt.requeue.clone();
    let (session, mut last) = (session.clone(), None::<Instant>);
    let handler = move || {
        let echo = last.replace(Instant::now()).is_some_and(|last| last.elapsed() < ECHO);
        match waiting.load(Ordering::Relaxed) {
            true => {
                session.context().programs.end();
                std::process::exit(130)
            }
            false if !echo => session.interrupt(),
            false => {}
        }
    };
    let hangs_up = hangup_is_heeded();
    ctrlc::set_handler(handler).ok();
    heed_schedulers(&requeue, [&user, &spent]);
    if !hangs_up {
        ignore_hangup();
    }
}

/// Notes that a scheduler asked, which starts again what it ends: by SIGTERM, whose handler is called before, or by SIGUSR1, which SLURM
/// sends ahead where it is told to; or by SIGXCPU, when a limit on the processor's time is reached. A limit on the size of files is an
/// error of the write.
#[cfg(unix)]
fn heed_schedulers(requeue: &Arc<AtomicBool>, [user, spent]: [&Arc<AtomicBool>; 2]) {
    use signal_hook::consts::{SIGTERM, SIGUSR1, SIGXCPU};
    let of_each = [(SIGTERM, requeue), (SIGUSR1, requeue), (SIGUSR1, user), (SIGXCPU, requeue), (SIGXCPU, spent)];
    for (signal, flag) in of_each {
        signal_hook::flag::register(signal, flag.clone()).ok();
    }
    // SAFETY: sets the action of one signal to one that calls nothing.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(not(unix))]
fn heed_schedulers(_: &Arc<AtomicBool>, _: [&Arc<AtomicBool>; 2]) {}

/// Whether a closed terminal is to end the process: not under `nohup`, which starts it with SIGHUP ignored.
#[cfg(unix)]
fn hangup_is_heeded() -> bool {
    // SAFETY: asks for the present action alone; a `sigaction` of zeros is a valid one.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut now) != 0 || now.sa_sigaction != libc::SIG_IGN
    }
}

#[cfg(unix)]
fn ignore_hangup() {
    // SAFETY: sets the action of one signal to one that calls nothing.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
}

#[cfg(not(unix))]
fn hangup_is_heeded() -> bool {
    true
}

#[cfg(not(unix))]
fn ignore_hangup() {}

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
fn device(argument: Option<&str>, group: Option<&dyn Group>) -> Result<Device> {
    if let (Some("cuda"), Some(group)) = (wanted(argument).as_deref(), group) {
        return place::named(&format!("cuda:{}", group.local())).map_err(|e| {
            e.within("--device").hint("start no more processes on a machine than it has cards, or name the card")
        });
    }
    match argument {
        Some(name) => place::named(name).map_err(|e| e.within("--device")),
        None => place::from_environment().map_err(|e| e.within("AMSCRIPT_DEVICE")),
    }
}

/// `--set` on a script that never asks for settings would be lost without a word, and so would `--seed` where nothing is drawn from it.
fn all_used(session: &Session) -> Result<()> {
    if session.request().seed.is_some() && !session.is_seeded() {
        bail!(
            Option, "--seed: the script must have a setting `seed`, or adapters that are drawn from it, got neither";
            hint: "leave it out, or write `settings(#{{ seed: 0, .. }})`"
        );
    }
    match session.request().overrides.first() {
        Some((key, _)) if session.settings().is_none() => {
            bail!(Option, "--set {key}: the script must declare its settings with `settings(..)`, got none")
        }
        _ => Ok(()),
    }
}
