//! HTML whose text cannot become markup: every value enters through [`text`] or as an attribute, and both are escaped.

use amscript_base::text::visible;
use std::fmt::Display;

/// A piece of a page.
#[derive(Clone, Debug, Default)]
pub struct Html(String);

/// Text that stands in the page as it is.
pub fn text(value: impl Display) -> Html {
    Html(escape(&value.to_string()))
}

/// An element around others.
pub fn tag(name: &str, attributes: &[(&str, &str)], inner: impl IntoIterator<Item = Html>) -> Html {
    let inner: Html = inner.into_iter().collect();
    Html(format!("{}{}</{name}>", single(name, attributes).0, inner.0))
}

/// An element that has no inside, such as `img`.
pub fn single(name: &str, attributes: &[(&str, &str)]) -> Html {
    let attributes: String = attributes.iter().map(|(key, value)| format!(" {key}=\"{}\"", escape(value))).collect();
    Html(format!("<{name}{attributes}>"))
}

/// An element around a text.
pub fn word(name: &str, value: impl Display) -> Html {
    tag(name, &[], [text(value)])
}

/// Cells of a table row; the first is its heading.
pub fn row(cells: impl IntoIterator<Item = Html>) -> Html {
    let cells = cells.into_iter().enumerate().map(|(i, cell)| match i {
        0 => tag("th", &[("scope", "row")], [cell]),
        _ => tag("td", &[], [cell]),
    });
    tag("tr", &[], cells)
}

/// A table that scrolls by itself where it is wider than the page.
pub fn table(label: &str, heads: &[String], rows: impl IntoIterator<Item = Html>) -> Html {
    let heads = heads.iter().map(|head| tag("th", &[("scope", "col")], [text(head)]));
    let head = tag("thead", &[], [tag("tr", &[], heads)]);
    let table = tag("table", &[], [head, tag("tbody", &[], rows)]);
    tag("div", &[("class", "scroll"), ("tabindex", "0"), ("role", "region"), ("aria-label", label)], [table])
}

/// What is shown when its summary is clicked, or from the start.
pub fn folded(summary: impl Display, open: bool, inner: impl IntoIterator<Item = Html>) -> Html {
    let inner = std::iter::once(word("summary", summary)).chain(inner);
    tag("details", if open { &[("open", "")] } else { &[] }, inner)
}

impl Html {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromIterator<Html> for Html {
    fn from_iter<I: IntoIterator<Item = Html>>(parts: I) -> Self {
        Self(parts.into_iter().map(|part| part.0).collect())
    }
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in visible(value).chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_text() {
        let hostile = "</td><script>alert('x')</script>\u{0}";
        let cell = tag("td", &[("title", "\" onload=\"alert(1)")], [text(hostile)]);
        assert_eq!(
            cell.as_str(),
            "<td title=\"&quot; onload=&quot;alert(1)\">&lt;/td&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\\u{0}</td>"
        );
    }
}
