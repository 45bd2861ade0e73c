//! The line editor: what rustyline is told of our language.

use super::complete::{self, CompletionSite, Names};
use super::lexer::{self, KEYWORDS, Token, TokenKind, VALUES};
use crate::script::catalog::Catalog;
use amscript_base::text::is_hidden;
use parking_lot::Mutex;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::{Hint, Hinter};
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{ColorMode, CompletionType, Config, Context, Editor, Helper};
use std::borrow::Cow;
use std::sync::Arc;

pub type Lines = Editor<Language, FileHistory>;

/// An editor whose completion knows `names`.
pub fn editor(names: Arc<Mutex<Names>>, color: bool) -> rustyline::Result<Lines> {
    let config = Config::builder()
        .max_history_size(10_000)?
        .history_ignore_dups(true)?
        .completion_type(CompletionType::List)
        .completion_show_all_if_ambiguous(true)
        .color_mode(if color { ColorMode::Enabled } else { ColorMode::Disabled })
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Language { names, files: FilenameCompleter::new() }));
    Ok(editor)
}

/// Completion, highlighting, hints and the end of an input.
pub struct Language {
    names: Arc<Mutex<Names>>,
    files: FilenameCompleter,
}

impl Helper for Language {}

impl Validator for Language {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let command = text.starts_with([':', '?']);
        Ok(match !command && lexer::unfinished(text) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Language {
    type Candidate = Pair;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let names = self.names.lock();
        let text = &line[..cursor];
        let (start, found) = complete::complete(text, &names);
        let pair = |c: complete::Candidate| Pair { display: c.shown, replacement: c.text };
        let mut found: Vec<Pair> = found.into_iter().map(pair).collect();
        if let Some(typed) = file_name(text, &names) {
            let (offset, files) = self.files.complete_path(typed, typed.len())?;
            if found.is_empty() {
                return Ok((text.len() - typed.len() + offset, files.into_iter().filter(is_plain).collect()));
            }
            found.extend(files.into_iter().filter(|_| offset == 0));
        }
        found.retain(is_plain);
        Ok((start, found))
    }
}

/// Whether nothing in a candidate acts on the terminal: names of files and keys may be others'.
fn is_plain(pair: &Pair) -> bool {
    let acts = |c: char| is_hidden(c) || c == '\n' || c == '\t';
    !pair.display.contains(acts) && !pair.replacement.contains(acts)
}

/// The beginning of a file name at the end of a text: in a string, or behind a command that takes one.
fn file_name<'a>(text: &'a str, names: &Names) -> Option<&'a str> {
    match text.split_once(' ') {
        Some((":load" | ":save" | ":watch", typed)) => Some(typed.trim_start()),
        _ => match complete::place(text, names) {
            CompletionSite::Text(_, typed) => Some(&text[text.len() - typed.len()..]),
            _ => None,
        },
    }
}

/// A signature behind the cursor; it cannot be accepted.
pub struct Signature(String);

impl Hint for Signature {
    fn display(&self) -> &str {
        &self.0
    }
    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for Language {
    type Hint = Signature;

    fn hint(&self, line: &str, cursor: usize, _: &Context<'_>) -> Option<Signature> {
        let shown = complete::signature(line).filter(|_| cursor == line.len() && !line.contains('\n'))?;
        Some(Signature(format!("   {shown}")))
    }
}

impl Highlighter for Language {
    fn highlight<'l>(&self, line: &'l str, cursor: usize) -> Cow<'l, str> {
        Cow::Owned(painted(line, Some(cursor)))
    }
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Owned(format!("\x1b[1;36m{prompt}\x1b[0m"))
    }
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[2m{hint}\x1b[0m"))
    }
    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        !matches!(kind, CmdKind::ForcedRefresh)
    }
}

/// A text in colours; the partner of a bracket at the cursor is underlined.
pub fn painted(text: &str, cursor: Option<usize>) -> String {
    if text.starts_with([':', '?']) {
        return format!("\x1b[36m{text}\x1b[0m");
    }
    let tokens = lexer::tokens(text);
    let at = cursor.and_then(|c| {
        tokens
            .iter()
            .position(|t| t.start == c)
            .filter(|&i| is_bracket(&tokens[i]))
            .or_else(|| tokens.iter().position(|t| t.end() == c).filter(|&i| is_bracket(&tokens[i])))
    });
    let partner = at.and_then(|i| lexer::partner(&tokens, i));
    let mut out = String::new();
    for (i, token) in tokens.iter().enumerate() {
        let style = if partner == Some(i) { "1;4" } else { style(token, tokens.get(i + 1)) };
        out += &if style.is_empty() { token.text.into() } else { format!("\x1b[{style}m{}\x1b[0m", token.text) };
    }
    out
}

fn is_bracket(token: &Token) -> bool {
    matches!(token.kind, TokenKind::Open | TokenKind::Close)
}

fn style(token: &Token, next: Option<&Token>) -> &'static str {
    match token.kind {
        TokenKind::Comment => "2",
        TokenKind::Text => "32",
        TokenKind::Number => "33",
        TokenKind::Word if KEYWORDS.contains(&token.text) || VALUES.contains(&token.text) => "35",
        TokenKind::Word if next.is_some_and(|t| t.is("(")) && Catalog::get().named(token.text).next().is_some() => "34",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_leave_the_text_as_it_is() {
        let text = "let x = rollout(base, [1, 2.5]); // \"end\"";
        let bare = |painted: &str| {
            painted
                .split('\x1b')
                .enumerate()
                .map(|(i, part)| if i == 0 { part } else { part.split_once('m').unwrap().1 })
                .collect::<String>()
        };
        assert_eq!(bare(&painted(text, Some(text.len()))), text);
        assert!(painted("f(1)", Some(4)).starts_with("f\x1b[1;4m(\x1b[0m"), "{:?}", painted("f(1)", Some(4)));
        assert!(painted("rollout(", None).starts_with("\x1b[34mrollout"));
    }

    #[test]
    fn names_that_act_on_the_terminal_are_not_offered() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a\u{1b}]0;x\u{7}.png", "a\u{202e}.png", "a\nb.png", "ab.png"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names = Names { flows: vec!["am\u{1b}[2J".into(), "am_b".into()], ..Names::default() };
        let language = Language { names: Arc::new(Mutex::new(names)), files: FilenameCompleter::new() };
        let history = FileHistory::new();
        let offered = |text: &str| {
            let (_, found) = language.complete(text, text.len(), &Context::new(&history)).unwrap();
            found.into_iter().map(|pair| pair.display).collect::<Vec<_>>()
        };
        assert_eq!(offered(&format!("load_image(\"{}/a", folder.path().display())), ["ab.png"]);
        assert_eq!(offered("flow(\"am"), ["am_b"]);
    }
}
