//! The prompts of a text file: a line each, or a JSON object or text on each line. What is another kind of file is refused, not read
//! as prompts.

use crate::archive::LFS_POINTER;
use amscript_base::{bail, error::Result, text::AS_UTF8};
use serde_json::Value;

/// What to do with a file that is no text.
const OF_TEXT: &str = "write its prompts to a text file, one a line";

/// How files begin that are no text of prompts, what they are, and what to do.
const OTHERS: [(&[u8], &str, &str); 8] = [
    (b"PK\x03\x04", "a zip file", OF_TEXT),
    (b"PAR1", "a Parquet file", OF_TEXT),
    (b"\x1f\x8b", "a gzip file", OF_TEXT),
    (b"%PDF", "a PDF file", OF_TEXT),
    (b"{\\rtf", "RTF", OF_TEXT),
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
    let json = |line: &str| serde_json::from_str::<Value>(line).ok();
    let all_json = lines.first().and_then(|(_, line)| json(line)).is_some_and(|value| value.is_object())
        || lines.iter().all(|(_, line)| json(line).is_some_and(|value| value.is_string()));
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
    let whole = text.trim_matches(is_blank);
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    if first.starts_with(['[', '{']) {
        match json(whole) {
            Some(Value::Array(_)) => return Some("a JSON array"),
            Some(Value::Object(_)) if lines.len() > 1 => return Some("a JSON object over several lines"),
            _ => {}
        }
    }
    if lines.iter().all(|(_, line)| line.starts_with('[') && json(line).is_some()) {
        return Some("JSON arrays");
    }
    let is_python = |open, close| first.starts_with(open) && first.ends_with(close);
    if is_python("['", ']') || is_python("{'", '}') && first.contains("':") {
        return Some("lists or dictionaries of Python");
    }
    if is_table(lines) {
        return Some("a table with a line of names");
    }
    if let Some((name, value)) = first.split_once(" = ")
        && KEYS.contains(&name.trim_end_matches('s'))
        && value.starts_with(['[', '"', '\''])
    {
        return Some("TOML");
    }
    if is_xml(whole, lines.len()) {
        return Some("XML");
    }
    let is_item = |(_, line): &(usize, &str)| line.starts_with("- ");
    let is_list = lines.len() > 1 && lines[1..].iter().all(is_item);
    let is_key = matches!(*first, "---" | "prompts:" | "prompt:" | "captions:");
    let is_yaml = is_key || is_list && (first.starts_with("- ") || first.strip_suffix(':').is_some_and(is_word));
    is_yaml.then_some("YAML")
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Whether the first line names columns, one of which has the prompts.
fn is_table(lines: &[(usize, &str)]) -> bool {
    let [(_, first), rest @ ..] = lines else { return false };
    let is_key = |word: &str| KEYS.contains(&word.trim_end_matches('s'));
    let like_key = |name: &String| name.split([' ', '_']).any(is_key) && name.split(' ').count() <= 2;
    let names_columns = |separator: char| {
        let names: Vec<String> =
            fields(first, separator).into_iter().map(|name| name.trim_matches('"').to_lowercase()).collect();
        // a list of words may begin with this one
        if names == ["text"] && rest.iter().all(|(_, line)| is_word(line)) {
            return false;
        }
        let known = names.iter().all(|name| is_word(name)) && names.iter().any(|name| is_key(name));
        // prompts have blanks behind their commas, and not all the same number of them
        let like = names.len() > 1
            && names.iter().any(like_key)
            && names.iter().all(|name| name.trim() == name)
            && rest.iter().all(|(_, line)| fields(line, separator).len() == names.len());
        known || like
    };
    !rest.is_empty() && [',', '\t', ';'].into_iter().any(names_columns)
}

/// What stands between the separators, those in quotes left out.
fn fields(line: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    let between = |c: char| {
        quoted ^= c == '"';
        c == separator && !quoted
    };
    line.split(between).collect()
}

/// Whether the text is one element of several lines or with others in it.
fn is_xml(text: &str, lines: usize) -> bool {
    let name = text.strip_prefix('<').and_then(|text| text.split_once(['>', ' '])).map(|(name, _)| name);
    let close = name.filter(|name| is_word(name)).map(|name| format!("</{name}>"));
    let inner = close.as_ref().and_then(|close| text.strip_suffix(close)).zip(close.as_ref());
    inner.is_some_and(|(inner, close)| !inner.contains(close) && (lines > 1 || inner[1..].contains('<')))
}

/// The line itself, or the text of a JSON object; where all lines are JSON, of a JSON text as well.
fn prompt(line: &str, all_json: bool) -> Result<String> {
    let looks = line.starts_with("{\"") && line.contains("\":");
    let value = match serde_json::from_str::<Value>(line) {
        Ok(value) if all_json || line.starts_with('{') => value,
        Err(e) if all_json || looks => {
            bail!(File, "expected a JSON object with `prompt`, got {} ({e})", beginning(line); hint: "mend the line")
        }
        _ => return Ok(line.into()),
    };
    let text = value.as_str().or_else(|| KEYS.iter().find_map(|key| value[key].as_str()));
    match text.map(|text| text.trim_matches(is_blank)) {
        Some("") => bail!(File, "expected a prompt, got an empty one"; hint: "leave the line out"),
        Some(text) => Ok(text.into()),
        None => bail!(File, "JSON must have `prompt`, `caption` or `text`, got {}", beginning(line)),
    }
}

/// As much of a line as an error shows.
fn beginning(line: &str) -> String {
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("{}..", &line[..end]),
        None => line.into(),
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
        for lines in [
            "a cat, a prompt, and text\na dog",
            "a cat, a prompt\na dog, a text",
            "best quality,1girl,text\na dog",
            "text\nlogo",
            "1girl,solo,english_text\n1boy,hat",
            "a sign; a text; a dog\na cat; b; c",
            "['90s style] a cat\n{'a'|'b'} dog",
            "<b>a</b> cat\n<b>red</b>",
            "<b>cat</b>",
            "[1] a cat\n[2]",
            "x = [y]\na cat",
        ] {
            assert_eq!(read(lines), lines.split('\n').collect::<Vec<_>>());
        }
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
            (b",caption,image_0_uid\n0,a red cat,a1\n", "got a table with a line of names"),
            (b"id;prompt;category\n1;a red cat;x\n", "got a table with a line of names"),
            (b"Prompt ID,Prompt text,Category\n1,\"a dog, blue\",x\n", "got a table with a line of names"),
            (b"\"prompt\",\"negative prompt\"\n\"a\",\"blurry\"\n", "got a table with a line of names"),
            (b"index,prompt_en,seed\n1,a red cat,3\n", "got a table with a line of names"),
            (b"text\na red cat\n", "got a table with a line of names"),
            (b"prompts:\n- a\n", "got YAML"),
            (b"train:\n  - a cat\n  - b\n", "got YAML"),
            (b"prompts = [\"a cat\"]\n", "got TOML"),
            (b"{\\rtf1\\ansi a cat}", "got RTF"),
            (b"[\"a cat\", 1]\n[\"b\", 2]\n", "got JSON arrays"),
            (b"{'prompt': 'a cat'}\n", "got lists or dictionaries of Python"),
            (b"['a', 'b']\n", "got lists or dictionaries of Python"),
            (b"<prompts>\na cat\n</prompts>\n", "got XML"),
            (b"<prompts><p>a</p></prompts>", "got XML"),
            (b"{\"prompt\": \"a\"}\n{\"prompt\": \" \"}\n", "line 2: expected a prompt, got an empty one"),
            (b"\"a\"\n\"\"\n", "line 2: expected a prompt, got an empty one"),
            (b"{\"prompt\": \"a\"}\n{\"prompt\": \"b\n", "line 2: expected a JSON object"),
            (b"{\"prompt\": \"a\"}\nb\n", "line 2: expected a JSON object"),
        ] {
            let error = prompts(bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let long = format!("{{\"id\": \"{}\"}}", "x".repeat(90_000));
        let error = prompts(long.as_bytes()).unwrap_err().message;
        assert!(error.len() < 200 && error.ends_with("xx.."), "{error}");
    }
}
