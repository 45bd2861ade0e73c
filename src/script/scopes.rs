//! Which variables can be seen at a word of a script.

use super::word::Word;
use rhai::Token;

/// The braces and closures that are open, with their variables.
pub(super) struct Scopes<'a> {
    /// Brackets of all kinds that are open.
    depth: usize,
    open: Vec<Scope<'a>>,
    /// Parameters and variables of loops, which are there from the next brace at their depth on.
    coming: Vec<Scope<'a>>,
    /// Variables that are there when their statement has ended, with its depth.
    unfinished: Vec<(usize, &'a str)>,
}

struct Scope<'a> {
    depth: usize,
    kind: ScopeKind,
    names: Vec<&'a str>,
}

#[derive(Clone, Copy, PartialEq)]
enum ScopeKind {
    Block,
    /// It begins behind the word of that number, and ends where its argument or statement does.
    Closure(usize),
    /// It sees nothing outside.
    Function,
}

impl<'a> Scopes<'a> {
    /// At the beginning of a text that finds these variables.
    pub fn new(variables: &[&'a str]) -> Self {
        let all = Scope { depth: 0, kind: ScopeKind::Block, names: variables.to_vec() };
        Self { depth: 0, open: vec![all], coming: vec![], unfinished: vec![] }
    }

    /// Whether there is a variable of that name, and whether it can be seen here: a function sees none from outside.
    pub fn sees(&self, name: &str) -> Option<bool> {
        let mut inside = true;
        for scope in self.open.iter().rev() {
            if scope.names.contains(&name) {
                return Some(inside);
            }
            inside &= scope.kind != ScopeKind::Function;
        }
        None
    }

    /// Whether a name stands here as that of a parameter or a loop's variable.
    pub fn declares(&self, name: &str) -> bool {
        self.coming.iter().any(|scope| scope.names.contains(&name))
    }

    /// Goes on to the next word.
    pub fn pass(&mut self, words: &'a [Word], i: usize) {
        let next = words.get(i + 1);
        match words[i].token {
            Token::LeftBrace => {
                let coming = self.coming.pop_if(|scope| scope.depth == self.depth);
                self.depth += 1;
                let (kind, names) = coming.map_or((ScopeKind::Block, vec![]), |scope| (scope.kind, scope.names));
                self.open.push(Scope { depth: self.depth, kind, names });
            }
            Token::MapStart | Token::LeftParen | Token::LeftBracket | Token::QuestionBracket => self.depth += 1,
            Token::RightBrace | Token::RightParen | Token::RightBracket => {
                self.depth = self.depth.saturating_sub(1);
                while self.open.pop_if(|scope| scope.depth > self.depth).is_some() {}
                self.unfinished.retain(|(depth, _)| *depth <= self.depth);
            }
            Token::Comma => self.end_closures(i),
            Token::SemiColon => {
                self.end_closures(i);
                let depth = self.depth;
                let ended = self.unfinished.extract_if(.., |(d, _)| *d == depth).map(|(_, name)| name);
                if let Some(scope) = self.open.last_mut() {
                    scope.names.extend(ended);
                }
            }
            Token::Let | Token::Const => {
                let name = next.and_then(Word::name).map(|name| (self.depth, name));
                self.unfinished.extend(name);
            }
            Token::For => self.expect(ScopeKind::Block, names(words, i + 1, &Token::In)),
            Token::Fn if words.get(i + 2).is_some_and(|w| w.is(&Token::Unit)) => {
                self.expect(ScopeKind::Function, vec![])
            }
            Token::Fn => self.expect(ScopeKind::Function, names(words, i + 2, &Token::RightParen)),
            Token::Catch if next.is_some_and(|w| w.is(&Token::LeftParen)) => {
                self.expect(ScopeKind::Block, names(words, i + 1, &Token::RightParen));
            }
            Token::Pipe if i == 0 || !words[i - 1].ends_operand() => {
                let names = names(words, i + 1, &Token::Pipe);
                let begin = words.iter().skip(i + 1).position(|word| word.is(&Token::Pipe)).map_or(i, |n| i + 1 + n);
                self.open.push(Scope { depth: self.depth, kind: ScopeKind::Closure(begin), names });
            }
            _ => {}
        }
    }

    fn expect(&mut self, kind: ScopeKind, names: Vec<&'a str>) {
        self.coming.push(Scope { depth: self.depth, kind, names });
    }

    fn end_closures(&mut self, at: usize) {
        let ends =
            |scope: &Scope| matches!(scope.kind, ScopeKind::Closure(begin) if begin < at) && scope.depth == self.depth;
        while self.open.pop_if(|scope| ends(scope)).is_some() {}
    }
}

/// The names up to a word of some kind.
fn names<'a>(words: &'a [Word], from: usize, to: &Token) -> Vec<&'a str> {
    words.iter().skip(from).take_while(|word| !word.is(to)).filter_map(Word::name).collect()
}
