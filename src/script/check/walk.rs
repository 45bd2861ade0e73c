//! The walk over one file: every statement and expression in the order and scope of the script, with the kinds of values
//! that are known.

use super::body::Body;
use super::fact::{Facts, Known};
use super::setting::Settings;
use super::{Checker, Finding, Module, Severity};
use crate::script::rename::{self, Table};
use crate::script::{Session, fault, suggest};
use amscript_base::error::{Error, Kind as ErrorKind, Place, nearest};
use rhai::{AST, ASTFlags, Expr, FnCallExpr, FnPtr, Position, Stmt, StmtBlock};
use std::collections::BTreeMap;

/// The type of a value in the words of the manual, where it is known.
pub(super) type Kind = Option<&'static str>;

/// Findings of a file that say what was probably meant.
const GUESSED: usize = 100;

/// A variable in scope.
pub(super) struct Binding<'a> {
    pub name: String,
    pub kind: Kind,
    /// It is the variable of a `for` loop, which all iterations share.
    pub looped: bool,
    /// It holds what `settings(#{ .. })` gave.
    pub settings: bool,
    /// The object map that it was declared with.
    pub map: Option<&'a Expr>,
}

impl Binding<'_> {
    pub fn plain(name: &str) -> Self {
        Self { name: name.into(), kind: None, looped: false, settings: false, map: None }
    }
}

pub(super) struct Walker<'a> {
    pub known: &'static Known,
    pub renamed: Table,
    session: &'a Session,
    source: &'a str,
    pub text: &'a str,
    ast: &'a AST,
    bodies: &'a [Body],
    /// Full names of modules by alias.
    pub imports: BTreeMap<String, Option<String>>,
    pub modules: &'a BTreeMap<String, Module>,
    pub scope: Vec<Binding<'a>>,
    /// The place in `scope` of the variable that what is being walked is stored in, if it is.
    pub stored: Option<usize>,
    pub settings: Settings,
    findings: Vec<Finding>,
}

impl<'a> Walker<'a> {
    pub fn new(
        checker: &'a Checker,
        source: &'a str,
        text: &'a str,
        (ast, bodies): (&'a AST, &'a [Body]),
        imports: BTreeMap<String, Option<String>>,
    ) -> Self {
        Self {
            known: Known::get(),
            renamed: checker.renamed,
            session: &checker.session,
            source,
            text,
            ast,
            bodies,
            imports,
            modules: &checker.modules,
            scope: vec![],
            stored: None,
            settings: Settings::default(),
            findings: vec![],
        }
    }

    pub fn run(mut self) -> Vec<Finding> {
        self.statements(self.ast.statements());
        for function in self.bodies.iter().filter(|f| !f.is_closure()) {
            self.scope = function.parameters.iter().map(|p| Binding::plain(p)).collect();
            self.statements(&function.statements);
        }
        self.unused_settings();
        self.findings
    }

    /// This file as its importers see it.
    pub fn own(&self) -> &'a Module {
        &self.modules[self.source]
    }

    pub fn facts(&self) -> &'a Facts {
        &self.own().facts
    }

    pub fn error(&mut self, code: &'static str, at: Position, error: Error) {
        self.report(Severity::Error, code, at, error);
    }

    pub fn warning(&mut self, code: &'static str, at: Position, error: Error) {
        self.report(Severity::Warning, code, at, error);
    }

    /// A name that is another one now.
    pub fn moved(&mut self, code: &'static str, at: Position, place: &str, (old, new): (&str, &'static str)) {
        self.error(code, at, rename::moved(place, old, new));
        if let Some(finding) = self.findings.last_mut() {
            finding.fix = Some((old.into(), new));
        }
    }

    fn report(&mut self, severity: Severity, code: &'static str, at: Position, mut error: Error) {
        error.trace = vec![self.place(at)];
        self.findings.push(Finding { severity, code, error, fix: None });
    }

    fn place(&self, at: Position) -> Place {
        fault::place(at, None, self.source, self.session)
    }

    /// Whether so much is found that nothing more is guessed of what was meant, which takes all names for each.
    pub fn is_full(&self) -> bool {
        self.findings.len() >= GUESSED
    }

    fn block(&mut self, block: &'a StmtBlock) {
        self.statements(block.statements());
    }

    /// Statements in a scope of their own.
    fn statements(&mut self, statements: &'a [Stmt]) {
        let outer = self.scope.len();
        let stored = self.stored.take();
        let last = statements.len().saturating_sub(1);
        for (i, statement) in statements.iter().enumerate() {
            // the last statement is the value of the block
            self.stored = stored.filter(|_| i == last);
            self.statement(statement);
        }
        self.stored = stored;
        self.scope.truncate(outer);
    }

    fn statement(&mut self, statement: &'a Stmt) {
        match statement {
            Stmt::If(x, _) | Stmt::While(x, _) | Stmt::Do(x, ..) => {
                self.expr(&x.expr);
                self.block(&x.body);
                self.block(&x.branch);
            }
            Stmt::Switch(x, _) => {
                self.expr(&x.0);
                x.1.expressions.iter().for_each(|case| {
                    self.expr(&case.lhs);
                    self.expr(&case.rhs);
                });
            }
            Stmt::For(x, _) => {
                self.expr(&x.2.expr);
                let outer = self.scope.len();
                let names = [Some(&x.0), x.1.as_ref()].into_iter().flatten();
                self.scope.extend(names.map(|n| Binding { looped: true, ..Binding::plain(&n.name) }));
                self.block(&x.2.body);
                self.scope.truncate(outer);
            }
            Stmt::TryCatch(x, _) => {
                self.block(&x.body);
                let outer = self.scope.len();
                if let Expr::Variable(caught, ..) = &x.expr {
                    self.scope.push(Binding::plain(&caught.1));
                }
                self.block(&x.branch);
                self.scope.truncate(outer);
            }
            Stmt::Var(x, ..) => self.declare(&x.0.name, &x.1),
            Stmt::Assignment(x) => {
                let target = root(&x.1.lhs).and_then(|name| self.place_of(name));
                let stored = std::mem::replace(&mut self.stored, target);
                self.expr(&x.1.rhs);
                self.stored = stored;
                self.expr(&x.1.lhs);
            }
            Stmt::FnCall(x, at) => {
                self.call(x, *at, None);
            }
            Stmt::Block(block) => self.block(block),
            Stmt::Expr(x) | Stmt::BreakLoop(Some(x), ..) | Stmt::Return(Some(x), ..) => {
                self.expr(x);
            }
            _ => {}
        }
    }

    fn declare(&mut self, name: &str, value: &'a Expr) {
        let kind = self.expr(value);
        let settings = self.declares_settings(value);
        let kind = kind.filter(|_| !self.facts().assigned.contains(name));
        let map = matches!(value, Expr::Map(..)).then_some(value);
        self.scope.push(Binding { name: name.into(), kind, looped: false, settings, map });
    }

    /// Walks an expression; gives the kind of its value.
    pub fn expr(&mut self, expr: &'a Expr) -> Kind {
        match expr {
            Expr::BoolConstant(..) => Some("bool"),
            Expr::IntegerConstant(..) => Some("integer"),
            Expr::FloatConstant(..) => Some("number"),
            Expr::StringConstant(..) => Some("string"),
            Expr::Unit(_) => Some(""),
            Expr::DynamicConstant(value, at) => self.constant(value, *at),
            Expr::InterpolatedString(parts, _) => {
                for part in parts.iter() {
                    self.expr(part);
                }
                Some("string")
            }
            Expr::Array(items, _) => {
                for item in items.iter() {
                    self.expr(item);
                }
                Some("array")
            }
            Expr::Map(x, _) => {
                for (_, value) in &x.0 {
                    self.expr(value);
                }
                Some("map")
            }
            Expr::Variable(x, _, at) if x.2.is_empty() => self.variable(&x.1, *at),
            Expr::Variable(x, _, at) => self.module_variable(x.2.root(), &x.1, *at),
            Expr::Stmt(block) => self.value_of(block),
            Expr::FnCall(x, at) => self.call(x, *at, None),
            Expr::Dot(x, flags, _) => {
                let kind = self.expr(&x.lhs);
                self.chain(&x.lhs, kind, &x.rhs, *flags, true)
            }
            Expr::Index(x, flags, _) => {
                let kind = self.expr(&x.lhs);
                self.chain(&x.lhs, kind, &x.rhs, *flags, false)
            }
            Expr::And(all, _) | Expr::Or(all, _) | Expr::Coalesce(all, _) => {
                for part in all.iter() {
                    self.expr(part);
                }
                None
            }
            _ => None,
        }
    }

    /// A closure without captured variables is a constant to Rhai.
    fn constant(&mut self, value: &rhai::Dynamic, at: Position) -> Kind {
        let name = value.read_lock::<FnPtr>()?.fn_name().to_string();
        self.closure(&name, &[], at);
        Some("closure")
    }

    /// The value of a block in the place of an expression; Rhai puts closures that capture variables in one.
    fn value_of(&mut self, block: &'a StmtBlock) -> Kind {
        if let [Stmt::Share(_), Stmt::Expr(only)] = block.statements() {
            return self.expr(only);
        }
        self.block(block);
        None
    }

    /// `captured` are the variables that stand in front of its own parameters.
    pub fn closure(&mut self, name: &str, captured: &'a [Expr], at: Position) {
        let Ok(function) = self.bodies.binary_search_by(|f| f.name.as_str().cmp(name)) else { return };
        let function = &self.bodies[function];
        for variable in captured {
            if let Expr::Variable(x, ..) = variable {
                self.captured(&x.1, at);
            }
        }
        let stored = self.stored.take();
        let outer = self.scope.len();
        let own = function.parameters.iter().skip(captured.len());
        self.scope.extend(own.map(|p| Binding::plain(p)));
        self.statements(&function.statements);
        self.scope.truncate(outer);
        self.stored = stored;
    }

    /// A closure that is kept beyond an iteration sees the last value of the loop's variable.
    fn captured(&mut self, name: &str, at: Position) {
        let (Some(variable), Some(target)) = (self.place_of(name), self.stored) else { return };
        if self.scope[variable].looped && target < variable {
            let message = format!("a closure that outlives the loop sees the last `{name}`, not this one");
            let hint = format!("give it a variable of its own: `let mine = {name};`, and use `mine`");
            self.warning("capture", at, Error::new(ErrorKind::Value, message).hint(hint));
        }
    }

    /// What follows `lhs`: properties, methods, indices.
    fn chain(&mut self, lhs: &'a Expr, kind: Kind, rhs: &'a Expr, flags: ASTFlags, dot: bool) -> Kind {
        self.settings_used(lhs, rhs, dot);
        let target = root(lhs).and_then(|name| self.place_of(name));
        let (mut kind, mut rest, mut flags, mut dot) = (kind, rhs, flags, dot);
        loop {
            let (link, more) = match rest {
                Expr::Dot(x, next, _) if !flags.intersects(ASTFlags::BREAK) => (&x.lhs, Some((&x.rhs, *next, true))),
                Expr::Index(x, next, _) if !flags.intersects(ASTFlags::BREAK) => (&x.lhs, Some((&x.rhs, *next, false))),
                last => (last, None),
            };
            kind = match link {
                Expr::Property(x, at) if dot => self.property(&x.2, *at, kind),
                Expr::MethodCall(x, at) if dot => self.method(x, *at, kind, target),
                index => {
                    self.expr(index);
                    None
                }
            };
            match more {
                Some(next) => (rest, flags, dot) = next,
                None => return kind,
            }
        }
    }

    fn method(&mut self, x: &'a FnCallExpr, at: Position, kind: Kind, target: Option<usize>) -> Kind {
        let keeps = matches!(x.name.as_str(), "push" | "insert");
        let stored = std::mem::replace(&mut self.stored, if keeps { Some(target.unwrap_or(0)) } else { None });
        let kind = self.call(x, at, Some(kind));
        self.stored = stored;
        kind
    }

    fn variable(&mut self, name: &str, at: Position) -> Kind {
        if let Some(i) = self.place_of(name) {
            return self.scope[i].kind;
        }
        if !self.own().named(name).is_empty() {
            return Some("closure");
        }
        if self.is_full() {
            self.error("variable", at, Error::new(ErrorKind::Name, format!("no variable `{name}`")));
            return None;
        }
        let mut error = suggest::variable(name, self.text, &self.place(at));
        if let Some(near) = nearest(name, self.scope.iter().map(|b| b.name.as_str())).filter(|_| error.hint.is_none()) {
            error = Error::new(ErrorKind::Name, format!("no variable `{name}`; did you mean `{near}`?"));
        }
        self.error("variable", at, error);
        None
    }

    pub fn place_of(&self, name: &str) -> Option<usize> {
        self.scope.iter().rposition(|b| b.name == name)
    }
}

/// The variable at the beginning of a chain.
pub(super) fn root(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Variable(x, ..) => Some(&x.1),
        Expr::Dot(x, ..) | Expr::Index(x, ..) => root(&x.lhs),
        _ => None,
    }
}
