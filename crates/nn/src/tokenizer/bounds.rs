//! What a `tokenizer.json` may ask for, so that a short text cannot fill the memory.

use amscript_base::bail;
use amscript_base::error::Result;
use serde_json::Value;

/// What a normalizer may be made of; others read tables of their own, whose sizes nobody checks.
const NORMALIZERS: [&str; 12] = [
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "BertNormalizer",
    "Replace",
    "Prepend",
    "Nmt",
];

/// A text may become this many times as long, in all steps of a normalizer together.
const MOST_GROWTH: usize = 64;

/// Most steps of a part of a tokenizer, sequences counted too.
const MOST_STEPS: usize = 64;

/// Most pieces of a template, and ids of a piece; some take one text in two pieces, none its tokens twice.
const MOST_PIECES: usize = 16;

/// Refuses a file that could make much of little.
pub(super) fn check(file: &Value) -> Result<()> {
    let mut all = 1usize;
    for step in steps(file, "normalizer")? {
        all = all.saturating_mul(growth(step)?);
    }
    if all > MOST_GROWTH {
        bail!(Limit, "tokenizer: a normalizer may make texts {MOST_GROWTH} times as long, got {all}");
    }
    let splits = steps(file, "pre_tokenizer")?;
    if let Some(step) = splits.iter().find(|step| !step["type"].is_string()) {
        bail!(File, "tokenizer: expected a pre_tokenizer with a type, got {step}");
    }
    let bytes = splits.iter().filter(|step| step["type"] == "ByteLevel").count();
    if bytes > 1 {
        bail!(Limit, "tokenizer: expected at most one step `ByteLevel`, each of which makes texts longer, got {bytes}");
    }
    if splits.iter().any(|step| step["type"] == "FixedLength" && step["length"] == 0) {
        bail!(File, "tokenizer: expected a length of `FixedLength` of 1 or more, got 0");
    }
    steps(file, "post_processor")?.into_iter().try_for_each(template)
}

/// The steps of a part, and those of sequences in it.
fn steps<'a>(file: &'a Value, part: &str) -> Result<Vec<&'a Value>> {
    let mut found: Vec<&Value> = file[part].is_object().then_some(&file[part]).into_iter().collect();
    let mut seen = 0;
    while let Some(step) = found.get(seen).copied() {
        let inner = ["normalizers", "pretokenizers", "processors"].map(|name| step[name].as_array());
        found.extend(inner.into_iter().flatten().flatten());
        seen += 1;
        if found.len() > MOST_STEPS {
            bail!(Limit, "tokenizer: expected at most {MOST_STEPS} steps of a {part}, got {}", found.len());
        }
    }
    Ok(found)
}

/// How many times as long a step of a normalizer may make a text.
fn growth(step: &Value) -> Result<usize> {
    let kind = step["type"].as_str().unwrap_or_default();
    if !NORMALIZERS.contains(&kind) {
        bail!(File, "tokenizer: expected a normalizer of {}, got `{kind}`", NORMALIZERS.join(", "));
    }
    let pattern = &step["pattern"];
    if pattern.as_object().is_some_and(|pattern| pattern.values().any(|text| text == "")) {
        bail!(File, "tokenizer: expected a pattern of `Replace` of a letter or more, got an empty one");
    }
    let length = step["content"].as_str().or(step["prepend"].as_str()).map_or(1, |text| text.len().max(1));
    // what matches nothing at all may stand before each letter, which stays
    Ok(length + usize::from(pattern["Regex"].is_string()))
}

/// Refuses what puts much around a text, or repeats it.
fn template(step: &Value) -> Result<()> {
    let pieces = step["single"].as_array().map_or(&[][..], Vec::as_slice);
    let texts = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count();
    let special = step["special_tokens"].as_object().into_iter().flat_map(|tokens| tokens.values());
    let ids = special.filter_map(|token| token["ids"].as_array()).map(Vec::len).max().unwrap_or_default();
    let longest = pieces.len().max(ids);
    if longest > MOST_PIECES || texts > 1 {
        bail!(
            Limit,
            "tokenizer: expected a template of at most {MOST_PIECES} pieces and ids of a piece, one of them the text, got {longest} and \
                {texts} of the text"
        );
    }
    Ok(())
}
