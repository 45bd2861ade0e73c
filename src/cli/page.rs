//! The reference manual as one page for browsers, without anything from elsewhere.

use crate::script::catalog::{Catalog, Entry};
use crate::script::help::signatures;
use crate::script::option::Field;
use std::collections::BTreeMap;

/// The whole page.
pub fn page() -> String {
    let catalog = Catalog::get();
    let links = links(catalog);
    let (mut chapters, mut body) = (String::new(), String::new());
    for heading in &catalog.headings {
        let id = chapter(&heading.name);
        chapters += &format!("<a href=\"#{id}\">{}</a>\n", heading.name);
        body +=
            &format!("<section class=\"chapter\">\n<h2 id=\"{id}\">{}</h2>\n{}", heading.name, prose(&heading.text));
        for entry in catalog.entries.iter().filter(|e| e.chapter == heading.name) {
            body += &article(entry, &links);
        }
        body += "</section>\n";
    }
    include_str!("page.html").replace("{chapters}", &chapters).replace("{body}", &body)
}

/// Where each name is explained: its first entry.
fn links(catalog: &Catalog) -> BTreeMap<&str, String> {
    let mut out = BTreeMap::new();
    for entry in &catalog.entries {
        out.entry(entry.name.as_str()).or_insert_with(|| anchor(entry));
    }
    out
}

fn chapter(name: &str) -> String {
    name.replace('/', "-")
}

/// `flow.rollout`; operators by the numbers of their signs.
fn anchor(entry: &Entry) -> String {
    let sign = |c: char| if c.is_alphanumeric() || c == '_' { c.to_string() } else { format!("-{:x}", c as u32) };
    format!("{}.{}", chapter(&entry.chapter), entry.name.chars().map(sign).collect::<String>())
}

fn article(entry: &Entry, links: &BTreeMap<&str, String>) -> String {
    let (id, name) = (anchor(entry), escape(&entry.name));
    let mut out = format!(
        "<article data-name=\"{name}\">\n<h3 id=\"{id}\"><a href=\"#{id}\">{name}</a></h3>\n\
         <pre class=\"signature\">{}</pre>\n{}{}{}",
        escape(&signatures(entry)),
        prose(&entry.summary),
        prose(&entry.details),
        table(&entry.options)
    );
    for example in &entry.examples {
        out += &format!("<pre>{}</pre>\n", highlight(example.code.trim_end(), links));
    }
    out + "</article>\n"
}

fn table(fields: &[Field]) -> String {
    if fields.is_empty() {
        return String::new();
    }
    let row = |f: &Field| {
        format!(
            "<tr><td><code>{}</code></td><td>{}</td><td><code>{}</code></td><td>{}</td></tr>\n",
            f.name,
            inline(&f.expected),
            escape(&f.default),
            inline(&f.meaning)
        )
    };
    let rows: String = fields.iter().map(row).collect();
    let head = "<tr><th>option</th><th>type</th><th>default</th><th>meaning</th></tr>";
    format!("<div class=\"wide\"><table>\n{head}\n{rows}</table></div>\n")
}

/// Paragraphs and tables of a doc comment.
fn prose(text: &str) -> String {
    let block = |text: &str| match text.starts_with('|') {
        true => format!("<div class=\"wide\"><table>\n{}</table></div>\n", rows(text)),
        false => format!("<p>{}</p>\n", inline(text)),
    };
    text.split("\n\n").filter(|block| !block.trim().is_empty()).map(block).collect()
}

fn rows(text: &str) -> String {
    let cells = |line: &str, tag: &str| -> String {
        let cells = line.trim_matches('|').split('|').map(|cell| format!("<{tag}>{}</{tag}>", inline(cell.trim())));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let lines = text.lines().filter(|line| !line.starts_with("|--"));
    lines.enumerate().map(|(i, line)| cells(line, if i == 0 { "th" } else { "td" })).collect()
}

/// Code in backticks, and links inside the manual as the code that they show.
fn inline(text: &str) -> String {
    let code = |(i, part): (usize, &str)| match i % 2 {
        1 => format!("<code>{}</code>", escape(part)),
        _ => escape(part),
    };
    let mut text = text.to_string();
    while let Some(middle) = text.find("`](#") {
        let end = text[middle..].find(')').map(|i| middle + i);
        let (Some(start), Some(end)) = (text[..middle].rfind("[`"), end) else { break };
        text = format!("{}{}{}", &text[..start], &text[start + 1..=middle], &text[end + 1..]);
    }
    text.split('`').enumerate().map(code).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Colours of a script: comments, texts, numbers, keywords; functions of the manual lead to their entry.
fn highlight(code: &str, links: &BTreeMap<&str, String>) -> String {
    let (mut out, mut rest) = (String::new(), code);
    while let Some(first) = rest.chars().next() {
        let (token, after) = rest.split_at(length(rest, first));
        let shown = escape(token);
        out += &match first {
            '/' if token.len() > 1 => format!("<span class=\"c\">{shown}</span>"),
            '"' | '`' => format!("<span class=\"s\">{shown}</span>"),
            '0'..='9' => format!("<span class=\"n\">{shown}</span>"),
            _ if super::editor::keywords().contains(&token) => format!("<span class=\"k\">{shown}</span>"),
            _ => match links.get(token).filter(|_| after.starts_with('(')) {
                Some(id) => format!("<a href=\"#{id}\">{shown}</a>"),
                None => shown,
            },
        };
        rest = after;
    }
    out
}

/// Bytes of the token that a text begins with.
fn length(text: &str, first: char) -> usize {
    let until = |stop: &dyn Fn(char) -> bool| text.find(stop).unwrap_or(text.len());
    match first {
        '/' if text.starts_with("//") => until(&|c| c == '\n'),
        '"' | '`' => {
            let mut escaped = false;
            let close = text.char_indices().skip(1).find(|(_, c)| {
                let closes = *c == first && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            });
            close.map_or(text.len(), |(i, _)| i + 1)
        }
        c if c.is_alphanumeric() || c == '_' => until(&|c| !c.is_alphanumeric() && c != '_'),
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone_and_its_links_lead_somewhere() {
        let page = page();
        assert!(!page.contains("=\"http://") && !page.contains("src=") && !page.contains("{body}"));
        let ids: std::collections::BTreeSet<&str> =
            page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let targets = page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next());
        let lost: Vec<&str> = targets.filter(|target| !ids.contains(target)).collect();
        assert!(lost.is_empty() && ids.len() > 400, "{lost:?}, {}", ids.len());
        assert_eq!(page.matches(" id=\"").count(), ids.len(), "ids are unique");
    }

    #[test]
    fn scripts_are_coloured_and_escaped() {
        let links = BTreeMap::from([("zeros", "tensor.zeros".to_string())]);
        assert_eq!(
            highlight("let x = zeros([2]) < \"a\\\"b\"; // end", &links),
            "<span class=\"k\">let</span> x = <a href=\"#tensor.zeros\">zeros</a>([<span class=\"n\">2</span>]) &lt; \
             <span class=\"s\">&quot;a\\&quot;b&quot;</span>; <span class=\"c\">// end</span>"
        );
        assert_eq!(
            inline("as [`finish`](#finish) does, `a < b`"),
            "as <code>finish</code> does, <code>a &lt; b</code>"
        );
    }
}
