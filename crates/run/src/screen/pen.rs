//! Coloured characters, in as few escape codes as they need.

/// How many colours a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Colours {
    None,
    /// The 256 of xterm.
    Indexed,
    /// Any of 24 bits.
    True,
}

impl Colours {
    /// Of the terminal that set these variables.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).unwrap_or_default();
        let (term, program) = (get("TERM"), get("TERM_PROGRAM"));
        let any = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
        if !get("NO_COLOR").is_empty() {
            Self::None
        } else if any(&get("COLORTERM"), &["truecolor", "24bit"])
            || any(&program, &["iTerm", "WezTerm", "ghostty", "vscode", "rio"])
            || any(&term, &["kitty", "ghostty", "alacritty", "foot", "direct"])
        {
            Self::True
        } else if term.is_empty() || term == "dumb" || term.starts_with("vt") {
            Self::None
        } else {
            Self::Indexed
        }
    }
}

pub type Rgb = [u8; 3];

/// Writes characters line by line.
pub struct Pen {
    colours: Colours,
    text: String,
    /// What is set: colour of the character and behind it.
    set: [Option<Rgb>; 2],
}

impl Pen {
    pub fn new(colours: Colours) -> Self {
        Self { colours, text: String::new(), set: [None, None] }
    }

    /// One character, with a colour of its own and one behind it.
    pub fn put(&mut self, glyph: char, ink: Option<Rgb>, paper: Option<Rgb>) {
        let ink = if glyph == ' ' { self.set[0].filter(|_| paper.is_some()) } else { ink };
        if self.colours != Colours::None && self.set != [ink, paper] {
            let codes = match [ink, paper] {
                [None, None] => "0".into(),
                wanted => {
                    let pairs = wanted.into_iter().zip(self.set).enumerate();
                    let changed = pairs.filter(|(_, (new, old))| new != old);
                    changed.map(|(i, (new, _))| self.code(i, new)).collect::<Vec<_>>().join(";")
                }
            };
            self.text += &format!("\x1b[{codes}m");
            self.set = [ink, paper];
        }
        self.text.push(glyph);
    }

    /// Text in one colour.
    pub fn write(&mut self, text: &str, ink: Option<Rgb>) {
        text.chars().for_each(|glyph| self.put(glyph, ink, None));
    }

    /// The end of a line; spaces at its end that show nothing are left out.
    pub fn line(&mut self) {
        if self.set != [None, None] {
            self.text += "\x1b[0m";
            self.set = [None, None];
        } else {
            self.text.truncate(self.text.trim_end_matches(' ').len());
        }
        self.text.push('\n');
    }

    /// All lines, without the last line feed.
    pub fn finish(mut self) -> String {
        self.text.truncate(self.text.trim_end_matches('\n').len());
        self.text
    }

    /// The code that sets the colour of a character (0) or behind it (1).
    fn code(&self, which: usize, colour: Option<Rgb>) -> String {
        let base = 38 + 10 * which;
        match colour {
            None => (base + 1).to_string(),
            Some([r, g, b]) if self.colours == Colours::True => format!("{base};2;{r};{g};{b}"),
            Some(colour) => format!("{base};5;{}", index(colour)),
        }
    }
}

/// Steps of the cube of 6 x 6 x 6 colours.
const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];

/// The nearest of xterm's 240 fixed colours.
fn index(colour: Rgb) -> u8 {
    let away = |other: Rgb| (0..3).map(|i| (i32::from(colour[i]) - i32::from(other[i])).pow(2)).sum::<i32>();
    let level = colour.map(|v| (0..6).min_by_key(|&i| v.abs_diff(LEVELS[i])).unwrap_or_default());
    let mean = colour.iter().map(|v| u32::from(*v)).sum::<u32>() / 3;
    let grey = (mean.saturating_sub(3) / 10).min(23) as u8;
    let cube = 16 + 36 * level[0] + 6 * level[1] + level[2];
    if away([8 + 10 * grey; 3]) < away(level.map(|i| LEVELS[i])) { 232 + grey } else { cube as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_say_how_many_colours_there_are() {
        let of = |pairs: &[(&str, &str)]| {
            Colours::of(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string()))
        };
        assert_eq!(of(&[("TERM", "xterm-256color"), ("COLORTERM", "truecolor")]), Colours::True);
        assert_eq!(of(&[("TERM", "xterm-256color")]), Colours::Indexed);
        assert_eq!(of(&[("TERM", "xterm-kitty"), ("NO_COLOR", "1")]), Colours::None);
        assert_eq!(of(&[("TERM", "xterm-kitty"), ("NO_COLOR", "")]), Colours::True);
        assert_eq!([of(&[]), of(&[("TERM", "dumb")]), of(&[("TERM", "vt100")])], [Colours::None; 3]);
    }

    #[test]
    fn codes_are_written_where_colours_change() {
        let mut pen = Pen::new(Colours::True);
        pen.put('a', Some([1, 2, 3]), None);
        pen.put('b', Some([1, 2, 3]), Some([4, 5, 6]));
        pen.put(' ', None, Some([4, 5, 6]));
        pen.put('c', None, None);
        pen.line();
        assert_eq!(pen.finish(), "\x1b[38;2;1;2;3ma\x1b[48;2;4;5;6mb \x1b[0mc");
        let mut plain = Pen::new(Colours::None);
        plain.put('a', Some([1, 2, 3]), Some([0; 3]));
        plain.write("  ", None);
        plain.line();
        assert_eq!(plain.finish(), "a");
    }

    #[test]
    fn indexed_colours_are_near() {
        assert_eq!([index([255, 0, 0]), index([0; 3]), index([255; 3])], [196, 16, 231]);
        assert_eq!([index([128; 3]), index([95, 135, 175]), index([12, 9, 8])], [244, 67, 232]);
    }
}
