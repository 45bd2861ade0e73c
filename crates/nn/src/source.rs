//! Where models are: a name or path becomes a `Folder` on disk, in the Hugging Face cache, or embedded in the binary.

mod cache;
mod download;

use crate::archive::Archive;
use crate::digest;
use crate::weights::Weights;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, nearest};
use amscript_base::file::{self, FileType};
use amscript_base::progress::Progress;
use amscript_base::{input, permissions, text};
use amscript_tensor::{DType, Device};
use cache::{expanded, hub_cache, snapshot};
use include_dir::{Dir, include_dir};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{self, Path, PathBuf};

static ASSETS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../assets");

/// A folder of model files, read-only.
#[derive(Clone, Debug)]
pub struct Folder {
    place: FolderRoot,
}

#[derive(Clone, Debug)]
enum FolderRoot {
    Disk(PathBuf),
    Embedded(&'static Dir<'static>),
}

impl Folder {
    /// A folder on disk.
    pub fn disk(path: impl Into<PathBuf>) -> Self {
        Self { place: FolderRoot::Disk(path.into()) }
    }

    /// A folder of the embedded assets such as `tiny/flux2`.
    pub fn embedded(name: &str) -> Option<Self> {
        ASSETS.get_dir(name).map(|dir| Self { place: FolderRoot::Embedded(dir) })
    }

    /// Where it is, for messages.
    pub fn origin(&self) -> String {
        match &self.place {
            FolderRoot::Disk(path) => path.display().to_string(),
            FolderRoot::Embedded(dir) => format!("embedded {}", dir.path().display()),
        }
    }

    /// The path of a folder on disk.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            FolderRoot::Disk(path) => Some(path),
            FolderRoot::Embedded(_) => None,
        }
    }

    pub fn sub(&self, name: &str) -> Result<Self> {
        let found = match &self.place {
            FolderRoot::Disk(path) => Some(path.join(name)).filter(|path| file::is_folder(path)).map(Self::disk),
            FolderRoot::Embedded(dir) => {
                dir.get_dir(dir.path().join(name)).map(|dir| Self { place: FolderRoot::Embedded(dir) })
            }
        };
        found.ok_or_else(|| self.lacks(name))
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.place {
            // a link to nothing is a download that has not ended, which whoever reads it is told
            FolderRoot::Disk(path) => {
                let path = path.join(name);
                file::exists(&path) || file::itself(&path) == Some(FileType::Link)
            }
            FolderRoot::Embedded(dir) => dir.contains(dir.path().join(name)),
        }
    }

    /// Names of the files and folders in it, in order.
    pub fn names(&self) -> BTreeSet<String> {
        match &self.place {
            FolderRoot::Disk(path) => names(path).collect(),
            FolderRoot::Embedded(dir) => {
                dir.entries().iter().filter_map(|e| Some(e.path().file_name()?.to_str()?.to_string())).collect()
            }
        }
    }

    pub fn bytes(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        match &self.place {
            FolderRoot::Disk(path) => {
                let path = path.join(name);
                let bytes = file::read(&path).and_then(|bytes| input::note(&path).map(|()| bytes));
                bytes.map(Cow::Owned).map_err(|e| self.unread(name, e))
            }
            FolderRoot::Embedded(dir) => match dir.get_file(dir.path().join(name)) {
                Some(file) => Ok(Cow::Borrowed(file.contents())),
                None => Err(self.lacks(name)),
            },
        }
    }

    /// A file of text in UTF-8, with or without a mark at its beginning.
    pub fn text(&self, name: &str) -> Result<String> {
        let bytes = self.bytes(name)?;
        if bytes.is_empty() {
            bail!(File, "{}/{name}: expected a text, got 0 bytes", self.origin(); hint: "fetch it again");
        }
        text::decoded(bytes.into_owned()).map_err(|e| self.unread(name, e).hint(text::AS_UTF8))
    }

    /// A JSON file as a typed config; fields it does not know are ignored.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_str(&self.text(name)?)
            .map_err(|e| Error::new(Kind::File, format!("{}/{name}: {e}", self.origin())))
    }

    pub fn archive(&self, name: &str) -> Result<Archive> {
        match (&self.place, self.bytes_if_embedded(name)) {
            (FolderRoot::Disk(path), _) if file::is_file(&path.join(name)) => Archive::open(&path.join(name)),
            (_, Some(bytes)) => Archive::embedded(&format!("{}/{name}", self.origin()), bytes),
            _ => Err(self.lacks(name)),
        }
    }

    /// SHA-256 of a file, where it costs nothing: of what is embedded, and in the Hugging Face cache, whose blobs are named by it.
    pub fn known_hash(&self, name: &str) -> Option<String> {
        let FolderRoot::Disk(folder) = &self.place else {
            return self.bytes(name).ok().map(|bytes| digest::hash(&bytes));
        };
        let blob = file::link(&folder.join(name)).ok().filter(|to| to.parent().is_some_and(|p| p.ends_with("blobs")));
        let hash = blob.and_then(|to| to.file_name()?.to_str().map(String::from));
        hash.filter(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// SHA-256 of a file, read where it must be.
    pub fn hash(&self, name: &str) -> Option<String> {
        self.known_hash(name).or_else(|| {
            let path = self.path()?.join(name);
            let _shown = Progress::bytes(format!("hashing {name}"), file::size(&path).unwrap_or(0));
            digest::hash_file(&path).ok()
        })
    }

    fn bytes_if_embedded(&self, name: &str) -> Option<&'static [u8]> {
        match &self.place {
            FolderRoot::Disk(_) => None,
            FolderRoot::Embedded(dir) => dir.get_file(dir.path().join(name)).map(|file| file.contents()),
        }
    }

    /// The weights in [`Folder::archives`].
    pub fn weights(&self, stem: &str, dtype: DType, device: &Device) -> Result<Weights> {
        Weights::open(self.archives(stem)?, dtype, device)
    }

    /// `{stem}.safetensors`, or the shards that `{stem}.safetensors.index.json` lists.
    pub fn archives(&self, stem: &str) -> Result<Vec<Archive>> {
        let index = format!("{stem}.safetensors.index.json");
        if !self.has(&index) {
            return Ok(vec![self.archive(&format!("{stem}.safetensors"))?]);
        }
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let map = self.json::<Index>(&index)?.weight_map;
        let shards: BTreeSet<&String> = map.values().collect();
        if let Some(shard) = shards.iter().find(|shard| !plain(shard)) {
            bail!(File, "{}/{index}: a shard must be a file beside it, got `{shard}`", self.origin());
        }
        let archives = shards.into_iter().map(|shard| self.archive(shard)).collect::<Result<Vec<_>>>()?;
        for (name, shard) in &map {
            if !archives.iter().any(|archive| archive.entries().contains_key(name)) {
                bail!(Missing, "{}/{shard}: tensor `{name}` is missing, though the index lists it", self.origin());
            }
        }
        Ok(archives)
    }

    /// Why a file cannot be read.
    fn unread(&self, name: &str, error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::NotFound => self.lacks(name),
            _ => Error::new(Kind::File, format!("{}/{name}: {error}", self.origin())),
        }
    }

    fn lacks(&self, name: &str) -> Error {
        let refusal = |path: &Path| file::open(&path.join(name)).err().filter(permissions::refused);
        if let Some(refusal) = self.path().and_then(refusal) {
            return Error::new(Kind::File, format!("{}: {refusal}", self.origin()));
        }
        let names = self.names();
        let error = Error::new(Kind::File, format!("{}: no readable `{name}`", self.origin()));
        if self.path().is_some_and(|path| file::itself(&path.join(name)) == Some(FileType::Link)) {
            let message = format!("{}: what `{name}` links to is not there; its download has not ended", self.origin());
            return Error::new(Kind::Missing, message).hint("fetch it again with `hf download`");
        }
        if let Some(how) = converted(name, &names) {
            return self.with_download(error.hint(how));
        }
        let error = match (self.index_of(name), nearest(name, names.iter().map(String::as_str))) {
            (Some(index), _) => error.hint(format!("`{index}` lists it; fetch it again with `hf download`")),
            (None, Some(near)) if near != name => error.hint(format!("the nearest name there is `{near}`")),
            _ => error,
        };
        self.with_download(error)
    }

    /// The index that lists a shard.
    fn index_of(&self, shard: &str) -> Option<String> {
        let folder = self.path().filter(|_| shard.ends_with(".safetensors"))?;
        let lists = |index: &String| {
            index.ends_with(".safetensors.index.json")
                && file::read_text(&folder.join(index)).is_ok_and(|text| text.contains(&format!("\"{shard}\"")))
        };
        self.names().into_iter().find(lists)
    }
}

/// The files of one part of a model: a folder in the Hugging Face layout, or a single file of weights.
#[derive(Clone, Debug)]
pub enum Component {
    Folder(Folder),
    File(PathBuf),
}

impl Component {
    /// A folder or file on disk.
    pub fn at(path: &Path) -> Result<Self> {
        match (file::is_folder(path), file::is_file(path)) {
            (true, _) => Ok(Self::Folder(Folder::disk(path))),
            (_, true) => Ok(Self::File(path.into())),
            _ => bail!(Missing, "{}: expected a folder or file of weights, got neither", path.display()),
        }
    }

    pub fn archives(&self) -> Result<Vec<Archive>> {
        match self {
            Self::Folder(folder) => folder.archives("diffusion_pytorch_model"),
            Self::File(path) => Ok(vec![Archive::open(path)?]),
        }
    }

    /// The `config.json` of a folder; a single file has none.
    pub fn config<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        match self {
            Self::Folder(folder) => folder.json("config.json").map(Some),
            Self::File(_) => Ok(None),
        }
    }
}

/// How to make a file of transformers from its older form, where only that is there.
fn converted(name: &str, names: &BTreeSet<String>) -> Option<&'static str> {
    let has = |other: &str| names.contains(other);
    match name {
        "model.safetensors" if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") => Some(
            "`pytorch_model.bin` is not read here; transformers' `from_pretrained(..).save_pretrained(..)` writes model.safetensors",
        ),
        "tokenizer.json" if has("vocab.json") && has("merges.txt") => {
            Some("`AutoTokenizer.from_pretrained(..).save_pretrained(..)` writes tokenizer.json")
        }
        _ => None,
    }
}

/// A relative name that stays below the folder it is looked up in.
fn plain(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|c| matches!(c, path::Component::Normal(_)))
}

/// The places where names are looked up, in order; the embedded tiny family comes last.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Folders that hold models by name: `--models`, `AMSCRIPT_MODELS`.
    folders: Vec<PathBuf>,
    /// Hub caches in the `models--org--name/snapshots/..` layout.
    caches: Vec<PathBuf>,
    /// Short names of published models, and the repositories that hold them.
    published: Vec<(&'static str, &'static str)>,
}

impl Sources {
    /// The folder of `--models`, if given, then `AMSCRIPT_MODELS`, then the Hugging Face cache.
    pub fn new(models: Option<&Path>) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            folders: models
                .map(PathBuf::from)
                .into_iter()
                .chain(variable("AMSCRIPT_MODELS").and_then(|folder| expanded(&folder, &variable)))
                .collect(),
            caches: hub_cache(&variable).into_iter().collect(),
            published: Vec::new(),
        }
    }

    /// The same with short names of published models, and the Hugging Face repositories that hold them.
    pub fn publishing(mut self, names: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        for name in names {
            if !self.published.contains(&name) {
                self.published.push(name);
            }
        }
        self
    }

    /// Short names of published models, and their repositories.
    pub fn published(&self) -> &[(&'static str, &'static str)] {
        &self.published
    }

    /// All folders that are searched.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().chain(&self.caches).map(PathBuf::as_path)
    }

    /// The folder of a model: a path, or a name as in [`Sources::named`].
    pub fn find(&self, name: &str) -> Result<Folder> {
        if file::is_folder(Path::new(name)) { Ok(Folder::disk(name)) } else { self.named(name) }
    }

    /// A file of weights: a path, or the name of a file in one of the model folders.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let inside = self.folders.iter().filter(|_| plain(name)).map(|folder| folder.join(name));
        std::iter::once(PathBuf::from(name)).chain(inside).find(|path| file::is_file(path))
    }

    /// The folder of a model by name: short (see [`Sources::publishing`]), a repository such as `org/name`, or a tiny model. Behind `@`
    /// stands a revision in the Hugging Face cache: a branch, a tag, or the beginning of a commit.
    pub fn named(&self, name: &str) -> Result<Folder> {
        let (bare, revision) = name.split_once('@').map_or((name, None), |(bare, revision)| (bare, Some(revision)));
        let repository =
            self.published.iter().find(|(short, _)| *short == bare).map_or(bare, |(_, repository)| repository);
        let found = (plain(name) && revision.is_none())
            .then(|| self.folders.iter().find_map(|folder| in_folder(folder, name, repository)))
            .flatten()
            .or_else(|| self.caches.iter().find_map(|cache| snapshot(cache, repository, revision)))
            .map(Folder::disk)
            .or_else(|| Folder::embedded(name));
        found.ok_or_else(|| self.not_found(name, repository))
    }

    fn not_found(&self, name: &str, repository: &str) -> Error {
        let mut places: Vec<String> =
            self.folders.iter().chain(&self.caches).map(|place| place.display().to_string()).collect();
        places.push("the embedded tiny family".into());
        let known = self.known();
        let published = self.published.iter().any(|(_, r)| *r == repository);
        let hint = match nearest(name, known.keys().map(String::as_str)) {
            _ if published && name.contains('@') => {
                let revision = name.split_once('@').map_or("", |(_, revision)| revision);
                format!("fetch it with `hf download {repository} --revision {revision}`")
            }
            _ if published => format!("fetch it with `hf download {repository}`, or give its folder with --models"),
            Some(near) => format!("the nearest name is `{near}`; `models()` lists all"),
            None => format!("known here: {}", known.into_keys().collect::<Vec<_>>().join(", ")),
        };
        let message = format!("expected a model folder or name, got `{name}`; looked in {}", places.join(", "));
        Error::new(Kind::Missing, message).hint(hint)
    }

    /// Names that can be found now, and where each is.
    pub fn known(&self) -> BTreeMap<String, String> {
        let on_disk = self.folders.iter().flat_map(|folder| models_below(folder));
        let cached = self.caches.iter().flat_map(|cache| {
            below(cache).into_keys().filter_map(|name| {
                let repository = name.strip_prefix("models--")?.replacen("--", "/", 1);
                snapshot(cache, &repository, None).map(|path| (repository, path))
            })
        });
        let mut known = BTreeMap::new();
        for (name, path) in on_disk.chain(cached) {
            known.entry(name).or_insert_with(|| path.display().to_string());
        }
        for dir in ASSETS.get_dir("tiny").into_iter().flat_map(|tiny| tiny.dirs()) {
            known.entry(dir.path().display().to_string()).or_insert_with(|| "embedded".into());
        }
        known
    }
}

/// Below `folder` by its name, its repository, or the repository's last part; a tiny model by its whole name only.
fn in_folder(folder: &Path, name: &str, repository: &str) -> Option<PathBuf> {
    let last = repository.rsplit('/').next().filter(|_| !name.starts_with("tiny/")).unwrap_or(repository);
    [name, repository, last].into_iter().map(|name| folder.join(name)).find(|path| file::is_folder(path))
}

/// Names in a folder, those that are text and not hidden.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let names = file::entries(folder).unwrap_or_default().into_iter().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| !name.starts_with('.'))
}

fn below(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = names(folder).map(|name| (name.clone(), folder.join(name)));
    entries.filter(|(_, path)| file::is_folder(path)).collect()
}

/// Models by name, `a` or `a/b`; what lies inside a model is not one itself.
fn models_below(folder: &Path) -> Vec<(String, PathBuf)> {
    let nested = |(name, path): (String, PathBuf)| match is_model(&path) {
        true => vec![(name, path)],
        false => {
            below(&path).into_iter().filter(|(_, p)| is_model(p)).map(|(n, p)| (format!("{name}/{n}"), p)).collect()
        }
    };
    below(folder).into_iter().flat_map(nested).collect()
}

/// Has a config or weights of its own.
fn is_model(path: &Path) -> bool {
    Folder::disk(path).names().iter().any(|name| {
        ["model_index.json", "config.json", "open_clip_config.json"].contains(&name.as_str()) || name.ends_with(".pt")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Init;
    use amscript_tensor::Rng;

    fn sources(folder: &Path) -> Sources {
        let published = vec![("hpsv2", "xswu/HPSv2"), ("flux2", "black-forest-labs/FLUX.2-klein-base-4B")];
        Sources { folders: vec![folder.join("models")], caches: vec![folder.join("hub")], published }
    }

    fn touch(path: PathBuf) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{}").unwrap();
    }

    #[test]
    fn names_are_looked_up_in_order() {
        let root = tempfile::tempdir().unwrap();
        let sources = sources(root.path());
        let hub = root.path().join("hub/models--xswu--HPSv2");
        touch(hub.join("snapshots/a/HPS.pt"));
        touch(hub.join("snapshots/b/HPS.pt"));
        assert!(sources.find("hpsv2").unwrap().path().unwrap().ends_with("snapshots/b"));
        std::fs::create_dir_all(hub.join("refs")).unwrap();
        std::fs::write(hub.join("refs/main"), "a\n").unwrap();
        assert!(sources.find("xswu/HPSv2").unwrap().path().unwrap().ends_with("snapshots/a"));
        touch(root.path().join("models/HPSv2/HPS.pt"));
        assert!(sources.find("hpsv2").unwrap().path().unwrap().ends_with("models/HPSv2"));
        assert_eq!(sources.known().len(), 2 + Sources::default().known().len());
        touch(root.path().join("models/flux2/config.json"));
        assert!(sources.find("tiny/flux2").unwrap().path().is_none());
    }

    #[test]
    fn revisions_are_branches_tags_or_the_beginning_of_a_commit() {
        let root = tempfile::tempdir().unwrap();
        let (sources, hub) = (sources(root.path()), root.path().join("hub/models--xswu--HPSv2"));
        for commit in ["abcd1111", "abcd2222", "ef012345"] {
            touch(hub.join("snapshots").join(commit).join("HPS.pt"));
        }
        std::fs::create_dir_all(hub.join("refs")).unwrap();
        std::fs::write(hub.join("refs/v2"), "abcd1111").unwrap();
        let end = |name: &str| {
            sources.find(name).ok().map(|f| f.path().unwrap().file_name().unwrap().to_str().unwrap().to_string())
        };
        assert_eq!(end("hpsv2@v2"), Some("abcd1111".into()));
        assert_eq!(end("xswu/HPSv2@abcd2"), Some("abcd2222".into()));
        assert_eq!([end("hpsv2@abcd"), end("hpsv2@ef"), end("hpsv2@../x"), end("hpsv2@")], [None, None, None, None]);
        let hint = sources.find("hpsv2@v3").unwrap_err().hint.unwrap();
        assert_eq!(hint, "fetch it with `hf download xswu/HPSv2 --revision v3`");
    }

    #[cfg(unix)]
    #[test]
    fn a_download_that_has_not_ended_is_told() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../../blobs/x", root.path().join("model.safetensors")).unwrap();
        let folder = Folder::disk(root.path());
        assert!(folder.has("model.safetensors"));
        for error in [folder.archive("model.safetensors").err(), folder.bytes("model.safetensors").err()] {
            assert!(
                error
                    .unwrap()
                    .message
                    .ends_with("what `model.safetensors` links to is not there; its download has not ended")
            );
        }
    }

    #[test]
    fn older_forms_are_told_how_to_become_newer_ones() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::disk(root.path());
        for name in ["pytorch_model.bin", "vocab.json", "merges.txt"] {
            touch(root.path().join(name));
        }
        let weights = folder.archives("model").err().unwrap();
        assert!(weights.hint.unwrap().starts_with("`pytorch_model.bin` is not read here"));
        assert!(folder.text("tokenizer.json").unwrap_err().hint.unwrap().ends_with("writes tokenizer.json"));
        std::fs::remove_file(root.path().join("merges.txt")).unwrap();
        assert!(!folder.text("tokenizer.json").unwrap_err().hint.is_some_and(|hint| hint.contains("AutoTokenizer")));
    }

    #[test]
    fn texts_have_a_mark_or_none_and_are_not_empty() {
        let root = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(root.path().join("config.json"), bytes).unwrap();
            Folder::disk(root.path()).json::<serde_json::Value>("config.json")
        };
        assert_eq!(read(b"\xef\xbb\xbf{\"a\": 1}").unwrap()["a"], 1);
        let error = read(b"").unwrap_err();
        assert!(
            error.message.ends_with("config.json: expected a text, got 0 bytes") && error.hint.is_some(),
            "{error}"
        );
        assert!(read(b"\"caf\xe9\"").unwrap_err().message.contains("it is not text in UTF-8"));
    }

    #[test]
    fn a_name_not_found_says_where_it_was_sought() {
        let root = tempfile::tempdir().unwrap();
        let error = sources(root.path()).find("hpsv2").unwrap_err();
        assert_eq!(error.kind, Kind::Missing);
        assert!(
            error.message.contains("models, ") && error.message.ends_with("hub, the embedded tiny family"),
            "{error}"
        );
        assert!(error.hint.unwrap().starts_with("fetch it with `hf download xswu/HPSv2`"));
        assert!(sources(root.path()).find("../secret").is_err());
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let weights = Weights::random(&Rng::new(0), DType::F32, &Device::Cpu);
            weights.get(name, &[2], Init::Ones).unwrap();
            weights.save(&root.path().join(format!("{name}.safetensors")), None).unwrap();
        }
        let index = root.path().join("model.safetensors.index.json");
        let write = |text: &str| std::fs::write(&index, text).unwrap();
        let load = || Folder::disk(root.path()).weights("model", DType::F32, &Device::Cpu);
        write(r#"{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#);
        assert_eq!(load().unwrap().names(), ["a", "b"]);
        write(r#"{"weight_map": {"a": "a.safetensors", "c": "b.safetensors"}}"#);
        assert!(
            load().err().unwrap().message.ends_with("b.safetensors: tensor `c` is missing, though the index lists it")
        );
        write(r#"{"weight_map": {"a": "a.safetensors", "c": "c.safetensors"}}"#);
        let error = load().err().unwrap();
        assert_eq!(error.hint.unwrap(), "`model.safetensors.index.json` lists it; fetch it again with `hf download`");
        write(r#"{"weight_map": {"a": "../a.safetensors"}}"#);
        assert!(load().err().unwrap().message.contains("must be a file beside it"));
    }
}
