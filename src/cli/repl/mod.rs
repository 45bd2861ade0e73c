//! `amscript` without a script: a prompt on models that stay loaded. Also `--eval CODE`, and code on standard input.
//!
//! A prompt is a growing script (`workspace.rs`): each input is parsed behind as many empty lines as were typed before, so that places in errors
//! and in functions made earlier count lines of one text. Functions of all inputs are merged, variables stay in one scope, imports are parsed again
//! from the first line. What completion knows comes from the catalogue and from the types of the variables.

mod command;
pub mod complete;
pub mod editor;
mod history;
pub mod lexer;
mod record;
pub mod workspace;

use super::output::Lines;
use super::{PromptArgs, fault, run};
use crate::script::registry::Registry;
use crate::script::{Host, Session};
use amscript_base::error::{Error, Kind, Result};
use amscript_base::permissions::Rights;
use amscript_base::terminal::{self, StdStream, is_terminal, note};
use amscript_nn::opener::Given;
use amscript_nn::source::Sources;
use amscript_run::screen::{Colours, Plot, Screen};
use amscript_tensor::place;
use complete::Names;
use parking_lot::Mutex;
use rhai::Dynamic;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use textwrap::{Options, WordSplitter};
use workspace::Workspace;

/// `amscript`, `amscript --eval CODE`, `.. | amscript`.
pub fn command(arguments: PromptArgs) -> anyhow::Result<ExitCode> {
    run::on_large_stack(move || {
        let lines = Arc::new(Lines::default());
        let prompt = Prompt::new(&arguments, &lines)?;
        let context = prompt.workspace.session().context().clone();
        let code = context.enter(|| prompt.serve(&arguments))?;
        if code == ExitCode::SUCCESS {
            lines.end()?;
        }
        Ok(code)
    })
}

/// A workspace and how it speaks.
pub struct Prompt {
    pub workspace: Workspace,
    names: Arc<Mutex<Names>>,
    /// Whether it waits for input, so that a signal finds nothing to interrupt.
    waiting: Arc<AtomicBool>,
}

impl Prompt {
    fn new(arguments: &PromptArgs, lines: &Arc<Lines>) -> Result<Self> {
        let mut request = run::request(&arguments.session, false, None)?;
        request.script = Some("session.rhai".into()); // imports and files are looked up from here
        request.allow = Rights::all(); // the user types
        request.max_alone = None; // somebody sits there and can press Ctrl-C
        let host = Host::new(Session::new(request, lines.printer()));
        let waiting = Arc::<AtomicBool>::default();
        run::heed_signals(host.session(), waiting.clone());
        let names = Names { commands: command::COMMANDS.to_vec(), ..Names::default() };
        Ok(Self { workspace: Workspace::new(host), names: Arc::new(Mutex::new(names)), waiting })
    }

    fn serve(mut self, arguments: &PromptArgs) -> anyhow::Result<ExitCode> {
        if !arguments.eval.is_empty() {
            return Ok(self.answer_all(arguments.eval.iter().cloned().map(Ok)));
        }
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Ok(self.answer_all(inputs(input.lock().lines())));
        }
        self.converse(arguments.quiet).map_err(|e| anyhow::anyhow!("the terminal cannot be read: {e}"))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Inputs one after the other, to the first that fails.
    fn answer_all(&mut self, mut inputs: impl Iterator<Item = std::io::Result<String>>) -> ExitCode {
        while let Some(input) = self.wait(|| inputs.next()) {
            let input = input.map_err(|e| Error::new(Kind::File, format!("standard input must be text, got \"{e}\"")));
            match input.and_then(|input| self.answer(&input)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return self.complain(&error),
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
            note(&format!("warning: {warning}\n"));
        }
        if !quiet {
            let device = place::name(self.workspace.session().device());
            self.say(&format!(
                "amscript {} on {device}, with all your rights to files; help() is the manual, :help lists commands",
                env!("CARGO_PKG_VERSION")
            ));
        }
        self.know_models();
        loop {
            self.renew();
            match self.wait(|| editor.readline("> ")) {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    history::add(&mut editor, file.as_deref(), &line);
                    match self.answer(&line) {
                        Ok(true) => {}
                        Ok(false) => return Ok(()),
                        Err(error) => drop(self.complain(&error)),
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// `read`, which waits for input. A signal that came between two inputs is forgotten.
    fn wait<T>(&self, read: impl FnOnce() -> T) -> T {
        self.workspace.session().forget_interrupts();
        self.waiting.store(true, Ordering::Relaxed);
        let input = read();
        self.waiting.store(false, Ordering::Relaxed);
        input
    }

    /// One input: a command, a question or code. False ends the prompt.
    fn answer(&mut self, input: &str) -> Result<bool> {
        let line = input.trim();
        if line.starts_with(':') {
            return command::run(self, line);
        }
        let word = line.trim_end_matches(';');
        match word.trim_end_matches("()") {
            "exit" | "quit" if self.workspace.variable("quit").is_none() => return Ok(false),
            "help" if word == "help" => return command::run(self, ":help"),
            _ => {}
        }
        match (line.strip_prefix("??"), line.strip_prefix('?'), self.asked(line)) {
            (Some(name), ..) => self.say(&command::source(self, name.trim())?),
            (_, Some(name), _) => self.say(&fitted(&command::explain(self, name.trim())?)),
            (_, _, Some(name)) => self.say(&fitted(&command::explain(self, &name)?)),
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
        self.say(&fitted(&self.workspace.show(&value)?));
        Ok(())
    }

    fn say(&self, text: &str) {
        self.workspace.session().print(text);
    }

    fn complain(&self, error: &Error) -> ExitCode {
        fault::report(error, |name| self.workspace.session().source(name))
    }

    /// Tells completion what there is now.
    fn renew(&self) {
        if let Ok(screen) = Screen::detect() {
            self.workspace.session().amend(|request| request.screen = screen); // the window may have another size by now
        }
        let mut names = self.names.lock();
        names.variables = self.workspace.outline();
        names.functions = self.workspace.session().functions();
    }

    /// Looks for models, and reads the catalogue, while the user begins to type.
    fn know_models(&self) {
        let (names, folder) = (self.names.clone(), self.workspace.session().request().models.clone());
        std::thread::spawn(move || {
            let (sources, families) = (Sources::new(folder.as_deref()), Registry::default().families);
            let is_flow = |name: &String| {
                let found = sources.lead(name, None);
                found.is_ok_and(|(found, _)| families.choose(None, &found, &Given::default()).is_ok())
            };
            let (flows, models) = sources.known().into_keys().partition(is_flow);
            let mut names = names.lock();
            (names.flows, names.models) = (flows, models);
            drop(names);
            complete::complete("x", &Names::default());
        });
    }
}

/// A text of several lines as the terminal's width allows.
fn fitted(text: &str) -> String {
    match text.contains('\n') && is_terminal(StdStream::Output) {
        true => wrapped(text, terminal::size(StdStream::Output).columns),
        false => text.into(),
    }
}

/// Prose broken at words; what goes on stands below its beginning, behind the name in a list. Code, indented by four, stays as it is.
fn wrapped(text: &str, columns: usize) -> String {
    let fill = |line: &str| {
        let start = line.len() - line.trim_start().len();
        if start == 4 {
            return line.to_string();
        }
        let behind = |gap| line.chars().count() - line[start + gap..].trim_start().chars().count();
        let column = line[start..].find("  ").map_or(start, behind);
        let indent = " ".repeat(if column < columns / 2 { column } else { start });
        let options = Options::new(columns).subsequent_indent(&indent).break_words(false);
        textwrap::fill(line, options.word_splitter(WordSplitter::NoHyphenation))
    };
    text.lines().map(fill).collect::<Vec<_>>().join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_broken_at_words_and_code_is_not() {
        let text =
            "one two three four\n  five six seven eight nine\na    what it is in short\n    let x = 1 + 2 + 3 + 4;";
        let wanted = "one two three\nfour\n  five six seven\n  eight nine\na    what it is\n     in short\n    let x = 1 + 2 + 3 + 4;";
        assert_eq!(wrapped(text, 17), wanted);
        assert_eq!(wrapped("unbreakable", 4), "unbreakable");
    }
}
