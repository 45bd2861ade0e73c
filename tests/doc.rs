//! Every function that scripts can call is documented, and every example holds.

use amscript::script::catalog::{Catalog, Entry};
use amscript::script::example;

fn faults(check: impl Fn(&Entry) -> Vec<String>) -> String {
    let fault =
        |e: &Entry| check(e).into_iter().map(|f| format!("{} `{}`: {f}", e.chapter, e.name)).collect::<Vec<_>>();
    Catalog::get().entries.iter().flat_map(fault).collect::<Vec<_>>().join("\n\n")
}

#[test]
fn every_function_has_a_summary_sentence_and_an_example() {
    let faults = faults(|e| {
        let mut out = vec![];
        if e.summary.is_empty() || !e.summary.ends_with('.') {
            out.push(format!("the summary must be one sentence, got \"{}\"", e.summary));
        }
        if e.examples.is_empty() {
            out.push("an example is needed".into());
        }
        out
    });
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn every_example_holds() {
    let faults = faults(|e| e.examples.iter().filter_map(|x| example::check(x).err()).collect());
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn options_belong_to_functions_of_their_chapter() {
    for chapter in amscript::script::CHAPTERS {
        for (function, _) in chapter.options {
            let known = Catalog::get().named(function).any(|e| e.chapter == chapter.name);
            assert!(known, "chapter {} lists options of `{function}`, which it does not have", chapter.name);
        }
    }
}

#[test]
fn generated_files_are_fresh() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    for (path, text) in amscript::cli::doc::files() {
        if std::env::var_os("AMSCRIPT_WRITE_DOCS").is_some() {
            let file = std::path::PathBuf::from(format!("{root}{path}"));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, &text).unwrap();
        }
        if let Err(error) = amscript::cli::doc::compare(&format!("{root}{path}"), &text) {
            panic!("{error}");
        }
    }
}
