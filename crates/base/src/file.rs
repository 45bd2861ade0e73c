//! The files of the crates: opened, written, listed here and nowhere else, by what the host's [`Permissions`] allow.
//!
//! Files appear whole or not at all. What is read is a file, never a device or a pipe, whose reader might wait for ever.
//!
//! [`Permissions`]: crate::permissions::Permissions

use crate::context::Context;
use crate::permissions::{Place, Way, explained};
use cap_std::fs::{self as below, Dir};
use std::ffi::OsString;
use std::fs;
pub use std::fs::File;
use std::io::{Error, Read, Result, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FileType {
    File,
    Folder,
    Link,
    /// A device, a pipe, a socket.
    Other,
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

const READ: (Way, bool) = (Way::Read, true);
const WRITE: (Way, bool) = (Way::Write, false);

/// Opens a file to read it.
pub fn open(path: &Path) -> Result<File> {
    let (mut free, mut held) = (fs::OpenOptions::new(), below::OpenOptions::new());
    (free.read(true), held.read(true));
    #[cfg(unix)] // a pipe without a writer is opened too, to be refused
    {
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut free, libc::O_NONBLOCK);
        below::OpenOptionsExt::custom_flags(&mut held, libc::O_NONBLOCK);
    }
    let file = at(path, READ, |p| free.open(p), |d, p| Ok(d.open_with(p, &held)?.into_std()))?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => {
            Context::current().ledger.note(path)?;
            Ok(file)
        }
        kind if kind.is_dir() => Err(Error::other("expected a file, got a folder")),
        _ => Err(Error::other("expected a file, got a device or a pipe")),
    }
}

/// The bytes of a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file in UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// What is there, behind links; none where nothing is, or nothing that may be read.
pub fn kind(path: &Path) -> Option<FileType> {
    at(
        path,
        READ,
        |p| Ok(file_type(fs::metadata(p)?.file_type())),
        |d, p| {
            let kind = d.metadata(p)?.file_type();
            Ok(file_type_below(kind))
        },
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
        fs::read_dir(p)?.map(|e| e.and_then(|e| Ok((e.file_name(), file_type(e.file_type()?))))).collect()
    };
    let held = |d: &Dir, p: &Path| -> Result<Vec<_>> {
        d.read_dir(p)?.map(|e| e.and_then(|e| Ok((e.file_name(), file_type_below(e.file_type()?))))).collect()
    };
    at(folder, READ, free, held)
}

fn file_type(kind: fs::FileType) -> FileType {
    match (kind.is_symlink(), kind.is_file(), kind.is_dir()) {
        (true, ..) => FileType::Link,
        (_, true, _) => FileType::File,
        (_, _, true) => FileType::Folder,
        _ => FileType::Other,
    }
}

fn file_type_below(kind: below::FileType) -> FileType {
    match (kind.is_symlink(), kind.is_file(), kind.is_dir()) {
        (true, ..) => FileType::Link,
        (_, true, _) => FileType::File,
        (_, _, true) => FileType::Folder,
        _ => FileType::Other,
    }
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
    at(
        path,
        (Way::Write, true),
        |p| fs::create_dir_all(p),
        |d, p| if p == Path::new(".") { Ok(()) } else { d.create_dir_all(p) },
    )
}

/// Removes a folder with all in it; links in it are not followed.
pub fn remove_folder(path: &Path) -> Result<()> {
    at(path, WRITE, |p| fs::remove_dir_all(p), |d, p| d.remove_dir_all(p))
}

/// Makes the names in a folder last through a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    at(path, (Way::Write, true), |p| File::open(p)?.sync_all(), |d, p| d.open_dir(p)?.into_std_file().sync_all())
}

/// Opens a file that is there to write at its end.
pub fn append(path: &Path) -> Result<File> {
    let (mut free, mut held) = (fs::OpenOptions::new(), below::OpenOptions::new());
    (free.append(true), held.append(true));
    at(path, WRITE, |p| free.open(p), |d, p| Ok(d.open_with(p, &held)?.into_std()))
}

/// Gives a file or folder another name; what had it is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    match (place(from)?, place(to)?) {
        (Place::Below(a, old), Place::Below(b, new)) => {
            a.rename(old, &b, new).map_err(|e| explained(e, to, Way::Write))
        }
        _ => fs::rename(from, to),
    }
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
        let (mut free, mut held) = (fs::OpenOptions::new(), below::OpenOptions::new());
        (free.write(true).create_new(true), held.write(true).create_new(true));
        for attempt in 0.. {
            let draft = path.with_file_name(format!(".tmp{}-{attempt}", std::process::id()));
            match at(&draft, WRITE, |p| free.open(p), |d, p| Ok(d.open_with(p, &held)?.into_std())) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                file => return Ok(Self { file: file?, draft, path: path.into(), finished: false }),
            }
        }
        unreachable!("some name is free")
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes)
    }

    /// Syncs it and gives it its name: readers see all of it, or what was there before.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync_all()?;
        rename(&self.draft, &self.path)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            at(&self.draft, WRITE, |p| fs::remove_file(p), |d, p| d.remove_file(p)).ok();
        }
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
}
