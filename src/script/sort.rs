//! Rhai's sorts of arrays by a sort that any comparisons end: that of Rust panics where they contradict each other, as NaN does.

use super::*;
use rhai::FuncRegistration;
use std::cmp::Ordering;

/// Puts these in the place of Rhai's.
pub(super) fn register(module: &mut Module) {
    for name in ["sort", "sort_by"] {
        let by = |context: NativeCallContext, items: &mut Array, comparer: FnPtr| -> RhaiResultOf<()> {
            *items = sorted(items.clone(), &|a, b| asked(&context, &comparer, a, b))?;
            Ok(())
        };
        FuncRegistration::new(name).with_purity(false).set_into_module(module, by);
    }
    for name in ["order", "order_by"] {
        let by = |context: NativeCallContext, items: &mut Array, comparer: FnPtr| -> RhaiResultOf<Array> {
            sorted(items.clone(), &|a, b| asked(&context, &comparer, a, b))
        };
        FuncRegistration::new(name).set_into_module(module, by);
    }
    for (sort, order, down) in [("sort", "order", false), ("sort_desc", "order_desc", true)] {
        let plain =
            move |items: &Array| sorted(items.clone(), &|a, b| if down { compared(b, a) } else { compared(a, b) });
        let in_place = move |items: &mut Array| -> RhaiResultOf<()> {
            *items = plain(items)?;
            Ok(())
        };
        FuncRegistration::new(sort).with_purity(false).set_into_module(module, in_place);
        let copy = move |items: &mut Array| -> RhaiResultOf<Array> { plain(items) };
        FuncRegistration::new(order).set_into_module(module, copy);
    }
}

/// By merging; equal items stay in their order.
fn sorted(mut left: Array, compare: &impl Fn(&Dynamic, &Dynamic) -> RhaiResultOf<Ordering>) -> RhaiResultOf<Array> {
    if left.len() < 2 {
        return Ok(left);
    }
    let right = left.split_off(left.len() / 2);
    let [mut left, mut right] =
        [sorted(left, compare)?, sorted(right, compare)?].map(|half| half.into_iter().peekable());
    let mut merged = Array::with_capacity(left.len() + right.len());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let first = if compare(a, b)? == Ordering::Greater { right.next() } else { left.next() };
        merged.extend(first);
    }
    merged.extend(left.chain(right));
    Ok(merged)
}

/// What a script's closure says of two items: a number below, at or above 0, or whether the first comes first.
fn asked(context: &NativeCallContext, comparer: &FnPtr, a: &Dynamic, b: &Dynamic) -> RhaiResultOf<Ordering> {
    let said: Dynamic = comparer.call_within_context(context, (a.clone(), b.clone()))?;
    if let Ok(first) = said.as_bool() {
        return Ok(if first { Ordering::Less } else { Ordering::Greater });
    }
    let number: f64 = option::convert(said, "sort: the closure's result")?;
    Ok(number.partial_cmp(&0.0).unwrap_or(Ordering::Equal))
}

fn compared(a: &Dynamic, b: &Dynamic) -> RhaiResultOf<Ordering> {
    if let (Ok(a), Ok(b)) = (a.as_int(), b.as_int()) {
        return Ok(a.cmp(&b));
    }
    if let (Ok(a), Ok(b)) = (a.as_float(), b.as_float()) {
        return Ok(a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))); // NaN stands last
    }
    if let (Ok(a), Ok(b)) = (a.as_char(), b.as_char()) {
        return Ok(a.cmp(&b));
    }
    if let (Ok(a), Ok(b)) = (a.as_bool(), b.as_bool()) {
        return Ok(a.cmp(&b));
    }
    if let (Some(a), Some(b)) = (a.read_lock::<ImmutableString>(), b.read_lock::<ImmutableString>()) {
        return Ok(a.cmp(&b));
    }
    if a.is_unit() && b.is_unit() {
        return Ok(Ordering::Equal);
    }
    let items = format!("{} and {}", option::show(a), option::show(b));
    Err(Error::new(Kind::Type, format!("sort: expected items of one kind that has an order, got {items}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String> {
        let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        host.run("test", text).map(|v| option::show(&v))
    }

    #[test]
    fn sorts_are_stable_and_take_what_rhai_takes() -> Result<()> {
        assert_eq!(run("let a = [3, 1, 2]; a.sort(); a")?, "[1, 2, 3]");
        assert_eq!(run("let a = [3, 1, 2]; a.sort_desc(); a")?, "[3, 2, 1]");
        assert_eq!(run("[\"b\", \"c\", \"a\"].order()")?, "[\"a\", \"b\", \"c\"]");
        assert_eq!(run("[0.5, 2.5, 1.5].order_desc()")?, "[2.5, 1.5, 0.5]");
        assert_eq!(run("let a = [31, 12, 11, 32]; a.sort(|a, b| div(a, 10) - div(b, 10)); a")?, "[12, 11, 31, 32]");
        assert_eq!(run("[3, 1, 2].order_by(|a, b| a > b)")?, "[3, 2, 1]");
        let error = run("[1, \"a\"].order()").err().unwrap();
        assert_eq!(error.message, "sort: expected items of one kind that has an order, got 1 and \"a\"");
        let error = run("[1, 2].order(|a, b| \"a\")").err().unwrap();
        assert_eq!(error.message, "sort: the closure's result: expected a number, got \"a\"");
        Ok(())
    }

    #[test]
    fn comparisons_that_contradict_each_other_end() -> Result<()> {
        assert_eq!(
            run("let a = []; for i in 0..200 { a.push(i); } a.sort(|a, b| (a * 7 + b * 3) % 5 - 2); a.len")?,
            "200"
        );
        let nan = "let n = infinity() - infinity(); let a = []; for i in 0..200 { a.push(if i % 3 == 0 { n } else { i * 71.0 % 101.0 }); }";
        assert_eq!(run(&format!("{nan} a.sort(); a[0] <= a[1] && a[131] <= a[132]"))?, "true");
        assert_eq!(run(&format!("{nan} a.order_desc().len"))?, "200");
        Ok(())
    }
}
