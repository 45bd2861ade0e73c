//! `amscript report`: the page of one or several runs, and event files for TensorBoard.

use super::{ReportArgs, output};
use amscript_base::error::Result;
use amscript_base::terminal;
use amscript_base::text::in_line;
use amscript_run::report::Report;
use amscript_run::tensorboard;
use std::path::PathBuf;

/// Writes what is asked for and prints where; what could not be read goes to standard error.
pub fn command(arguments: &ReportArgs) -> anyhow::Result<()> {
    write(arguments)?.iter().try_for_each(|path| output::line(&path.display().to_string()))
}

fn write(arguments: &ReportArgs) -> Result<Vec<PathBuf>> {
    let report = Report::of(&arguments.runs)?;
    let page = match (&arguments.out, report.runs.as_slice()) {
        (Some(file), _) => file.clone(),
        (None, [one]) => one.folder.join("report.html"),
        (None, _) => "report.html".into(),
    };
    let left_out = report.write(&page)?;
    report.notes().iter().chain(&left_out).for_each(|note| terminal::note(&format!("note: {}\n", in_line(note))));
    let mut written = vec![page];
    if let Some(folder) = &arguments.tensorboard {
        written.extend(tensorboard::write(&report.runs, folder)?);
    }
    Ok(written)
}
