//! CLIP's published vocabulary, rows of token ids, and the cleaning that OpenAI's and open_clip's code does before.

mod repair;

use crate::source::Folder;
use crate::tokenizer::{CLIP_ENDS, Tokenizer, warn_of_cut};
use amscript_base::bail;
use amscript_base::error::Result;
use repair::repair;
use std::sync::{Arc, LazyLock};
use tokenizers::NormalizedString;
use tokenizers::models::bpe::{Merges, Vocab};

/// What open_clip calls the start and the end of a text.
const OPEN_CLIP_ENDS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

impl Tokenizer {
    /// Tokens of [`Tokenizer::clip`].
    pub const CLIP_SIZE: usize = 49408;

    /// OpenAI's vocabulary, embedded; the same for HPSv2, PickScore and every published CLIP. Built at the first call.
    pub fn clip() -> Result<Arc<Self>> {
        static CLIP: LazyLock<Result<Arc<Tokenizer>>> = LazyLock::new(|| build(CLIP_ENDS).map(Arc::new));
        CLIP.clone()
    }

    /// The same as open_clip reads it, where a text may hold its own names of the two ends.
    pub fn open_clip() -> Result<Arc<Self>> {
        static CLIP: LazyLock<Result<Arc<Tokenizer>>> = LazyLock::new(|| build(OPEN_CLIP_ENDS).map(Arc::new));
        CLIP.clone()
    }

    /// Rows of `context` ids, one after another, and the position of each row's first end token. Rows are filled with `pad`
    /// (0 in open_clip, the end token in transformers: no feature depends on it). Longer prompts are cut and closed with the
    /// end token, as the reference does.
    pub fn clip_rows(&self, prompts: &[impl AsRef<str>], context: usize, pad: u32) -> Result<(Vec<u32>, Vec<usize>)> {
        let end = self.id(CLIP_ENDS[1]).or_else(|_| self.id(OPEN_CLIP_ENDS[1]))?;
        let (mut ids, mut ends) = (Vec::with_capacity(prompts.len() * context), Vec::new());
        for prompt in prompts {
            let mut row = self.ids(prompt.as_ref(), true)?;
            warn_of_cut(prompt.as_ref(), row.len(), context);
            row.truncate(context);
            row.last_mut().into_iter().for_each(|last| *last = end);
            ends.push(row.iter().position(|id| *id == end).unwrap_or_default());
            row.resize(context, pad);
            ids.extend(row);
        }
        Ok((ids, ends))
    }
}

/// The alphabet of bytes, the same at the end of a word, then one token per merge, then the two ends.
fn build(ends: [&str; 2]) -> Result<Tokenizer> {
    let Some(folder) = Folder::embedded("clip") else {
        bail!(Internal, "tokenizer: expected the asset `clip`, got none");
    };
    let text = folder.bytes("merges.txt")?;
    let text = String::from_utf8_lossy(&text);
    // the first line is a version
    let pairs = text.lines().skip(1).filter_map(|line| line.split_once(' '));
    let merges: Merges = pairs.map(|(a, b)| (a.to_string(), b.to_string())).collect();
    let bytes = || ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
    let tokens = bytes().map(String::from).chain(bytes().map(|c| format!("{c}</w>")));
    let tokens = tokens.chain(merges.iter().map(|(a, b)| format!("{a}{b}"))).chain(ends.map(String::from));
    let vocabulary: Vocab = tokens.zip(0..).collect();
    Tokenizer::clip_of(vocabulary, merges, ends)
}

/// Text as open_clip cleans it before tokenizing: what ftfy does to text read in a wrong encoding ([`repair`]), widths, ligatures,
/// quotes, terminal escapes and control characters, HTML entities twice, white space to single blanks, lower case. Composed forms
/// (NFC) are the tokenizer's own step.
///
/// transformers does none of this but white space and lower case, which the tokenizer does itself.
pub fn clean(text: &str) -> String {
    // ftfy takes text without `<` for text out of a web page
    let text = if text.contains('<') { text.into() } else { unescape(&capitals(text)) };
    let text: String = without_escapes(&repair(&text)).chars().flat_map(plain).collect();
    unescape(&unescape(&text)).split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Without what sets a terminal's colours: escape, bracket, numbers, a letter.
fn without_escapes(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        match rest.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(rest) => out += rest,
            None => out.extend(["[", part]),
        }
    }
    out
}

fn unescape(text: &str) -> String {
    htmlize::unescape(text).into_owned()
}

/// Names of HTML's entities in capitals where HTML has them in small letters only, as ftfy reads them: `&EACUTE;` is `É`.
fn capitals(text: &str) -> String {
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part.split_once(';').and_then(|(name, rest)| Some((capital(name)?, rest))) {
            Some((capital, rest)) => out.extend([&capital, rest]),
            None => out.extend(["&", part]),
        }
    }
    out
}

fn capital(name: &str) -> Option<String> {
    let is_capital = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    let whole = format!("&{name};");
    let small = (is_capital && unescape(&whole) == whole).then(|| unescape(&whole.to_lowercase()))?;
    // what is no entity ends as before
    (!small.ends_with(';') || small == ";").then(|| small.to_uppercase())
}

/// ftfy's normal form of one character; none of a control character.
fn plain(c: char) -> Vec<char> {
    if c == 'ﬅ' {
        return vec!['ſ', 't'];
    }
    let is_form =
        matches!(c, 'Ĳ' | 'ĳ' | 'ŉ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | 'ﬀ'..='ﬆ' | '\u{3000}' | '\u{ff01}'..='\u{ffef}');
    let mut text = NormalizedString::from(c.to_string());
    if is_form {
        text.nfkc();
    }
    let uncurled = text.get().chars().filter_map(|c| match c {
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => None,
        '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => None,
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some('\''),
        '\u{201c}'..='\u{201f}' => Some('"'),
        c => Some(c),
    });
    uncurled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::{DType, Device};
    use std::path::PathBuf;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(name)
    }

    fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
        serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
    }

    /// Case `clip_words`: transformers as it is, open_clip after cleaning.
    #[test]
    fn golden_words() {
        let clip = Tokenizer::clip().unwrap();
        assert_eq!((clip.size(), clip.id(CLIP_ENDS[0]).unwrap()), (Tokenizer::CLIP_SIZE, 49406));
        for (text, ids, cleaned) in json::<Vec<(String, Vec<u32>, Vec<u32>)>>("clip_words/expected.json") {
            assert_eq!(clip.ids(&text, true).unwrap(), ids, "{text:?}");
            assert_eq!(clip.ids(&clean(&text), true).unwrap(), cleaned, "{text:?} as {:?}", clean(&text));
        }
    }

    /// Case `clip_openclip`; its third prompt is too long.
    #[test]
    fn golden_rows() {
        let case: serde_json::Value = json("clip_openclip/case.json");
        let prompts: Vec<String> = serde_json::from_value(case["prompts"].clone()).unwrap();
        let expected = amscript_tensor::file::load(golden("clip_openclip/expected.safetensors"), &Device::Cpu).unwrap();
        let expected = expected["out.token_ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let prompts: Vec<String> = prompts.iter().map(|prompt| clean(prompt)).collect();
        let (ids, ends) = Tokenizer::clip().unwrap().clip_rows(&prompts, 77, 0).unwrap();
        assert_eq!(ids, expected.concat());
        for (row, end) in expected.iter().zip(ends) {
            assert_eq!(row.iter().position(|id| *id == 49407), Some(end));
        }
    }

    /// Ids from open_clip 3.3, whose own names of the ends count and transformers' do not.
    #[test]
    fn open_clip_has_names_of_its_own() {
        let cases: [(&str, &[u32]); 4] = [
            ("a <end_of_text> cat", &[49406, 320, 49407, 2368, 49407]),
            ("<|endoftext|> x", &[49406, 27, 347, 40786, 4160, 91, 285, 343, 49407]),
            ("<START_OF_TEXT> a", &[49406, 49406, 320, 49407]),
            ("cafÃ© table", &[49406, 15304, 2175, 49407]),
        ];
        let clip = Tokenizer::open_clip().unwrap();
        for (text, ids) in cases {
            assert_eq!(clip.ids(&clean(text), true).unwrap(), ids, "{text}");
        }
        let (row, ends) = clip.clip_rows(&["a <end_of_text> cat"], 8, 0).unwrap();
        assert_eq!((&row[..5], ends), (&[49406, 320, 49407, 2368, 49407][..], vec![2]));
    }

    #[test]
    fn cleaning_is_for_people_and_web_pages() {
        assert_eq!(clean(" It\u{2019}s \u{201c}R&amp;D&rdquo;\t&lt;ﬁne&gt; "), "it's \"r&d\" <fine>");
        assert_eq!(clean("<b>it&rsquo;s</b>"), "<b>it\u{2019}s</b>"); // as the reference: quotes come before entities here
        assert_eq!(clean("ＬＯＵＤ　ＮＯＩＳＥＳ\u{feff} ｶﾞ\n"), "loud noises カ\u{3099}");
        assert_eq!(clean("\u{0} \n"), "");
        assert_eq!(clean("&EACUTE;T&EACUTE; &SZLIG; &LTIMES; &AMP; &nTILDE; &NO;"), "été ss <imes; & &ntilde; &no;"); // as ftfy 6.3.1
        assert_eq!(clean("ﬅ ﬆ Ã\u{a0} la carte, voilÃ  un chat"), "ſt st à la carte, voilà un chat");
        assert_eq!(clean("\u{1b}[1;31mred\u{1b}[0m cafÃ© \u{1b}[!"), "red café [!"); // as ftfy 6.3.1
    }
}
