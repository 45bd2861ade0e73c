//! `help(x)` and `apropos(word)` as text.

use super::catalog::{Catalog, Entry};
use super::option::Field;

/// What `help("name")` shows: every entry of that name, or its nearest neighbours.
pub fn help(name: &str) -> String {
    let catalog = Catalog::get();
    if let Some(heading) = catalog.headings.iter().find(|h| h.name == name) {
        let entries = catalog.entries.iter().filter(|e| e.chapter == name);
        let with_entries = format!("chapter {name}\n\n{}\n\n{}", heading.text, list(entries));
        return if catalog.named(name).next().is_some() {
            format!("{}\n\n{with_entries}", pages(catalog, name))
        } else {
            with_entries
        };
    }
    match (catalog.named(name).next(), catalog.nearest(name, std::iter::empty())) {
        (Some(_), _) => pages(catalog, name),
        (None, Some(near)) => format!("no function `{name}`; did you mean `{near}`?\n\n{}", pages(catalog, near)),
        (None, None) => format!("no function `{name}`; try apropos(\"{name}\")"),
    }
}

/// What `help()` shows: the chapters.
pub fn contents() -> String {
    let sentence =
        |text: &str| text.split_once(".\n").or(text.split_once(". ")).map_or(text, |(s, _)| s).replace('\n', " ");
    let lines = Catalog::get().headings.iter().map(|h| format!("{:<16} {}", h.name, sentence(&h.text)));
    let chapters = lines.collect::<Vec<_>>().join("\n");
    format!("help(\"name\") explains a function or a chapter, apropos(\"word\") searches. Chapters:\n\n{chapters}")
}

/// What `help(value)` shows for a value of a type: the functions that take it first.
pub fn methods(kind: &str) -> String {
    let takes = |e: &&Entry| e.overloads.iter().any(|o| o.types().next() == Some(kind));
    format!("{kind}; functions of it:\n\n{}", list(Catalog::get().entries.iter().filter(takes)))
}

/// Every entry whose name, summary or details contain the word.
pub fn apropos(word: &str) -> String {
    let word = word.to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&word);
    let options = |e: &Entry| e.options.iter().any(|o| has(o.name) || has(&o.meaning));
    let found = Catalog::get().entries.iter();
    let text = list(found.filter(|e| has(&e.name) || has(&e.summary) || has(&e.details) || options(e)));
    if text.is_empty() { format!("nothing about \"{word}\"") } else { text }
}

fn list<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    entries.map(|e| format!("{:<24} {}", e.name, e.summary)).collect::<Vec<_>>().join("\n")
}

fn pages(catalog: &Catalog, name: &str) -> String {
    catalog.named(name).map(page).collect::<Vec<_>>().join("\n\n")
}

fn page(entry: &Entry) -> String {
    let mut parts = vec![signatures(entry), entry.summary.clone(), entry.details.clone(), options(&entry.options)];
    parts.extend(entry.examples.iter().map(|e| indent(e.code.trim_end())));
    parts.retain(|p| !p.is_empty());
    parts.join("\n\n")
}

/// One line per overload with what it gives.
pub fn signatures(entry: &Entry) -> String {
    let one = |o: &super::catalog::Overload| match o.gives.as_str() {
        "" => o.signature.clone(),
        gives => format!("{} -> {gives}", o.signature),
    };
    entry.overloads.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn options(fields: &[Field]) -> String {
    let line = |f: &Field| format!("  {}: {} = {}\n      {}", f.name, f.expected, f.default, f.meaning);
    let lines = fields.iter().map(line).collect::<Vec<_>>().join("\n");
    if lines.is_empty() { lines } else { format!("options:\n{lines}") }
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("    {l}")).collect::<Vec<_>>().join("\n")
}
