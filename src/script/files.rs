//! Where a script's paths lead: what it may read and write is decided here once, and every file is opened by it.

use super::{Request, Session};
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_base::permissions::{Allowed, Permissions, Rights, Root, is_name, refused};
use amscript_nn::source::Sources;
use amscript_run::folder::spare_weights;
use amscript_run::lock::is_of_a_run;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

impl Request {
    /// Where the run writes: `--out`, else `runs/<recipe>`.
    pub fn run_folder(&self) -> PathBuf {
        let name = self.script.as_ref().and_then(|s| s.file_stem()).filter(|name| is_name(name));
        self.out.clone().unwrap_or_else(|| Path::new("runs").join(name.unwrap_or(OsStr::new("script"))))
    }

    /// The folder of the script, where that is a file.
    fn recipe_folder(&self) -> Option<PathBuf> {
        let script = self.script.as_ref()?;
        let is_file = Context::permitting(Rights::all(), || file::is_file(script)); // for the host, not for the script
        script.parent().filter(|_| is_file).map(PathBuf::from)
    }

    /// What was allowed, and what every recipe may: to read its own folder, the model folders and what the command line names, and to
    /// write the run's folder.
    pub(super) fn permissions(&self) -> Permissions {
        let run = self.run_folder();
        let run = if self.out.is_some() { Root::named(&run) } else { Root::here(&run) };
        let models = Sources::new(self.models.as_deref());
        // a value itself, or the texts in it, as in `runs=["runs/a", "runs/b"]`
        let texts = |value: &str| value.split('"').skip(1).step_by(2).map(PathBuf::from).collect::<Vec<_>>();
        let values = self.overrides.iter().filter(|_| !self.replay).map(|(_, value)| value);
        let named = values.flat_map(|value| texts(value).into_iter().chain([PathBuf::from(value)]));
        let named = named.chain(models.places().map(PathBuf::from));
        let named = named.filter_map(|path| Root::named(&path).ok());
        let root = |path: &PathBuf| Root::named(path).ok();
        let Rights { read, write, net, run: programs } = self.allow.clone();
        let (read, write) = (read.map(root), write.map(root));
        Rights {
            read: read
                .and(run.iter().cloned())
                .and(self.recipe_folder().and_then(|own| Root::own(&Path::new(".").join(own))))
                .and(named),
            write: write.and(run),
            net,
            run: programs,
        }
    }
}

/// Names of what a run writes in its folder, beside its checkpoints.
const OF_RUN: [&str; 6] = ["run.json", "result.json", "result.csv", "metrics.jsonl", "report.html", ".lock"];

/// Whether a file has one of these names, or is in a folder of a checkpoint.
fn is_of_run(file: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let saved = |name: String| {
        name.strip_prefix("step-").is_some_and(|step| step.len() >= 6 && step.bytes().all(|b| b.is_ascii_digit()))
    };
    OF_RUN.contains(&name(file).as_str()) || saved(name(file)) || file.parent().is_some_and(|above| saved(name(above)))
}

fn holds_run(folder: &Path) -> bool {
    file::exists(&folder.join("run.json"))
}

impl Session {
    /// A file or folder to read, its links followed: absolute, or looked up in the run's folder, beside the recipe, and from here.
    pub fn readable(&self, path: &str) -> Result<PathBuf> {
        if path.is_empty() {
            bail!(Value, "expected the name of a file or folder, got \"\"");
        }
        let own = [Some(self.run_folder()), self.request().recipe_folder()].into_iter().flatten();
        let mut outside = None;
        for place in own.map(|folder| folder.join(path)) {
            match file::real(&place) {
                Ok(found) => return Ok(found),
                Err(e) if refused(&e) => outside = Some(place),
                Err(_) => {}
            }
        }
        // what may not be read from here is not looked for, so that nobody learns whether it is there
        if let Ok(found) = file::real(Path::new(path)) {
            return Ok(found);
        }
        match outside {
            Some(place) => bail!(Permission, "a script may not read \"{path}\"";
                hint: "it may read its own folder, the run's and the model folders; `--allow-read={}` allows this too", place.display()),
            None => bail!(Missing, "no file \"{path}\"";
                hint: "paths are looked up in the run's folder and beside the recipe; `--allow-read={path}` allows one from here"),
        }
    }

    /// A file to write: in the run's folder, or elsewhere by a path that leads out of it, where that is allowed; the folders above it
    /// are made.
    pub fn writable(&self, path: &str) -> Result<PathBuf> {
        let folder = self.run_folder();
        let inside = Path::new(path).strip_prefix(&folder).unwrap_or(Path::new(path));
        let leads_out = inside.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
        let file = if leads_out { PathBuf::from(path) } else { folder.join(inside) };
        let told: &Path = if leads_out { &file } else { inside };
        if is_of_run(told) && (!leads_out || file.ancestors().skip(1).take(2).any(holds_run)) {
            bail!(File, "a script may not write what a run keeps for itself, got \"{path}\""; hint: "give it another name");
        }
        let (anyway, free) = (self.request().resume_anyway, matches!(self.request().allow.write, Allowed::All));
        if !anyway && !free {
            spare_weights(&file, |hash| self.has_text(hash))?;
        }
        // above the run's own folder, as `.` names it, nothing is made
        let above = file.parent().filter(|above| leads_out || above.starts_with(&folder)).unwrap_or(&folder);
        file::make_folder(above).map_err(|e| match refused(&e) {
            true => {
                let message =
                    format!("a script may only write in its run's folder {}, got \"{path}\"", folder.display());
                Error::new(Kind::Permission, message)
                    .hint(format!("give a path below it; `--allow-write={path}` allows this one"))
            }
            false => Error::new(Kind::File, format!("cannot write \"{path}\": {e}")),
        })?;
        Ok(file)
    }

    /// Says once where a file lies, where neither `--out` nor a run has named the folder.
    pub(super) fn tell_written(&self, file: &Path) {
        let folder = self.run_folder();
        let named = self.request().out.is_some() || is_of_a_run(&folder);
        if !named && file.starts_with(&folder) && self.context().first("written") {
            self.print(&format!("wrote {}", file.display()));
        }
    }

    /// Where the run writes.
    pub fn run_folder(&self) -> PathBuf {
        self.request().run_folder()
    }
}
