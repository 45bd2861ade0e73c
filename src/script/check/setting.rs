//! What a script declares with `settings(#{ .. })`, held against what it reads.

use super::walk::{Walker, root};
use crate::script::option;
use amscript_base::error::{Error, Kind as ErrorKind};
use rhai::{Expr, FnCallExpr, Position};

/// The settings of a file.
#[derive(Default)]
pub(super) struct Settings {
    declared: Vec<(String, Position)>,
    /// Those that a module shares, which `module::settings(#{ .. })` adds to.
    shared: Vec<String>,
    /// They are handed on, or read by names that the script makes up, so that nothing can be called unused.
    escaped: bool,
}

impl<'a> Walker<'a> {
    /// Notes the keys where a value is `settings(#{ .. })`, or `experiment::settings(#{ .. })` with those of the module.
    pub fn declares_settings(&mut self, value: &'a Expr) -> bool {
        let Expr::FnCall(call, _) = value else { return false };
        let ("settings", [Expr::Map(x, _)]) = (call.name.as_str(), &call.args[..]) else { return false };
        self.settings.declared = x.0.iter().map(|(key, _)| (key.name.to_string(), key.pos)).collect();
        let module = call.is_qualified().then(|| self.imports.get(call.namespace.root()).cloned().flatten()).flatten();
        let shared = module.and_then(|name| self.modules.get(&name));
        self.settings.shared = shared.map_or(vec![], |module| module.facts.keys.iter().cloned().collect());
        true
    }

    /// Checks `s.name` where `s` holds the settings.
    pub fn settings_used(&mut self, lhs: &Expr, rhs: &Expr, dot: bool) {
        let Expr::Variable(..) = lhs else { return };
        let Some(i) = root(lhs).and_then(|name| self.place_of(name)).filter(|i| self.scope[*i].settings) else {
            return;
        };
        let first = match rhs {
            Expr::Dot(x, ..) | Expr::Index(x, ..) if dot => &x.lhs,
            other => other,
        };
        let Expr::Property(x, at) = first else {
            return self.settings.escaped = true;
        };
        let (name, variable) = (x.2.to_string(), self.scope[i].name.clone());
        let shared = self.settings.shared.iter().map(String::as_str);
        let declared = self.settings.declared.iter().map(|(key, _)| key.as_str()).chain(shared);
        let facts = self.facts();
        let added = facts.keys.contains(&name) || facts.strings.contains(&name) || facts.assigned.contains(&variable);
        if !declared.clone().any(|key| key == name) && !added {
            let keys: Vec<&str> = declared.collect();
            let error = option::unknown(&variable, "setting", &name, keys.into_iter());
            self.error("setting", *at, error);
        }
    }

    /// Settings that are an argument of something other than `start_run`.
    pub fn settings_escape(&mut self, call: &FnCallExpr) {
        let is = |expr: &Expr| matches!(expr, Expr::Variable(..)) && self.is_settings(expr);
        if call.name != "start_run" && call.args.iter().any(is) {
            self.settings.escaped = true;
        }
    }

    fn is_settings(&self, expr: &Expr) -> bool {
        root(expr).and_then(|name| self.place_of(name)).is_some_and(|i| self.scope[i].settings)
    }

    /// Settings that neither this file nor one that it imports speaks of again; a run takes its `seed` from them.
    pub fn unused_settings(&mut self) {
        if self.settings.escaped {
            return;
        }
        let own = self.facts();
        let imported =
            |name: &str| self.modules.values().any(|m| !std::ptr::eq(&m.facts, own) && m.facts.mention(name));
        let used = |name: &str| {
            name == "seed" || own.properties.contains(name) || own.strings.contains(name) || imported(name)
        };
        let unused: Vec<(String, Position)> =
            self.settings.declared.iter().filter(|(name, _)| !used(name)).cloned().collect();
        for (name, at) in unused {
            let error = Error::new(ErrorKind::Option, format!("the setting `{name}` is never used"));
            self.warning("setting", at, error);
        }
    }
}
