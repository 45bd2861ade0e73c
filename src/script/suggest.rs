//! What was probably meant: the nearest name, or the signature a call should have had.

use super::Session;
use super::catalog::{Catalog, Overload, script_type};
use super::foreign;
use super::rename::{self, RENAMED};
use super::source::own_name;
use super::word::{Word, words};
use amscript_base::error::{Error, Kind, Place, nearest};
use rhai::{Engine, Token};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// A call that no function takes, as Rhai words it: `matmul (Tensor, string)`.
pub fn function(call: &str, session: &Session) -> Error {
    let (name, types) = call.split_once(" (").unwrap_or((call, ""));
    let name = own_name(name);
    let came: Vec<String> = types.trim_end_matches(')').split(", ").filter(|t| !t.is_empty()).map(argument).collect();
    if name.starts_with("anon$") {
        return closure(session.closure(name), came.len());
    }
    let natives = || Catalog::get().named(name).filter(|e| !e.chapter.starts_with("stdlib/"));
    let overloads: Vec<&Overload> = natives().flat_map(|e| &e.overloads).collect();
    if !overloads.is_empty() {
        return misfit(name, &overloads, &came);
    }
    let own = session.functions();
    if let Some(parameters) = own.get(name) {
        return Error::new(Kind::Type, format!("`{name}`: expected {parameters}, got ({})", came.join(", ")));
    }
    if standard().contains(name) {
        return misused(name, &came);
    }
    no_function(name, &came, own.keys().chain(standard()).map(String::as_str))
}

/// A closure with so many parameters was called with so many arguments; variables that it uses count as both.
fn closure(parameters: Option<usize>, arguments: usize) -> Error {
    let difference = match parameters.map(|n| (arguments.abs_diff(n), arguments > n)) {
        None => "another number of arguments than it has parameters".into(),
        Some((n, more)) => {
            let s = if n == 1 { "" } else { "s" };
            format!("{n} argument{s} {} than it has parameters", if more { "more" } else { "less" })
        }
    };
    Error::new(Kind::Type, format!("a closure was called with {difference}"))
}

/// A function of Rhai was called with arguments that it does not take.
pub fn misused(name: &str, came: &[String]) -> Error {
    let error = Error::new(Kind::Type, format!("`{name}`: no form of it takes ({})", came.join(", ")));
    hinted(error, foreign::function(name, came))
}

pub fn hinted(error: Error, hint: Option<&str>) -> Error {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// There is no function of that name; `others` are names apart from ours that may have been meant.
pub fn no_function<'a>(name: &str, came: &[String], others: impl Iterator<Item = &'a str>) -> Error {
    if let Some(new) = rename::function(RENAMED, name) {
        return rename::moved("", name, new);
    }
    let none = || Error::new(Kind::Name, format!("no function `{name}`"));
    if let Some(hint) = foreign::function(name, came) {
        return none().hint(hint);
    }
    if let Some(entry) = Catalog::get().named(name).next() {
        let (module, call) = (&entry.chapter, &entry.overloads[0].signature);
        return none().hint(format!("write `{call}`, of the module \"{module}\""));
    }
    let near = Catalog::get().nearest(name, others);
    let error = Error::new(Kind::Name, format!("no function `{name}`{}", did_you_mean(near)));
    match near.and_then(|near| Catalog::get().named(near).next()) {
        Some(entry) => error.hint(format!("{}: {}", entry.overloads[0].signature, entry.summary)),
        None => error,
    }
}

/// A name that exists was called with arguments it does not take.
pub fn misfit(name: &str, overloads: &[&Overload], came: &[String]) -> Error {
    if let Some(error) = came.first().and_then(|owner| called_property(name, owner)) {
        return error;
    }
    let fit = |o: &&&Overload| {
        let same = o.types().zip(came).filter(|(a, b)| a == b || fits(a, b)).count();
        (o.parameters.len() == came.len(), same)
    };
    let types = |o: &&Overload| o.types().collect::<Vec<_>>().join(", ");
    let best = overloads.iter().rev().max_by_key(fit).map_or(String::new(), types);
    let error = Error::new(Kind::Type, format!("`{name}`: expected ({best}), got ({})", came.join(", ")));
    let others: Vec<&str> = overloads.iter().take(6).map(|o| o.signature.as_str()).collect();
    error.hint(foreign::function(name, came).map_or_else(|| format!("write {}", others.join(" or ")), String::from))
}

/// `x.shape()` of a property.
pub fn called_property(name: &str, owner: &str) -> Option<Error> {
    let getter = format!("get${name}");
    let mut overloads = Catalog::get().named(name).flat_map(|e| &e.overloads);
    let gives = |o: &Overload| o.function == getter && o.types().next() == Some(owner);
    let none_takes = !Catalog::get().named(name).flat_map(|e| &e.overloads).any(|o| o.function == name);
    let error =
        || Error::new(Kind::Type, format!("`{name}` is a property, no function")).hint(format!("write `x.{name}`"));
    (none_takes && overloads.any(gives)).then(error)
}

/// Whether a value of type `came` goes where `wanted` stands.
pub fn fits(wanted: &str, came: &str) -> bool {
    wanted == "any" || (wanted == "number" && came == "integer")
}

fn argument(name: &str) -> String {
    let shown = script_type(name.trim());
    if shown.is_empty() { "()".into() } else { shown }
}

/// An unknown variable at a place of a script, whose words are the candidates.
pub fn variable(name: &str, text: &str, place: &Place) -> Error {
    let none = |here: &str| Error::new(Kind::Name, format!("no variable `{name}`{here}"));
    if let Some(hint) = foreign::syntax(text, place.line, place.column).or_else(|| foreign::word(name)) {
        return none("").hint(hint);
    }
    let words = words(text);
    let Some((line, seen)) = declared(name, &words, place) else { return none(&mistyped(name, text)) };
    none(" here").hint(match (seen, line >= place.line) {
        (false, _) => format!("a function sees only its parameters: pass `{name}` to it, or use a closure `|x| ..`"),
        (true, true) => format!("`{name}` is declared later, in line {line}"),
        (true, false) => format!("`{name}` of line {line} is gone: its block has ended, or it was dropped"),
    })
}

/// An unknown property of a map; the words of the script are the candidates.
pub fn key(name: &str, text: &str) -> Error {
    Error::new(Kind::Name, format!("no property `{name}`{}", mistyped(name, text)))
}

fn mistyped(name: &str, text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| *w != name && w.len() > 1);
    did_you_mean(nearest(name, words))
}

/// The line where a variable is declared, and whether not outside of the function that a place is in.
fn declared(name: &str, words: &[Word], place: &Place) -> Option<(usize, bool)> {
    let functions = functions(words);
    let function = |i: usize| functions.iter().position(|function| function.contains(&i));
    let begins = |word: &Word| [Token::Let, Token::Const, Token::For].iter().any(|token| word.is(token));
    let is = |pair: &[Word]| begins(&pair[0]) && pair[1].name() == Some(name);
    let places: Vec<usize> = (0..words.len().saturating_sub(1)).filter(|&i| is(&words[i..i + 2])).collect();
    let here = words.iter().position(|word| (word.line, word.column) == (place.line, place.column));
    let here = here.and_then(function);
    let same = places.iter().find(|&&i| function(i) == here);
    let found = same.or_else(|| places.first())?;
    Some((words[*found].line, same.is_some() || here.is_none()))
}

/// From which word to which the functions of a text go.
fn functions(words: &[Word]) -> Vec<std::ops::Range<usize>> {
    let (mut found, mut start, mut depth) = (vec![], None, 0_usize);
    for (i, word) in words.iter().enumerate() {
        match word.token {
            Token::Fn if depth == 0 => start = Some(i),
            Token::LeftBrace | Token::MapStart => depth += 1,
            Token::RightBrace => {
                depth = depth.saturating_sub(1);
                found.extend(start.take_if(|_| depth == 0).map(|start| start..i));
            }
            _ => {}
        }
    }
    found.extend(start.map(|start| start..words.len()));
    found
}

/// `Tensor [i64] = f64`, as Rhai words it.
pub fn indexing(access: &str) -> Error {
    let (owner, rest) = access.split_once(" [").unwrap_or((access, ""));
    let (index, new) = rest.split_once(']').unwrap_or((rest, ""));
    let (owner, index) = (argument(owner), argument(index));
    if new.is_empty() {
        return Error::new(Kind::Type, format!("{} cannot be indexed by {index}", one(&owner)));
    }
    let error = Error::new(Kind::Type, format!("entries of {} cannot be set", one(&owner)));
    error.hint("tensors are values: make a new one, for example with `select` or `cat`")
}

/// `Unknown property 'shap' - a getter is not registered for type 'Tensor'`, as Rhai words it.
pub fn property(message: &str) -> Error {
    let quoted: Vec<&str> = message.split('\'').skip(1).step_by(2).collect();
    let [name, kind, ..] = quoted.as_slice() else {
        return Error::new(Kind::Type, message.to_lowercase());
    };
    let start = format!("{}.", kind.to_lowercase());
    let signatures = Catalog::get().entries.iter().flat_map(|e| &e.overloads).map(|o| o.signature.as_str());
    let known: Vec<&str> =
        signatures.filter_map(|s| s.strip_prefix(start.as_str())).filter(|s| !s.contains(' ')).collect();
    let foreign = foreign::property(name).filter(|_| kind.contains("Tensor") || kind.contains("array"));
    let near = nearest(name, known.iter().copied()).filter(|_| foreign.is_none());
    let message = format!("{} has no property `{name}`{}", one(&argument(kind)), did_you_mean(near));
    let error = Error::new(Kind::Name, message);
    if known.is_empty() || foreign.is_some() {
        return hinted(error, foreign);
    }
    error.hint(format!("known: {}", known.join(", ")))
}

/// `an array`, `a Tensor`.
fn one(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A value where another kind is needed.
pub fn mismatch(wanted: &str, came: &str) -> Error {
    let error = Error::new(Kind::Type, format!("expected {wanted}, got {came}"));
    let hint = "write `x.item() > 0` of one number, `(x > 0).min().item() == 1` to ask for all";
    hinted(error, (wanted == "bool" && came == "Tensor").then_some(hint))
}

/// The end of a sentence about a name that is not known.
pub fn did_you_mean(near: Option<&str>) -> String {
    near.map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// The functions that Rhai itself brings.
pub(super) fn standard() -> &'static BTreeSet<String> {
    static NAMES: OnceLock<BTreeSet<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let names = Engine::new().collect_fn_metadata(None, |f| Some(f.metadata.name.to_string()), true);
        names.into_iter().filter(|n| !n.contains('$')).collect()
    })
}
