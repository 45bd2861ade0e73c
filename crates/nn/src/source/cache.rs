//! The cache of huggingface_hub: where it is, and which snapshot of a repository is meant.

use super::{below, plain};
use amscript_base::error::warn_once;
use amscript_base::file;
use std::path::{Path, PathBuf};

/// Where huggingface_hub keeps what it fetches, by the variables that it reads, in its order.
pub(super) fn hub_cache(variable: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let path = |name: &str| expanded(&variable(name)?, variable);
    let own = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
    own.or_else(|| path("HF_HOME").map(|folder| folder.join("hub")))
        .or_else(|| path("XDG_CACHE_HOME").map(|folder| folder.join("huggingface/hub")))
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface/hub")))
}

/// A folder as huggingface_hub reads it: `~` at its beginning is the home, `$NAME` and `${NAME}` are variables, where they are set.
pub(super) fn expanded(folder: &str, variable: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let folder = match folder.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) {
        Some(rest) => format!("{}/{}", variable("HOME")?, rest.trim_start_matches('/')),
        None => folder.into(),
    };
    let mut parts = folder.split('$');
    let mut out = String::from(parts.next().unwrap_or_default());
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let braced = part.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| part.split_at(end));
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => out.extend([value.as_str(), rest]),
            None => out.extend(["$", part]),
        }
    }
    Some(out.into())
}

/// The snapshot of a revision; without one, that which `refs/main` names, else the only or last one, which is told.
pub(super) fn snapshot(cache: &Path, repository: &str, revision: Option<&str>) -> Option<PathBuf> {
    let root = cache.join(format!("models--{}", repository.replace('/', "--")));
    let wanted = revision.unwrap_or("main");
    let commit = match plain(wanted) {
        true => file::read_text(&root.join("refs").join(wanted)).unwrap_or_default(),
        false => String::new(),
    };
    let commit = commit.trim();
    let named = root.join("snapshots").join(commit);
    if plain(commit) && file::is_folder(&named) {
        return Some(named);
    }
    let there = below(&root.join("snapshots"));
    match revision {
        // as Git does: a beginning that only one has
        Some(start) => {
            let of_start =
                |(name, path): (String, PathBuf)| (start.len() >= 4 && name.starts_with(start)).then_some(path);
            let mut such = there.into_iter().filter_map(of_start);
            such.next().filter(|_| such.next().is_none())
        }
        None => {
            let (name, path) = there.last_key_value()?;
            let names = there.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let told = match there.len() {
                _ if plain(commit) => format!("revision {commit} is not downloaded; {name} is taken"),
                1 => return Some(path.clone()),
                _ => format!(
                    "no `refs/main` says which of {names} is its newest; {name} is taken; `{repository}@{name}` names it"
                ),
            };
            let message = format!("{repository}: {told}");
            warn_once(&message, &message);
            Some(path.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_hub_puts_it() {
        let at = |variables: &[(&str, &str)]| {
            let found =
                hub_cache(&|name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string()));
            found.map(|path| path.display().to_string())
        };
        let home = ("HOME", "/h");
        assert_eq!(at(&[]), None);
        assert_eq!(at(&[home]).unwrap(), "/h/.cache/huggingface/hub");
        assert_eq!(at(&[home, ("XDG_CACHE_HOME", "/x")]).unwrap(), "/x/huggingface/hub");
        assert_eq!(at(&[home, ("HF_HOME", "~/f"), ("XDG_CACHE_HOME", "/x")]).unwrap(), "/h/f/hub");
        assert_eq!(at(&[home, ("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "~")]).unwrap(), "/h/");
        for value in ["$HOME/f", "${HOME}/f"] {
            assert_eq!(at(&[home, ("HF_HOME", value)]).unwrap(), "/h/f/hub");
        }
        assert_eq!(at(&[home, ("HF_HUB_CACHE", "$NONE/$")]).unwrap(), "$NONE/$");
        assert_eq!(at(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]).unwrap(), "/new");
    }
}
