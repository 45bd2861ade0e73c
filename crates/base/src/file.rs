//! Files that appear whole or not at all, and files that are read: regular ones, no larger than they should be.

use crate::memory;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::{Path, PathBuf};

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
    file.take(most + 1).read_to_end(&mut bytes)?;
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
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut draft = tempfile::Builder::new();
        #[cfg(unix)] // the default of 0600 is for secrets
        draft.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(Self { file: draft.tempfile_in(folder)?, path: path.into() })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes)
    }

    /// Syncs it and gives it its name: readers see all of it, or what was there before.
    pub fn finish(self) -> Result<()> {
        self.file.as_file().sync_all()?;
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
}
