//! The settings of a script as it writes them: `amscript recipes NAME --settings`.

use crate::script::{header, import};

/// One setting as it is written.
#[derive(Debug, Default, PartialEq)]
struct Setting {
    name: String,
    default: String,
    /// The comment beside it, or above it.
    meaning: String,
}

/// A recipe's own settings, and those that it shares with others; none where it has no settings.
fn settings(text: &str) -> Option<(Vec<Setting>, Vec<Setting>)> {
    let own = written(text, "settings(#{")?;
    let shares = text.contains("experiment::settings(#{");
    let experiment = import::embedded().find(|(name, _)| shares && name == "stdlib/experiment");
    let mut shared = experiment.and_then(|(_, text)| written(text, "fn defaults() {\n    #{")).unwrap_or_default();
    let meaning = |name: &str| shared.iter().find(|s| s.name == name).map(|s| s.meaning.clone()).unwrap_or_default();
    let own: Vec<Setting> = own
        .into_iter()
        .map(|s| if s.meaning.is_empty() { Setting { meaning: meaning(&s.name), ..s } } else { s })
        .collect();
    shared.retain(|s| own.iter().all(|mine| mine.name != s.name));
    Some((own, shared))
}

/// The texts in the defaults of a script's settings, each with the name of its setting.
pub fn texts(text: &str) -> Vec<(String, String)> {
    let (own, shared) = settings(text).unwrap_or_default();
    let of = |s: Setting| header::texts(&s.default).into_iter().map(move |text| (s.name.clone(), text));
    own.into_iter().chain(shared).flat_map(of).collect()
}

/// A table of a recipe's own settings and those that it shares with others; none where it has no settings.
pub fn table(text: &str) -> Option<String> {
    let (own, shared) = settings(text)?;
    let all: Vec<&Setting> = own.iter().chain(&shared).collect();
    let width =
        |f: fn(&Setting) -> &str, most: usize| all.iter().map(|s| f(s).chars().count()).max().unwrap_or(0).min(most);
    let (names, defaults) = (width(|s| &s.name, 30), width(|s| &s.default, 36));
    let line =
        |s: &Setting| format!("  {:<names$}  {:<defaults$}  {}", s.name, s.default, s.meaning).trim_end().to_string();
    let block = |title: &str, settings: &[Setting]| match settings {
        [] => vec![],
        settings => [title.to_string()].into_iter().chain(settings.iter().map(line)).collect(),
    };
    let lines = [block("its own", &own), block("shared by all methods", &shared)].concat();
    Some(lines.join("\n"))
}

/// The entries of the object map that `opening` opens in a script.
fn written(text: &str, opening: &str) -> Option<Vec<Setting>> {
    let body = &text[text.find(opening)? + opening.len()..];
    let (mut out, mut entry, mut above) = (vec![], Setting::default(), String::new());
    let (mut depth, mut in_value, mut line_is_blank) = (0_usize, false, true);
    let mut rest = body;
    while let Some(c) = rest.chars().next() {
        let (token, after) = rest.split_at(token_length(rest, c));
        rest = after;
        if token.starts_with("//") {
            let comment = token.trim_start_matches('/').trim();
            let place = match (in_value, line_is_blank) {
                (true, _) => &mut entry.meaning,
                (false, true) => &mut above,
                (false, false) => out.last_mut().map_or(&mut above, |last: &mut Setting| &mut last.meaning),
            };
            *place = format!("{place} {comment}").trim().to_string();
            continue;
        }
        line_is_blank = if c == '\n' { true } else { line_is_blank && c.is_whitespace() };
        match c {
            ',' | '}' if depth == 0 => {
                if in_value {
                    out.push(finished(std::mem::take(&mut entry), std::mem::take(&mut above)));
                }
                in_value = false;
                if c == '}' {
                    return Some(out);
                }
            }
            ':' if depth == 0 && !in_value => in_value = true,
            _ => {
                depth = depth + usize::from("([{".contains(c)) - usize::from(")]}".contains(c));
                let part = if in_value { &mut entry.default } else { &mut entry.name };
                part.push_str(token);
            }
        }
    }
    None
}

/// A quoted text or a comment as a whole, else a character.
fn token_length(rest: &str, c: char) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if !"\"`".contains(c) {
        return c.len_utf8();
    }
    let mut escaped = false;
    let end = rest[1..].find(|inner: char| {
        let closes = inner == c && !escaped;
        escaped = inner == '\\' && !escaped;
        closes
    });
    end.map_or(rest.len(), |end| end + 2)
}

fn finished(entry: Setting, above: String) -> Setting {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let meaning = if entry.meaning.is_empty() { above } else { entry.meaning };
    Setting { name: words(&entry.name), default: words(&entry.default), meaning }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::recipe;

    #[test]
    fn entries_are_read_with_their_comments() {
        let text = "let s = settings(#{\n    a: 1, b: \"x, // y\", // both\n    // what follows\n    c: #{\n        d: [1, 2], // inner\n    },\n});";
        let entry = |name: &str, default: &str, meaning: &str| Setting {
            name: name.into(),
            default: default.into(),
            meaning: meaning.into(),
        };
        let expected = [entry("a", "1", ""), entry("b", "\"x, // y\"", "both"), entry("c", "#{ d: [1, 2], }", "inner")];
        let found = written(text, "settings(#{").unwrap();
        assert_eq!(found[..2], expected[..2]);
        assert_eq!((found[2].default.as_str(), found[2].meaning.as_str()), ("#{ d: [1, 2], }", "inner"));
    }

    #[test]
    fn every_setting_of_a_method_says_what_it_is() {
        let table = table(recipe::named("flux_ode_am").unwrap().text).unwrap();
        for line in table.lines().filter(|line| line.starts_with("  ") && !line.starts_with("  seed")) {
            let words = line.split("  ").filter(|part| !part.trim().is_empty()).count();
            assert!(words == 3, "{line}");
        }
        for words in
            ["truncate", "`last(K)`", "cosine(2e-3)", "prompts that training never sees", "shared by all methods"]
        {
            assert!(table.contains(words), "{words}: {table}");
        }
        let sit = super::table(recipe::named("sit_ode_am").unwrap().text).unwrap();
        assert_eq!(sit.matches("  model ").count(), 1);
        assert!(super::table("let x = 3;").is_none());
    }
}
