//! Properties of values, and what stands behind `module::`.

use super::Module;
use super::walk::{Kind, Walker};
use crate::script::import;
use crate::script::suggest::{self, did_you_mean};
use amscript_base::error::{Error, Kind as ErrorKind, nearest};
use rhai::Position;

impl<'a> Walker<'a> {
    /// Whether this file or one that it imports speaks of a name.
    pub fn mentioned(&self, name: &str) -> bool {
        self.modules.values().any(|m| m.facts.keys.contains(name) || m.facts.strings.contains(name))
    }

    /// A property that is read or assigned; gives the kind of its value.
    pub fn property(&mut self, name: &str, at: Position, kind: Kind) -> Kind {
        let known = self.known;
        match kind.filter(|owner| *owner == "Tensor" || !owner.starts_with(char::is_uppercase)) {
            Some("map") | None => {
                if !known.has_property(name) && !self.mentioned(name) {
                    let keys = self.modules.values().flat_map(|m| &m.facts.keys).map(String::as_str);
                    let native = known.natives.keys().filter_map(|f| f.strip_prefix("get$"));
                    let near = if self.is_full() { None } else { nearest(name, keys.chain(native)) };
                    let message = format!("nothing known has a property `{name}`{}", did_you_mean(near));
                    self.warning("property", at, Error::new(ErrorKind::Name, message));
                }
                None
            }
            Some(owner) => {
                let of = |prefix: &str| known.natives.get(format!("{prefix}${name}").as_str());
                let mut getters = of("get").into_iter().chain(of("set")).flatten();
                if let Some(getter) = getters.find(|o| o.types().next() == Some(owner)) {
                    return Some(getter.gives.as_str()).filter(|gives| !["any", ""].contains(gives));
                }
                if owner == "Tensor" || !known.properties.contains(name) {
                    let of = if owner.is_empty() { "()" } else { owner };
                    self.error("property", at, suggest::property(&format!("'{name}' '{of}'")));
                }
                None
            }
        }
    }

    pub fn module_variable(&mut self, alias: &str, name: &str, at: Position) -> Kind {
        if let Some(module) = self.module(alias, at).filter(|m| !m.variables.contains(name)) {
            let near = nearest(name, module.variables.iter().map(String::as_str));
            let message = format!("no variable `{alias}::{name}`{}", did_you_mean(near));
            self.error("variable", at, Error::new(ErrorKind::Name, message));
        }
        None
    }

    /// The module behind an alias; one that could not be read has been reported at its import.
    pub fn module(&mut self, alias: &str, at: Position) -> Option<&'a Module> {
        if alias == "global" {
            return None;
        }
        if let Some(name) = self.imports.get(alias) {
            return self.modules.get(name.as_ref()?);
        }
        let near = nearest(alias, self.imports.keys().map(String::as_str));
        let error = Error::new(ErrorKind::Name, format!("no module `{alias}`{}", did_you_mean(near)));
        let path = format!("stdlib/{alias}");
        let embedded = import::embedded().any(|(name, _)| name == path);
        let hint = format!("write `import \"{path}\" as {alias};` at the top");
        self.error("import", at, if embedded { error.hint(hint) } else { error });
        None
    }
}
