//! Fuzz targets as functions of bytes: whatever comes must be a value or an error, in bounded time and memory, and never a panic.
//!
//! `cargo +nightly fuzz run TARGET` drives one; the suite drives all of them for a moment with a small mutator (`tests/fuzz.rs`).

use amscript::error::{Error, Kind};
use amscript::nn::{archive::Archive, tokenizer::Tokenizer};
use amscript::run::{checkpoint, log::Lines, report::Report};
use amscript::script::{Host, Natives, Request, Session};
use amscript::{data, run};
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 11] = [
    ("script", script),
    ("options", options),
    ("safetensors", safetensors),
    ("pickle", pickle),
    ("config", config),
    ("tokenizer", tokenizer),
    ("png", png),
    ("jpeg", jpeg),
    ("log", log),
    ("run_directory", run_directory),
    ("prompts", prompts),
];

/// Tensors that are read to their end.
const SMALL: usize = 1 << 20;
/// A script may take so long.
const PATIENCE: Duration = Duration::from_millis(300);

/// A native that panicked is a finding, though a script only sees an error.
fn refused(error: &Error) {
    let message = &error.message;
    assert!(!(error.kind == Kind::Internal && message.contains("panicked")), "{message}");
}

/// A host for one input; the natives are made once.
fn host(request: Request) -> Host {
    static NATIVES: LazyLock<Natives> = LazyLock::new(Natives::default);
    Host::with(&NATIVES, Session::new(request, Box::new(|_| ())))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(folder: &Path, name: &str, data: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, data).expect("a file");
    path
}

/// A script with all natives.
pub fn script(data: &[u8]) {
    let folder = folder();
    let request = Request { out: Some(folder.path().join("out")), max_time: Some(PATIENCE), ..Request::default() };
    host(request).run("fuzz", &String::from_utf8_lossy(data)).err().iter().for_each(refused);
}

/// The options of functions that take many.
pub fn options(data: &[u8]) {
    const CALLS: [&str; 8] = [
        "rollout(velocity_field(|x, t, c| x), ones([1, 2]), (), #{ ? });",
        "adjoint_matching(#{ ? }).update(velocity_field(|x, t, c| x), velocity_field(|x, t, c| x), batch(ones([2, 1]), (), terminal_cost(|x| x.sum(1))));",
        "draft(#{ ? });",
        "refl(#{ ? });",
        "adamw(param(ones([2])), #{ ? });",
        "batch(ones([2, 1]), (), terminal_cost(|x| x.sum(1)), #{ ? });",
        "start_run(#{ seed: 0 }, #{ ? });",
        "let s = settings(#{ ? }); start_run(s);",
    ];
    let Some((first, rest)) = data.split_first() else { return };
    let given = String::from_utf8_lossy(rest);
    script(CALLS[*first as usize % CALLS.len()].replace('?', &given).as_bytes());
}

/// A file of tensors: all that are small are read.
fn tensors(path: &Path) {
    match Archive::open(path) {
        Err(e) => refused(&e),
        Ok(archive) => {
            let small = archive.entries().iter().filter(|(_, entry)| entry.shape.iter().product::<usize>() <= SMALL);
            small.take(50).for_each(|(name, _)| archive.read(name).err().iter().for_each(refused));
        }
    }
}

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    let folder = folder();
    tensors(&write(folder.path(), "x.safetensors", data));
}

/// The pickle in a PyTorch file, in a container that is whole.
pub fn pickle(data: &[u8]) {
    let mut container = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in
        [("x/data.pkl", data), ("x/data/0", &[0; 64]), ("x/data/1", &[0; 64]), ("x/byteorder", b"little")]
    {
        container
            .start_file(name, stored)
            .and_then(|()| Ok(container.write_all(bytes)?))
            .expect("a container in memory");
    }
    let bytes = container.finish().expect("a container in memory").into_inner();
    let folder = folder();
    tensors(&write(folder.path(), "x.pt", &bytes));
}

/// Configurations of models: a byte says whose, the rest is the file; all else of the model is whole.
pub fn config(data: &[u8]) {
    const CASES: [(&str, &str); 5] = [
        ("flux2/transformer/config.json", "flow(\"flux2\")"),
        ("flux2/text_encoder/config.json", "flow(\"flux2\")"),
        ("flux2/vae/config.json", "autoencoder(\"flux2/vae\")"),
        ("sit/config.json", "flow(\"sit/sit.safetensors\", #{ family: \"sit\" })"),
        ("clip_hf/pickscore/config.json", "reward(\"clip_hf/pickscore\", #{ kind: \"pickscore\" })"),
    ];
    thread_local!(static MODELS: tempfile::TempDir = models()); // goes with its thread
    let Some((first, rest)) = data.split_first() else { return };
    let (file, call) = CASES[*first as usize % CASES.len()];
    MODELS.with(|models| {
        let models = models.path();
        let right = std::fs::read(models.join(file)).expect("a configuration");
        write(models, file, rest);
        let request = Request {
            script: Some(write(models, "s.rhai", b"")),
            out: Some(models.join("out")),
            models: Some(models.into()),
            max_time: Some(PATIENCE),
            ..Request::default()
        };
        host(request).run("fuzz", call).err().iter().for_each(refused);
        write(models, file, &right);
    });
}

/// Tiny models in the published layouts, copied.
fn models() -> tempfile::TempDir {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = here.ancestors().map(|p| p.join("tests/golden")).find(|p| p.exists()).expect("tests/golden");
    let copies = folder();
    for file in [
        "flux2/model_index.json",
        "flux2/transformer/config.json",
        "flux2/transformer/diffusion_pytorch_model.safetensors",
        "flux2/text_encoder/config.json",
        "flux2/text_encoder/model.safetensors",
        "flux2/tokenizer/tokenizer.json",
        "flux2/tokenizer/tokenizer_config.json",
        "flux2/vae/config.json",
        "flux2/vae/diffusion_pytorch_model.safetensors",
        "sit/config.json",
        "sit/sit.safetensors",
        "clip_hf/pickscore/config.json",
        "clip_hf/pickscore/model.safetensors",
    ] {
        write(copies.path(), file, &std::fs::read(golden.join(file)).expect("a golden file"));
    }
    copies
}

/// A tokenizer, and a text through it.
pub fn tokenizer(data: &[u8]) {
    match Tokenizer::parse(data) {
        Err(e) => refused(&e),
        Ok(tokenizer) => {
            tokenizer.ids("a small red ring, \u{e9}\u{1f600} <|im_end|>", true).err().iter().for_each(refused)
        }
    }
}

fn image(name: &str, data: &[u8]) {
    let folder = folder();
    data::image::load(&write(folder.path(), name, data)).err().iter().for_each(refused);
}

/// A PNG image.
pub fn png(data: &[u8]) {
    image("x.png", data);
}

/// A JPEG image.
pub fn jpeg(data: &[u8]) {
    image("x.jpg", data);
}

/// The log of a run, and its page.
pub fn log(data: &[u8]) {
    let folder = folder();
    let path = write(folder.path(), "metrics.jsonl", data);
    let lines = Lines::read(&path);
    run::log::series(&lines.read);
    run::log::Log::new(path).keep(lines, 3, &Default::default());
    write(folder.path(), "run.json", b"{}");
    page(folder.path());
}

fn page(folder: &Path) {
    match Report::of(&[folder.into()]) {
        Err(e) => refused(&e),
        Ok(report) => drop(report.html()),
    }
}

/// The records of a run: a byte says which, the rest is the file. A run starts there, goes on, and is shown.
pub fn run_directory(data: &[u8]) {
    const FILES: [&str; 5] = [
        "run.json",
        "result.json",
        "step-000003/state.json",
        "step-000003/SHA256SUMS",
        "step-000003/state.safetensors",
    ];
    let Some((first, rest)) = data.split_first() else { return };
    let (folder, file) = (folder(), FILES[*first as usize % FILES.len()]);
    write(folder.path(), "run.json", b"{\"settings\": {}}");
    write(folder.path(), file, rest);
    if file.ends_with("state.json") {
        // a checkpoint whose hashes are right, so that its content is read
        let tensors = write(folder.path(), "step-000003/state.safetensors", b"\x02\0\0\0\0\0\0\0{}");
        let sum = |path: &Path| amscript::nn::digest::hash_file(path).expect("a file");
        let sums = format!("{}  state.json\n{}  state.safetensors\n", sum(&folder.path().join(file)), sum(&tensors));
        write(folder.path(), "step-000003/SHA256SUMS", sums.as_bytes());
    }
    checkpoint::latest(folder.path()).err().iter().for_each(refused);
    page(folder.path());
    let request = Request { out: Some(folder.path().into()), resume_anyway: true, ..Request::default() };
    let host = self::host(request);
    let text = "let r = start_run(#{}); r.restore(); r.result(); read_run(\".\");";
    host.run("fuzz", text).err().iter().for_each(refused);
}

/// A file of prompts.
pub fn prompts(data: &[u8]) {
    let folder = folder();
    data::Prompts::read(&write(folder.path(), "p.txt", data)).err().iter().for_each(refused);
}
