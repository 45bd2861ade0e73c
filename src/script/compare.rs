//! Comparisons of values that have no order between them: Rhai calls them all false without a word.

use super::*;
use amscript_tensor::Tensor;
use rhai::FuncRegistration;

/// Refuses them.
pub(super) fn register(module: &mut Module) {
    let numbers = [TypeId::of::<i64>(), TypeId::of::<f64>(), TypeId::of::<Tensor>()];
    let own = [TypeId::of::<bool>(), TypeId::of::<ImmutableString>()]; // ordered among themselves
    let none = [TypeId::of::<()>(), TypeId::of::<Array>(), TypeId::of::<Map>()];
    let all = || numbers.iter().chain(&own).chain(&none).copied();
    let ordered = |a, b| (numbers.contains(&a) && numbers.contains(&b)) || (a == b && own.contains(&a));
    let pairs = all().flat_map(|a| all().map(move |b| [a, b])).filter(|[a, b]| !ordered(*a, *b));
    for pair in pairs {
        for symbol in ["<", "<=", ">", ">="] {
            module.set_fn_raw_with_options(FuncRegistration::new(symbol), pair, refusal(symbol));
        }
    }
}

fn refusal(symbol: &'static str) -> RhaiFunc {
    RhaiFunc::Method {
        func: Arc::new(move |_: Option<NativeCallContext>, args: &mut [&mut Dynamic]| {
            Err(unordered(symbol, args[0], args[1]).into())
        }),
        has_context: false,
        is_pure: true,
        is_volatile: false,
    }
}

fn unordered(symbol: &str, a: &Dynamic, b: &Dynamic) -> Error {
    let (left, right) = (option::show(a), option::show(b));
    let error = Error::new(Kind::Type, format!("`{symbol}` compares two numbers or two texts, got {left} and {right}"));
    let either = |is: fn(&Dynamic) -> bool| is(a) || is(b);
    if either(Dynamic::is_unit) {
        error.hint("() stands where there is no value yet: ask `x != ()` first")
    } else if either(Dynamic::is_bool) {
        error.hint("write `0 < t && t < 1`")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String> {
        Host::new(Session::new(Request::default(), Box::new(|_| ()))).run("test", text).map(|v| option::show(&v))
    }

    #[test]
    fn values_without_an_order_are_refused() {
        for (text, got) in [
            ("0 < 0.5 < 1", "`<` compares two numbers or two texts, got true and 1"),
            ("let best = (); 0.5 > best", "`>` compares two numbers or two texts, got 0.5 and ()"),
            ("() < ()", "got () and ()"),
            ("\"3\" >= 2", "got \"3\" and 2"),
            ("tensor([1.0]) <= \"a\"", "and \"a\""),
            ("[1] > 0", "got [1] and 0"),
            ("[1] < [2]", "got [1] and [2]"),
            ("#{} > 0.0", "and 0"),
        ] {
            let error = run(text).unwrap_err();
            assert!(error.message.contains(got), "{text}: {error}");
        }
        let hint = |text| run(text).unwrap_err().to_string();
        assert!(hint("0 < 1 < 2").contains("0 < t && t < 1") && hint("1 < ()").contains("no value yet"));
    }

    #[test]
    fn numbers_and_texts_compare() -> Result<()> {
        let text = "[1 < 2, 2 <= 1.5, 2.5 > 2, 2.5 >= 3.5, \"a\" < \"b\", 'a' < 'b', \"b\" > 'a', () == 3]";
        assert_eq!(run(text)?, "[true, false, true, false, true, true, true, false]");
        let tensors = "[(tensor([1, 2]) < 2).sum().item() == 1, (1.5 < tensor([1, 2])).sum().item() == 1]";
        assert_eq!(run(tensors)?, "[true, true]");
        Ok(())
    }
}
