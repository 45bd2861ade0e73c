//! What a prompt remembers between inputs: variables, functions, imported modules, and the text of it all.

use super::lexer::{Token, TokenKind, tokens};
use super::record::Record;
use crate::cli::recipe::Source;
use crate::script::catalog::script_type;
use crate::script::{Host, Session, import};
use amscript_base::error::{Error, Kind as Class, Result};
use rhai::{AST, Dynamic, Map, Scope};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name under which errors show what was typed.
pub const SOURCE: &str = "session";

/// The variable that holds the last value.
pub const ANSWER: &str = "ans";

/// What completion knows of a variable: its type in script words, and its keys if it is an object map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variable {
    pub kind: String,
    pub keys: Vec<String>,
}

/// What an input came to.
#[derive(Debug)]
pub struct Answer {
    /// `()` is none.
    pub value: Option<Dynamic>,
    /// The input ended in `;`.
    pub muted: bool,
}

/// The state of a prompt. A failing input keeps everything, also what it made before it failed.
pub struct Workspace {
    host: Host,
    scope: Scope<'static>,
    /// Every function and closure so far, without statements.
    library: AST,
    /// `import` statements, by the name they give.
    imports: BTreeMap<String, String>,
    /// All inputs, also those that failed: what the lines in errors count. The imports of the first stand in its line.
    text: String,
    pub record: Record,
}

impl Workspace {
    pub fn new(host: Host) -> Self {
        let library = AST::empty();
        let (imports, record) = (BTreeMap::new(), Record::default());
        Self { host, scope: Scope::new(), library, imports, text: String::new(), record }
    }

    pub fn session(&self) -> &Arc<Session> {
        self.host.session()
    }

    /// Runs what was typed. A trailing `;` mutes; the value is also in `ans`.
    pub fn evaluate(&mut self, input: &str) -> Result<Answer> {
        let (code, muted) = unmuted(input);
        self.import_used(code);
        let line = self.text.matches('\n').count();
        let prelude: Vec<&str> = self.imports.values().map(String::as_str).collect();
        let prelude = prelude.join(" ");
        let program = format!("{prelude}{}{code}", "\n".repeat(line));
        self.text += &if line == 0 { format!("{program}\n") } else { format!("{code}\n") };
        self.session().add_source(SOURCE, &self.text);
        let value = self.run(SOURCE, &program)?;
        self.record.add(code, !value.is_unit());
        self.remember_imports(code);
        Ok(Answer { value: self.answer(value), muted })
    }

    /// Runs a script in the workspace: its variables and functions stay, its run has a folder of its own.
    pub fn load(&mut self, script: Source) -> Result<()> {
        let Source { path, name, text } = script;
        self.session().add_source(&name, &text);
        let before = self.session().request().script.clone();
        self.session().amend(|request| request.script = path);
        let outcome = self.run(&name, &text);
        self.session().amend(|request| request.script = before);
        let value = outcome?;
        self.record.add(&text, false);
        self.remember_imports(&text);
        self.answer(value);
        Ok(())
    }

    /// Parses and runs a program beside what is there.
    fn run(&mut self, name: &str, program: &str) -> Result<Dynamic> {
        let ast = self.host.parse(&self.library, &self.scope, name, program)?;
        let mut all = self.library.merge(&ast);
        all.set_source(name);
        self.library = all.clone_functions_only();
        let outcome = self.host.run_in(&mut self.scope, name, &all);
        self.session().forget_interrupts();
        self.keep_last_variables();
        outcome
    }

    /// `let x = ..` once more makes another `x`; the older one is dropped with what it holds.
    fn keep_last_variables(&mut self) {
        let found = in_order(&self.scope);
        let last: BTreeMap<&str, usize> = found.iter().enumerate().map(|(i, (name, ..))| (*name, i)).collect();
        let mut scope = Scope::new();
        for (i, (name, constant, value)) in found.iter().enumerate() {
            match (last[name] == i, constant) {
                (true, true) => drop(scope.push_constant_dynamic(*name, (*value).clone())),
                (true, false) => drop(scope.push_dynamic(*name, (*value).clone())),
                (false, _) => {}
            }
        }
        self.scope = scope;
    }

    fn answer(&mut self, value: Dynamic) -> Option<Dynamic> {
        if value.is_unit() {
            return None;
        }
        self.scope.set_value(ANSWER, value.clone());
        Some(value)
    }

    /// A module of the host is imported when its name is first used.
    fn import_used(&mut self, code: &str) {
        let found = tokens(code);
        let used = found
            .windows(2)
            .filter(|pair| pair[0].kind == TokenKind::Word && pair[1].is("::"))
            .map(|pair| pair[0].text);
        for name in used {
            let module = format!("stdlib/{name}");
            let known = import::embedded().any(|(embedded, _)| embedded == module);
            if known && !self.imports.contains_key(name) && !imported(&found).iter().any(|(alias, _)| alias == name) {
                self.imports.insert(name.into(), format!("import \"{module}\" as {name};"));
            }
        }
    }

    fn remember_imports(&mut self, code: &str) {
        let found = imported(&tokens(code));
        self.imports.extend(found);
    }

    /// The variables by name, `ans` among them.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &Dynamic)> {
        in_order(&self.scope).into_iter().map(|(name, _, value)| (name, value))
    }

    pub fn variable(&self, name: &str) -> Option<Dynamic> {
        self.scope.get(name).map(Dynamic::flatten_clone)
    }

    /// Drops a variable and what it holds.
    pub fn forget(&mut self, name: &str) -> Result<()> {
        match self.scope.remove::<Dynamic>(name) {
            Some(_) => Ok(()),
            None => Err(Error::new(Class::Name, format!("no variable `{name}` to forget"))),
        }
    }

    /// What completion needs to know of the variables.
    pub fn outline(&self) -> BTreeMap<String, Variable> {
        let one = |(name, value): (&str, &Dynamic)| {
            let keys = value.read_lock::<Map>().map_or(vec![], |map| map.keys().map(|k| k.to_string()).collect());
            (name.to_string(), Variable { kind: self.kind(value), keys })
        };
        self.variables().map(one).collect()
    }

    /// A value's type in script words.
    pub fn kind(&self, value: &Dynamic) -> String {
        script_type(self.host.engine().map_type_name(value.type_name()))
    }

    /// A value as the prompt shows it: text of several lines as it is, everything else as scripts debug it.
    pub fn show(&self, value: &Dynamic) -> Result<String> {
        match value.read_lock::<rhai::ImmutableString>() {
            Some(text) if text.contains('\n') => Ok(text.to_string()),
            _ => self.session().show(value.clone()),
        }
    }

    /// The session as a recipe.
    pub fn recipe(&self) -> Result<String> {
        let imports: Vec<&str> = self.imports.values().map(String::as_str).collect();
        let text = self.record.recipe(&imports);
        self.host.parse(&AST::empty(), &Scope::new(), "the recipe", &text)?;
        Ok(text)
    }

    /// The text of a function that was typed or loaded from a module of the host.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Names, whether they are constants, and values, oldest first; Rhai gives them newest first.
fn in_order<'a>(scope: &'a Scope) -> Vec<(&'a str, bool, &'a Dynamic)> {
    let mut found: Vec<_> = scope.iter_raw().collect();
    found.reverse();
    found
}

/// The code without a last `;`, and whether there was one.
fn unmuted(input: &str) -> (&str, bool) {
    let pieces = tokens(input);
    let last = pieces.iter().rev().find(|t| t.counts());
    match last {
        Some(token) if token.is(";") => (&input[..token.start], true),
        _ => (input, false),
    }
}

/// The `import ".." as name` of a text that stand outside brackets, by name.
fn imported(found: &[Token]) -> Vec<(String, String)> {
    let mut depth = 0;
    let outside = found.iter().filter(|t| t.counts()).filter(|token| {
        depth += i32::from(token.kind == TokenKind::Open) - i32::from(token.kind == TokenKind::Close);
        depth == 0
    });
    let words: Vec<&str> = outside.map(|t| t.text).collect();
    let parts = words.windows(4).filter(|w| w[0] == "import" && w[2] == "as");
    parts.map(|w| (w[3].to_string(), format!("import {} as {};", w[1], w[3]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Request;

    fn workspace() -> Workspace {
        let request = Request { script: Some("session.rhai".into()), ..Request::default() };
        Workspace::new(Host::new(Session::new(request, Box::new(|_| ()))))
    }

    fn told(workspace: &mut Workspace, inputs: &[&str]) -> Vec<String> {
        let show = |w: &mut Workspace, input: &&str| match w.evaluate(input) {
            Ok(Answer { value: Some(value), muted: false }) => w.show(&value).unwrap(),
            Ok(_) => String::new(),
            Err(e) => format!("{} at {:?}", e.message, e.trace.iter().map(|p| (p.line, p.column)).collect::<Vec<_>>()),
        };
        inputs.iter().map(|input| show(workspace, input)).collect()
    }

    #[test]
    fn variables_functions_closures_and_the_answer_stay() {
        let inputs = [
            "let x = 2",
            "fn double(a) { 2 * a }",
            "let f = |a| double(a) + x",
            "f.call(5)",
            "ans + 1",
            "x = 10; f.call(5)",
        ];
        assert_eq!(told(&mut workspace(), &inputs), ["", "", "", "12", "13", "20"]);
    }

    #[test]
    fn a_semicolon_mutes_but_the_answer_is_kept() {
        assert_eq!(told(&mut workspace(), &["3 * 4; // quiet", "ans", "let y = 1;", "ans"]), ["", "12", "", "12"]);
    }

    #[test]
    fn a_failing_input_loses_nothing_and_is_shown_in_its_line() {
        let mut w = workspace();
        let said = told(
            &mut w,
            &["let x = 2", "fn f(a) {\n  a.nothing()\n}", "x + nowhere", "f(x)", "let x = 3; throw \"no\"", "x"],
        );
        assert!(said[2].starts_with("no variable `nowhere`") && said[2].ends_with("[(5, 5)]"), "{}", said[2]);
        assert!(said[3].contains("no function `nothing`") && said[3].ends_with("[(3, 5), (6, 1)]"), "{}", said[3]);
        assert_eq!(said[5], "3");
        assert_eq!(w.variables().filter(|(name, _)| *name == "x").count(), 1);
    }

    #[test]
    fn modules_of_the_host_are_imported_when_they_are_named() {
        let inputs = [
            "intensity::sizes([tensor([[-2.0]])]).to_array()",
            "import \"stdlib/intensity\" as i",
            "i::sizes([tensor([[3.0]])]).to_array()",
        ];
        assert_eq!(told(&mut workspace(), &inputs), ["[2.0]", "", "[3.0]"]);
    }

    #[test]
    fn a_constant_stays_one() {
        let said = told(&mut workspace(), &["const N = 3", "N = 4", "N"]);
        assert!(said[1].contains("constant"), "{}", said[1]);
        assert_eq!(said[2], "3");
    }
}
