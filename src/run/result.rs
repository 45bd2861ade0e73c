//! What a run reports at its end: per measure the mean and standard error of each column, and the change between them.

use super::record::hash_file;
use crate::error::{Error, Kind, Result};
use crate::metric::Estimate;
use comfy_table::{CellAlignment, Table, TableComponent, presets};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A measure with its columns, such as `base` and `tuned`, one value per item.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub columns: Vec<(String, Vec<f64>)>,
}

impl Row {
    fn values(&self, column: &str) -> Option<&[f64]> {
        self.columns.iter().find(|(name, _)| name == column).map(|(_, values)| values.as_slice())
    }

    /// A column minus the reference, item by item, where both are there.
    fn change(&self, column: &str, reference: &str) -> Result<Option<Estimate>> {
        match (self.values(reference), self.values(column)) {
            (Some(before), Some(after)) if column != reference => Estimate::paired(before, after).map(Some),
            _ => Ok(None),
        }
    }
}

/// Names of the columns, in the order they first come; what the first holds is the reference for the others.
fn columns(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|r| &r.columns) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// The table that people see. Two columns have their change beside them; of more, each tells its change in standard errors.
pub fn table(rows: &[Row]) -> Result<String> {
    let names = columns(rows);
    let (two, reference) = (names.len() == 2, names.first().copied().unwrap_or_default());
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.remove_style(TableComponent::HorizontalLines);
    table.remove_style(TableComponent::MiddleIntersections);
    let tail: &[&str] = if two { &["change", "in errors", "n"] } else { &["n"] };
    table.set_header([&["measure"], names.as_slice(), tail].concat());
    for row in rows {
        let mut cells = vec![row.name.clone()];
        for name in &names {
            let mut cell = row.values(name).map_or(String::new(), |values| Estimate::of(values).to_string());
            if let Some(change) = row.change(name, reference)?.filter(|c| !two && c.error > 0.0) {
                cell += &format!(" ({:+.1})", change.sigmas());
            }
            cells.push(cell);
        }
        if let (true, [first, last]) = (two, names.as_slice()) {
            let change = row.change(last, first)?;
            cells.push(change.map_or(String::new(), |c| format!("{c:+}")));
            cells.push(change.filter(|c| c.error > 0.0).map_or(String::new(), |c| format!("{:+.1}", c.sigmas())));
        }
        cells.push(row.columns.first().map_or(0, |(_, v)| v.len()).to_string());
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let note = if names.len() > 2 {
        format!("\nin brackets: the change from {reference} in its standard errors")
    } else {
        String::new()
    };
    Ok(table.to_string() + &note)
}

/// The table for spreadsheets, a line per measure and column.
pub fn csv(rows: &[Row]) -> Result<String> {
    let names = columns(rows);
    let reference = names.first().copied().unwrap_or_default();
    let refused = |e: csv::Error| Error::new(Kind::Internal, format!("csv: {e}"));
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["measure", "column", "mean", "error", "count", "change", "change_error"]).map_err(refused)?;
    for row in rows {
        for (name, values) in &row.columns {
            let (own, change) = (Estimate::of(values), row.change(name, reference)?);
            let number = |x: f64| if x.is_finite() { x.to_string() } else { String::new() };
            let of = |part: fn(&Estimate) -> f64| change.as_ref().map_or(String::new(), |c| number(part(c)));
            let (count, mean, error) = (own.count.to_string(), number(own.mean), number(own.error));
            let record = [row.name.clone(), name.clone(), mean, error, count, of(|c| c.mean), of(|c| c.error)];
            out.write_record(record).map_err(refused)?;
        }
    }
    let bytes = out.into_inner().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Per measure and column the mean, standard error and count, and the change from the first column.
pub fn measures(rows: &[Row]) -> Result<Value> {
    let estimate = |e: &Estimate| json!({ "mean": e.mean, "error": e.error, "count": e.count });
    let names = columns(rows);
    let reference = names.first().copied().unwrap_or_default();
    let mut measures = Map::new();
    for row in rows {
        let mut columns = Map::new();
        for (name, values) in &row.columns {
            let mut column = estimate(&Estimate::of(values));
            if let Some(change) = row.change(name, reference)? {
                column["change"] = estimate(&change);
            }
            columns.insert(name.clone(), column);
        }
        measures.insert(row.name.clone(), Value::Object(columns));
    }
    Ok(Value::Object(measures))
}

/// Everything `result.json` holds.
pub fn json(folder: &Path, rows: &[Row], steps: usize, seconds: f64) -> Result<Value> {
    let (sha256, peak) = (hashes(folder)?, super::record::peak_memory());
    Ok(
        json!({ "measures": measures(rows)?, "steps": steps, "seconds": seconds, "peak_memory": peak, "sha256": sha256 }),
    )
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
    #[test]
    fn of_many_columns_each_has_its_change_from_the_first() {
        let columns = [("base", [1.0, 2.0, 3.0]), ("a", [2.0, 3.0, 4.5]), ("b", [1.0, 2.0, 2.5])];
        let columns = columns.map(|(name, values)| (name.to_string(), values.to_vec())).to_vec();
        let recall = vec![("a".to_string(), vec![0.5, 0.7])];
        let rows = [Row { name: "reward, \"x\"".into(), columns }, Row { name: "recall".into(), columns: recall }];
        let text = table(&rows).unwrap();
        assert!(text.contains("3.17 ± 0.73 (+7.0)") && text.contains("1.83 ± 0.44 (-1.0)"), "{text}");
        assert!(text.contains("in brackets: the change from base"), "{text}");
        let csv = csv(&rows).unwrap();
        assert_eq!(csv.lines().count(), 5);
        assert!(csv.contains("\"reward, \"\"x\"\"\",base,2,0.577"), "{csv}");
        let json = measures(&rows).unwrap();
        assert!(json["recall"]["a"]["change"].is_null() && json["reward, \"x\""]["b"]["change"]["count"] == 3);
    }
}
