//! The files of the crates: opened, written, listed here and nowhere else, by what the host's [`Permissions`] allow.
//!
//! Files appear whole or not at all. What is read is a regular file, no larger than it should be. Whatever writes asks [`Disk`] first, so that
//! tests can make any one operation fail.
//!
//! [`Permissions`]: crate::permissions::Permissions

use crate::context::Context;
use crate::memory;
use crate::permissions::{Place, Way, explained};
use crate::text;
use cap_std::fs::{self as below, Dir};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
pub use std::fs::{File, TryLockError};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

/// What drafts are called until they get their name.
const DRAFT: (&str, &str) = (".amscript-", ".tmp");

/// Most bytes of a text that people write: a script, prompts, a config.
pub const TEXT: u64 = 64 << 20;

/// Counts what a host asks of the file system, and what is left of the disk for others; one such operation can be made to fail.
#[derive(Default)]
pub struct Disk {
    asked: AtomicUsize,
    failing: AtomicUsize,
    /// Bytes that stay free.
    spared: OnceLock<u64>,
    /// Bytes that files may take which were written.
    most: OnceLock<u64>,
    /// Bytes of files that were written and are still there, and of others that were read.
    written: AtomicU64,
    read: AtomicU64,
    /// What was written, and what was read, which counts once.
    known: Mutex<BTreeSet<(u64, u64)>>,
}

/// What was read, models for the most part, gives room for so many times as much.
const PER_READ: u64 = 10;

impl Disk {
    /// The operation so many ahead fails, the next one for 1.
    pub fn fail(&self, ahead: usize) {
        self.failing.store(self.asked() + ahead, Ordering::Relaxed);
    }

    /// Operations so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// So many bytes stay free: no file is begun where fewer are; the first bound counts.
    pub fn spare(&self, bytes: u64) {
        self.spared.set(bytes).ok();
    }

    /// Files may take so many bytes, and ten times those that were read: no file is begun beyond; the first bound counts.
    pub fn bound(&self, bytes: u64) {
        self.most.set(bytes).ok();
    }

    fn has_room(&self, folder: &Path) -> Result<()> {
        let (written, read) = (self.written.load(Ordering::Relaxed), self.read.load(Ordering::Relaxed));
        if let Some(most) = self.most.get().filter(|most| written > most.saturating_add(read.saturating_mul(PER_READ)))
        {
            return Err(Error::new(
                ErrorKind::QuotaExceeded,
                format!(
                    "{written} bytes were written already, more than {most} and {PER_READ} times what was read, which is taken \
                     for a script that writes for ever; `--max-disk` says how many are right"
                ),
            ));
        }
        match self.spared.get().and_then(|spared| Some((spared, free(folder)?))) {
            Some((spared, free)) if free < *spared => Err(Error::new(
                ErrorKind::StorageFull,
                format!("the disk has {free} bytes left, and {spared} are to stay free; `--min-free` says how many"),
            )),
            _ => Ok(()),
        }
    }

    fn ask(&self) -> Result<()> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if asked == self.failing.load(Ordering::Relaxed) { Err(Error::other("made to fail")) } else { Ok(()) }
    }
}

fn ask() -> Result<()> {
    Context::current().disk.ask()
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FileType {
    File,
    Folder,
    Link,
    /// A device, a pipe, a socket.
    Other,
}

/// Of the system's own types, and of those below a folder.
macro_rules! file_type {
    ($kind:expr) => {{
        let kind = $kind;
        match (kind.is_symlink(), kind.is_file(), kind.is_dir()) {
            (true, ..) => FileType::Link,
            (_, true, _) => FileType::File,
            (_, _, true) => FileType::Folder,
            _ => FileType::Other,
        }
    }};
}

/// Bytes that are free on the disk of a folder, or of what is above it; none where nobody tells.
#[cfg(unix)]
pub fn free(folder: &Path) -> Option<u64> {
    let found = folder.ancestors().find_map(|above| {
        let above = if above == Path::new("") { Path::new(".") } else { above };
        rustix::fs::statvfs(above).ok()
    })?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Nobody is asked here.
#[cfg(not(unix))]
pub fn free(_: &Path) -> Option<u64> {
    None
}

/// Does something to a file where that is allowed: anywhere, or below an open folder.
fn at<T>(
    path: &Path,
    (way, follow): (Way, bool),
    free: impl FnOnce(&Path) -> Result<T>,
    held: impl FnOnce(&Dir, &Path) -> Result<T>,
) -> Result<T> {
    match Context::current().permissions().place(path, way, follow)? {
        Place::Free(path) => free(&path),
        Place::Below(folder, rest) => held(&folder, &rest).map_err(|e| explained(e, path, way)),
    }
}

/// How a file is opened: by the system's own functions, and by those below a folder.
type Opening = (fs::OpenOptions, below::OpenOptions);

/// `opening!(read, write)`
macro_rules! opening {
    ($($set:ident),+) => {{
        let mut opening: Opening = (fs::OpenOptions::new(), below::OpenOptions::new());
        $(
            opening.0.$set(true);
            opening.1.$set(true);
        )+
        opening
    }};
}

fn opened(path: &Path, way: (Way, bool), (free, held): Opening) -> Result<File> {
    at(path, way, |p| free.open(p), |d, p| Ok(d.open_with(p, &held)?.into_std()))
}

const READ: (Way, bool) = (Way::Read, true);
const WRITE: (Way, bool) = (Way::Write, false);

/// Opens a regular file to read. A FIFO, a device or a socket is refused at once: it could keep its reader waiting for ever.
pub fn open(path: &Path) -> Result<File> {
    let mut opening = opening!(read);
    #[cfg(unix)] // else opening a FIFO waits for who writes to it
    {
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut opening.0, libc::O_NONBLOCK);
        below::OpenOptionsExt::custom_flags(&mut opening.1, libc::O_NONBLOCK);
    }
    let file = opened(path, READ, opening)?;
    let found = file.metadata()?;
    match found.file_type() {
        kind if kind.is_file() => {
            let disk = &Context::current().disk;
            if disk.known.lock().insert(identity(path, &found)) {
                disk.read.fetch_add(found.len(), Ordering::Relaxed);
            }
            Ok(file)
        }
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
    memory::room(usize::try_from(size).ok(), || "reading it")
        .map_err(|e| Error::new(ErrorKind::OutOfMemory, e.message))?;
    let mut bytes = Vec::with_capacity(size as usize);
    // what /proc holds has no size, and files grow
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Reads a regular file of text in UTF-8, as [`read`] does.
pub fn read_text(path: &Path) -> Result<String> {
    text::decoded(read(path)?)
}

/// Whether a regular file, of any size, begins with these bytes.
pub fn begins_with(path: &Path, bytes: &[u8]) -> Result<bool> {
    let mut start = Vec::new();
    open(path)?.take(bytes.len() as u64).read_to_end(&mut start)?;
    Ok(start == bytes)
}

/// What is there, behind links; none where nothing is, or nothing that may be read.
pub fn kind(path: &Path) -> Option<FileType> {
    at(path, READ, |p| Ok(file_type!(fs::metadata(p)?.file_type())), |d, p| Ok(file_type!(d.metadata(p)?.file_type())))
        .ok()
}

/// What is there, a link as such; none where nothing is, or nothing that may be read.
pub fn itself(path: &Path) -> Option<FileType> {
    at(
        path,
        (Way::Read, false),
        |p| Ok(file_type!(fs::symlink_metadata(p)?.file_type())),
        |d, p| Ok(file_type!(d.symlink_metadata(p)?.file_type())),
    )
    .ok()
}

/// Whether something is there that may be read.
pub fn exists(path: &Path) -> bool {
    kind(path).is_some()
}

/// Whether a file is there that may be read.
pub fn is_file(path: &Path) -> bool {
    kind(path) == Some(FileType::File)
}

/// Whether a folder is there that may be read.
pub fn is_folder(path: &Path) -> bool {
    kind(path) == Some(FileType::Folder)
}

/// Names in a folder with what they stand for, links as such.
pub fn entries(folder: &Path) -> Result<Vec<(OsString, FileType)>> {
    let free = |p: &Path| -> Result<Vec<_>> {
        fs::read_dir(p)?.map(|e| e.and_then(|e| Ok((e.file_name(), file_type!(e.file_type()?))))).collect()
    };
    let held = |d: &Dir, p: &Path| -> Result<Vec<_>> {
        d.read_dir(p)?.map(|e| e.and_then(|e| Ok((e.file_name(), file_type!(e.file_type()?))))).collect()
    };
    at(folder, READ, free, held)
}

/// Bytes of a file.
pub fn size(path: &Path) -> Result<u64> {
    at(path, READ, |p| Ok(fs::metadata(p)?.len()), |d, p| Ok(d.metadata(p)?.len()))
}

/// When a file was written last.
pub fn modified(path: &Path) -> Result<SystemTime> {
    at(path, READ, |p| fs::metadata(p)?.modified(), |d, p| Ok(d.metadata(p)?.modified()?.into_std()))
}

/// The text of a link.
pub fn link(path: &Path) -> Result<PathBuf> {
    at(path, (Way::Read, false), |p| fs::read_link(p), |d, p| d.read_link_contents(p))
}

/// The path of what is there and may be read, its links followed.
pub fn real(path: &Path) -> Result<PathBuf> {
    at(path, READ, |p| fs::metadata(p).map(drop), |d, p| d.metadata(p).map(drop))?;
    path.canonicalize()
}

/// Makes a folder, and those above it that are not there.
pub fn make_folder(path: &Path) -> Result<()> {
    ask()?;
    let new = path.ancestors().filter(|above| above != &Path::new("")).take_while(|above| itself(above).is_none());
    let bytes = new.count() as u64 * BLOCK;
    if bytes > 0 {
        Context::current().disk.has_room(path)?;
    }
    let held = |d: &Dir, p: &Path| if p == Path::new(".") { Ok(()) } else { d.create_dir_all(p) };
    at(path, (Way::Write, true), |p| fs::create_dir_all(p), held)?;
    replaced(0, bytes);
    Ok(())
}

/// Removes files by name, drafts, and the folder itself if nothing else is in it; of a link or a file nothing. Whether it is gone.
pub fn remove_folder(folder: &Path, names: &[&str]) -> Result<bool> {
    match itself(folder) {
        None => return Ok(true),
        Some(FileType::Folder) => {}
        Some(_) => return Ok(false),
    }
    ask()?;
    remove_drafts(folder);
    for name in names {
        counted_out(&folder.join(name)).ok();
    }
    match at(folder, WRITE, |p| fs::remove_dir(p), |d, p| d.remove_dir(p)) {
        Ok(()) => Ok(true),
        Err(_) if !entries(folder)?.is_empty() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a file, where it is there.
pub fn remove(path: &Path) -> Result<()> {
    ask()?;
    match counted_out(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes a file, and what is counted of it.
fn counted_out(path: &Path) -> Result<()> {
    let before = size(path).ok();
    remove_file(path)?;
    replaced(taken(before), 0);
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    at(path, WRITE, |p| fs::remove_file(p), |d, p| d.remove_file(p))
}

/// Removes drafts that a process left in a folder when it was killed.
pub fn remove_drafts(folder: &Path) {
    let named = |name: &str| name.starts_with(DRAFT.0) && name.ends_with(DRAFT.1);
    for (name, _) in entries(folder).unwrap_or_default() {
        if name.to_str().is_some_and(named) {
            remove_file(&folder.join(name)).ok();
        }
    }
}

/// Makes the entries of a folder last through a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    ask()?;
    at(path, (Way::Write, true), |p| File::open(p)?.sync_all(), |d, p| d.open(p)?.into_std().sync_all())
}

/// Opens a file that is there to write at its end.
pub fn append(path: &Path) -> Result<File> {
    opened(path, WRITE, opening!(append))
}

/// Writes at the end of a file that [`append`] opened, and counts it.
pub fn add(file: &mut File, path: &Path, bytes: &[u8]) -> Result<()> {
    Context::current().disk.has_room(path)?;
    file.write_all(bytes)?;
    replaced(0, bytes.len() as u64);
    Ok(())
}

/// Opens a file to read and write, as it is or new; a link is refused.
pub fn edit(path: &Path) -> Result<File> {
    let mut opening = opening!(read, write, create);
    #[cfg(unix)]
    {
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut opening.0, libc::O_NOFOLLOW);
        below::OpenOptionsExt::custom_flags(&mut opening.1, libc::O_NOFOLLOW);
    }
    opened(path, WRITE, opening)
}

/// Gives a file or folder another name; a file that had it is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    ask()?;
    match (place(from)?, place(to)?) {
        (Place::Below(a, old), Place::Below(b, new)) => {
            a.rename(old, &b, new).map_err(|e| explained(e, to, Way::Write))
        }
        _ => fs::rename(from, to),
    }
}

/// Bytes that a disk gives away at once.
const BLOCK: u64 = 4096;

/// What a file of so many bytes takes.
fn taken(bytes: Option<u64>) -> u64 {
    bytes.map_or(0, |bytes| bytes.max(1).next_multiple_of(BLOCK))
}

/// What a file is, by whatever name.
fn identity(path: &Path, found: &fs::Metadata) -> (u64, u64) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let _ = path;
        (found.dev(), found.ino())
    }
    #[cfg(not(unix))]
    {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let _ = found;
        (0, BuildHasherDefault::<DefaultHasher>::default().hash_one(path))
    }
}

/// Counts the bytes that are there, in place of those that were.
fn replaced(old: u64, new: u64) {
    let count = |written: u64| Some(written.saturating_add(new).saturating_sub(old));
    Context::current().disk.written.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).ok();
}

fn place(path: &Path) -> Result<Place> {
    Context::current().permissions().place(path, Way::Write, false)
}

/// A file that is being written under a temporary name in the folder where it will stand.
pub struct Draft {
    file: File,
    draft: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl Draft {
    /// Begins the file `path`; others may read it as the umask says, like any file that a program makes.
    pub fn new(path: &Path) -> Result<Self> {
        ask()?;
        Context::current().disk.has_room(path)?;
        let mut attempt = 0;
        loop {
            let draft = path.with_file_name(format!("{}{}-{attempt}{}", DRAFT.0, std::process::id(), DRAFT.1));
            match opened(&draft, WRITE, opening!(write, create_new)) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => attempt += 1,
                file => return Ok(Self { file: file?, draft, path: path.into(), finished: false }),
            }
        }
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        ask()?;
        self.file.write_all(bytes)
    }

    /// Syncs it and gives it its name: readers see all of it, or what was there before.
    pub fn finish(mut self) -> Result<()> {
        ask()?;
        self.file.sync_all()?;
        let (before, now) = (size(&self.path).ok(), self.file.metadata()?);
        rename(&self.draft, &self.path)?;
        replaced(taken(before), taken(Some(now.len())));
        Context::current().disk.known.lock().insert(identity(&self.path, &now));
        self.finished = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            remove_file(&self.draft).ok();
        }
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

    #[cfg(unix)]
    #[test]
    fn a_part_of_the_disk_is_spared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not yet/x");
        assert!(free(&path).unwrap() > 0);
        let context = Context::default();
        context.disk.spare(u64::MAX);
        let error = context.enter(|| write_whole(&folder.path().join("x"), b"x")).unwrap_err();
        assert!(error.to_string().contains("--min-free") && !folder.path().join("x").exists());
    }

    #[test]
    fn what_is_written_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let context = Context::default();
        context.disk.bound(3);
        context.enter(|| {
            for _ in 0..5 {
                write_whole(&at("same"), b"1234").ok(); // in place of the one before
            }
            let error = write_whole(&at("more"), b"5").unwrap_err();
            assert!(error.to_string().contains("--max-disk") && !at("more").exists(), "{error}");
            remove_folder(folder.path(), &["same"]).unwrap();
            std::fs::create_dir_all(folder.path()).unwrap();
            write_whole(&at("more"), b"5").unwrap();
        });
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
