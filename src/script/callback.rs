//! Script closures called from Rust: later, from other threads, inside a backward pass.

use super::fault::{self, RhaiResultOf};
use super::option::{FromScript, convert};
use super::session::Session;
use crate::error::Result;
use rhai::{FnPtr, FuncArgs, NativeCallContext};
use std::sync::Arc;

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
        let engine = self.session.engine()?;
        let context = self.context.create_context(&engine);
        let source = context.call_source().unwrap_or_default().to_string();
        let result: RhaiResultOf<rhai::Dynamic> = self.closure.call_within_context(&context, args);
        let value = result.map_err(|e| fault::from_script(*e, &source, &self.session))?;
        convert(value, &format!("{}: the closure's result", self.name))
    }
}
