//! `amscript verify`: the first steps of a run again, and whether they come out the same.

use super::{SessionArgs, VerifyArgs, output, recipe, run};
use crate::script::{Host, Session};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_nn::digest;
use amscript_run::log::{Lines, Values};
use amscript_run::record;
use amscript_run::report::within;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

/// Numbers that are times differ from run to run.
const TIMES: [&str; 3] = ["seconds", "time", "step_seconds"];

/// How two runs compare.
enum Verdict {
    Same,
    /// The largest relative difference.
    Within(f64),
    /// What differs, in words.
    Different(String),
}

/// `amscript verify RUN`: fails where it differs.
pub fn command(arguments: VerifyArgs) -> anyhow::Result<ExitCode> {
    run::on_large_stack(move || {
        let (verdict, steps) = verify(&arguments)?;
        let (line, code) = match verdict {
            Verdict::Same => (format!("same: {steps} steps, every number equal"), ExitCode::SUCCESS),
            Verdict::Within(most) => {
                let line = format!(
                    "within tolerance: {steps} steps, largest relative difference {most:.1e} of {:e}",
                    arguments.tolerance
                );
                (line, ExitCode::SUCCESS)
            }
            Verdict::Different(what) => (format!("different: {what}"), ExitCode::FAILURE),
        };
        output::line(&line)?;
        Ok(code)
    })
}

fn verify(arguments: &VerifyArgs) -> Result<(Verdict, usize)> {
    let steps = usize::from(arguments.steps);
    let folder = std::slice::from_ref(&arguments.run);
    let record =
        within(folder, || record::read_json(&arguments.run.join("run.json"))).map_err(|e| e.within("verify"))?;
    let draft = tempfile::tempdir().map_err(|e| Error::new(Kind::File, format!("verify: no temporary folder: {e}")))?;
    let session = SessionArgs {
        device: arguments.device.clone(),
        out: Some(draft.path().into()),
        models: arguments.models.clone(),
        ..SessionArgs::default()
    };
    let mut request = run::request(&session, false, None)?;
    request.max_disk = Some(run::MAX_DISK);
    let text = record["recipe"]["text"].as_str().unwrap_or_default().to_string();
    if let Some(script) = &arguments.recipe {
        let source = recipe::read(script)?;
        if record["recipe"]["sha256"] != digest::hash(source.text.as_bytes()) {
            return Ok((Verdict::Different(format!("the recipe {} is not that of the run", source.name)), 0));
        }
        request.script = source.path;
    }
    // settings that a run tells are not the user's, so that they name nothing that may be read
    (request.replay, request.overrides) = (true, overrides(&record["settings"]));
    (request.slice, request.allow) = (Some(steps), arguments.allow.rights());
    let host = Host::new(Session::new(request, Box::new(|_| ())));
    run::heed_signals(host.session(), Default::default());
    match host.run("the recipe of the run", &text) {
        Err(e) if e.kind != Kind::Interrupt || host.session().context().interrupt.asked() => return Err(e),
        _ => {}
    }
    let (before, now) = (within(folder, || lines(&arguments.run)), lines(draft.path()));
    let now: Vec<_> = now.into_iter().filter(|(step, _)| *step <= steps).collect();
    if now.is_empty() {
        bail!(Missing, "verify: the recipe must log its steps with `run.log`, got no line in {steps} steps");
    }
    Ok((compare(&before, &now, arguments.tolerance), now.len()))
}

/// The settings of a record as `--set` takes them.
fn overrides(settings: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or(value.to_string(), String::from);
    settings.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn lines(run: &Path) -> Vec<(usize, Values)> {
    Lines::read(&run.join("metrics.jsonl")).read
}

fn compare(before: &[(usize, Values)], now: &[(usize, Values)], tolerance: f64) -> Verdict {
    let mut most = 0.0_f64;
    for (step, values) in now {
        let Some((_, old)) = before.iter().find(|(other, _)| other == step) else {
            return Verdict::Different(format!("the run logged no step {step}"));
        };
        for (name, numbers) in values.iter().filter(|(name, _)| !TIMES.contains(&name.as_str())) {
            let Some((_, old)) = old.iter().find(|(other, old)| other == name && old.len() == numbers.len()) else {
                return Verdict::Different(format!("the run logged no such `{name}` at step {step}"));
            };
            for (a, b) in old.iter().zip(numbers).filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())) {
                let apart = (a - b).abs() / a.abs().max(b.abs());
                if apart.is_nan() || apart > tolerance {
                    return Verdict::Different(format!("`{name}` at step {step}: {a} in the run, {b} now"));
                }
                most = most.max(apart);
            }
        }
    }
    if most == 0.0 { Verdict::Same } else { Verdict::Within(most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_compared_number_by_number() {
        let run = |loss: f64| vec![(1, vec![("loss".to_string(), vec![loss]), ("time".to_string(), vec![loss])])];
        let told = |verdict| match verdict {
            Verdict::Same => "same".to_string(),
            Verdict::Within(most) => format!("{most:.0e}"),
            Verdict::Different(what) => what,
        };
        let against = |now: f64| told(compare(&run(1.0), &run(now), 1e-3));
        assert_eq!([against(1.0), against(1.0 - 1e-6)], ["same", "1e-6"]);
        assert_eq!(against(1.1), "`loss` at step 1: 1 in the run, 1.1 now");
        assert_eq!(told(compare(&[], &run(1.0), 1.0)), "the run logged no step 1");
        assert_eq!(against(f64::NAN), "`loss` at step 1: 1 in the run, NaN now");
    }
}
