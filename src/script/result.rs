//! Chapter `result`: the table at a run's end, and what earlier runs left.

use super::run::numbers;
use super::*;
use crate::options;
use amscript_base::file;
use amscript_run::log::{self, Lines};
use amscript_run::{Row, Run, Table, folder, record};
use amscript_tensor::Tensor;
use serde_json::Value;
use std::path::{Path, PathBuf};

options! {
    /// A table whose rows are things.
    pub struct TableOptions {
        /// Which columns to show, in this order; () means all, by name.
        columns: Option<Vec<String>> = None,
    }
}

/// A row of columns, each with its numbers.
fn row(name: &str, columns: Map) -> Result<Row> {
    let place = |column: &str| format!("finish: `{name}`: `{column}`");
    let columns = columns.into_iter().map(|(column, v)| Ok((column.to_string(), numbers(v, &place(&column))?)));
    Ok(Row { name: name.into(), columns: columns.collect::<Result<_>>()? })
}

/// Measures from a map of maps; a column `base` comes first.
fn measures(table: Map) -> Result<Table> {
    let row = |(name, columns): (rhai::Identifier, Dynamic)| {
        let mut row = row(&name, option::convert(columns, &format!("finish: `{name}`"))?)?;
        row.columns.sort_by_key(|(column, _)| column != "base"); // the others stay in their order
        Ok(row)
    };
    Ok(Table::of_measures(table.into_iter().map(row).collect::<Result<_>>()?))
}

/// Things from an array of maps, each with its `name`.
fn things(function: &str, rows: Array, options: Map) -> Result<Table> {
    let options = TableOptions::parse(function, options)?;
    let row = |(i, columns): (usize, Map)| {
        let place = format!("{function}: row {i}");
        let mut columns = columns;
        let name = columns.remove("name").unwrap_or_default();
        row(&option::convert::<String>(name, &format!("{place}: `name`"))?, columns)
    };
    let rows: Vec<Map> = option::list(rows, function)?;
    Table::of_things(rows.into_iter().enumerate().map(row).collect::<Result<_>>()?, options.columns)
}

fn write(context: &NativeCallContext, table: &Table, path: &str) -> Result<()> {
    let path = Session::of(context).writable(path)?;
    let text = match path.extension().and_then(|ending| ending.to_str()) {
        Some("csv") => table.csv()?,
        Some("json") => format!("{:#}\n", table.json()?),
        _ => table.text()? + "\n",
    };
    record::write_text(&path, &text)
}

/// JSON as script values; what is missing is not a number.
pub fn value(json: &Value) -> Dynamic {
    match json {
        Value::Null => f64::NAN.into(),
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => n.as_i64().map_or_else(|| n.as_f64().unwrap_or(f64::NAN).into(), Dynamic::from),
        Value::String(text) => text.into(),
        Value::Array(items) => items.iter().map(value).collect::<Array>().into(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.into(), value(v))).collect::<Map>().into(),
    }
}

/// The folder of a run that is to be read.
fn place(context: &NativeCallContext, function: &str, folder: &str) -> Result<PathBuf> {
    let path = Session::of(context).readable(folder).map_err(|e| e.within(function))?;
    match file::exists(&path.join("run.json")) {
        true => Ok(path),
        false => {
            let message = format!("{function}: \"{folder}\" holds no run.json");
            Err(Error::new(Kind::Missing, message).hint("give the directory of a run"))
        }
    }
}

/// Names of the runs inside a run's folder, at any depth.
fn inner(folder: &Path) -> Result<Vec<String>> {
    let below =
        folder::runs(folder)?.into_iter().filter_map(|run| Some(run.strip_prefix(folder).ok()?.display().to_string()));
    let mut names: Vec<String> = below.filter(|name| !name.is_empty()).collect();
    names.sort();
    Ok(names)
}

/// The table at a run's end: of measures, base against tuned, or of methods; and what earlier runs left.
#[export_module(manifest)]
pub mod result {
    use super::*;

    /// The table that [`finish`](#finish) prints, as text.
    ///
    /// ```rhai
    /// results_table(#{ reward: #{ base: [0.1, 0.3], tuned: [0.4, 0.5] } }).contains("0.450 ± 0.050")   //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn results_table(table: Map) -> RhaiResultOf<String> {
        Ok(measures(table)?.text()?)
    }

    #[rhai_fn(name = "results_table", return_raw)]
    pub fn results_table_of(rows: Array, options: Map) -> RhaiResultOf<String> {
        Ok(things("results_table", rows, options)?.text()?)
    }

    /// Writes such a table into a file of the run: `.csv`, `.json`, or else as text.
    ///
    /// ```rhai
    /// let table = #{ reward: #{ base: [0.1, 0.3], tuned: [0.4, 0.5] } };
    /// for ending in ["csv", "json", "txt"] { save_results(table, "table." + ending); }
    /// save_results([#{ name: "AM-3", reward: [0.4, 0.5] }], "methods.csv");
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn save_results(context: NativeCallContext, table: Map, path: &str) -> RhaiResultOf<()> {
        Ok(write(&context, &measures(table)?, path)?)
    }

    #[rhai_fn(name = "save_results", return_raw, volatile)]
    pub fn save_results_of(context: NativeCallContext, rows: Array, path: &str, options: Map) -> RhaiResultOf<()> {
        Ok(write(&context, &things("save_results", rows, options)?, path)?)
    }

    /// Ends a run: draws `curves.png`, writes `result.json` and `result.csv`, prints a table of means with standard errors.
    ///
    /// Each measure is a map of columns, such as `base` and `tuned`, with one number per item; the change is that from the
    /// first column, item by item. A column `base` comes first, others in the order of their names. An array of maps is a
    /// table of things in that order, such as methods, each with its `name` and in each column a number per seed, say.
    ///
    /// ```rhai
    /// let run = start_run(#{});
    /// run.finish(#{ reward: #{ base: [0.1, 0.3], tuned: tensor([0.4, 0.5]) } })   //=> ()
    /// run.finish(#{ reward: #{ base: [0.1], tuned: [] } })                        //=> error: needs one value per item
    /// let rows = [#{ name: "AM-3", reward: [0.4, 0.5], time: 1.5 }, #{ name: "AM-1", reward: [0.3, 0.5], time: 1.2 }];
    /// run.finish(rows, #{ columns: ["reward", "time"] })    //=> ()
    /// run.finish(rows, #{ columns: ["rewards"] })           //=> error: no row has the column `rewards`
    /// run.finish([#{ reward: 0.5 }])                        //=> error: finish: row 0: `name`: expected text
    /// ```
    #[rhai_fn(return_raw)]
    pub fn finish(run: Run, table: Map) -> RhaiResultOf<()> {
        Ok(run.finish(&measures(table)?)?)
    }

    #[rhai_fn(name = "finish", return_raw)]
    pub fn finish_of(run: Run, rows: Array, options: Map) -> RhaiResultOf<()> {
        Ok(run.finish(&things("finish", rows, options)?)?)
    }

    /// What a run with the same settings came to, also before this session: by row and column of its table the `mean`, `error`
    /// and `count`. `()` if none did.
    ///
    /// ```rhai
    /// let run = start_run(#{ order: 2 }, #{ name: "am-3" });
    /// run.result()   //=> ()
    /// run.finish(#{ reward: #{ base: [0.1, 0.3], tuned: [0.4, 0.5] } });
    /// run.result().reward.base   //=> #{"count": 2, "error": 0.1, "mean": 0.2}
    /// start_run(#{ order: 4 }, #{ name: "am-3" })                        //=> error: holds a run with order = 2, got order = 4
    /// ```
    #[rhai_fn(name = "result", return_raw)]
    pub fn result_of(run: Run) -> RhaiResultOf<Dynamic> {
        Ok(run.result().map_or(Dynamic::UNIT, |found| value(&found)))
    }

    /// What a run left in its folder: `settings`; `result`, as [`result`](#result) gives it, or `()`; `log`, for each name the steps
    /// `x` and the means `y` there, as [`plot`](#plot) draws them; `runs`, the names of runs inside it.
    ///
    /// ```rhai
    /// let run = start_run(#{ order: 2 }, #{ name: "am-3" });
    /// for i in run.steps(2) { run.log(#{ loss: 0.5, norms: [1, 2] }); }
    /// read_run("am-3").log         //=> #{"loss": #{"x": [1.0, 2.0], "y": [0.5, 0.5]}, "norms": #{"x": [1.0, 2.0], "y": [1.5, 1.5]}}
    /// read_run("am-3").settings    //=> #{"order": 2}
    /// read_run("am-3").runs        //=> []
    /// read_run("am-4")             //=> error: no file "am-4"
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn read_run(context: NativeCallContext, folder: &str) -> RhaiResultOf<Map> {
        let path = place(&context, "read_run", folder)?;
        let settings = record::read_json(&path.join("run.json"))?["settings"].take();
        let finished = path.join("result.json");
        let found =
            if file::exists(&finished) { value(&record::read_json(&finished)?["measures"]) } else { Dynamic::UNIT };
        let lines = Lines::read(&path.join("metrics.jsonl")).read;
        let series = log::series(&lines).into_iter().map(|series| {
            let (x, y): (Array, Array) = series.points.iter().map(|p| (Dynamic::from(p.0), Dynamic::from(p.1))).unzip();
            let points: Map = [("x".into(), x.into()), ("y".into(), y.into())].into();
            (series.name.into(), Dynamic::from(points))
        });
        let runs: Array = inner(&path)?.into_iter().map(Dynamic::from).collect();
        let log: Map = series.collect();
        let parts = [("settings", value(&settings)), ("result", found), ("log", log.into()), ("runs", runs.into())];
        Ok(parts.into_iter().map(|(name, part)| (name.into(), part)).collect())
    }

    /// The numbers that a run logged under one name, `[lines, numbers]`; each line must hold as many.
    ///
    /// ```rhai
    /// let run = start_run(#{}, #{ name: "am-3" });
    /// for i in run.steps(2) { run.log(#{ norms: [i, 2] }); }
    /// read_log("am-3", "norms").to_array()   //=> [[0.0, 2.0], [1.0, 2.0]]
    /// read_log("am-3", "loss")               //=> error: "am-3" logged no `loss`; it logged norms
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn read_log(context: NativeCallContext, folder: &str, name: &str) -> RhaiResultOf<Tensor> {
        let log = Lines::read(&place(&context, "read_log", folder)?.join("metrics.jsonl"));
        let lines = log.numbers(name);
        let Some(count) = lines.first().map(|line| line.len()) else {
            let names: Vec<String> = log::series(&log.read).into_iter().map(|s| s.name).collect();
            let message = format!("read_log: \"{folder}\" logged no `{name}`; it logged {}", names.join(", "));
            return Err(Error::new(Kind::Missing, message).into());
        };
        if let Some(other) = lines.iter().map(|line| line.len()).find(|n| *n != count) {
            let message = format!("read_log: `{name}` must be as many numbers at each step, got {count} and {other}");
            return Err(Error::new(Kind::Shape, message).into());
        }
        let numbers: Vec<f32> = lines.iter().flat_map(|line| line.iter().map(|x| *x as f32)).collect();
        Ok(Tensor::from_vec(numbers, (lines.len(), count), Session::of(&context).device())?)
    }
}
