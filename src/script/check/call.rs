//! Calls: whether there is such a function, whether it takes these arguments, whether it knows these options.

use super::fact::accepts;
use super::walk::{Kind, Walker};
use crate::script::catalog::{Catalog, Entry, Overload};
use crate::script::option::{self, Field};
use crate::script::suggest::{self, did_you_mean};
use crate::script::{foreign, operator, rename};
use amscript_base::error::{Error, Kind as ErrorKind, nearest};
use rhai::{Expr, FnCallExpr, FnPtr, Position};

impl<'a> Walker<'a> {
    /// A call, of a method where a receiver stands in front; gives the kind of its value.
    pub fn call(&mut self, x: &'a FnCallExpr, at: Position, receiver: Option<Kind>) -> Kind {
        if let ("curry", [Expr::DynamicConstant(closure, place), captured @ ..]) = (x.name.as_str(), &x.args[..])
            && let Some(name) = closure.read_lock::<FnPtr>().map(|f| f.fn_name().to_string())
        {
            self.closure(&name, captured, *place);
            return Some("closure");
        }
        let stored = self.stored;
        if receiver.is_none() && !x.is_operator_call() && !self.keeps_closures(&x.name) {
            self.stored = None;
        }
        let own = x.args.iter().map(|arg| self.expr(arg)).collect::<Vec<Kind>>();
        self.stored = stored;
        let kinds: Vec<Kind> = receiver.into_iter().chain(own).collect();
        if x.is_operator_call() {
            self.operator(&x.name, at, &kinds);
            return None;
        }
        if x.is_qualified() {
            self.module_call(x, at, kinds.len());
            return None;
        }
        self.settings_escape(x);
        self.function(x, at, &kinds, receiver.is_some())
    }

    /// Whether what a native gives holds the closure that it was given, as `velocity_field` does.
    fn keeps_closures(&self, name: &str) -> bool {
        let holds = |o: &&&Overload| {
            o.types().any(|t| t == "closure") && o.gives.starts_with(char::is_uppercase) && o.gives != "Tensor"
        };
        self.known.natives.get(name).is_some_and(|all| all.iter().any(|o| holds(&o)))
    }

    /// Operators that do another thing than what was meant.
    fn operator(&mut self, symbol: &str, at: Position, kinds: &[Kind]) {
        let number = |kind: &Kind| matches!(kind, Some("integer" | "number"));
        let &[a, b] = kinds else { return };
        match symbol {
            "==" | "!=" if (a == Some("Tensor") && number(&b)) || (number(&a) && b == Some("Tensor")) => {
                self.error("arguments", at, operator::whole());
            }
            "^" if a == Some("integer") && b == Some("integer") => {
                let error = Error::new(ErrorKind::Value, "`^` compares the bits of integers, it is no power");
                self.warning("arguments", at, error.hint("write `2 ** 3` for a power"));
            }
            _ => {}
        }
    }

    fn function(&mut self, x: &'a FnCallExpr, at: Position, kinds: &[Kind], method: bool) -> Kind {
        let (name, known) = (x.name.as_str(), self.known);
        let variable = self.place_of(name).map(|i| self.scope[i].kind).filter(|_| !method);
        if let Some(None | Some("closure")) = variable {
            return None; // what it holds is called
        }
        let own: Vec<&Vec<String>> = self.own().named(name).iter().map(|f| &f.parameters).collect();
        // a script's own function gets the receiver as `this`
        if own.iter().any(|parameters| parameters.len() == kinds.len() - usize::from(method)) {
            return None;
        }
        if !known.is_function(name) && own.is_empty() {
            self.no_function(name, at, kinds, method);
            return None;
        }
        if !known.takes(name, kinds.len()) {
            self.wrong_number(name, at, kinds, &own);
            return None;
        }
        let natives: Vec<&'static Overload> =
            known.natives.get(name).into_iter().flatten().copied().filter(|o| accepts(o, kinds.len())).collect();
        if !known.standard.contains_key(name) && !natives.is_empty() && !natives.iter().any(|o| fits(o, kinds)) {
            let all: Vec<&Overload> = known.natives[name].clone();
            self.error("arguments", at, suggest::misfit(name, &all, &shown(kinds)));
            return None;
        }
        if own.is_empty() && !natives.iter().any(|o| fits(o, kinds)) && !known.standard_takes(name, kinds) {
            self.error("arguments", at, suggest::misused(name, &shown(kinds)));
            return None;
        }
        let natives: Vec<&'static Overload> = natives.into_iter().filter(|o| fits(o, kinds)).collect();
        let takes_options = |o: &&'static Overload| {
            o.parameters.len() == kinds.len() && o.parameters.last().is_some_and(|(name, _)| name == "options")
        };
        if natives.iter().any(takes_options) {
            self.options(name, x.args.last());
        }
        let gives = natives.iter().map(|o| o.gives.as_str());
        same(gives).filter(|_| !known.standard.contains_key(name))
    }

    fn no_function(&mut self, name: &str, at: Position, kinds: &[Kind], method: bool) {
        let owner = kinds.first().copied().flatten().filter(|owner| method && *owner != "map");
        if method && owner.is_none() && (self.mentioned(name) || self.known.words.contains(name)) {
            return; // a closure in an object map
        }
        if let Some(error) = owner.and_then(|owner| suggest::called_property(name, owner)) {
            return self.error("function", at, error);
        }
        if let Some(new) = rename::function(self.renamed, name) {
            return self.moved("function", at, "", (name, new));
        }
        if self.is_full() {
            return self.error("function", at, Error::new(ErrorKind::Name, format!("no function `{name}`")));
        }
        let own = self.own().functions.iter().map(|f| f.name.as_str());
        let others: Vec<&str> = own.chain(self.known.standard.keys().map(String::as_str)).collect();
        self.error("function", at, suggest::no_function(name, &shown(kinds), others.into_iter()));
    }

    fn wrong_number(&mut self, name: &str, at: Position, kinds: &[Kind], own: &[&Vec<String>]) {
        let natives = self.known.natives.get(name).into_iter().flatten().map(|o| o.signature.clone());
        let forms: Vec<String> = own.iter().map(|p| format!("{name}({})", p.join(", "))).chain(natives).collect();
        let error = wrong_number(name, kinds.len(), &forms);
        self.error("arguments", at, suggest::hinted(error, foreign::function(name, &shown(kinds))));
    }

    fn module_call(&mut self, x: &FnCallExpr, at: Position, n: usize) {
        let (alias, name) = (x.namespace.root().to_string(), x.name.as_str());
        let Some(module) = self.module(&alias, at) else { return };
        let public = || module.functions.iter().filter(|f| f.public);
        let forms: Vec<&Vec<String>> = public().filter(|f| f.name == name).map(|f| &f.parameters).collect();
        if forms.is_empty() {
            let all: Vec<&str> = public().map(|f| f.name.as_str()).collect();
            let near = nearest(name, all.iter().copied());
            let message = format!("no function `{alias}::{name}`{}", did_you_mean(near));
            self.error("function", at, Error::new(ErrorKind::Name, message).hint(format!("known: {}", all.join(", "))));
        } else if !forms.iter().any(|parameters| parameters.len() == n) {
            let forms: Vec<String> = forms.iter().map(|p| format!("{alias}::{name}({})", p.join(", "))).collect();
            self.error("arguments", at, wrong_number(&format!("{alias}::{name}"), n, &forms));
        }
    }

    /// Keys and values of the object map that a call ends with.
    fn options(&mut self, name: &str, last: Option<&'a Expr>) {
        let entries: Vec<&Entry> = Catalog::get().named(name).filter(|e| !e.options.is_empty()).collect();
        if entries.is_empty() {
            return;
        }
        let fields: Vec<&Field> = entries.iter().flat_map(|e| &e.options).collect();
        let mut parts: Vec<&'a Expr> = last.into_iter().collect();
        while let Some(part) = parts.pop() {
            match part {
                Expr::Map(x, _) => {
                    x.0.iter().for_each(|(key, value)| self.one_option(name, &key.name, key.pos, value, &fields))
                }
                // `o + #{ .. }`
                Expr::FnCall(x, _) if x.name == "+" => parts.extend(&x.args),
                Expr::Variable(x, ..) if x.2.is_empty() => {
                    parts.extend(self.place_of(&x.1).and_then(|i| self.scope[i].map));
                }
                _ => {}
            }
        }
    }

    fn one_option(&mut self, function: &str, key: &str, at: Position, value: &Expr, fields: &[&Field]) {
        let Some(field) = fields.iter().find(|f| f.name == key) else {
            if let Some(new) = rename::option(self.renamed, function, key, fields.iter().map(|f| f.name)) {
                return self.moved("option", at, &format!("{function}: the option "), (key, new));
            }
            let error = option::unknown(function, "option", key, fields.iter().map(|f| f.name));
            return self.error("option", at, error);
        };
        let Some(came) = literal(value).filter(|came| refused(field, came)) else { return };
        let message = format!("{function}: option `{key}`: expected {}, got {came}", field.expected);
        self.error("option", value.position(), Error::new(ErrorKind::Type, message));
    }
}

fn wrong_number(name: &str, n: usize, forms: &[String]) -> Error {
    let arguments = if n == 1 { "argument" } else { "arguments" };
    let error = Error::new(ErrorKind::Type, format!("`{name}`: no form of it takes {n} {arguments}"));
    let first: Vec<&str> = forms.iter().take(6).map(String::as_str).collect();
    if first.is_empty() { error } else { error.hint(format!("write {}", first.join(" or "))) }
}

/// Whether an overload may take arguments of these kinds; handles go by several names, so of two handles nothing is sure.
fn fits(overload: &Overload, kinds: &[Kind]) -> bool {
    let handle = |name: &str| name.starts_with(char::is_uppercase) && name != "Tensor";
    let one = |(wanted, kind): (&str, &Kind)| {
        kind.is_none_or(|came| wanted == came || suggest::fits(wanted, came) || (handle(wanted) && handle(came)))
    };
    overload.types().zip(kinds).all(one)
}

/// What all of some types are, if they are one that tells something.
fn same<'a>(mut types: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let first = types.next()?;
    types.all(|t| t == first).then_some(first).filter(|t| *t != "any")
}

fn shown(kinds: &[Kind]) -> Vec<String> {
    let one = |kind: &Kind| match kind {
        None => "any".into(),
        Some("") => "()".into(),
        Some(kind) => kind.to_string(),
    };
    kinds.iter().map(one).collect()
}

/// A literal as errors show it: text, a number, a truth value.
fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::StringConstant(text, _) => Some(format!("{text:?}")),
        Expr::IntegerConstant(n, _) => Some(n.to_string()),
        Expr::FloatConstant(x, _) => Some(format!("{:?}", **x)),
        Expr::BoolConstant(b, _) => Some(b.to_string()),
        _ => None,
    }
}

/// Whether an option cannot take that literal: only what is sure from how the table words it.
fn refused(field: &Field, came: &str) -> bool {
    let (text, truth) = (came.starts_with('"'), came == "true" || came == "false");
    let whole = came.parse::<i64>().is_ok();
    match field.expected.as_str() {
        "text" => !text,
        "true or false" => !truth,
        "a number" => text || truth,
        "an integer" => !whole,
        "a count (an integer, 0 or more)" => came.parse::<u64>().is_err(),
        "a value" => false,
        "a rate such as `1e-3` or `cosine(1e-3, 200, 10)`" => text || truth,
        scale if scale.starts_with("a scale such as `4`") => text || truth,
        // arrays, maps, closures and handles
        _ => true,
    }
}
