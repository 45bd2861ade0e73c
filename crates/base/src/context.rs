//! What belongs to one host and is passed to nobody: the wish to stop, progress, profile, warnings, files read, what may be
//! reached, and per thread what a layer keeps.
//!
//! A host enters its context while it works, so that two hosts in one process are apart; a thread that works for a host enters a clone.
//! Outside of any host a thread has a context of its own.

use crate::bail;
use crate::error::Result;
use crate::group::{Alone, Group};
use crate::permissions::Permissions;
use crate::{file::Disk, input::Inputs, profile::Recorder, program::Programs, progress::Board};
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A wish to stop: once, it ends a run after its step if it has steps; twice, it ends what runs at once. A time limit is such a wish
/// when it is reached, and a second one a tenth of it later.
#[derive(Default)]
pub struct Interrupt {
    asked: AtomicUsize,
    finishing: AtomicBool,
    /// The wish came from a scheduler, which is to start the run again; its signals set this.
    pub requeue: Arc<AtomicBool>,
    /// When time is up, and when it is over.
    limits: OnceLock<[Instant; 2]>,
    /// What a script has done by itself since it last called a native, and the most it may.
    alone: AtomicUsize,
    most_alone: OnceLock<usize>,
}

/// What time beyond a limit is over at the earliest.
const GRACE: Duration = Duration::from_secs(1);

impl Interrupt {
    /// Ctrl-C was pressed.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// A scheduler asked, which is to start the run again.
    pub fn ask_to_requeue(&self) {
        self.requeue.store(true, Ordering::Relaxed);
    }

    /// Whether the run is to be started again where it ends.
    pub fn requeues(&self) -> bool {
        self.requeue.load(Ordering::Relaxed)
    }

    /// Work is to end when so much time has passed; the first limit counts.
    pub fn end_after(&self, time: Duration) {
        let now = Instant::now();
        if let (Some(first), Some(last)) = (now.checked_add(time), now.checked_add(time + GRACE.max(time / 10))) {
            self.limits.set([first, last]).ok();
        }
    }

    /// A script is to end when it has done so many operations without calling a native; the first bound counts.
    pub fn end_alone(&self, operations: usize) {
        self.most_alone.set(operations).ok();
    }

    /// Whether a stop was asked for.
    pub fn asked(&self) -> bool {
        self.wishes() > 0
    }

    /// Whether a stop was asked for twice: what does not end is to be ended.
    pub fn insisted(&self) -> bool {
        self.wishes() > 1
    }

    /// Whether the time limit is reached.
    pub fn late(&self) -> bool {
        self.limits_passed() > 0
    }

    fn wishes(&self) -> usize {
        self.asked.load(Ordering::Relaxed) + self.limits_passed()
    }

    fn limits_passed(&self) -> usize {
        self.limits.get().map_or(0, |limits| limits.iter().filter(|limit| Instant::now() >= **limit).count())
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
        if self.wishes() > patience {
            bail!(Limit, "the time limit is reached"; hint: "give it longer with `--max-time`");
        }
        Ok(())
    }

    /// An operation of a script by itself; errs when there were too many of them.
    pub fn work_alone(&self) -> Result<()> {
        let Some(most) = self.most_alone.get() else { return Ok(()) };
        if self.alone.fetch_add(1, Ordering::Relaxed) >= *most {
            bail!(Limit, "expected a call of one of amscript's functions within {most} operations of the script, got none";
                hint: "it may go round for ever; `--max-time 1h` bounds its time instead");
        }
        Ok(())
    }

    /// A script called a native.
    pub fn called(&self) {
        self.alone.store(0, Ordering::Relaxed);
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
    pub programs: Programs,
    /// What the files that are written say they were made from: names and values.
    origin: Mutex<BTreeMap<String, String>>,
    /// The processes that work on one run together; none is set where one works alone.
    pub group: OnceLock<Arc<dyn Group>>,
    /// They have shared work since this was last taken back.
    pub shares: AtomicBool,
    /// Keys of the warnings that were shown.
    warned: Mutex<BTreeSet<String>>,
}

/// A host's context; clones share it. The default may reach everything.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
    permissions: Arc<Permissions>,
}

impl Default for Context {
    fn default() -> Self {
        Self::new(Permissions::all())
    }
}

impl std::ops::Deref for Context {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
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
    /// That of a new host.
    pub fn new(permissions: Permissions) -> Self {
        Self { shared: Arc::default(), permissions: permissions.into() }
    }

    /// What may be reached.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// Runs `work` with other permissions, on this thread.
    pub fn permitting<T>(permissions: Permissions, work: impl FnOnce() -> T) -> T {
        struct Left(Arc<Permissions>);
        impl Drop for Left {
            fn drop(&mut self) {
                SCOPE.with_borrow_mut(|scope| std::mem::swap(&mut scope.context.permissions, &mut self.0));
            }
        }
        let within = |scope: &mut Scope| std::mem::replace(&mut scope.context.permissions, permissions.into());
        let _left = Left(SCOPE.with_borrow_mut(within));
        work()
    }

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
        if Arc::ptr_eq(&Self::current().shared, &self.shared) {
            return work();
        }
        let _left = Left(Some(SCOPE.replace(Scope { context: self.clone(), ..Scope::default() })));
        work()
    }

    /// Files that are written from now on say that they were made from this.
    pub fn made_from(&self, name: &str, value: &str) {
        self.origin.lock().insert(name.into(), value.into());
    }

    /// What files say they were made from.
    pub fn origin(&self) -> BTreeMap<String, String> {
        self.origin.lock().clone()
    }

    /// The processes that work on one run together.
    pub fn group(&self) -> Arc<dyn Group> {
        self.group.get().cloned().unwrap_or_else(|| Arc::new(Alone))
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
    fn a_time_limit_is_a_wish_to_stop_and_then_another() {
        let interrupt = Interrupt::default();
        interrupt.finish_steps(true);
        interrupt.end_after(Duration::ZERO);
        assert!(interrupt.asked() && interrupt.late() && !interrupt.insisted() && interrupt.check().is_ok());
        interrupt.finish_steps(false);
        assert_eq!(interrupt.check().unwrap_err().kind, Kind::Limit);
        interrupt.finish_steps(true);
        std::thread::sleep(GRACE);
        assert!(interrupt.insisted() && interrupt.check().is_err());
    }

    #[test]
    fn a_script_that_calls_nothing_ends() {
        let interrupt = Interrupt::default();
        assert!((0..9).all(|_| interrupt.work_alone().is_ok()));
        interrupt.end_alone(3);
        assert!((0..3).all(|_| interrupt.work_alone().is_ok()) && interrupt.work_alone().is_err());
        interrupt.called();
        assert!(interrupt.work_alone().is_ok());
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
