//! Errors across the border: ours can be caught by scripts, Rhai's become ours with every place they passed.

use super::Session;
use super::catalog::script_type;
use super::foreign;
use super::source::own_name;
use super::suggest;
use amscript_base::error::{Error, Kind, Place};
use rhai::{Dynamic, EvalAltResult, Map, Position};

/// What a fallible native returns; the definition writer knows this spelling.
pub type RhaiResultOf<T> = Result<T, Box<EvalAltResult>>;

/// Rhai's error as ours; `source` names the script that was running at the outermost level.
pub fn from_script(error: EvalAltResult, source: &str, session: &Session) -> Error {
    let mut outer = vec![];
    let mut error = unwind(error, source.to_string(), None, &mut outer, session);
    error.trace.extend(outer.into_iter().rev());
    error
}

/// Walks to the innermost error, noting the place of each call on the way.
fn unwind(
    error: EvalAltResult,
    source: String,
    function: Option<String>,
    outer: &mut Vec<Place>,
    session: &Session,
) -> Error {
    let place = |position: Position| place(position, function.clone(), &source, session);
    match error {
        EvalAltResult::ErrorInFunctionCall(name, callee, inner, position) => {
            outer.push(place(position));
            let source = if callee.is_empty() { source } else { callee };
            let name = if name.starts_with("anon$") { "closure".into() } else { format!("`{}`", own_name(&name)) };
            unwind(*inner, source, Some(name), outer, session)
        }
        EvalAltResult::ErrorInModule(name, inner, position) => {
            outer.push(place(position));
            unwind(*inner, name, None, outer, session)
        }
        other => {
            let position = other.position();
            let (text, place) = (session.source(&source).unwrap_or_default(), place(position));
            let mut error = plain(other, &text, &place, session);
            error.trace.push(place);
            error
        }
    }
}

/// A place in what Rhai read as one in the script.
pub(super) fn place(position: Position, function: Option<String>, source: &str, session: &Session) -> Place {
    let (line, column) = (position.line().unwrap_or(0), position.position().unwrap_or(0));
    Place { function, source: source.into(), line, column: session.column(source, line, column) }
}

/// An error without its place, in our form; `text` is the script it happened in.
fn plain(error: EvalAltResult, text: &str, place: &Place, session: &Session) -> Error {
    use EvalAltResult as E;
    match error {
        E::ErrorRuntime(value, _) | E::ErrorTerminated(value, _) => thrown(value),
        E::ErrorFunctionNotFound(call, _) => suggest::function(&call, session),
        E::ErrorVariableNotFound(name, _) => suggest::variable(&name, text, place),
        E::ErrorPropertyNotFound(name, _) => suggest::key(&name, text),
        E::ErrorParsing(rhai::ParseErrorType::VariableUndefined(name), _) => suggest::variable(&name, text, place),
        E::ErrorParsing(..) if matches!(foreign::around(text, place.line, place.column), Some((_, "curry", _))) => {
            Error::new(Kind::Name, "`curry` is no function of scripts")
                .hint("a closure captures what it names: `|x| f(a, x)`")
        }
        error @ E::ErrorParsing(..) => {
            let hint = foreign::syntax(text, place.line, place.column);
            suggest::hinted(Error::new(Kind::Value, without_position(error)), hint)
        }
        E::ErrorDotExpr(message, _) => suggest::property(&message),
        E::ErrorIndexingType(access, _) => suggest::indexing(&access),
        E::ErrorMismatchDataType(wanted, came, _) | E::ErrorMismatchOutputType(wanted, came, _) => {
            let [wanted, came] = [wanted, came].map(|name| script_type(&name));
            suggest::mismatch(&wanted, &came)
        }
        E::ErrorDataRace(place, _) => in_use(place.split('\'').nth(1).unwrap_or("f")),
        other => Error::new(kind(&other), without_position(other)),
    }
}

/// `x.f(|| x)`: Rhai holds `x` while its method runs, so the closure cannot look at it.
fn in_use(function: &str) -> Error {
    Error::new(Kind::Value, format!("{function}: a closure cannot use the value whose method runs it"))
        .hint(format!("write `{function}(x, || ..)` instead of `x.{function}(|| ..)`"))
}

/// What `catch` gives a script: a map that Rhai made of an error of its own becomes an error as natives throw it.
pub(super) fn caught(value: Dynamic, session: &Session) -> Dynamic {
    let told = |key: &str| value.read_lock::<Map>()?.get(key)?.clone().into_string().ok();
    let (Some(name), Some(message)) = (told("error"), told("message")) else { return value };
    if !name.starts_with("Error") {
        return value;
    }
    // of an error in a function: "Function not found: f (i64) @ 'a.rhai' (line 2, position 19)\nin call to function 'g'"
    let first = message.lines().next().unwrap_or_default();
    let (text, at) = first.rsplit_once(" @ '").unwrap_or((first, ""));
    let source = at.split_once("' (line ").map_or_else(|| told("source").unwrap_or_default(), |(name, _)| name.into());
    let script = session.source(&source).unwrap_or_default();
    Dynamic::from(match text.split_once(": ") {
        Some(("Function not found", call)) => suggest::function(call, session),
        Some(("Variable not found", name)) => {
            suggest::variable(name, &script, &place(Position::NONE, None, "", session))
        }
        Some(("Property not found", name)) => suggest::key(name, &script),
        Some(("Indexer unavailable", access)) => suggest::indexing(access),
        Some(("Module not found", _)) => Error::new(Kind::Missing, uncapitalised(text)),
        _ if text.starts_with("Unknown property") => suggest::property(text),
        _ if text.ends_with("exceeds maximum limit") => Error::new(Kind::Limit, uncapitalised(text)),
        _ => Error::new(Kind::Value, uncapitalised(text)),
    })
}

/// What `throw` was given: one of our errors on its way on, or any value.
fn thrown(value: Dynamic) -> Error {
    value.clone().try_cast::<Error>().unwrap_or_else(|| Error::new(Kind::Value, value.to_string()))
}

fn kind(error: &EvalAltResult) -> Kind {
    use EvalAltResult as E;
    match error {
        E::ErrorModuleNotFound(..) => Kind::Missing,
        E::ErrorTooManyOperations(_) | E::ErrorStackOverflow(_) | E::ErrorDataTooLarge(..) => Kind::Limit,
        _ => Kind::Value,
    }
}

/// Rhai's own wording in our form: lower case, no place.
fn without_position(mut error: EvalAltResult) -> String {
    error.clear_position();
    uncapitalised(&error.to_string())
}

fn uncapitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}
