//! `amscript models`: what is known, what is found, and which files it is made of.

use super::{ModelsArgs, output, quantity};
use crate::script::registry::Registry;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::progress::Progress;
use amscript_nn::inventory::{self, Availability, File, Model};
use amscript_nn::source::Sources;
use comfy_table::{CellAlignment, Table, presets};

/// Prints the list, or one model in detail.
pub fn command(arguments: &ModelsArgs) -> anyhow::Result<()> {
    output::line(&listing(arguments)?)
}

fn listing(arguments: &ModelsArgs) -> Result<String> {
    if let Some(models) = arguments.models.as_ref().filter(|m| !m.is_dir()) {
        bail!(Missing, "--models: expected a folder, got \"{}\"", models.display());
    }
    let sources = Registry::default().publishing(Sources::new(arguments.models.as_deref()));
    let mut models = match &arguments.name {
        Some(name) => vec![inventory::model(&sources, name)?],
        None => inventory::models(&sources),
    };
    if arguments.hash {
        hash(&mut models);
    }
    if arguments.json {
        let json = serde_json::to_string_pretty(&models);
        return json.map_err(|e| amscript_base::error::Error::new(amscript_base::error::Kind::Internal, e.to_string()));
    }
    Ok(table(&models, arguments.name.is_some()))
}

/// Hashes what is not hashed yet, with a bar.
fn hash(models: &mut [Model]) {
    let _shown = Progress::bytes("hashing", models.iter().map(Model::unhashed).sum());
    models.iter_mut().for_each(Model::hash);
}

/// A heading for each model, and a row for each of its files: those with weights or faults, or `all`.
fn table(models: &[Model], all: bool) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let shown = |file: &&File| all || file.is_weights() || file.fault.is_some();
    for model in models {
        model.files.iter().filter(shown).for_each(|file| {
            table.add_row(row(file, all));
        });
    }
    for column in table.column_iter_mut() {
        column.set_padding((1, 1));
    }
    for column in [2, 3, 4] {
        table.column_mut(column).into_iter().for_each(|c| {
            c.set_cell_alignment(CellAlignment::Right);
        });
    }
    let text = table.to_string();
    let mut rows = text.lines();
    let mut out = Vec::new();
    for model in models {
        out.push(heading(model));
        out.extend(
            rows.by_ref().take(model.files.iter().filter(shown).count()).map(|row| format!(" {}", row.trim_end())),
        );
    }
    out.join("\n")
}

fn heading(model: &Model) -> String {
    let path = model.path.as_deref().unwrap_or_default();
    let fetch = model.repository.as_deref().map(|r| format!("fetch it with `hf download {r}`")).unwrap_or_default();
    match model.place {
        Availability::Missing => format!("{}: not found; {fetch}", model.name),
        Availability::Folder => format!("{}: {path}", model.name),
        Availability::Cache => format!("{}: in the Hugging Face cache, {path}", model.name),
        Availability::Embedded => format!("{}: embedded", model.name),
    }
}

/// File, type, tensors, numbers, size, hash or fault.
fn row(file: &File, whole: bool) -> Vec<String> {
    let hash = match &file.sha256 {
        Some(hash) if whole => format!("sha256 {hash}"),
        Some(hash) => format!("sha256 {}..", &hash[..12]),
        None => "not hashed".into(),
    };
    let last = file.fault.as_ref().map_or(hash, |fault| format!("damaged: {fault}"));
    let of = |f: &dyn Fn(&inventory::Tensors) -> String| file.tensors.as_ref().map(f).unwrap_or_default();
    vec![
        file.path(),
        of(&|t| t.types.join(" ")),
        of(&|t| format!("{} tensors", quantity::count(t.count as u64))),
        of(&|t| format!("{} numbers", quantity::count(t.parameters))),
        quantity::bytes(file.bytes as f64),
        last,
    ]
}
