//! The words of a script with their places, as Rhai reads them: comments are left out, and what stands in `${..}` inside a text is read
//! as code.

use rhai::{Engine, Token};

/// A word and where it begins, counted from 1.
pub(super) struct Word {
    pub token: Token,
    pub line: usize,
    pub column: usize,
}

impl Word {
    /// The name that a word is.
    pub fn name(&self) -> Option<&str> {
        match &self.token {
            Token::Identifier(name) => Some(name),
            _ => None,
        }
    }

    pub fn is(&self, token: &Token) -> bool {
        self.token == *token
    }

    pub fn is_this(&self) -> bool {
        matches!(&self.token, Token::Reserved(word) if word.as_str() == "this")
    }

    /// Whether an operand ends here, so that a `|` behind it is an operator and no closure.
    pub fn ends_operand(&self) -> bool {
        use Token as T;
        let bracket = matches!(self.token, T::RightParen | T::RightBracket);
        let constant = matches!(
            self.token,
            T::IntegerConstant(_)
                | T::FloatConstant(_)
                | T::CharConstant(_)
                | T::StringConstant(_)
                | T::True
                | T::False
        );
        bracket || constant || self.is_this() || self.name().is_some()
    }
}

/// All words of a text, up to the first that Rhai cannot read.
pub(super) fn words(text: &str) -> Vec<Word> {
    let engine = Engine::new_raw();
    let inputs = [text];
    let (tokens, control) = engine.lex(&inputs);
    let (mut found, mut open) = (vec![], vec![]);
    for (token, position) in tokens {
        if matches!(token, Token::EOF | Token::LexError(_)) {
            break;
        }
        match (&token, open.last_mut()) {
            (Token::InterpolatedString(_), _) => open.push(0_usize),
            (Token::LeftBrace | Token::MapStart, Some(depth)) => *depth += 1,
            (Token::RightBrace, Some(depth)) => {
                *depth = depth.saturating_sub(1);
                if *depth == 0 {
                    open.pop();
                    control.borrow_mut().is_within_text = true;
                }
            }
            _ => {}
        }
        let (line, column) = (position.line().unwrap_or(0), position.position().unwrap_or(0));
        found.push(Word { token, line, column });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_texts_are_words_and_those_in_comments_are_not() {
        let text = "let a = `x ${f(#{ b: `${c}` })} y ${d} z`; // e\n/* g */ \"h\" + i";
        let found = words(text);
        let names: Vec<&str> = found.iter().filter_map(Word::name).collect();
        assert_eq!(names, ["a", "f", "b", "c", "d", "i"]);
        let last = found.last().unwrap();
        assert_eq!((last.line, last.column), (2, 15));
    }
}
