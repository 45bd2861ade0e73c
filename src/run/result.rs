//! What a run reports at its end: per measure the mean and standard error of each column, and the change between them.

use super::record::hash_file;
use crate::{error::Result, metric::Estimate};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A measure with its columns, such as `base` and `tuned`, one value per item.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub columns: Vec<(String, Vec<f64>)>,
}

impl Row {
    /// The last column minus the first, item by item.
    fn change(&self) -> Option<Result<Estimate>> {
        match self.columns.as_slice() {
            [(_, first), .., (_, last)] => Some(Estimate::paired(first, last)),
            _ => None,
        }
    }
}

/// Names of the columns, in the order they first come.
fn columns(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|r| &r.columns) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// The table that people see.
pub fn table(rows: &[Row]) -> Result<String> {
    let names = columns(rows);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let head = [&["measure"], names.as_slice(), &["change", "in errors", "n"]].concat();
    table.set_header(&head);
    for row in rows {
        let mut cells = vec![row.name.clone()];
        for name in &names {
            let values = row.columns.iter().find(|(n, _)| n == name);
            cells.push(values.map_or(String::new(), |(_, v)| Estimate::of(v).to_string()));
        }
        let change = row.change().transpose()?;
        cells.push(change.map_or(String::new(), |c| format!("{c:+}")));
        cells.push(change.filter(|c| c.error > 0.0).map_or(String::new(), |c| format!("{:+.1}", c.sigmas())));
        cells.push(row.columns.first().map_or(0, |(_, v)| v.len()).to_string());
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(table.to_string())
}

/// Everything `result.json` holds.
pub fn json(folder: &Path, rows: &[Row], steps: usize, seconds: f64) -> Result<Value> {
    let estimate = |e: &Estimate| json!({ "mean": e.mean, "error": e.error, "count": e.count });
    let mut measures = Map::new();
    for row in rows {
        let mut columns: Map<String, Value> =
            row.columns.iter().map(|(name, values)| (name.clone(), estimate(&Estimate::of(values)))).collect();
        if let Some(change) = row.change() {
            columns.insert("change".into(), estimate(&change?));
        }
        measures.insert(row.name.clone(), Value::Object(columns));
    }
    let (sha256, peak) = (hashes(folder)?, super::record::peak_memory());
    Ok(json!({ "measures": measures, "steps": steps, "seconds": seconds, "peak_memory": peak, "sha256": sha256 }))
}

/// Hashes of the weights in the run directory.
fn hashes(folder: &Path) -> Result<Map<String, Value>> {
    let refused = |e| super::record::file_error(folder, "read", &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(refused)? {
        names.push(entry.map_err(refused)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let weights = names.into_iter().filter(|n| n.ends_with(".safetensors"));
    weights.map(|name| Ok((name.clone(), hash_file(&folder.join(&name))?.into()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_the_paired_change() {
        let columns = vec![("base".into(), vec![1.0, 2.0, 3.0]), ("tuned".into(), vec![2.0, 3.0, 4.5])];
        let text = table(&[Row { name: "reward".into(), columns }]).unwrap();
        let line = text.lines().find(|l| l.contains("reward")).unwrap();
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "reward 2.00 ± 0.58 3.17 ± 0.73 +1.17 ± 0.17 +7.0 3"
        );
        let uneven = vec![("base".into(), vec![1.0]), ("tuned".into(), vec![])];
        assert!(table(&[Row { name: "x".into(), columns: uneven }]).is_err());
    }
}
