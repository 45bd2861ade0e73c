//! Files that readers see whole or not at all.

use std::{io::Write, path::Path};

/// Writes a file under a temporary name in the same folder, syncs it, and renames it: readers see all of it or nothing.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = tempfile::Builder::new();
    #[cfg(unix)] // others may read it, as any file; the default is for secrets
    draft.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = draft.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
