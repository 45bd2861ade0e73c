//! Text of others, made safe to show. Every text that leaves passes here once: lines, errors, warnings, bars, pages.

use std::borrow::Cow;
use std::io::{Error, ErrorKind, Result};

/// Whether a character acts instead of being seen: control characters (but line feed and tab), directions of writing, invisible
/// ones. The joiners of emoji and of Persian stay.
pub fn is_hidden(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}' => true,
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e01ef}' => true,
        // Letters and a sign of Braille that are blank, but no spaces.
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => true,
        c => c.is_control(),
    }
}

/// The text with hidden characters written out, such as `\u{1b}`; ends of lines stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let end = c == '\r' && text[at..].starts_with("\r\n");
        if is_hidden(c) && !end { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// As [`visible`], and ends of lines written out too: what an error quotes begins no line of its own.
pub fn in_line(text: &str) -> Cow<'_, str> {
    match text.contains(['\n', '\r']) {
        true => Cow::Owned(visible(&text.replace('\r', "\\r").replace('\n', "\\n")).into_owned()),
        false => visible(text),
    }
}

/// What to do with a text in another encoding.
pub const AS_UTF8: &str = "save it as UTF-8";

/// A text in UTF-8, without the mark that some editors begin it with.
pub fn decoded(mut bytes: Vec<u8>) -> Result<String> {
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidData, format!("it is not text in UTF-8 ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_utf8_with_or_without_a_mark() {
        assert_eq!(decoded(b"\xef\xbb\xbfa\xef\xbb\xbf".to_vec()).unwrap(), "a\u{feff}");
        assert_eq!(decoded(b"\xff\xfea\0".to_vec()).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn what_acts_is_written_out_and_what_is_read_stays() {
        let plain = "a\tb\nČeština עברית 北京 👩\u{200d}🚀 می\u{200c}خواهم";
        assert!(matches!(visible(plain), Cow::Borrowed(_)));
        assert_eq!(visible("\x1b]0;x\x07\r\u{9b}2J"), "\\u{1b}]0;x\\u{7}\\u{d}\\u{9b}2J");
        assert_eq!(in_line("a\r\nb\x07"), "a\\r\\nb\\u{7}");
        assert_eq!(visible("a\r\nb\x07"), "a\r\nb\\u{7}");
        assert_eq!(visible("a\u{202e}b\u{200b}\u{e0041}"), "a\\u{202e}b\\u{200b}\\u{e0041}");
        assert_eq!(visible("a\u{3164}\u{2800}\u{e0101}"), "a\\u{3164}\\u{2800}\\u{e0101}");
    }
}
