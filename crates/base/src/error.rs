//! The one error type: what kind, what was expected and what came, and what to try.
//!
//! Messages read `<function>: <what must hold>, got <what came>`, lower case, no full stop, names in backticks.
//! The place in the script is added once, at the edge, by `cli::fault`.

use crate::context::Context;
use crate::progress::above_bar;
use crate::terminal::note;
use crate::text::in_line;
use std::fmt;

macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// The class of a mistake; scripts see it as `e.kind` in `catch (e)`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            /// In the order of their numbers.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    Shape "shape",
    Dtype "dtype",
    Device "device",
    Type "type",
    Value "value",
    Option "option",
    Name "name",
    Missing "missing",
    Numeric "numeric",
    Limit "limit",
    File "file",
    Permission "permission",
    Interrupt "interrupt",
    Internal "internal",
}

/// A place in a script that an error passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The script function or closure that was running; `None` at the top level.
    pub function: Option<String>,
    /// The script's name as given; empty for text without a file.
    pub source: String,
    /// From 1; 0 when unknown.
    pub line: usize,
    /// From 1; 0 when unknown.
    pub column: usize,
}

/// A mistake with its kind and, where one is known, a hint: one imperative sentence.
#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
    /// Where it happened when a script closure was running, innermost first.
    pub trace: Vec<Place>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, trace: Vec::new() }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the function or file in front of the message.
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// candle's errors keep their operation and shapes; its backtrace is dropped.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        use candle_core::Error as C;
        match error {
            C::WithBacktrace { inner, .. } => Error::from(*inner),
            C::WrappedContext { wrapped, context } => match wrapped.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(other) => Error::new(Kind::Internal, format!("{context}: {other}")),
            },
            e @ (C::ShapeMismatch { .. }
            | C::ShapeMismatchBinaryOp { .. }
            | C::UnexpectedShape { .. }
            | C::UnexpectedNumberOfDims { .. }
            | C::DimOutOfRange { .. }
            | C::MatMulUnexpectedStriding(_)) => Error::new(Kind::Shape, e.to_string()),
            e @ (C::DTypeMismatchBinaryOp { .. } | C::UnsupportedDTypeForOp(..) | C::UnexpectedDType { .. }) => {
                Error::new(Kind::Dtype, e.to_string())
            }
            e @ (C::DeviceMismatchBinaryOp { .. } | C::NotCompiledWithCudaSupport) => {
                Error::new(Kind::Device, e.to_string())
            }
            C::Cuda(e) => crate::card::error(e.to_string()),
            e => Error::new(Kind::Internal, e.to_string()),
        }
    }
}

/// Lets our errors leave a candle custom op whole.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        candle_core::Error::WrappedContext { wrapped: Box::new(error), context: String::new() }
    }
}

/// Says `warning: <message>` on standard error, above a progress bar, the first time only for each `key` in a host.
pub fn warn_once(key: &str, message: &str) {
    if Context::current().first(key) {
        let rank = Context::current().group().prefix();
        above_bar(|| note(&format!("{rank}warning: {}\n", in_line(message))));
    }
}

/// Bytes of a name that is compared with others at most.
const LONGEST: usize = 64;

/// The candidate most like `name`, if one is close enough to be meant: "did you mean `..`". Another case alone is no difference.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| match candidate.eq_ignore_ascii_case(name) {
        true => 1.0,
        false => strsim::jaro_winkler(name, candidate),
    };
    candidates
        .into_iter()
        .filter(|candidate| name.len().max(candidate.len()) <= LONGEST)
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, candidate)| *likeness >= 1.0 || *likeness > 0.8 && is_slip(name, candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Whether a few letters, or words at the end, are all that a name has wrong: one in three letters, so that names that only begin alike
/// are not taken for each other.
fn is_slip(name: &str, candidate: &str) -> bool {
    let short = name.len() > 2 && candidate.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
    short || strsim::osa_distance(name, candidate) <= name.chars().count().max(3) / 3
}

/// Returns early with an [`Error`]: `bail!(Shape, "linear: ...")`, optionally `; hint: "..."`.
#[macro_export]
macro_rules! bail {
    ($kind:ident, $($format:expr),+; hint: $($hint:expr),+) => {
        return Err($crate::error::Error::new($crate::error::Kind::$kind, format!($($format),+)).hint(format!($($hint),+)))
    };
    ($kind:ident, $($format:expr),+ $(,)?) => {
        return Err($crate::error::Error::new($crate::error::Kind::$kind, format!($($format),+)))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_another_case_is_the_nearest() {
        assert_eq!(nearest("Batch", ["watch", "batch"]), Some("batch"));
        assert_eq!((nearest("stepz", ["steps", "rate"]), nearest("x", ["steps"])), (Some("steps"), None));
    }
}
