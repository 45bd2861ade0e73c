//! The alphas that the header of a LoRA file gives, or PEFT's config beside it.

use crate::archive::Archive;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, warn_once};
use amscript_base::file;
use serde_json::{Map, Value};
use std::path::Path;

/// Where a header may give alpha as a number.
const NUMBERS: [&str; 7] =
    ["lora_alpha", "network_alpha", "ss_network_alpha", "alpha", "lora.alpha", "lora_network_alpha", "network.alpha"];

/// Where a header may give alpha as `lora_alpha` of an object.
const CONFIGS: [&str; 5] = ["lora_config", "adapter_config", "peft_config", "config", "training_info"];

#[derive(Default)]
pub(super) struct Alphas {
    alpha: Option<f64>,
    /// By the end of the module's name, first match first; `^` in front: the whole name.
    patterns: Vec<(String, f64)>,
    /// The change is divided by the root of the rank instead of the rank.
    by_root: bool,
}

impl Alphas {
    pub(super) fn of(archive: &Archive, path: &Path, component: &str) -> Result<Self> {
        let (header, prefix) = (archive.metadata(), format!("{component}."));
        if let Some(text) = header.get("lora_adapter_metadata") {
            let key = "lora_adapter_metadata";
            let object = object(text.as_bytes()).map_err(|e| e.within(key))?;
            let found = Self::parse(&object, &prefix).map_err(|e| e.within(key))?;
            if found.alpha.is_none() && object.keys().any(|key| key.ends_with("alpha")) {
                not_understood(archive, key);
            }
            return Ok(found);
        }
        let given = NUMBERS.iter().filter_map(|key| Some((key, header.get(*key)?)));
        // kohya writes "None" where it was not chosen
        if let Some((key, text)) = given.clone().find(|(_, text)| *text != "None") {
            let Some(alpha) = text.trim().parse().ok().filter(|alpha: &f64| alpha.is_finite()) else {
                bail!(File, "its header's `{key}` must be a number, got \"{text}\"");
            };
            return Ok(Self { alpha: Some(alpha), ..Self::default() });
        }
        for key in CONFIGS {
            let config = header.get(key).and_then(|text| object(text.as_bytes()).ok());
            if let Some(config) = config.filter(|config| config.contains_key("lora_alpha")) {
                return Self::parse(&config, &prefix).map_err(|e| e.within(format!("its header's `{key}`")));
            }
        }
        let config = path.with_file_name("adapter_config.json");
        let of_peft = path.file_stem().is_some_and(|stem| stem == "adapter_model")
            || archive.entries().keys().any(|name| name.starts_with("base_model."));
        if of_peft && file::exists(&config) {
            let bytes = file::read(&config).map_err(|e| Error::new(Kind::File, e.to_string()));
            let parsed = bytes.and_then(|bytes| Self::parse(&object(&bytes)?, ""));
            return parsed.map_err(|e| e.within("adapter_config.json"));
        }
        let speaks = |(key, text): &(&String, &String)| {
            let names = |text: &str| text.to_lowercase().contains("alpha");
            let own = key.starts_with("ss_") || *text == "None";
            !own && (names(key)
                || matches!(key.as_str(), "scale" | "scaling")
                || CONFIGS.contains(&key.as_str()) && names(text))
        };
        if !archive.entries().keys().any(|name| name.ends_with(".alpha"))
            && let Some((key, _)) = header.iter().find(speaks)
        {
            not_understood(archive, key);
        }
        Ok(Self::default())
    }

    /// From a config's fields, with this prefix or without.
    fn parse(config: &Map<String, Value>, prefix: &str) -> Result<Self> {
        let field = |name: &str| config.get(&format!("{prefix}{name}")).or_else(|| config.get(name));
        let flag = |name: &str| match field(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(Error::new(Kind::File, format!("`{name}` must be true or false, got {other}"))),
        };
        if flag("use_dora")? {
            bail!(File, "the adapters are DoRA; only plain LoRA is read");
        }
        let patterns = match field("alpha_pattern") {
            None | Some(Value::Null) => vec![],
            Some(Value::Object(patterns)) => patterns.iter().map(pattern).collect::<Result<_>>()?,
            Some(other) => bail!(File, "`alpha_pattern` must be an object, got {other}"),
        };
        let alpha = match field("lora_alpha") {
            None => None,
            Some(Value::Number(alpha)) => alpha.as_f64(),
            Some(other) => bail!(File, "`lora_alpha` must be a number, got {other}"),
        };
        Ok(Self { alpha, patterns, by_root: flag("use_rslora")? })
    }

    pub(super) fn scale(&self, module: &str, rank: usize) -> f64 {
        let matches = |pattern: &str| match pattern.strip_prefix('^') {
            Some(whole) => module == whole,
            None => module.strip_suffix(pattern).is_some_and(|head| head.is_empty() || head.ends_with('.')),
        };
        let special = self.patterns.iter().find(|(pattern, _)| matches(pattern)).map(|(_, alpha)| *alpha);
        let divisor = if self.by_root { (rank as f64).sqrt() } else { rank as f64 };
        special.or(self.alpha).map_or(1.0, |alpha| alpha / divisor)
    }
}

fn pattern((key, alpha): (&String, &Value)) -> Result<(String, f64)> {
    let plain = key.replace("\\.", ".");
    let is_plain = !plain.trim_start_matches('^').contains(['\\', '*', '+', '?', '[', '(', '|', '$']);
    let Some(alpha) = alpha.as_f64().filter(|_| is_plain) else {
        bail!(File, "alpha_pattern: expected ends of module names and numbers, got `{key}`: {alpha}");
    };
    Ok((plain, alpha))
}

/// A JSON object, after a byte order mark or not.
fn object(json: &[u8]) -> Result<Map<String, Value>> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    match serde_json::from_slice(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => bail!(File, "expected a JSON object, got another value"),
        Err(e) => bail!(File, "not valid ({e})"),
    }
}

fn not_understood(archive: &Archive, key: &str) {
    let message = format!(
        "{}: its header's `{key}` says something of alpha that is not understood; alpha is taken to be the rank",
        archive.origin()
    );
    warn_once(&message, &message);
}
