//! Script closures called from Rust: later, from other threads, inside a backward pass.

use super::fault::{self, RhaiResultOf};
use super::option::{FromScript, convert};
use super::session::Session;
use amscript_base::bail;
use amscript_base::error::Result;
use rhai::{Dynamic, FnPtr, FuncArgs, NativeCallContext};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Closures that may run inside one another on a thread: recipes nest five or so.
const MOST_NESTED: usize = 32;

/// Bytes of the stack that they may take together: half of what a thread has at least.
const MOST_STACK: usize = 1 << 20;

thread_local! {
    /// How many closures run on this thread inside one another, and where its stack was when the outermost began.
    static NESTED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// What closures held that are being dropped on this thread.
    static LEFT: RefCell<Option<Vec<Dynamic>>> = const { RefCell::new(None) };
}

/// A closure that runs on this thread until this is dropped.
struct Nested {
    before: (usize, usize),
}

impl Nested {
    /// Each closure is called at the call level of its making, so that Rhai's own bound does not see that it reaches itself.
    fn begin(name: &str) -> Result<Self> {
        let before = NESTED.get();
        let (count, here) = (before.0, std::ptr::from_ref(&before).addr());
        let bottom = if count == 0 { here } else { before.1 };
        if count >= MOST_NESTED || bottom.abs_diff(here) > MOST_STACK {
            bail!(
                Limit,
                "stack overflow: expected closures at most {MOST_NESTED} deep inside one another, got one more in {name}";
                hint: "does a closure reach itself through a variable that it uses?"
            );
        }
        NESTED.set((count + 1, bottom));
        Ok(Self { before })
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        NESTED.set(self.before);
    }
}

/// A closure with the script it belongs to. Cheap to clone; captured variables are seen as they are when it is called.
#[derive(Clone)]
pub struct Callback {
    name: &'static str,
    closure: FnPtr,
    #[allow(deprecated)]
    context: Arc<rhai::NativeCallContextStore>,
    session: Arc<Session>,
}

impl Callback {
    /// `name` is the function that was given the closure; it stands in errors.
    #[allow(deprecated)] // not deprecated but marked volatile; rhai is pinned
    pub fn new(context: &NativeCallContext, name: &'static str, closure: FnPtr) -> Self {
        Self { name, closure, context: Arc::new(context.store_data()), session: Session::of(context) }
    }

    /// Calls the closure with a tuple of arguments; errors keep their place in the script.
    #[allow(deprecated)]
    pub fn call<T: FromScript>(&self, args: impl FuncArgs) -> Result<T> {
        let _nested = Nested::begin(self.name)?;
        let engine = self.session.engine()?;
        let context = self.context.create_context(&engine);
        let source = context.call_source().unwrap_or_default().to_string();
        let call = || -> RhaiResultOf<rhai::Dynamic> { self.closure.call_within_context(&context, args) };
        let result = self.session.context().enter(call);
        let value = result.map_err(|e| {
            let mut error = fault::from_script(*e, &source, &self.session);
            error.trace.pop(); // where the closure was given to the native; the native's caller is added when it returns
            error
        })?;
        convert(value, &format!("{}: the closure's result", self.name))
    }
}

/// What a closure held is dropped when it is dropped itself, not inside: it may hold a native that keeps a closure, and so on.
impl Drop for Callback {
    fn drop(&mut self) {
        let held: Vec<Dynamic> = self.closure.iter_curry_mut().map(std::mem::take).collect();
        let begins = |left: &RefCell<Option<Vec<Dynamic>>>| {
            let mut left = left.borrow_mut();
            let begins = left.is_none();
            left.get_or_insert_default().extend(held);
            begins
        };
        if LEFT.try_with(begins).is_ok_and(|begins| begins) {
            while let Some(value) = LEFT.with_borrow_mut(|left| left.as_mut().and_then(Vec::pop)) {
                drop(value);
            }
            LEFT.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Host, Request};
    use super::*;
    use amscript_base::error::{Error, Kind};
    use amscript_tensor::{DType, Device, Tensor, grad};

    /// Keeps the closure that the script gives to `keep`.
    fn kept(script: &str) -> (Host, Callback) {
        let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        let ast = host.compile("test", script).unwrap();
        let closure = host.run_in(&mut rhai::Scope::new(), "test", &ast).unwrap().cast::<FnPtr>();
        let mut global = host.engine().new_global_runtime_state();
        global.lib.push(ast.shared_lib().clone());
        let call = (host.engine(), "keep", None, &global, rhai::Position::NONE);
        let callback = Callback::new(&NativeCallContext::from(call), "keep", closure);
        (host, callback)
    }

    #[test]
    fn a_kept_closure_runs_on_other_threads_and_sees_functions_and_variables() {
        let (_host, f) = kept("fn twice(x) { 2 * x } let k = 3; let f = |x| twice(x) * k; k = 5; f");
        let result: f64 = std::thread::spawn(move || f.call((1.5,)).unwrap()).join().unwrap();
        assert_eq!(result, 15.0);
    }

    #[test]
    fn a_closure_runs_inside_a_backward_pass_and_its_error_keeps_its_place() {
        let (_host, f) = kept("|g| g.nothing()");
        let x = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap().leaf();
        let y =
            grad::custom_vjp("own", &[&x], x.constant(), move |g, _| Ok(vec![Some(f.call::<Tensor>((g.clone(),))?)]));
        let loss = y.unwrap().sum_all().unwrap();
        let error: Error = grad::gradients(&loss, &[x]).unwrap_err();
        assert_eq!((error.kind, error.trace.first().map(|p| (p.line, p.column))), (Kind::Name, Some((1, 7))));
        assert!(error.message.contains("no function `nothing`"), "{error}");
    }

    #[test]
    fn a_result_of_the_wrong_kind_is_named() {
        let (_host, f) = kept("|x| \"text\"");
        let error = f.call::<f64>((1.0,)).unwrap_err();
        assert_eq!(error.message, "keep: the closure's result: expected a number, got \"text\"");
    }

    #[test]
    fn what_closures_hold_is_dropped_one_after_the_other() {
        let script = "let p = quadratic(); for i in 0..30000 { let q = p; p = penalty(|s| q.of(s)); } || p";
        let drops = move || drop(kept(script));
        std::thread::Builder::new().stack_size(2 << 20).spawn(drops).unwrap().join().unwrap();
    }

    #[test]
    fn a_closure_outlives_its_script_as_an_error() {
        let (host, f) = kept("|x| x");
        drop(host);
        assert!(f.call::<f64>((1.0,)).unwrap_err().message.contains("has ended"));
    }
}
