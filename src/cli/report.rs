//! `amscript report`: the page of one or several runs, and event files for TensorBoard.

use super::{ReportArgs, fault};
use crate::error::Result;
use crate::run::report::Report;
use crate::run::tensorboard;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes what is asked for and prints where; what could not be read goes to standard error.
pub fn command(arguments: &ReportArgs) -> ExitCode {
    match write(arguments) {
        Ok(written) => {
            written.iter().for_each(|path| println!("{}", path.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("{}", fault::render(&error, |_| None));
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &ReportArgs) -> Result<Vec<PathBuf>> {
    let report = Report::of(&arguments.runs)?;
    let page = match (&arguments.out, report.runs.as_slice()) {
        (Some(file), _) => file.clone(),
        (None, [one]) => one.folder.join("report.html"),
        (None, _) => "report.html".into(),
    };
    let left_out = report.write(&page)?;
    report.notes().iter().chain(&left_out).for_each(|note| eprintln!("note: {note}"));
    let mut written = vec![page];
    if let Some(folder) = &arguments.tensorboard {
        written.extend(tensorboard::write(&report.runs, folder)?);
    }
    Ok(written)
}
