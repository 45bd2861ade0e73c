//! What is known and what is found: every model, its files, their types, sizes and hashes, from headers alone.

use super::source::{Folder, Sources};
use crate::archive::Archive;
use crate::digest;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_tensor::DType;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files up to this size are always hashed.
const SMALL: u64 = 16 << 20;
/// Folders below a model's own that are looked into.
const DEPTH: usize = 2;

/// A model by name, and what was found of it.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    pub name: String,
    /// Where it is published on the Hugging Face hub.
    pub repository: Option<String>,
    pub place: Availability,
    /// The folder.
    pub path: Option<String>,
    pub files: Vec<File>,
}

/// The kind of place where a model was found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    Missing,
    Folder,
    Cache,
    Embedded,
}

/// One file of a model.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Folder below the model's, such as `transformer`; empty for the model's own.
    pub component: String,
    pub name: String,
    pub bytes: u64,
    pub sha256: Option<String>,
    /// What is wrong with it.
    pub fault: Option<String>,
    /// What it holds, when it is a readable file of tensors.
    pub tensors: Option<Tensors>,
}

/// What a file of tensors holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tensors {
    pub count: usize,
    pub parameters: u64,
    /// Types of the numbers, such as `bf16`, the most frequent first.
    pub types: Vec<String>,
}

impl File {
    fn named(component: &str, name: String) -> Self {
        Self { component: component.into(), name, bytes: 0, sha256: None, fault: None, tensors: None }
    }

    /// The name with its folder.
    pub fn path(&self) -> String {
        if self.component.is_empty() { self.name.clone() } else { format!("{}/{}", self.component, self.name) }
    }

    /// Notes the hash of what it holds. What the Hugging Face cache calls a file is what it should be: one that differs is damaged.
    fn found(&mut self, hash: Option<String>) {
        let named = std::mem::replace(&mut self.sha256, hash);
        if let (Some(found), Some(named)) = (&self.sha256, named)
            && *found != named
        {
            self.fault = Some(format!("its content is not {}, as the cache calls it", &named[..12.min(named.len())]));
        }
    }

    /// Whether it was not read for its hash.
    fn is_unread(&self) -> bool {
        self.sha256.is_none() || self.bytes > SMALL
    }

    /// Whether it is one of those that hold tensors, readable or not.
    pub fn is_weights(&self) -> bool {
        ends_with(&self.name, &["safetensors", "pt", "pth", "ckpt", "bin"])
    }
}

impl Model {
    /// What lies in a folder.
    fn of_folder(name: &str, repository: Option<String>, place: Availability, folder: &Folder) -> Self {
        let mut files = Vec::new();
        collect(folder, "", DEPTH, &mut files);
        files.extend(
            folder
                .unfinished()
                .into_iter()
                .map(|name| File { fault: Some("its download has not ended".into()), ..File::named("", name) }),
        );
        let path = folder.path().map(|path| path.display().to_string());
        Self { name: name.to_string(), repository, place, path, files }
    }

    fn missing(name: &str, repository: &str) -> Self {
        let repository = Some(repository.to_string());
        Self { name: name.to_string(), repository, place: Availability::Missing, path: None, files: Vec::new() }
    }

    /// Bytes of the files that [`Model::hash`] reads.
    pub fn unhashed(&self) -> u64 {
        self.files.iter().filter(|file| file.is_unread()).map(|file| file.bytes).sum()
    }

    /// Hashes the large files; progress bars count their bytes.
    pub fn hash(&mut self) {
        let Some(root) = self.path.as_ref().map(PathBuf::from) else { return };
        for file in self.files.iter_mut().filter(|file| file.is_unread()) {
            file.found(digest::hash_file(&root.join(file.path())).ok());
        }
    }
}

/// Every model that is known or found.
pub fn models(sources: &Sources) -> Vec<Model> {
    let mut models: Vec<Model> = Vec::new();
    let mut seen = BTreeSet::new();
    let known = sources.published().iter().map(|(short, _)| short.to_string()).chain(sources.known().into_keys());
    for name in known {
        let model = model(sources, &name);
        let fresh = model.as_ref().is_ok_and(|m| m.path.is_none() || seen.insert(m.path.clone()));
        models.extend(model.ok().filter(|_| fresh));
    }
    models
}

/// One model by name or path; a published one that is not found is known all the same.
pub fn model(sources: &Sources, name: &str) -> Result<Model> {
    let published = sources.published().iter().find(|(short, _)| *short == name);
    match (sources.find(name), published) {
        (Ok(folder), _) => {
            let cached = |path: &Path| path.parent().is_some_and(|p| p.ends_with("snapshots"));
            let place = match folder.path() {
                None => Availability::Embedded,
                Some(path) if cached(path) => Availability::Cache,
                Some(_) => Availability::Folder,
            };
            let repository = published.map(|(_, repository)| repository.to_string());
            Ok(Model::of_folder(name, repository, place, &folder))
        }
        (Err(_), Some((short, repository))) => Ok(Model::missing(short, repository)),
        (Err(error), None) => Err(error),
    }
}

fn ends_with(name: &str, extensions: &[&str]) -> bool {
    Path::new(name).extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e))
}

/// The files of a folder and of those below it.
fn collect(folder: &Folder, component: &str, depth: usize, files: &mut Vec<File>) {
    for name in folder.names().into_iter().filter(|name| !name.starts_with('.')) {
        match folder.sub(&name) {
            Ok(_) if depth == 0 => {}
            Ok(below) => {
                let component = if component.is_empty() { name } else { format!("{component}/{name}") };
                collect(&below, &component, depth - 1, files);
            }
            Err(_) => files.push(file(folder, component, name)),
        }
    }
}

fn file(folder: &Folder, component: &str, name: String) -> File {
    let size = size(folder, &name);
    let mut file = File { bytes: *size.as_ref().unwrap_or(&0), ..File::named(component, name) };
    match size.and_then(|_| examine(folder, &file)) {
        Ok(tensors) => file.tensors = tensors,
        Err(error) => file.fault = Some(plain(&error, folder)),
    }
    file.sha256 = folder.known_hash(&file.name);
    if file.bytes <= SMALL
        && let Some(path) = folder.path()
    {
        file.found(digest::hash_file(&path.join(&file.name)).ok());
    }
    file
}

fn size(folder: &Folder, name: &str) -> Result<u64> {
    let Some(path) = folder.path().map(|path| path.join(name)) else {
        return Ok(folder.bytes(name)?.len() as u64);
    };
    match file::size(&path) {
        Ok(size) => Ok(size),
        Err(_) if file::link(&path).is_ok() => {
            bail!(Missing, "what it links to is not there; a download may not have ended")
        }
        Err(e) => Err(Error::new(Kind::File, e.to_string())),
    }
}

/// What a file of tensors holds; an index is compared with the shards it lists.
fn examine(folder: &Folder, file: &File) -> Result<Option<Tensors>> {
    if let Some(stem) = file.name.strip_suffix(".safetensors.index.json") {
        return folder.weights(stem, DType::F32, &amscript_tensor::Device::Cpu).map(|_| None);
    }
    match file.is_weights() {
        true => folder.archive(&file.name).map(|archive| Some(holds(&archive))),
        false => Ok(None),
    }
}

fn holds(archive: &Archive) -> Tensors {
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    let mut parameters = 0;
    for entry in archive.entries().values() {
        *types.entry(entry.dtype.as_str()).or_default() += 1;
        parameters += entry.shape.iter().product::<usize>() as u64;
    }
    let mut types: Vec<(&str, usize)> = types.into_iter().collect();
    types.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let types = types.into_iter().map(|(name, _)| name.to_string()).collect();
    Tensors { count: archive.entries().len(), parameters, types }
}

/// The reason without the folder, which is shown beside it.
fn plain(error: &Error, folder: &Folder) -> String {
    error.message.replace(&format!("{}/", folder.origin()), "")
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_that_have_not_ended_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (root.path().join("blobs"), root.path().join("snapshots/a"));
        [&blobs, &snapshot].into_iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        std::fs::write(blobs.join("abc.incomplete"), "").unwrap();
        let model = Model::of_folder("x", None, Availability::Cache, &Folder::disk(snapshot));
        let faults: Vec<_> = model.files.iter().map(|file| (file.name.as_str(), file.fault.as_deref())).collect();
        assert_eq!(faults, [("abc.incomplete", Some("its download has not ended"))]);
    }

    #[test]
    fn what_differs_from_its_name_in_the_cache_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (root.path().join("blobs"), root.path().join("snapshots/a"));
        [&blobs, &snapshot].into_iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        let (hash, fault) = (digest::hash(b"abc"), |content: &str| {
            let blob = blobs.join(digest::hash(b"abc"));
            std::fs::write(&blob, content).unwrap();
            std::os::unix::fs::symlink(&blob, snapshot.join("x.txt")).ok();
            let file = file(&Folder::disk(&snapshot), "", "x.txt".into());
            (file.sha256.unwrap(), file.fault)
        });
        assert_eq!(fault("abc"), (hash.clone(), None));
        let named = format!("its content is not {}, as the cache calls it", &hash[..12]);
        assert_eq!(fault("abd"), (digest::hash(b"abd"), Some(named)));
    }
}
