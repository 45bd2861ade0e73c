//! Text to token ids through published `tokenizer.json` or `vocab.txt` files, and small tokenizers made for captions.

mod bounds;

use crate::source::Folder;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, warn_once};
use amscript_base::{file, memory};
use amscript_tensor::interrupt;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, Normalizer, OffsetReferential, OffsetType, PreTokenizer, models::TrainerWrapper};
use tokenizers::{normalizers::BertNormalizer, pre_tokenizers::bert::BertPreTokenizer, tokenizer::PreTokenizedString};

/// Qwen2's word pattern.
const QWEN_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// CLIP's word pattern; what lies between the words is dropped.
const CLIP_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// What CLIP puts around a text.
pub const CLIP_ENDS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];
/// BERT's special tokens; padding is id 0.
const BERT_SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Most bytes of a prompt: all of it is read, of which a model sees some hundred tokens.
const MOST_PROMPT: usize = 100_000;

/// Refuses a prompt that would take long to read.
pub fn check_prompt(text: &str) -> Result<()> {
    if text.len() > MOST_PROMPT {
        let (most, got) = (MOST_PROMPT / 1000, text.len() / 1000);
        bail!(Limit, "a prompt may have at most {most} kB, got {got} kB"; hint: "models read its first few hundred words");
    }
    Ok(())
}

/// Warns once of prompts that have more tokens than are read.
pub fn warn_of_cut(prompt: &str, tokens: usize, most: usize) {
    if tokens > most {
        let start: String = prompt.chars().take(40).collect();
        let text = format!("prompts over {most} tokens are cut; the first has {tokens}: `{start}..`");
        warn_once(&format!("prompts over {most}"), &text);
    }
}

/// A tokenizer without padding or truncation of its own.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// `tokenizer.json` in a folder.
    pub fn open(folder: &Folder) -> Result<Self> {
        Self::parse(folder.text("tokenizer.json")?.as_bytes())
            .map_err(|e| e.within(format!("{}/tokenizer.json", folder.origin())))
    }

    /// BERT's, uncased: `tokenizer.json`, else the `vocab.txt` of a folder.
    pub fn open_bert(folder: &Folder) -> Result<Self> {
        if folder.has("tokenizer.json") {
            return Self::open(folder);
        }
        Self::bert(folder.text("vocab.txt")?.lines()).map_err(|e| e.within(format!("{}/vocab.txt", folder.origin())))
    }

    /// BERT's WordPiece, uncased, over this vocabulary: a token's place is its id.
    pub fn bert<'a>(vocabulary: impl Iterator<Item = &'a str>) -> Result<Self> {
        let vocabulary: Map<String, Value> =
            vocabulary.enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
        let id = |token: &str| match vocabulary.get(token) {
            Some(id) => Ok(id.clone()),
            None => bail!(Missing, "tokenizer: token `{token}` is missing"),
        };
        let special = BERT_SPECIAL.iter().filter(|token| vocabulary.contains_key(**token)).map(|token| {
            Ok(json!({"id": id(token)?, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}))
        });
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": special.collect::<Result<Vec<_>>>()?,
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", id("[SEP]")?], "cls": ["[CLS]", id("[CLS]")?]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary}});
        Self::parse(json.to_string().as_bytes())
    }

    /// BERT's WordPiece for captions: the words of `texts` get one token each, other words are spelt.
    pub fn train_bert(texts: &[String]) -> Result<Self> {
        let mut words = BTreeSet::new();
        for text in texts {
            check_prompt(text)?;
            let mut text = text.as_str().into();
            BertNormalizer::default().normalize(&mut text).map_err(refused)?;
            let mut text = PreTokenizedString::from(text);
            BertPreTokenizer.pre_tokenize(&mut text).map_err(refused)?;
            let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
            words.extend(splits.into_iter().map(|(word, ..)| word.to_string()));
        }
        let letters = ('!'..='~').filter(|c| !c.is_ascii_uppercase());
        words.extend(letters.flat_map(|c| [c.to_string(), format!("##{c}")]));
        Self::bert(BERT_SPECIAL.into_iter().chain(words.iter().map(String::as_str)))
    }

    /// The text of a `tokenizer.json`.
    pub fn parse(json: &[u8]) -> Result<Self> {
        memory::room_for_json(json, || "tokenizer")?;
        // also because text that is no JSON makes tokenizers 0.23 panic in a decoder
        let file: Value = serde_json::from_slice(json).map_err(|e| refused(e.into()))?;
        bounds::check(&file)?;
        // written anew, for tokenizers reads a key as often as it is there
        let mut inner = whole(|| tokenizers::Tokenizer::from_bytes(file.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refused)?;
        Ok(Self { inner })
    }

    /// Ids of a text; `wrap` adds what the tokenizer puts around a text (CLIP: start and end).
    pub fn ids(&self, text: &str, wrap: bool) -> Result<Vec<u32>> {
        interrupt::check()?; // there may be millions of texts
        check_prompt(text)?;
        Ok(whole(|| self.inner.encode_fast(text, wrap))?.get_ids().to_vec())
    }

    /// The id of one token such as `<|endoftext|>`.
    pub fn id(&self, token: &str) -> Result<u32> {
        self.inner
            .token_to_id(token)
            .ok_or_else(|| Error::new(Kind::Missing, format!("tokenizer: token `{token}` is missing")))
    }

    /// One more than the largest id.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// A byte-level BPE in Qwen's form: any text has ids, the words of `texts` get one each (with their leading space).
    pub fn train_qwen(texts: &[String]) -> Result<Self> {
        let mut words: Vec<&str> = texts.iter().map(String::as_str).collect();
        words.extend(["user\n", "assistant\n", "\n\n"]); // pieces of the chat template
        let split = json!({"type": "Split", "pattern": {"Regex": QWEN_WORDS}, "behavior": "Isolated", "invert": false});
        let mut inner = train(&words, json!({"type": "NFC"}), split)?;
        let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|token| AddedToken::from(token, true));
        let plain = ["<think>", "</think>"].map(|token| AddedToken::from(token, false).normalized(false));
        inner.add_special_tokens(special).map_err(refused)?;
        inner.add_tokens(plain).map_err(refused)?;
        Ok(Self { inner })
    }

    /// A byte-level BPE in CLIP's form: lower case, start and end tokens around the text, the end token the largest id.
    pub fn train_clip(texts: &[String]) -> Result<Self> {
        let words: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (normalizer, split) = clip_form();
        Self::closed(train(&words, normalizer, split)?, CLIP_ENDS)
    }

    /// CLIP's form over a given vocabulary, with its names of the start and the end of a text.
    pub fn clip_of(vocabulary: Vocab, merges: Merges, ends: [&str; 2]) -> Result<Self> {
        let (normalizer, split) = clip_form();
        let mut inner = untrained(normalizer, split)?;
        let model = BPE::builder().vocab_and_merges(vocabulary, merges).end_of_word_suffix("</w>".into());
        inner.with_model(model.unk_token(ends[1].into()).build().map_err(refused)?);
        Self::closed(inner, ends)
    }

    /// With start and end token around a text.
    fn closed(mut inner: tokenizers::Tokenizer, ends: [&str; 2]) -> Result<Self> {
        inner.add_special_tokens(ends.map(|token| AddedToken::from(token, true))).map_err(refused)?;
        let mut tokenizer = Self { inner };
        let known = |token: &str| Ok::<_, Error>((token.to_string(), tokenizer.id(token)?));
        let wrap = RobertaProcessing::new(known(ends[1])?, known(ends[0])?).trim_offsets(false).add_prefix_space(false);
        tokenizer.inner.with_post_processor(Some(wrap));
        Ok(tokenizer)
    }

    /// Writes `tokenizer.json` into a folder on disk.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("tokenizer.json");
        let text = self.inner.to_string(false).map_err(refused)?;
        file::write_whole(&path, text.as_bytes())
            .map_err(|e| Error::new(Kind::File, format!("{}: {e}", path.display())))
    }
}

/// CLIP's normalizer and word split.
fn clip_form() -> (Value, Value) {
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]});
    let split = json!({"type": "Split", "pattern": {"Regex": CLIP_WORDS}, "behavior": "Removed", "invert": true});
    (normalizer, split)
}

/// A byte-level BPE without vocabulary.
fn untrained(normalizer: Value, split: Value) -> Result<tokenizers::Tokenizer> {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let skeleton = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
        "post_processor": null, "decoder": bytes, "model": {"type": "BPE", "vocab": {}, "merges": []}});
    tokenizers::Tokenizer::from_bytes(skeleton.to_string()).map_err(refused)
}

/// Trains until every word that occurs twice is one token; the alphabet is all bytes.
fn train(texts: &[&str], normalizer: Value, split: Value) -> Result<tokenizers::Tokenizer> {
    texts.iter().try_for_each(|text| check_prompt(text))?;
    let mut inner = untrained(normalizer, split)?;
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(1000)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    // each text twice, so that a word in one text only still counts as occurring
    inner.train(&mut TrainerWrapper::from(trainer), texts.iter().chain(texts)).map_err(refused)?;
    Ok(inner)
}

/// What tokenizers does by a file whose parts may not fit one another, which makes it panic.
fn whole<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(refused),
        Err(_) => bail!(File, "tokenizer: expected parts that fit one another, got a file that is not valid"),
    }
}

fn refused(error: tokenizers::Error) -> Error {
    Error::new(Kind::File, format!("tokenizer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions() -> Vec<String> {
        ["a small red ring at the left", "a large blue square on cream"].map(String::from).to_vec()
    }

    #[test]
    fn known_words_are_one_token_and_any_text_has_ids() {
        let qwen = Tokenizer::train_qwen(&captions()).unwrap();
        assert_eq!(qwen.ids("a large red ring on cream", true).unwrap().len(), 6);
        assert_eq!(qwen.ids("<|im_start|>user\n", true).unwrap().len(), 3);
        assert_eq!(qwen.ids("<think>\n\n</think>\n\n", true).unwrap().len(), 4);
        assert!(qwen.ids("Zyx: 北京", true).unwrap().len() > 6);
        let same = Tokenizer::train_qwen(&captions()).unwrap();
        assert_eq!(qwen.inner.to_string(false).unwrap(), same.inner.to_string(false).unwrap());
    }

    #[test]
    fn clip_form_wraps_and_survives_its_file() {
        let clip = Tokenizer::train_clip(&captions()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        clip.save(folder.path()).unwrap();
        let read = Tokenizer::open(&Folder::disk(folder.path())).unwrap();
        let ids = read.ids("A Red  ring", true).unwrap();
        assert_eq!(ids, clip.ids("a red ring", true).unwrap());
        assert_eq!(ids.len(), 5);
        assert_eq!(ids[0] as usize, read.size() - 2);
        assert_eq!(ids[4] as usize, read.size() - 1);
    }
    /// Ids from transformers' own BERT tokenizer (5.23), written in Python, over this vocabulary.
    #[test]
    fn bert_agrees_with_the_reference() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = "[PAD] [UNK] [CLS] [SEP] [MASK] a cafe red ring ##s ##ly un ##known ! ' - . , naive 北 京 e ##e is \
            strasse i t don x ##x";
        let lines: Vec<&str> = vocabulary.split_whitespace().collect();
        std::fs::write(folder.path().join("vocab.txt"), lines.join("\n") + "\n").unwrap();
        let bert = Tokenizer::open_bert(&Folder::disk(folder.path())).unwrap();
        let cases: [(&str, &[u32]); 13] = [
            ("A Red ring", &[5, 7, 8]),
            ("Café NAÏVE rings!", &[6, 18, 8, 9, 13]),
            ("redly unknown zebra", &[7, 10, 11, 12, 1]),
            ("don't  red-ring...", &[27, 14, 26, 7, 15, 8, 16, 16, 16]),
            ("北京 red\tring\n", &[19, 20, 7, 8]),
            ("İs STRASSE Straße", &[23, 24, 1]),
            ("", &[]),
            ("red\0ring a\u{ad}ring \u{200b}x", &[1, 1, 28]),
            (&"x".repeat(101), &[1]),
            ("xxx", &[28, 29, 29]),
            ("a [SEP] red [MASK]", &[5, 3, 7, 4]),
            ("e\u{301} ÉE", &[21, 21, 22]),
            ("a\u{a0}red\u{3000}ring", &[5, 7, 8]),
        ];
        for (text, ids) in cases {
            assert_eq!(bert.ids(text, true).unwrap(), [&[2], ids, &[3]].concat(), "{text}");
        }
        std::fs::write(folder.path().join("vocab.txt"), "[PAD]\n[CLS]\n").unwrap();
        let error = Tokenizer::open_bert(&Folder::disk(folder.path())).err().unwrap();
        assert!(error.message.ends_with("vocab.txt: tokenizer: token `[SEP]` is missing"), "{error}");
    }

    #[test]
    fn what_would_fill_the_memory_or_panic_is_refused() {
        let plain = Tokenizer::train_clip(&captions()).unwrap().inner.to_string(false).unwrap();
        let read =
            |text: &str| Tokenizer::parse(text.as_bytes()).and_then(|t| t.ids("a ring", true)).err().map(|e| e.kind);
        let part = |name: &str, part: Value| {
            let mut file: Value = serde_json::from_str(&plain).unwrap();
            file[name] = part;
            read(&file.to_string())
        };
        let with = |normalizer: Value| part("normalizer", normalizer);
        let replace = |by: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": by});
        assert_eq!(with(Value::Null), None);
        assert_eq!(with(json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace("aa")]})), None);
        assert_eq!(with(json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})), Some(Kind::File));
        assert_eq!(with(json!({"type": "Sequence", "normalizers": vec![replace("aa"); 7]})), Some(Kind::Limit));
        let regex = |pattern: &str, by: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": by});
        assert_eq!(with(regex(r"\s+", " ")), None);
        assert_eq!(with(regex("", "")), Some(Kind::File));
        assert_eq!(with(json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})), Some(Kind::File));
        assert_eq!(with(json!({"type": "Sequence", "normalizers": vec![regex("x*", "y"); 7]})), Some(Kind::Limit));
        assert!(matches!(with(regex("x*", "y")), None | Some(Kind::File)));

        let words = |steps: Vec<Value>| part("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": steps}));
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        assert_eq!((words(vec![bytes.clone()]), words(vec![bytes; 2])), (None, Some(Kind::Limit)));
        assert_eq!(words(vec![json!({"type": "FixedLength", "length": 0})]), Some(Kind::File));
        assert_eq!(words(vec![json!({"type": "Whitespace"}); 65]), Some(Kind::Limit));

        let template = |pieces: Vec<Value>, ids: usize| {
            let special = json!({"[X]": {"id": "[X]", "ids": vec![0; ids], "tokens": vec!["[X]"; ids]}});
            part(
                "post_processor",
                json!({"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": special}),
            )
        };
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let special = json!({"SpecialToken": {"id": "[X]", "type_id": 0}});
        assert_eq!(template(vec![special.clone(), text.clone(), special.clone()], 1), None);
        assert_eq!(template(vec![special.clone(); 17], 1), Some(Kind::Limit));
        assert_eq!(template(vec![special], 17), Some(Kind::Limit));
        assert_eq!(template(vec![text; 2], 1), Some(Kind::Limit));

        let twice = plain.replacen(
            "\"normalizer\":",
            "\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////w==\"},\"normalizer\":",
            1,
        );
        assert!(twice != plain && read(&twice).is_none());
        let mut prefixed: Value = serde_json::from_str(&plain).unwrap();
        prefixed["model"]["continuing_subword_prefix"] = json!("a prefix that is longer than any token");
        assert_eq!(read(&prefixed.to_string()), Some(Kind::File));
    }

    #[test]
    fn long_prompts_are_refused() {
        let clip = Tokenizer::train_clip(&captions()).unwrap();
        assert!(clip.ids(&"a ".repeat(50_000), true).is_ok());
        let error = clip.ids(&"a ".repeat(60_000), true).unwrap_err();
        assert_eq!(error.message, "a prompt may have at most 100 kB, got 120 kB");
        assert!(Tokenizer::train_bert(&["a ".repeat(60_000)]).is_err());
    }

    #[test]
    fn a_bert_for_captions_knows_their_words_and_spells_others() {
        let bert = Tokenizer::train_bert(&captions()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        bert.save(folder.path()).unwrap();
        let read = Tokenizer::open_bert(&Folder::disk(folder.path())).unwrap();
        assert_eq!(read.ids("A Large red ring", true).unwrap().len(), 6);
        assert_eq!(read.ids("zyx", true).unwrap().len(), 5);
        assert_eq!((read.id("[PAD]").unwrap(), read.size()), (0, bert.size()));
    }
}
