//! What may stand at the cursor: names, methods and properties by the type before the point, option keys, files, models.

use super::lexer::{KEYWORDS, Token, TokenKind, VALUES, open, tokens};
use super::workspace::Variable;
use crate::script::catalog::{Catalog, Entry, Overload, script_type};
use rhai::Engine;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// What a prompt knows besides the catalogue.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub variables: BTreeMap<String, Variable>,
    /// Functions that were typed: name and parameters.
    pub functions: BTreeMap<String, String>,
    /// Flow models, which `flow` takes, and the folders that others take.
    pub flows: Vec<String>,
    pub models: Vec<String>,
    pub commands: Vec<(&'static str, &'static str)>,
}

/// One thing that may stand there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// What is written.
    pub text: String,
    /// What is shown: the signature.
    pub shown: String,
}

/// What the cursor is in.
#[derive(Debug, PartialEq, Eq)]
pub enum CompletionSite<'a> {
    Command(&'a str),
    /// Behind a point: the type before it.
    Member(Option<String>, &'a str),
    /// Behind `module::`.
    Module(&'a str, &'a str),
    /// A key in the object map given to a function, and the keys that are there.
    Option(&'a str, Vec<&'a str>, &'a str),
    /// In a string, and the function it is given to.
    Text(Option<&'a str>, &'a str),
    Name(&'a str),
    /// Where nothing can be said.
    Nothing,
}

/// The start of what is completed, and what may stand there.
pub fn complete(text: &str, names: &Names) -> (usize, Vec<Candidate>) {
    let place = place(text, names);
    let start = text.len() - place.typed().len();
    let mut found = match &place {
        CompletionSite::Command(typed) => commands(typed, names),
        CompletionSite::Member(kind, typed) => members(text, kind.as_deref(), typed, names),
        CompletionSite::Module(module, typed) => module_functions(module, typed),
        CompletionSite::Option(function, given, typed) => options(function, given, typed),
        CompletionSite::Text(function, typed) => models(*function, typed, names),
        CompletionSite::Name(typed) => globals(typed, names),
        CompletionSite::Nothing => vec![],
    };
    found.sort();
    found.dedup_by(|a, b| a.text == b.text);
    (start, found)
}

impl CompletionSite<'_> {
    /// What is there already.
    pub fn typed(&self) -> &str {
        match self {
            CompletionSite::Command(t)
            | CompletionSite::Member(_, t)
            | CompletionSite::Module(_, t)
            | CompletionSite::Option(_, _, t) => t,
            CompletionSite::Text(_, t) | CompletionSite::Name(t) => t,
            CompletionSite::Nothing => "",
        }
    }
}

/// Where the end of a text is.
pub fn place<'a>(text: &'a str, names: &Names) -> CompletionSite<'a> {
    if let Some(command) = text.strip_prefix(':').filter(|c| !c.contains(' ')) {
        return CompletionSite::Command(command);
    }
    let (text, all) = match text.strip_prefix(':').and_then(|t| t.split_once(' ')) {
        Some((_, code)) => (code, tokens(code)),
        None => (text.trim_start_matches('?'), tokens(text.trim_start_matches('?'))),
    };
    let pieces: Vec<Token> = all.iter().copied().filter(Token::counts).collect();
    match all.last() {
        Some(last) if last.kind == TokenKind::Text && !last.closed => {
            return CompletionSite::Text(called(&pieces[..pieces.len() - 1]), &last.text[1..]);
        }
        Some(last) if last.kind == TokenKind::Comment || last.kind == TokenKind::Number => {
            return CompletionSite::Nothing;
        }
        _ => {}
    }
    let word = pieces.last().filter(|t| t.kind == TokenKind::Word && t.end() == text.len());
    let (typed, before) = match word {
        Some(word) => (word.text, &pieces[..pieces.len() - 1]),
        None => (&text[text.len()..], &pieces[..]),
    };
    match before.split_last() {
        Some((point, owner)) if point.is(".") => {
            CompletionSite::Member(kind_of(owner, names).map(|(kind, _)| kind), typed)
        }
        Some((colons, owner)) if colons.is("::") => match owner.last() {
            Some(module) => CompletionSite::Module(module.text, typed),
            None => CompletionSite::Nothing,
        },
        Some((last, _)) if last.is("#{") || last.is(",") => key(before, typed).unwrap_or(CompletionSite::Name(typed)),
        _ => CompletionSite::Name(typed),
    }
}

/// The place of an option key, if the innermost bracket is a map that is an argument.
fn key<'a>(before: &[Token<'a>], typed: &'a str) -> Option<CompletionSite<'a>> {
    let map = *open(before).last().filter(|t| t.is("#{"))?;
    let at = before.iter().position(|t| t == map)?;
    let inside = &before[at + 1..];
    let given = inside.windows(2).filter(|pair| pair[1].is(":")).map(|pair| pair[0].text).collect();
    Some(CompletionSite::Option(called(&before[..at])?, given, typed))
}

/// The function whose argument list is open at the end.
pub fn called<'a>(before: &[Token<'a>]) -> Option<&'a str> {
    let bracket = *open(before).last().filter(|t| t.is("("))?;
    let at = before.iter().position(|t| t == bracket)?;
    at.checked_sub(1).map(|i| before[i]).filter(|t| t.kind == TokenKind::Word).map(|t| t.text)
}

/// The type of the expression that ends there, and where it begins: a variable, a literal, a call, a property.
fn kind_of(before: &[Token], names: &Names) -> Option<(String, usize)> {
    let (last, rest) = before.split_last()?;
    let at = rest.len();
    let literal = |kind: &str| Some((kind.to_string(), at));
    match last.kind {
        TokenKind::Text => literal("string"),
        TokenKind::Number => literal(if last.text.contains(['.', 'e']) { "number" } else { "integer" }),
        TokenKind::Close => {
            let start = super::lexer::partner(before, at)?;
            match (before[start].text, start.checked_sub(1).map(|i| before[i])) {
                ("(", Some(name)) if name.kind == TokenKind::Word => given_back(&before[..start], true, names),
                ("(", _) => kind_of(&before[start + 1..at], names).map(|(kind, _)| (kind, start)),
                ("[", None) => Some(("array".into(), start)),
                ("[", Some(owner)) if owner.kind == TokenKind::Sign || owner.kind == TokenKind::Open => {
                    Some(("array".into(), start))
                }
                ("[", Some(_)) => kind_of(&before[..start], names).filter(|(kind, _)| kind == "Tensor"),
                ("#{", _) => Some(("map".into(), start)),
                _ => None,
            }
        }
        TokenKind::Word => match at.checked_sub(1).map(|i| before[i]) {
            Some(point) if point.is(".") => given_back(before, false, names),
            _ => names.variables.get(last.text).map(|v| (v.kind.clone(), at)),
        },
        _ => None,
    }
}

/// What the function or property at the end gives, by the type before its point if it has one.
fn given_back(before: &[Token], call: bool, names: &Names) -> Option<(String, usize)> {
    let (name, rest) = before.split_last()?;
    let receiver = rest.split_last().filter(|(point, _)| point.is("."));
    let (owner, start) = match receiver {
        Some((_, owner)) => kind_of(owner, names).map(|(kind, start)| (Some(kind), start))?,
        None => (None, rest.len()),
    };
    let fits = |o: &&Overload| match (&owner, call) {
        (Some(kind), true) => o.function == name.text && o.types().next() == Some(kind),
        (Some(kind), false) => o.function == format!("get${}", name.text) && o.types().next() == Some(kind),
        (None, _) => o.function == name.text,
    };
    let found = Catalog::get().named(name.text).flat_map(|e| &e.overloads).find(fits)?;
    Some((found.gives.clone(), start)).filter(|(kind, _)| !kind.is_empty() && kind != "any")
}

fn commands(typed: &str, names: &Names) -> Vec<Candidate> {
    let found = names.commands.iter().filter(|(name, _)| name.starts_with(typed));
    found.map(|(name, about)| Candidate { text: name.to_string(), shown: format!(":{name}  {about}") }).collect()
}

fn members(text: &str, kind: Option<&str>, typed: &str, names: &Names) -> Vec<Candidate> {
    let Some(kind) = kind else { return vec![] };
    let takes =
        |o: &&Overload| o.types().next() == Some(kind) || (kind == "integer" && o.types().next() == Some("number"));
    let mut out = vec![];
    let natives = Catalog::get().entries.iter().filter(|_| kind != "map"); // a map's own keys come first
    for entry in natives.filter(|e| e.name.starts_with(typed) && is_word(&e.name)) {
        let mut fitting = entry.overloads.iter().filter(takes).filter(|o| !o.function.starts_with("set$"));
        if let Some(first) = fitting.next() {
            let more = fitting.count();
            let call = match (first.function.contains('$'), first.parameters.len()) {
                (true, _) => "",
                (false, 1) => "()",
                (false, _) => "(",
            };
            out.push(Candidate { text: format!("{}{call}", entry.name), shown: counted(method(first), more) });
        }
    }
    let owner = text[..text.len() - typed.len()].trim_end_matches('.');
    let keys = names.variables.get(owner).map_or(&[][..], |v| &v.keys);
    out.extend(keys.iter().filter(|k| k.starts_with(typed)).map(|k| plain(k)));
    let brought = standard().get(kind).into_iter().flatten().filter(|name| name.starts_with(typed));
    out.extend(brought.map(|name| Candidate { text: format!("{name}("), shown: format!("{name}(..)") }));
    out
}

/// The methods that Rhai brings, by the type of what they are called on.
fn standard() -> &'static BTreeMap<String, BTreeSet<String>> {
    static NAMES: OnceLock<BTreeMap<String, BTreeSet<String>>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let first =
            |f: &rhai::FuncMetadata| f.params_info.first().and_then(|p| p.split_once(':')).map(|(_, t)| script_type(t));
        let found = Engine::new().collect_fn_metadata(
            None,
            |f| first(f.metadata).map(|t| (t, f.metadata.name.to_string())),
            true,
        );
        let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (kind, name) in found.into_iter().filter(|(_, name)| is_word(name)) {
            out.entry(kind).or_default().insert(name);
        }
        out
    })
}

fn is_word(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// `.decode(latents: Tensor) -> Tensor`.
fn method(overload: &Overload) -> String {
    let gives = if overload.gives.is_empty() { String::new() } else { format!(" -> {}", overload.gives) };
    let parameters: Vec<String> =
        overload.parameters.iter().skip(1).map(|(name, kind)| format!("{name}: {kind}")).collect();
    match overload.function.split_once('$') {
        Some((_, property)) => format!(".{property}{gives}"),
        None => format!(".{}({}){gives}", overload.function, parameters.join(", ")),
    }
}

fn counted(shown: String, more: usize) -> String {
    if more == 0 { shown } else { format!("{shown}  (+{more})") }
}

fn plain(name: &str) -> Candidate {
    Candidate { text: name.into(), shown: name.into() }
}

fn module_functions(module: &str, typed: &str) -> Vec<Candidate> {
    let chapter = format!("stdlib/{module}");
    let found = Catalog::get().entries.iter().filter(|e| e.chapter == chapter && e.name.starts_with(typed));
    found.map(|e| Candidate { text: format!("{}(", e.name), shown: e.overloads[0].signature.clone() }).collect()
}

fn options(function: &str, given: &[&str], typed: &str) -> Vec<Candidate> {
    let fields = Catalog::get().named(function).flat_map(|e| &e.options);
    let open = fields.filter(|f| f.name.starts_with(typed) && !given.contains(&f.name));
    open.map(|f| Candidate {
        text: format!("{}: ", f.name),
        shown: format!("{}: {} = {}", f.name, f.expected, f.default),
    })
    .collect()
}

fn models(function: Option<&str>, typed: &str, names: &Names) -> Vec<Candidate> {
    match function {
        Some(taker @ ("flow" | "reward" | "lpips")) => {
            let known = if taker == "flow" { &names.flows } else { &names.models };
            known.iter().filter(|m| m.starts_with(typed)).map(|m| plain(m)).collect()
        }
        Some("help") => {
            let entries = Catalog::get().entries.iter();
            entries.filter(|e| e.name.starts_with(typed) && is_word(&e.name)).map(|e| plain(&e.name)).collect()
        }
        _ => vec![],
    }
}

fn globals(typed: &str, names: &Names) -> Vec<Candidate> {
    if typed.is_empty() {
        return vec![];
    }
    let begins = |name: &str| name.starts_with(typed);
    let catalog = Catalog::get();
    let constructor = |e: &&Entry| begins(&e.name) && is_word(&e.name) && !e.chapter.starts_with("stdlib/");
    let natives = catalog.entries.iter().filter(constructor).filter_map(|e| {
        let mut functions = e.overloads.iter().filter(|o| !o.function.contains('$'));
        let first = functions.next()?;
        let call = if first.parameters.is_empty() { "()" } else { "(" };
        Some(Candidate {
            text: format!("{}{call}", e.name),
            shown: counted(first.signature.clone(), functions.count()),
        })
    });
    let modules = catalog.headings.iter().filter_map(|h| h.name.strip_prefix("stdlib/")).filter(|m| begins(m));
    let variables = names.variables.iter().filter(|(name, _)| begins(name));
    let own = names.functions.iter().filter(|(name, _)| begins(name));
    let words = KEYWORDS.iter().chain(&VALUES).filter(|w| begins(w));
    natives
        .chain(modules.map(|m| Candidate { text: format!("{m}::"), shown: format!("{m}::") }))
        .chain(variables.map(|(name, v)| Candidate { text: name.clone(), shown: format!("{name}: {}", v.kind) }))
        .chain(own.map(|(name, ps)| Candidate { text: format!("{name}("), shown: format!("{name}{ps}") }))
        .chain(words.map(|w| plain(w)))
        .collect()
}

/// The signature of the function whose argument is being typed.
pub fn signature(text: &str) -> Option<String> {
    let all = tokens(text);
    let pieces: Vec<Token> = all.iter().copied().filter(Token::counts).collect();
    if pieces.last().is_some_and(|t| !t.closed) {
        return None;
    }
    let bracket = *open(&pieces).last().filter(|t| t.is("("))?;
    let at = pieces.iter().position(|t| t == bracket)?;
    let name = at.checked_sub(1).map(|i| pieces[i]).filter(|t| t.kind == TokenKind::Word)?;
    let overloads = || Catalog::get().named(name.text).flat_map(|e| &e.overloads).filter(|o| o.function == name.text);
    let first = overloads().max_by_key(|o| o.parameters.len())?;
    let is_method = at >= 2 && pieces[at - 2].is(".");
    Some(if is_method { method(first) } else { first.signature.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let variable = |kind: &str, keys: &[&str]| Variable {
            kind: kind.into(),
            keys: keys.iter().map(|k| k.to_string()).collect(),
        };
        let variables = [
            ("base", variable("Flow", &[])),
            ("s", variable("map", &["steps", "order"])),
            ("x", variable("Tensor", &[])),
        ];
        Names {
            variables: variables.into_iter().map(|(name, v)| (name.to_string(), v)).collect(),
            functions: [("mine".to_string(), "(a, b)".to_string())].into(),
            flows: vec!["tiny/flux2".into(), "tiny/sit".into()],
            models: vec!["tiny/hpsv2".into()],
            commands: vec![("vars", "variables")],
        }
    }

    fn texts(line: &str) -> Vec<String> {
        complete(line, &names()).1.into_iter().map(|c| c.text).collect()
    }

    #[test]
    fn methods_go_by_the_type_before_the_point() {
        assert_eq!(texts("base.deco"), ["decode("]);
        assert_eq!(texts("let y = x.sha"), ["shape"]);
        assert_eq!(texts("base.lora(#{ rank: 8 }).save_lo"), ["save_lora("]);
        assert_eq!(texts("base.decode(base.noise(1, rng(0))).resha"), ["reshape("]);
        assert!(texts("[1, 2].pus").contains(&"push(".to_string()));
        assert!(texts("unknown.sha").is_empty());
        assert_eq!(texts("s.st"), ["steps"]);
    }

    #[test]
    fn option_keys_are_those_of_the_function() {
        let keys = texts("rollout(base, x, (), #{ grid: uniform(4), ");
        assert!(keys.contains(&"solver: ".to_string()) && !keys.contains(&"grid: ".to_string()), "{keys:?}");
        assert_eq!(texts("base.lora(#{ ran"), ["rank: "]);
    }

    #[test]
    fn names_modules_models_and_commands() {
        assert!(texts("adjoint_m").contains(&"adjoint_matching(".to_string()));
        assert_eq!(
            texts("min"),
            ["min(", "mine(", "minimum("]
                .into_iter()
                .filter(|t| texts("min").contains(&t.to_string()))
                .collect::<Vec<_>>()
        );
        assert_eq!(texts("intensity::si"), ["sizes("]);
        assert_eq!(texts("flow(\"tiny/"), ["tiny/flux2", "tiny/sit"]);
        assert_eq!(texts("reward(\"tiny/"), ["tiny/hpsv2"]);
        assert_eq!(texts(":va"), ["vars"]);
        assert!(texts("?roll").contains(&"rollout(".to_string()));
        assert!(texts("1").is_empty() && texts("// roll").is_empty());
    }

    #[test]
    fn the_signature_of_the_open_call_is_known() {
        assert!(signature("rollout(base, f(1), ").unwrap().starts_with("rollout(flow: "));
        assert!(signature("base.decode(").unwrap().starts_with(".decode(latents: Tensor)"));
        assert_eq!(signature("rollout(base, \"te"), None);
    }
}
