//! Every function that scripts can call, read back from the engine's metadata: the source of help, manual, completion,
//! doc-tests and suggestions.

use super::example::{self, Example};
use super::option::Field;
use super::{CHAPTERS, Chapter, import, reader, short_type};
use super::{choice, policy_choice};
use amscript_base::error::nearest;
use rhai::{Engine, Module};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// One name in one chapter, with all its overloads.
#[derive(Clone, Debug)]
pub struct Entry {
    pub chapter: String,
    pub name: String,
    pub overloads: Vec<Overload>,
    /// The first sentence of the doc comment.
    pub summary: String,
    /// The rest of it, without the examples.
    pub details: String,
    pub examples: Vec<Example>,
    pub options: Vec<Field>,
}

/// One list of parameters.
#[derive(Clone, Debug)]
pub struct Overload {
    /// How it is written: `rollout(flow: Flow, x0: Tensor)`, `x.shape`, `Tensor + number`.
    pub signature: String,
    /// The name it is registered under: `exp`, `get$shape`, `+`.
    pub function: String,
    /// Names and types, in script words.
    pub parameters: Vec<(String, String)>,
    /// What it gives back; empty for nothing.
    pub gives: String,
}

impl Overload {
    /// The type of each parameter.
    pub fn types(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.parameters.iter().map(|(_, ty)| ty.as_str())
    }
}

/// What opens a chapter.
pub struct Heading {
    pub name: String,
    pub text: String,
}

/// All entries in the order of the manual.
pub struct Catalog {
    pub headings: Vec<Heading>,
    pub entries: Vec<Entry>,
}

impl Catalog {
    /// The catalogue of this build.
    pub fn get() -> &'static Catalog {
        static CATALOG: OnceLock<Catalog> = OnceLock::new();
        CATALOG.get_or_init(|| {
            let mut catalog = Catalog { headings: vec![], entries: vec![] };
            CHAPTERS.iter().for_each(|chapter| catalog.add_chapter(chapter));
            import::embedded().for_each(|(name, text)| catalog.add_script(&name, text));
            catalog
        })
    }

    /// All entries of that name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |e| e.name == name)
    }

    /// The name most like a mistyped one.
    pub fn nearest<'a>(&'a self, name: &str, others: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        nearest(name, self.entries.iter().map(|e| e.name.as_str()).chain(others))
    }

    fn add_chapter(&mut self, chapter: &Chapter) {
        let mut engine = Engine::new_raw();
        let module = Module::from_manifest(chapter.manifest);
        engine.register_global_module(module.into());
        let mut found: BTreeMap<usize, Vec<Found>> = BTreeMap::new();
        for raw in engine.collect_fn_metadata(None, |f| Some(Found::new(f.metadata)), false) {
            let place = chapter.manifest.functions().iter().position(|f| f.name() == raw.name);
            found.entry(place.unwrap_or(usize::MAX)).or_default().push(raw);
        }
        self.headings.push(Heading { name: chapter.name.into(), text: chapter.about.trim().into() });
        for mut group in found.into_values() {
            group.retain(|f| !matches!(f.name.as_str(), "to_string" | "to_debug"));
            group.sort_by(|a, b| {
                b.comments.is_empty().cmp(&a.comments.is_empty()).reverse().then(a.order().cmp(&b.order()))
            });
            let Some(first) = group.first() else { continue };
            let text = texts(&group);
            let name = display_name(&first.name);
            let options = chapter.options.iter().find(|(function, _)| *function == name);
            let overloads = group.iter().map(Found::overload).collect();
            let options = options.map_or(vec![], |(_, fields)| fields());
            self.add(chapter.name, name, &text, overloads, options);
        }
    }

    fn add_script(&mut self, name: &str, text: &str) {
        let ast = match reader().compile(text) {
            Ok(ast) => ast,
            Err(e) => {
                let text = format!("cannot be read: {e}");
                return self.headings.push(Heading { name: name.into(), text });
            }
        };
        let about = plain_text(ast.doc());
        self.headings.push(Heading { name: name.into(), text: about });
        let mut functions: Vec<_> = ast.iter_functions().filter(|f| f.access == rhai::FnAccess::Public).collect();
        functions.sort_by_key(|f| text.find(&format!("fn {}(", f.name)));
        for f in functions.iter().filter(|f| !f.name.starts_with("anon$")) {
            let module = name.rsplit('/').next().unwrap_or(name);
            let overload = Overload {
                signature: format!("{module}::{}({})", f.name, f.params.join(", ")),
                function: f.name.into(),
                parameters: f.params.iter().map(|p| (p.to_string(), "any".into())).collect(),
                gives: String::new(),
            };
            self.add(name, f.name.into(), &plain_text(&f.comments.join("\n")), vec![overload], vec![]);
        }
    }

    fn add(&mut self, chapter: &str, name: String, text: &str, overloads: Vec<Overload>, options: Vec<Field>) {
        let (prose, mut examples) = example::extract(text);
        if [choice::PLAIN, policy_choice::PLAIN].concat().contains(&name.as_str()) && examples.is_empty() {
            examples.push(Example { code: format!("{name}()   //=> {name}()\n"), run: true });
        }
        let (summary, details) = prose.split_once("\n\n").unwrap_or((&prose, ""));
        self.entries.push(Entry {
            chapter: chapter.into(),
            name,
            overloads,
            summary: summary.replace('\n', " ").trim().into(),
            details: details.trim().into(),
            examples,
            options,
        });
    }
}

/// A function as the engine describes it.
struct Found {
    name: String,
    parameters: Vec<(String, String)>,
    gives: String,
    comments: String,
}

impl Found {
    fn new(f: &rhai::FuncMetadata) -> Self {
        let parameters = f.params_info.iter().map(|p| p.split_once(':').unwrap_or((p, "Dynamic")));
        Self {
            name: f.name.to_string(),
            parameters: parameters.map(|(name, ty)| (name.trim().into(), script_type(ty))).collect(),
            gives: script_type(&f.return_type),
            comments: plain_text(&f.comments.join("\n")),
        }
    }

    /// A stable order of overloads: fewer parameters first, then by type.
    fn order(&self) -> (usize, String) {
        (self.parameters.len(), self.parameters.iter().map(|p| p.1.as_str()).collect::<Vec<_>>().join(","))
    }

    fn overload(&self) -> Overload {
        let types: Vec<&str> = self.parameters.iter().map(|p| p.1.as_str()).collect();
        let signature = match (self.name.split_once('$'), types.as_slice()) {
            (Some(("get", property)), [owner, ..]) => format!("{}.{property}", owner.to_lowercase()),
            (Some(("set", property)), [owner, ..]) => format!("{}.{property} = ..", owner.to_lowercase()),
            (Some(_), [owner, index, ..]) => format!("{}[{index}]", owner.to_lowercase()),
            (None, [left, right]) if is_operator(&self.name) => format!("{left} {} {right}", self.name),
            (None, [only]) if is_operator(&self.name) => format!("{}{only}", self.name),
            _ => format!("{}({})", self.name, self.parameter_list()),
        };
        let (function, parameters) = (self.name.clone(), self.parameters.clone());
        Overload { signature, function, parameters, gives: self.gives.clone() }
    }

    fn parameter_list(&self) -> String {
        let last = self.parameters.len().saturating_sub(1);
        let parameter = |(i, (name, ty)): (usize, &(String, String))| match ty.as_str() {
            "map" if i == last && i > 0 => format!("[{name}]"),
            _ => format!("{name}: {ty}"),
        };
        self.parameters.iter().enumerate().map(parameter).collect::<Vec<_>>().join(", ")
    }
}

/// The doc comments of all overloads, one with an example first.
fn texts(group: &[Found]) -> String {
    let mut texts: Vec<&str> = group.iter().map(|f| f.comments.as_str()).filter(|c| !c.is_empty()).collect();
    texts.sort_by_key(|text| !text.contains("```rhai"));
    texts.join("\n\n")
}

fn is_operator(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// `get$shape` as `shape`, `index$get$` as `[]`.
fn display_name(name: &str) -> String {
    match name.split_once('$') {
        Some(("get" | "set", property)) => property.into(),
        Some(("index", _)) => "[]".into(),
        _ => name.into(),
    }
}

/// A Rust or Rhai type in the words of the manual.
pub fn script_type(name: &str) -> String {
    let name = name.trim().trim_start_matches("&mut ").trim();
    let inner = name.strip_prefix("RhaiResultOf<").or_else(|| name.strip_prefix("Result<"));
    if let Some(inner) = inner {
        let end = inner.rfind('>').unwrap_or(inner.len());
        return script_type(inner[..end].split(", Box<").next().unwrap_or_default());
    }
    match short_type(name) {
        "f64" | "FLOAT" => "number",
        "i64" | "INT" => "integer",
        "ImmutableString" | "String" | "&str" | "string" | "&str | ImmutableString | String" => "string",
        "Array" | "array" => "array",
        "Map" | "map" => "map",
        "FnPtr" | "Fn" => "closure",
        "Dynamic" | "?" => "any",
        "RewardModel" => "Reward",
        "" | "()" => "",
        other => other,
    }
    .into()
}

/// Doc comment lines without their markers.
fn plain_text(comment: &str) -> String {
    let line = |l: &str| {
        let l = l.trim_start();
        let l = l.strip_prefix("///").or_else(|| l.strip_prefix("//!")).unwrap_or(l);
        l.strip_prefix(' ').unwrap_or(l).trim_end().to_string()
    };
    comment.lines().map(line).collect::<Vec<_>>().join("\n").trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_in_the_binary_is_in_the_catalogue() {
        let catalog = Catalog::get();
        for (name, text) in import::embedded() {
            let listed = catalog.entries.iter().filter(|e| e.chapter == name).count();
            let written = text.lines().filter(|line| line.starts_with("fn ")).count();
            assert_eq!(
                listed,
                written,
                "{name}: {:?}",
                catalog.headings.iter().find(|h| h.name == name).map(|h| &h.text)
            );
        }
    }
}
