//! The house rules that can be checked by reading: lengths, unwraps, reads. What may use what is the manifests' affair.

use std::path::{Path, PathBuf};

/// All Rust files of the crates with their text, the tests inside them cut off.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, out) } else { out.push(path) }
        }
    }
    let (root, mut files) = (Path::new(env!("CARGO_MANIFEST_DIR")), vec![]);
    walk(&root.join("src"), &mut files);
    walk(&root.join("crates"), &mut files);
    files.retain(|f| f.extension().is_some_and(|e| e == "rs"));
    files.sort();
    let read = |f: PathBuf| {
        let text = std::fs::read_to_string(&f).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_string();
        (f.strip_prefix(root).unwrap().display().to_string(), text)
    };
    files.into_iter().map(read).collect()
}

fn faults(check: impl Fn(&str, &str) -> Option<String>) -> String {
    sources().iter().filter_map(|(path, text)| check(path, text)).collect::<Vec<_>>().join("\n")
}

/// Lines of code: no blank lines, no comments.
fn code(text: &str) -> usize {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//")).count()
}

#[test]
fn only_script_and_cli_know_rhai() {
    let uses = |l: &str| !l.trim_start().starts_with("//") && (l.contains("rhai::") || l.contains("use rhai"));
    let allowed =
        |path: &str| ["src/script/", "src/cli/", "crates/base/src/thrown.rs"].iter().any(|p| path.starts_with(p));
    let faults = faults(|path, text| {
        let line = text.lines().position(uses)?;
        (!allowed(path)).then(|| format!("{path}:{} mentions rhai", line + 1))
    });
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn every_file_of_tests_is_in_the_binary() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let main = std::fs::read_to_string(tests.join("main.rs")).unwrap();
    let names = std::fs::read_dir(tests).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let stems = names.filter_map(|name| name.strip_suffix(".rs").map(String::from)).filter(|stem| stem != "main");
    let absent: Vec<_> = stems.filter(|stem| !main.contains(&format!("mod {stem};"))).collect();
    assert!(absent.is_empty(), "tests/main.rs must name {absent:?}");
}

/// What changes belongs to a host's context; of the tensor layer, caches of kernels and buffers are the process's, and so is its memory.
#[test]
fn nothing_outside_the_tensor_layer_changes_for_the_whole_process() {
    let shared = |l: &str| {
        let (before, after) = l.split_once("static ").unwrap_or_default();
        let declared = !before.contains("//") && (before.is_empty() || before.ends_with(' '));
        declared && ["Mutex", "RwLock", "Atomic"].iter().any(|kind| after.contains(kind))
    };
    let faults = faults(|path, text| {
        let line = text.lines().position(shared)?;
        let of_process = path.starts_with("crates/tensor/src/") || path == "crates/base/src/memory.rs";
        (!of_process).then(|| format!("{path}:{} is state of the process", line + 1))
    });
    assert!(faults.is_empty(), "{faults}");
    assert!(shared("    static BUSY: AtomicBool = AtomicBool::new(false);") && !shared("static TEXT: Dir = text();"));
}

/// What a recipe may reach is asked where files are opened: `base::file`. The command line itself acts for the user.
#[test]
fn files_are_opened_in_one_place() {
    let around = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        let calls = [
            "fs::",
            "File::open",
            ".exists()",
            ".is_dir()",
            ".is_file()",
            ".is_symlink()",
            ".read_dir()",
            ".read_link()",
        ];
        let more = [".canonicalize()", "Command::new", "std::net", "OpenOptions::new", "tempfile_in"];
        calls.iter().chain(&more).any(|call| code.contains(call))
            && !code.contains("\"/proc/")
            && !code.contains("\"/sys/")
    };
    let own = [
        "crates/base/src/file.rs",
        "crates/base/src/permissions.rs",
        "crates/base/src/memory.rs",
        "src/cli/",
        "src/main.rs",
        "crates/reward/src/judge.rs", // asks what programs may be run itself
        "crates/run/src/tests.rs",
        "crates/run/src/checkpoint/tests.rs",
    ];
    let faults = faults(|path, text| {
        let line = text.lines().position(around)?;
        (!own.iter().any(|own| path.starts_with(own))).then(|| format!("{path}:{} goes around `base::file`", line + 1))
    });
    assert!(faults.is_empty(), "{faults}");
    assert!(
        around("    let text = std::fs::read_to_string(path)?;")
            && !around("    let text = file::read_text(path)?; // not fs::read")
    );
}

#[test]
fn files_are_short() {
    let faults = faults(|path, text| {
        let lines = code(text);
        (lines > 400).then(|| format!("{path} has {lines} lines of code, more than 400"))
    });
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn nothing_unwraps_in_the_script_folder() {
    let faults = faults(|path, text| {
        let line = text.lines().position(|l| l.contains(".unwrap()") && !l.trim_start().starts_with("//"))?;
        path.starts_with("src/script").then(|| format!("{path}:{} unwraps", line + 1))
    });
    assert!(faults.is_empty(), "{faults}");
}

/// Name and lines of code of each function, by the indentation that rustfmt gives.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let named = |line: &str| {
        let (before, after) = line.split_once("fn ")?;
        let indent = line.len() - line.trim_start().len();
        let plain =
            before.split_whitespace().all(|word| word.starts_with("pub") || word == "const" || word == "unsafe");
        let name = after.split(['(', '<']).next()?;
        (plain && !line.ends_with([';', '}'])).then(|| (indent, name.to_string()))
    };
    let length = |(start, line): (usize, &&str)| {
        let (indent, name) = named(line)?;
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[start..].iter().position(|l| *l == close)?;
        Some((name, code(&lines[start..start + end].join("\n")) + 1))
    };
    lines.iter().enumerate().filter_map(length).collect()
}

#[test]
fn functions_are_short() {
    let faults = faults(|path, text| {
        let (name, lines) = functions(text).into_iter().find(|(_, lines)| *lines > 60)?;
        Some(format!("{path}: `{name}` has {lines} lines of code, more than 60"))
    });
    assert!(faults.is_empty(), "{faults}");
    let sample = "fn short() {\n    1\n}\n    pub fn inner(\n        x: i64,\n    ) -> i64 {\n        // why\n        x\n    }\n";
    assert_eq!(functions(sample), [("short".into(), 3), ("inner".into(), 5)]);
}

/// To read numbers is to wait for a device, so an update reads by `tensor::check::read`, which counts; files that read otherwise are named here.
#[test]
fn updates_read_no_numbers_on_the_side() {
    // Times given to adapters that depend on them and to the interpolant, a prompt encoder's check, penalties given as functions
    // (on the processor), files, a scorer's scale when it is opened, eigenvalues (by nalgebra), the gradient check, what goes to other ranks.
    const ELSEWHERE: [&str; 14] = [
        "crates/tensor/src/bytes.rs",
        "crates/tensor/src/eigen.rs",
        "crates/model/src/adapter.rs",
        "crates/model/src/text.rs",
        "crates/align/src/flow/interpolant.rs",
        "crates/align/src/regularizer.rs",
        "crates/nn/src/lora.rs",
        "crates/align/src/optim/adamw.rs",
        "crates/reward/src/similarity.rs",
        "crates/tensor/src/check.rs",
        "crates/tensor/src/grad.rs",
        "crates/tensor/src/cuda/tests.rs",
        "crates/tensor/src/op/cases.rs",
        "crates/tensor/src/value.rs",
    ];
    let faults = faults(|path, text| {
        let crates = ["tensor", "align", "nn", "model", "reward"].map(|name| format!("crates/{name}/"));
        let aside = ["crates/nn/src/data/", "crates/reward/src/metric/"];
        let within = |folder: &str| path.starts_with(folder);
        let passed = crates.iter().any(|c| within(c)) && !aside.into_iter().any(within);
        let line =
            text.lines().position(|l| l.contains(".to_vec1") || l.contains(".to_vec2") || l.contains(".to_scalar"))?;
        (passed && !ELSEWHERE.contains(&path)).then(|| format!("{path}:{} reads numbers", line + 1))
    });
    assert!(faults.is_empty(), "{faults}");
}
