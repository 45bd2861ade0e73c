//! Files and folders that last: they appear whole or not at all; and files that are read: regular ones, no larger than they should be.
//! Whatever writes asks [`Disk`] first, so that tests can make any one operation fail.

use crate::context::Context;
use crate::memory;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result, Write};
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

/// Most bytes of a text that people write: a script, prompts, a config.
pub const TEXT: u64 = 64 << 20;

/// Opens a regular file to read. A FIFO, a device or a socket is refused at once: it could keep its reader waiting for ever.
pub fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    #[cfg(unix)] // else opening a FIFO waits for who writes to it
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.read(true).open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(Error::new(ErrorKind::IsADirectory, "it is a folder, not a file")),
        _ => Err(Error::new(ErrorKind::InvalidInput, "it is no regular file but a pipe, a device or a socket")),
    }
}

/// Reads a regular file of at most [`TEXT`] bytes.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_within(path, TEXT)
}

/// Reads a regular file of at most so many bytes.
pub fn read_within(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let too_large = |size: u64| {
        Error::new(ErrorKind::FileTooLarge, format!("{size} bytes are more than the {most} that it may have"))
    };
    if size > most {
        return Err(too_large(size));
    }
    memory::room(usize::try_from(size).ok(), || "reading it").map_err(|e| Error::new(ErrorKind::OutOfMemory, e))?;
    let mut bytes = Vec::with_capacity(size as usize);
    // what /proc holds has no size, and files grow
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Reads a regular file of text in UTF-8, as [`read`] does.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|e| Error::new(ErrorKind::InvalidData, format!("it is not text in UTF-8 ({e})")))
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

/// Writes a [`Draft`] of these bytes. Of several processes that work together the first writes, for all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if !Context::current().group().speaks() {
        return Ok(());
    }
    let mut draft = Draft::new(path)?;
    draft.write(bytes)?;
    draft.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_of_a_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path).unwrap(), "four");
        assert_eq!(read_within(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(folder.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), ErrorKind::InvalidData);
        std::fs::File::create(&path).unwrap().set_len(TEXT + 1).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in [fifo.as_path(), Path::new("/dev/zero")] {
            assert!(read(path).unwrap_err().to_string().contains("no regular file"));
        }
    }

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
