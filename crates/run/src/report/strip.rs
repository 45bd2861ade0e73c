//! The images that a run left, by name and in the order of their steps: `images/<name>-000025.png`.

use super::reading::{Reading, unread};
use amscript_base::{file, text};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Images of one name in the order of their steps.
pub struct Strip {
    pub run: String,
    pub name: String,
    pub shots: Vec<Shot>,
}

pub struct Shot {
    pub path: PathBuf,
    /// `None` for an image that was written outside a loop.
    pub step: Option<usize>,
    /// What each image of the picture was asked to show, if that is known and was read.
    pub prompts: Vec<String>,
}

impl Shot {
    /// Reads what the images were asked to show from a text of at most so many bytes; one that cannot be read is noted.
    pub fn read_prompts(&mut self, most: u64, notes: &mut Vec<String>) {
        let path = self.path.with_extension("txt");
        match file::read_within(&path, most).and_then(text::decoded) {
            Ok(text) => self.prompts = text.lines().map(String::from).collect(),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => notes.push(unread(&path, &e)),
        }
    }
}

impl Strip {
    /// The prompts of all images, where they are known and stay the same.
    pub fn prompts(&self) -> Option<&[String]> {
        let first = self.shots.first().map(|shot| shot.prompts.as_slice()).filter(|p| !p.is_empty());
        first.filter(|p| self.shots.iter().all(|shot| shot.prompts == *p))
    }
}

/// The images of a run by name; what cannot be read is noted.
pub fn of(run: &Reading, notes: &mut Vec<String>) -> Vec<Strip> {
    let folder = run.folder.join("images");
    let mut by_name: BTreeMap<String, Vec<Shot>> = BTreeMap::new();
    let entries = match file::entries(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            notes.push(format!("{}: cannot read images ({e})", run.name));
            return Vec::new();
        }
    };
    for path in entries.into_iter().map(|(name, _)| folder.join(name)) {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        let Some(stem) =
            path.file_stem().and_then(|s| s.to_str()).filter(|_| ["png", "jpg", "jpeg"].contains(&ending.as_str()))
        else {
            continue;
        };
        let stepped = stem.rsplit_once('-').filter(|(_, n)| n.len() >= 6 && n.bytes().all(|b| b.is_ascii_digit()));
        let (name, step) = stepped.map_or((stem, None), |(name, n)| (name, n.parse().ok()));
        by_name.entry(name.into()).or_default().push(Shot { step, prompts: Vec::new(), path: path.clone() });
    }
    let strip = |(name, mut shots): (String, Vec<Shot>)| {
        shots.sort_by_key(|shot| (shot.step, shot.path.clone()));
        Strip { run: run.name.clone(), name, shots }
    };
    by_name.into_iter().map(strip).collect()
}
