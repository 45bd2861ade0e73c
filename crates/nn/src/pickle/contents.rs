//! Which dict of a pickle is the state dict, and what is said beside its tensors.

use super::machine::{Id, Pickle, Value};
use amscript_base::bail;
use amscript_base::error::Result;
use std::collections::{BTreeMap, HashSet};

/// Usual names of state dicts, the one that is taken first in front; those of averages over a training (EMA) come before them.
const NAMES: [&str; 5] = ["shadow", "state_dict", "model", "model_state_dict", "module"];

/// Words in the names of averages; numbers behind them count.
const AVERAGES: [&str; 4] = ["ema", "avg", "averaged", "swa"];

/// Words in the names of other averages: an optimizer's, a log's.
const NOT_WEIGHTS: [&str; 3] = ["exp", "running", "loss"];

/// Dicts in dicts that are looked into.
const DEPTH: usize = 2;

/// Most entries that are looked at for what stands beside the tensors.
const MOST_BESIDE: usize = 100_000;

/// Longest name and text of it.
const LONGEST: usize = 100;

/// Most keys that a message names, and averages that are looked for.
const FEW: usize = 8;

type Items = [(Id, Id)];

/// The state dict: the averages' (EMA), else that of a usual name, else the dict itself, else the only one in it. Beside it
/// what is to be told of averages: which of several are taken, or that those there have tensors without names.
pub fn state_dict<'p>(pickle: &'p Pickle) -> Result<(&'p Items, Option<String>)> {
    let Some(items) = pickle.dict(pickle.top) else {
        bail!(File, "expected a state dict, got another object");
    };
    let mut search = Search { pickle, seen: HashSet::new() };
    let averages: Vec<_> = named(pickle, items).filter(|(name, _)| is_average(name)).take(FEW).collect();
    let dicts = averages.iter().filter_map(|(name, value)| Some((short(name), search.below(*value, DEPTH)?)));
    let dicts: Vec<_> = dicts.collect();
    if let [(first, found), others @ ..] = &dicts[..] {
        let others = others.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let told = format!("of its averages (EMA), `{first}` is read, not {others}");
        return Ok((found, (!others.is_empty()).then_some(told)));
    }
    let found = search.within(items, DEPTH);
    if let [found] = found[..] {
        // tensors of the state dict itself are read, and below a prefix they have names
        let is_read =
            |name: &str, value| is_tensor(pickle, value) && (std::ptr::eq(found, items) || name.contains('.'));
        let unread = averages.iter().find(|(name, value)| !is_read(name, *value) && nameless(pickle, *value));
        let told = |name| format!("its averages `{name}` (EMA) have no names and are not read; its plain weights are");
        return Ok((found, unread.map(|(name, _)| told(short(name)))));
    }
    let keys: Vec<_> = named(pickle, items).map(|(name, _)| format!("`{}`", short(name))).take(FEW).collect();
    let keys = if keys.is_empty() { "none".into() } else { keys.join(", ") };
    if found.is_empty() {
        bail!(File, "expected a state dict (bare, or under `ema`, `state_dict`, `model` or another name), got {keys}");
    }
    bail!(File, "expected one state dict, got {} of them among {keys}", found.len(); hint: "save the one that is meant")
}

/// Numbers and short texts that stand beside the tensors, as the header of a safetensors file gives them: those in dicts as JSON.
pub fn beside(pickle: &Pickle) -> BTreeMap<String, String> {
    let mut left = MOST_BESIDE;
    let text = |value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    object(pickle, pickle.top, DEPTH + 1, &mut left).into_iter().map(|(name, value)| (name, text(value))).collect()
}

fn object(pickle: &Pickle, value: Id, depth: usize, left: &mut usize) -> serde_json::Map<String, serde_json::Value> {
    let mut found = serde_json::Map::new();
    for (name, value) in pickle.dict(value).into_iter().flat_map(|items| named(pickle, items)) {
        *left = left.saturating_sub(1);
        if *left == 0 {
            break;
        }
        let value = match pickle.get(value) {
            Value::Int(number) => Some((*number).into()),
            Value::Number(number) => serde_json::Number::from_f64(*number).map(Into::into),
            Value::Text(text) if text.len() <= LONGEST => Some((*text).into()),
            Value::Dict(_) if depth > 0 => {
                let inner = object(pickle, value, depth - 1, left);
                (!inner.is_empty()).then_some(inner.into())
            }
            _ => None,
        };
        if let Some(value) = value.filter(|_| name.len() <= LONGEST) {
            found.insert(name.into(), value);
        }
    }
    found
}

struct Search<'p> {
    pickle: &'p Pickle<'p>,
    /// Dicts that were looked into: one that stands in many others is looked into once.
    seen: HashSet<Id>,
}

impl<'p> Search<'p> {
    /// The one state dict that a value is or holds.
    fn below(&mut self, value: Id, depth: usize) -> Option<&'p Items> {
        let items = self.pickle.dict(value).filter(|_| self.seen.insert(value))?;
        match self.within(items, depth)[..] {
            [found] => Some(found),
            _ => None,
        }
    }

    /// The state dict among these entries, or all where none is meant before the others.
    fn within(&mut self, items: &'p Items, depth: usize) -> Vec<&'p Items> {
        let pickle = self.pickle;
        let inside: Vec<_> =
            named(pickle, items).filter(|(_, value)| depth > 0 && pickle.dict(*value).is_some()).collect();
        for wanted in NAMES {
            let mut found = inside.iter().filter(|(name, _)| *name == wanted);
            if let Some(found) = found.find_map(|(_, value)| self.below(*value, depth - 1)) {
                return vec![found];
            }
        }
        if named(pickle, items).any(|(_, value)| is_tensor(pickle, value)) {
            return vec![items];
        }
        inside.iter().filter_map(|(_, value)| self.below(*value, depth - 1)).collect()
    }
}

/// Entries with a name.
fn named<'p>(pickle: &'p Pickle, items: &'p Items) -> impl Iterator<Item = (&'p str, Id)> {
    items.iter().filter_map(|(key, value)| Some((pickle.text(*key)?, *value)))
}

fn is_average(name: &str) -> bool {
    let words = || name.split(['_', '.', '-']).map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    let is_one_of = |list: &[&str]| words().any(|word| list.iter().any(|one| word.eq_ignore_ascii_case(one)));
    is_one_of(&AVERAGES) && !is_one_of(&NOT_WEIGHTS)
}

fn is_tensor(pickle: &Pickle, value: Id) -> bool {
    pickle.call(value).is_some_and(|(name, _)| name.starts_with("_rebuild"))
}

/// Whether a value is, or holds, a list of tensors, or tensors that are not one state dict.
fn nameless(pickle: &Pickle, value: Id) -> bool {
    let listed = |value| match pickle.get(value) {
        Value::List(items) => items.first().is_some_and(|first| is_tensor(pickle, *first)),
        _ => is_tensor(pickle, value),
    };
    listed(value) || pickle.dict(value).is_some_and(|items| items.iter().take(LONGEST).any(|(_, value)| listed(*value)))
}

/// The beginning of a long name.
fn short(name: &str) -> &str {
    name.char_indices().nth(LONGEST).map_or(name, |(end, _)| &name[..end])
}
