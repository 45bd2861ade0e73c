//! Chapter `language`: help, checks, timing, and the arithmetic of plain numbers.

use super::*;
use amscript_base::bail;
use amscript_tensor::{Tensor, array};
use rhai::{FuncRegistration, Position};
use std::time::{Duration, Instant};

/// Help, checks and timing; beside these stands the whole of Rhai: `let`, `if`, `for`, `fn`, closures, arrays, object maps, `print`.
#[export_module(manifest)]
pub mod language {
    use super::help as manual;
    use super::*;

    /// The chapters of the manual.
    ///
    /// ```rhai
    /// help()                        //=> "help(\"name\") explains ..
    /// help("assert_close")          //=> "assert_close(a: number, b: number, tolerance: number)..
    /// help("assert_clos").contains("did you mean `assert_close`?")   //=> true
    /// help([1, 2]).contains("functions of it")                      //=> true
    /// ```
    #[rhai_fn(name = "help")]
    pub fn help_contents() -> String {
        manual::contents()
    }

    /// The manual page of a function or chapter, or the functions that take a value.
    #[rhai_fn(name = "help")]
    pub fn help_about(context: NativeCallContext, x: Dynamic) -> String {
        match x.read_lock::<ImmutableString>() {
            Some(name) => manual::help(&name),
            None => manual::methods(&catalog::script_type(context.engine().map_type_name(x.type_name()))),
        }
    }

    /// The functions whose name, summary or details contain a word.
    ///
    /// ```rhai
    /// apropos("tolerance").contains("assert_close")   //=> true
    /// apropos("zzz")                                  //=> "nothing about \"zzz\""
    /// ```
    pub fn apropos(word: &str) -> String {
        manual::apropos(word)
    }

    /// Seconds that a closure takes.
    ///
    /// ```rhai
    /// time(|| 1 + 1) < 1.0   //=> true
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn time(context: NativeCallContext, f: FnPtr) -> RhaiResultOf<f64> {
        let start = Instant::now();
        let _: Dynamic = f.call_within_context(&context, ())?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Waits so many seconds.
    ///
    /// ```rhai
    /// time(|| sleep(0.01)) >= 0.01   //=> true
    /// sleep(-1)                      //=> error: sleep: expected seconds of 0 or more, got -1.0
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn sleep(context: NativeCallContext, seconds: f64) -> RhaiResultOf<()> {
        let Ok(wanted) = Duration::try_from_secs_f64(seconds) else {
            let message = format!("sleep: expected seconds of 0 or more, got {}", show_number(seconds));
            return Err(Error::new(Kind::Value, message).into());
        };
        let (session, start) = (Session::of(&context), Instant::now());
        while let Some(left) = wanted.checked_sub(start.elapsed()) {
            session.check()?;
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }

    pub type Error = amscript_base::error::Error;

    /// What kind of error was caught: `value`, `shape`, `type`, `missing`, `limit` and so on. Thrown again it goes on as it came.
    ///
    /// ```rhai
    /// let found = "";
    /// try { zeros([2]) + zeros([3]) } catch (e) { found = `${e.kind}: ${e}`; }
    /// found   //=> "shape: `+`: expected shapes that broadcast, got [2] and [3]"
    /// ```
    #[rhai_fn(get = "kind", pure)]
    pub fn error_kind(error: &mut Error) -> String {
        error.kind.name().into()
    }

    /// What a caught error says, which printing it shows too.
    ///
    /// ```rhai
    /// let found = "";
    /// try { sleep(-1) } catch (e) { found = e.message; }
    /// found   //=> "sleep: expected seconds of 0 or more, got -1.0"
    /// ```
    #[rhai_fn(get = "message", pure)]
    pub fn error_message(error: &mut Error) -> String {
        error.message.clone()
    }

    /// What a caught error advises, or `()`.
    ///
    /// ```rhai
    /// let found = "";
    /// try { reward("nowhere") } catch (e) { found = e.hint; }
    /// found.contains("tiny/hpsv2")   //=> true
    /// ```
    #[rhai_fn(get = "hint", pure)]
    pub fn error_hint(error: &mut Error) -> Dynamic {
        error.hint.clone().map_or(Dynamic::UNIT, Dynamic::from)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_error(error: &mut Error) -> String {
        error.message.clone()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_closure(f: &mut FnPtr) -> String {
        if f.is_anonymous() { "closure".into() } else { format!("closure {}", source::own_name(f.fn_name())) }
    }

    /// The options of a script's own function: its defaults with the given ones in their place.
    ///
    /// An unknown name, or a value of another kind than its default, is an error; where the default is `()` any value goes.
    ///
    /// ```rhai
    /// fn sample(given) { options("sample", #{ steps: 20, seed: () }, given) }
    /// sample(#{ seed: 3 })      //=> #{"seed": 3, "steps": 20}
    /// sample(#{ step: 3 })      //=> error: sample: unknown option `step`; did you mean `steps`?
    /// sample(#{ steps: "a" })   //=> error: sample: option `steps` must be a value such as 20, got "a"
    /// ```
    #[rhai_fn(return_raw)]
    pub fn options(function: &str, defaults: Map, given: Map) -> RhaiResultOf<Map> {
        for (key, value) in &given {
            match defaults.get(key) {
                Some(default) => option::alike(&format!("{function}: option `{key}`"), default, value)?,
                None => {
                    return Err(option::unknown(function, "option", key, defaults.keys().map(|k| k.as_str())).into());
                }
            }
        }
        let mut chosen = defaults;
        chosen.extend(given);
        Ok(chosen)
    }

    /// The integer part of a quotient of integers, so that `a == div(a, b) * b + a % b`; `a / b` keeps the fraction.
    ///
    /// ```rhai
    /// [div(7, 2), div(-7, 2), 7 / 2]   //=> [3, -3, 3.5]
    /// div(7, 0)                        //=> error: div: the divisor must not be 0, got 7 and 0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn div(a: i64, b: i64) -> RhaiResultOf<i64> {
        let wrong = if b == 0 { "the divisor must not be 0" } else { "integer overflow" };
        let quotient = a.checked_div(b);
        Ok(quotient.ok_or_else(|| Error::new(Kind::Value, format!("div: {wrong}, got {a} and {b}")))?)
    }

    /// The number above all others; `-infinity()` is below all others.
    ///
    /// ```rhai
    /// infinity() > 1e300                                   //=> true
    /// [3, 5].reduce(|most, x| max(most, x), -infinity())   //=> 5.0
    /// ```
    pub fn infinity() -> f64 {
        f64::INFINITY
    }

    /// A number as text: six significant digits.
    ///
    /// ```rhai
    /// `${2.0 / 3.0}`   //=> "0.666667"
    /// [1.0, 1e-7]      //=> [1.0, 1e-7]
    /// ```
    #[rhai_fn(name = "to_string", name = "to_debug")]
    pub fn show_number(x: f64) -> String {
        amscript_tensor::show::number(x)
    }

    /// Errors unless two numbers, or two tensors of one shape, differ by at most `tolerance`.
    ///
    /// ```rhai
    /// assert_close(tensor([1, 2]), tensor([1, 2.01]), 0.1)   //=> ()
    /// assert_close(tensor([1, 2]), tensor([1, 2.5]), 0.1)    //=> error: differ by 0.5
    /// assert_close(zeros([2]), zeros([3]), 0.1)              //=> error: expected tensors of one shape, got [2] and [3]
    /// assert_close(0.1 + 0.2, 0.3, 1e-12)   //=> ()
    /// assert_close(1.0, 1.5, 0.1)           //=> error: differ by 0.5
    /// ```
    #[rhai_fn(return_raw)]
    pub fn assert_close(a: f64, b: f64, tolerance: f64) -> RhaiResultOf<()> {
        Ok(close((a - b).abs(), tolerance)?)
    }

    #[rhai_fn(name = "assert_close", return_raw)]
    pub fn assert_tensors_close(a: Tensor, b: Tensor, tolerance: f64) -> RhaiResultOf<()> {
        Ok(close(array::distance(&a, &b).map_err(|e| e.within("assert_close"))?, tolerance)?)
    }
}

/// A difference that is not a number is never small.
fn close(difference: f64, tolerance: f64) -> Result<()> {
    if difference <= tolerance {
        return Ok(());
    }
    let shown = amscript_tensor::show::number;
    bail!(Value, "assert_close: may differ by {}, differ by {}", shown(tolerance), shown(difference))
}

/// Division and powers of integers as people expect them in a recipe: `1 / 4` is 0.25 and `2 ** -1` is 0.5, while `8 / 4`
/// stays the integer 2.
pub(super) fn arithmetic(module: &mut Module) {
    FuncRegistration::new("/").set_into_module(module, divide);
    FuncRegistration::new("**").set_into_module(module, power);
    assign(module, "/=", divide);
    assign(module, "**=", power);
    for (symbol, holds) in COMPARISONS {
        FuncRegistration::new(symbol).set_into_module(module, move |a: f64, b: f64| holds(difference(a, b)));
        FuncRegistration::new(symbol).set_into_module(module, move |a: i64, b: f64| holds(difference(a as f64, b)));
        FuncRegistration::new(symbol).set_into_module(module, move |a: f64, b: i64| holds(difference(a, b as f64)));
    }
}

/// Bytes that a text of a script may have.
pub const MOST_TEXT: usize = 16 << 20;

/// Functions of texts that Rhai bounds by what they have made, here by what they would make.
pub(super) fn texts(module: &mut Module) {
    let replace = || FuncRegistration::new("replace").with_purity(false);
    replace().set_into_module(module, |text: &mut ImmutableString, find: &str, with: &str| -> RhaiResultOf<()> {
        Ok(replaced(text, find, with)?)
    });
    replace().set_into_module(module, |text: &mut ImmutableString, find: char, with: &str| -> RhaiResultOf<()> {
        Ok(replaced(text, find.encode_utf8(&mut [0; 4]), with)?)
    });
    for name in ["split", "split_rev"] {
        type Parts = RhaiResultOf<Array>;
        let split = || FuncRegistration::new(name);
        let by =
            move |text: &ImmutableString, at: char, most: i64| parts(name, text, at.encode_utf8(&mut [0; 4]), most);
        split().set_into_module(module, move |text: &mut ImmutableString, at: &str| -> Parts {
            Ok(parts(name, text, at, i64::MAX)?)
        });
        split().set_into_module(module, move |text: &mut ImmutableString, at: &str, most: i64| -> Parts {
            Ok(parts(name, text, at, most)?)
        });
        split().set_into_module(module, move |text: &mut ImmutableString, at: char| -> Parts {
            Ok(by(text, at, i64::MAX)?)
        });
        split().set_into_module(module, move |text: &mut ImmutableString, at: char, most: i64| -> Parts {
            Ok(by(text, at, most)?)
        });
    }
    let pad = || FuncRegistration::new("pad").with_purity(false);
    pad().set_into_module(module, |text: &mut ImmutableString, size: i64, with: &str| -> RhaiResultOf<()> {
        Ok(padded(text, size, with)?)
    });
    pad().set_into_module(module, |text: &mut ImmutableString, size: i64, with: char| -> RhaiResultOf<()> {
        Ok(padded(text, size, with.encode_utf8(&mut [0; 4]))?)
    });
    let new = |name| FuncRegistration::new(name).with_purity(true);
    new("split").set_into_module(module, |text: &mut ImmutableString| -> RhaiResultOf<Array> {
        few("split", text.split_whitespace().count())?;
        Ok(if text.is_empty() { vec![text.clone().into()] } else { text.split_whitespace().map(Into::into).collect() })
    });
    new("to_chars").set_into_module(module, |text: &mut ImmutableString| -> RhaiResultOf<Array> {
        few("to_chars", text.chars().count())?;
        Ok(text.chars().map(Into::into).collect())
    });
}

/// Adds `with` to a text until it has so many characters; the last one is cut.
fn padded(text: &mut ImmutableString, size: i64, with: &str) -> Result<()> {
    let (has, size) = (text.chars().count(), usize::try_from(size).unwrap_or(0));
    let missing = size.saturating_sub(has);
    match missing {
        0 => return Ok(()),
        _ if with.is_empty() => bail!(Value, "pad: expected something to add, got an empty text"),
        _ if size > MOST_TEXT => bail!(Limit, "pad: expected at most {MOST_TEXT} characters, got {size}"),
        _ => {}
    }
    let added: String = with.chars().cycle().take(missing).collect();
    if text.len() + added.len() > MOST_TEXT {
        bail!(Limit, "pad: expected a text of at most {MOST_TEXT} bytes, got {}", text.len() + added.len());
    }
    *text += added.as_str();
    Ok(())
}

/// Refuses more parts than an array may have.
fn few(name: &str, count: usize) -> Result<()> {
    if count > super::tensor::MOST_ITEMS {
        bail!(Limit, "{name}: expected at most {} parts, got {count}", super::tensor::MOST_ITEMS);
    }
    Ok(())
}

fn replaced(text: &mut ImmutableString, find: &str, with: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let found = text.matches(find).count();
    let size = (text.len() - found * find.len()).saturating_add(found.saturating_mul(with.len()));
    if size > MOST_TEXT {
        bail!(Limit, "replace: expected a text of at most {MOST_TEXT} bytes, got {size}");
    }
    *text = text.replace(find, with).into();
    Ok(())
}

fn parts(name: &str, text: &ImmutableString, at: &str, most: i64) -> Result<Array> {
    let found = if text.is_empty() { 1 } else { text.matches(at).count() + 1 };
    let count = found.min(usize::try_from(most).unwrap_or(0).max(1));
    few(name, count)?;
    Ok(match (count, name) {
        (1, _) => vec![text.clone().into()],
        (_, "split") => text.splitn(count, at).map(Into::into).collect(),
        _ => text.rsplitn(count, at).map(Into::into).collect(),
    })
}

/// Whether a comparison holds of a difference.
type Holds = fn(f64) -> bool;

/// What each comparison says of a difference.
const COMPARISONS: [(&str, Holds); 6] = [
    ("==", |d| d == 0.0),
    ("!=", |d| d != 0.0),
    ("<", |d| d < 0.0),
    ("<=", |d| d <= 0.0),
    (">", |d| d > 0.0),
    (">=", |d| d >= 0.0),
];

/// The relative difference of two numbers, 0 within rounding, as Rhai compares them. Rhai itself finds nothing to hold of an infinite
/// number, not even that it equals itself.
fn difference(a: f64, b: f64) -> f64 {
    if !(a.is_finite() && b.is_finite()) {
        return a.partial_cmp(&b).map_or(f64::NAN, |order| f64::from(order as i8));
    }
    let difference = (a - b) / if a * b == 0.0 { 1.0 } else { a.abs().max(b.abs()) };
    if difference.abs() <= f64::EPSILON { 0.0 } else { difference }
}

/// An assigning operator that may change the variable from integer to float.
fn assign(module: &mut Module, name: &str, operator: fn(i64, i64) -> RhaiResultOf<Dynamic>) {
    let func = RhaiFunc::Method {
        func: Arc::new(move |_: Option<NativeCallContext>, args: &mut [&mut Dynamic]| {
            *args[0] = operator(args[0].as_int().unwrap_or_default(), args[1].as_int().unwrap_or_default())?;
            Ok(Dynamic::UNIT)
        }),
        has_context: false,
        is_pure: false,
        is_volatile: false,
    };
    module.set_fn_raw_with_options(FuncRegistration::new(name), [TypeId::of::<i64>(); 2], func);
}

fn divide(a: i64, b: i64) -> RhaiResultOf<Dynamic> {
    if b == 0 {
        return Err(EvalAltResult::ErrorArithmetic(format!("division by zero: {a} / 0"), Position::NONE).into());
    }
    match a.checked_rem(b) {
        Some(0) => Ok(Dynamic::from(a / b)),
        Some(_) => Ok(Dynamic::from(a as f64 / b as f64)),
        None => Err(EvalAltResult::ErrorArithmetic(format!("integer overflow: {a} / {b}"), Position::NONE).into()),
    }
}

fn power(a: i64, b: i64) -> RhaiResultOf<Dynamic> {
    match u32::try_from(b) {
        Ok(b) => a.checked_pow(b).map(Dynamic::from).ok_or_else(|| {
            EvalAltResult::ErrorArithmetic(format!("integer overflow: {a} ** {b}"), Position::NONE).into()
        }),
        Err(_) => Ok(Dynamic::from((a as f64).powf(b as f64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String> {
        let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        host.run("test", text).map(|v| option::show(&v))
    }

    #[test]
    fn integer_division_gives_a_float_when_it_does_not_go_out() -> Result<()> {
        assert_eq!(run("[1 / 4, 8 / 4, 2 ** -1, 2 ** 3, 7 % 2]")?, "[0.25, 2, 0.5, 8, 1]");
        assert_eq!(run("let x = 7; x /= 2; x")?, "3.5");
        assert!(run("1 / 0").err().unwrap().message.contains("division by zero"));
        for text in ["x / -1", "x /= -1; x", "x % -1", "div(x, -1)"] {
            let error = run(&format!("let x = -9223372036854775807 - 1; {text}")).err().unwrap();
            assert!(error.message.contains("overflow"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn infinite_numbers_compare_as_they_should_and_others_up_to_rounding() -> Result<()> {
        let infinite = "let i = infinity(); [i == i, i != i, i > 3, 3 < i, -i < 0.0, i <= i, i < 1e300, -i >= i]";
        assert_eq!(run(infinite)?, "[true, false, true, true, true, true, false, false]");
        assert_eq!(
            run("let n = infinity() - infinity(); [n == n, n != n, n < 1, n >= n]")?,
            "[false, true, false, false]"
        );
        assert_eq!(
            run("[0.1 + 0.2 == 0.3, 0.1 + 0.2 <= 0.3, 1.0 < 2, 2 >= 2.0, 1e-9 > 0]")?,
            "[true, true, true, true, true]"
        );
        Ok(())
    }

    #[test]
    fn texts_do_not_outgrow_their_bound() -> Result<()> {
        assert_eq!(run("let s = \"axbx\"; s.replace(\"x\", \"yy\"); s")?, "\"ayybyy\"");
        assert_eq!(run("let s = \"axbx\"; s.replace('x', \"\"); s")?, "\"ab\"");
        assert_eq!(
            run("[\"a,b\".split(\",\"), \"a,b\".split(','), \"ab\".split(\",\")]")?,
            "[[\"a\", \"b\"], [\"a\", \"b\"], [\"ab\"]]"
        );
        assert_eq!(
            run("[\"a,b,c\".split(\",\", 2), \"a,b,c\".split_rev(',', 2), \"a,b\".split(',', 0), \"a  b\".split()]")?,
            "[[\"a\", \"b,c\"], [\"c\", \"a,b\"], [\"a,b\"], [\"a\", \"b\"]]"
        );
        let long = "let s = \"x\"; s.pad(5000000, 'x');";
        let error = run(&format!("{long} s.replace(\"x\", \"yyyy\");")).err().unwrap();
        assert!(error.message.contains("replace: expected a text of at most 16777216 bytes, got 20000000"), "{error}");
        for call in
            ["split(\"x\")", "split('x')", "split(\"x\", 5000001)", "split_rev('x', 5000001)", "split_rev(\"x\")"]
        {
            let error = run(&format!("{long} s.{call};")).err().unwrap();
            assert!(error.message.contains("expected at most 4194304 parts, got 5000001"), "{call}: {error}");
        }
        let error = run(&format!("{long} s.to_chars();")).err().unwrap();
        assert!(error.message.contains("to_chars: expected at most 4194304 parts, got 5000000"), "{error}");
        let error = run("let s = \"x\"; s.pad(9000000, \" x\"); s.split();").err().unwrap();
        assert!(error.message.contains("split: expected at most 4194304 parts, got 4500000"), "{error}");
        Ok(())
    }

    #[test]
    fn natives_take_integers_for_floats() -> Result<()> {
        run("assert_close(1, 1.0, 0)")?;
        assert_eq!(run("let f = |x| assert_close(x, 2, 0); f.call(3)").err().unwrap().trace.len(), 2);
        Ok(())
    }
}
