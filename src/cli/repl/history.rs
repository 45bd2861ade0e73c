//! What was typed before, on disk.

use super::editor::Lines;
use std::path::{Path, PathBuf};

/// Where it is kept: `AMSCRIPT_HISTORY`, else the folder for such files of the user.
pub fn place() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    folder("AMSCRIPT_HISTORY")
        .or_else(|| folder("XDG_STATE_HOME").map(|state| state.join("amscript/history")))
        .or_else(|| folder("HOME").map(|home| home.join(".local/state/amscript/history")))
}

/// Reads it; a file that cannot be read is set aside. What went wrong comes back for the user.
pub fn load(editor: &mut Lines, file: &Path) -> Option<String> {
    if !file.exists() {
        let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        return made.err().map(|e| format!("no history is kept: {}: {e}", file.display()));
    }
    let error = editor.load_history(file).err()?;
    editor.clear_history().ok();
    let aside = (0..).map(|i| aside(file, i)).find(|path| !path.exists())?;
    Some(match std::fs::rename(file, &aside) {
        Ok(()) => format!("the history could not be read ({error}); it is set aside as {}", aside.display()),
        Err(e) => format!("no history is kept: {}: {error}, and it cannot be moved: {e}", file.display()),
    })
}

fn aside(file: &Path, i: usize) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(if i == 0 { ".broken".into() } else { format!(".broken-{i}") });
    file.with_file_name(name)
}

/// Adds an input; the file is written at once, so that nothing is lost with the process.
pub fn add(editor: &mut Lines, file: Option<&Path>, input: &str) {
    if editor.add_history_entry(input).unwrap_or(false)
        && let Some(file) = file
    {
        editor.append_history(file).ok(); // said once at the start when the folder cannot be written
    }
}
