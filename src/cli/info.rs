//! `amscript info`: what a recipe asks for, without running it, and what a LoRA or an image was made from.

use super::{output, recipe, setting};
use crate::script::header::{self, Header};
use crate::script::registry::Registry;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_nn::archive::Archive;
use amscript_nn::data::image;
use amscript_nn::source::Sources;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

/// `amscript info FILE`.
pub fn command(path: &Path) -> anyhow::Result<()> {
    output::line(&text(path)?)
}

fn text(path: &Path) -> Result<String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "safetensors" => Ok(origin(Archive::open(path)?.metadata().clone())),
        "png" => {
            let bytes = file::read_within(path, image::MAX_FILE)
                .map_err(|e| Error::new(Kind::File, format!("{}: {e}", path.display())))?;
            Ok(origin(image::texts(&bytes).map_err(|e| e.within(path.display()))?))
        }
        "jpg" | "jpeg" => {
            bail!(Value, "info: a JPEG does not tell what it was made from; expected .png, .safetensors or a script")
        }
        _ => of_recipe(path),
    }
}

/// What a file tells of where it comes from.
fn origin(texts: BTreeMap<String, String>) -> String {
    if texts.is_empty() {
        return "it does not tell what it was made from".into();
    }
    let line = |(key, value): (&String, &String)| {
        let key = key.escape_debug().to_string();
        format!("{key:<10} {}", value.escape_debug())
    };
    let lines: Vec<String> = texts.iter().map(line).collect();
    lines.join("\n")
}

/// What a recipe says of itself, what was found in its text, and its settings.
fn of_recipe(path: &Path) -> Result<String> {
    let source = recipe::read(path)?;
    let header = Header::read(&source.text)?;
    let line = |name: &str, value: &dyn Display| format!("{name:<12} {value}");
    let told = Some(headline(&source.text)).filter(|told| !told.is_empty() && header.get("title").is_none());
    let mut says: Vec<String> = told.iter().map(|told| line("title", told)).collect();
    says.extend(header.0.iter().map(|(key, value)| line(key, value)));
    let flags: Vec<String> = header.asks()?.iter().map(|(kind, name)| format!("--allow-{kind}={name}")).collect();
    says.push(line("needs", &if flags.is_empty() { "no flag".to_string() } else { flags.join(" ") }));
    let opened = opened(&source.text);
    let mut found: Vec<String> = opened.iter().map(|(by, names)| line(by, &names.join(", ").escape_debug())).collect();
    let lock = super::lock::hash(&source)
        .map_or("none; `amscript lock` writes one".to_string(), |hash| format!("sha256 {hash}"));
    let hash = amscript_nn::digest::hash(source.text.as_bytes());
    found.extend([line("recipe", &format!("sha256 {hash}")), line("lock", &lock)]);
    let settings = setting::table(&source.text).map(|table| format!("settings\n{table}"));
    let parts: Vec<String> = [says.join("\n"), found.join("\n")].into_iter().chain(settings).collect();
    Ok(parts.join("\n\n"))
}

/// What a script opens unless `--set` says otherwise: names in its text by function, models and rewards by the setting that names them.
fn opened(text: &str) -> BTreeMap<String, Vec<String>> {
    let sources = Registry::default().publishing(Sources::new(None));
    let published = sources.published().iter().flat_map(|(short, repository)| [*short, *repository]);
    let known: BTreeSet<String> = published.map(String::from).chain(sources.known().into_keys()).collect();
    let by_setting = setting::texts(text).into_iter().filter(|(_, name)| known.contains(name));
    let mut out = BTreeMap::<String, Vec<String>>::new();
    header::opens(text).into_iter().chain(by_setting).for_each(|(by, name)| out.entry(by).or_default().push(name));
    out
}

/// The beginning of the prose at the top of a script, to the first stop.
fn headline(text: &str) -> String {
    let head = text.lines().map_while(|line| line.strip_prefix("//!"));
    let head = head.map(str::trim).take_while(|line| !["", "---"].contains(line)).collect::<Vec<_>>().join(" ");
    let ends = [". ", "? ", ": ", "; "].iter().filter_map(|end| head.find(end).map(|i| i + usize::from(*end == "? ")));
    let end = ends.filter(|end| *end >= 20).min().unwrap_or(head.len());
    head[..end].trim_end_matches('.').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of embedded models in a line of a head.
    fn names(header: &Header, key: &str) -> BTreeSet<String> {
        let words = header.get(key).unwrap_or_default().split([' ', ',', ';']);
        words.filter(|word| word.starts_with("tiny/")).map(String::from).collect()
    }

    #[test]
    fn what_a_file_tells_stands_in_a_line_each() {
        let texts = BTreeMap::from([("a\nlock".to_string(), "b\nc".to_string())]);
        assert_eq!(origin(texts), "a\\nlock    b\\nc");
    }

    #[test]
    fn heads_of_recipes_name_the_models_and_rewards_that_are_opened() {
        for recipe in recipe::all() {
            let header = Header::read(recipe.text).unwrap();
            let opened = opened(recipe.text).into_values().flatten().filter(|name| name.starts_with("tiny/"));
            let (models, rewards): (BTreeSet<String>, _) =
                opened.partition(|name| ["tiny/flux2", "tiny/sit"].contains(&name.as_str()));
            assert_eq!(names(&header, "models"), models, "models of {}", recipe.name);
            assert_eq!(names(&header, "rewards"), rewards, "rewards of {}", recipe.name);
        }
    }
}
