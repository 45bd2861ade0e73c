//! Script values as Rust values: single ones by [`FromScript`], object maps of options by [`crate::options!`].

use super::foreign;
use super::rename::{self, RENAMED};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, nearest};
use amscript_nn::MOST_LAYERS;
use amscript_tensor::{DType, Tensor};
use rhai::{Array, Blob, Dynamic, FnPtr, ImmutableString, Map};

/// A Rust type that a script value can become.
pub trait FromScript: Sized {
    /// What is expected, for errors and the manual: "a number", "a time grid such as `uniform(20)`".
    fn expected() -> String;
    /// `None` when the value is of another kind.
    fn from_script(value: Dynamic) -> Option<Self>;
    /// The value as a script would show it, for the manual.
    fn show(&self) -> String;
}

/// Makes types that scripts hold by value usable as options: `script_value!(Grid, "a time grid such as `uniform(20)`")`.
/// The type needs `Clone`, `Send`, `Sync`, and `Display` unless a third argument `|grid| text` shows it.
#[macro_export]
macro_rules! script_value {
    ($type:ty, $expected:expr) => {
        $crate::script_value!($type, $expected, |value| value.to_string());
    };
    ($type:ty, $expected:expr, |$value:ident| $shown:expr) => {
        impl $crate::script::option::FromScript for $type {
            fn expected() -> String {
                $expected.into()
            }
            fn from_script(value: rhai::Dynamic) -> Option<Self> {
                value.flatten().try_cast()
            }
            fn show(&self) -> String {
                let $value = self;
                $shown
            }
        }
    };
}

script_value!(bool, "true or false");
script_value!(i64, "an integer");
script_value!(ImmutableString, "text");

impl FromScript for f64 {
    fn expected() -> String {
        "a number".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        let value = value.flatten();
        value.as_float().ok().or_else(|| value.as_int().ok().map(|i| i as f64))
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl FromScript for usize {
    fn expected() -> String {
        "a count (an integer, 0 or more)".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().as_int().ok()?.try_into().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl FromScript for u64 {
    fn expected() -> String {
        usize::expected()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        usize::from_script(value).map(|n| n as u64)
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl FromScript for String {
    fn expected() -> String {
        "text".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().into_string().ok()
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl FromScript for Tensor {
    fn expected() -> String {
        "a tensor".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().try_cast()
    }
    fn show(&self) -> String {
        amscript_tensor::show::show(self)
    }
}

impl FromScript for DType {
    fn expected() -> String {
        "a kind of number such as `bf16()`".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().try_cast()
    }
    fn show(&self) -> String {
        format!("{}()", self.as_str())
    }
}

impl<T: FromScript, const N: usize> FromScript for [T; N] {
    fn expected() -> String {
        format!("an array of {N}, each {}", T::expected())
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        Vec::from_script(value)?.try_into().ok()
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}

impl FromScript for FnPtr {
    fn expected() -> String {
        "a closure such as `|x| x`".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().try_cast()
    }
    fn show(&self) -> String {
        "|..| ..".into()
    }
}

impl FromScript for Map {
    fn expected() -> String {
        "an object map such as `#{}`".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().try_cast()
    }
    fn show(&self) -> String {
        show(&Dynamic::from(self.clone()))
    }
}

impl FromScript for Dynamic {
    fn expected() -> String {
        "a value".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        Some(value.flatten())
    }
    fn show(&self) -> String {
        show(self)
    }
}

impl<T: FromScript> FromScript for Option<T> {
    fn expected() -> String {
        T::expected()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        if value.is_unit() { Some(None) } else { T::from_script(value).map(Some) }
    }
    fn show(&self) -> String {
        self.as_ref().map_or("()".into(), T::show)
    }
}

impl<T: FromScript> FromScript for Vec<T> {
    fn expected() -> String {
        format!("an array, each item {}", T::expected())
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        value.flatten().into_array().ok()?.into_iter().map(T::from_script).collect()
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}

/// A script value as `T`, or `<place>: expected a number, got "many"`.
pub fn convert<T: FromScript>(value: Dynamic, place: &str) -> Result<T> {
    let shown = show(&value);
    match T::from_script(value) {
        Some(value) => Ok(value),
        None => bail!(Type, "{place}: expected {}, got {shown}", T::expected()),
    }
}

/// A script array as a vector of `T`; the error names the first item that does not fit.
pub fn list<T: FromScript>(values: Array, place: &str) -> Result<Vec<T>> {
    values.into_iter().enumerate().map(|(i, v)| convert(v, &format!("{place}: item {i}"))).collect()
}

/// A value as an error or the manual shows it: short, and naming what it is.
pub fn show(value: &Dynamic) -> String {
    let value = value.flatten_clone();
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return format!("{:?}", &**text);
    }
    if let Some(tensor) = value.read_lock::<Tensor>() {
        return amscript_tensor::show::brief(&tensor);
    }
    if let Some(rate) = value.read_lock::<amscript_align::optim::Schedule>() {
        return rate.to_string();
    }
    if let Some(items) = value.read_lock::<Array>() {
        let shown: Vec<_> = items.iter().take(8).map(show).collect();
        return format!("[{}{}]", shown.join(", "), if items.len() > 8 { ", .." } else { "" });
    }
    if value.is_unit() {
        return "()".into();
    }
    if value.is::<FnPtr>() {
        return "a closure".into();
    }
    if value.is_map() || value.is::<Blob>() || value.is_int() || value.is_float() || value.is_bool() || value.is_char()
    {
        return value.to_string();
    }
    format!("a {}", super::short_type(value.type_name()))
}

/// A value in a default's place keeps its kind; a whole number may stand for a number, and anything for `()`.
pub fn alike(place: &str, default: &Dynamic, value: &Dynamic) -> Result<()> {
    let number = |v: &Dynamic| v.is_int() || v.is_float();
    let fits = default.is_unit()
        || default.type_id() == value.type_id()
        || (default.is_float() && number(value))
        || (default.is_int() && value.as_float().is_ok_and(|f| f.fract() == 0.0));
    if !fits {
        bail!(Option, "{place} must be a value such as {}, got {}", show(default), show(value));
    }
    Ok(())
}

/// `<place>: unknown option `step`; did you mean `steps`?`, with all known names as the hint.
pub fn unknown<'a>(place: &str, what: &str, key: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.collect();
    if let Some(new) = rename::option(RENAMED, place, key, known.iter().copied()) {
        return rename::moved(&format!("{place}: the {what} "), key, new);
    }
    let near = foreign::option(key, &known).or_else(|| nearest(key, known.iter().copied()));
    let suggestion = near.map_or(String::new(), |n| format!("; did you mean `{n}`?"));
    let hint =
        if known.is_empty() { format!("there is no {what} here") } else { format!("known: {}", known.join(", ")) };
    Error::new(Kind::Option, format!("{place}: unknown {what} `{key}`{suggestion}")).hint(hint)
}

/// One option of a function, for the manual.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub expected: String,
    pub default: String,
    pub meaning: String,
}

/// The object map that a script gives to a constructor of the program's own; what is not taken out of it is refused.
pub struct Given<'a> {
    function: &'a str,
    map: Map,
    known: Vec<&'static str>,
}

impl<'a> Given<'a> {
    pub fn new(function: &'a str, map: Map) -> Self {
        Self { function, map, known: vec![] }
    }

    /// One option, or its default: `given.take("group", || 8_usize)?`.
    pub fn take<T: FromScript>(&mut self, key: &'static str, default: impl FnOnce() -> T) -> Result<T> {
        self.known.push(key);
        take(&mut self.map, self.function, key, default)
    }

    /// Refuses what is left.
    pub fn finish(self) -> Result<()> {
        match self.map.keys().next() {
            Some(key) => Err(unknown(self.function, "option", key, self.known.into_iter())),
            None => Ok(()),
        }
    }
}

/// A number of layers as it is, if a network may have so many.
pub fn layers(function: &str, key: &str, count: usize) -> Result<usize> {
    if count > MOST_LAYERS {
        bail!(Option, "{function}: option `{key}`: expected at most {MOST_LAYERS} layers, got {count}");
    }
    Ok(count)
}

/// Takes one option out of the map, or its default.
pub fn take<T: FromScript>(map: &mut Map, function: &str, key: &str, default: impl FnOnce() -> T) -> Result<T> {
    match map.remove(key) {
        Some(value) => convert(value, &format!("{function}: option `{key}`")),
        None => Ok(default()),
    }
}

/// A struct of options with its defaults, its parser from an object map, and its table for the manual.
///
/// `..loss: LossOptions` takes the options of another struct among its own: a script writes them in the same object map, and each has its
/// one line of documentation there.
///
/// ```ignore
/// options! {
///     /// How to draw a trajectory.
///     pub struct RolloutOptions {
///         /// The times.
///         grid: Grid = Grid::uniform(20),
///         /// Guidance scale; 1 means none.
///         guidance: f64 = 1.0,
///         ..loss: LossOptions,
///     }
/// }
/// let options = RolloutOptions::parse("rollout", map)?;
/// ```
#[macro_export]
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[doc = $doc:literal])* $field:ident : $type:ty = $default:expr, )*
            $( ..$part:ident : $others:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone)]
        $vis struct $name {
            $( $(#[doc = $doc])* pub $field: $type, )*
            $( pub $part: $others, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* $( $part: <$others>::default(), )* }
            }
        }

        impl $name {
            /// Reads an object map; an unknown or ill-typed key is an error that names it.
            pub fn parse(function: &str, mut map: rhai::Map) -> $crate::error::Result<Self> {
                let parsed = Self::take(function, &mut map)?;
                match map.keys().next() {
                    Some(key) => {
                        let fields = Self::fields();
                        Err($crate::script::option::unknown(function, "option", key, fields.iter().map(|f| f.name)))
                    }
                    None => Ok(parsed),
                }
            }

            /// Takes these options out of an object map.
            pub fn take(function: &str, map: &mut rhai::Map) -> $crate::error::Result<Self> {
                let _ = &map; // of use only where there are options
                Ok(Self {
                    $( $field: $crate::script::option::take::<$type>(map, function, stringify!($field), || $default)?, )*
                    $( $part: <$others>::take(function, map)?, )*
                })
            }

            /// Names and values of the options that are not their defaults.
            #[allow(dead_code)] // most functions do not show their options
            pub fn changed(&self) -> Vec<(&'static str, String)> {
                use $crate::script::option::FromScript;
                let defaults = Self::default();
                let all = [$( (stringify!($field), self.$field.show(), defaults.$field.show()) ),*];
                let own = all.into_iter().filter(|(_, value, usual)| value != usual).map(|(name, value, _)| (name, value));
                #[allow(unused_mut)]
                let mut changed: Vec<(&'static str, String)> = own.collect();
                $( changed.extend(self.$part.changed()); )*
                changed
            }

            /// The options as the manual shows them.
            pub fn fields() -> Vec<$crate::script::option::Field> {
                #[allow(unused_imports)]
                use $crate::script::option::FromScript;
                let defaults = Self::default();
                let own = vec![$( $crate::script::option::Field {
                    name: stringify!($field),
                    expected: <$type as FromScript>::expected(),
                    default: defaults.$field.show(),
                    meaning: [$( $doc ),*].map(str::trim).join(" "),
                } ),*];
                [own, $( <$others>::fields() ),*].concat()
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    options! {
        /// How to draw.
        struct DrawOptions {
            /// Number of steps.
            steps: usize = 4,
            /// Weight of the
            /// guide.
            guidance: f64 = 1.0,
            /// Where to stop.
            until: Option<f64> = None,
        }
    }

    options! {
        /// How to draw in colour.
        struct PaintOptions {
            /// The colour.
            colour: String = "red".into(),
            ..draw: DrawOptions,
        }
    }

    fn parse(pairs: &[(&str, Dynamic)]) -> Result<DrawOptions> {
        DrawOptions::parse("draw", pairs.iter().map(|(k, v)| ((*k).into(), v.clone())).collect())
    }

    #[test]
    fn options_take_integers_for_numbers_and_defaults() -> Result<()> {
        let o = parse(&[("guidance", 2_i64.into())])?;
        assert_eq!((o.steps, o.guidance, o.until), (4, 2.0, None));
        assert_eq!(parse(&[("until", 0.5.into())])?.until, Some(0.5));
        Ok(())
    }

    #[test]
    fn unknown_and_ill_typed_options_are_named() {
        let unknown = parse(&[("step", 3_i64.into())]).err().unwrap();
        assert_eq!(unknown.message, "draw: unknown option `step`; did you mean `steps`?");
        assert_eq!(unknown.hint.unwrap(), "known: steps, guidance, until");
        let wrong = parse(&[("steps", "many".into())]).err().unwrap();
        assert_eq!(wrong.message, "draw: option `steps`: expected a count (an integer, 0 or more), got \"many\"");
        assert!(parse(&[("steps", (-1_i64).into())]).is_err());
    }

    #[test]
    fn options_of_another_struct_stand_among_the_own() -> Result<()> {
        let map = |key: &str| -> Map { [(key.into(), Dynamic::from(7_i64))].into() };
        let o = PaintOptions::parse("paint", map("steps"))?;
        assert_eq!((o.colour.as_str(), o.draw.steps, o.draw.guidance), ("red", 7, 1.0));
        let unknown = PaintOptions::parse("paint", map("stops")).err().unwrap();
        assert_eq!(unknown.message, "paint: unknown option `stops`; did you mean `steps`?");
        assert_eq!(unknown.hint.unwrap(), "known: colour, steps, guidance, until");
        assert_eq!(PaintOptions::fields()[1..], DrawOptions::fields());
        Ok(())
    }

    #[test]
    fn fields_carry_defaults_and_meaning() {
        let fields = DrawOptions::fields();
        assert_eq!((fields[1].default.as_str(), fields[1].meaning.as_str()), ("1.0", "Weight of the guide."));
        assert_eq!(fields[2].default, "()");
    }
}
