//! What a run reports at its end: means with standard errors, of measures whose columns are compared, or of things with columns.

use super::record::hash_file;
use crate::Estimate;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use comfy_table::{CellAlignment, Table as Drawn, TableComponent, presets};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A row with its columns, several values in each: a measure with columns such as `base` and `tuned`, one value per item, or
/// a method with columns such as `reward`, one value per seed.
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
    fn change(&self, column: &str, reference: Option<&str>) -> Result<Option<Estimate>> {
        match (reference.and_then(|name| self.values(name)), self.values(column)) {
            (Some(before), Some(after)) if reference != Some(column) => Estimate::paired(before, after).map(Some),
            _ => Ok(None),
        }
    }
}

/// Rows in their order.
#[derive(Clone, Debug)]
pub struct Table {
    pub rows: Vec<Row>,
    /// The columns in their order.
    columns: Vec<String>,
    /// Whether the first column is what the others are compared with, item by item.
    compared: bool,
}

impl Table {
    /// Rows are measures; what the first column holds is the reference for the others.
    pub fn of_measures(rows: Vec<Row>) -> Self {
        Self { columns: named(&rows), rows, compared: true }
    }

    /// Rows are things such as methods; `columns` are shown, or all.
    pub fn of_things(rows: Vec<Row>, columns: Option<Vec<String>>) -> Result<Self> {
        let known = named(&rows);
        let columns = columns.unwrap_or_else(|| known.clone());
        if let Some(unknown) = columns.iter().find(|name| !rows.is_empty() && !known.contains(name)) {
            bail!(Value, "finish: no row has the column `{unknown}`"; hint: "there are {}", known.join(", "));
        }
        Ok(Self { rows, columns, compared: false })
    }

    fn reference(&self) -> Option<&str> {
        self.columns.first().filter(|_| self.compared).map(String::as_str)
    }

    /// The table that people see. Of measures, two columns have their change beside them; of more, each tells its change in
    /// standard errors.
    pub fn text(&self) -> Result<String> {
        let (reference, two) = (self.reference(), self.compared && self.columns.len() == 2);
        let mut table = Drawn::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.remove_style(TableComponent::HorizontalLines);
        table.remove_style(TableComponent::MiddleIntersections);
        let mut header = vec![if self.compared { "measure" } else { "" }];
        header.extend(self.columns.iter().map(String::as_str));
        header.extend(if two { &["change", "in errors", "n"][..] } else { &["n"] });
        table.set_header(header);
        for row in &self.rows {
            let mut cells = vec![row.name.clone()];
            for name in &self.columns {
                let mut cell = row.values(name).map_or(String::new(), |values| Estimate::of(values).to_string());
                if let Some(change) = row.change(name, reference)?.filter(|c| !two && c.error > 0.0) {
                    cell += &format!(" ({:+.1})", change.sigmas());
                }
                cells.push(cell);
            }
            if two {
                let change = row.change(&self.columns[1], reference)?;
                cells.push(change.map_or(String::new(), |c| format!("{c:+}")));
                cells.push(change.filter(|c| c.error > 0.0).map_or(String::new(), |c| format!("{:+.1}", c.sigmas())));
            }
            cells.push(row.columns.iter().map(|(_, v)| v.len()).max().unwrap_or(0).to_string());
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let note = match reference {
            Some(first) if !two && self.columns.len() > 1 => {
                format!("\nin brackets: the change from {first} in its standard errors")
            }
            _ => String::new(),
        };
        Ok(table.to_string() + &note)
    }

    /// The table for spreadsheets, a line per row and column.
    pub fn csv(&self) -> Result<String> {
        let refused = |e: csv::Error| Error::new(Kind::Internal, format!("csv: {e}"));
        let mut out = csv::Writer::from_writer(Vec::new());
        let row = if self.compared { "measure" } else { "row" };
        let header = [row, "column", "mean", "error", "count", "change", "change_error"];
        out.write_record(&header[..if self.compared { 7 } else { 5 }]).map_err(refused)?;
        let number = |x: f64| if x.is_finite() { x.to_string() } else { String::new() };
        for row in &self.rows {
            for (name, values) in self.shown(row) {
                let own = Estimate::of(values);
                let mut record = vec![plain(&row.name), plain(name)];
                record.extend([number(own.mean), number(own.error), own.count.to_string()]);
                if self.compared {
                    let change = row.change(name, self.reference())?;
                    let of = |part: fn(&Estimate) -> f64| change.as_ref().map_or(String::new(), |c| number(part(c)));
                    record.extend([of(|c| c.mean), of(|c| c.error)]);
                }
                out.write_record(record).map_err(refused)?;
            }
        }
        let bytes = out.into_inner().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Per row and column the mean, standard error and count; of measures also the change from the first column.
    pub fn json(&self) -> Result<Value> {
        let estimate = |e: &Estimate| json!({ "mean": e.mean, "error": e.error, "count": e.count });
        let mut table = Map::new();
        for row in &self.rows {
            let mut columns = Map::new();
            for (name, values) in self.shown(row) {
                let mut column = estimate(&Estimate::of(values));
                if let Some(change) = row.change(name, self.reference())? {
                    column["change"] = estimate(&change);
                }
                columns.insert(name.into(), column);
            }
            table.insert(row.name.clone(), Value::Object(columns));
        }
        Ok(Value::Object(table))
    }

    /// The columns that a row has, in the table's order.
    fn shown<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = (&'a str, &'a [f64])> {
        self.columns.iter().filter_map(|name| Some((name.as_str(), row.values(name)?)))
    }
}

/// A name that no spreadsheet takes for a formula.
fn plain(name: &str) -> String {
    let formula = name.starts_with(['=', '+', '-', '@', '\t', '\r']);
    format!("{}{name}", if formula { "'" } else { "" })
}

/// Names of the columns, in the order they first come.
fn named(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in rows.iter().flat_map(|r| &r.columns) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Everything `result.json` holds.
pub fn json(folder: &Path, table: &Table, steps: usize, seconds: f64) -> Result<Value> {
    let (sha256, peak) = (hashes(folder)?, super::record::peak_memory());
    Ok(json!({
        "measures": table.json()?,
        "compared": table.compared,
        "steps": steps,
        "seconds": seconds,
        "peak_memory": peak,
        "card_memory": amscript_tensor::place::peak_of_cards(),
        "sha256": sha256,
    }))
}

/// Hashes of the weights in the run directory.
fn hashes(folder: &Path) -> Result<Map<String, Value>> {
    let refused = |e| super::record::file_error(folder, "read", &e);
    let mut names = Vec::new();
    for (name, _) in amscript_base::file::entries(folder).map_err(refused)? {
        names.push(name.to_string_lossy().into_owned());
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
        let text = Table::of_measures(vec![Row { name: "reward".into(), columns }]).text().unwrap();
        let line = text.lines().find(|l| l.contains("reward")).unwrap();
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "reward 2.00 ± 0.58 3.17 ± 0.73 +1.17 ± 0.17 +7.0 3"
        );
        let uneven = vec![("base".into(), vec![1.0]), ("tuned".into(), vec![])];
        assert!(Table::of_measures(vec![Row { name: "x".into(), columns: uneven }]).text().is_err());
    }
    #[test]
    fn of_many_columns_each_has_its_change_from_the_first() {
        let columns = [("base", [1.0, 2.0, 3.0]), ("a", [2.0, 3.0, 4.5]), ("b", [1.0, 2.0, 2.5])];
        let columns = columns.map(|(name, values)| (name.to_string(), values.to_vec())).to_vec();
        let recall = vec![("a".to_string(), vec![0.5, 0.7])];
        let rows = vec![Row { name: "reward, \"x\"".into(), columns }, Row { name: "recall".into(), columns: recall }];
        let table = Table::of_measures(rows);
        let text = table.text().unwrap();
        assert!(text.contains("3.17 ± 0.73 (+7.0)") && text.contains("1.83 ± 0.44 (-1.0)"), "{text}");
        assert!(text.contains("in brackets: the change from base"), "{text}");
        let csv = table.csv().unwrap();
        assert_eq!(csv.lines().count(), 5);
        assert!(csv.contains("\"reward, \"\"x\"\"\",base,2,0.577"), "{csv}");
        assert_eq!(["=HYPERLINK(1)", "reward"].map(plain), ["'=HYPERLINK(1)", "reward"]);
        let json = table.json().unwrap();
        assert!(json["recall"]["a"]["change"].is_null() && json["reward, \"x\""]["b"]["change"]["count"] == 3);
    }

    #[test]
    fn things_keep_their_order_and_have_no_change() {
        let row = |name: &str, columns: &[(&str, &[f64])]| Row {
            name: name.into(),
            columns: columns.iter().map(|(name, values)| (name.to_string(), values.to_vec())).collect(),
        };
        let rows = vec![row("b", &[("time", &[2.0]), ("reward", &[0.5, 0.7])]), row("a", &[("reward", &[0.25])])];
        let table = Table::of_things(rows.clone(), Some(vec!["reward".into(), "time".into()])).unwrap();
        let words: Vec<String> =
            table.text().unwrap().lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            (words[1].as_str(), words[3].as_str(), words[4].as_str()),
            ("reward time n", "b 0.60 ± 0.10 2.0 2", "a 0.25 1")
        );
        assert_eq!(
            table.csv().unwrap(),
            "row,column,mean,error,count\nb,reward,0.6,0.09999999999999998,2\nb,time,2,,1\na,reward,0.25,,1\n"
        );
        assert_eq!(table.json().unwrap()["b"].as_object().unwrap().keys().collect::<Vec<_>>(), ["reward", "time"]);
        assert!(Table::of_things(rows, Some(vec!["recall".into()])).unwrap_err().message.contains("`recall`"));
    }
}
