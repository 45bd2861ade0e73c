//! What belongs to one host and is passed to nobody: the wish to stop, progress, profile, warnings, files read, and per thread what a
//! layer keeps.
//!
//! A host enters its context while it works, so that two hosts in one process are apart; a thread that works for a host enters a clone.
//! Outside of any host a thread has a context of its own.

use crate::bail;
use crate::error::Result;
use crate::{file::Disk, input::Inputs, profile::Recorder, progress::Board};
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A wish to stop: once, it ends a run after its step if it has steps; twice, it ends what runs at once.
#[derive(Default)]
pub struct Interrupt {
    asked: AtomicUsize,
    finishing: AtomicBool,
}

impl Interrupt {
    /// Ctrl-C was pressed.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    /// What was asked for is done, or no longer wanted.
    pub fn forget(&self) {
        self.asked.store(0, Ordering::Relaxed);
        self.finish_steps(false);
    }

    /// Steps are running that end by themselves once a stop is asked for, or no longer are.
    pub fn finish_steps(&self, running: bool) {
        self.finishing.store(running, Ordering::Relaxed);
    }

    /// Errs where work must end now; every op and every step of a loop asks.
    pub fn check(&self) -> Result<()> {
        let patience = usize::from(self.finishing.load(Ordering::Relaxed));
        if self.asked.load(Ordering::Relaxed) > patience {
            bail!(Interrupt, "interrupted");
        }
        Ok(())
    }
}

/// What clones of a context share.
#[derive(Default)]
pub struct Shared {
    pub interrupt: Interrupt,
    pub progress: Board,
    pub profile: Recorder,
    pub inputs: Inputs,
    pub disk: Disk,
    /// Keys of the warnings that were shown.
    warned: Mutex<BTreeSet<String>>,
}

/// A host's context; clones share it.
#[derive(Clone, Default)]
pub struct Context(Arc<Shared>);

impl std::ops::Deref for Context {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// A context that a thread has entered, and what layers above keep in it for this thread.
#[derive(Default)]
struct Scope {
    context: Context,
    kept: HashMap<TypeId, Box<dyn Any>>,
}

thread_local! {
    static SCOPE: RefCell<Scope> = RefCell::default();
}

impl Context {
    /// The context in which this thread works.
    pub fn current() -> Self {
        SCOPE.with_borrow(|scope| scope.context.clone())
    }

    /// Runs `work` in this context, on this thread.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Left(Option<Scope>);
        impl Drop for Left {
            fn drop(&mut self) {
                drop(SCOPE.replace(self.0.take().unwrap_or_default()));
            }
        }
        if Arc::ptr_eq(&Self::current().0, &self.0) {
            return work();
        }
        let _left = Left(Some(SCOPE.replace(Scope { context: self.clone(), ..Scope::default() })));
        work()
    }

    /// Whether nothing was noted under this key before.
    pub fn first(&self, key: &str) -> bool {
        self.warned.lock().insert(key.into())
    }
}

/// Gives `f` this thread's value of a type in the current context, its default at first; `f` must not come back here.
pub fn kept<S: Default + 'static, T>(f: impl FnOnce(&mut S) -> T) -> T {
    SCOPE.with_borrow_mut(|scope| {
        let kept = scope.kept.entry(TypeId::of::<S>()).or_insert_with(|| Box::<S>::default());
        match kept.downcast_mut() {
            Some(kept) => f(kept),
            None => unreachable!("values are kept by their type"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn one_interrupt_waits_for_the_step_and_two_do_not() {
        let interrupt = Interrupt::default();
        interrupt.finish_steps(true);
        interrupt.ask();
        assert!(interrupt.asked() && interrupt.check().is_ok());
        interrupt.ask();
        assert_eq!(interrupt.check().unwrap_err().kind, Kind::Interrupt);
        interrupt.forget();
        assert!(!interrupt.asked() && interrupt.check().is_ok());
    }

    #[test]
    fn what_is_entered_is_left_again_also_by_a_panic() {
        let (outer, inner) = (Context::default(), Context::default());
        let depth = || kept(|depth: &mut usize| std::mem::replace(depth, *depth + 1));
        let asked = || Context::current().interrupt.asked();
        outer.enter(|| {
            assert_eq!((depth(), outer.enter(depth), inner.enter(depth), depth()), (0, 1, 0, 2));
            inner.enter(|| Context::current().interrupt.ask());
            let panics = || inner.enter(|| std::panic::resume_unwind(Box::new("left")));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
            assert!(!asked() && inner.enter(asked));
        });
        assert!(!asked());
        let clone = inner.clone();
        assert!(std::thread::spawn(move || !asked() && clone.enter(asked)).join().unwrap());
    }

    #[test]
    fn warnings_are_shown_once_in_each_context() {
        let (one, other) = (Context::default(), Context::default());
        assert!(one.first("a") && one.first("b") && !one.first("a") && other.first("a"));
    }
}
