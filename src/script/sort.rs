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
