//! Pictures in a real terminal of 80 x 24, and in none.

use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use std::io::Read;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_amscript");
const PLOT: &str = "show(plot(#{ base: [0, 1, 2, 3], tuned: [3, 1, 2, 0] }, #{ title: \"rewards\" }));";
const IMAGE: &str =
    "show(cat([ones([3, 64, 32]) * tensor([1.0, 0.0, 0.0]).reshape([3, 1, 1]), zeros([3, 64, 32])], 2));";

fn folder(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.rhai"), script).unwrap();
    folder
}

/// All that a terminal of this size gets, of standard output and standard error.
fn sent(script: &str, (rows, cols): (u16, u16), variables: &[(&str, &str)]) -> Vec<u8> {
    let folder = folder(script);
    let pair = native_pty_system().openpty(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }).unwrap();
    let mut command = CommandBuilder::new(BINARY);
    command.env_clear();
    // where a card's libraries are, for a binary that was linked with them
    if let Ok(libraries) = std::env::var("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command.cwd(folder.path());
    command.arg("recipe.rhai");
    variables.iter().for_each(|(name, value)| command.env(name, value));
    let mut child = pair.slave.spawn_command(command).unwrap();
    drop(pair.slave);
    let mut bytes = Vec::new();
    pair.master.try_clone_reader().unwrap().read_to_end(&mut bytes).ok(); // ends with an error on Linux
    assert!(child.wait().unwrap().success(), "{}", String::from_utf8_lossy(&bytes));
    bytes
}

fn terminal(bytes: &[u8]) -> vt100::Parser {
    let mut parser = vt100::Parser::new(24, 80, 0);
    parser.process(bytes);
    parser
}

const COLOUR: [(&str, &str); 2] = [("TERM", "xterm-256color"), ("COLORTERM", "truecolor")];

#[test]
fn an_image_is_half_blocks_of_its_colours() {
    let parser = terminal(&sent(IMAGE, (24, 80), &COLOUR));
    let cell = |row, column| parser.screen().cell(row, column).unwrap().clone();
    let lines = parser.screen().contents().lines().filter(|line| line.starts_with('▀')).count();
    assert_eq!(lines, 16);
    for (column, colour) in [(2, vt100::Color::Rgb(255, 0, 0)), (29, vt100::Color::Rgb(0, 0, 0))] {
        assert_eq!(
            (cell(7, column).contents(), cell(7, column).fgcolor(), cell(7, column).bgcolor()),
            ("▀", colour, colour)
        );
    }
    assert_eq!(cell(7, 40).contents(), "");
    let indexed = terminal(&sent(IMAGE, (24, 80), &COLOUR[..1]));
    assert_eq!(indexed.screen().cell(7, 2).unwrap().fgcolor(), vt100::Color::Idx(196));
}

#[test]
fn a_plot_is_dots_in_the_colours_of_its_key() {
    let parser = terminal(&sent(PLOT, (24, 80), &COLOUR));
    let text = parser.screen().contents();
    assert!(text.lines().next().unwrap().trim() == "rewards", "{text}");
    assert!(text.chars().filter(|c| ('\u{2801}'..='\u{28ff}').contains(c)).count() > 60, "{text}");
    let key = text.lines().position(|line| line.contains("━━ base  ━━ tuned")).unwrap() as u16;
    let start = text.lines().nth(key.into()).unwrap().chars().position(|c| c == '━').unwrap() as u16;
    let colour = |column| parser.screen().cell(key, column).unwrap().fgcolor();
    assert_eq!([colour(start), colour(start + 9)], [vt100::Color::Rgb(70, 140, 245), vt100::Color::Rgb(235, 120, 40)]);
    assert!(text.lines().count() <= 18, "{text}");
}

#[test]
fn no_colour_means_no_codes() {
    let both = format!("{PLOT}\n{IMAGE}");
    let bytes = sent(&both, (24, 80), &[("TERM", "xterm-256color"), ("NO_COLOR", "1")]);
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.contains('\x1b') && text.contains("● base  ▲ tuned") && text.contains("::"), "{text}");
    let old = sent(&both, (24, 80), &[("TERM", "vt100"), ("LANG", "C")]);
    assert!(old.is_ascii() && !old.contains(&0x1b), "{}", String::from_utf8_lossy(&old));
}

#[test]
fn a_terminal_without_a_size_has_80_columns() {
    let bytes = sent(PLOT, (0, 0), &[("TERM", "xterm"), ("NO_COLOR", "1")]);
    let text = String::from_utf8(bytes).unwrap();
    let widest = text.lines().map(|line| line.trim_end().chars().count()).max().unwrap();
    assert!((70..=80).contains(&widest), "{widest}: {text}");
}

#[test]
fn a_terminal_with_graphics_gets_a_picture() {
    let text = String::from_utf8_lossy(&sent(IMAGE, (24, 80), &[("TERM", "xterm-kitty")])).into_owned();
    assert!(text.starts_with("\x1b_Ga=T,f=100,") && text.contains("\x1b\\"), "{text:?}");
    let plot = String::from_utf8_lossy(&sent(PLOT, (24, 80), &[("TERM", "foot")])).into_owned();
    assert!(plot.starts_with("\x1bP0;1;0q"), "{plot:?}");
}

#[test]
fn a_pipe_gets_words_and_a_file() {
    let folder = folder(&format!("{PLOT}\n{IMAGE}"));
    let run = |choice: &str| {
        let mut command = Command::new(BINARY);
        command.current_dir(folder.path()).args(["recipe.rhai", "--out", "out"]).env("TERM", "xterm-kitty");
        command.env_remove("AMSCRIPT_DEVICE").env("AMSCRIPT_IMAGES", choice).output().unwrap()
    };
    let output = run("");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty() && !text.contains('\x1b'), "{text}");
    assert!(text.contains("● base  ▲ tuned"), "{text}");
    assert!(text.ends_with("image of 128 x 128 pixels: out/images/shown-1.png\n"), "{text}");
    assert!(folder.path().join("out/images/shown-1.png").exists());
    let named = String::from_utf8(run("none").stdout).unwrap();
    assert!(named.ends_with("image of 128 x 128 pixels\n"), "{named}");
    let wrong = run("png");
    let error = String::from_utf8(wrong.stderr).unwrap();
    assert!(!wrong.status.success() && error.contains("must be one of kitty, iterm, sixel"), "{error}");
}

#[test]
fn long_work_has_a_bar_with_the_time_left() {
    let script = "for i in progress(6, \"waiting\") { let start = timestamp(); while start.elapsed < 0.4 {} }";
    let bytes = sent(script, (24, 80), &COLOUR);
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("waiting █") && text.contains("left, 4") && text.contains("a step"), "{text:?}");
    assert_eq!(terminal(&bytes).screen().contents().trim(), ""); // and leaves nothing behind
    let short = sent("for i in progress(6, \"waiting\") {}", (24, 80), &COLOUR);
    assert!(short.is_empty(), "{}", String::from_utf8_lossy(&short));
}
