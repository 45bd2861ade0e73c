//! Which files a host opened to read, where somebody wants to know: a lock lists them, and a frozen run keeps to those.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};

/// The files that were opened; nothing is kept before [`Ledger::begin`].
#[derive(Default)]
pub struct Ledger(Mutex<Option<Kept>>);

#[derive(Default)]
struct Kept {
    opened: BTreeSet<PathBuf>,
    /// Nothing else may be opened, but in the folder that is the run's own.
    only: Option<(BTreeSet<PathBuf>, PathBuf)>,
}

impl Ledger {
    /// Notes files from now on.
    pub fn begin(&self) {
        *self.0.lock() = Some(Kept::default());
    }

    /// From now on nothing is opened but these, and what lies in the folder `own`.
    pub fn keep_to(&self, only: BTreeSet<PathBuf>, own: PathBuf) {
        *self.0.lock() = Some(Kept { opened: BTreeSet::new(), only: Some((only, own)) });
    }

    /// The files that were opened, their links followed.
    pub fn opened(&self) -> BTreeSet<PathBuf> {
        self.0.lock().as_ref().map(|kept| kept.opened.clone()).unwrap_or_default()
    }

    /// A file was opened.
    pub(crate) fn note(&self, path: &Path) -> Result<()> {
        let mut kept = self.0.lock();
        let Some(kept) = kept.as_mut() else { return Ok(()) };
        let path = path.canonicalize()?;
        match &kept.only {
            Some((only, own)) if !only.contains(&path) && !path.starts_with(own) => {
                Err(Error::other("it is not in the lock; `amscript lock` writes one with all files that are read"))
            }
            _ => {
                kept.opened.insert(path);
                Ok(())
            }
        }
    }
}
