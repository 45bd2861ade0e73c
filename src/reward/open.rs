//! Which reward a folder holds, and how it is opened.

use crate::bail;
use crate::error::Result;
use crate::nn::source::{Folder, Sources};
use crate::reward::aesthetic::{self, Aesthetic};
use crate::reward::imagereward::ImageReward;
use crate::reward::similarity::{self, Similarity};
use crate::reward::trunk::{self, Shelf, Trunk};
use crate::reward::{Judge, Reward};
use crate::tensor::Device;
use serde::Deserialize;
use std::sync::Arc;

/// What a folder does not say; the names of other folders are resolved by the caller.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `hpsv2`, `pickscore`, `clipscore`, `imagereward` or `aesthetic`.
    pub kind: Option<String>,
    /// Of HPSv2: `v2.0` or `v2.1`.
    pub version: Option<String>,
    pub trunk: trunk::Choices,
    pub similarity: similarity::Choices,
    /// Where the tokenizer is.
    pub tokenizer: Option<Folder>,
    /// Where the CLIP of an aesthetic predictor is, and its name.
    pub clip: Option<(String, Folder)>,
}

/// `amscript.json` of a reward's folder.
#[derive(Deserialize, Default)]
struct Own {
    reward: Option<String>,
    clip: Option<String>,
}

const KINDS: [&str; 5] = ["hpsv2", "pickscore", "clipscore", "imagereward", "aesthetic"];

/// Opens the reward in a folder that the user called `name`.
pub fn open(
    name: &str,
    folder: &Folder,
    options: Options,
    shelf: &Shelf,
    sources: &Sources,
    device: &Device,
) -> Result<Judge> {
    let own: Own = if folder.has("amscript.json") { folder.json("amscript.json")? } else { Own::default() };
    let kind = match options.kind.clone().or_else(|| own.reward.clone()) {
        Some(kind) => kind,
        None => recognised(name, folder, options.trunk.weights.as_deref())?.to_string(),
    };
    let take = |name: &str, folder: &Folder, choices: &trunk::Choices| {
        let key =
            format!("{} {choices:?} {:?} {device:?}", folder.origin(), options.tokenizer.as_ref().map(Folder::origin));
        shelf.take(key, || Trunk::open(name, folder, options.tokenizer.as_ref(), choices, device))
    };
    if kind == "aesthetic" {
        let file = head_file(folder, options.trunk.weights.as_deref())?;
        let (clip, place) = match options.clip {
            Some(given) => given,
            None => {
                let clip = own.clip.unwrap_or(aesthetic::CLIP.into());
                let place = sources.named(&clip).map_err(|e| e.hint("say where its CLIP is with `clip: folder`"))?;
                (clip, place)
            }
        };
        let trunk = take(&clip, &place, &trunk::Choices { weights: None, ..options.trunk.clone() })?;
        return Ok(Judge::new(Aesthetic::open(name, folder, &file, trunk)?));
    }
    if kind == "imagereward" {
        let vocabulary = options.tokenizer.as_ref();
        return Ok(Judge::new(ImageReward::open(name, folder, vocabulary, &options.trunk, sources, device)?));
    }
    let Some((_, similar)) = similarity::Kind::ALL.into_iter().find(|(known, _)| *known == kind) else {
        bail!(Value, "reward: expected one of {} for `kind`, got `{kind}`", KINDS.join(", "));
    };
    let mut choices = options.trunk.clone();
    if let (Some(version), None) = (&options.version, &choices.weights) {
        choices.weights = Some(match version.as_str() {
            "v2.0" | "2.0" => "HPS_v2_compressed.pt".into(),
            "v2.1" | "2.1" => "HPS_v2.1_compressed.pt".into(),
            other => bail!(Value, "reward: expected `v2.0` or `v2.1` for `version`, got `{other}`"),
        });
    }
    Ok(Judge::new(Similarity::new(similar, take(name, folder, &choices)?, options.similarity)?))
}

/// What the files in a folder are known to be.
fn recognised(name: &str, folder: &Folder, file: Option<&str>) -> Result<&'static str> {
    let names = folder.names();
    let any = |found: &dyn Fn(&str) -> bool| file.is_some_and(found) || names.iter().any(|name| found(name));
    if any(&|n| n.starts_with("ImageReward")) {
        return Ok("imagereward");
    }
    if any(&|n| n.contains("linearMSE") || n == "aesthetic.safetensors") {
        return Ok("aesthetic");
    }
    if folder.has("config.json") {
        let known = |text: &str| text.to_lowercase().contains("pickscore");
        return Ok(if known(name) || known(&folder.origin()) { "pickscore" } else { "clipscore" });
    }
    if any(&|n| n.starts_with("open_clip") || n.ends_with(".pt") || n.ends_with(".safetensors")) {
        return Ok("hpsv2");
    }
    bail!(Missing, "reward: expected weights of a reward in {}, got {:?}", folder.origin(), names;
        hint: "files of HPSv2, PickScore, CLIP, ImageReward and the LAION aesthetic predictor are known; see `amscript models`")
}

fn head_file(folder: &Folder, given: Option<&str>) -> Result<String> {
    let heads = |n: &&String| n.ends_with(".pth") || n.ends_with(".safetensors");
    match (
        given,
        aesthetic::FILES.iter().find(|file| folder.has(file)),
        folder.names().iter().filter(heads).collect::<Vec<_>>().as_slice(),
    ) {
        (Some(file), ..) => Ok(file.into()),
        (_, Some(file), _) => Ok(file.to_string()),
        (_, _, [file]) => Ok(file.to_string()),
        _ => bail!(Missing, "reward: expected one of {} in {}, got none", aesthetic::FILES.join(", "), folder.origin();
            hint: "say which with `weights: file`"),
    }
}

/// A random head on the CLIP of another reward.
pub fn aesthetic_on(judge: &dyn Reward, hidden: [usize; 4], rng: &crate::tensor::Rng) -> Result<Judge> {
    let Some(trunk) = judge.trunk() else {
        bail!(Value, "aesthetic_reward: {} has no CLIP", judge.describe(); hint: "give a reward such as `reward(\"tiny/clip\")`");
    };
    Ok(Judge::new(Aesthetic::random(Arc::clone(trunk), hidden, rng)?))
}
