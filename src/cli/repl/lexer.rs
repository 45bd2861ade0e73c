//! A script's text cut into words, texts, signs and brackets, also while it is being typed.

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Space,
    Comment,
    /// A string or a character, with its quotes.
    Text,
    Number,
    Word,
    Open,
    Close,
    Sign,
}

/// One piece; all pieces together are the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: TokenKind,
    pub text: &'a str,
    pub start: usize,
    /// A string or comment whose end is there; anything else is always closed.
    pub closed: bool,
}

impl Token<'_> {
    pub fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Whether it means something to the script.
    pub fn counts(&self) -> bool {
        !matches!(self.kind, TokenKind::Space | TokenKind::Comment)
    }

    pub fn is(&self, sign: &str) -> bool {
        self.text == sign && self.kind != TokenKind::Text
    }
}

/// The words that Rhai keeps for itself, but for [`VALUES`].
pub const KEYWORDS: [&str; 24] = [
    "let", "const", "if", "else", "switch", "while", "loop", "do", "until", "for", "in", "continue", "break", "return",
    "throw", "try", "catch", "fn", "private", "this", "import", "export", "as", "global",
];

/// The words that are values.
pub const VALUES: [&str; 2] = ["true", "false"];

/// Cuts a text.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = vec![];
    let mut start = 0;
    while start < text.len() {
        let (kind, length, closed) = piece(&text[start..]);
        out.push(Token { kind, text: &text[start..start + length], start, closed });
        start += length;
    }
    out
}

/// Kind, length and end of the first piece of a text that is not empty.
fn piece(text: &str) -> (TokenKind, usize, bool) {
    let bytes = text.as_bytes();
    let first = text.chars().next().unwrap_or(' ');
    let run = |wanted: &dyn Fn(char) -> bool| text.find(|c| !wanted(c)).unwrap_or(text.len());
    let (kind, (length, closed)) = match (first, bytes.get(1)) {
        (c, _) if c.is_whitespace() => (TokenKind::Space, (run(&char::is_whitespace), true)),
        ('/', Some(b'/')) => (TokenKind::Comment, (text.find('\n').unwrap_or(text.len()), true)),
        ('/', Some(b'*')) => (TokenKind::Comment, block_comment(bytes)),
        ('"', _) | ('\'', _) => (TokenKind::Text, quoted(text, first)),
        ('`', _) => (TokenKind::Text, template(text)),
        ('#', Some(b'{')) => (TokenKind::Open, (2, true)),
        ('#', _) if raw(text).is_some() => (TokenKind::Text, raw(text).unwrap_or((1, true))),
        (c, _) if c.is_ascii_digit() => (TokenKind::Number, (number(text), true)),
        (c, _) if c.is_alphabetic() || c == '_' => (TokenKind::Word, (run(&|c| c.is_alphanumeric() || c == '_'), true)),
        ('(' | '[' | '{', _) => (TokenKind::Open, (1, true)),
        (')' | ']' | '}', _) => (TokenKind::Close, (1, true)),
        (':', Some(b':')) => (TokenKind::Sign, (2, true)),
        (c, _) => (TokenKind::Sign, (c.len_utf8(), true)),
    };
    (kind, length, closed)
}

/// `1`, `2.5`, `1e-3`, `0xff`; the points of `0..3` and `x.1.abs()` are not its own.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits =
        |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
    let mut end = digits(0);
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1);
    }
    let exponent = matches!(bytes[end - 1], b'e' | b'E') && !text.starts_with("0x");
    match bytes.get(end) {
        Some(b'+' | b'-') if exponent && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) => digits(end + 1),
        _ => end,
    }
}

/// Comments nest.
fn block_comment(bytes: &[u8]) -> (usize, bool) {
    let (mut depth, mut i) = (0, 0);
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => (depth, i) = (depth + 1, i + 2),
            b"*/" => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return (i, true);
        }
    }
    (bytes.len(), false)
}

/// To the quote that is not escaped.
fn quoted(text: &str, quote: char) -> (usize, bool) {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return (i + 1, true),
            _ => {}
        }
    }
    (text.len(), false)
}

/// To the closing backtick; `${..}` may hold anything, other backticks too.
fn template(text: &str) -> (usize, bool) {
    let mut i = 1;
    while i < text.len() {
        if text[i..].starts_with("${") {
            let mut depth = 1;
            i += 2;
            while i < text.len() && depth > 0 {
                let (kind, length, _) = piece(&text[i..]);
                depth = match kind {
                    TokenKind::Open if text[i..i + length].ends_with('{') => depth + 1,
                    TokenKind::Close if &text[i..i + length] == "}" => depth - 1,
                    _ => depth,
                };
                i += length;
            }
            continue;
        }
        let c = text[i..].chars().next().unwrap_or('`');
        i += c.len_utf8();
        if c == '`' {
            return (i, true);
        }
    }
    (text.len(), false)
}

/// `#"text"#` with as many signs as one likes.
fn raw(text: &str) -> Option<(usize, bool)> {
    let signs = text.bytes().take_while(|b| *b == b'#').count();
    if text.as_bytes().get(signs) != Some(&b'"') {
        return None;
    }
    let end = format!("\"{}", &text[..signs]);
    let body = signs + 1;
    Some(text[body..].find(&end).map_or((text.len(), false), |at| (body + at + end.len(), true)))
}

/// Whether more must follow: a bracket, text or comment is open, an operator waits for its right side, or a doc comment for its function.
pub fn unfinished(text: &str) -> bool {
    let tokens = tokens(text);
    if tokens.iter().any(is_cut) {
        return false;
    }
    if tokens.iter().rev().find(|t| t.kind != TokenKind::Space).is_some_and(|t| t.text.starts_with("///")) {
        return true;
    }
    let closed = tokens.iter().all(|t| t.closed || t.text.starts_with('\''));
    !closed || !open(&tokens).is_empty() || ends_in_operator(&tokens)
}

/// Plain strings cannot run over lines unless a backslash stands at the end: an open one is a mistake that the parser explains.
fn is_cut(token: &Token) -> bool {
    !token.closed && token.text.starts_with('"') && !token.text.ends_with('\\')
}

fn ends_in_operator(tokens: &[Token]) -> bool {
    let meant: Vec<&Token> = tokens.iter().filter(|t| t.counts()).collect();
    match meant.as_slice() {
        // of other languages: the parser explains them
        [.., a, b] if a.end() == b.start && a.text == b.text && ["+", "-"].iter().any(|sign| a.is(sign)) => false,
        [_, .., last] => ["+", "-", "*", "/", "%", "=", "<", ">", "&", "|"].iter().any(|sign| last.is(sign)),
        _ => false,
    }
}

/// The brackets that are open at the end, outermost first.
pub fn open<'a, 'b>(tokens: &'b [Token<'a>]) -> Vec<&'b Token<'a>> {
    let mut stack = vec![];
    for token in tokens {
        match token.kind {
            TokenKind::Open => stack.push(token),
            TokenKind::Close => drop(stack.pop()),
            _ => {}
        }
    }
    stack
}

/// The bracket that belongs to the one at `index`, if both are there.
pub fn partner(tokens: &[Token], index: usize) -> Option<usize> {
    let backward = tokens.get(index)?.kind == TokenKind::Close;
    let mut depth = 0_i32;
    let mut at = index;
    loop {
        match tokens.get(at)?.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (at != index).then_some(at);
        }
        at = if backward { at.checked_sub(1)? } else { at + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(TokenKind, &str)> {
        tokens(text).into_iter().filter(Token::counts).map(|t| (t.kind, t.text)).collect()
    }

    #[test]
    fn pieces_make_up_the_text() {
        for text in
            ["let x = 1e-3; f(x, \"a\\\"b\") // end", "`a ${f({`b`})} c` + #\"raw\"# é €", "x[0..3].y::z /* /* */ */"]
        {
            assert_eq!(tokens(text).iter().map(|t| t.text).collect::<String>(), text);
        }
        use TokenKind::*;
        let found = kinds("a.b(0..3, 1.5e-3) `x${ {1} }y`");
        let wanted = [
            (Word, "a"),
            (Sign, "."),
            (Word, "b"),
            (Open, "("),
            (Number, "0"),
            (Sign, "."),
            (Sign, "."),
            (Number, "3"),
            (Sign, ","),
            (Number, "1.5e-3"),
            (Close, ")"),
            (Text, "`x${ {1} }y`"),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn open_brackets_texts_and_comments_ask_for_more() {
        for text in [
            "f(",
            "#{ a: [1,",
            "`two\nlines",
            "if x {",
            "/* remark",
            "\"a\\",
            "f(\"(\"",
            "1 +",
            "let f = |x|",
            "x ==",
            "/// About f.",
        ] {
            assert!(unfinished(text), "{text}");
        }
        for text in ["f()", "f(\"(\")", "x }", "// (", "`${f(\"}\")}`", "\"one\nline\"", "\"text", "f(\"x)", "i++", "'"]
        {
            assert!(!unfinished(text), "{text}");
        }
    }

    #[test]
    fn brackets_know_their_partner() {
        let tokens = tokens("f(g(1), [2])");
        assert_eq!(partner(&tokens, 1), Some(tokens.len() - 1));
        assert_eq!(partner(&tokens, tokens.len() - 1), Some(1));
        assert_eq!(partner(&tokens, 0), None);
    }
}
