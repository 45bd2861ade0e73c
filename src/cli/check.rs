//! `amscript check`: what is wrong with scripts, for people or, with `--json`, for editors.

use super::{CheckArgs, fault, output, recipe};
use crate::script::check::{self, Finding, Report, Severity};
use crate::script::header::Header;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file::write_whole;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Findings of a script that are shown, errors before warnings where there are more; the others are counted.
const SHOWN: usize = 100;

/// Prints the findings of all scripts; the command fails where one of them is an error.
pub fn command(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (mut errors, mut warnings, mut items) = (0, 0, vec![]);
    for script in &arguments.scripts {
        let report = checked(recipe::read(script)?, arguments.fix)?;
        let (wrong, likely): (Vec<&Finding>, Vec<&Finding>) =
            report.findings.iter().partition(|finding| finding.severity == Severity::Error);
        errors += wrong.len();
        warnings += likely.len();
        let all = report.findings.len();
        let shown = if all > SHOWN { [wrong, likely].concat() } else { report.findings.iter().collect() };
        for finding in shown.into_iter().take(SHOWN) {
            match arguments.json {
                true => items.push(item(finding, &report)),
                false => output::line(&self::text(finding, &report))?,
            }
        }
        if all > SHOWN && !arguments.json {
            output::line(&format!("{} more of {} are not shown", all - SHOWN, script.display()))?;
        }
    }
    output::line(&match arguments.json {
        true => format!("{:#}", Value::Array(items)),
        false => summary(arguments.scripts.len(), errors, warnings),
    })?;
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is found in a script; with `fix`, after its old names have been replaced in its file.
fn checked(recipe::Source { path, name, text }: recipe::Source, fix: bool) -> Result<Report> {
    Header::read(&text).map_err(|e| e.within(format_args!("check: {name}")))?;
    let report = check::check(path.as_deref(), &name, &text);
    let fixed = if fix { check::fixed(&report, &name, &text) } else { text.clone() };
    if fixed == text {
        return Ok(report);
    }
    let Some(file) = &path else {
        bail!(File, "check: --fix needs a script in a file, got \"{name}\"");
    };
    let refused = |e| Error::new(Kind::File, format!("check: cannot write {}: {e}", file.display()));
    write_whole(file, fixed.as_bytes()).map_err(refused)?;
    Ok(check::check(path.as_deref(), &name, &fixed))
}

/// A finding as errors of runs look.
pub fn text(finding: &Finding, report: &Report) -> String {
    let rendered = fault::render(&finding.error, |name| report.source(name));
    match finding.severity {
        Severity::Error => rendered,
        Severity::Warning => rendered.replacen("error:", "warning:", 1),
    }
}

/// A finding for editors: lines and columns count from 1, `end_column` is behind the last character.
fn item(finding: &Finding, report: &Report) -> Value {
    let place = finding.place();
    let source = report.source(&place.source).unwrap_or_default();
    let line = source.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
    let (row, column) = (place.line.max(1), place.column.max(1));
    json!({
        "file": Path::new(&place.source),
        "line": row,
        "column": column,
        "end_column": column + fault::width(line, column - 1),
        "severity": match finding.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "code": finding.code,
        "message": finding.error.message,
        "hint": finding.error.hint,
        "fix": finding.fix.as_ref().map(|(_, new)| new),
    })
}

fn summary(scripts: usize, errors: usize, warnings: usize) -> String {
    let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    match (errors, warnings) {
        (0, 0) => format!("{}: no mistakes found", count(scripts, "script")),
        _ => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
    }
}
