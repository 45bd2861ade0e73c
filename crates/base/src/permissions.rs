//! What a recipe may reach: nothing but what was allowed. Every file of the crates is opened by [`crate::file`], which asks here.
//!
//! Decisions:
//! * **A folder is opened once, when it is allowed**, and files are opened below it by the system (`openat2` on Linux), which refuses ways that
//!   lead out of it, also where a link takes a folder's place meanwhile.
//! * **Links lead from one allowed folder to another, and nowhere else.** What may not be reached is not looked at: an error says the same
//!   whether it is there or not.
//! * **What is hidden is not part of a recipe's own folder**: names that begin with a dot, and the home folder.
//! * **A thread outside any host has all rights**: they bound recipes, not programs.

use crate::bail;
use crate::error::Result;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use std::env;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{self, Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Nothing, these, or all.
#[derive(Clone, Debug)]
pub enum Allowed<T> {
    These(Vec<T>),
    All,
}

impl<T> Default for Allowed<T> {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl<T> Allowed<T> {
    /// These too.
    pub fn and(mut self, more: impl IntoIterator<Item = T>) -> Self {
        if let Self::These(known) = &mut self {
            known.extend(more);
        }
        self
    }

    /// The same rights to other things.
    pub fn map<U>(&self, f: impl Fn(&T) -> Option<U>) -> Allowed<U> {
        match self {
            Self::These(those) => Allowed::These(those.iter().filter_map(f).collect()),
            Self::All => Allowed::All,
        }
    }
}

/// Rights to places: paths as a command line gives them, or [`Root`]s. The default is none.
#[derive(Clone, Debug)]
pub struct Rights<P> {
    pub read: Allowed<P>,
    pub write: Allowed<P>,
    /// Names of hosts.
    pub net: Allowed<String>,
    /// Names of programs.
    pub run: Allowed<String>,
}

/// What a host checks.
pub type Permissions = Rights<Root>;

impl<P> Default for Rights<P> {
    fn default() -> Self {
        Self { read: Allowed::default(), write: Allowed::default(), net: Allowed::default(), run: Allowed::default() }
    }
}

impl<P> Rights<P> {
    /// All that the user has.
    pub fn all() -> Self {
        Self { read: Allowed::All, write: Allowed::All, net: Allowed::All, run: Allowed::All }
    }

    /// Errs unless this host may be reached.
    pub fn connect(&self, host: &str) -> Result<()> {
        named(&self.net, "net", "reach the host", host)
    }

    /// Errs unless this program may be run.
    pub fn start(&self, program: &str) -> Result<()> {
        named(&self.run, "run", "run the program", program)
    }
}

fn named(allowed: &Allowed<String>, flag: &str, verb: &str, name: &str) -> Result<()> {
    match allowed {
        Allowed::These(names) if names.iter().all(|known| known != name) => {
            bail!(Permission, "a recipe may not {verb} {name}"; hint: "`--allow-{flag}={name}` allows it")
        }
        _ => Ok(()),
    }
}

/// What is done with a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Read,
    Write,
}

impl Way {
    fn verb(self) -> &'static str {
        match self {
            Way::Read => "read",
            Way::Write => "write",
        }
    }
}

/// Where a file is found once it may be.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Anywhere.
    Free(PathBuf),
    /// Below an open folder.
    Below(Arc<Dir>, PathBuf),
}

impl Permissions {
    /// Where to open `path`; with `follow`, a link in its last part is one of those that may lead elsewhere.
    pub(crate) fn place(&self, path: &Path, way: Way, follow: bool) -> io::Result<Place> {
        let roots = match if way == Way::Read { &self.read } else { &self.write } {
            Allowed::All => return Ok(Place::Free(path.into())),
            Allowed::These(roots) => roots,
        };
        let given = clean(path)?;
        let root = |path: &Path| roots.iter().find_map(|root| Some((root, root.below(path)?)));
        root(&given).ok_or_else(|| refusal(path, way))?;
        let real = resolved(&given, follow);
        let (root, rest) = root(&real).ok_or_else(|| refusal(path, way))?;
        root.at(&rest).map(|(folder, rest)| Place::Below(folder, rest)).map_err(|e| explained(e, path, way))
    }
}

/// The error of a file that may not be reached; it names the flag.
pub(crate) fn refusal(path: &Path, way: Way) -> io::Error {
    let (verb, path) = (way.verb(), path.display());
    io::Error::new(
        ErrorKind::PermissionDenied,
        format!("a recipe may not {verb} \"{path}\"; `--allow-{verb}={path}` allows it"),
    )
}

/// Whether an error is such a one, or that of a way that leads out of a folder.
pub fn refused(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}

/// The error that a user can act on.
pub(crate) fn explained(error: io::Error, path: &Path, way: Way) -> io::Error {
    if refused(&error) { refusal(path, way) } else { error }
}

/// A folder or file that may be reached, with all below it.
#[derive(Clone, Debug)]
pub struct Root(Arc<Held>);

#[derive(Debug)]
struct Held {
    /// As it was given, and with its links followed.
    names: [PathBuf; 2],
    /// The folder as it was when it was allowed; for a file, or what was not there yet, the one above.
    base: Arc<Dir>,
    /// The way from there.
    rest: PathBuf,
    /// The folder, once it is there.
    folder: OnceLock<Arc<Dir>>,
    /// Whether it is a recipe's own, which what is hidden is not part of.
    own: bool,
}

impl Root {
    /// What the user names, also through links; it need not be there yet.
    pub fn named(path: &Path) -> io::Result<Self> {
        let given = clean(path)?;
        let real = resolved(&given, true);
        let base = real.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("/"));
        Self::held([given, real.clone()], open(base)?, real.strip_prefix(base).unwrap_or(Path::new("")), false)
    }

    /// The folder that a recipe came in, without what is hidden; none where it is one for everybody's files.
    pub fn own(folder: &Path) -> Option<Self> {
        let given = clean(folder).ok()?;
        let real = given.canonicalize().ok()?;
        let shared = real.parent().is_none() || env::temp_dir().canonicalize().is_ok_and(|shared| shared == real);
        let base = open(&real).ok().filter(|_| !shared)?;
        Self::held([given, real], base, Path::new(""), true).ok()
    }

    /// What lies below the current folder by this name, which no link may lead out of; it need not be there yet.
    pub fn here(rest: &Path) -> io::Result<Self> {
        let real = env::current_dir()?;
        let given = real.join(rest);
        Self::held([given.clone(), given], open(&real)?, rest, false)
    }

    fn held(names: [PathBuf; 2], base: Dir, rest: &Path, own: bool) -> io::Result<Self> {
        let root = Self(Arc::new(Held { names, base: base.into(), rest: rest.into(), folder: OnceLock::new(), own }));
        match root.folder() {
            Err(e) if refused(&e) => Err(e),
            _ => Ok(root), // a file, or not there yet
        }
    }

    /// The way from here to `path`, if it is part of this.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        let rest = self.0.names.iter().find_map(|name| path.strip_prefix(name).ok())?;
        (!self.0.own || !hidden(path, rest)).then(|| rest.into())
    }

    /// An open folder, and the way from there to what is `rest` below this.
    fn at(&self, rest: &Path) -> io::Result<(Arc<Dir>, PathBuf)> {
        let above = |rest: PathBuf| Ok((self.0.base.clone(), rest));
        match (rest == Path::new(""), self.0.rest == Path::new("")) {
            (true, true) => above(".".into()),
            (true, false) => above(self.0.rest.clone()),
            (false, _) => match self.folder() {
                Err(e) if e.kind() == ErrorKind::NotFound => above(self.0.rest.join(rest)),
                folder => Ok((folder?, rest.into())),
            },
        }
    }

    fn folder(&self) -> io::Result<Arc<Dir>> {
        if self.0.rest == Path::new("") {
            return Ok(self.0.base.clone());
        }
        if let Some(folder) = self.0.folder.get() {
            return Ok(folder.clone());
        }
        let folder = self.0.base.open_dir(&self.0.rest)?;
        Ok(self.0.folder.get_or_init(|| folder.into()).clone())
    }
}

/// Whether a part of `rest`, the end of `path`, begins with a dot, or `path` lies in the home folder where that is below.
fn hidden(path: &Path, rest: &Path) -> bool {
    let dotted = |part: Component| part.as_os_str().as_encoded_bytes().starts_with(b".");
    let root = path.ancestors().nth(rest.components().count()).unwrap_or(path);
    let home = env::home_dir().and_then(|home| home.canonicalize().ok());
    rest.components().any(dotted) || home.is_some_and(|home| home.starts_with(root) && path.starts_with(home))
}

fn open(folder: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(folder, ambient_authority())
}

/// Absolute, without `.` and `..`; those are taken by their text, so that nothing is asked of what lies outside.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    Ok(out)
}

/// With the links in it followed, as far as it is there.
pub fn resolved(path: &Path, follow: bool) -> PathBuf {
    if let (true, Ok(real)) = (follow, path.canonicalize()) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(above), Some(name)) => resolved(above, true).join(name),
        _ => path.into(),
    }
}

/// Whether `name` is one plain name, of a file or folder in another.
pub fn is_name(name: &OsStr) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}
