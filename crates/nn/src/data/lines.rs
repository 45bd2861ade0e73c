//! The prompts of a text file: a line each, or a JSON object or text on each line. What is another kind of file is refused, not read
//! as prompts.

use crate::archive::LFS_POINTER;
use amscript_base::{bail, error::Result, text::AS_UTF8};
use serde_json::Value;

/// What to do with a file that is no text.
const OF_TEXT: &str = "write its prompts to a text file, one a line";

/// How files begin that are no text of prompts, what they are, and what to do.
const OTHERS: [(&[u8], &str, &str); 7] = [
    (b"PK\x03\x04", "a zip file", OF_TEXT),
    (b"PAR1", "a Parquet file", OF_TEXT),
    (b"\x1f\x8b", "a gzip file", OF_TEXT),
    (b"%PDF", "a PDF file", OF_TEXT),
    (b"\xff\xfe", "UTF-16", AS_UTF8),
    (b"\xfe\xff", "UTF-16", AS_UTF8),
    LFS_POINTER,
];

/// Where a JSON object has its prompt.
const KEYS: [&str; 3] = ["prompt", "caption", "text"];

pub(super) fn prompts(bytes: &[u8]) -> Result<Vec<String>> {
    let text = decoded(bytes)?.replace("\r\n", "\n").replace('\r', "\n");
    // a byte order mark inside is where another file begins
    let lines = text.lines().enumerate().flat_map(|(i, line)| line.split('\u{feff}').map(move |part| (i + 1, part)));
    let lines: Vec<(usize, &str)> =
        lines.map(|(i, line)| (i, line.trim_matches(is_blank))).filter(|(_, line)| !line.is_empty()).collect();
    if let Some(kind) = structure(&text, &lines) {
        bail!(File, "expected one prompt a line, got {kind}"; hint: "write a line of text, or a JSON object with `prompt`, for each prompt");
    }
    let object = |line: &str| serde_json::from_str(line).ok().filter(Value::is_object);
    let all_json = lines.first().is_some_and(|(_, line)| object(line).is_some());
    let quoted: Option<Vec<String>> = lines.iter().map(|(_, line)| serde_json::from_str(line).ok()).collect();
    if let Some(texts) = quoted {
        return Ok(texts.iter().map(|text| text.trim().to_string()).collect());
    }
    lines.iter().map(|(i, line)| prompt(line, all_json).map_err(|e| e.within(format_args!("line {i}")))).collect()
}

/// White space, what takes no room, and the end of a file of DOS.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{1a}')
}

fn decoded(bytes: &[u8]) -> Result<&str> {
    let page = bytes.trim_ascii_start().get(..6).unwrap_or_default().to_ascii_lowercase();
    if matches!(&page[..], b"<!doct" | b"<html>" | b"<html " | b"<?xml ") {
        bail!(File, "must be text in UTF-8, got HTML or XML"; hint: "{OF_TEXT}");
    }
    if let Some((_, kind, hint)) = OTHERS.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        bail!(File, "must be text in UTF-8, got {kind}"; hint: "{hint}");
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        let line = bytes[..at].iter().filter(|b| **b == b'\n').count() + 1;
        bail!(File, "must be text in UTF-8, got a NUL character in line {line}"; hint: "UTF-16 has such; {AS_UTF8}");
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(_) => bail!(File, "must be text in UTF-8, got another encoding"; hint: "{AS_UTF8}"),
    }
}

/// What the text is as a whole, where that is no list of lines.
fn structure(text: &str, lines: &[(usize, &str)]) -> Option<&'static str> {
    let (_, first) = lines.first()?;
    if first.starts_with(['[', '{']) {
        match serde_json::from_str(text.trim_matches(is_blank)) {
            Ok(Value::Array(_)) => return Some("a JSON array"),
            Ok(Value::Object(_)) if lines.len() > 1 => return Some("a JSON object over several lines"),
            _ => {}
        }
    }
    let columns: Vec<String> = first.split([',', '\t']).map(|c| c.trim_matches('"').to_lowercase()).collect();
    let is_word = |c: &String| !c.is_empty() && c.chars().all(|c| c.is_alphanumeric() || c == '_');
    let named = columns.iter().any(|c| KEYS.contains(&c.as_str()) || c == "prompts");
    if lines.len() > 1 && named && columns.iter().all(is_word) && columns != ["text"] {
        return Some("a table with a line of names");
    }
    let list = lines.len() > 1 && lines.iter().all(|(_, line)| line.starts_with("- "));
    let is_yaml = list || *first == "---" || matches!(*first, "prompts:" | "prompt:" | "captions:");
    is_yaml.then_some("YAML")
}

/// The line itself, or the text of a JSON object; where all lines are JSON, of a JSON text as well.
fn prompt(line: &str, all_json: bool) -> Result<String> {
    let looks = line.starts_with("{\"") && line.contains("\":");
    let value = match serde_json::from_str::<Value>(line) {
        Ok(value) if all_json || line.starts_with('{') => value,
        Err(e) if all_json || looks => {
            bail!(File, "expected a JSON object with `prompt`, got {line} ({e})"; hint: "mend the line")
        }
        _ => return Ok(line.into()),
    };
    let text = value.as_str().or_else(|| KEYS.iter().find_map(|key| value[key].as_str()));
    match text {
        Some(text) => Ok(text.trim().into()),
        None => bail!(File, "JSON must have `prompt`, `caption` or `text`, got {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_however_they_end() {
        let read = |text: &str| prompts(text.as_bytes()).unwrap();
        assert_eq!(read("\u{feff}\u{feff}a\rb\u{200b}\r\n\u{feff}c\n\u{1a}"), ["a", "b", "c"]);
        assert_eq!(read("a\u{feff}b"), ["a", "b"]);
        assert_eq!(read("\"a\"\n\"b\""), ["a", "b"]);
        assert_eq!(read("\"a\"\nb"), ["\"a\"", "b"]);
        assert_eq!(read("{\"prompt\": \"a\"}\n\"b\""), ["a", "b"]);
        assert_eq!(
            read("{red|blue} cat\n[photo] a dog\na cat, a dog\n- x"),
            ["{red|blue} cat", "[photo] a dog", "a cat, a dog", "- x"]
        );
    }

    #[test]
    fn other_files_are_refused() {
        for (bytes, word) in [
            (&b"a\0b\0"[..], "got a NUL character in line 1"),
            (b"ok\na\0", "got a NUL character in line 2"),
            (b"version https://git-lfs.github.com/spec/v1\n", "got a Git LFS pointer"),
            (b"<!DOCTYPE html>\n<p>", "got HTML or XML"),
            (b"PK\x03\x04..", "got a zip file"),
            (b"PAR1..", "got a Parquet file"),
            (b"[\"a\",\n\"b\"]", "got a JSON array"),
            (b"prompt,seed\na,1\n", "got a table with a line of names"),
            (b"prompts:\n- a\n", "got YAML"),
            (b"{\"prompt\": \"a\"}\n{\"prompt\": \"b\n", "line 2: expected a JSON object"),
            (b"{\"prompt\": \"a\"}\nb\n", "line 2: expected a JSON object"),
        ] {
            let error = prompts(bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
