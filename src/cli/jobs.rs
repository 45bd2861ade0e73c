//! `--jobs N`: the rows of a table or sweep in so many processes of this machine. Each runs the script and takes the runs that no other has;
//! when all are done, the script runs here and finds them done.

use super::{RunArgs, fault, output};
use amscript_base::error::{Error, Kind, Result};
use amscript_base::terminal::note;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What this process was asked.
#[derive(Default)]
struct Asked {
    to_end: Arc<AtomicBool>,
    /// By a scheduler, which starts it again.
    to_make_room: Arc<AtomicBool>,
}

/// Runs the script in as many processes; an error where one of them failed, the exit code where they were asked to end.
pub fn run(arguments: &RunArgs, jobs: usize) -> anyhow::Result<Option<ExitCode>> {
    if jobs == 0 {
        return Err(Error::new(Kind::Option, "--jobs: there must be at least 1 job, got 0").into());
    }
    if arguments.script.script.as_os_str() == "-" {
        return Err(
            Error::new(Kind::Option, "--jobs: the script must be a file or a recipe, got standard input").into()
        );
    }
    let (asked, lines) = (Asked::default(), Arc::new(output::Lines::default()));
    asked.listen();
    let mut running = (0..jobs).map(|job| start(job, jobs, &lines)).collect::<Result<Vec<_>>>()?;
    let (mut failed, mut told) = (0, false);
    while !running.is_empty() {
        std::thread::sleep(Duration::from_millis(20));
        if asked.to_end.load(Ordering::Relaxed) && !std::mem::replace(&mut told, true) {
            running.iter().for_each(end);
        }
        running.retain_mut(|child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => false,
            _ => {
                failed += 1;
                false
            }
        });
    }
    match (told, failed) {
        (false, 0) => Ok(None),
        (true, _) => {
            let error = Error::new(Kind::Interrupt, "interrupted: the same command goes on");
            fault::report(&error, |_| None);
            Ok(Some(fault::code(&error, asked.to_make_room.load(Ordering::Relaxed))))
        }
        (false, failed) => Err(Error::new(Kind::Value, format!("--jobs: {failed} of {jobs} jobs failed")).into()),
    }
}

/// One more of this process, with its share of the processor, whose lines come with its number.
fn start(job: usize, jobs: usize, lines: &Arc<output::Lines>) -> Result<Child> {
    let refused = |e: std::io::Error| Error::new(Kind::Internal, format!("--jobs: no process can be started: {e}"));
    let mut command = Command::new(std::env::current_exe().map_err(refused)?);
    command.args(std::env::args_os().skip(1)).args(["--job", &job.to_string()]);
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("RAYON_NUM_THREADS", (cores / jobs).max(1).to_string());
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(refused)?;
    let lines = lines.clone();
    follow(child.stdout.take(), move |line| lines.line(&format!("job {job}: {line}")));
    follow(child.stderr.take(), move |line| note(&format!("job {job}: {line}\n")));
    Ok(child)
}

/// Passes the lines of a stream on until it ends.
fn follow(stream: Option<impl Read + Send + 'static>, pass: impl Fn(&str) + Send + 'static) {
    let Some(stream) = stream else { return };
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(std::io::Result::ok).for_each(|line| pass(&line));
    });
}

impl Asked {
    /// Notes signals, until the script that runs here afterwards does.
    #[cfg(unix)]
    fn listen(&self) {
        use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
        use signal_hook::flag::register;
        [SIGTERM, SIGUSR1].iter().for_each(|signal| drop(register(*signal, self.to_make_room.clone())));
        [SIGINT, SIGTERM, SIGUSR1].iter().for_each(|signal| drop(register(*signal, self.to_end.clone())));
    }

    #[cfg(not(unix))]
    fn listen(&self) {}
}

/// Asks a process to end after its step.
#[cfg(unix)]
fn end(child: &Child) {
    // SAFETY: sends a signal to a process that has not been waited for, whose number is its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}

#[cfg(not(unix))]
fn end(_: &Child) {}
