//! `import`: the embedded `stdlib/` modules, and script files in the recipe's own folder; nothing else.

use super::rename::MODULES;
use super::source::{self, Around, own_name};
use super::{RhaiResultOf, Session};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::text::AS_UTF8;
use amscript_base::{file, input, permissions};
use include_dir::{Dir, include_dir};
use parking_lot::Mutex;

use rhai::{
    AST, Dynamic, Engine, FnAccess, FnNamespace, FuncRegistration, Module, ModuleResolver, Position, Scope,
    ScriptFnMetadata, Shared,
};
use std::any::TypeId;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

static STDLIB: Dir = include_dir!("$CARGO_MANIFEST_DIR/stdlib");

/// The modules in the binary: name as imported (`stdlib/report`) and text.
pub fn embedded() -> impl Iterator<Item = (String, &'static str)> {
    STDLIB.files().filter_map(|file| {
        let name = file.path().file_name()?.to_str()?.strip_suffix(".rhai")?;
        Some((format!("stdlib/{name}"), file.contents_utf8()?))
    })
}

/// Resolves imports; each module is evaluated once per host.
#[derive(Default)]
pub struct Imports {
    /// `None` while a module is being evaluated.
    loaded: Mutex<BTreeMap<String, Option<Shared<Module>>>>,
}

impl ModuleResolver for Imports {
    fn resolve(&self, engine: &Engine, source: Option<&str>, path: &str, at: Position) -> RhaiResultOf<Shared<Module>> {
        let place = |mut e: Box<rhai::EvalAltResult>| {
            e.set_position(at);
            e
        };
        let session = Session::on(engine);
        let (name, text) = find(&session, source, path).map_err(|e| place(e.into()))?;
        match self.loaded.lock().get(&name) {
            Some(Some(module)) => return Ok(module.clone()),
            Some(None) => return Err(place(cycle(path).into())),
            None => {}
        }
        let number = self.loaded.lock().len() + 1;
        self.loaded.lock().insert(name.clone(), None);
        let module = evaluate(engine, &session, (&name, &text), number);
        match &module {
            Ok(module) => self.loaded.lock().insert(name, Some(module.clone())),
            Err(_) => self.loaded.lock().remove(&name),
        };
        module
    }
}

fn cycle(path: &str) -> Error {
    let message = format!("import: modules must not import each other in a circle, got \"{path}\" again");
    Error::new(Kind::Value, message).hint("move what both need into a module of its own")
}

fn evaluate(
    engine: &Engine,
    session: &Session,
    (name, text): (&str, &str),
    number: usize,
) -> RhaiResultOf<Shared<Module>> {
    session.add_source(name, text);
    let in_module = |e: Box<rhai::EvalAltResult>| rhai::EvalAltResult::ErrorInModule(name.into(), e, Position::NONE);
    let around = Around { suffix: source::suffix(number), ..Around::default() };
    let read = session.read(name, text, &around);
    let mut ast = engine.compile(read).map_err(|e| in_module(Box::new(e.into())))?;
    ast.set_source(name);
    session.add_functions(&ast);
    let module = Module::eval_ast_as_new(Scope::new(), &ast, engine).map_err(in_module)?;
    Ok(exported(engine, module, &ast).into())
}

/// A module as its importers see it: its functions go by the names that its file gives them.
fn exported(engine: &Engine, mut module: Module, ast: &AST) -> Module {
    let mut seen = Module::new();
    seen.set_id(ast.source().unwrap_or_default());
    for (name, value) in module.iter_var() {
        seen.set_var(name, value.clone());
    }
    for (name, inner) in module.iter_sub_modules() {
        seen.set_sub_module(name, inner.clone());
    }
    let public = ast.iter_functions().filter(|f| f.access == FnAccess::Public);
    let hash = |f: &ScriptFnMetadata| {
        let definition = module.get_script_fn(f.name, f.params.len())?;
        Some(Module::new().set_script_fn(definition.clone()))
    };
    let functions: Vec<_> =
        public.filter_map(|f| Some((own_name(f.name).to_string(), f.params.len(), hash(&f)?))).collect();
    for (.., hash) in &functions {
        // so that Rhai hands out the function with what it needs, and finds closures of the module that others call
        #[allow(deprecated)]
        module.update_fn_namespace(*hash, FnNamespace::Global);
    }
    module.build_index();
    let module: Shared<Module> = module.into();
    seen.set_sub_module("functions by the names that the module calls them", module.clone());
    let mut global = engine.new_global_runtime_state();
    global.push_import("module", module);
    for (name, parameters, hash) in functions.into_iter().filter(|(name, ..)| !name.starts_with("anon$")) {
        if let Some((function, _)) = global.get_qualified_fn(hash, true) {
            let types = vec![TypeId::of::<Dynamic>(); parameters];
            seen.set_fn_raw_with_options(FuncRegistration::new(name), types, function.clone().into_owned());
        }
    }
    seen.build_index();
    seen
}

/// The full name and text of what `import "path"` means in the script `source`.
pub fn find(session: &Session, source: Option<&str>, path: &str) -> Result<(String, String)> {
    if path.starts_with("stdlib/") {
        let Some((name, text)) = embedded().find(|(name, _)| name == path) else {
            if let Some((_, new)) = MODULES.iter().find(|(old, _)| *old == path) {
                bail!(Missing, "import: no module \"{path}\""; hint: "it is now \"{new}\"");
            }
            let known: Vec<String> = embedded().map(|(name, _)| name).collect();
            bail!(Missing, "import: no module \"{path}\""; hint: "known: {}", known.join(", "));
        };
        return Ok((name, text.into()));
    }
    let Some(recipe) = session.request().script.clone() else {
        bail!(Missing, "import: only \"stdlib/..\" can be imported by a script without a file, got \"{path}\"");
    };
    let importer = source.filter(|s| !s.starts_with("stdlib/")).map_or(recipe, PathBuf::from);
    let named = importer.with_file_name(format!("{path}.rhai"));
    let read = || {
        let (module, text) = (file::real(&named)?, file::read_text(&named)?);
        input::note(&module)?;
        Ok((module.display().to_string(), text))
    };
    session.context().enter(read).map_err(|e: std::io::Error| match permissions::refused(&e) {
        true => {
            let message = format!("import: a module must lie in the recipe's folder, got \"{path}\"");
            Error::new(Kind::Permission, message)
                .hint(format!("copy it beside the recipe, or allow it with `--allow-read={}`", named.display()))
        }
        false if e.kind() == ErrorKind::InvalidData => {
            Error::new(Kind::File, format!("import: cannot read \"{path}\" ({e})")).hint(AS_UTF8)
        }
        false => Error::new(Kind::Missing, format!("import: no file for \"{path}\" ({e})")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Host, Request};
    use super::*;

    fn run(files: &[(&str, &str)], recipe: &str) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        for (name, text) in files {
            std::fs::write(inside.join(name), text).unwrap();
        }
        let script = inside.join("recipe.rhai");
        std::fs::write(&script, recipe).unwrap();
        let request = Request { script: Some(script.clone()), ..Request::default() };
        let host = Host::new(Session::new(request, Box::new(|_| ())));
        host.run_file(&script).map(|v| v.to_string())
    }

    #[test]
    fn every_embedded_module_runs() -> Result<()> {
        let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
        embedded().try_for_each(|(name, _)| host.run("test", &format!("import \"{name}\" as m;")).map(drop))
    }

    #[test]
    fn modules_beside_the_recipe_are_imported() -> Result<()> {
        let double = ("double.rhai", "fn double(x) { x * 2 }");
        assert_eq!(run(&[double], "import \"double\" as d; d::double(4)")?, "8");
        Ok(())
    }

    #[test]
    fn imports_stay_in_the_folder() {
        let outside = ("../outside.rhai", "fn f() { 1 }");
        let error = run(&[outside], "import \"../outside\" as o; o::f()").unwrap_err();
        assert_eq!(error.message, "import: a module must lie in the recipe's folder, got \"../outside\"");
        assert!(run(&[], "import \"/etc/hostname\" as o; 1").is_err());
        let circle = [("a.rhai", "import \"b\" as b;"), ("b.rhai", "import \"a\" as a;")];
        assert!(run(&circle, "import \"a\" as a; 1").unwrap_err().message.contains("circle"));
    }

    #[test]
    fn functions_of_the_same_name_in_two_files_do_not_stand_in_for_each_other() -> Result<()> {
        let a = "fn f(x) { g(x) + x.len() } private fn g(x) { h(x) + 1 } fn h(x) { 10 } fn len() { 1000 } fn h(x, y, z) { throw 1 } fn twice(x) { x.map(h) }";
        let b = "import \"a\" as a; fn f(x) { g(x) + a::f(x) } fn g(x) { 200 } fn all(x, other) { g(x) + other(x) }";
        let files = [("a.rhai", a), ("b.rhai", b)];
        let recipe = "import \"a\" as a; import \"b\" as b; fn g(x) { 3000 } let out = [];
            for i in 0..4 { out.push(a::f([1]) + b::f([1]) + g(1) + b::all(0, |x| g(x) + a::h(x)) + a::twice([1, 2])[1]); } out";
        assert_eq!(run(&files, recipe)?, "[6444, 6444, 6444, 6444]");
        Ok(())
    }

    #[test]
    fn functions_of_the_recipe_do_not_stand_in_for_natives_in_modules() -> Result<()> {
        let a = "fn f(x) { relu(x).item() + x.sum().item() }";
        let recipe = "import \"a\" as a; fn relu(x) { 0 } fn sum() { 0 } fn own() { this + 1 }
            let x = tensor([2.0]); [a::f(x), relu(x), 1.own(), [1, 2].map(relu), Fn(\"relu\").call(1), a::f(x)]";
        assert_eq!(run(&[("a.rhai", a)], recipe)?, "[4.0, 0, 2, [0, 0], 0, 4.0]");
        Ok(())
    }

    #[test]
    fn constants_and_closures_of_a_module_go_where_it_is_imported() -> Result<()> {
        let a =
            "const K = 5; export const L = 6; fn f() { global::K + 1 } fn make(k) { |x| g(x) + k } fn g(x) { x * 2 }";
        assert_eq!(run(&[("a.rhai", a)], "import \"a\" as a; [a::f(), a::L]")?, "[6, 6]");
        assert_eq!(run(&[("a.rhai", a)], "import \"a\" as a; let f = a::make(1); f(10)")?, "21");
        Ok(())
    }

    #[test]
    fn an_error_in_a_module_names_module_and_line() {
        let error = run(&[("bad.rhai", "fn f(x) {\n  x.nothing()\n}")], "import \"bad\" as b;\nb::f(1)").unwrap_err();
        assert!(error.trace[0].source.ends_with("bad.rhai") && error.trace[0].line == 2, "{:?}", error.trace);
        assert_eq!((error.trace[1].line, error.trace.len()), (2, 2));
    }
}
