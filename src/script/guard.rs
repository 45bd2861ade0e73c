//! What every native gets without writing it: integers where a float is expected, options that may be left out, panics
//! turned into errors.

use amscript_base::context::Context;
use amscript_base::error::{Error, Kind};
use rhai::plugin::{ModuleManifest, PluginFunc};
use rhai::{Dynamic, FuncRegistration, Map, Module, NativeCallContext};
use std::any::TypeId;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Name and parameter types of a native.
type Signature = (&'static str, Vec<TypeId>);

/// One module with the natives of all chapters and their widened overloads; a written overload is never replaced.
pub fn widen(manifests: &[&'static ModuleManifest]) -> Module {
    let mut module = Module::new();
    let mut taken: HashSet<Signature> = HashSet::new();
    for entry in manifests.iter().flat_map(|m| m.functions()) {
        entry.with_param_types(&mut |types| {
            taken.insert((entry.name(), types.to_vec()));
            add(&mut module, entry, types, Guarded::new(entry));
        });
    }
    for entry in manifests.iter().flat_map(|m| m.functions()) {
        entry.with_param_types(&mut |types| {
            for (widened, guarded) in overloads(entry, types) {
                if taken.insert((entry.name(), widened.clone())) {
                    add(&mut module, entry, &widened, guarded);
                }
            }
        });
    }
    manifests.iter().for_each(|m| m.init_eager(&mut module));
    module
}

type Entry = rhai::plugin::FnManifestEntry;

fn add(module: &mut Module, entry: &Entry, types: &[TypeId], guarded: Guarded) {
    let registration = FuncRegistration::new(entry.name()).with_namespace(entry.namespace);
    module.set_fn_raw_with_options(registration, types, guarded.into());
}

/// Every way to give integers for floats, with and without a last object map.
fn overloads(entry: &'static Entry, types: &[TypeId]) -> Vec<(Vec<TypeId>, Guarded)> {
    if matches!(entry.name(), "to_string" | "to_debug") {
        return vec![]; // an integer shows as an integer
    }
    let floats: Vec<usize> = (0..types.len()).filter(|&i| types[i] == TypeId::of::<f64>()).collect();
    let omissible = types.len() > 1 && types.last() == Some(&TypeId::of::<Map>());
    let mut out = vec![];
    for subset in 0..1_usize << floats.len() {
        let chosen: Vec<usize> = (0..floats.len()).filter(|b| subset >> b & 1 == 1).map(|b| floats[b]).collect();
        let mut widened = types.to_vec();
        chosen.iter().for_each(|&i| widened[i] = TypeId::of::<i64>());
        let guarded = Guarded { integers: chosen, ..Guarded::new(entry) };
        if omissible {
            let short = widened[..types.len() - 1].to_vec();
            out.push((short, Guarded { no_options: true, ..guarded.clone() }));
        }
        out.push((widened, guarded));
    }
    out
}

/// A native behind the border.
#[derive(Clone)]
struct Guarded {
    inner: &'static (dyn PluginFunc + Send + Sync),
    name: &'static str,
    /// Arguments to turn from integer to float.
    integers: Vec<usize>,
    /// An empty object map is to be added.
    no_options: bool,
}

impl Guarded {
    fn new(entry: &'static Entry) -> Self {
        Self { inner: entry.func(), name: entry.name(), integers: vec![], no_options: false }
    }
}

impl PluginFunc for Guarded {
    fn call(&self, context: Option<NativeCallContext>, args: &mut [&mut Dynamic]) -> rhai::plugin::RhaiResult {
        Context::current().interrupt.called();
        for &i in &self.integers {
            let integer = args[i].as_int().unwrap_or_default();
            *args[i] = Dynamic::from(integer as f64);
        }
        let mut options = Dynamic::from(Map::new());
        if !self.no_options {
            return caught(self.name, || self.inner.call(context, args));
        }
        let mut all: Vec<&mut Dynamic> = args.iter_mut().map(|a| &mut **a).chain([&mut options]).collect();
        caught(self.name, || self.inner.call(context, &mut all))
    }
    fn is_method_call(&self) -> bool {
        self.inner.is_method_call()
    }
    fn has_context(&self) -> bool {
        self.inner.has_context()
    }
    fn is_pure(&self) -> bool {
        self.inner.is_pure()
    }
    fn is_volatile(&self) -> bool {
        self.inner.is_volatile()
    }
}

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs native code; a panic becomes an error that names the function and the place in the Rust source.
fn caught(name: &str, body: impl FnOnce() -> rhai::plugin::RhaiResult) -> rhai::plugin::RhaiResult {
    quiet_panics();
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    result.unwrap_or_else(|_| {
        let what = PANIC.take();
        Err(Error::new(Kind::Internal, format!("{name}: native code panicked {what}"))
            .hint("this is a mistake in amscript: please report it with the script")
            .into())
    })
}

/// Panics under a guard are kept for the error instead of printed.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.get() == 0 {
                return previous(info);
            }
            let place = info.location().map_or(String::new(), |l| format!("at {}:{}: ", l.file(), l.line()));
            let text = payload(info).unwrap_or("no message");
            PANIC.set(format!("{place}{text}"));
        }));
    });
}

fn payload<'a>(info: &'a std::panic::PanicHookInfo) -> Option<&'a str> {
    let payload = info.payload();
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::super::{Request, Session, fault};
    use super::*;
    use rhai::Engine;
    use rhai::plugin::*;

    #[export_module(manifest)]
    pub mod sample {
        pub fn halve(x: f64) -> f64 {
            x / 2.0
        }
        #[rhai_fn(name = "halve")]
        pub fn halve_text(_x: &str) -> f64 {
            0.5
        }
        pub fn which(_x: f64) -> String {
            "float".into()
        }
        #[rhai_fn(name = "which")]
        pub fn which_integer(_x: i64) -> String {
            "integer".into()
        }
        pub fn draw(a: f64, b: f64, options: rhai::Map) -> String {
            format!("{a} {b} {}", options.len())
        }
        pub fn fall() -> i64 {
            panic!("deep inside")
        }
    }

    fn run(text: &str) -> amscript_base::error::Result<String> {
        let mut engine = Engine::new();
        engine.register_global_module(widen(&[exported_manifest!(sample)]).into());
        let session = Session::new(Request::default(), Box::new(|_| ()));
        let value = engine.eval::<Dynamic>(text).map_err(|e| fault::from_script(*e, "test", &session))?;
        Ok(value.to_string())
    }

    #[test]
    fn integers_go_where_floats_are_expected_unless_an_overload_is_written() -> amscript_base::error::Result<()> {
        assert_eq!(run("halve(3)")?, "1.5");
        assert_eq!(run("which(1) + which(1.0)")?, "integerfloat");
        Ok(())
    }

    #[test]
    fn the_last_map_may_be_left_out() -> amscript_base::error::Result<()> {
        assert_eq!(run("draw(1, 2.5) + \", \" + draw(1, 2, #{ a: 1 })")?, "1 2.5 0, 1 2 1");
        Ok(())
    }

    #[test]
    fn a_panic_becomes_an_error_at_its_place() {
        let error = run("let x = 1;\n  fall()").unwrap_err();
        assert!(error.message.starts_with("fall: native code panicked at src/script/guard.rs:"), "{error}");
        assert!(error.message.ends_with("deep inside"), "{error}");
        assert_eq!((error.trace[0].line, error.trace[0].column), (2, 3));
    }
}
