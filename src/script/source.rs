//! What Rhai reads in the place of what a script says. Three things are put in behind words:
//! * A closure that a variable holds is called by the variable's name: `f(x)` is read as `f.call(x)`. Where a function has that name too,
//!   what the variable holds when the script gets there decides.
//! * Functions of a file get names that no other file has, and its own calls with them. Rhai looks a name up in all files that are running,
//!   and remembers what it found; without this, functions of the same name in two files stand in for each other, and for natives.
//! * `catch (e) {` is read as `catch (e) { let e = caught_error(e);`, for Rhai gives errors of its own as maps.

use super::CHAPTERS;
use super::scopes::Scopes;
use super::suggest::standard;
use super::word::Word;
use super::{Session, fault};
use rhai::plugin::*;
use rhai::{FnPtr, FuncRegistration, Module, Token};
use std::collections::HashMap;
use std::sync::Arc;

/// A piece put in behind the word at `column`.
#[derive(Clone, Debug)]
pub(super) struct Insert {
    line: usize,
    column: usize,
    behind: usize,
    text: String,
}

impl Insert {
    fn behind(word: &Word, width: usize, text: String) -> Self {
        Self { line: word.line, column: word.column, behind: word.column + width, text }
    }
}

/// Names that a script knows apart from its text.
#[derive(Default)]
pub(super) struct Around<'a> {
    pub variables: Vec<&'a str>,
    pub functions: Vec<Function>,
    /// What functions of the file get behind their names.
    pub suffix: Option<String>,
    /// The text is only to be checked: where a variable and a function have one name, the call stays as it is.
    pub check: bool,
}

/// What to put into a text whose functions are `own`.
pub(super) fn inserts(words: &[Word], own: &[Function], around: &Around) -> Vec<Insert> {
    let (mut scopes, counts) = (Scopes::new(&around.variables), arguments(words));
    let known = Known::new(own, &around.functions);
    let mut found = vec![];
    for (i, word) in words.iter().enumerate() {
        scopes.pass(words, i);
        let Some(name) = word.name() else {
            found.extend(named(words, i, &known, around).or_else(|| caught(words, i, around)));
            continue;
        };
        let (before, after) = (i.checked_sub(1).map(|i| &words[i].token), words.get(i + 1));
        let next = after.map(|word| &word.token);
        if before == Some(&Token::DoubleColon) || next == Some(&Token::DoubleColon) {
            continue;
        }
        let method = matches!(before, Some(Token::Period | Token::Elvis));
        let function = known.function(name, counts.get(i + 1).copied().flatten());
        let suffix = around.suffix.as_ref().filter(|_| function.is_some()).cloned();
        let width = name.chars().count();
        let mut put = |text: String| found.push(Insert::behind(word, width, text));
        match after.filter(|word| word.is(&Token::LeftParen) || word.is(&Token::Unit)) {
            Some(_) if before == Some(&Token::Fn) => suffix.into_iter().for_each(put),
            Some(_) if method => suffix.filter(|_| function.is_some_and(|f| f.method)).into_iter().for_each(put),
            Some(parenthesis) => match scopes.sees(name) {
                Some(_) if function.is_none() && !is_function(name, around) => put(".call".into()),
                Some(true) if !around.check => {
                    put(format!(".{BY_NAME}"));
                    let comma = if parenthesis.is(&Token::Unit) { "" } else { ", " };
                    let text = format!("\"{name}{}\"{comma}", suffix.unwrap_or_default());
                    found.push(Insert::behind(parenthesis, 1, text));
                }
                _ => suffix.into_iter().for_each(put),
            },
            None if method || next == Some(&Token::Colon) || matches!(before, Some(Token::Let | Token::Const)) => {}
            None if scopes.sees(name) == Some(true) || scopes.declares(name) => {}
            None => suffix.into_iter().for_each(put),
        }
    }
    found
}

/// What a call by a name that is a variable's and a function's is read as: `f.called_by_name("f", x)`.
const BY_NAME: &str = "called_by_name";

/// What a caught error goes through.
const CAUGHT: &str = "caught_error";

/// Calls what a variable holds if that is a closure, else the function of its name; and gives what was caught its form.
pub(super) fn calls(module: &mut Module) {
    let caught = |context: NativeCallContext, value: Dynamic| fault::caught(value, &Session::of(&context));
    FuncRegistration::new(CAUGHT).set_into_module(module, caught);
    for parameters in 2..=12 {
        let call = |context: Option<NativeCallContext>, args: &mut [&mut Dynamic]| {
            let context = context.unwrap_or_else(|| unreachable!());
            let [target, name, rest @ ..] = args else { unreachable!() };
            match target.flatten_clone().try_cast::<FnPtr>() {
                Some(closure) => {
                    closure.call_raw(&context, None, rest.iter_mut().map(|x| x.take()).collect::<Vec<_>>())
                }
                None => context.call_fn_raw(name.to_string(), false, false, rest),
            }
        };
        let func = RhaiFunc::Method { func: Arc::new(call), has_context: true, is_pure: true, is_volatile: false };
        module.set_fn_raw_with_options(FuncRegistration::new(BY_NAME), vec![TypeId::of::<Dynamic>(); parameters], func);
    }
}

/// The name of a function in a text, `Fn("f")`.
fn named(words: &[Word], i: usize, known: &Known, around: &Around) -> Option<Insert> {
    let [.., keyword, begin, word] = words.get(..=i)? else { return None };
    let takes_names = matches!(&keyword.token, Token::Reserved(name) if ["Fn", "is_def_fn"].contains(&name.as_str()));
    let Token::StringConstant(name) = &word.token else { return None };
    let known = known.function(name, None).is_some();
    let suffix = around.suffix.clone().filter(|_| takes_names && begin.is(&Token::LeftParen) && known)?;
    Some(Insert::behind(word, 1 + name.chars().count(), suffix))
}

/// Behind the brace of a `catch (e) {`.
fn caught(words: &[Word], i: usize, around: &Around) -> Option<Insert> {
    let [.., catch, begin, variable, end, brace] = words.get(..=i)? else { return None };
    let form = [(catch, Token::Catch), (begin, Token::LeftParen), (end, Token::RightParen), (brace, Token::LeftBrace)];
    let name = variable.name().filter(|_| !around.check && form.iter().all(|(word, token)| word.is(token)))?;
    Some(Insert::behind(brace, 1, format!(" let {name} = {CAUGHT}({name});")))
}

fn is_function(name: &str, around: &Around) -> bool {
    let natives = || CHAPTERS.iter().flat_map(|chapter| chapter.manifest.functions());
    let known = around.functions.iter().any(|f| f.name == name);
    known || standard().contains(name) || natives().any(|f| f.name() == name)
}

/// A function of a script.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub name: String,
    pub parameters: usize,
    /// It speaks of `this`, so that it can be called as a method.
    pub method: bool,
}

/// Functions by name and, behind the first of that name, by the number of parameters too.
struct Known<'a>(HashMap<(&'a str, Option<usize>), &'a Function>);

impl<'a> Known<'a> {
    /// The first of several that are alike counts.
    fn new(own: &'a [Function], around: &'a [Function]) -> Self {
        let mut known = HashMap::new();
        for function in own.iter().chain(around) {
            for count in [None, Some(function.parameters)] {
                known.entry((function.name.as_str(), count)).or_insert(function);
            }
        }
        Self(known)
    }

    /// One that takes so many arguments, if they were counted.
    fn function(&self, name: &'a str, count: Option<usize>) -> Option<&'a Function> {
        self.0.get(&(name, count)).copied()
    }
}

/// The functions that a text defines.
pub(super) fn functions(words: &[Word]) -> Vec<Function> {
    let counts = arguments(words);
    let starts = (0..words.len()).filter(|&i| words[i].is(&Token::Fn));
    let one = |i: usize| {
        let name = words.get(i + 1)?.name()?.to_string();
        let mut body = words[i + 2..].iter().take_while(|w| !w.is(&Token::Fn));
        Some(Function { name, parameters: counts.get(i + 2).copied().flatten()?, method: body.any(Word::is_this) })
    };
    starts.filter_map(one).collect()
}

/// For each word at which parentheses begin that end again, the number of arguments between them.
fn arguments(words: &[Word]) -> Vec<Option<usize>> {
    let mut counts = vec![None; words.len()];
    // brackets that are open, with the commas in them
    let (mut open, mut i): (Vec<(usize, usize)>, usize) = (vec![], 0);
    while let Some(word) = words.get(i) {
        match word.token {
            Token::Unit => counts[i] = Some(0),
            Token::LeftParen | Token::LeftBracket | Token::QuestionBracket | Token::LeftBrace | Token::MapStart => {
                open.push((i, 0))
            }
            Token::RightParen | Token::RightBracket | Token::RightBrace => {
                if let Some((begin, commas)) = open.pop().filter(|(begin, _)| words[*begin].is(&Token::LeftParen)) {
                    counts[begin] = Some(commas + 1);
                }
            }
            Token::Comma if !words.get(i + 1).is_some_and(|next| next.is(&Token::RightParen)) => {
                open.last_mut().into_iter().for_each(|(_, commas)| *commas += 1)
            }
            // parameters of a closure
            Token::Pipe if i == 0 || !words[i - 1].ends_operand() => {
                i += words[i + 1..].iter().position(|w| w.is(&Token::Pipe)).map_or(0, |n| n + 1);
            }
            _ => {}
        }
        i += 1;
    }
    counts
}

/// The text with everything put in.
pub(super) fn apply(text: &str, inserts: &[Insert]) -> String {
    let mut out = String::with_capacity(text.len() + 8 * inserts.len());
    let mut rest = inserts.iter().peekable();
    let (mut line, mut column) = (1, 1);
    for letter in text.chars().map(Some).chain([None]) {
        while let Some(insert) = rest.next_if(|insert| (insert.line, insert.behind) == (line, column)) {
            out += &insert.text;
        }
        let Some(letter) = letter else { break };
        out.push(letter);
        (line, column) = if letter == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    out
}

/// The column in the script of a column in what Rhai read.
pub(super) fn column(inserts: &[Insert], line: usize, column: usize) -> usize {
    let mut shift = 0;
    let first = inserts.partition_point(|insert| insert.line < line);
    for insert in inserts[first..].iter().take_while(|insert| insert.line == line) {
        let width = insert.text.chars().count();
        if column < insert.behind + shift {
            break;
        }
        if column < insert.behind + shift + width {
            return insert.column;
        }
        shift += width;
    }
    column - shift
}

/// A function's name as its file has it.
pub(super) fn own_name(name: &str) -> &str {
    match name.rsplit_once(MODULE) {
        Some((own, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => own,
        _ => name,
    }
}

/// Stands between the name of a function and the number of its module; the script itself is number 0.
const MODULE: &str = "__module";

/// What functions of module `number` get behind their names.
pub(super) fn suffix(number: usize) -> Option<String> {
    Some(format!("{MODULE}{number}"))
}

#[cfg(test)]
mod tests {
    use super::super::word::words;
    use super::*;

    fn read(text: &str, suffix: Option<&str>) -> String {
        let around = Around { variables: vec!["g"], suffix: suffix.map(String::from), ..Around::default() };
        apply(text, &all(text, &around))
    }

    fn all(text: &str, around: &Around) -> Vec<Insert> {
        let words = words(text);
        inserts(&words, &functions(&words), around)
    }

    #[test]
    fn closures_are_called_by_their_names() {
        for (text, wanted) in [
            ("let f = |x| f(x); f(1) + g(2)", "let f = |x| f(x); f.call(1) + g.call(2)"),
            ("fn t(f) { `${f(1)}` } f(1); // f(x)", "fn t(f) { `${f.call(1)}` } f(1); // f(x)"),
            (
                "xs.map(|a, b| a(b(1)), a(2)); |a| { a(b()) }",
                "xs.map(|a, b| a.call(b.call(1)), a(2)); |a| { a.call(b()) }",
            ),
            ("for (a, i) in a(i) { a(i) } a(i)", "for (a, i) in a(i) { a.call(i) } a(i)"),
            (
                "try { e(1) } catch (e) { e(2) } e(3)",
                "try { e(1) } catch (e) { let e = caught_error(e); e.call(2) } e(3)",
            ),
            ("try { f } catch { 1 }", "try { f } catch { 1 }"),
            ("if x { let h = 1; h(2) } h(3)", "if x { let h = 1; h.call(2) } h(3)"),
            ("let h = 1; x.h(1) + m::h(2); fn h(x) { h(1) }", "let h = 1; x.h(1) + m::h(2); fn h(x) { h(1) }"),
            ("fn f() { g(1) } let k = 1; a | k(2)", "fn f() { g.call(1) } let k = 1; a | k.call(2)"),
        ] {
            assert_eq!(read(text, None), wanted);
        }
    }

    #[test]
    fn a_name_that_is_a_function_too_is_decided_when_it_is_called() {
        for (text, wanted) in [
            (
                "let flow = flow(1); flow(2) + flow()",
                "let flow = flow(1); flow.called_by_name(\"flow\", 2) + flow.called_by_name(\"flow\")",
            ),
            ("let flow = 1; fn f() { flow(2) }", "let flow = 1; fn f() { flow(2) }"),
            ("{ let flow = 1; } flow(2)", "{ let flow = 1; } flow(2)"),
        ] {
            assert_eq!(read(text, None), wanted);
        }
        let around = Around { check: true, ..Around::default() };
        assert!(all("let flow = 1; flow(2)", &around).is_empty());
    }

    #[test]
    fn functions_of_a_module_have_names_of_their_own() {
        let text = "fn f(x) { x.f(1) + g(f(x)) } fn h(f) { [f, #{ f: 1 }, m::f(2), f(3)].map(h) } fn k() { this.k(); Fn(\"f\") }";
        let wanted = "fn f_1(x) { x.f(1) + g.call(f_1(x)) } \
            fn h_1(f) { [f, #{ f: 1 }, m::f(2), f.called_by_name(\"f_1\", 3)].map(h_1) } fn k_1() { this.k_1(); Fn(\"f_1\") }";
        assert_eq!(read(text, Some("_1")), wanted);
        let text = "fn f(a, b) { f(1) + f([1, 2], |a, b| a) + f(#{ a: 1, b: 2 }, 3,) + f(g(1, 2)) } fn f() { f() }";
        let wanted = "fn f_1(a, b) { f(1) + f_1([1, 2], |a, b| a) + f_1(#{ a: 1, b: 2 }, 3,) + f(g.call(1, 2)) } fn f_1() { f_1() }";
        assert_eq!(read(text, Some("_1")), wanted);
        assert_eq!((own_name("f__module1"), own_name("f__module"), own_name("f")), ("f", "f__module", "f"));
    }

    #[test]
    fn columns_are_those_of_the_script() {
        let text = "let f = |x| x;\nf(1) + f(2)";
        let inserts = all(text, &Around::default());
        let line = apply(text, &inserts).lines().nth(1).unwrap().to_string();
        assert_eq!(line, "f.call(1) + f.call(2)");
        let place = |c: usize| column(&inserts, 2, c);
        assert_eq!([1, 3, 7, 8, 11, 13, 15, 20].map(place), [1, 1, 2, 3, 6, 8, 8, 10]);
    }
}
