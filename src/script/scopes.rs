//! Which variables can be seen at a word of a script.

use super::word::Word;
use rhai::Token;
use std::collections::HashMap;

/// The braces and closures that are open, with their variables.
pub(super) struct Scopes<'a> {
    /// Brackets of all kinds that are open.
    depth: usize,
    open: Vec<Scope<'a>>,
    /// For each name the places in `open` of the scopes that have it.
    places: HashMap<&'a str, Vec<usize>>,
    /// The places in `open` of functions.
    functions: Vec<usize>,
    /// Parameters and variables of loops, which are there from the next brace at their depth on.
    coming: Vec<Scope<'a>>,
    /// Variables that are there when their statement has ended, with its depth, which grows.
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
        let mut scopes = Self {
            depth: 0,
            open: vec![],
            places: HashMap::new(),
            functions: vec![],
            coming: vec![],
            unfinished: vec![],
        };
        scopes.begin(ScopeKind::Block, variables.to_vec());
        scopes
    }

    /// Whether there is a variable of that name, and whether it can be seen here: a function sees none from outside.
    pub fn sees(&self, name: &str) -> Option<bool> {
        let place = self.places.get(name)?.last()?;
        Some(self.functions.last().is_none_or(|function| function <= place))
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
                self.begin(kind, names);
            }
            Token::MapStart | Token::LeftParen | Token::LeftBracket | Token::QuestionBracket => self.depth += 1,
            Token::RightBrace | Token::RightParen | Token::RightBracket => {
                self.depth = self.depth.saturating_sub(1);
                let depth = self.depth;
                self.end(|scope| scope.depth > depth);
                while self.coming.pop_if(|scope| scope.depth > depth).is_some() {}
                while self.unfinished.pop_if(|(inner, _)| *inner > depth).is_some() {}
            }
            Token::Comma => self.end_closures(i),
            Token::SemiColon => {
                self.end_closures(i);
                let depth = self.depth;
                while let Some((_, name)) = self.unfinished.pop_if(|(d, _)| *d == depth) {
                    self.add(name);
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
                self.begin(ScopeKind::Closure(begin), names);
            }
            _ => {}
        }
    }

    fn begin(&mut self, kind: ScopeKind, names: Vec<&'a str>) {
        if kind == ScopeKind::Function {
            self.functions.push(self.open.len());
        }
        self.open.push(Scope { depth: self.depth, kind, names: vec![] });
        names.into_iter().for_each(|name| self.add(name));
    }

    /// Adds a variable to the innermost scope.
    fn add(&mut self, name: &'a str) {
        let place = self.open.len() - 1;
        if let Some(scope) = self.open.last_mut() {
            scope.names.push(name);
            self.places.entry(name).or_default().push(place);
        }
    }

    /// Ends scopes from the innermost on, while they are to.
    fn end(&mut self, ends: impl Fn(&Scope) -> bool) {
        while let Some(scope) = self.open.pop_if(|scope| ends(scope)) {
            for name in scope.names {
                self.places.get_mut(name).and_then(Vec::pop);
            }
            self.functions.pop_if(|function| *function == self.open.len());
        }
    }

    fn expect(&mut self, kind: ScopeKind, names: Vec<&'a str>) {
        self.coming.pop_if(|scope| scope.depth == self.depth); // one that never met its brace
        self.coming.push(Scope { depth: self.depth, kind, names });
    }

    fn end_closures(&mut self, at: usize) {
        let depth = self.depth;
        self.end(|scope| matches!(scope.kind, ScopeKind::Closure(begin) if begin < at) && scope.depth == depth);
    }
}

/// The names in a list up to a word of some kind.
fn names<'a>(words: &'a [Word], from: usize, to: &Token) -> Vec<&'a str> {
    let listed = |word: &&Word| word.name().is_some() || word.is(&Token::Comma) || word.is(&Token::LeftParen);
    words.iter().skip(from).take_while(|word| !word.is(to)).take_while(listed).filter_map(Word::name).collect()
}
