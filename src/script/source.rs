//! What Rhai reads in the place of what a script says. Two things are put in behind words:
//! * A closure that a variable holds is called by the variable's name: `f(x)` is read as `f.call(x)`, where no function has that name.
//! * Functions of a module get names that no other module has, and its own calls with them. Rhai looks a name up in all files that are
//!   running, and remembers what it found; without this, functions of the same name in two files stand in for each other.

use super::CHAPTERS;
use super::suggest::standard;
use super::word::{Word, words};
use rhai::Token;
use std::collections::BTreeSet;

/// A piece put in behind the word at `column`.
#[derive(Clone, Debug)]
pub(super) struct Insert {
    line: usize,
    column: usize,
    behind: usize,
    text: String,
}

/// Names that a script knows apart from its text.
#[derive(Default)]
pub(super) struct Around<'a> {
    pub variables: BTreeSet<&'a str>,
    pub functions: BTreeSet<String>,
    /// What functions of a module get behind their names.
    pub suffix: Option<String>,
}

/// What to put into a text.
pub(super) fn inserts(text: &str, around: &Around) -> Vec<Insert> {
    let words = words(text);
    let own = functions(&words);
    let items = items(&words);
    let variables = declared(&words, &items);
    let declares = |name: &str| around.variables.contains(name) || variables.iter().any(|(_, n)| *n == name);
    let mut found = vec![];
    for (i, word) in words.iter().enumerate() {
        let Some(name) = word.name() else { continue };
        let (before, after) = (i.checked_sub(1).map(|i| &words[i].token), words.get(i + 1).map(|w| &w.token));
        let called = after == Some(&Token::LeftParen);
        let qualified = before == Some(&Token::DoubleColon) || after == Some(&Token::DoubleColon);
        let method = matches!(before, Some(Token::Period | Token::Elvis));
        let function = own.iter().find(|f| f.name == name);
        let text = match (function, &around.suffix) {
            _ if qualified => continue,
            (Some(function), Some(suffix)) => {
                let value = !method && after != Some(&Token::Colon) && !variables.contains(&(items[i], name));
                let meant = if called { !method || function.method } else { value };
                if !meant {
                    continue;
                }
                suffix.clone()
            }
            (None, _)
                if called && !method && before != Some(&Token::Fn) && declares(name) && !is_function(name, around) =>
            {
                ".call".into()
            }
            _ => continue,
        };
        found.push(Insert { line: word.line, column: word.column, behind: word.column + name.chars().count(), text });
    }
    found
}

fn is_function(name: &str, around: &Around) -> bool {
    let natives = || CHAPTERS.iter().flat_map(|chapter| chapter.manifest.functions());
    around.functions.contains(name) || standard().contains(name) || natives().any(|f| f.name() == name)
}

/// A function that a text defines.
struct Function<'a> {
    name: &'a str,
    /// It speaks of `this`, so that it can be called as a method.
    method: bool,
}

fn functions(words: &[Word]) -> Vec<Function<'_>> {
    let starts = (0..words.len()).filter(|&i| words[i].is(&Token::Fn));
    let one = |i: usize| {
        let name = words.get(i + 1)?.name()?;
        let body = words[i + 2..].iter().take_while(|w| !w.is(&Token::Fn));
        let this = |w: &Word| matches!(&w.token, Token::Reserved(word) if word.as_str() == "this");
        Some(Function { name, method: body.into_iter().any(this) })
    };
    starts.filter_map(one).collect()
}

/// The function that each word stands in, by number; 0 outside of all.
fn items(words: &[Word]) -> Vec<usize> {
    let (mut count, mut inside, mut depth) = (0, 0, 0_usize);
    let one = |word: &Word| {
        match word.token {
            Token::Fn => {
                count += 1;
                (inside, depth) = (count, 0);
            }
            Token::LeftBrace | Token::MapStart => depth += 1,
            Token::RightBrace => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return std::mem::take(&mut inside);
                }
            }
            _ => {}
        }
        inside
    };
    words.iter().map(one).collect()
}

/// Variables and parameters, with the function they belong to.
fn declared<'a>(words: &'a [Word], items: &[usize]) -> BTreeSet<(usize, &'a str)> {
    let mut found = BTreeSet::new();
    let mut i = 0;
    while i < words.len() {
        let end = match words[i].token {
            Token::Let | Token::Const => Some(i + 2),
            Token::For => until(words, i, &Token::In),
            Token::Fn => until(words, i, &Token::RightParen),
            Token::Catch if words.get(i + 1).is_some_and(|w| w.is(&Token::LeftParen)) => {
                until(words, i, &Token::RightParen)
            }
            Token::Pipe if i == 0 || !words[i - 1].ends_operand() => until(words, i, &Token::Pipe),
            _ => None,
        };
        let Some(end) = end.filter(|end| *end <= words.len()) else {
            i += 1;
            continue;
        };
        let skip = if words[i].is(&Token::Fn) { 2 } else { 1 };
        let names = words.get(i + skip..end).unwrap_or_default().iter().filter_map(Word::name);
        found.extend(names.map(|name| (items[i], name)));
        i = end;
    }
    found
}

/// The place behind the next word of that kind.
fn until(words: &[Word], i: usize, token: &Token) -> Option<usize> {
    words[i + 1..].iter().position(|w| w.is(token)).map(|n| i + n + 2)
}

/// The text with everything put in.
pub(super) fn apply(text: &str, inserts: &[Insert]) -> String {
    let mut out = String::with_capacity(text.len() + 8 * inserts.len());
    let mut rest = inserts.iter().peekable();
    let (mut line, mut column) = (1, 1);
    for letter in text.chars().map(Some).chain([None]) {
        while let Some(insert) = rest.next_if(|insert| (insert.line, insert.behind) == (line, column)) {
            out += &insert.text;
        }
        let Some(letter) = letter else { break };
        out.push(letter);
        (line, column) = if letter == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    out
}

/// The column in the script of a column in what Rhai read.
pub(super) fn column(inserts: &[Insert], line: usize, column: usize) -> usize {
    let mut shift = 0;
    for insert in inserts.iter().filter(|insert| insert.line == line) {
        let width = insert.text.chars().count();
        if column < insert.behind + shift {
            break;
        }
        if column < insert.behind + shift + width {
            return insert.column;
        }
        shift += width;
    }
    column - shift
}

/// A function's name as its file has it.
pub(super) fn own_name(name: &str) -> &str {
    match name.rsplit_once(MODULE) {
        Some((own, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => own,
        _ => name,
    }
}

/// Stands between the name of a module's function and the number of the module.
pub(super) const MODULE: &str = "__module";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, suffix: Option<&str>) -> String {
        let around = Around { variables: ["g"].into(), functions: BTreeSet::new(), suffix: suffix.map(String::from) };
        apply(text, &inserts(text, &around))
    }

    #[test]
    fn closures_are_called_by_their_names() {
        let same =
            ["flow(x)", "let flow = flow(x); flow(y)", "h(x)", "fn f(x) { 1 } f(2)", "a.f(x)", "m::f(x)", "// f(x)"];
        for text in same {
            let text = format!("let f = 1; {text}").replace("let f = 1; fn", "fn");
            assert_eq!(read(&text, None), text);
        }
        assert_eq!(read("let f = |x| x; f(1) + g(2)", None), "let f = |x| x; f.call(1) + g.call(2)");
        assert_eq!(read("fn train(update) { `${update(1)}` }", None), "fn train(update) { `${update.call(1)}` }");
        assert_eq!(read("xs.map(|a, b| a(b(1)))", None), "xs.map(|a, b| a.call(b.call(1)))");
        assert_eq!(read("for (a, i) in xs { a(i) }", None), "for (a, i) in xs { a.call(i) }");
    }

    #[test]
    fn functions_of_a_module_have_names_of_their_own() {
        let text = "fn f(x) { x.f(1) + g(f(x)) } fn h(f) { [f, #{ f: 1 }, m::f(2)].map(h) }";
        let read = read(text, Some("__module1"));
        let wanted = "fn f__module1(x) { x.f(1) + g.call(f__module1(x)) } \
            fn h__module1(f) { [f, #{ f: 1 }, m::f(2)].map(h__module1) }";
        assert_eq!(read, wanted);
        assert_eq!((own_name("f__module1"), own_name("f__module"), own_name("f")), ("f", "f__module", "f"));
    }

    #[test]
    fn columns_are_those_of_the_script() {
        let text = "let f = |x| x;\nf(1) + f(2)";
        let around = Around { variables: BTreeSet::new(), functions: BTreeSet::new(), suffix: None };
        let inserts = inserts(text, &around);
        let line = apply(text, &inserts).lines().nth(1).unwrap().to_string();
        assert_eq!(line, "f.call(1) + f.call(2)");
        let place = |c: usize| column(&inserts, 2, c);
        assert_eq!([1, 3, 7, 8, 11, 13, 15, 20].map(place), [1, 1, 2, 3, 6, 8, 8, 10]);
    }
}
