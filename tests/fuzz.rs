//! The fuzz targets of `fuzz/`, driven for a moment by a small mutator whose numbers are always the same. `AMSCRIPT_FUZZ=100000` drives
//! them longer; `cargo +nightly fuzz run TARGET` is led by coverage.

#[path = "../fuzz/src/lib.rs"]
mod target;

use amscript::script::catalog::Catalog;
use std::time::{Duration, Instant};

/// Numbers from 0, always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// What parsers stumble over.
const WORDS: [&[u8]; 24] = [
    b"-1",
    b"0",
    b"9223372036854775807",
    b"1e308",
    b"null",
    b"[]",
    b"{}",
    b"[[[[[[[[",
    b"\"",
    b"\\u0000",
    b"#{",
    b"}",
    b"(",
    b")",
    b"|x|",
    b"\xff\xfe",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"(0.0/0.0)",
    b"infinity()",
    b"zeros([0])",
    b"()",
    b"true",
    b"..",
];

/// Some bytes changed, put in, taken out, doubled, or taken from another one.
fn changed(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(16)).min(bytes.len());
        match dice.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, WORDS[dice.below(WORDS.len())].iter().copied())),
            3 => drop(bytes.splice(at..end, WORDS[dice.below(WORDS.len())].iter().copied())),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => {
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(64)).min(other.len());
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
        }
    }
    bytes
}

/// The corpus of a target; scripts also begin from every example of the manual.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files.into_iter().map(|file| std::fs::read(file).unwrap()).collect();
    if name == "script" {
        // those that open models take too long for a moment
        let light = |code: &&str| {
            !["tiny/", "prompts(", "shapes", "sleep", "experiment"].iter().any(|word| code.contains(word))
        };
        let examples = Catalog::get().entries.iter().flat_map(|entry| &entry.examples).filter(|example| example.run);
        seeds.extend(examples.map(|example| example.code.as_str()).filter(light).map(|code| code.as_bytes().to_vec()));
    }
    seeds
}

fn drive(name: &str, usual: usize) {
    let (_, target) = target::TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let count = std::env::var("AMSCRIPT_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (seeds, mut dice) = (seeds(name), Dice(7));
    for i in 0..count + seeds.len() {
        let bytes = match seeds.get(i) {
            Some(seed) => seed.clone(),
            None => changed(&seeds[dice.below(seeds.len())], &seeds[dice.below(seeds.len())], &mut dice),
        };
        let begun = Instant::now();
        let outcome = std::panic::catch_unwind(|| target(&bytes));
        assert!(outcome.is_ok(), "{name}, number {i}: {}", bytes.escape_ascii());
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{name}, number {i}, took {:?}: {}",
            begun.elapsed(),
            bytes.escape_ascii()
        );
    }
}

/// A test for each target, so that they run beside one another.
macro_rules! drives {
    ($($name:ident $count:literal)*) => {
        $(#[test]
        fn $name() {
            drive(stringify!($name), $count);
        })*
        #[test]
        fn every_target_is_driven() {
            assert_eq!([$(stringify!($name)),*], target::TARGETS.map(|(name, _)| name));
        }
    };
}

drives! {
    script 200
    options 200
    safetensors 2000
    pickle 1000
    config 50
    tokenizer 100
    png 1000
    jpeg 500
    log 300
    run_directory 150
    prompts 1000
}
