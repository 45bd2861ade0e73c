//! The LAION aesthetic predictor, version 2: a linear head on the unit image features of CLIP ViT-L/14. Prompts play no part.

use crate::clip_encoder::{self, ClipEncoder};
use crate::head::Head;
use crate::open::{ANTIALIAS, CROP, Opener, Opening, RESIZE, TOKENIZER};
use crate::{Batch, Reward, RewardModel};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_nn::cost::Part;
use amscript_nn::module::Module;
use amscript_nn::opener::{Found, Takes, field};
use amscript_nn::source::Folder;
use amscript_nn::weights::Weights;
use amscript_tensor::{DType, Rng, Tensor, op};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The published head, and ours.
pub const FILES: [&str; 3] =
    ["sac+logos+ava1-l14-linearMSE.safetensors", "sac+logos+ava1-l14-linearMSE.pth", "aesthetic.safetensors"];
/// The CLIP that the published head was trained on.
pub const CLIP: &str = "openai/clip-vit-large-patch14";

/// The predictor in the table of rewards.
pub const OPENER: Opener = Opener {
    name: "aesthetic",
    repositories: &[("aesthetic", "ttj/sac-logos-ava1-l14-linearMSE")],
    recognises,
    options: &[
        field("clip", Takes::Model, "The folder or name of the CLIP it stands on."),
        TOKENIZER,
        RESIZE,
        ANTIALIAS,
        CROP,
    ],
    open,
};

pub(super) fn recognises(found: &Found) -> bool {
    !super::imagereward::recognises(found) && found.any(|name| name.contains("linearMSE") || name == FILES[2])
}

fn open(opening: &Opening) -> Result<RewardModel> {
    let (name, folder) = (&opening.found.name, opening.found.home()?);
    let file = head_file(folder, opening.weights().as_deref())?;
    let given = opening.option::<String>("clip")?;
    let is_given = given.is_some();
    let clip = given.or(opening.own.clip.clone()).unwrap_or(CLIP.into());
    let place = opening.sources.find(&clip);
    let place = if is_given { place } else { place.map_err(|e| e.hint("say where its CLIP is with `clip: folder`")) }?;
    let encoder = opening.encoder(&clip, &place, &clip_encoder::ClipOptions { weights: None, ..opening.clip()? })?;
    Ok(RewardModel::new(Aesthetic::open(name, folder, &file, encoder)?))
}

fn head_file(folder: &Folder, given: Option<&str>) -> Result<String> {
    let heads = |n: &&String| n.ends_with(".pth") || n.ends_with(".safetensors");
    let (known, names) = (FILES.iter().find(|file| folder.has(file)), folder.names());
    match (given, known, names.iter().filter(heads).collect::<Vec<_>>().as_slice()) {
        (Some(file), ..) => Ok(file.into()),
        (_, Some(file), _) => Ok(file.to_string()),
        (_, _, [file]) => Ok(file.to_string()),
        _ => bail!(Missing, "reward: expected one of {} in {}, got none", FILES.join(", "), folder.origin();
            hint: "say which with `weights: file`"),
    }
}

/// A random head on the CLIP of another reward.
pub fn on(reward_model: &dyn Reward, hidden: [usize; 4], rng: &Rng) -> Result<RewardModel> {
    let Some(encoder) = reward_model.encoder() else {
        bail!(Value, "aesthetic_reward: {} has no CLIP", reward_model.describe(); hint: "give a reward such as `reward(\"tiny/clip\")`");
    };
    Ok(RewardModel::new(Aesthetic::random(Arc::clone(encoder), hidden, rng)?))
}

pub struct Aesthetic {
    name: String,
    file: Option<(Folder, String)>,
    hash: OnceLock<Option<String>>,
    encoder: Arc<ClipEncoder>,
    head: Head,
    weights: Weights,
    hidden: [usize; 4],
}

impl Aesthetic {
    /// The head in `file`, whose tensors may stand behind `mlp.`.
    pub fn open(name: &str, folder: &Folder, file: &str, encoder: Arc<ClipEncoder>) -> Result<Self> {
        let weights = Weights::open(vec![folder.archive(file)?], DType::F32, encoder.clip.device())?;
        let weights = encoder.weights.trace().map_or_else(|| weights.clone(), |trace| weights.traced(trace));
        let weights = if weights.has("mlp.layers.0.weight") { weights.pp("mlp") } else { weights };
        let file = Some((folder.clone(), file.to_string()));
        Ok(Self { file, ..Self::new(name, weights, encoder, super::head::HIDDEN)? })
    }

    /// A random head of these widths on a frozen CLIP, to be trained.
    pub fn random(encoder: Arc<ClipEncoder>, hidden: [usize; 4], rng: &Rng) -> Result<Self> {
        let weights = Weights::random(rng, encoder.clip.dtype(), encoder.clip.device());
        Self::new("random", weights, encoder, hidden)
    }

    fn new(name: &str, weights: Weights, encoder: Arc<ClipEncoder>, hidden: [usize; 4]) -> Result<Self> {
        let width = encoder.clip.config.embed;
        if let Some(&[_, stored]) = weights.shape("layers.0.weight").as_deref()
            && stored != width
        {
            bail!(Shape, "reward: the head of {name} reads {stored} features, the CLIP {} gives {width}", encoder.name;
                hint: "say which CLIP it was trained on with `clip: name`");
        }
        let head = Head::new(&weights, width, hidden)?;
        weights.finish()?;
        Ok(Self { name: name.into(), file: None, hash: OnceLock::new(), encoder, head, weights, hidden })
    }
}

impl Reward for Aesthetic {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        let features = self.encoder.image_rows(batch)?;
        op::cast(&self.head.forward(&features)?, batch.images.dtype())
    }

    fn encoder(&self) -> Option<&Arc<ClipEncoder>> {
        Some(&self.encoder)
    }

    fn describe(&self) -> String {
        format!("aesthetic {}", self.name)
    }

    fn details(&self) -> String {
        let hash = self.hash.get_or_init(|| self.file.as_ref().and_then(|(folder, file)| folder.hash(file)));
        let hash = hash.as_ref().map_or(String::new(), |hash| format!(": sha256 {}", &hash[..12]));
        format!("{}{hash}, on {} ({})", self.describe(), self.encoder.name, self.encoder.details())
    }

    fn module(&self) -> Option<&dyn Module<Trained = RewardModel>> {
        Some(self)
    }
}

impl Module for Aesthetic {
    type Trained = RewardModel;

    /// The head is trained; the CLIP stays as it is.
    fn trainable(&self) -> Result<RewardModel> {
        let weights = self.weights.trainable(|_| true)?;
        Ok(RewardModel::new(Self::new(&self.name, weights, self.encoder.clone(), self.hidden)?))
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.weights.params()
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![self.encoder.part(), Part::of(&format!("{}: head", self.name), &self.weights)])
    }

    /// The head alone, and the name of its CLIP.
    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("{}: {e}", folder.display()));
        file::make_folder(folder).map_err(refused)?;
        self.weights.save(&folder.join(FILES[2]), dtype)?;
        let own = serde_json::json!({ "reward": "aesthetic", "clip": self.encoder.name });
        file::write_whole(&folder.join("amscript.json"), format!("{own:#}\n").as_bytes()).map_err(refused)
    }
}
