//! What was probably meant: the nearest name, or the signature a call should have had.

use super::Session;
use super::catalog::{Catalog, Overload, script_type};
use super::rename::{self, RENAMED};
use super::source::own_name;
use amscript_base::error::{Error, Kind, nearest};
use rhai::Engine;
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// A call that no function takes, as Rhai words it: `matmul (Tensor, string)`.
pub fn function(call: &str, session: &Session) -> Error {
    let (name, types) = call.split_once(" (").unwrap_or((call, ""));
    let name = own_name(name);
    let came: Vec<String> = types.trim_end_matches(')').split(", ").filter(|t| !t.is_empty()).map(argument).collect();
    if name.starts_with("anon$") {
        let message = "a closure was called with another number of arguments than it has parameters";
        return Error::new(Kind::Type, message);
    }
    let overloads: Vec<&Overload> = Catalog::get().named(name).flat_map(|e| &e.overloads).collect();
    if !overloads.is_empty() {
        return misfit(name, &overloads, &came);
    }
    let came = came.join(", ");
    let own = session.functions();
    if let Some(parameters) = own.get(name) {
        return Error::new(Kind::Type, format!("`{name}`: expected {parameters}, got ({came})"));
    }
    if standard().contains(name) {
        return Error::new(Kind::Type, format!("`{name}`: no form of it takes ({came})"));
    }
    no_function(name, own.keys().chain(standard()).map(String::as_str))
}

/// There is no function of that name; `others` are names apart from ours that may have been meant.
pub fn no_function<'a>(name: &str, others: impl Iterator<Item = &'a str>) -> Error {
    if let Some(new) = rename::function(RENAMED, name) {
        return rename::moved("", name, new);
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
    let fit = |o: &&&Overload| {
        let same = o.types().zip(came).filter(|(a, b)| a == b || fits(a, b)).count();
        (o.parameters.len() == came.len(), same)
    };
    let types = |o: &&Overload| o.types().collect::<Vec<_>>().join(", ");
    let best = overloads.iter().rev().max_by_key(fit).map_or(String::new(), types);
    let error = Error::new(Kind::Type, format!("`{name}`: expected ({best}), got ({})", came.join(", ")));
    let others: Vec<&str> = overloads.iter().take(6).map(|o| o.signature.as_str()).collect();
    error.hint(format!("write {}", others.join(" or ")))
}

/// Whether a value of type `came` goes where `wanted` stands.
pub fn fits(wanted: &str, came: &str) -> bool {
    wanted == "any" || (wanted == "number" && came == "integer")
}

fn argument(name: &str) -> String {
    let shown = script_type(name.trim());
    if shown.is_empty() { "()".into() } else { shown }
}

/// An unknown variable or map property; the words of the script are the candidates.
pub fn word(what: &str, name: &str, text: &str) -> Error {
    if ["let", "const"].iter().any(|declared| text.contains(&format!("{declared} {name}"))) {
        let error = Error::new(Kind::Name, format!("no {what} `{name}` here"));
        return error
            .hint(format!("a function sees only its parameters: pass `{name}` to it, or use a closure `|x| ..`"));
    }
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| *w != name && w.len() > 1);
    Error::new(Kind::Name, format!("no {what} `{name}`{}", did_you_mean(nearest(name, words))))
}

/// `Tensor [i64] = f64`, as Rhai words it.
pub fn indexing(access: &str) -> Error {
    let (owner, rest) = access.split_once(" [").unwrap_or((access, ""));
    let (index, new) = rest.split_once(']').unwrap_or((rest, ""));
    let (owner, index) = (argument(owner), argument(index));
    if new.is_empty() {
        return Error::new(Kind::Type, format!("a {owner} cannot be indexed by {index}"));
    }
    let error = Error::new(Kind::Type, format!("entries of a {owner} cannot be set"));
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
    let suggestion = did_you_mean(nearest(name, known.iter().copied()));
    let error = Error::new(Kind::Name, format!("a {} has no property `{name}`{suggestion}", argument(kind)));
    if known.is_empty() { error } else { error.hint(format!("known: {}", known.join(", "))) }
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
