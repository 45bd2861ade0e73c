//! A session as a recipe that runs.

use super::lexer::{Token, TokenKind, tokens};
use super::workspace::ANSWER;

/// The inputs that ran, in order.
#[derive(Default)]
pub struct Record(Vec<Input>);

struct Input {
    code: String,
    /// It came to a value.
    valued: bool,
}

impl Record {
    pub fn add(&mut self, code: &str, valued: bool) {
        self.0.push(Input { code: code.trim().into(), valued });
    }

    /// The recipe: values are printed as at the prompt, and named `ans` where a later input asks for it.
    pub fn recipe(&self, imports: &[&str]) -> String {
        let mut out = String::from("//! A session, saved.\n\n");
        imports.iter().for_each(|import| out += &format!("{import}\n"));
        for (i, input) in self.0.iter().enumerate() {
            let asked = self.0[i + 1..].iter().take_while(|next| !next.valued || asks(next)).any(asks);
            out += &format!("{}\n", input.statement(asked, imports));
        }
        out
    }
}

fn asks(input: &Input) -> bool {
    tokens(&input.code).iter().any(|t| t.kind == TokenKind::Word && t.text == ANSWER)
}

impl Input {
    fn statement(&self, asked: bool, imports: &[&str]) -> String {
        let code = without_imports(&self.code, imports);
        let (before, last) = code.split_at(last_expression(&code));
        let last = last.trim();
        match (self.valued && !last.is_empty(), asked) {
            (true, true) => format!("{before}let {ANSWER} = {last};\nprint({ANSWER});"),
            (true, false) => format!("{before}print({last});"),
            (false, _) if ends_itself(code.trim_end()) => code.trim_end().into(),
            (false, _) => format!("{};", code.trim_end()),
        }
    }
}

/// Imports stand once, at the head.
fn without_imports(code: &str, imports: &[&str]) -> String {
    let same = |line: &str| imports.contains(&format!("{};", line.trim().trim_end_matches(';')).as_str());
    code.lines().filter(|line| !same(line)).collect::<Vec<_>>().join("\n")
}

/// A statement that takes no `;`.
fn ends_itself(code: &str) -> bool {
    code.is_empty() || code.ends_with(';') || (code.ends_with('}') && code.starts_with("fn "))
}

/// Where the last expression begins: behind the last `;` or block that is outside brackets.
fn last_expression(code: &str) -> usize {
    let pieces: Vec<_> = tokens(code).into_iter().filter(Token::counts).collect();
    let (mut depth, mut start) = (0, 0);
    for (i, token) in pieces.iter().enumerate() {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth -= 1,
            _ => {}
        }
        let next = pieces.get(i + 1);
        let ends = token.is(";") || (token.is("}") && is_block(pieces[start].text) && next.is_some_and(begins_anew));
        if depth == 0 && ends {
            start = i + 1;
        }
    }
    pieces.get(start).map_or(code.len(), |token| token.start)
}

fn is_block(word: &str) -> bool {
    ["fn", "private", "if", "for", "while", "loop", "do", "switch", "try"].contains(&word)
}

/// Whether a token behind a block belongs to another statement.
fn begins_anew(token: &Token) -> bool {
    !["else", "catch", "until", "while", ".", "["].contains(&token.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_printed_and_answers_named() {
        let mut record = Record::default();
        record.add("import \"stdlib/numeric\" as n", false);
        record.add("let x = 3", false);
        record.add("let y = x; x + y", true);
        record.add("ans * 2", true);
        record.add("fn f(a) { a }", false);
        record.add("fn g(a) { a }\nif x > 1 { x = 1 } else { x = 2 }\ng(#{ a: [1, 2] })", true);
        let wanted = "//! A session, saved.\n\nimport \"stdlib/numeric\" as n;\n\nlet x = 3;\nlet y = x; let ans = x + y;\nprint(ans);\n\
                      print(ans * 2);\nfn f(a) { a }\nfn g(a) { a }\nif x > 1 { x = 1 } else { x = 2 }\n\
                      print(g(#{ a: [1, 2] }));\n";
        assert_eq!(record.recipe(&["import \"stdlib/numeric\" as n;"]), wanted);
    }
}
