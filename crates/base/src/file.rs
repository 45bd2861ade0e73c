//! Files that appear whole or not at all.

use std::io::{Result, Write};
use std::path::{Path, PathBuf};

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
