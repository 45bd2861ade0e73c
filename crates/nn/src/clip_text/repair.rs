//! Repair of text that was UTF-8 and was read as Latin-1 or Windows-1252 (`cafÃ©`), as ftfy 6.3 does it; what was read in other code pages stays.
//!
//! A text is looked at twice: it is repaired only where letters and signs stand together as they do in no language, and only if what
//! comes out is UTF-8.

/// What Windows-1252 has at 0x80 to 0x9f; where it has nothing, the control character of that number.
const WINDOWS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// A text may have been read wrongly so often.
const ROUNDS: usize = 4;

/// The text as it was meant.
pub fn repair(text: &str) -> String {
    let mut text = text.to_string();
    for _ in 0..ROUNDS {
        let repaired = if is_suspicious(&text) { decoded(&text).or_else(|| decoded_in_part(&text)) } else { None };
        match repaired {
            Some(repaired) => text = repaired,
            None => break,
        }
    }
    text.chars().map(|c| if ('\u{80}'..='\u{9f}').contains(&c) { WINDOWS[c as usize - 0x80] } else { c }).collect()
}

/// The byte that a character was read from.
fn byte(c: char) -> Option<u8> {
    let windows = || WINDOWS.iter().position(|w| *w == c).map(|i| 0x80 + i as u8);
    u8::try_from(u32::from(c)).ok().or_else(windows)
}

/// All of a text.
fn decoded(text: &str) -> Option<String> {
    let bytes: Vec<u8> = text.chars().map(byte).collect::<Option<_>>()?;
    String::from_utf8(with_blanks(&bytes)).ok().filter(|out| out != text)
}

/// With the byte 0xa0 where it was read as a blank that does not break, and a plain one was put in its place (`voilÃ  un chat`).
fn with_blanks(bytes: &[u8]) -> Vec<u8> {
    // mostly the word `à`, behind which the blank stays, unless more of a word follows
    const JOINED: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut out = Vec::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        out.push(*byte);
        let rest = bytes[at + 1..].strip_prefix(b" ").filter(|_| *byte == 0xc3);
        out.extend(rest.filter(|rest| !JOINED.iter().any(|word| rest.starts_with(word))).map(|_| 0xa0));
    }
    let follows = |b: u8| matches!(b, 0x80..=0x84 | 0x86..=0x9f | 0xa1..=0xbf);
    let mut at = 0;
    while at < out.len() {
        let width = match out[at..] {
            [0xc2 | 0xc3 | 0xc5 | 0xce | 0xd0 | 0xd9, b' ', ..] => 2,
            [0xe2 | 0xe3, b' ', b, ..] | [0xe0..=0xe3, b, b' ', ..] if follows(b) => 3,
            [0xf0, b' ', 0x80..=0xbf, 0x80..=0xbf, ..]
            | [0xf0, 0x80..=0xbf, b' ', 0x80..=0xbf, ..]
            | [0xf0, 0x80..=0xbf, 0x80..=0xbf, b' ', ..] => 4,
            _ => 1,
        };
        out[at..at + width].iter_mut().filter(|b| **b == b' ' && width > 1).for_each(|b| *b = 0xa0);
        at += width;
    }
    out
}

/// The suspicious parts of a text of which the rest is as it should be.
fn decoded_in_part(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (String::new(), 0);
    while at < chars.len() {
        let mut end = at;
        while let Some(length) = sequence(&chars[end..]) {
            end += length;
        }
        let part: String = chars[at..end].iter().collect();
        match decoded(&part).filter(|_| is_suspicious(&part)) {
            Some(decoded) => out += &decoded,
            None => out += &part,
        }
        out.extend(chars.get(end));
        at = end + 1;
    }
    Some(out).filter(|out| out != text)
}

/// How many characters at the beginning were read from one of UTF-8.
fn sequence(chars: &[char]) -> Option<usize> {
    let length = match byte(*chars.first()?)? {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let part: String = chars.get(..length)?.iter().collect();
    decoded(&part).map(|_| length)
}

/// What a character is to [`is_suspicious`].
#[derive(Clone, Copy, PartialEq)]
enum Class {
    /// Nothing that tells.
    Plain,
    /// In text read rightly there are none.
    Control,
    /// Signs that hardly stand beside letters.
    Rare,
    Lower,
    Upper,
    /// What begins a quotation, and what ends one.
    Start,
    End,
    Currency,
    Number,
    Mark,
}

fn class(c: char) -> Class {
    match c {
        '\u{80}'..='\u{9f}' => Class::Control,
        '¦' | '¤' | '¨' | '¬' | '¯' | '¸' | 'ƒ' | 'ˆ' | '˜' | '†' | '‡' | '‰' | 'ª' | 'º' | '\u{fffd}' => {
            Class::Rare
        }
        'ß'..='ñ' | 'œ' | 'š' | 'ž' => Class::Lower,
        'À'..='Ñ' | 'Ø' | 'Ü' | 'Ý' | 'Œ' | 'Š' | 'Ÿ' | 'Ž' => Class::Upper,
        '¡' | '«' | '¿' | '©' | '‘' | '‚' | '“' | '„' | '•' | '‹' => Class::Start,
        '®' | '»' | '”' | '›' | '™' => Class::End,
        '¢' | '£' | '¥' | '€' => Class::Currency,
        '²' | '³' | '¹' | '±' | '¼' | '½' | '¾' | '×' | 'µ' | '÷' => Class::Number,
        '¶' | '§' => Class::Mark,
        _ => Class::Plain,
    }
}

/// Whether characters stand together as they do where UTF-8 was read as Windows-1252.
fn is_suspicious(text: &str) -> bool {
    let mut chars = text.chars().peekable();
    let mut before = None;
    while let Some(a) = chars.next() {
        let (b, mut ahead) = (chars.peek().copied(), chars.clone());
        let c = ahead.nth(1);
        if class(a) == Class::Control || b.is_some_and(|b| are_suspicious(before, a, b, c)) {
            return true;
        }
        before = Some(a);
    }
    has_blank_within(text)
}

/// Whether a blank stands where it is what is left of a character.
fn has_blank_within(text: &str) -> bool {
    let is_lower = |text: &str| text.ends_with(|c: char| c.is_ascii_lowercase());
    text.match_indices(['Ã', 'Â']).any(|(at, letter)| {
        let before = &text[..at];
        let word =
            before.is_empty() || is_lower(before) || before.strip_suffix(char::is_whitespace).is_some_and(is_lower);
        let sentence = letter == "Â" && before.ends_with(|c| ".,?!".contains(c) || class(c) == Class::End);
        text[at + letter.len()..].starts_with(' ') && (word || sentence)
    })
}

fn are_suspicious(before: Option<char>, a: char, b: char, c: Option<char>) -> bool {
    use Class::{Currency, End, Lower, Mark, Number, Plain, Rare, Start, Upper};
    let is = |of: Class, classes: &[Class]| classes.contains(&of);
    let (letter, (x, y)) = (|of| is(of, &[Lower, Upper]), (class(a), class(b)));
    let z = c.map_or(Plain, class);
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let pair = match (x, y) {
        (Plain, _) => false,
        (Rare, y) => y != Plain,
        (_, Rare) => true,
        (Lower | End | Currency | Number, Upper) | (End | Currency | Number, Lower) => true,
        (Lower | End, Currency) | (Upper, Number | Mark) | (Currency | Number, Start) => true,
        (x, Start) => z == Number && is(x, &[Lower, Upper, Currency, End]) || letter(x) && word(c),
        (x, End) => z == Start && is(x, &[Lower, Upper, Currency, Number, Mark]) || letter(x) && word(c),
        _ => false,
    };
    let of_upper = x == Upper
        && (b == '°'
            || before.is_some_and(|p| p.is_ascii_lowercase()) && is(y, &[Start, Currency])
            || before.is_some_and(char::is_whitespace) && y == Currency);
    let common = "€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»¡«¿‘‚“„•‹”›™–—´";
    pair || of_upper
        || "ÂÃÎÐ".contains(a) && common.contains(b)
        || a == 'à' && "²µ¹¼½¾".contains(b)
        || a == '×' && "²³".contains(b)
        || "Œœ".contains(a) && !b.is_ascii_alphabetic()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPAIRED: [(&str, &str); 36] = [
        ("cafÃ© table", "café table"),
        ("naÃ¯ve faÃ§ade ☃", "naïve façade ☃"),
        ("a â\u{80}\u{9c}quotedâ\u{80}\u{9d} â\u{80}\u{94} text", "a “quoted” — text"),
        ("itâ\u{80}\u{99}s", "it’s"),
        ("itâ€™s ☃", "it’s ☃"),
        ("a åŒ—äº¬", "a 北京"),
        ("æ\u{9d}±äº¬ã‚¿ãƒ¯ãƒ¼", "東京タワー"),
        ("ð\u{9f}\u{98}\u{80} smile ☃", "😀 smile ☃"),
        ("a StraÃ\u{9f}e", "a Straße"),
        ("SÃ£o Paulo", "São Paulo"),
        ("2â\u{82}¬ or 3Â£ ☃", "2€ or 3£ ☃"),
        ("a Â½ cup", "a ½ cup"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€", "Привет мир"),
        ("Î\u{9f}Î\u{94}Î\u{9f}Î£ ☃", "ΟΔΟΣ ☃"),
        ("a maÃ±ana seÃ±or", "a mañana señor"),
        ("â€¦ dots", "… dots"),
        ("naÃ¯ve ð\u{9f}\u{98}\u{80} and Ã© ☃", "naïve 😀 and é ☃"),
        ("a Å\u{93}uvre", "a œuvre"),
        ("a lâ\u{80}\u{99}Ã©tÃ©", "a l’été"),
        ("Ã\u{85}ngstrÃ¶m", "Ångström"),
        ("Ã…ngstrÃ¶m ☃", "Ã…ngström ☃"),
        ("a 10Â°C", "a 10°C"),
        ("Å\u{81}Ã³dÅº", "Łódź"),
        ("à¤¹à¤¿à¤¨à¥\u{8d}à¤¦à¥\u{80} ☃", "हिन्दी ☃"),
        ("a a â\u{80}\u{93} b", "a a – b"),
        ("â\u{80}¢item", "•item"),
        ("â€¢item ☃", "•item ☃"),
        ("cafÃ\u{83}Â©", "café"),
        ("voilÃ  un chat", "voilà un chat"),
        ("Ã la carte", "à la carte"),
        ("Ã la ☃", "à la ☃"),
        ("dÃ©jÃ  vu ☃", "déjà  vu ☃"),
        ("vÃ s", "và s"),
        ("Ã quela", "àquela"),
        ("a.Â b", "a.\u{a0}b"),
        ("â€ x Ã©", "†x é"),
    ];
    const KEPT: [&str; 29] = [
        "café",
        "CAFÉ—BAR",
        "voilà”…",
        "cliché”…",
        "É™",
        "naïve",
        "Ÿ",
        "“x”",
        "5×5",
        "AÑO 2020",
        "Å",
        "Ã",
        "Â",
        "é»",
        "«été»",
        "à 5€",
        "10 µm",
        "©®™",
        "São",
        "ÃO",
        "PORTUGUÊS É",
        "½",
        "ª º",
        "Île–de–France",
        "ÉTÉ»",
        "HÉ€",
        "A Ã B",
        "É la",
        "voilà un",
    ];

    /// What `ftfy.fix_encoding` of ftfy 6.3.1 makes of them.
    #[test]
    fn text_is_repaired_as_by_the_reference() {
        for (wrong, right) in REPAIRED {
            assert_eq!(repair(wrong), right, "{wrong:?}");
        }
        for text in KEPT {
            assert_eq!(repair(text), text);
        }
    }
}
