//! An error as people read it: message, place with the source line and a caret, the calls that led there, the hint.

use amscript_base::error::{Error, Kind, Place};
use amscript_base::terminal;
use amscript_base::text::{in_line, visible};
use amscript_run::progress::above_bar;
use std::process::ExitCode;

/// The report, safe to show; `source` gives a script's text by its name.
pub fn render(error: &Error, source: impl Fn(&str) -> Option<String>) -> String {
    let mut out = format!("error: {}\n", in_line(&error.message));
    let mut places = error.trace.iter().filter(|p| p.line > 0);
    // beside the flag that would give it more rights stands no text of a recipe, which could say what it likes
    let refusal = error.kind == Kind::Permission;
    if let Some(place) = places.next() {
        out += &excerpt(place, source(&place.source).filter(|_| !refusal).as_deref());
        let mut inside = &place.function;
        for caller in places {
            let what = inside.as_deref().unwrap_or("script");
            let source = in_line(&caller.source);
            out += &format!("  {what} was called at {source}:{}:{}\n", caller.line, caller.column);
            inside = &caller.function;
        }
    }
    if let Some(hint) = &error.hint {
        out += &format!("hint: {}\n", in_line(hint));
    }
    visible(&out).into_owned()
}

/// Writes [`render`]'s text to standard error, above a progress bar; gives the exit code.
pub fn report(error: &Error, source: impl Fn(&str) -> Option<String>) -> ExitCode {
    above_bar(|| terminal::note(&render(error, source)));
    code(error, false)
}

/// 130 after an interrupt, 75 (`EX_TEMPFAIL`, try again later) where a scheduler asked for it and the run goes on when it is started again,
/// else 1.
pub fn code(error: &Error, requeue: bool) -> ExitCode {
    match (error.kind, requeue) {
        (Kind::Interrupt, true) => ExitCode::from(75),
        (Kind::Interrupt, false) => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}

/// Characters of a line that are shown.
const WIDE: usize = 400;

/// Place, line and caret.
fn excerpt(place: &Place, text: Option<&str>) -> String {
    let head = format!("  --> {}:{}:{}\n", in_line(&place.source), place.line, place.column);
    let Some(line) = text.and_then(|t| t.lines().nth(place.line - 1)) else {
        return head;
    };
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    let column = place.column.saturating_sub(1);
    let start = line.chars().nth(WIDE).map_or(0, |_| column.saturating_sub(WIDE / 2));
    let line: String = line.chars().skip(start).take(WIDE).collect();
    let column = column - start;
    let before: String = line.chars().take(column).collect();
    // tabs stay tabs so that the caret stands under its word
    let indent: String = visible(&before).chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let carets = "^".repeat(width(&line, column));
    format!("{head}{margin} |\n{number} | {line}\n{margin} | {indent}{carets}\n")
}

/// Length of the word, number, text or sign that starts there; `column` counts from 0.
pub fn width(line: &str, column: usize) -> usize {
    let rest: Vec<char> = line.chars().skip(column).collect();
    let run = |wanted: fn(&char) -> bool| rest.iter().take_while(|c| wanted(c)).count();
    match rest.first() {
        Some('"') => rest.iter().skip(1).position(|&c| c == '"').map_or(1, |end| end + 2),
        Some(c) if c.is_alphanumeric() || *c == '_' => run(|c| c.is_alphanumeric() || *c == '_'),
        Some(c) if "+-*/%<>=!&|".contains(*c) => run(|c| "+-*/%<>=!&|".contains(*c)),
        _ => 1,
    }
}
