//! The commands of the prompt, `:name argument`, and the questions `?name` and `??name`.

use super::Prompt;
use super::lexer::{self, TokenKind};
use super::workspace::{ANSWER, SOURCE};
use crate::cli::{quantity, recipe};
use crate::script::catalog::Catalog;
use crate::script::{help, import};
use amscript_base::bail;
use amscript_base::error::{Result, nearest};
use amscript_base::profile;
use amscript_model::Flow;
use amscript_nn::module::Module as _;
use amscript_run::progress::span;
use amscript_run::record::peak_memory;
use amscript_tensor::Tensor;
use rhai::Dynamic;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Name and what it does.
pub const COMMANDS: [(&str, &str); 12] = [
    ("help", "this list"),
    ("vars", "the variables, with type and value"),
    ("time", "CODE: runs it and says how long it took"),
    ("mem", "memory of the process and of the variables"),
    ("seed", "N: adapters and recipes are drawn from this seed; alone: shows it"),
    ("set", "NAME=VALUE: a setting of recipes that are loaded; alone: shows them, NAME= takes one back"),
    ("load", "SCRIPT: runs a file or a recipe here; its variables stay"),
    ("save", "FILE: writes the session as a recipe that runs"),
    ("watch", "FILE: runs a script here each time it is saved, until Ctrl-C"),
    ("profile", "CODE: runs it and says where time and memory went"),
    ("forget", "NAME: drops a variable and what it holds"),
    ("quit", "ends, as Ctrl-D does"),
];

/// Runs a line that begins with `:`; whether the prompt goes on.
pub fn run(prompt: &mut Prompt, line: &str) -> Result<bool> {
    let (name, rest) = line[1..].split_once(char::is_whitespace).unwrap_or((&line[1..], ""));
    let rest = rest.trim();
    match name {
        "help" | "h" => prompt.say(&list()),
        "vars" => prompt.say(&variables(prompt)?),
        "time" => time(prompt, rest)?,
        "mem" => prompt.say(&memory(prompt)),
        "seed" => seed(prompt, rest)?,
        "set" => set(prompt, rest)?,
        "load" => load(prompt, rest)?,
        "save" => save(prompt, rest)?,
        "watch" => watch(prompt, rest)?,
        "profile" => profiled(prompt, rest)?,
        "forget" => prompt.workspace.forget(rest)?,
        "quit" | "q" | "exit" => return Ok(false),
        other => {
            let near = nearest(other, COMMANDS.iter().map(|(name, _)| *name));
            let near = near.map_or(String::new(), |near| format!("; did you mean `:{near}`?"));
            bail!(Name, "no command `:{other}`{near}"; hint: ":help lists them");
        }
    }
    Ok(true)
}

fn list() -> String {
    let lines = COMMANDS.iter().map(|(name, about)| format!(":{name:<8} {about}"));
    let questions = "?name     the manual page of a function or chapter, or what a variable can do\n\
                     ??name    the source of a function written in script\n\
                     ans       the last value; a `;` at the end mutes\n\
                     Tab completes, Ctrl-C stops what runs, Ctrl-D ends";
    format!("{}\n{questions}", lines.collect::<Vec<_>>().join("\n"))
}

fn variables(prompt: &Prompt) -> Result<String> {
    let one = |(name, value): (&str, &Dynamic)| {
        let shown = prompt.workspace.show(value)?;
        let first = shown.lines().next().unwrap_or_default();
        Ok(format!("{name:<12} {:<12} {}", prompt.workspace.kind(value), shortened(first, 80)))
    };
    let lines = prompt.workspace.variables().map(one).collect::<Result<Vec<_>>>()?;
    Ok(if lines.is_empty() { "no variables yet".into() } else { lines.join("\n") })
}

fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.into(),
    }
}

fn needed<'a>(command: &str, what: &str, rest: &'a str) -> Result<&'a str> {
    if rest.is_empty() {
        bail!(Value, ":{command} needs {what}, got nothing"; hint: ":help lists the commands");
    }
    Ok(rest)
}

fn time(prompt: &mut Prompt, code: &str) -> Result<()> {
    let code = needed("time", "code to run", code)?;
    let start = Instant::now();
    prompt.evaluate(code)?;
    prompt.say(&format!("took {}", span(start.elapsed())));
    Ok(())
}

fn profiled(prompt: &mut Prompt, code: &str) -> Result<()> {
    let code = needed("profile", "code to run", code)?;
    let context = prompt.workspace.session().context().clone();
    prompt.workspace.session().measure();
    let outcome = prompt.evaluate(code);
    if let Some(found) = context.profile.finish() {
        prompt.say(&crate::cli::profile::text(&found));
    }
    outcome
}

fn memory(prompt: &Prompt) -> String {
    let size = |n: f64| quantity::bytes(n);
    let mut lines = vec![format!("process      {}", size(profile::resident() as f64))];
    lines.extend(peak_memory().map(|peak| format!("at most      {}", size(peak as f64))));
    for (name, value) in prompt.workspace.variables().filter(|(name, _)| *name != ANSWER) {
        if let Some(bytes) = held(value) {
            lines.push(format!("{name:<12} {}", size(bytes)));
        }
    }
    lines.join("\n")
}

/// Bytes of a tensor's numbers or of a flow's weights; flows may share them.
fn held(value: &Dynamic) -> Option<f64> {
    if let Some(tensor) = value.read_lock::<Tensor>() {
        return Some((tensor.elem_count() * tensor.dtype().size_in_bytes()) as f64);
    }
    let flow = value.read_lock::<Flow>()?;
    Some(flow.parts().ok()?.iter().map(|part| part.bytes).sum())
}

fn seed(prompt: &mut Prompt, rest: &str) -> Result<()> {
    let session = prompt.workspace.session().clone();
    if !rest.is_empty() {
        let Ok(seed) = rest.parse::<u64>() else {
            bail!(Value, ":seed needs a whole number, got \"{rest}\"");
        };
        session.amend(|request| request.seed = Some(seed));
    }
    let seed = session.request().seed;
    prompt.say(
        &seed.map_or("no seed is set: adapters are drawn from 0, recipes from their own".into(), |s| {
            format!("seed {s}")
        }),
    );
    Ok(())
}

fn set(prompt: &mut Prompt, rest: &str) -> Result<()> {
    let session = prompt.workspace.session().clone();
    if !rest.is_empty() {
        let Some((name, value)) = rest.split_once('=') else {
            bail!(Value, ":set needs NAME=VALUE, got \"{rest}\"");
        };
        let (name, value) = (name.trim().to_string(), value.trim().to_string());
        session.amend(|request| {
            request.overrides.retain(|(known, _)| *known != name);
            if !value.is_empty() {
                request.overrides.push((name, value));
            }
        });
    }
    let shown: Vec<String> =
        session.request().overrides.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    prompt.say(&if shown.is_empty() { "no settings: recipes run as they are".into() } else { shown.join("\n") });
    Ok(())
}

fn load(prompt: &mut Prompt, file: &str) -> Result<()> {
    let file = needed("load", "a script", file)?;
    if let Some((script, option)) = file.split_once(" --").filter(|_| !Path::new(file).exists()) {
        bail!(Value, ":load takes a script alone, got --{option} behind it";
            hint: "write `:set NAME=VALUE` or `:seed N`, then `:load {}`", script.trim());
    }
    prompt.workspace.load(recipe::read(Path::new(file))?)
}

fn save(prompt: &mut Prompt, file: &str) -> Result<()> {
    let file = Path::new(needed("save", "a file to write, such as recipe.rhai", file)?);
    if file.exists() {
        bail!(File, ":save does not write over \"{}\"", file.display(); hint: "give another name");
    }
    amscript_run::record::write_text(file, &prompt.workspace.recipe()?)?;
    prompt.say(&format!("wrote {}", file.display()));
    Ok(())
}

/// Runs the file, then again whenever its time of change differs; editors save by renaming, so a moment without file is no end.
fn watch(prompt: &mut Prompt, file: &str) -> Result<()> {
    let file = Path::new(needed("watch", "a script", file)?);
    let changed = || std::fs::metadata(file).and_then(|m| m.modified()).ok();
    let mut seen: Option<SystemTime> = None;
    loop {
        let now = changed();
        if now != seen && now.is_some() {
            seen = now;
            let start = Instant::now();
            match recipe::read(file).and_then(|script| prompt.workspace.load(script)) {
                Ok(()) => prompt.say(&format!(
                    "ran {} in {}; waiting for it to be saved, Ctrl-C ends",
                    file.display(),
                    span(start.elapsed())
                )),
                Err(e) if e.kind == amscript_base::Kind::Interrupt => return Err(e),
                Err(e) => drop(prompt.complain(&e)),
            }
            prompt.renew();
        } else if seen.is_none() {
            bail!(Missing, ":watch needs a script that is there, got \"{}\"", file.display());
        }
        std::thread::sleep(Duration::from_millis(100));
        let stopped = prompt.workspace.session().check();
        prompt.workspace.session().forget_interrupts();
        if stopped.is_err() {
            prompt.say("no longer watching");
            return Ok(());
        }
    }
}

/// `?name`: of a variable its value and what can be done with it, else the manual.
pub fn explain(prompt: &Prompt, name: &str) -> Result<String> {
    if name.is_empty() {
        return Ok(help::contents());
    }
    if let Some(value) = prompt.workspace.variable(name) {
        let shown = prompt.workspace.show(&value)?;
        return Ok(format!("{name} = {shown}\n\n{}", help::methods(&prompt.workspace.kind(&value))));
    }
    let name = name.trim_end_matches("()").rsplit(['.', ':']).next().unwrap_or(name);
    match prompt.workspace.session().functions().get(name) {
        Some(parameters) if Catalog::get().named(name).next().is_none() => {
            Ok(format!("{name}{parameters}, written in script; `??{name}` shows it"))
        }
        _ => Ok(help::help(name)),
    }
}

/// `??name`: the text of a function written in script.
pub fn source(prompt: &Prompt, name: &str) -> Result<String> {
    let name = name.trim_end_matches("()");
    let (module, function) = name.rsplit_once("::").unwrap_or(("", name));
    let typed = (SOURCE.to_string(), prompt.workspace.text().to_string());
    let embedded = import::embedded().map(|(module, text)| (module, text.to_string()));
    let texts = [typed].into_iter().filter(|_| module.is_empty()).chain(embedded);
    let known = texts.filter(|(source, _)| module.is_empty() || *source == format!("stdlib/{module}"));
    let found: Vec<String> =
        known.filter_map(|(source, text)| Some(format!("// {source}\n{}", definition(&text, function)?))).collect();
    if !found.is_empty() {
        return Ok(found.join("\n\n"));
    }
    if let Some(entry) = Catalog::get().named(function).next() {
        return Ok(format!(
            "`{function}` is built into the host: src/script/{}.rs\n\n{}",
            entry.chapter,
            help::help(function)
        ));
    }
    Ok(help::help(function))
}

/// The last function of that name in a text, with the comments above it.
fn definition(text: &str, name: &str) -> Option<String> {
    let tokens = lexer::tokens(text);
    let meant: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].counts()).collect();
    let at = meant.windows(2).rev().find(|w| tokens[w[0]].text == "fn" && tokens[w[1]].text == name)?[0];
    let open = (at..tokens.len()).find(|&i| tokens[i].kind == TokenKind::Open && tokens[i].text == "{")?;
    let end = tokens[lexer::partner(&tokens, open)?].end();
    let mut start = at;
    while start > 0 && !tokens[start - 1].counts() && !tokens[start - 1].text.contains("\n\n") {
        start -= 1;
    }
    Some(text[tokens[start].start..end].trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_comes_with_its_comment() {
        let text = "// other\n\n/// Doubles.\nfn double(x) {\n  if x { \"}\" }\n}\nfn next() {}";
        assert_eq!(definition(text, "double").unwrap(), "/// Doubles.\nfn double(x) {\n  if x { \"}\" }\n}");
        assert_eq!(definition(text, "absent"), None);
    }
}
