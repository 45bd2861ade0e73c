//! The families and rewards that a host knows, and their options as scripts give them.

use super::option::{self, Field, FromScript};
use super::{Host, Session};
use amscript_base::error::{Kind, Result};
use amscript_base::file;
use amscript_model::{self as model, Families};
use amscript_nn::opener::{self, Given, Table, Takes};
use amscript_nn::source::Sources;
use amscript_reward::{self as reward, Rewards};
use rhai::{Dynamic, Map};
use serde_json::{Value, json};
use std::path::Path;

/// Built-in families and rewards, and those that a program registered with its host.
#[derive(Clone)]
pub struct Registry {
    pub families: Families,
    pub rewards: Rewards,
    // methods stand here too, once they are values: `Host::register_method`
}

impl Default for Registry {
    fn default() -> Self {
        Self { families: model::families::families(), rewards: reward::rewards() }
    }
}

impl Registry {
    /// The same places, where published models are known by their short names too.
    pub fn publishing(&self, sources: Sources) -> Sources {
        sources.publishing(self.families.published()).publishing(self.rewards.published())
    }
}

impl Host {
    /// A family that scripts of this host open with `flow(name)`, beside those built in: a record that says how it is recognised
    /// and opened, see [`model::Opener`]. Refused where its name, or that of a model, is there already.
    pub fn register_family(&self, opener: model::Opener) -> Result<()> {
        self.session().register(|registry| registry.families.register(opener))
    }

    /// A reward that scripts of this host open with `reward(name)`, likewise; see [`reward::Opener`].
    pub fn register_reward(&self, opener: reward::Opener) -> Result<()> {
        self.session().register(|registry| registry.rewards.register(opener))
    }
}

impl Session {
    /// Where models are looked up.
    pub fn sources(&self) -> Sources {
        self.registry().publishing(Sources::new(self.request().models.as_deref()))
    }
}

/// Parts a map of options into those that all kinds take and those of a kind, which are known to some line of the table.
pub fn split<F: Copy>(
    mut map: Map,
    common: &[Field],
    table: &Table<F>,
    function: &str,
    session: &Session,
) -> Result<(Map, Given)> {
    let own = |key: &str| common.iter().all(|field| field.name != key);
    let keys: Vec<String> = map.keys().map(|key| key.to_string()).filter(|key| own(key)).collect();
    let mut given = Given::default();
    for key in keys {
        let value = map.remove(key.as_str()).unwrap_or_default();
        let Some(field) = table.field(&key) else {
            let fields = table.fields();
            let known = common.iter().map(|field| field.name).chain(fields.iter().map(|(field, _)| field.name));
            return Err(option::unknown(function, "option", &key, known));
        };
        if !value.is_unit() {
            given.0.insert(key.clone(), json_of(field.takes, value, &format!("{function}: option `{key}`"), session)?);
        }
    }
    Ok((map, given))
}

fn json_of(takes: Takes, value: Dynamic, place: &str, session: &Session) -> Result<Value> {
    Ok(match takes {
        Takes::Flag => json!(option::convert::<bool>(value, place)?),
        Takes::Count => json!(option::convert::<usize>(value, place)?),
        Takes::Counts => json!(option::convert::<Vec<usize>>(value, place)?),
        Takes::Size => match usize::from_script(value.clone()) {
            Some(side) => json!(side),
            None => json!(option::convert::<Vec<usize>>(value, place)?),
        },
        Takes::Number => json!(option::convert::<f64>(value, place)?),
        Takes::Text => json!(option::convert::<String>(value, place)?),
        Takes::Texts => json!(option::convert::<Vec<String>>(value, place)?),
        Takes::Path => {
            let path = session.readable(&option::convert::<String>(value, place)?).map_err(|e| e.within(place))?;
            json!(path.display().to_string())
        }
        Takes::Model => json!(model_place(option::convert::<String>(value, place)?, session)?),
    })
}

/// A model's name, or a path that the script may read; one from the current folder stays as it was given.
pub fn model_place(name: String, session: &Session) -> Result<String> {
    match session.readable(&name) {
        Ok(path) if file::real(Path::new(&name)).is_ok_and(|given| given == path) => Ok(name),
        Ok(path) => Ok(path.display().to_string()),
        Err(refused) if refused.kind != Kind::Missing => Err(refused),
        Err(_) => Ok(name),
    }
}

/// The options of a function for the manual: common ones, then those of the kinds, which say whose they are.
pub fn fields<F: Copy>(common: Vec<Field>, table: &Table<F>) -> Vec<Field> {
    let all = table.names().len();
    let field = |(field, kinds): (opener::Field, Vec<&str>)| {
        let whose = if kinds.len() == all { String::new() } else { format!("Of {}: ", kinds.join(", ")) };
        Field {
            name: field.name,
            expected: expected(field.takes),
            default: "()".into(),
            meaning: format!("{whose}{}", field.about),
        }
    };
    common.into_iter().chain(table.fields().into_iter().map(field)).collect()
}

fn expected(takes: Takes) -> String {
    match takes {
        Takes::Flag => bool::expected(),
        Takes::Count => usize::expected(),
        Takes::Counts => Vec::<usize>::expected(),
        Takes::Size => Dynamic::expected(),
        Takes::Number => f64::expected(),
        Takes::Text | Takes::Path | Takes::Model => String::expected(),
        Takes::Texts => Vec::<String>::expected(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::{model::OpenOptions, reward::PlaceOptions};

    /// The tables refuse a registered option that would hide one that all take.
    #[test]
    fn options_that_all_take_are_those_of_the_manual() {
        let names = |fields: Vec<Field>| fields.iter().map(|field| field.name).collect::<Vec<_>>();
        let Registry { families, rewards } = Registry::default();
        assert_eq!(names(OpenOptions::fields()), families.common());
        assert_eq!(names(PlaceOptions::fields()), rewards.common());
        let all = names(fields(PlaceOptions::fields(), &rewards));
        let listed = [
            "kind",
            "weights",
            "version",
            "tokenizer",
            "resize",
            "antialias",
            "crop",
            "scale",
            "prefix",
            "positive",
            "clip",
        ];
        assert_eq!(all, listed);
    }
}
