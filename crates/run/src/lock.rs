//! Who works in a run directory: one process at a time. The lock dies with it.

use super::record::file_error;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, warn_once};
use amscript_base::file::{self, File, FileType, TryLockError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

const LOCK: &str = ".lock";
/// Bytes of the number of a process at most.
const NUMBER: u64 = 20;

/// A directory that is held until the last clone of its `Arc` goes.
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

/// The directories that a host holds, so that it may take one twice.
#[derive(Default)]
pub struct Locks(Mutex<BTreeMap<PathBuf, Weak<Lock>>>);

impl Locks {
    /// Takes a directory that is there; an error where another process holds it.
    pub fn take(&self, folder: &Path) -> Result<Arc<Lock>> {
        self.take_free(folder)?.ok_or_else(|| busy(folder))
    }

    /// Takes a directory that is there; none where another process holds it.
    pub fn take_free(&self, folder: &Path) -> Result<Option<Arc<Lock>>> {
        let refused = |e: &std::io::Error| file_error(folder, "write in", e);
        let place = file::real(folder).map_err(|e| refused(&e))?;
        let mut held = self.0.lock();
        if let Some(lock) = held.get(&place).and_then(Weak::upgrade) {
            return Ok(Some(lock));
        }
        let path = place.join(LOCK);
        if !matches!(file::itself(&path), None | Some(FileType::File)) {
            bail!(
                File, "`{}` must be a file of its own, got a link or what is no regular file", folder.join(LOCK).display();
                hint: "remove it, or give another `--out`"
            );
        }
        let mut file = file::edit(&path).map_err(|e| refused(&e))?;
        match file.try_lock() {
            Ok(()) => sign(&mut file),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => {
                warn_once("lock", &format!("{} cannot be locked ({e}); start no other run in it", folder.display()));
            }
        }
        let lock = Arc::new(Lock(file));
        held.insert(place, Arc::downgrade(&lock));
        Ok(Some(lock))
    }
}

/// Whether a run was ever started in a folder.
pub fn is_of_a_run(folder: &Path) -> bool {
    file::exists(&folder.join(LOCK))
}

/// Writes who holds the directory, for the error of others, where nothing but that stands there; it is held without too.
fn sign(file: &mut File) {
    let mut text = String::new();
    let read = Read::by_ref(file).take(NUMBER + 1).read_to_string(&mut text);
    if read.is_ok_and(|n| n as u64 <= NUMBER) && (text.is_empty() || number(&text).is_some()) {
        file.rewind().and_then(|()| file.set_len(0)).and_then(|()| writeln!(file, "{}", std::process::id())).ok();
    }
}

/// The number of a process in what a lock holds.
fn number(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

fn busy(folder: &Path) -> Error {
    let mut text = String::new();
    file::open(&folder.join(LOCK)).and_then(|file| file.take(NUMBER).read_to_string(&mut text)).ok();
    let holder = number(&text).map_or("another process".into(), |id| format!("process {id}"));
    let message = format!("`{}` must be held by no other run, got one by {holder}", folder.display());
    Error::new(Kind::File, message).hint("wait for its end, or give another `--out`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_by_one_host_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Locks::default(), Locks::default());
        let first = one.take(folder.path()).unwrap();
        let second = one.take(folder.path()).unwrap();
        drop(first);
        let error = other.take(folder.path()).err().unwrap();
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
        drop(second);
        assert!(other.take(folder.path()).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_writes_over_nothing_but_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (weights, lock) = (folder.path().join("lora.safetensors"), folder.path().join(LOCK));
        let held = || Locks::default().take(folder.path()).map(drop);
        std::fs::write(&weights, "weights").unwrap();
        std::os::unix::fs::symlink("lora.safetensors", &lock).unwrap();
        assert!(held().unwrap_err().message.contains("must be a file of its own"));
        assert!(file::edit(&lock).is_err(), "no link is followed to what is edited");
        std::fs::remove_file(&lock).unwrap();
        std::fs::hard_link(&weights, &lock).unwrap();
        held().unwrap();
        assert_eq!(std::fs::read(&weights).unwrap(), b"weights");
        std::fs::remove_file(&lock).unwrap();
        std::fs::write(&lock, "4294967295\n\n").unwrap();
        held().unwrap();
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), format!("{}\n", std::process::id()));
    }
}
