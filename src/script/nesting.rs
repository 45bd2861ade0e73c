//! How deep closures, arrays and maps hold one another. Rhai drops and copies them inside one another, on the stack, and a stack that
//! overflows ends the process. So values are looked at when variables are used: not each time, as often as it costs little.

use super::RhaiResultOf;
use amscript_base::error::{Error, Kind};
use rhai::{Array, Dynamic, EvalAltResult, FnPtr, Map, Position, Scope};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Most closures, arrays and maps inside one another.
const MOST_DEEP: usize = 500;

/// Most uses of variables between two looks, however large what was looked at is.
const MOST_PAUSE: usize = 100_000;

/// A value that is in use is waited for, which takes as long as a look at so many others.
const LOCKED: usize = 8 * MOST_PAUSE;

thread_local! {
    /// Uses of variables until the next look.
    static PAUSE: Cell<usize> = const { Cell::new(0) };
}

/// A use of a variable, by its name or its place from the end; errs where its value is too deep. `catch` does not see that, or a
/// script would go on.
pub(super) fn check(name: &str, index: usize, scope: &Scope) -> RhaiResultOf<()> {
    let pause = PAUSE.get();
    if pause > 0 {
        PAUSE.set(pause - 1);
        return Ok(());
    }
    let place = index.checked_sub(1).and_then(|n| scope.iter_raw().nth(n));
    let Some(value) = place.map(|(.., value)| value).or_else(|| scope.get(name)).filter(|value| holds(value)) else {
        return Ok(());
    };
    let mut look = Look::default();
    look.depth(value, 0);
    if look.too_deep {
        let error = Error::new(
            Kind::Limit,
            format!("closures, arrays and maps may be {MOST_DEEP} deep inside one another, got more in `{name}`"),
        );
        let error = error.hint("a closure holds every variable that it names, and so what they hold");
        return Err(EvalAltResult::ErrorTerminated(Dynamic::from(error), Position::NONE).into());
    }
    // by chance, so that no script can do its work between the looks
    PAUSE.set((look.seen / 8).min(MOST_PAUSE) + RandomState::new().hash_one(0) as usize % 64);
    Ok(())
}

/// Whether a value can hold others.
fn holds(value: &Dynamic) -> bool {
    value.is_shared() || value.is_fnptr() || value.is_array() || value.is_map()
}

/// What was seen of a value.
#[derive(Default)]
struct Look {
    seen: usize,
    too_deep: bool,
    /// Depths of what closures share, by where it is; 0 while it is looked at, for it may hold itself.
    shared: HashMap<usize, usize>,
}

impl Look {
    /// The depth of a value that is so deep inside others.
    fn depth(&mut self, value: &Dynamic, above: usize) -> usize {
        self.seen += 1;
        let Some(held) = value.read_lock::<Dynamic>() else {
            self.seen += LOCKED;
            return 0;
        };
        let place = value.is_shared().then(|| std::ptr::from_ref(&*held).addr());
        let known = place.and_then(|place| self.shared.get(&place).copied());
        self.too_deep |= above + known.unwrap_or_default() >= MOST_DEEP;
        if self.too_deep || known.is_some() {
            return known.unwrap_or_default();
        }
        self.shared.extend(place.map(|place| (place, 0)));
        let deep = if let Some(closure) = held.read_lock::<FnPtr>() {
            self.deepest(closure.iter_curry(), above)
        } else if let Some(items) = held.read_lock::<Array>() {
            self.seen += items.len();
            self.deepest(items.iter(), above)
        } else if let Some(entries) = held.read_lock::<Map>() {
            self.seen += entries.len();
            self.deepest(entries.values(), above)
        } else {
            0
        };
        self.shared.extend(place.map(|place| (place, deep)));
        deep
    }

    fn deepest<'a>(&mut self, values: impl Iterator<Item = &'a Dynamic>, above: usize) -> usize {
        let mut deep = 0;
        for value in values.filter(|value| holds(value)) {
            deep = deep.max(self.depth(value, above + 1));
        }
        deep + 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Host, Request, Session};
    use super::*;

    #[test]
    fn the_longest_way_counts_and_a_ring_ends() {
        let depth = |script: &str| {
            let value = Host::new(Session::new(Request::default(), Box::new(|_| ()))).run("test", script).unwrap();
            Look::default().depth(&value, 0)
        };
        assert_eq!((depth("1"), depth("[]"), depth("[[1], #{ a: [2] }]")), (0, 1, 3));
        assert_eq!(depth("let a = 1; let f = || a; let g = || f.call() + a; g"), 2);
        assert_eq!(depth("let f = || 0; let all = []; for i in 0..9 { let g = f; f = || g; all.push(f); } all"), 11);
        assert!(depth("let f = (); let g = || f; f = g; g") <= 2);
    }

    #[test]
    fn a_long_chain_is_seen() {
        // as it is made, where a look happens to come behind its 500th closure, or of what it gives
        let too_deep = |n: usize| {
            let script = format!("let f = || 0; for i in 0..{n} {{ let g = f; f = || g; }} f");
            let found = Host::new(Session::new(Request::default(), Box::new(|_| ()))).run("test", &script);
            let mut look = Look::default();
            found.map(|value| look.depth(&value, 0)).is_err_and(|error| error.kind == Kind::Limit) || look.too_deep
        };
        assert!(!too_deep(400) && too_deep(600));
    }
}
