//! Names that scripts used to have, for errors and for `amscript check --fix`.

use super::catalog::Catalog;
use amscript_base::error::{Error, Kind};

/// Old names and new ones: of a function, or with a point of one function's option. Settings on a command line are still taken by
/// their old names, with a warning.
///
/// A row says nothing while the new name is not there; something that still has the old name goes before.
pub type Table = &'static [(&'static str, &'static str)];

/// All that were renamed.
pub const RENAMED: Table = &[
    ("--set.recompute", "checkpoint_steps"),
    ("--set.samples", "panel"),
    ("adjoint_matching.carrying", "adjoint_model"),
    ("adjoint_matching.criterion", "loss"),
    ("adjoint_matching.matched", "loss_steps"),
    ("adjoint_matching.recompute", "checkpoint_steps"),
    ("adjoint_matching.rolled", "rollout_policy"),
    ("fenchel", "fenchel_young"),
    ("fenchel_loss", "fenchel_young_loss"),
    ("fitting", "automatic"),
    ("flow.recompute", "checkpoint_blocks"),
    ("next_step", "discrete_adjoint"),
    ("rollout.keep", "truncate"),
    ("same_step", "paper_adjoint"),
    ("some_steps", "random_steps"),
];

/// Modules that were renamed.
pub const MODULES: Table = &[("stdlib/knobs", "stdlib/sampling_options"), ("stdlib/subject", "stdlib/problem")];

/// What a function that is not there is called now.
pub fn function(table: Table, old: &str) -> Option<&'static str> {
    let new = table.iter().find(|(name, _)| *name == old)?.1;
    Catalog::get().named(new).next().map(|_| new)
}

/// What an option that a function does not know is called now; `known` are its options.
pub fn option<'a>(
    table: Table,
    function: &str,
    old: &str,
    mut known: impl Iterator<Item = &'a str>,
) -> Option<&'static str> {
    let new = table.iter().find(|(name, _)| name.split_once('.') == Some((function, old)))?.1;
    known.any(|name| name == new).then_some(new)
}

/// The error for an old name.
pub fn moved(place: &str, old: &str, new: &str) -> Error {
    let hint = "`amscript check --fix SCRIPT` writes the new name";
    Error::new(Kind::Name, format!("{place}`{old}` is now `{new}`")).hint(hint)
}

/// A text with words replaced: line, column, the old word, the new one. A word that does not stand there is left alone.
pub fn rewrite(text: &str, mut words: Vec<(usize, usize, &str, &str)>) -> String {
    words.sort_unstable();
    let lines = text.split_inclusive('\n').enumerate().map(|(i, line)| {
        let mut line = line.to_string();
        let [from, to] = [i + 1, i + 2].map(|number| words.partition_point(|word| word.0 < number));
        for (_, column, old, new) in words[from..to].iter().rev() {
            let start = line.char_indices().nth(column - 1).map_or(line.len(), |(byte, _)| byte);
            let start = start + usize::from(line[start..].starts_with('"'));
            if line[start..].starts_with(old) {
                line.replace_range(start..start + old.len(), new);
            }
        }
        line
    });
    lines.collect()
}
