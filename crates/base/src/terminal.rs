//! The terminal behind a stream: whether there is one, its size, whether it shows more than ASCII.

use std::io::{IsTerminal, Write};

/// A stream that may lead to a terminal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StdStream {
    Output,
    Error,
}

/// Columns and rows, and the pixels of a cell (width, height) where the terminal tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
    pub cell: Option<(u32, u32)>,
}

impl Default for Size {
    /// What is assumed where nobody tells.
    fn default() -> Self {
        Self { columns: 80, rows: 24, cell: None }
    }
}

/// Whether the stream leads to a terminal that moves its cursor.
pub fn is_terminal(stream: StdStream) -> bool {
    let terminal = match stream {
        StdStream::Output => std::io::stdout().is_terminal(),
        StdStream::Error => std::io::stderr().is_terminal(),
    };
    terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to standard error; what cannot be written is dropped, as there is nobody left to tell.
pub fn note(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).ok();
}

/// The size of the stream's terminal now; 80 x 24 where it has none.
#[cfg(unix)]
pub fn size(stream: StdStream) -> Size {
    let descriptor = match stream {
        StdStream::Output => libc::STDOUT_FILENO,
        StdStream::Error => libc::STDERR_FILENO,
    };
    let mut found = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one `winsize`, which is what it is given; on a stream without a terminal it fails.
    let answer = unsafe { libc::ioctl(descriptor, libc::TIOCGWINSZ, &raw mut found) };
    if answer != 0 || found.ws_col == 0 || found.ws_row == 0 {
        return Size::default();
    }
    let cell = (u32::from(found.ws_xpixel / found.ws_col), u32::from(found.ws_ypixel / found.ws_row));
    let cell = Some(cell).filter(|(width, height)| *width > 1 && *height > 1);
    Size { columns: found.ws_col.into(), rows: found.ws_row.into(), cell }
}

/// The size of the stream's terminal is not asked for here.
#[cfg(not(unix))]
pub fn size(_: StdStream) -> Size {
    Size::default()
}

/// Whether text may hold more than ASCII, by what the environment says of it; where it says nothing, it may.
pub fn unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let said = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name).filter(|v| !v.is_empty()));
    let locale = said.is_none_or(|locale| locale.to_lowercase().replace('-', "").contains("utf8"));
    locale && variable("TERM").is_none_or(|term| term != "linux") // the console's font has no Braille
}

/// A variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_decide_about_unicode() {
        let with = |pairs: &'static [(&str, &str)]| {
            unicode(move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
        };
        assert!(with(&[]) && with(&[("LANG", "en_GB.UTF-8")]) && with(&[("LC_ALL", ""), ("LANG", "C.utf8")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")]) && !with(&[("LANG", "C.UTF-8"), ("TERM", "linux")]));
    }
}
