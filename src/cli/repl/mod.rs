//! `amscript` without a script: a prompt on models that stay loaded. Also `--eval CODE`, and code on standard input.

mod command;
pub mod complete;
pub mod editor;
mod history;
pub mod lexer;
mod record;
pub mod workspace;

use super::{PromptArgs, fault, run};
use crate::error::{Error, Kind, Result, show_warnings_with};
use crate::nn::source::Sources;
use crate::run::progress::above_bar;
use crate::screen::{Colours, Plot, Screen};
use crate::script::{Host, Session};
use crate::tensor::place;
use complete::Names;
use rhai::Dynamic;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use workspace::Workspace;

/// `amscript`, `amscript --eval CODE`, `.. | amscript`.
pub fn command(arguments: PromptArgs) -> ExitCode {
    show_warnings_with(|line| above_bar(|| eprintln!("{line}")));
    run::on_large_stack(move || match Prompt::new(&arguments) {
        Ok(prompt) => prompt.serve(&arguments),
        Err(error) => {
            eprint!("{}", fault::render(&error, |_| None));
            ExitCode::FAILURE
        }
    })
}

/// A workspace and how it speaks.
pub struct Prompt {
    pub workspace: Workspace,
    names: Arc<Mutex<Names>>,
}

impl Prompt {
    fn new(arguments: &PromptArgs) -> Result<Self> {
        let mut request = run::request(&arguments.session, false)?;
        request.script = Some("session.rhai".into()); // imports and files are looked up from here
        let session = Session::new(request, Box::new(|line| above_bar(|| println!("{line}"))));
        let host = Host::new(session);
        run::heed_ctrl_c(host.session());
        let names = Names { commands: command::COMMANDS.to_vec(), ..Names::default() };
        Ok(Self { workspace: Workspace::new(host), names: Arc::new(Mutex::new(names)) })
    }

    fn serve(mut self, arguments: &PromptArgs) -> ExitCode {
        if !arguments.eval.is_empty() {
            return self.answer_all(arguments.eval.iter().cloned().map(Ok));
        }
        let input = std::io::stdin();
        if !input.is_terminal() {
            return self.answer_all(inputs(input.lock().lines()));
        }
        match self.converse(arguments.quiet) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("error: the terminal cannot be read: {e}");
                ExitCode::FAILURE
            }
        }
    }

    /// Inputs one after the other, to the first that fails.
    fn answer_all(&mut self, inputs: impl Iterator<Item = std::io::Result<String>>) -> ExitCode {
        for input in inputs {
            let input = input.map_err(|e| Error::new(Kind::File, format!("standard input must be text, got \"{e}\"")));
            match input.and_then(|input| self.answer(&input)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.complain(&error);
                    return if error.kind == Kind::Interrupt { ExitCode::from(130) } else { ExitCode::FAILURE };
                }
            }
        }
        ExitCode::SUCCESS
    }

    /// Line by line with a person.
    fn converse(&mut self, quiet: bool) -> rustyline::Result<()> {
        let color = self.workspace.session().request().screen.colours != Colours::None;
        let mut editor = editor::editor(self.names.clone(), color)?;
        let file = history::place();
        if let Some(warning) = file.as_ref().and_then(|file| history::load(&mut editor, file)) {
            eprintln!("warning: {warning}");
        }
        if !quiet {
            let device = place::name(self.workspace.session().device());
            self.say(&format!(
                "amscript {} on {device}; help() is the manual, :help lists commands",
                env!("CARGO_PKG_VERSION")
            ));
        }
        self.know_models();
        loop {
            self.renew();
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    history::add(&mut editor, file.as_deref(), &line);
                    match self.answer(&line) {
                        Ok(true) => {}
                        Ok(false) => return Ok(()),
                        Err(error) => self.complain(&error),
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// One input: a command, a question or code. False ends the prompt.
    fn answer(&mut self, input: &str) -> Result<bool> {
        let line = input.trim();
        if line.starts_with(':') {
            return command::run(self, line);
        }
        match (line.strip_prefix("??"), line.strip_prefix('?'), self.asked(line)) {
            (Some(name), ..) => self.say(&command::source(self, name.trim())?),
            (_, Some(name), _) => self.say(&command::explain(self, name.trim())?),
            (_, _, Some(name)) => self.say(&command::explain(self, &name)?),
            _ => self.evaluate(input)?,
        }
        Ok(true)
    }

    /// `help(name)` without quotes, of a function: a name alone is no value.
    fn asked(&self, line: &str) -> Option<String> {
        let name = line.trim_end_matches(';').strip_prefix("help(")?.strip_suffix(')')?.trim();
        let word = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        (word && self.workspace.variable(name).is_none()).then(|| name.into())
    }

    /// Runs code and shows its value.
    fn evaluate(&mut self, code: &str) -> Result<()> {
        let answer = self.workspace.evaluate(code)?;
        match answer.value {
            Some(value) if !answer.muted => self.show(value),
            _ => Ok(()),
        }
    }

    /// A plot is drawn; other values are told.
    fn show(&self, value: Dynamic) -> Result<()> {
        if let Some(plot) = value.read_lock::<Plot>() {
            return self.workspace.session().show_plot(&plot);
        }
        let shown = self.workspace.show(&value)?;
        self.say(&shown);
        Ok(())
    }

    fn say(&self, text: &str) {
        self.workspace.session().print(text);
    }

    fn complain(&self, error: &Error) {
        let text = fault::render(error, |name| self.workspace.session().source(name));
        above_bar(|| eprint!("{text}"));
    }

    /// Tells completion what there is now.
    fn renew(&self) {
        if let Ok(screen) = Screen::detect() {
            self.workspace.session().amend(|request| request.screen = screen); // the window may have another size by now
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.variables = self.workspace.outline();
        names.functions = self.workspace.session().functions();
    }

    /// Looks for models, and reads the catalogue, while the user begins to type.
    fn know_models(&self) {
        let (names, folder) = (self.names.clone(), self.workspace.session().request().models.clone());
        std::thread::spawn(move || {
            let known = Sources::new(folder.as_deref()).known().into_keys().collect();
            names.lock().unwrap_or_else(PoisonError::into_inner).models = known;
            complete::complete("x", &Names::default());
        });
    }
}

/// Lines put together until nothing is open.
fn inputs(lines: impl Iterator<Item = std::io::Result<String>>) -> impl Iterator<Item = std::io::Result<String>> {
    let mut lines = lines.peekable();
    std::iter::from_fn(move || {
        let mut input = String::new();
        loop {
            match lines.next() {
                Some(Ok(line)) => input += &line,
                Some(Err(e)) => return Some(Err(e)),
                None => return (!input.trim().is_empty()).then(|| Ok(std::mem::take(&mut input))),
            }
            if input.starts_with([':', '?']) || !lexer::unfinished(&input) {
                return Some(Ok(input));
            }
            input.push('\n');
        }
    })
}
