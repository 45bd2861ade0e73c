//! What a run was made from, as JSON: versions, recipe, settings, seed, and hashes of what it wrote.

use amscript_base::error::{Error, Kind, Result};
use amscript_base::{file, memory};
use amscript_nn::digest;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The recipe that runs.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// As given on the command line; `None` for text.
    pub path: Option<PathBuf>,
    pub text: String,
}

/// Everything `run.json` holds.
pub fn record(recipe: &Recipe, settings: &Map<String, Value>, seed: u64, device: &str) -> Value {
    json!({
        "versions": versions(),
        "recipe": {
            "path": recipe.path.as_ref().map(|p| p.display().to_string()),
            "sha256": digest::hash(recipe.text.as_bytes()),
            "text": recipe.text,
        },
        "settings": settings,
        "seed": seed,
        "device": device,
        "threads": rayon::current_num_threads(),
    })
}

/// Our version, and those of the crates that decide numbers and syntax, from the lock file of the build.
fn versions() -> Value {
    let lock = include_str!("../../../Cargo.lock");
    let of = |name: &str| {
        let entry = lock.split("[[package]]").find(|p| p.contains(&format!("name = \"{name}\"\n")));
        let version = entry.and_then(|p| p.split("version = \"").nth(1)).and_then(|v| v.split('"').next());
        version.unwrap_or("unknown").to_string()
    };
    json!({ "amscript": env!("CARGO_PKG_VERSION"), "candle": of("candle-core"), "rhai": of("rhai"), "rng": "chacha12" })
}

/// Most bytes of memory that this process held so far; known on Linux.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// SHA-256 of a file.
pub fn hash_file(path: &Path) -> Result<String> {
    digest::hash_file(path).map_err(|e| file_error(path, "read", &e))
}

/// Writes JSON, whole or not at all.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_text(path, &format!("{value:#}\n"))
}

/// Writes text, whole or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    file::write_whole(path, text.as_bytes()).map_err(|e| file_error(path, "write", &e))
}

pub fn read_json(path: &Path) -> Result<Value> {
    let text = file::read_text(path).map_err(|e| file_error(path, "read", &e))?;
    memory::room_for_json(text.as_bytes(), || format!("the JSON of {}", path.display()))?;
    let refused = |what: String| Error::new(Kind::File, format!("{}: must hold JSON, got {what}", path.display()));
    let value: Value = serde_json::from_str(&text).map_err(|e| refused(format!("an error ({e})")))?;
    if value.is_object() { Ok(value) } else { Err(refused("no object".into())) }
}

pub fn file_error(path: &Path, verb: &str, error: &std::io::Error) -> Error {
    Error::new(Kind::File, format!("cannot {verb} `{}` ({error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_grows_with_what_is_held() {
        let before = peak_memory().unwrap();
        let held = vec![1u8; before as usize + (64 << 20)];
        assert!(peak_memory().unwrap() >= before + (32 << 20), "{}", held.len());
    }

    #[test]
    fn records_are_objects() {
        let path = tempfile::tempdir().unwrap().keep().join("run.json");
        for text in ["[1]", "3", "{"] {
            std::fs::write(&path, text).unwrap();
            assert!(read_json(&path).unwrap_err().message.contains("must hold JSON, got"));
        }
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        assert_eq!(versions()["candle"], "0.11.1");
        assert_eq!(versions()["rhai"], "1.27.0");
    }
}
