//! Markdown as tests: each heading is a case, its `rhai` fences are one script with expectations.

use amscript::script::example::{self, Example};

/// Heading and script of each case in a file.
fn cases(text: &str) -> Vec<(String, Example)> {
    let mut parts: Vec<(String, String)> = vec![];
    for line in text.lines() {
        match (line.strip_prefix('#'), parts.last_mut()) {
            (Some(heading), _) => parts.push((heading.trim_matches(['#', ' ']).into(), String::new())),
            (None, Some((_, body))) => *body += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    let case = |(heading, body): (String, String)| {
        let code: String = example::extract(&body).1.into_iter().map(|e| e.code).collect();
        (heading, Example { code, run: true })
    };
    parts.into_iter().map(case).filter(|(_, e)| !e.code.is_empty()).collect()
}

#[test]
fn every_case_in_the_suite_holds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut faults = vec![];
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        let found = cases(&std::fs::read_to_string(file).unwrap());
        assert!(!found.is_empty(), "{}: a case is needed", file.display());
        for (heading, case) in found {
            if let Err(e) = example::check(&case) {
                faults.push(format!("{} \"{heading}\" {e}", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
