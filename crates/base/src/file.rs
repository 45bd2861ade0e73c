//! Files and folders that last: they appear whole or not at all. Whatever writes asks [`Disk`] first, so that tests can make any one
//! operation fail.

use crate::context::Context;
use std::fs;
use std::io::{Error, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What drafts are called until they get their name.
const DRAFT: (&str, &str) = (".amscript-", ".tmp");

/// Counts what a host asks of the file system; one such operation can be made to fail.
#[derive(Default)]
pub struct Disk {
    asked: AtomicUsize,
    failing: AtomicUsize,
}

impl Disk {
    /// The operation so many ahead fails, the next one for 1.
    pub fn fail(&self, ahead: usize) {
        self.failing.store(self.asked() + ahead, Ordering::Relaxed);
    }

    /// Operations so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn ask(&self) -> Result<()> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if asked == self.failing.load(Ordering::Relaxed) { Err(Error::other("made to fail")) } else { Ok(()) }
    }
}

fn ask() -> Result<()> {
    Context::current().disk.ask()
}

/// Makes a folder and those above it.
pub fn make_folder(folder: &Path) -> Result<()> {
    ask()?;
    fs::create_dir_all(folder)
}

/// Gives a file or folder another name.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    ask()?;
    fs::rename(from, to)
}

/// Makes the entries of a folder last through a power cut.
pub fn sync_folder(folder: &Path) -> Result<()> {
    ask()?;
    fs::File::open(folder).and_then(|f| f.sync_all())
}

/// Removes files by name, drafts, and the folder itself if nothing else is in it; of a link or a file nothing. Whether it is gone.
pub fn remove_folder(folder: &Path, names: &[&str]) -> Result<bool> {
    let found = match fs::symlink_metadata(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        found => found?,
    };
    if !found.is_dir() {
        return Ok(false);
    }
    ask()?;
    remove_drafts(folder);
    names.iter().for_each(|name| drop(fs::remove_file(folder.join(name))));
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(_) if fs::read_dir(folder)?.next().is_some() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes drafts that a process left in a folder when it was killed.
pub fn remove_drafts(folder: &Path) {
    let named = |name: &str| name.starts_with(DRAFT.0) && name.ends_with(DRAFT.1);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(named) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// A file that is being written under a temporary name in the folder where it will stand.
pub struct Draft {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Draft {
    /// Begins the file `path`; others may read it as the umask says, like any file that a program makes.
    pub fn new(path: &Path) -> Result<Self> {
        ask()?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut draft = tempfile::Builder::new();
        draft.prefix(DRAFT.0).suffix(DRAFT.1);
        #[cfg(unix)] // the default of 0600 is for secrets
        draft.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(Self { file: draft.tempfile_in(folder)?, path: path.into() })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        ask()?;
        self.file.write_all(bytes)
    }

    /// Syncs it and gives it its name: readers see all of it, or what was there before.
    pub fn finish(self) -> Result<()> {
        ask()?;
        self.file.as_file().sync_all()?;
        ask()?;
        self.file.persist(self.path)?;
        Ok(())
    }
}

/// Writes a [`Draft`] of these bytes.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = Draft::new(path)?;
    draft.write(bytes)?;
    draft.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut draft = Draft::new(&path).unwrap();
        draft.write(b"half").unwrap();
        drop(draft);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        write_whole(&path, b"old").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), std::fs::read_dir(&folder).unwrap().count()), (b"new".to_vec(), 1));
    }
    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["mine", ".tmpabc", ".amscript-x.tmp", "state"] {
            std::fs::write(at(name), "x").unwrap();
        }
        remove_drafts(folder.path());
        assert!(!at(".amscript-x.tmp").exists() && at(".tmpabc").exists());
        assert!(!remove_folder(folder.path(), &["state"]).unwrap());
        assert!(at("mine").exists() && !at("state").exists());
        std::fs::remove_file(at("mine")).unwrap();
        std::fs::remove_file(at(".tmpabc")).unwrap();
        assert!(remove_folder(folder.path(), &[]).unwrap() && !folder.path().exists());
    }
}
