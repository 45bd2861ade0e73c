//! What a recipe says of itself before it runs: the keys of its head, and the names that it opens.
//!
//! ```text
//! //! ---
//! //! title: Rings that are redder
//! //! permissions: read=data/rings.txt
//! //! ---
//! ```

use super::option::unknown;
use super::word::{Word, words};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::permissions::{Allowed, Rights};
use rhai::Token;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The keys, and what each tells.
pub const KEYS: [(&str, &str); 7] = [
    ("title", "what the recipe does, in a line"),
    ("method", "the method, or its paper"),
    ("models", "models that it adapts"),
    ("rewards", "rewards that it follows and judges by"),
    ("data", "prompts, images and their licences"),
    ("permissions", "flags that it needs, such as read=data/prompts.txt, net=example.org"),
    ("expect", "the time that it takes; results, with their spread"),
];

/// The keys of a head with their values, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header(pub Vec<(String, String)>);

impl Header {
    /// Reads the lines between two of `//! ---`; a recipe may have none.
    ///
    /// # Errors
    /// A key that is not known or comes twice, a line without one, permissions of another kind.
    pub fn read(text: &str) -> Result<Self> {
        let head = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
        let mut block = head.skip_while(|line| *line != "---").skip(1);
        let mut entries: Vec<(String, String)> = vec![];
        for line in block.by_ref().take_while(|line| *line != "---").filter(|line| !line.is_empty()) {
            let Some((key, value)) = line.split_once(':') else {
                bail!(Option, "header: a line must be `key: value`, got \"{line}\"");
            };
            let (key, value) = (key.trim(), value.trim());
            if KEYS.iter().all(|(known, _)| *known != key) {
                return Err(unknown("header", "key", key, KEYS.iter().map(|(known, _)| *known)));
            }
            if entries.iter().any(|(known, _)| known == key) {
                bail!(Option, "header: `{key}` must stand once, got it twice");
            }
            entries.push((key.into(), value.into()));
        }
        let header = Self(entries);
        header.asks()?;
        Ok(header)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The flags that its permissions come to, kind and name.
    pub fn asks(&self) -> Result<Vec<(&str, &str)>> {
        let asked = self.get("permissions").unwrap_or_default().split([',', ' ']).filter(|word| !word.is_empty());
        let flag = |word: &'_ str| -> Result<()> {
            match word.split_once('=') {
                Some(("read" | "write" | "net" | "run", name)) if !name.is_empty() => Ok(()),
                _ => bail!(Option, "header: permissions must be read=, write=, net= or run= with a name, got `{word}`"),
            }
        };
        asked.map(|word| flag(word).map(|()| word.split_once('=').unwrap_or_default())).collect()
    }

    /// Errs with the flags that are missing, so that a recipe does not end halfway.
    pub fn allowed(&self, rights: &Rights<PathBuf>) -> Result<()> {
        fn has<T: PartialEq<U>, U>(allowed: &Allowed<T>, name: U) -> bool {
            match allowed {
                Allowed::All => true,
                Allowed::These(those) => those.iter().any(|known| *known == name),
            }
        }
        let granted = |(kind, name): &(&str, &str)| match *kind {
            "read" => has(&rights.read, PathBuf::from(name)),
            "write" => has(&rights.write, PathBuf::from(name)),
            "net" => rights.connect(name).is_ok(),
            _ => rights.start(name).is_ok(),
        };
        let missing: Vec<String> = self
            .asks()?
            .iter()
            .filter(|asked| !granted(asked))
            .map(|(kind, name)| format!("--allow-{kind}={name}"))
            .collect();
        match missing.is_empty() {
            true => Ok(()),
            false => {
                bail!(Permission, "the recipe asks for {}", missing.join(" "); hint: "read it, then run it with these flags")
            }
        }
    }
}

/// The natives that open something by name.
const OPENS: [&str; 9] =
    ["flow", "reward", "lpips", "autoencoder", "prompts", "load_lora", "load_image", "load_tensors", "read_run"];

/// The texts that stand in a piece of a script.
pub fn texts(code: &str) -> Vec<String> {
    let text = |word: Word| match word.token {
        Token::StringConstant(text) => Some(text.to_string()),
        _ => None,
    };
    words(code).into_iter().filter_map(text).collect()
}

/// What a script opens by a name that stands in it, and what it imports: function and name.
pub fn opens(text: &str) -> BTreeSet<(String, String)> {
    let words = words(text);
    let one = |i: usize| match (&words[i].token, words.get(i + 1)?, words.get(i + 2)) {
        (Token::Import, word, _) => match &word.token {
            Token::StringConstant(name) => Some(("import".to_string(), name.to_string())),
            _ => None,
        },
        (Token::Identifier(function), open, Some(word)) if open.is(&Token::LeftParen) => match &word.token {
            Token::StringConstant(name) if OPENS.contains(&function.as_str()) => {
                Some((function.to_string(), name.to_string()))
            }
            _ => None,
        },
        _ => None,
    };
    (0..words.len()).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//! Prose: is no key.\n//! ---\n//! title: Rings: red\n//! permissions: read=a, net=x.org\n//! ---\n//! more: prose\nlet x = 1;";

    #[test]
    fn keys_are_read_and_others_refused() {
        let header = Header::read(TEXT).unwrap();
        assert_eq!(header.get("title"), Some("Rings: red"));
        assert_eq!(Header::read("//! title: prose\nlet x = 1;").unwrap(), Header::default());
        let refused = |line: &str| Header::read(&format!("//! ---\n//! {line}\n//! ---\n")).unwrap_err().message;
        assert_eq!(refused("titel: x"), "header: unknown key `titel`; did you mean `title`?");
        assert!(refused("title").contains("`key: value`") && refused("permissions: all").contains("got `all`"));
    }

    #[test]
    fn permissions_must_be_given() {
        let header = Header::read(TEXT).unwrap();
        let error = header.allowed(&Rights::default()).unwrap_err();
        assert_eq!(error.message, "the recipe asks for --allow-read=a --allow-net=x.org");
        let rights = Rights {
            read: Allowed::These(vec!["a".into()]),
            net: Allowed::These(vec!["x.org".into()]),
            ..Rights::default()
        };
        assert!(header.allowed(&rights).is_ok() && header.allowed(&Rights::all()).is_ok());
    }

    #[test]
    fn what_is_opened_by_name_is_found() {
        let found = opens(
            "import \"stdlib/report\" as r; let f = flow(\"a\", #{}); // flow(\"b\")\nreward(name); prompts(\"c\")",
        );
        let found: Vec<_> = found.iter().map(|(function, name)| format!("{function} {name}")).collect();
        assert_eq!(found, ["flow a", "import stdlib/report", "prompts c"]);
    }
}
