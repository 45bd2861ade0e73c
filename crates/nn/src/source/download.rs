//! Downloads by huggingface_hub that have not ended: a file gets its name, or the link to it, when it is whole.

use super::{Folder, names};
use amscript_base::error::Error;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

impl Folder {
    /// The error of what is not there, which says so where a download into the folder has not ended.
    pub fn with_download(&self, mut error: Error) -> Error {
        if self.unfinished().is_empty() {
            return error;
        }
        error.message += "; a download of this model has not ended";
        error.hint("fetch it again with `hf download`")
    }

    /// What huggingface_hub has begun to fetch: of the cache, beside its blobs; of a folder, below `.cache`.
    pub fn unfinished(&self) -> Vec<String> {
        let Some(path) = self.path() else { return Vec::new() };
        let fetched = |above: &Path| {
            let below = path.strip_prefix(above).unwrap_or(path);
            let local = above.join(".cache/huggingface/download").join(below);
            // the snapshot of a model in the cache, or a folder in it
            let cache = (above.file_name() == Some(OsStr::new("snapshots"))).then(|| above.with_file_name("blobs"));
            std::iter::once(local).chain(cache)
        };
        let begun = |folder: PathBuf| {
            let names: BTreeSet<String> = names(&folder).collect();
            let is_whole = |name: &str| name.strip_suffix(".incomplete").is_some_and(|whole| names.contains(whole));
            let is_begun = |name: &&String| name.ends_with(".incomplete") && !is_whole(name);
            names.iter().filter(is_begun).cloned().collect::<Vec<_>>()
        };
        path.ancestors().take(3).flat_map(fetched).flat_map(begun).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{}").unwrap();
    }

    #[test]
    fn downloads_begun_without_a_link_are_told() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("hub/models--xswu--HPSv2");
        touch(model.join("snapshots/a/unet/config.json"));
        let missing = |folder: &Path| Folder::disk(folder).archive("model.safetensors").err().unwrap();
        let (snapshot, local) = (model.join("snapshots/a"), root.path().join("local"));
        touch(model.join("blobs/abc.incomplete"));
        touch(model.join("blobs/abc"));
        assert!(missing(&snapshot).message.ends_with("no readable `model.safetensors`"));
        touch(model.join("blobs/ef.incomplete"));
        touch(local.join(".cache/huggingface/download/unet/x.incomplete"));
        for folder in [snapshot.clone(), snapshot.join("unet"), local.join("unet")] {
            std::fs::create_dir_all(&folder).unwrap();
            let error = missing(&folder);
            assert!(
                error.message.ends_with("no readable `model.safetensors`; a download of this model has not ended"),
                "{error}"
            );
        }
        assert_eq!(Folder::disk(snapshot).unfinished(), ["ef.incomplete"]);
    }
}
