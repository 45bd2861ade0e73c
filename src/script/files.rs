//! Which files a script may read and write.

use super::Session;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use std::path::{Component, Path, PathBuf};

impl Session {
    /// A file or folder to read: absolute, or looked up in the run's folder, beside the recipe, and from the current folder.
    ///
    /// It must lie in one of these, in a model folder, or in what the command line names.
    pub fn readable(&self, path: &str) -> Result<PathBuf> {
        let bases = [Some(self.run_folder()), self.recipe_folder(), Some(PathBuf::from("."))];
        let found = bases.into_iter().flatten().find_map(|base| base.join(path).canonicalize().ok());
        let Some(found) = found else {
            bail!(Missing, "no file \"{path}\""; hint: "paths are looked up in the run's folder, beside the recipe, and from here");
        };
        if self.readable_folders().iter().any(|folder| found.starts_with(folder)) {
            return Ok(found);
        }
        bail!(File, "a script may not read \"{path}\"";
            hint: "it may read its own folder, the run's folder and the model folders; name other files with --set or --models")
    }

    /// A file to write, relative to the run's folder and inside it; the folders above it are made.
    pub fn writable(&self, path: &str) -> Result<PathBuf> {
        let folder = self.run_folder();
        let inside = Path::new(path).strip_prefix(&folder).unwrap_or(Path::new(path));
        if !inside.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            bail!(File, "a script may only write in its run's folder {}, got \"{path}\"", folder.display();
                hint: "give a path relative to it, or another folder with --out");
        }
        let file = folder.join(inside);
        let parent = file.parent().unwrap_or(&folder);
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("cannot write in {}: {e}", parent.display()));
        std::fs::create_dir_all(parent).map_err(refused)?;
        Ok(file)
    }

    /// Where the run writes: `--out`, else `runs/<recipe>`.
    pub fn run_folder(&self) -> PathBuf {
        let request = self.request();
        let name = request.script.as_ref().and_then(|s| s.file_stem()).unwrap_or("script".as_ref());
        request.out.clone().unwrap_or_else(|| Path::new("runs").join(name))
    }

    fn recipe_folder(&self) -> Option<PathBuf> {
        self.request().script.as_ref()?.parent().map(|p| Path::new(".").join(p))
    }

    fn readable_folders(&self) -> Vec<PathBuf> {
        // a value itself, or the texts in it, as in `runs=["runs/a", "runs/b"]`
        let texts = |value: &str| value.split('"').skip(1).step_by(2).map(PathBuf::from).collect::<Vec<_>>();
        let request = self.request();
        let given = request.overrides.iter().map(|(_, value)| value);
        let named = given.flat_map(|value| texts(value).into_iter().chain([PathBuf::from(value)]));
        let models = self.sources();
        let models = models.places().map(PathBuf::from);
        let own = [Some(self.run_folder()), self.recipe_folder()].into_iter().flatten();
        own.chain(models).chain(named).filter_map(|p| p.canonicalize().ok()).collect()
    }
}
