//! The files that a host has read weights, prompts, configurations and modules from: what its runs were made from.

use crate::context::Context;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files with their SHA-256, once it was asked for.
#[derive(Default)]
pub struct Inputs(Mutex<BTreeMap<PathBuf, Option<String>>>);

impl Inputs {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// All of them with their hashes; `hash` is called once for each file.
    pub fn hashed<E>(
        &self,
        mut hash: impl FnMut(&Path) -> std::result::Result<String, E>,
    ) -> std::result::Result<BTreeMap<PathBuf, String>, E> {
        let known = self.0.lock().clone();
        let mut found = BTreeMap::new();
        for (path, known) in known {
            let text = match known {
                Some(text) => text,
                None => hash(&path)?,
            };
            self.0.lock().insert(path.clone(), Some(text.clone()));
            found.insert(path, text);
        }
        Ok(found)
    }
}

/// Notes that the host reads from a file.
pub fn note(path: &Path) {
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    Context::current().inputs.0.lock().entry(path).or_insert(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_once_for_a_host() {
        let context = Context::default();
        context.enter(|| ["a", "b", "a"].map(|name| note(Path::new(name))));
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
}
