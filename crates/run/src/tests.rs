use super::*;
use amscript_tensor::{DType, Device};
use serde_json::json;
use std::sync::Mutex as Lock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A person who notes the lines and may press Ctrl-C.
#[derive(Default)]
struct Person {
    lines: Lock<Vec<String>>,
    stop: AtomicBool,
    running: AtomicBool,
    locks: Locks,
}

impl Console for Person {
    fn print(&self, line: &str) {
        self.lines.lock().unwrap().push(line.into());
    }
    fn stop_requested(&self) -> Result<bool> {
        Ok(self.stop.load(Relaxed))
    }
    fn finish_steps(&self, running: bool) {
        self.running.store(running, Relaxed);
    }
    fn locks(&self) -> &Locks {
        &self.locks
    }
    fn begin_step(&self, _step: Option<usize>) {}
}

struct Desk {
    folder: tempfile::TempDir,
    person: Arc<Person>,
    anyway: bool,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), person: Arc::default(), anyway: false }
    }

    fn start(&self, steps: i64) -> Result<Run> {
        self.start_named(steps, None)
    }

    fn start_named(&self, steps: i64, name: Option<&str>) -> Result<Run> {
        Run::start(Start {
            name: name.map(Into::into),
            folder: self.folder.path().join("out"),
            recipe: Recipe { path: None, text: "1 + 1".into() },
            settings: Map::from_iter([("steps".to_string(), json!(steps))]),
            seed: 7,
            device: "cpu".into(),
            console: self.person.clone(),
            observes: false,
            anyway: self.anyway,
            inputs: true,
        })
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join("out").join(name)).unwrap()
    }
}

/// Adds a random number per step; checkpoints every second step.
fn train(run: &Run, steps: usize, kill_before: usize) -> Result<f64> {
    let mut sum = match run.restore()? {
        Some(Saved::Map(entries)) => match &entries[0].1 {
            Saved::Tensor(t) => t.to_scalar::<f64>()?,
            other => panic!("{other:?}"),
        },
        _ => 0.0,
    };
    for i in run.steps(steps) {
        if i? == kill_before {
            return Ok(sum);
        }
        sum += run.stream("noise").draw(|rng| rng.normals(1)[0]);
        run.log(vec![("sum".into(), vec![sum])])?;
        if run.due(2).unwrap() {
            let tensor = Tensor::new(sum, &Device::Cpu)?;
            run.checkpoint(Saved::Map(vec![("sum".into(), Saved::Tensor(tensor))]))?;
        }
    }
    Ok(sum)
}

#[test]
fn a_killed_run_goes_on_to_the_same_numbers() {
    let (whole, broken) = (Desk::new(), Desk::new());
    let expected = train(&whole.start(9).unwrap(), 9, 99).unwrap();
    for kill in [1, 4, 7] {
        train(&broken.start(9).unwrap(), 9, kill).unwrap();
    }
    assert_eq!(train(&broken.start(9).unwrap(), 9, 99).unwrap(), expected);
    assert_eq!(broken.read("metrics.jsonl"), whole.read("metrics.jsonl"));
    assert_eq!(whole.read("metrics.jsonl").lines().count(), 9);
    assert!(broken.person.lines.lock().unwrap().contains(&"resuming after step 6".to_string()));
    let mixed = broken.start(8).err().unwrap();
    assert!(mixed.message.contains("steps = 9") && mixed.message.contains("steps = 8"), "{mixed}");
}

#[test]
fn first_ctrl_c_finishes_the_step_and_saves() {
    let desk = Desk::new();
    let run = desk.start(9).unwrap();
    let mut steps = run.steps(9);
    assert_eq!(steps.next().unwrap().unwrap(), 0);
    assert!(!run.due(2).unwrap());
    assert!(desk.person.running.load(Relaxed));
    desk.person.stop.store(true, Relaxed);
    assert!(run.due(2).unwrap());
    run.checkpoint(Saved::Plain(json!(1))).unwrap();
    let error = steps.next().unwrap().unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (amscript_base::error::Kind::Interrupt, "interrupted after step 1 of 9")
    );
    assert!(error.hint.unwrap().contains("--out"));
    assert!(!desk.person.running.load(Relaxed));
}

#[test]
fn ctrl_c_behind_the_checkpoint_of_a_step_ends_the_next_one() {
    let desk = Desk::new();
    let run = desk.start(9).unwrap();
    let mut steps = run.steps(9);
    steps.next().unwrap().unwrap();
    assert!(!run.due(2).unwrap());
    desk.person.stop.store(true, Relaxed);
    assert_eq!(steps.next().unwrap().unwrap(), 1);
    assert!(run.due(100).unwrap());
    assert_eq!(steps.next().unwrap().unwrap_err().message, "interrupted after step 2 of 9");
}

#[test]
fn a_stopped_run_ends_and_saves_behind_its_step() {
    let desk = Desk::new();
    let run = desk.start(9).unwrap();
    let mut seen = Vec::new();
    for i in run.steps(9) {
        seen.push(i.unwrap());
        if seen.len() == 3 {
            run.stop();
            assert!(run.due(100).unwrap());
        }
    }
    assert_eq!(seen, [0, 1, 2]);
    assert_eq!(run.steps(9).count(), 0);
}

#[test]
fn log_prints_about_twenty_lines() {
    let desk = Desk::new();
    let run = desk.start(0).unwrap();
    for _ in run.steps(200) {
        run.log(vec![("loss".into(), vec![0.5]), ("norms".into(), vec![1.0, f64::NAN])]).unwrap();
    }
    let lines = desk.person.lines.lock().unwrap();
    let logged: Vec<_> = lines.iter().filter(|l| l.starts_with("step ")).collect();
    assert!((20..=22).contains(&logged.len()), "{lines:?}");
    assert!(logged[1].starts_with("step 10    loss 0.5  norms NaN"), "{}", logged[1]);
    let file = desk.read("metrics.jsonl");
    assert_eq!(file.lines().count(), 200);
    assert_eq!(file.lines().next().unwrap(), r#"{"step":1,"loss":0.5,"norms":[1.0,null]}"#);
    assert!(run.log(vec![("step".into(), vec![0.0])]).is_err());
}

#[test]
fn a_finished_run_holds_its_files() {
    let desk = Desk::new();
    let run = desk.start(3).unwrap();
    let images = Tensor::zeros((2, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
    for _ in run.steps(3) {
        run.log(vec![("loss".into(), vec![0.5])]).unwrap();
        run.images("samples", &images, &[]).unwrap();
    }
    run.images("end", &images, &["a".into(), "b".into()]).unwrap();
    run.finish(&reward_of(&[1.0, 2.0])).unwrap();
    let out = desk.folder.path().join("out");
    for file in
        ["run.json", "metrics.jsonl", "curves.png", "result.json", "images/samples-000002.png", "images/end.png"]
    {
        assert!(out.join(file).exists(), "{file}");
    }
    let record: Value = serde_json::from_str(&desk.read("run.json")).unwrap();
    assert_eq!((&record["recipe"]["text"], &record["settings"]["steps"]), (&json!("1 + 1"), &json!(3)));
    let result: Value = serde_json::from_str(&desk.read("result.json")).unwrap();
    assert_eq!(result["measures"]["reward"]["base"]["mean"], 1.5);
}

#[test]
fn a_curve_that_cannot_be_drawn_loses_no_results() {
    let desk = Desk::new();
    let run = desk.start(2).unwrap();
    for _ in run.steps(2) {
        run.log(vec![("loss".into(), vec![1e308])]).unwrap();
    }
    run.finish(&reward_of(&[1.0])).unwrap();
    assert!(desk.read("result.json").contains("reward") && !desk.folder.path().join("out/curves.png").exists());
    let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    assert!(run.images("a", &scalar, &[]).is_err());
}

#[test]
fn an_unwritable_folder_is_named() {
    let desk = Desk::new();
    std::fs::write(desk.folder.path().join("out"), "a file").unwrap();
    let error = desk.start(1).err().unwrap();
    assert!(error.message.starts_with("start_run: cannot make") && error.hint.unwrap().contains("--out"));
}

#[test]
fn streams_depend_on_seed_and_name_only() {
    let desk = Desk::new();
    let run = desk.start(1).unwrap();
    run.stream("other").draw(|rng| rng.normals(3));
    let drawn = run.stream("noise").draw(|rng| rng.normals(2));
    let again = run.stream("noise").draw(|rng| rng.normals(2));
    assert_eq!([drawn, again].concat(), Rng::new(7).split("noise").normals(4));
}

fn reward_of(values: &[f64]) -> Table {
    Table::of_measures(vec![Row { name: "reward".into(), columns: vec![("base".into(), values.to_vec())] }])
}

#[test]
fn a_run_inside_another_is_done_once() {
    let desk = Desk::new();
    desk.start(5).unwrap();
    let inner = desk.start_named(3, Some("am-1/seed-0")).unwrap();
    assert!(inner.result().is_none());
    inner.finish(&reward_of(&[1.0, 2.0])).unwrap();
    assert_eq!(inner.result().unwrap()["reward"]["base"]["mean"], 1.5);
    let record = desk.read("am-1/seed-0/run.json");
    assert_eq!(desk.start_named(3, Some("am-1/seed-0")).unwrap().result().unwrap()["reward"]["base"]["count"], 2);
    assert_eq!(desk.read("am-1/seed-0/run.json"), record);
    let other = desk.start_named(4, Some("am-1/seed-0")).err().unwrap();
    assert!(other.message.contains("am-1/seed-0") && other.message.contains("steps = 3, got steps = 4"), "{other}");
    for outside in ["..", "a/../../b", "/a", ""] {
        assert!(desk.start_named(1, Some(outside)).err().unwrap().message.contains("a folder inside"), "{outside}");
    }
}

#[test]
fn the_result_of_other_settings_is_not_taken() {
    let desk = Desk::new();
    desk.start(3).unwrap().finish(&reward_of(&[1.0])).unwrap();
    assert!(desk.start(3).unwrap().result().is_some());
    assert!(desk.start(4).unwrap().result().is_none());
}

#[test]
fn an_inner_run_goes_on_from_the_outer_folder() {
    let desk = Desk::new();
    let run = desk.start_named(9, Some("am-1")).unwrap();
    let mut steps = run.steps(9);
    steps.next().unwrap().unwrap();
    desk.person.stop.store(true, Relaxed);
    run.checkpoint(Saved::Plain(json!(1))).unwrap();
    let hint = steps.next().unwrap().unwrap_err().hint.unwrap();
    assert!(hint.contains(&format!("`--out {}`", desk.folder.path().join("out").display())), "{hint}");
    drop(steps);
    assert!(run.seconds_per_step() > 0.0);
    let again = desk.start_named(9, Some("am-1")).unwrap();
    again.restore().unwrap();
    assert!(again.seconds_per_step() > 0.0);
}
