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

/// Where a header may give alpha as `lora_alpha` of an object, before all others that have one.
const CONFIGS: [&str; 5] = ["lora_config", "adapter_config", "peft_config", "config", "training_info"];

const PEFT_CONFIG: &str = "adapter_config.json";

/// What diffusers writes, which reads no config beside it.
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";

/// PEFT's alpha where a config gives none.
const PEFT_ALPHA: f64 = 8.0;

/// Beginnings of PEFT's `init_lora_weights` that change the base as well.
const OTHER_BASES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

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
                not_understood(archive, &header_says(key));
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
        for key in CONFIGS.into_iter().chain(header.keys().map(String::as_str)) {
            let config = header.get(key).and_then(|text| object(text.as_bytes()).ok());
            let gives = |alpha: &Value| CONFIGS.contains(&key) || alpha.is_number();
            if let Some(config) = config.filter(|config| config.get("lora_alpha").is_some_and(gives)) {
                return Self::parse(&config, &prefix).map_err(|e| e.within(format!("its header's `{key}`")));
            }
        }
        let of_peft = path.file_stem().is_some_and(|stem| stem == "adapter_model")
            || archive.entries().keys().any(|name| name.starts_with("base_model."));
        if let Some(found) = Self::beside(archive, path, of_peft)? {
            return Ok(found);
        }
        if !archive.entries().keys().any(|name| name.ends_with(".alpha")) {
            match header.iter().find(|(key, text)| speaks(key, text)) {
                Some((key, _)) => not_understood(archive, &header_says(key)),
                None if of_peft => not_understood(archive, "it is PEFT's, and no `adapter_config.json` lies beside it"),
                None => {}
            }
        }
        Ok(Self::default())
    }

    /// From PEFT's config beside the file, where the file is PEFT's or may be by its names.
    fn beside(archive: &Archive, path: &Path, of_peft: bool) -> Result<Option<Self>> {
        let config = path.with_file_name(PEFT_CONFIG);
        let any = |such: &dyn Fn(&str) -> bool| archive.entries().keys().any(|name| such(name));
        let may_be = any(&|name| name.contains(".lora_A.")) && !any(&|name| name.ends_with(".alpha"));
        if !(of_peft || may_be) || !file::exists(&config) {
            return Ok(None);
        }
        if !of_peft && path.file_name().is_some_and(|name| name == DIFFUSERS_FILE) {
            not_understood(archive, &format!("`{PEFT_CONFIG}` beside it is not read, as diffusers does not"));
            return Ok(None);
        }
        let bytes = file::read(&config).map_err(|e| Error::new(Kind::File, e.to_string()));
        let parsed = bytes.and_then(|bytes| Self::parse(&object(&bytes)?, ""));
        let parsed = parsed.map_err(|e| e.within(PEFT_CONFIG))?;
        Ok(Some(Self { alpha: parsed.alpha.or(Some(PEFT_ALPHA)), ..parsed }))
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
        if let Some(Value::String(init)) = field("init_lora_weights")
            && OTHER_BASES.iter().any(|other| init.to_lowercase().starts_with(other))
        {
            bail!(File, "the adapters were begun by {init}, which changes the base as well; only those on the base itself are read";
                hint: "convert them with PEFT: `save_pretrained(.., path_initial_model_for_weight_conversion=..)`");
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

/// Whether a header's value says something of alpha or of what the change is multiplied with.
fn speaks(key: &str, text: &str) -> bool {
    if text == "None" || key.starts_with("ss_") && key != "ss_network_args" {
        return false; // kohya's own, which has alphas as tensors
    }
    match serde_json::from_str::<Value>(text) {
        _ if names_scale(key) || matches!(key, "scale" | "scaling") => true,
        Ok(value @ Value::Object(_)) => scale_within(&value),
        _ if CONFIGS.contains(&key) => text.to_lowercase().contains("alpha"),
        _ => ["lora_alpha", "network_alpha", "linear_alpha"].iter().any(|name| text.contains(name)),
    }
}

fn names_scale(key: &str) -> bool {
    let key = key.to_lowercase();
    let last = key.rsplit(['.', '/']).next().unwrap_or_default();
    key.contains("alpha") || matches!(last, "lora_scale" | "lora_scaling" | "network_scale")
}

/// Whether an object has such a key anywhere that stands for a value.
fn scale_within(value: &Value) -> bool {
    match value {
        Value::Object(entries) => entries.iter().any(|(key, value)| {
            let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
            names_scale(key) && !empty || scale_within(value)
        }),
        Value::Array(values) => values.iter().any(scale_within),
        _ => false,
    }
}

fn header_says(key: &str) -> String {
    format!("its header's `{key}` says something of alpha or scale that is not understood")
}

fn not_understood(archive: &Archive, what: &str) {
    let message = format!("{}: {what}; alpha is taken to be the rank", archive.origin());
    warn_once(&message, &message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weights;
    use amscript_tensor::{Device, Tensor};

    #[test]
    fn the_config_beside_a_file_of_pefts_names_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let scale = |file: &str, names: &[&str]| {
            let path = folder.path().join(file);
            let one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
            let tensors = names.iter().map(|name| (name.to_string(), one.clone())).collect();
            Weights::from_tensors("F", tensors).save(&path, None).unwrap();
            Alphas::of(&Archive::open(&path).unwrap(), &path, "transformer").unwrap().scale("m", 2)
        };
        let plain = ["transformer.m.lora_A.weight"];
        assert_eq!(scale("mine.safetensors", &plain), 1.0);
        std::fs::write(folder.path().join(PEFT_CONFIG), r#"{"r": 2, "lora_alpha": 8}"#).unwrap();
        assert_eq!(scale("mine.safetensors", &plain), 4.0);
        assert_eq!(scale(DIFFUSERS_FILE, &plain), 1.0);
        assert_eq!(scale(DIFFUSERS_FILE, &["base_model.model.m.lora_A.weight"]), 4.0);
        assert_eq!(scale("mine.safetensors", &["m.lora_A.weight", "m.alpha"]), 1.0);
        assert_eq!(scale("mine.safetensors", &["m.lora_down.weight"]), 1.0);
    }

    #[test]
    fn what_speaks_of_alpha_is_told() {
        for (key, text) in [
            ("lora_scale", "0.5"),
            ("scale", "0.5"),
            ("my.alpha", "3"),
            ("kwargs", r#"{"alpha": 2}"#),
            ("trainer", r#"{"lora": {"rank": 4, "alpha": 2}}"#),
            ("peft_config", r#"{"default": {"lora_alpha": 2}}"#),
            ("ss_network_args", r#"{"alpha": 2}"#),
            ("training_config", "lora_alpha: 2"),
            ("config", "alpha = 2"),
        ] {
            assert!(speaks(key, text), "{key}: {text}");
        }
        for (key, text) in [
            ("lora_alpha", "None"),
            ("ss_scale_weight_norms", "1.0"),
            ("ss_tag_frequency", r#"{"alpha": 2}"#),
            ("modelspec.description", "the alpha of fish scales"),
            ("scaler", r#"{"scale": 65536.0}"#),
            ("config", r#"{"alpha_pattern": {}, "guidance_scale": 4, "lora_alpha": null}"#),
            ("rank", "4"),
        ] {
            assert!(!speaks(key, text), "{key}: {text}");
        }
    }
}
