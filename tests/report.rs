//! Reports of runs: what a page holds, what bad folders give, what TensorBoard reads, and what a browser makes of the page.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Markup that would run if it were not text; in a setting, a prompt, a measure and the recipe.
const HOSTILE: &str = "</script><img src=x onerror=\"document.documentElement.dataset.hacked=1\">";

/// A run without a model: six steps, three images, a table.
const RECIPE: &str = r#"
    // </script><img src=x onerror="document.documentElement.dataset.hacked=1">
    let s = settings(#{ note: "plain", iterations: 6, steps: 4, rate: 0.5, seed: 0 });
    let run = start_run(s);
    for i in run.steps(s.iterations) {
        run.log(#{ loss: exp(-s.rate * i), reward: tensor([0.25, 0.75]), intensity: [0.5 * i, 1.0 * i], "a < b": i });
        if i % 2 == 1 { run.images("samples", shapes(2, rng(i)).images, [s.note, "a red ring"]); }
    }
    run.images("before_after", shapes(1, rng(0)).images);
    run.finish(#{ reward: #{ base: [0.1, 0.2, 0.3], tuned: [0.4, 0.5, 0.61] }, clip: #{ base: [0.1, 0.2], tuned: [0.3, 0.1] } });"#;

fn amscript(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_amscript")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with two runs, `runs/first` and `runs/second`.
fn two_runs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.rhai"), RECIPE).unwrap();
    let note = format!("note={HOSTILE}");
    for (out, sets) in [("runs/first", vec![]), ("runs/second", vec!["--set", "rate=0.25", "--set", &note])] {
        let output = amscript(folder.path(), &[&["recipe.rhai", "--out", out], &sets[..]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("loss 1.0  reward 0.5"), "{}", text(&output.stdout));
        assert!(!text(&output.stdout).contains("intensity"), "{}", text(&output.stdout));
    }
    folder
}

/// The page of these runs, and what went to standard error.
fn report(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = amscript(folder, &[&["report"], arguments, &["--out", "page.html"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("page.html\n"), "{}", text(&output.stdout));
    (std::fs::read_to_string(folder.join("page.html")).unwrap(), text(&output.stderr))
}

fn data(page: &str) -> Value {
    let inside = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(inside).unwrap()
}

/// The part of a page under a heading.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    page.split(&format!("<section id=\"{name}\">")).nth(1).unwrap().split("</section>").next().unwrap()
}

#[test]
fn a_page_of_two_runs_holds_everything_and_only_text() {
    let folder = two_runs();
    let (page, notes) = report(folder.path(), &["runs"]);
    assert_eq!(notes, "");
    // three elements of ours: numbers, script, and none from a value
    assert_eq!((page.matches("<script").count(), page.matches("<img src=x").count()), (2, 0));
    assert!(page.contains("&lt;/script&gt;&lt;img src=x onerror=&quot;"));

    let runs = &data(&page)["runs"];
    assert_eq!((&runs[0]["name"], &runs[1]["name"]), (&"first".into(), &"second".into()));
    assert_eq!(runs[1]["curves"]["loss"]["y"][2], 0.606_530_7);
    assert_eq!(runs[0]["curves"]["reward"]["y"][0], 0.5);
    assert!(runs[0]["curves"]["intensity"].is_null() && runs[0]["curves"]["a < b"]["x"][5] == 6);
    assert_eq!(runs[0]["profile"]["rows"][5], serde_json::json!([2.5, 5.0]));

    let results = section(&page, "results");
    assert!(results.contains("0.503 ± 0.061") && results.contains("+91.0 errors"), "{results}");
    assert!(results.contains("class=\"best\""), "{results}");
    let settings = section(&page, "settings");
    let (differ, same) = settings.split_once("<details>").unwrap();
    assert!(differ.contains("rate") && differ.contains("note") && !differ.contains("iterations"), "{settings}");
    assert!(same.contains("iterations") && same.contains("3 settings that are the same"), "{settings}");
    let images = section(&page, "images");
    assert_eq!((images.matches("src=\"data:image/").count(), images.matches("step 4<").count()), (8, 2));
    let provenance = section(&page, "provenance");
    assert!(provenance.contains("The recipe is that of first.") && provenance.contains("let run = start_run(s);"));
    assert_eq!((page.matches("http://").count(), page.matches("https://").count()), (1, 0), "only the name of SVG");
}

#[test]
fn a_run_leaves_its_own_page() {
    let folder = two_runs();
    let own = std::fs::read_to_string(folder.path().join("runs/first/report.html")).unwrap();
    assert!(own.contains("<h1>first</h1>") && section(&own, "settings").contains("iterations"));
    assert!(section(&own, "results").contains("+0.3033 ± 0.0033"), "{}", section(&own, "results"));
    let output = amscript(folder.path(), &["report", "runs/second"]);
    assert!(text(&output.stdout).trim_end().ends_with("runs/second/report.html"), "{}", text(&output.stdout));
    let log = std::fs::read_to_string(folder.path().join("runs/first/images/samples-000002.txt")).unwrap();
    assert_eq!(log, "plain\na red ring\n");
}

#[test]
fn what_is_no_run_is_said() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let refused = |arguments: &[&str]| {
        let output = amscript(folder.path(), &[&["report"], arguments].concat());
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let none = refused(&["empty", "absent", "notes.txt"]);
    for part in [
        "`empty` holds no run: there is no run.json",
        "cannot read `absent`",
        "`notes.txt` must be the folder of a run, got a file",
        "hint: give the folders",
    ] {
        assert!(none.contains(part), "{none}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is written");
    std::fs::write(folder.path().join("empty/run.json"), "{}").unwrap();
    let kept = refused(&["empty", "--out", "notes.txt"]);
    assert!(kept.contains("`notes.txt` exists and is no report") && kept.contains("hint: give another file"), "{kept}");
    assert_eq!(std::fs::read_to_string(folder.path().join("notes.txt")).unwrap(), "mine");
    std::fs::File::create(folder.path().join("large.html")).unwrap().set_len(20 << 30).unwrap();
    assert!(refused(&["empty", "--out", "large.html"]).contains("`large.html` exists and is no report"));
    let (page, notes) = report(folder.path(), &["empty", "absent"]);
    assert!(notes.contains("cannot read `absent`") && page.contains("no results and no log yet"), "{notes}");
}

#[test]
fn long_prompts_make_no_long_page() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("r/images");
    std::fs::create_dir_all(&images).unwrap();
    std::fs::write(folder.path().join("r/run.json"), "{}").unwrap();
    for step in 1..4 {
        image::RgbImage::new(4, 4).save(images.join(format!("a-00000{step}.png"))).unwrap();
    }
    std::fs::write(images.join("a-000001.txt"), "long".repeat(1000)).unwrap();
    std::fs::File::create(images.join("a-000002.txt")).unwrap().set_len(20 << 20).unwrap();
    let (page, notes) = report(folder.path(), &["r"]);
    assert!(notes.contains("a-000002.txt") && notes.contains("20971520 bytes are more than the 65536"), "{notes}");
    assert!(page.len() < 1 << 20 && page.contains("long") && !page.contains(&"long".repeat(251)), "{}", page.len());
}

/// All files of a folder with their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn damage_is_named_and_the_rest_is_shown() {
    let folder = two_runs();
    let run = folder.path().join("runs/first");
    let change = |name: &str, f: &dyn Fn(String) -> String| {
        let path = run.join(name);
        std::fs::write(&path, f(std::fs::read_to_string(&path).unwrap())).unwrap();
    };
    change("metrics.jsonl", &|text| {
        let mut lines: Vec<&str> = text.lines().collect();
        (lines[1], lines[3]) = ("{\"step\": 2, \"loss\": ", "[1, 2]");
        lines.join("\n") + "\n{\"step\":7,\"lo"
    });
    std::fs::remove_file(run.join("result.json")).unwrap();
    std::fs::write(run.join("images/samples-000004.png"), b"\x89PNG\r\n\x1a\n cut").unwrap();
    let before = files(&folder.path().join("runs"));
    let (page, notes) = report(folder.path(), &["runs/first"]);
    for part in [
        "first: metrics.jsonl: 2 damaged and left out (line 2, 4), 4 read",
        "first: metrics.jsonl: its last line, 7, is cut and left out",
        "images/samples-000004.png of first is left out",
    ] {
        assert!(notes.contains(part) && page.contains(part), "{part}: {notes}");
    }
    assert!(page.contains("no results yet, the run goes on or was stopped: logged up to step 6 of 6"));
    assert_eq!(data(&page)["runs"][0]["curves"]["loss"]["x"], serde_json::json!([1, 3, 5, 6]));
    assert_eq!(section(&page, "images").matches("src=\"data:image/").count(), 3);
    assert!(files(&folder.path().join("runs")) == before, "a report changes nothing of a run");

    std::fs::write(run.join("run.json"), "{ \"seed\": 0").unwrap();
    std::fs::remove_dir_all(run.join("images")).unwrap();
    let (page, notes) = report(folder.path(), &["runs/first"]);
    assert!(notes.contains("first: run.json: must hold JSON, got an error"), "{notes}");
    assert!(section(&page, "images").contains("No images") && section(&page, "settings").contains("no settings"));
}

#[test]
fn runs_inside_a_run_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = "let outer = start_run(#{});
        for name in [\"am-3/seed-0\", \"draft/seed-0\"] {
            let run = start_run(#{ name: name }, #{ name: name });
            for i in run.steps(2) { run.log(#{ loss: i }); }
            run.finish(#{ reward: #{ base: [0.1, 0.2], tuned: [0.2, 0.4] } });
        }
        outer.finish([#{ name: \"am-3\", reward: [0.4, 0.5] }, #{ name: \"draft\", reward: [0.3] }]);";
    std::fs::write(folder.path().join("recipe.rhai"), recipe).unwrap();
    assert!(amscript(folder.path(), &["recipe.rhai", "--out", "table"]).status.success());
    let names = |page: &str| -> Vec<Value> {
        data(page)["runs"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect()
    };
    let all = ["table", "table/am-3/seed-0", "table/draft/seed-0"];
    assert_eq!(names(&std::fs::read_to_string(folder.path().join("table/report.html")).unwrap()), all);
    assert_eq!(names(&report(folder.path(), &["."]).0), all);
    assert_eq!(
        names(&report(folder.path(), &["table/am-3", "table/draft", "table/draft/seed-0"]).0),
        ["am-3/seed-0", "draft/seed-0"]
    );
}

/// CRC-32C bit by bit, turned and shifted as in TFRecord files.
fn masked(data: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let crc = !data.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit));
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Records of a file whose checksums hold.
fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let data = &file[12..12 + length];
        assert_eq!((number(8), number(12 + length)), (masked(&file[..8]), masked(data)));
        out.push(data.to_vec());
        file = &file[16 + length..];
    }
    out
}

#[test]
fn event_files_hold_scalars_and_images() {
    let folder = two_runs();
    for _ in 0..2 {
        let output = amscript(folder.path(), &["report", "runs", "--tensorboard", "events"]);
        let printed = text(&output.stdout);
        assert!(
            printed.starts_with("report.html\nevents/first/events.out.tfevents.0.amscript\nevents/second/"),
            "{printed}"
        );
    }
    assert_eq!(std::fs::read_dir(folder.path().join("events/first")).unwrap().count(), 1, "written again, not beside");
    let records = records(&std::fs::read(folder.path().join("events/second/events.out.tfevents.0.amscript")).unwrap());
    assert_eq!(records.len(), 1 + 6 + 4);
    let holds = |record: &[u8], part: &[u8]| record.windows(part.len()).any(|w| w == part);
    assert!(holds(&records[0], b"brain.Event:2"));
    // tag and number of a value: 0a <length> tag 15 <float>
    let value = |tag: &str, v: f32| [&[0x0a, tag.len() as u8], tag.as_bytes(), &[0x15], &v.to_le_bytes()].concat();
    for (tag, v) in
        [("loss", (-0.5_f64).exp() as f32), ("reward", 0.5), ("intensity/end-00", 2.0), ("intensity/end-01", 1.0)]
    {
        assert!(holds(&records[3], &value(tag, v)), "{tag}");
    }
    let png = std::fs::read(folder.path().join("runs/second/images/before_after.png")).unwrap();
    assert_eq!(records.iter().filter(|r| holds(r, &png) && holds(r, b"before_after")).count(), 1);
}

/// What headless Chromium makes of a page when it is done: its elements, and what it wrote to the console. `None` without Chromium.
fn browse(page: &Path, flags: &[&str]) -> Option<(String, Vec<String>)> {
    const QUIET: [&str; 8] = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ];
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(QUIET).arg(format!("--user-data-dir={}", profile.path().display()));
    command.args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", "--dump-dom"]).args(flags);
    let output = match command.arg(format!("file://{}", page.canonicalize().unwrap().display())).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no `chromium` on the PATH");
            return None;
        }
        other => other.unwrap(),
    };
    let console = text(&output.stderr).lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    Some((text(&output.stdout), console))
}

/// The attributes of a page's root, where the page tells how it fares.
fn root(elements: &str) -> &str {
    elements.split("<html").nth(1).unwrap_or_else(|| panic!("no page in {elements:?}")).split('>').next().unwrap()
}

#[test]
fn a_browser_draws_the_page_and_a_reader_can_use_it() {
    let folder = two_runs();
    let (page, _) = report(folder.path(), &["runs"]);
    // as it is, with the policy that lets no other script run
    let Some((elements, console)) = browse(&folder.path().join("page.html"), &[]) else { return };
    assert_eq!(console, Vec::<String>::new());
    let found = root(&elements);
    assert!(found.contains("data-ready=\"yes\"") && !found.contains("data-error"), "{found}");
    assert!(
        elements.matches("<path").count() >= 6 && elements.contains("class=\"map\""),
        "curves and heat maps are drawn"
    );

    let driven = folder.path().join("driven.html");
    let with_driver = page.replace("</body>", &format!("<script>{}</script></body>", include_str!("browser/drive.js")));
    std::fs::write(&driven, &with_driver).unwrap();
    let (elements, _) = browse(&driven, &[]).unwrap();
    assert!(
        root(&elements).contains("data-error=\"refused: script-src"),
        "a script that is not ours: {}",
        root(&elements)
    );

    let start = with_driver.find("script-src ").unwrap();
    let end = start + with_driver[start..].find('"').unwrap();
    std::fs::write(&driven, with_driver.replace(&with_driver[start..end], "script-src 'unsafe-inline'")).unwrap();
    // no window is as narrow as a phone, but a frame is
    let phone = folder.path().join("phone.html");
    std::fs::write(&phone, include_str!("browser/phone.html")).unwrap();
    for (page, flags, expected) in [
        (&driven, ["--window-size=1280,900", "--blink-settings=preferredColorScheme=1"], "1280 rgb(255, 255, 255)"),
        (&phone, ["--window-size=600,900", "--blink-settings=preferredColorScheme=0"], "390 rgb(20, 23, 27)"),
    ] {
        let (elements, console) = browse(page, &flags).unwrap();
        let found = root(&elements);
        assert!(found.contains(&format!("data-driven=\"{expected}\"")) && !found.contains("data-error"), "{found}");
        assert_eq!(console, Vec::<String>::new());
    }
}
