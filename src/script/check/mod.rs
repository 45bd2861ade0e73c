//! What is wrong with a script, as far as that can be known without running it: names, numbers of arguments, options, settings,
//! imports. No model is opened and no file written.
//!
//! It is a walk over the syntax tree with the script's own scopes, against the catalogue. An error is only what would fail for sure: kinds of
//! values are known where literals and natives give them, and unknown elsewhere. What is likely is a warning.

mod body;
mod call;
mod fact;
mod member;
mod setting;
mod walk;

use super::rename::{self, RENAMED, Table};
use super::source::Around;
use super::{Request, Session, fault, import, limit};
use amscript_base::error::{Error, Kind, Place};
use amscript_base::text::is_hidden;
use fact::Facts;
use rhai::{AST, Engine, Expr, ParseError, Position, Stmt};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The script would fail where it comes to this place.
    Error,
    /// It may run, but hardly as it was meant.
    Warning,
}

/// One thing that is wrong, at `error.trace[0]`.
#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    /// The kind of mistake, in a word that editors can filter by: `syntax`, `variable`, `function`, `arguments`, `option`,
    /// `property`, `import`, `setting`, `capture`, `hidden`.
    pub code: &'static str,
    pub error: Error,
    /// The name that stands there and what it is now, where that is all there is to it.
    pub fix: Option<(String, &'static str)>,
}

impl Finding {
    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.error.trace[0]
    }
}

/// All findings of a script and of the modules beside it that it imports, by place.
pub struct Report {
    pub findings: Vec<Finding>,
    session: Session,
}

impl Report {
    /// The text of a script that was checked.
    pub fn source(&self, name: &str) -> Option<String> {
        self.session.source(name)
    }
}

/// Checks a script; `path` is its file, beside which its imports are looked up.
pub fn check(path: Option<&Path>, name: &str, text: &str) -> Report {
    check_names(RENAMED, path, name, text)
}

/// A script's text with the names that findings have new ones for.
pub fn fixed(report: &Report, name: &str, text: &str) -> String {
    let here = report.findings.iter().filter(|finding| finding.place().source == name);
    let words = here.filter_map(|finding| {
        let ((old, new), place) = (finding.fix.as_ref()?, finding.place());
        Some((place.line, place.column, old.as_str(), *new))
    });
    rename::rewrite(text, words.collect())
}

fn check_names(renamed: Table, path: Option<&Path>, name: &str, text: &str) -> Report {
    let request = Request { script: path.map(Into::into), ..Request::default() };
    let session = Session::new(request, Box::new(|_| ()));
    let mut checker = Checker { session, engine: parser(), renamed, modules: BTreeMap::new(), findings: vec![] };
    checker.file(name, text);
    let Checker { session, mut findings, .. } = checker;
    let key = |f: &Finding| (f.place().source != name, f.place().source.clone(), f.place().line, f.place().column);
    findings.sort_by_key(key);
    // the second is the same, or a guess where the first is sure
    findings.dedup_by(|b, a| a.place() == b.place() && (a.error.message == b.error.message || b.code == "property"));
    Report { findings, session }
}

/// An engine that parses as the host does, but leaves unknown variables to the walk, which finds all of them.
fn parser() -> Engine {
    let mut engine = Engine::new();
    limit(&mut engine);
    engine.set_strict_variables(false);
    engine
}

/// A function of a file.
struct Function {
    name: String,
    parameters: Vec<String>,
    /// Importers may call it.
    public: bool,
}

/// What importers need to know of a file.
struct Module {
    functions: Vec<Function>,
    /// Variables it exports.
    variables: BTreeSet<String>,
    facts: Facts,
}

impl Module {
    fn new(ast: &AST) -> Self {
        let named = ast.iter_functions().filter(|f| !f.name.starts_with("anon$"));
        let function = |f: rhai::ScriptFnMetadata| Function {
            name: f.name.into(),
            parameters: f.params.iter().map(|p| p.to_string()).collect(),
            public: f.access == rhai::FnAccess::Public,
        };
        let mut functions: Vec<Function> = named.map(function).collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        let exported = |stmt: &Stmt| match stmt {
            Stmt::Var(x, flags, _) if flags.intersects(rhai::ASTFlags::EXPORTED) => Some(x.0.name.to_string()),
            Stmt::Export(x, _) => Some(if x.1.name.is_empty() { &x.0 } else { &x.1 }.name.to_string()),
            _ => None,
        };
        Self { functions, variables: ast.statements().iter().filter_map(exported).collect(), facts: Facts::of(ast) }
    }
}

impl Module {
    /// The functions of a name.
    fn named(&self, name: &str) -> &[Function] {
        let from = self.functions.partition_point(|f| f.name.as_str() < name);
        let count = self.functions[from..].partition_point(|f| f.name == name);
        &self.functions[from..from + count]
    }
}

struct Checker {
    session: Session,
    engine: Engine,
    renamed: Table,
    /// By full name; an importer of a circle finds its own.
    modules: BTreeMap<String, Module>,
    findings: Vec<Finding>,
}

impl Checker {
    fn file(&mut self, name: &str, text: &str) {
        self.session.add_source(name, text);
        self.hidden(name, text);
        let read = self.session.read(name, text, &Around { check: true, ..Around::default() });
        let ast = match self.engine.compile(&read) {
            Ok(ast) => ast,
            Err(e) => {
                // a run ends at an unknown variable before it
                let first = self.strictly(&read).filter(|strict| before(strict.1, e.1));
                return self.unreadable(first.unwrap_or(e), name);
            }
        };
        self.modules.insert(name.into(), Module::new(&ast));
        let imports = self.imports(name, &ast);
        if name.starts_with("stdlib/") {
            return;
        }
        let before = self.findings.len();
        let bodies = body::Body::all(&ast);
        let found = walk::Walker::new(self, name, text, (&ast, &bodies), imports).run();
        self.findings.extend(found);
        if self.findings[before..].iter().all(|f| f.severity == Severity::Warning) {
            // what the walk does not know of
            self.strictly(&read).into_iter().for_each(|e| self.unreadable(e, name));
        }
    }

    /// What stops a parser that must know all variables.
    fn strictly(&mut self, read: &str) -> Option<ParseError> {
        self.engine.set_strict_variables(true);
        let strict = self.engine.compile(read);
        self.engine.set_strict_variables(false);
        strict.err()
    }

    /// Characters that a reader does not see, the first of each line: with them a script does not do what it seems to (CVE-2021-42574).
    fn hidden(&mut self, name: &str, text: &str) {
        for (i, line) in text.lines().enumerate() {
            let Some((column, c)) = line.chars().enumerate().find(|(_, c)| is_hidden(*c)) else { continue };
            let message = format!("the hidden character {} stands here", c.escape_unicode());
            let mut error = Error::new(Kind::Value, message)
                .hint("what is seen may not be what runs; write it as an escape in a text");
            error.trace.push(Place { function: None, source: name.into(), line: i + 1, column: column + 1 });
            self.findings.push(Finding { severity: Severity::Warning, code: "hidden", error, fix: None });
        }
    }

    fn unreadable(&mut self, error: ParseError, name: &str) {
        let error = fault::from_script(error.into(), name, &self.session);
        self.findings.push(Finding { severity: Severity::Error, code: "syntax", error, fix: None });
    }

    /// Reads what a script imports; gives the full name of the module behind each alias, `None` where it is not found.
    fn imports(&mut self, name: &str, ast: &AST) -> BTreeMap<String, Option<String>> {
        let mut wanted = vec![];
        ast.walk(&mut |path: &[rhai::ASTNode]| {
            if let Some(rhai::ASTNode::Stmt(Stmt::Import(x, _))) = path.last()
                && let Expr::StringConstant(module, position) = &x.0
            {
                wanted.push((x.1.name.to_string(), module.to_string(), *position));
            }
            true
        });
        let mut out = BTreeMap::new();
        for (alias, path, position) in wanted {
            let source = Some(name).filter(|_| !self.is_first(name));
            let found = match import::find(&self.session, source, &path) {
                Ok((full, text)) => {
                    if !self.modules.contains_key(&full) {
                        self.file(&full, &text);
                    }
                    Some(full)
                }
                Err(mut error) => {
                    error.trace.push(fault::place(position, None, name, &self.session));
                    self.findings.push(Finding { severity: Severity::Error, code: "import", error, fix: None });
                    None
                }
            };
            out.insert(alias, found);
        }
        out
    }

    /// Whether a name is that of the script itself, which imports from the folder of its file.
    fn is_first(&self, name: &str) -> bool {
        self.session.request().script.as_ref().is_none_or(|script| script.display().to_string() == name)
    }
}

fn before(a: Position, b: Position) -> bool {
    (a.line(), a.position()) < (b.line(), b.position())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table =
        &[("evenly", "uniform"), ("rollout.times", "grid"), ("sde.times", "last"), ("step", "no_such_function")];

    #[test]
    fn old_names_are_found_and_rewritten_where_they_are_names() {
        let script = r#"// evenly(3), times: 1
let f = velocity_field(|x, t, c| x);
let o = #{ times: evenly(2), truncate: last(1) };
print("evenly(4)" + `${evenly(1).times} evenly`); /* evenly */ let m = #{ times: 1 };
rollout(f, ones([1]), (), o + #{ "times": evenly(4) });
fn mine(evenly) { [1, 2].map(|k| evenly(k)) }
"#;
        let wanted = r#"// evenly(3), times: 1
let f = velocity_field(|x, t, c| x);
let o = #{ grid: uniform(2), truncate: last(1) };
print("evenly(4)" + `${uniform(1).times} evenly`); /* evenly */ let m = #{ times: 1 };
rollout(f, ones([1]), (), o + #{ "grid": uniform(4) });
fn mine(evenly) { [1, 2].map(|k| evenly(k)) }
"#;
        let report = check_names(TABLE, None, "script", script);
        let messages: Vec<&str> = report.findings.iter().map(|f| f.error.message.as_str()).collect();
        assert!(messages.contains(&"`evenly` is now `uniform`"), "{messages:?}");
        assert!(messages.contains(&"rollout: the option `times` is now `grid`"), "{messages:?}");
        let fixed = fixed(&report, "script", script);
        assert_eq!(fixed, wanted);
        assert!(check_names(TABLE, None, "script", &fixed).findings.is_empty());
    }

    #[test]
    fn a_row_says_nothing_while_its_new_name_is_not_there() {
        let report = check_names(TABLE, None, "script", "sde(constant(1), #{ tims: 1 }); setp(1);");
        assert!(report.findings.iter().all(|finding| finding.fix.is_none()));
        assert_eq!(rename::function(TABLE, "step"), None);
    }
}
