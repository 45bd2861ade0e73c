//! The table of rewards, and opening one: the line that recognises what a folder holds opens it.
//!
//! How to add a reward: a file with its `impl Reward` and a `const OPENER`, and a line in [`REWARDS`]. A program that embeds this
//! one registers its opener instead: `amscript::script::Host::register_reward`.

use crate::clip_encoder::{self, ClipCache, ClipEncoder};
use crate::{RewardModel, aesthetic, imagereward, similarity};
use amscript_base::error::Result;
use amscript_nn::opener::{self, Field, Found, Given, Table, Takes, field};
use amscript_nn::source::{Folder, Sources};
use amscript_tensor::Device;
use amscript_tensor::meta::Trace;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A line of the table: see [`opener::Opener`].
pub type Opener = opener::Opener<fn(&Opening) -> Result<RewardModel>>;

/// Built-in rewards and those that a program registered.
pub type Rewards = Table<fn(&Opening) -> Result<RewardModel>>;

/// The rewards built in.
pub const REWARDS: &[Opener] =
    &[similarity::HPSV2, similarity::PICKSCORE, similarity::CLIPSCORE, imagereward::OPENER, aesthetic::OPENER];

/// The table with the built-in rewards.
pub fn rewards() -> Rewards {
    Table::new("reward", "reward", "kind", &["kind", "weights"], REWARDS)
}

pub(super) const TOKENIZER: Field = field(
    "tokenizer",
    Takes::Model,
    "A folder or model name with a `tokenizer.json` (of ImageReward also `vocab.txt`), when none lies beside the weights.",
);
pub(super) const RESIZE: Field = field("resize", Takes::Text, "`bicubic` or `bilinear`, in place of the reference's.");
pub(super) const ANTIALIAS: Field = field("antialias", Takes::Flag, "Whether shrinking averages.");
pub(super) const CROP: Field = field("crop", Takes::Text, "`center` (shorter side to size, then cut) or `squash`.");

/// What can be chosen when a reward is opened.
#[derive(Clone, Debug, Default)]
pub struct RewardOptions {
    /// The line of the table, where what lies there does not tell.
    pub kind: Option<String>,
    /// The options of that kind.
    pub options: Given,
    /// From headers alone, for a run without numbers.
    pub trace: Option<Arc<Trace>>,
}

/// `amscript.json` of a reward's folder.
#[derive(Clone, Debug, Deserialize, Default)]
pub struct Own {
    pub reward: Option<String>,
    /// Name of the CLIP that it stands on.
    pub clip: Option<String>,
}

/// What a reward opens.
pub struct Opening<'a> {
    pub found: &'a Found,
    pub own: Own,
    pub choices: &'a RewardOptions,
    pub clip_cache: &'a ClipCache,
    pub sources: &'a Sources,
    pub device: &'a Device,
}

impl Opening<'_> {
    /// An option of the reward.
    pub fn option<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.choices.options.get(name).map_err(|e| e.within("reward"))
    }

    /// The file of weights that was named, below the folder.
    pub fn weights(&self) -> Option<String> {
        self.found.weights.as_ref().map(|file| file.display().to_string())
    }

    /// The folder of the option `tokenizer`.
    pub(super) fn tokenizer(&self) -> Result<Option<Folder>> {
        self.option::<String>("tokenizer")?.map(|name| self.sources.find(&name)).transpose()
    }

    /// How its CLIP is to be read.
    pub(super) fn clip(&self) -> Result<clip_encoder::ClipOptions> {
        Ok(clip_encoder::ClipOptions {
            weights: self.weights(),
            resize: self.option("resize")?,
            antialias: self.option("antialias")?,
            crop: self.option("crop")?,
            trace: self.choices.trace.clone(),
        })
    }

    /// The CLIP in a folder, shared with the rewards that stand on it already.
    pub(super) fn encoder(
        &self,
        name: &str,
        folder: &Folder,
        choices: &clip_encoder::ClipOptions,
    ) -> Result<Arc<ClipEncoder>> {
        let tokenizer = self.tokenizer()?;
        let (from, device) = (tokenizer.as_ref().map(Folder::origin), self.device);
        let key = format!("{} {choices:?} {from:?} {device:?}", folder.origin());
        self.clip_cache.take(key, || ClipEncoder::open(name, folder, tokenizer.as_ref(), choices, device))
    }
}

/// A built-in reward; see [`open_of`].
pub fn open(
    found: &Found,
    choices: &RewardOptions,
    clip_cache: &ClipCache,
    sources: &Sources,
    device: &Device,
) -> Result<RewardModel> {
    open_of(&rewards(), found, choices, clip_cache, sources, device)
}

/// The reward in what was found; its weights, if they are named, lie in its folder.
pub fn open_of(
    rewards: &Rewards,
    found: &Found,
    choices: &RewardOptions,
    clip_cache: &ClipCache,
    sources: &Sources,
    device: &Device,
) -> Result<RewardModel> {
    let sources = &sources.clone().publishing(rewards.published());
    let own = match &found.folder {
        Some(folder) if folder.has("amscript.json") => folder.json("amscript.json")?,
        _ => Own::default(),
    };
    let kind = choices.kind.as_deref().or(own.reward.as_deref());
    let opener = rewards.choose(kind, found, &choices.options)?;
    (opener.open)(&Opening { found, own, choices, clip_cache, sources, device })
}
