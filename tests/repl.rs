//! The prompt in a real terminal, and without one.

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_amscript");

/// A terminal with the prompt in it.
struct Terminal {
    screen: Arc<Mutex<vt100::Parser>>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    _master: Box<dyn MasterPty + Send>,
}

impl Terminal {
    fn open(folder: &Path, size: (u16, u16), variables: &[(&str, &str)]) -> Self {
        let (rows, cols) = size;
        let pair = native_pty_system().openpty(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }).unwrap();
        let mut command = CommandBuilder::new(BINARY);
        command.cwd(folder);
        command.env_remove("AMSCRIPT_DEVICE");
        command.env("TERM", "xterm-256color");
        command.env("AMSCRIPT_HISTORY", folder.join("history"));
        variables.iter().for_each(|(name, value)| command.env(name, value));
        let child = pair.slave.spawn_command(command).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows.max(24), cols.max(80), 10_000)));
        let (mut output, shown) = (pair.master.try_clone_reader().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..n]);
            }
        });
        Self { screen, keys: pair.master.take_writer().unwrap(), child, _master: pair.master }
    }

    fn typed(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn text(&self) -> String {
        let screen = self.screen.lock().unwrap();
        let lines: Vec<String> = screen.screen().contents().lines().map(|l| l.trim_end().to_string()).collect();
        lines.join("\n").trim_end().to_string()
    }

    /// Waits for what the screen must come to.
    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if holds(&text) {
                return text;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "no {what} in:\n{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn prompted(&self) -> String {
        self.until("prompt", |text| text.lines().last() == Some(">"))
    }

    fn enter(&mut self, line: &str) -> String {
        self.prompted();
        // the line is on the screen, once more than before, and answered
        let last = line.lines().last().unwrap_or_default().trim_end().to_string();
        let times = |text: &str| text.lines().filter(|l| l.trim_end().ends_with(&last)).count();
        let before = times(&self.text());
        self.typed(&format!("{line}\r"));
        self.until(line, |text| times(text) > before && text.lines().last() == Some(">"))
    }

    /// Ends it by Ctrl-D; the code it ends with.
    fn end(mut self) -> u32 {
        self.prompted();
        self.typed("\x04");
        self.child.wait().unwrap().exit_code()
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The session in docs/repl.md: what stands behind `> ` is typed, the whole must be what the terminal shows.
#[test]
fn the_transcript_in_the_manual_is_what_the_prompt_says() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/repl.md");
    let text = std::fs::read_to_string(&manual).unwrap();
    let start = text.find("````console\n").unwrap() + "````console\n".len();
    let written = &text[start..start + text[start..].find("````").unwrap()];
    let folder = folder();
    let mut terminal = Terminal::open(folder.path(), (400, 110), &[("NO_COLOR", "1")]);
    let mut inputs: Vec<String> = vec![];
    for line in written.lines() {
        match (line.strip_prefix("> "), inputs.last_mut()) {
            (Some(input), _) => inputs.push(input.into()),
            // an input goes on in lines that are indented by two, until its brackets are closed
            (None, Some(input)) if amscript::cli::repl::lexer::unfinished(input) => *input += &format!("\n{line}"),
            _ => {}
        }
    }
    assert!(inputs.len() > 10, "{inputs:?}");
    for input in &inputs {
        terminal.prompted();
        let before = terminal.text().lines().count();
        terminal.typed(&format!("{}\r", input.replace('\n', "\r")));
        terminal.until(input, |text| text.lines().count() > before && text.lines().last() == Some(">"));
    }
    let shown = terminal.prompted();
    let shown = shown.trim_end_matches('>').trim_end().to_string() + "\n";
    if std::env::var_os("UPDATE_TRANSCRIPT").is_some() {
        std::fs::write(&manual, text.replace(written, &shown)).unwrap();
    }
    assert!(alike(written, &shown), "written:\n{written}\nshown:\n{shown}");
    assert_eq!(terminal.end(), 0);
}

/// Whether two texts are the same but for the last digits of their numbers, which the machine's arithmetic decides.
fn alike(a: &str, b: &str) -> bool {
    let split = |text: &str| -> (Vec<String>, Vec<f64>) {
        let ends = |c: char| !(c.is_ascii_alphanumeric() || ".-".contains(c));
        let (numbers, words): (Vec<_>, Vec<_>) = text
            .split_inclusive(ends)
            .map(String::from)
            .partition(|w| w.contains('.') && w.trim_end_matches(ends).parse::<f64>().is_ok());
        let number = |w: &String| w.trim_end_matches(ends).parse::<f64>().unwrap();
        (words, numbers.iter().map(number).collect())
    };
    let ((words, numbers), (others, figures)) = (split(a), split(b));
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 2e-3 * a.abs().max(0.01);
    words == others && numbers.len() == figures.len() && numbers.iter().zip(&figures).all(near)
}

#[test]
fn numbers_are_alike_and_words_the_same() {
    assert!(alike("x 1.2345, [0.5] 0..8", "x 1.2346, [0.5] 0..8"));
    assert!(!alike("x 1.2345", "x 1.3") && !alike("x 1.5", "y 1.5") && !alike("[1.5, 2.5]", "[1.5]"));
}

#[test]
fn ctrl_c_stops_what_runs_and_keeps_what_is_loaded() {
    let folder = folder();
    let mut terminal = Terminal::open(folder.path(), (40, 100), &[]);
    terminal.enter("let base = flow(\"tiny/flux2\"); let x = 3;");
    for endless in [
        "loop { x += 1; }",
        "rollout(base, base.noise(64, rng(0)), base.encode(prompts(\"shapes/train\").sample(64, rng(0))), #{ grid: uniform(5000) })",
    ] {
        terminal.prompted();
        terminal.typed(&format!("{endless}\r"));
        std::thread::sleep(Duration::from_millis(1500));
        let before = terminal.text();
        assert_ne!(before.lines().last(), Some(">"), "{before}");
        let pressed = Instant::now();
        terminal.typed("\x03");
        terminal.until("prompt after Ctrl-C", |text| {
            text.lines().last() == Some(">") && text.contains("error: interrupted")
        });
        // a second is the promise; a machine that is shared with other tests is given ten
        assert!(pressed.elapsed() < Duration::from_secs(10), "{:?}", pressed.elapsed());
        terminal.enter(":vars");
    }
    let shown = terminal.enter("base.noise(1, rng(0)).shape");
    assert!(shown.contains("[1, 32, 8, 8]"), "{shown}");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn unfinished_input_keeps_the_prompt_open_and_ctrl_c_drops_it() {
    let folder = folder();
    let mut terminal = Terminal::open(folder.path(), (40, 100), &[]);
    terminal.prompted();
    terminal.typed("let f = |x| {\r  x + 1\r");
    std::thread::sleep(Duration::from_millis(300));
    assert!(terminal.text().ends_with("  x + 1"), "{}", terminal.text());
    terminal.typed("};\r");
    let shown = terminal.enter("f.call(41)");
    assert!(shown.contains("\n42\n"), "{shown}");
    terminal.prompted();
    terminal.typed("f.call(");
    terminal.until("the open call", |text| text.lines().last().is_some_and(|l| l.starts_with("> f.call(")));
    terminal.typed("\x03");
    let shown = terminal.enter("f.call(1)");
    assert!(shown.contains("\n2\n"), "{shown}");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn tab_completes_and_lists_signatures() {
    let folder = folder();
    let mut terminal = Terminal::open(folder.path(), (60, 120), &[]);
    terminal.enter("let base = flow(\"tiny/flux2\");");
    terminal.prompted();
    terminal.typed("base.lora(#{ ran\t");
    terminal.until("option key", |text| text.contains("base.lora(#{ rank:"));
    terminal.typed("2 }).save_lo\t");
    terminal.until("method", |text| text.contains(".save_lora("));
    terminal.typed("\x03");
    terminal.prompted();
    terminal.typed("base.enc\t");
    let shown = terminal.until("signatures", |text| text.contains(".encode_image(") && text.contains("-> Condition"));
    assert!(shown.contains("-> Tensor"), "{shown}");
    terminal.typed("\x03");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn what_is_typed_ahead_is_kept() {
    let folder = folder();
    let mut terminal = Terminal::open(folder.path(), (60, 100), &[]);
    terminal.prompted();
    terminal.typed("let x = 0;\rfor i in 0..200000 { x += 1; }\rx += 1;\rx += 1;\r\"all of \" + `${x}`\r");
    terminal.until("every line", |text| text.contains("\"all of 200002\""));
    assert_eq!(terminal.end(), 0);
}

#[test]
fn history_is_kept_and_a_broken_one_is_set_aside() {
    let folder = folder();
    let mut first = Terminal::open(folder.path(), (40, 100), &[]);
    first.enter("let remembered = 7;");
    first.end();
    let mut second = Terminal::open(folder.path(), (40, 100), &[]);
    second.prompted();
    second.typed("\x1b[A");
    second.until("the line before", |text| text.ends_with("let remembered = 7;"));
    second.typed("\x03");
    second.end();
    std::fs::write(folder.path().join("history"), b"#V2\n\xff\xfe\x00broken").unwrap();
    let mut third = Terminal::open(folder.path(), (40, 140), &[]);
    let shown = third.enter("1 + 1");
    assert!(shown.contains("warning: the history could not be read") && shown.contains("history.broken"), "{shown}");
    third.end();
    assert!(folder.path().join("history.broken").exists());
}

#[test]
fn a_terminal_without_colour_or_size_works() {
    for variables in [[("NO_COLOR", "1"), ("LANG", "C")], [("TERM", "dumb"), ("LANG", "C")]] {
        for size in [(24, 80), (0, 0)] {
            let folder = folder();
            let mut terminal = Terminal::open(folder.path(), size, &variables);
            terminal.until("prompt", |text| text.lines().last().is_some_and(|l| l.starts_with('>')));
            terminal.typed("6 * 7\r");
            // and the next prompt: between two, the terminal takes an end of input for itself
            let prompted = |text: &str| text.lines().last().is_some_and(|l| l.trim_end() == ">");
            terminal.until("the answer", |text| text.lines().any(|l| l == "42" || l == "> 42") && prompted(text));
            terminal.typed("\x04");
            assert_eq!(terminal.child.wait().unwrap().exit_code(), 0);
        }
    }
}

#[test]
fn a_watched_script_runs_again_when_it_is_saved() {
    let folder = folder();
    let file = folder.path().join("probe.rhai");
    std::fs::write(&file, "print(`first ${base}`); let seen = 1;").unwrap();
    let mut terminal = Terminal::open(folder.path(), (40, 100), &[]);
    terminal.enter("let base = 5;");
    terminal.prompted();
    terminal.typed(":watch probe.rhai\r");
    terminal.until("the first run", |text| text.contains("first 5") && text.contains("waiting for it"));
    std::fs::write(folder.path().join("new"), "print(`second ${base}`); let seen = 2; nowhere").unwrap();
    std::fs::rename(folder.path().join("new"), &file).unwrap();
    terminal.until("a complaint", |text| text.contains("no variable `nowhere`"));
    std::fs::write(&file, "print(`third ${base}`); let seen = 3;").unwrap();
    terminal.until("the third run", |text| text.contains("third 5"));
    terminal.typed("\x03");
    let shown = terminal.enter("seen * 100");
    assert!(shown.contains("\n300\n"), "{shown}");
    terminal.end();
}

fn piped(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.current_dir(folder).args(arguments).env_remove("AMSCRIPT_DEVICE");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn code_comes_from_a_pipe_or_an_option() {
    let folder = folder();
    let output = piped(folder.path(), &[], "let f = |x| {\n  2 * x\n};\nf.call(21)\ntensor([1, 2])\n\"text\"\n");
    assert_eq!(said(&output), (Some(0), "42\ntensor([1.0, 2.0])\n\"text\"\n".into(), String::new()));
    let output = piped(folder.path(), &["--eval", "let x = 2", "--eval", "x + 1", "--quiet"], "");
    assert_eq!(said(&output), (Some(0), "3\n".into(), String::new()));
    let (code, out, error) = said(&piped(folder.path(), &["-e", "1;", "-e", "2 + nowhere", "-e", "3"], ""));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("no variable `nowhere`") && error.contains("session:2:5"), "{error}");
}

#[test]
fn a_saved_session_is_a_recipe_that_says_the_same() {
    let folder = folder();
    let lines = "let x = rng(0).normal([2, 3])\nfn double(a) { 2 * a }\nx.shape\nans[1] + double(4)\nintensity::sizes([x])\nx = nowhere\n:save kept.rhai\n";
    let (code, out, error) = said(&piped(folder.path(), &[], &lines.replace("x = nowhere\n", "")));
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    let saved = said(&piped(folder.path(), &["kept.rhai"], ""));
    assert_eq!(saved, (Some(0), out.replace("wrote kept.rhai\n", ""), String::new()));
    let (code, _, error) = said(&piped(folder.path(), &["-e", ":save kept.rhai"], ""));
    assert!(code == Some(1) && error.contains("does not write over"), "{error}");
}

#[test]
fn questions_and_commands_answer() {
    let folder = folder();
    let answer = |input: &str| {
        let (code, out, error) = said(&piped(folder.path(), &[], input));
        assert_eq!(code, Some(0), "{input}: {error}");
        out
    };
    assert!(answer("?lean_adjoint").starts_with("lean_adjoint("));
    assert!(answer("help(lean_adjoint)").starts_with("lean_adjoint("));
    assert!(answer("let r = rng(3);\n?r").contains("functions of it"));
    assert!(answer("??intensity::sizes").contains("fn sizes(values) { cat("));
    assert!(answer("/// Twice.\nfn twice(x) { 2 * x }\n??twice").contains("/// Twice.\nfn twice(x) { 2 * x }"));
    assert!(answer("??rollout").contains("src/script/flow.rs"));
    assert!(answer("let x = 1;\nlet x = [2];\n:vars").contains("x            array        [2]"));
    assert!(answer(":time 1 + 1").contains("2\ntook "));
    assert!(answer("let x = zeros([1000, 1000]);\n:mem").contains("x            4.00 MB"));
    assert!(answer(":seed 4\nlet s = settings(#{ seed: 0 }); s.seed").contains("seed 4\n4\n"));
    assert!(answer(":set steps=7\nlet s = settings(#{ steps: 0 }); s.steps").contains("steps = 7\n7\n"));
    assert!(answer("let x = 1;\n:forget x\n:vars").contains("no variables yet"));
    assert_eq!(answer("1\nexit\n2"), "1\n");
    assert_eq!(answer("1 +\n2\nquit()\n3"), "3\n");
    assert!(answer("help").contains(":load"));
    let (code, _, error) = said(&piped(folder.path(), &[], ":load x.rhai --set a=1\n"));
    assert!(code == Some(1) && error.contains("write `:set NAME=VALUE`"), "{error}");
    let (code, _, error) = said(&piped(folder.path(), &[], "print(\"a\n1\n"));
    assert!(code == Some(1) && error.contains("session:1:7"), "{error}");
    let (code, _, error) = said(&piped(folder.path(), &["-e", "foo(1)"], ""));
    assert!(code == Some(1) && error.contains("session:1:1"), "{error}");
    let (code, _, error) = said(&piped(folder.path(), &[], ":var\n"));
    assert!(code == Some(1) && error.contains("did you mean `:vars`?"), "{error}");
}
