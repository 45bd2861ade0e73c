//! `amscript info`: what a recipe asks for, without running it, and what a LoRA or an image was made from.

use super::{output, recipe, setting};
use crate::script::header::{self, Header};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_nn::archive::Archive;
use amscript_nn::data::image;
use std::collections::BTreeMap;
use std::path::Path;

/// `amscript info FILE`.
pub fn command(path: &Path) -> anyhow::Result<()> {
    output::line(&text(path)?)
}

fn text(path: &Path) -> Result<String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "safetensors" => Ok(origin(Archive::open(path)?.metadata().clone())),
        "png" => {
            let bytes = file::read_within(path, image::MAX_FILE)
                .map_err(|e| Error::new(Kind::File, format!("{}: {e}", path.display())))?;
            Ok(origin(image::texts(&bytes).map_err(|e| e.within(path.display()))?))
        }
        "jpg" | "jpeg" => {
            bail!(Value, "info: a JPEG does not tell what it was made from; expected .png, .safetensors or a script")
        }
        _ => of_recipe(path),
    }
}

/// What a file tells of where it comes from.
fn origin(texts: BTreeMap<String, String>) -> String {
    if texts.is_empty() {
        return "it does not tell what it was made from".into();
    }
    let lines: Vec<String> = texts.iter().map(|(key, value)| format!("{key:<10} {}", value.escape_debug())).collect();
    lines.join("\n")
}

fn of_recipe(path: &Path) -> Result<String> {
    let source = recipe::read(path)?;
    let header = Header::read(&source.text)?;
    let told = Some(recipe::headline(&source.text)).filter(|told| !told.is_empty() && header.get("title").is_none());
    let mut lines: Vec<String> = told.iter().map(|told| format!("{:<12} {}", "title", told.escape_debug())).collect();
    lines.extend(header.0.iter().map(|(key, value)| format!("{key:<12} {}", value.escape_debug())));
    let flags: Vec<String> = header.asks()?.iter().map(|(kind, name)| format!("--allow-{kind}={name}")).collect();
    let needs = if flags.is_empty() { "no flag".to_string() } else { flags.join(" ") };
    lines.push(format!("{:<12} {needs}", "needs"));
    lines.extend(
        header::opens(&source.text).iter().map(|(function, name)| format!("{function:<12} {}", name.escape_debug())),
    );
    let lock = super::lock::hash(&source)
        .map_or("none; `amscript lock` writes one".to_string(), |hash| format!("sha256 {hash}"));
    lines.push(format!("{:<12} sha256 {}", "recipe", amscript_nn::digest::hash(source.text.as_bytes())));
    lines.push(format!("{:<12} {lock}", "lock"));
    if let Some(settings) = setting::table(&source.text) {
        lines.push(format!("settings\n{settings}"));
    }
    Ok(lines.join("\n"))
}
