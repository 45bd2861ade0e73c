//! The page of one or several runs: one HTML file that needs nothing else, with results, curves, images, control over updates,
//! settings and provenance.
//!
//! Tables and images are made here, where every value becomes text (`markup`); `page.js` draws curves and heat maps from the numbers in
//! the page. A policy in the page lets no other script run and nothing be fetched.
//!
//! The page sets `data-ready` or `data-error` on its root, which is what the test with a browser reads.

mod curves;
mod markup;
mod pictures;
pub mod reading;
mod results;
mod settings;
pub mod strip;

use super::record::{file_error, write_text};
use amscript_base::context::Context;
use amscript_base::permissions::{Allowed, Root};
use amscript_base::{bail, error::Result, file};
use markup::{Html, folded, tag, text, word};
use reading::Reading;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// What every page begins with; a file that does not is never written over.
const MARK: &str = "<!doctype html>\n<!-- amscript report -->\n";

/// Runs that were read.
pub struct Report {
    pub runs: Vec<Reading>,
    /// Folders that hold no run.
    pub wrong: Vec<String>,
}

impl Report {
    /// Reads the runs in these folders and below them; an error where there are none.
    pub fn of(folders: &[PathBuf]) -> Result<Self> {
        within(folders, || {
            let (found, wrong) = reading::find(folders)?;
            let names = reading::names(&found);
            let runs = found.iter().zip(names).map(|(folder, name)| Reading::of(folder, name)).collect();
            Ok(Self { runs, wrong })
        })
    }

    /// Everything that could not be read, a line each.
    pub fn notes(&self) -> Vec<String> {
        let own = |run: &Reading| run.notes.iter().map(|note| format!("{}: {note}", run.name)).collect::<Vec<_>>();
        self.wrong.iter().cloned().chain(self.runs.iter().flat_map(own)).collect()
    }

    /// The page, and what was left out of it.
    pub fn html(&self) -> (String, Vec<String>) {
        let runs = &self.runs;
        let (data, thinned) = curves::data(runs);
        let folders: Vec<_> = runs.iter().map(|run| run.folder.clone()).collect();
        let (images, left_out) = within(&folders, || pictures::section(runs));
        let title = match runs.as_slice() {
            [one] => one.name.clone(),
            several => format!("{} runs", several.len()),
        };
        // inside a script element only `<` could end it
        let data = data.to_string().replace('<', "\\u003c");
        let part = |html: Html| html.as_str().to_string();
        let page = fill(&[
            ("mark", MARK.into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("style-hash", policy(STYLE)),
            ("script-hash", policy(SCRIPT)),
            ("title", part(text(title))),
            ("style", STYLE.into()),
            ("runs", part(list(runs))),
            ("notes", part(notes("notes", "could not be read", &self.notes()))),
            ("results", part(results::section(runs))),
            ("thinned", part(notes("notes left-out", "left out", &thinned))),
            ("images", part(images)),
            ("left-out", part(notes("notes left-out", "left out", &left_out))),
            ("settings", part(settings::section(runs))),
            ("provenance", part(settings::provenance(runs))),
            ("data", data),
            ("script", SCRIPT.into()),
        ]);
        (page, [thinned, left_out].concat())
    }

    /// Writes the page, whole or not at all; only an older report is replaced. Gives what was left out.
    pub fn write(&self, path: &Path) -> Result<Vec<String>> {
        if file::exists(path) {
            let ours = file::begins_with(path, MARK.as_bytes());
            if !ours.map_err(|e| file_error(path, "read", &e).within("report"))? {
                bail!(File, "report: `{}` exists and is no report", path.display(); hint: "give another file with `--out`");
            }
        }
        let (page, left_out) = self.html();
        write_text(path, &page).map_err(|e| e.within("report"))?;
        Ok(left_out)
    }
}

/// Does `work`, which may read what lies in these folders and nothing that links in them lead to.
pub fn within<T>(folders: &[PathBuf], work: impl FnOnce() -> T) -> T {
    let mut permissions = Context::current().permissions().clone();
    permissions.read = Allowed::These(folders.iter().filter_map(|folder| Root::named(folder).ok()).collect());
    Context::permitting(permissions, work)
}

/// The page's source of a policy: the hash of what stands between the tags.
fn policy(source: &str) -> String {
    format!("'sha256-{}'", base64::encode(Sha256::digest(source)))
}

/// The template with these values in its places, each once: what a value holds is not looked at.
fn fill(values: &[(&str, String)]) -> String {
    let mut parts = PAGE.split("{{");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        out += values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
        out += rest;
    }
    out
}

/// The runs with their colours, and where each stands.
fn list(runs: &[Reading]) -> Html {
    let item = |(i, run): (usize, &Reading)| {
        let color = (i % 10).to_string();
        let swatch = tag("span", &[("class", "swatch"), ("data-color", &color), ("aria-hidden", "true")], []);
        tag("li", &[], [swatch, word("b", &run.name), text(format!(" {}", run.state))])
    };
    let list = tag("ul", &[("class", "runs")], runs.iter().enumerate().map(item));
    let unfinished = runs.iter().filter(|run| run.result.is_none()).count();
    match runs.len() {
        0..=8 => list,
        n => folded(format!("{n} runs, {unfinished} of them without results"), false, [list]),
    }
}

fn notes(class: &str, what: &str, notes: &[String]) -> Html {
    if notes.is_empty() {
        return Html::default();
    }
    let items = tag("ul", &[], notes.iter().map(|note| word("li", note)));
    tag("aside", &[("class", class), ("aria-label", what)], [items])
}
