//! Tables of what can be opened: each line recognises one kind of model or reward, says what it can be told, and opens it.

use super::archive::Archive;
use super::source::{Folder, Sources};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, nearest};
use amscript_base::file;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One kind: a line of a [`Table`]. `F` is the function that opens it.
#[derive(Clone, Copy, Debug)]
pub struct Opener<F> {
    /// What scripts call the kind.
    pub name: &'static str,
    /// Short names of published models, and the Hugging Face repositories that hold them.
    pub repositories: &'static [(&'static str, &'static str)],
    /// Whether what was found is of this kind.
    pub recognises: fn(&Found) -> bool,
    /// What it can be told beside that which all kinds can.
    pub options: &'static [Field],
    pub open: F,
}

/// An option of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub takes: Takes,
    /// A sentence for the manual.
    pub about: &'static str,
}

/// An option, its kind of value, and a sentence for the manual.
pub const fn field(name: &'static str, takes: Takes, about: &'static str) -> Field {
    Field { name, takes, about }
}

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Takes {
    Flag,
    Count,
    Counts,
    /// One count, or one per side.
    Size,
    Number,
    Text,
    Texts,
    /// A folder or file to read.
    Path,
    /// The folder of a model: a path or a name.
    Model,
}

/// Options that were given, by name; folders of [`Takes::Path`] and [`Takes::Model`] as paths or names.
#[derive(Clone, Debug, Default)]
pub struct Given(pub Map<String, Value>);

impl Given {
    /// One that may be left out.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let wrong = |e: serde_json::Error| Error::new(Kind::Option, format!("option `{name}`: {e}"));
        self.0.get(name).map(|value| serde_json::from_value(value.clone()).map_err(wrong)).transpose()
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Given {
    fn from(options: [(&str, Value); N]) -> Self {
        Self(options.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }
}

/// What a name or path led to: all that an [`Opener`] may judge by.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// As the user said it.
    pub name: String,
    /// The folder of that name; none where there is none, as for a model that is made in code.
    pub folder: Option<Folder>,
    /// The file or folder of weights that was named, in place of those in the folder.
    pub weights: Option<PathBuf>,
    /// Names of the tensors in [`Found::weights`], where that is a file.
    pub tensors: BTreeSet<String>,
    /// Sizes of a new network, instead of stored weights.
    pub sizes: Option<Value>,
}

impl Found {
    /// A folder, and the weights that were named in it or elsewhere; a file of them must be readable.
    pub fn new(name: &str, folder: Option<Folder>, weights: Option<PathBuf>) -> Result<Self> {
        let file = weights.as_deref().filter(|path| file::is_file(path));
        let tensors = match file {
            Some(file) => Archive::open(file)?.entries().keys().cloned().collect(),
            None => BTreeSet::new(),
        };
        Ok(Self { name: name.into(), folder, weights, tensors, sizes: None })
    }

    /// A folder that the user called `name`.
    pub fn in_folder(name: &str, folder: Folder) -> Self {
        Self { name: name.into(), folder: Some(folder), ..Self::default() }
    }

    /// Whether the folder has this file or folder.
    pub fn has(&self, name: &str) -> bool {
        self.folder.as_ref().is_some_and(|folder| folder.has(name))
    }

    /// Whether a tensor of the named file has this in its name.
    pub fn holds(&self, part: &str) -> bool {
        self.tensors.iter().any(|name| name.contains(part))
    }

    /// Whether the sizes of a new network speak of this.
    pub fn sizes_have(&self, key: &str) -> bool {
        self.sizes.as_ref().is_some_and(|sizes| sizes.get(key).is_some())
    }

    /// Whether the weights are those of a file or of new sizes, so that the folder does not tell the kind.
    pub fn is_told(&self) -> bool {
        self.sizes.is_some() || !self.tensors.is_empty()
    }

    /// Whether the named weights, or a file in the folder, have such a name.
    pub fn any(&self, such: impl Fn(&str) -> bool) -> bool {
        let named = self.weights.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let names = self.folder.as_ref().map(Folder::names).unwrap_or_default();
        named.is_some_and(&such) || names.iter().any(|name| such(name))
    }

    /// The folder, which this kind needs.
    pub fn home(&self) -> Result<&Folder> {
        let none = || Error::new(Kind::Missing, format!("expected a model folder or name, got `{}`", self.name));
        self.folder.as_ref().ok_or_else(none)
    }
}

/// The kinds of one thing that are known: those built in, then those that a program registered.
#[derive(Clone, Debug)]
pub struct Table<F> {
    /// What they are: `family` or `reward`.
    what: &'static str,
    /// The script function that opens them, and its option that names a kind.
    function: &'static str,
    option: &'static str,
    /// Options that all kinds take.
    common: &'static [&'static str],
    openers: Vec<Opener<F>>,
}

impl<F: Copy> Table<F> {
    pub fn new(
        what: &'static str,
        function: &'static str,
        option: &'static str,
        common: &'static [&'static str],
        known: &[Opener<F>],
    ) -> Self {
        Self { what, function, option, common, openers: known.to_vec() }
    }

    /// Adds a kind. Its name and the short names of its models must be new; an option must mean to scripts what it means in other
    /// kinds.
    pub fn register(&mut self, opener: Opener<F>) -> Result<()> {
        let (verb, name) = (format!("register_{}", self.what), opener.name);
        if name.is_empty() {
            bail!(Value, "{verb}: expected a name, got none");
        }
        if self.openers.iter().any(|known| known.name == name) {
            bail!(Value, "{verb}: expected a new name, got `{name}`, which is there already");
        }
        if let Some((short, _)) =
            opener.repositories.iter().find(|(short, _)| self.published().any(|(s, _)| s == *short))
        {
            bail!(Value, "{verb}: {name}: expected new names of models, got `{short}`, which is there already");
        }
        for field in opener.options {
            if self.common.contains(&field.name) {
                bail!(Value, "{verb}: {name}: expected options of its own, got `{}`, which all take", field.name);
            }
            if let Some(known) = self.field(field.name).filter(|known| known.takes != field.takes) {
                bail!(
                    Value,
                    "{verb}: {name}: option `{}` takes {:?} elsewhere, got {:?}",
                    field.name,
                    known.takes,
                    field.takes
                );
            }
        }
        self.openers.push(opener);
        Ok(())
    }

    /// Options that all kinds take.
    pub fn common(&self) -> &'static [&'static str] {
        self.common
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.openers.iter().map(|opener| opener.name).collect()
    }

    /// Short names of published models, and their repositories.
    pub fn published(&self) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
        self.openers.iter().flat_map(|opener| opener.repositories).copied()
    }

    /// The option of that name, of whatever kind.
    pub fn field(&self, name: &str) -> Option<Field> {
        self.openers.iter().flat_map(|opener| opener.options).find(|field| field.name == name).copied()
    }

    /// All options of kinds, once each, with the kinds that take them.
    pub fn fields(&self) -> Vec<(Field, Vec<&'static str>)> {
        let mut fields: Vec<(Field, Vec<&'static str>)> = Vec::new();
        for opener in &self.openers {
            for field in opener.options {
                match fields.iter_mut().find(|(known, _)| known.name == field.name) {
                    Some((_, kinds)) => kinds.push(opener.name),
                    None => fields.push((*field, vec![opener.name])),
                }
            }
        }
        fields
    }

    /// The kind that was named, else the one that recognises what was found; it must know all options that were given.
    pub fn choose(&self, kind: Option<&str>, found: &Found, given: &Given) -> Result<&Opener<F>> {
        let opener = match kind {
            Some(kind) => self.openers.iter().find(|opener| opener.name == kind).ok_or_else(|| {
                let names = self.names().join(", ");
                let message = format!("{}: expected one of {names} for `{}`, got `{kind}`", self.function, self.option);
                Error::new(Kind::Value, message)
            })?,
            None => self.recognised(found)?,
        };
        let known = || opener.options.iter().map(|field| field.name);
        match given.0.keys().find(|key| known().all(|name| name != key.as_str())) {
            None => Ok(opener),
            Some(key) => {
                let near = nearest(key, known()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                let has = known().chain(self.common.iter().copied()).collect::<Vec<_>>().join(", ");
                bail!(Option, "{}: {} `{}` has no option `{key}`{near}", self.function, self.what, opener.name; hint: "it has {has}")
            }
        }
    }

    fn recognised(&self, found: &Found) -> Result<&Opener<F>> {
        let those: Vec<&Opener<F>> = self.openers.iter().filter(|opener| (opener.recognises)(found)).collect();
        match those.as_slice() {
            [opener] => Ok(opener),
            [] => Err(self.unknown(found)),
            several => {
                let names = several.iter().map(|opener| opener.name).collect::<Vec<_>>().join(" and ");
                bail!(Value, "{}: `{}` may be {names}", self.function, found.name; hint: "say which with `{}: name`", self.option)
            }
        }
    }

    /// Why what was found is of no kind.
    fn unknown(&self, found: &Found) -> Error {
        let folder = found.folder.as_ref().filter(|_| !found.is_told());
        let read =
            |name: &str| folder.filter(|folder| folder.has(name)).map(|folder| folder.json::<Value>(name)).transpose();
        let (index, config) = match read("model_index.json").and_then(|index| Ok((index, read("config.json")?))) {
            Ok(read) => read,
            Err(error) => return error.within(self.function),
        };
        let said = |file: &Option<Value>, key: &str| Some(format!("a {}", file.as_ref()?[key].as_str()?));
        let model = said(&index, "_class_name").or_else(|| said(&config, "model_type"));
        let names = found.folder.as_ref().map(Folder::names).unwrap_or_default();
        let place = found.folder.as_ref().map_or_else(|| found.name.clone(), Folder::origin);
        let files = names.into_iter().take(4).collect::<Vec<_>>().join(", ");
        let got = match &model {
            Some(model) => model.clone(),
            None if files.is_empty() => "nothing".into(),
            None => files,
        };
        let kinds = self.names().join(", ");
        let message = format!("{}: expected one of {kinds} in {place}, got {got}", self.function);
        let published: Vec<&str> = self.published().map(|(_, repository)| repository).collect();
        let hint = match model {
            Some(_) => format!("take a model like one of {}", published.join(", ")),
            None => format!("say which it is with `{}: name`", self.option),
        };
        let error = Error::new(Kind::Missing, message).hint(hint);
        found.folder.iter().fold(error, |error, folder| folder.with_download(error))
    }
}

impl Sources {
    /// What a name or path led to: a folder, or a file of weights and the folder it lies in; `weights` names others.
    pub fn lead(&self, name: &str, weights: Option<&Path>) -> Result<(Found, Option<Error>)> {
        let file = self.file(name);
        let (folder, missing) = match file.as_deref().and_then(Path::parent) {
            Some(folder) if folder.as_os_str().is_empty() => (Some(Folder::disk(".")), None),
            Some(folder) => (Some(Folder::disk(folder)), None),
            None => match self.find(name) {
                Ok(folder) => (Some(folder), None),
                Err(error) => (None, Some(error)),
            },
        };
        Ok((Found::new(name, folder, weights.map(Path::to_path_buf).or(file))?, missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn kind(name: &'static str, options: &'static [Field]) -> Opener<fn()> {
        Opener {
            name,
            repositories: &[],
            recognises: |found| found.any(|file| file.ends_with(".pt")),
            options,
            open: || (),
        }
    }

    fn table() -> Table<fn()> {
        const KNOWN: &[Opener<fn()>] = &[Opener {
            repositories: &[("short", "org/name")],
            ..kind("first", &[field("width", Takes::Count, "A width."), field("scale", Takes::Number, "A scale.")])
        }];
        Table::new("thing", "open", "kind", &["weights"], KNOWN)
    }

    fn refused<T>(result: Result<T>) -> String {
        result.err().unwrap().to_string()
    }

    #[test]
    fn what_clashes_is_refused_at_registration() {
        let register = |opener| refused(table().register(opener));
        assert_eq!(register(kind("", &[])), "register_thing: expected a name, got none");
        assert_eq!(
            register(kind("first", &[])),
            "register_thing: expected a new name, got `first`, which is there already"
        );
        let published = Opener { repositories: &[("short", "other/name")], ..kind("second", &[]) };
        assert!(register(published).contains("expected new names of models, got `short`"));
        const COMMON: &[Field] = &[field("weights", Takes::Text, "")];
        assert!(
            register(kind("second", COMMON)).ends_with("expected options of its own, got `weights`, which all take")
        );
        const OTHER: &[Field] = &[field("scale", Takes::Text, "")];
        assert_eq!(
            register(kind("second", OTHER)),
            "register_thing: second: option `scale` takes Number elsewhere, got Text"
        );
    }

    #[test]
    fn one_kind_is_chosen_by_name_or_by_what_lies_there() {
        let folder = tempfile::tempdir().unwrap();
        let found = || Found::in_folder("here", Folder::disk(folder.path()));
        let mut table = table();
        const SCALE: &[Field] = &[field("scale", Takes::Number, "A scale.")];
        table.register(kind("second", SCALE)).unwrap();
        let none = Given::default();
        let nothing = refused(table.choose(None, &found(), &none));
        assert!(
            nothing.starts_with("open: expected one of first, second in ") && nothing.contains("got nothing"),
            "{nothing}"
        );
        let index = folder.path().join("model_index.json");
        std::fs::write(&index, r#"{"_class_name": "FluxPipeline"}"#).unwrap();
        let pipeline = refused(table.choose(None, &found(), &none));
        assert!(pipeline.ends_with("got a FluxPipeline\nhint: take a model like one of org/name"), "{pipeline}");
        std::fs::write(&index, "").unwrap();
        let empty = refused(table.choose(None, &found(), &none));
        assert!(empty.contains("model_index.json: expected a text, got 0 bytes"), "{empty}");
        std::fs::remove_file(index).unwrap();
        std::fs::write(folder.path().join("a.pt"), "").unwrap();
        let several = refused(table.choose(None, &found(), &none));
        assert_eq!(several, "open: `here` may be first and second\nhint: say which with `kind: name`");
        assert_eq!(table.choose(Some("second"), &found(), &none).unwrap().name, "second");
        assert_eq!(
            refused(table.choose(Some("third"), &found(), &none)),
            "open: expected one of first, second for `kind`, got `third`"
        );
        let width = Given::from([("width", 3.into())]);
        let foreign = refused(table.choose(Some("second"), &found(), &width));
        assert_eq!(foreign, "open: thing `second` has no option `width`\nhint: it has scale, weights");
        assert_eq!(table.choose(Some("first"), &found(), &width).unwrap().name, "first");
        let fields: Vec<_> = table.fields().into_iter().map(|(field, kinds)| (field.name, kinds.len())).collect();
        assert_eq!(fields, [("width", 1), ("scale", 2)]);
        assert_eq!(
            refused(width.get::<String>("width")),
            "option `width`: invalid type: integer `3`, expected a string"
        );
    }
}
