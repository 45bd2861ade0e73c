//! What a file says about its own names, and what functions and properties there are apart from it.

use crate::script::catalog::{Catalog, Overload, script_type};
use rhai::{AST, ASTNode, Engine, Expr, Stmt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Words of one file by the part they play.
#[derive(Default)]
pub struct Facts {
    /// Keys of object maps, written in them or assigned.
    pub keys: BTreeSet<String>,
    /// Properties that are read.
    pub properties: BTreeSet<String>,
    /// Texts.
    pub strings: BTreeSet<String>,
    /// Variables that are assigned after their declaration.
    pub assigned: BTreeSet<String>,
}

impl Facts {
    pub fn of(ast: &AST) -> Self {
        let mut facts = Facts::default();
        ast.walk(&mut |path: &[ASTNode]| {
            match path.last() {
                Some(ASTNode::Expr(expr)) => facts.expr(expr),
                Some(ASTNode::Stmt(Stmt::Assignment(x))) => facts.target(&x.1.lhs),
                _ => {}
            }
            true
        });
        facts
    }

    /// Whether any part of the file speaks of a name.
    pub fn mention(&self, name: &str) -> bool {
        self.keys.contains(name) || self.properties.contains(name) || self.strings.contains(name)
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Map(x, _) => self.keys.extend(x.0.iter().map(|(key, _)| key.name.to_string())),
            Expr::Property(x, _) => drop(self.properties.insert(x.2.to_string())),
            Expr::StringConstant(text, _) => drop(self.strings.insert(text.to_string())),
            _ => {}
        }
    }

    fn target(&mut self, expr: &Expr) {
        let mut last = expr;
        while let Expr::Dot(x, ..) | Expr::Index(x, ..) = last {
            last = &x.rhs;
        }
        match last {
            Expr::Variable(x, ..) if std::ptr::eq(last, expr) => drop(self.assigned.insert(x.1.to_string())),
            Expr::Property(x, _) => drop(self.keys.insert(x.2.to_string())),
            Expr::StringConstant(text, _) => drop(self.keys.insert(text.to_string())),
            _ => {}
        }
    }
}

/// What a call or property may name, apart from a script's own.
pub struct Known {
    /// Natives by name, with all their overloads.
    pub natives: BTreeMap<&'static str, Vec<&'static Overload>>,
    /// Rhai's own functions with the types of arguments that they take.
    pub standard: BTreeMap<String, Vec<Vec<String>>>,
    /// Properties that values of Rhai have.
    pub properties: BTreeSet<String>,
    /// Words that the manual writes as code: keys of the maps that natives give are among them.
    pub words: BTreeSet<&'static str>,
}

/// Functions of any number of arguments that are part of the language.
const KEYWORDS: [&str; 7] = ["call", "Fn", "print", "debug", "type_of", "is_def_fn", "is_shared"];

impl Known {
    pub fn get() -> &'static Known {
        static KNOWN: OnceLock<Known> = OnceLock::new();
        KNOWN.get_or_init(|| {
            let mut known = Known {
                natives: BTreeMap::new(),
                standard: BTreeMap::new(),
                properties: BTreeSet::new(),
                words: BTreeSet::new(),
            };
            let entries = Catalog::get().entries.iter();
            for overload in entries.clone().filter(|e| !e.chapter.starts_with("stdlib/")).flat_map(|e| &e.overloads) {
                known.natives.entry(&overload.function).or_default().push(overload);
            }
            for entry in entries {
                let prose = [&entry.summary, &entry.details].into_iter().flat_map(|text| words(text, true));
                known.words.extend(prose.chain(entry.examples.iter().flat_map(|x| words(&x.code, false))));
            }
            for (name, types) in Engine::new().collect_fn_metadata(
                None,
                |f| Some((f.metadata.name.to_string(), parameters(f.metadata))),
                true,
            ) {
                match name.split_once('$') {
                    Some((_, property)) => drop(known.properties.insert(property.into())),
                    None => known.standard.entry(name).or_default().push(types),
                }
            }
            known
        })
    }

    /// Whether `name` is a function, of ours or of Rhai, whatever its arguments.
    pub fn is_function(&self, name: &str) -> bool {
        self.natives.contains_key(name) || self.standard.contains_key(name) || KEYWORDS.contains(&name)
    }

    /// Whether some function of that name takes `n` arguments.
    pub fn takes(&self, name: &str, n: usize) -> bool {
        let natives = self.natives.get(name).into_iter().flatten();
        let printed = ["print", "debug"].contains(&name);
        (KEYWORDS.contains(&name) && !(printed && n > 1))
            || self.standard.get(name).is_some_and(|all| all.iter().any(|types| types.len() == n))
            || natives.into_iter().any(|o| accepts(o, n))
    }

    /// Whether Rhai's own functions may take arguments of these kinds: those of our types only where any goes.
    pub fn standard_takes(&self, name: &str, kinds: &[Option<&str>]) -> bool {
        let ours = |kind: &Option<&str>| kind.is_some_and(|kind| kind.starts_with(char::is_uppercase));
        let takes = |types: &Vec<String>| {
            types.len() == kinds.len() && types.iter().zip(kinds).all(|(t, kind)| t == "any" || !ours(kind))
        };
        KEYWORDS.contains(&name) || self.standard.get(name).is_none_or(|all| all.iter().any(takes))
    }

    /// Whether a value of some kind has that property, or a map that a native gives has that key.
    pub fn has_property(&self, name: &str) -> bool {
        let native = |prefix: &str| self.natives.contains_key(format!("{prefix}${name}").as_str());
        self.properties.contains(name) || self.words.contains(name) || native("get") || native("set")
    }
}

/// The types of a function's parameters, any where they are not told.
fn parameters(f: &rhai::FuncMetadata) -> Vec<String> {
    let types = f.params_info.iter().map(|p| p.split_once(':').map_or("?", |(_, kind)| kind));
    types.map(script_type).chain(std::iter::repeat("any".into())).take(f.num_params).collect()
}

/// Whether an overload takes `n` arguments; a last object map may be left out.
pub fn accepts(overload: &Overload, n: usize) -> bool {
    let all = overload.parameters.len();
    n == all || (n + 1 == all && n > 0 && overload.parameters[n].1 == "map")
}

/// The words in a text, or only in what it sets in backticks.
fn words(text: &'static str, quoted: bool) -> impl Iterator<Item = &'static str> {
    let (skip, step) = if quoted { (1, 2) } else { (0, 1) };
    let parts = text.split(if quoted { '`' } else { '\0' }).skip(skip).step_by(step);
    parts.flat_map(|part| part.split(|c: char| !c.is_alphanumeric() && c != '_')).filter(|w| !w.is_empty())
}
