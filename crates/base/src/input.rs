//! The files that a host has read weights, prompts, configurations and modules from: what its runs were made from. A lock lists them, and a
//! frozen run keeps to those.

use crate::context::Context;
use crate::file;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What was read, and what may be.
#[derive(Default)]
pub struct Inputs {
    /// Files with their SHA-256, once it was asked for.
    read: Mutex<BTreeMap<PathBuf, Option<String>>>,
    /// Nothing else may be read, but in the folder that is the run's own.
    only: OnceLock<(BTreeSet<PathBuf>, PathBuf)>,
}

impl Inputs {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.read.lock().len()
    }

    /// Nothing is read from now on but these, and what lies in the folder `own`; the first bound counts.
    pub fn keep_to(&self, only: BTreeSet<PathBuf>, own: PathBuf) {
        self.only.set((only, own)).ok();
    }

    /// The files, their links followed.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        self.read.lock().keys().cloned().collect()
    }

    /// All of them with their hashes; `hash` is called once for each file.
    pub fn hashed<E>(
        &self,
        mut hash: impl FnMut(&Path) -> std::result::Result<String, E>,
    ) -> std::result::Result<BTreeMap<PathBuf, String>, E> {
        let known = self.read.lock().clone();
        let mut found = BTreeMap::new();
        for (path, known) in known {
            let text = match known {
                Some(text) => text,
                None => hash(&path)?,
            };
            self.read.lock().insert(path.clone(), Some(text.clone()));
            found.insert(path, text);
        }
        Ok(found)
    }
}

/// Notes that the host reads from a file; errs where it keeps to others.
pub fn note(path: &Path) -> io::Result<()> {
    let path = file::real(path).unwrap_or_else(|_| path.into());
    let inputs = &Context::current().inputs;
    if inputs.only.get().is_some_and(|(only, own)| !only.contains(&path) && !path.starts_with(own)) {
        return Err(io::Error::other("it is not in the lock; `amscript lock` writes one with all files that are read"));
    }
    inputs.read.lock().entry(path).or_insert(None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_once_for_a_host() {
        let context = Context::default();
        context.enter(|| ["a", "b", "a"].map(|name| note(Path::new(name)).unwrap()));
        let mut asked = 0;
        for _ in 0..2 {
            let hash = |path: &Path| {
                asked += 1;
                Ok::<_, ()>(path.display().to_string())
            };
            assert_eq!(context.inputs.hashed(hash).unwrap().len(), 2);
        }
        assert_eq!((asked, context.inputs.count()), (2, 2));
        assert!(context.inputs.hashed(|_| Err(())).is_ok());
    }

    #[test]
    fn a_host_may_keep_to_some_files() {
        let context = Context::default();
        context.inputs.keep_to(["/a".into()].into(), "/run".into());
        let read = |name: &str| context.enter(|| note(Path::new(name))).is_ok();
        assert_eq!([read("/a"), read("/b"), read("/run/b"), read("/runs")], [true, false, true, false]);
        assert_eq!(context.inputs.count(), 2);
    }
}
