//! Chapter `reward`: judges of images, their arithmetic, and what trains them.

use super::*;
use crate::{options, script_value};
use amscript_align::flow::Condition;
use amscript_align::optim::Params;
use amscript_base::{bail, file, memory};
use amscript_nn::bert;
use amscript_nn::clip_config::{ClipConfig, Layout};
use amscript_nn::data::Prompts;
use amscript_nn::module::Module;
use amscript_nn::opener::Found;
use amscript_nn::source::{Folder, Sources};
use amscript_nn::vit::{Activation, TowerConfig};
use amscript_reward::clip_encoder::ClipEncoder;
use amscript_reward::imagereward::{self, ImageReward, VitConfig};
use amscript_reward::similarity::{self, Similarity, SimilarityKind as Similar};
use amscript_reward::{self as rewards, RewardModel, aesthetic, clamped::Clamped, scripted::Scripted, sum::Sum};
use amscript_tensor::{Rng, Tensor};
use std::path::{Component, Path};

script_value!(RewardModel, "a reward such as `reward(\"tiny/hpsv2\")`");

options! {
    /// Where a reward is read from; what may differ from its reference is in the table of rewards.
    pub struct PlaceOptions {
        /// The line of the table of rewards, such as `hpsv2`, where names and files do not say.
        kind: Option<String> = None,
        /// The weight file in the folder, when there are several.
        weights: Option<String> = None,
    }
}

/// The options of `reward`, for the manual.
pub struct RewardOptions;

impl RewardOptions {
    pub fn fields() -> Vec<option::Field> {
        registry::fields(PlaceOptions::fields(), &rewards::rewards())
    }
}

/// The reward in a folder, by a name or path; its options decide what they decide of its kind.
fn open_reward(session: &Session, name: &str, options: Map) -> Result<RewardModel> {
    let table = session.registry().rewards.clone();
    let (common, options) = registry::split(options, &PlaceOptions::fields(), &table, "reward", session)?;
    let o = PlaceOptions::parse("reward", common)?;
    let sources = session.sources();
    let (found, missing) = match place(name, session, &sources) {
        Ok((folder, file)) => {
            let inside = |file: &String| Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            let elsewhere =
                o.weights.as_ref().filter(|file| !inside(file)).map(|file| session.readable(file)).transpose();
            let elsewhere = elsewhere.map_err(|e| e.within("reward: option `weights`"))?;
            let weights = elsewhere.or(o.weights.or(file).map(Into::into));
            (Found { weights, ..Found::in_folder(name, folder) }, None)
        }
        Err(error) if error.kind == Kind::Missing => (Found { name: name.into(), ..Found::default() }, Some(error)),
        Err(error) => return Err(error),
    };
    let choices = rewards::open::RewardOptions {
        kind: o.kind,
        options,
        trace: session.planner().map(|planner| planner.trace.clone()),
    };
    let opened = rewards::open::open_of(&table, &found, &choices, &session.clip_cache, &sources, session.device());
    let reward_model = match (opened, missing) {
        (Err(error), Some(missing)) if error.kind == Kind::Missing => return Err(missing),
        (opened, _) => opened?,
    };
    session.clip_cache.note(&reward_model.0);
    if let Some(planner) = session.planner() {
        planner.opens(reward_model.parts()?);
    }
    Ok(reward_model)
}

options! {
    /// Sizes of a random CLIP.
    pub struct ClipOptions {
        /// Side of the square images that it sees.
        image_size: usize = 64,
        /// Side of a patch.
        patch: usize = 8,
        /// Width of the image tower; heads are 32 wide.
        width: usize = 96,
        /// Layers of the image tower.
        layers: usize = 4,
        /// Width of the text tower; heads are 32 wide.
        text_width: usize = 64,
        /// Layers of the text tower.
        text_layers: usize = 2,
        /// Most tokens of a prompt.
        context: usize = 24,
        /// Width of the common features.
        embed: usize = 64,
        /// Names and files: `open_clip` or `transformers`.
        layout: String = "open_clip".to_string(),
        /// `hpsv2`, `pickscore` or `clipscore`.
        kind: String = "hpsv2".to_string(),
        /// Seed of the weights.
        seed: u64 = 0,
    }
}

options! {
    /// Sizes of a random ImageReward.
    pub struct ImageRewardOptions {
        /// Side of the square images that it sees.
        image_size: usize = 64,
        /// Side of a patch.
        patch: usize = 8,
        /// Width of the image tower; heads are 16 wide.
        width: usize = 64,
        /// Layers of the image tower.
        layers: usize = 3,
        /// Width of the text's network; heads are 16 wide.
        text_width: usize = 32,
        /// Layers of the text's network.
        text_layers: usize = 3,
        /// Widths between the five layers of the head.
        hidden: [usize; 4] = [64, 32, 16, 8],
        /// Seed of the weights.
        seed: u64 = 0,
    }
}

impl ImageRewardOptions {
    fn config(&self) -> Result<imagereward::ImageRewardConfig> {
        let (width, layers) = (self.width, option::layers("image_reward", "layers", self.layers)?);
        let heads = |width| heads("image_reward", width, 16);
        Ok(imagereward::ImageRewardConfig {
            vit: VitConfig { image_size: self.image_size, patch_size: self.patch, width, layers, heads: heads(width)? },
            bert: bert::BertConfig {
                hidden_size: self.text_width,
                num_hidden_layers: option::layers("image_reward", "text_layers", self.text_layers)?,
                num_attention_heads: heads(self.text_width)?,
                intermediate_size: 4 * self.text_width,
                max_position_embeddings: imagereward::TOKENS,
                ..bert::BertConfig::base()
            },
            hidden: self.hidden,
        })
    }
}

options! {
    /// A random head of an aesthetic predictor.
    pub struct HeadOptions {
        /// Widths between its five layers.
        hidden: [usize; 4] = rewards::head::HIDDEN,
        /// Seed of the weights.
        seed: u64 = 0,
    }
}

impl ClipOptions {
    fn config(&self) -> Result<ClipConfig> {
        let sizes = |width: usize, key: &str, layers: usize| -> Result<TowerConfig> {
            let layers = option::layers("clip_reward", key, layers)?;
            let (heads, hidden, activation) = (heads("clip_reward", width, 32)?, 4 * width, Activation::Gelu);
            Ok(TowerConfig { width, layers, heads, hidden, eps: 1e-5, activation })
        };
        Ok(ClipConfig {
            layout: match self.layout.as_str() {
                "open_clip" => Layout::OpenClip,
                "transformers" => Layout::Transformers,
                other => {
                    bail!(Option, "clip_reward: expected `open_clip` or `transformers` for `layout`, got `{other}`")
                }
            },
            embed: self.embed,
            image_size: self.image_size,
            patch: self.patch,
            vision: sizes(self.width, "layers", self.layers)?,
            context: self.context,
            vocabulary: 0, // set by the tokenizer
            text: sizes(self.text_width, "text_layers", self.text_layers)?,
        })
    }

    fn kind(&self) -> Result<Similar> {
        match Similar::ALL.into_iter().find(|(name, _)| *name == self.kind) {
            Some((_, kind)) => Ok(kind),
            None => bail!(
                Option,
                "clip_reward: expected `hpsv2`, `pickscore` or `clipscore` for `kind`, got `{}`",
                self.kind
            ),
        }
    }
}

/// Prompts given as an array of texts, a prompt set, a condition, or one text for all of `n`.
pub fn texts(value: Dynamic, n: usize, place: &str) -> Result<Vec<String>> {
    let value = value.flatten();
    if let Some(condition) = value.clone().try_cast::<Condition>() {
        return Ok(condition.text);
    }
    if let Some(prompts) = value.clone().try_cast::<Prompts>() {
        return (0..prompts.len() as i64).map(|i| prompts.get(i)).collect();
    }
    if value.is_string() {
        let text: String = option::convert(value, place)?;
        memory::room(memory::bytes(&[n, text.len() + 48], 1), || format!("{place}: {n} texts"))?;
        return Ok(vec![text; n]);
    }
    match value.is_array() {
        true => option::list(option::convert(value, place)?, place),
        false => bail!(Type, "{place}: expected texts, a prompt set or a condition, got {}", option::show(&value)),
    }
}

/// A folder, and a weight file in it, from a path that the script may read or from a model's name.
pub fn place(name: &str, session: &Session, sources: &Sources) -> Result<(Folder, Option<String>)> {
    let path = match session.readable(name) {
        Ok(path) => path,
        Err(refused) if refused.kind != Kind::Missing => return Err(refused),
        Err(_) => return Ok((sources.named(name)?, None)),
    };
    match (path.parent(), path.file_name().and_then(|file| file.to_str())) {
        (Some(parent), Some(file)) if file::is_file(&path) => Ok((Folder::disk(parent), Some(file.to_string()))),
        _ => Ok((Folder::disk(path), None)),
    }
}

/// Heads so wide, in a tower of this width.
fn heads(function: &str, width: usize, each: usize) -> Result<usize> {
    match width > 0 && width.is_multiple_of(each) {
        true => Ok(width / each),
        false => bail!(Option, "{function}: expected widths divisible by {each}, the width of a head, got {width}"),
    }
}

/// Judges of images: `reward(..)` reads a trained one, `scripted_reward(..)` makes one from a closure, arithmetic mixes them.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod reward {
    use super::*;

    pub type Reward = RewardModel;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_reward(r: &mut Reward) -> String {
        r.to_string()
    }

    /// A reward by name, folder or weight file, as published; it prints its model, version, hash and preprocessing.
    ///
    /// | name | score |
    /// |---|---|
    /// | `hpsv2` | cosine of a CLIP's features (arXiv:2306.09341), version 2.1; `version: "v2.0"` is the other |
    /// | `pickscore` | `exp(logit_scale)` times the cosine, 20 to 23 (arXiv:2305.01569); `scale: 1` is the plain cosine |
    /// | `clipscore`, `clipscore-l14` | cosine, of CLIP ViT-B/32 or ViT-L/14; `scale: 2.5, positive: true, prefix: "A photo depicts "` is arXiv:2104.08718 |
    /// | `imagereward` | about normally distributed (arXiv:2304.05977) |
    /// | `aesthetic` | LAION's predictor, version 2, of the image alone, 1 to 10; `clip` says where its CLIP ViT-L/14 is |
    ///
    /// Names are looked up as `flow` does; the tiny ones are trained on the shapes world. Images are brought to the network's size
    /// as the reference does, from float pixels: shorter side by bicubic with antialias, then the middle is cut out. Rewards that
    /// stand on the same CLIP share it. An empty prompt is scored as the reference does; one that is too long is cut with a warning.
    ///
    /// ```rhai
    /// reward("tiny/hpsv2")   //=> reward(hpsv2 tiny/hpsv2: sha256 ..
    /// reward("no/such")      //=> error: expected a model folder or name, got `no/such`
    /// reward("tiny/hpsv2").score(full([1, 3, 8, 8], -1.0), "a ring")   //=> error: images must lie in [0, 1], got values from -1
    /// ```
    /// ```rhai no_run
    /// let published = reward("hpsv2", #{ version: "v2.0", resize: "bilinear" });
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn reward(context: NativeCallContext, name: &str, options: Map) -> RhaiResultOf<Reward> {
        Ok(open_reward(&Session::of(&context), name, options)?)
    }

    /// A reward from a closure that gives one number per image.
    ///
    /// Images are `[batch, 3, height, width]` in `[0, 1]`, prompts an array of texts. What the closure computes from the images
    /// is differentiated.
    ///
    /// ```rhai
    /// let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// bright.score(full([2, 3, 4, 4], 0.5), ["a", "b"])           //=> tensor([0.5, 0.5])
    /// let broken = scripted_reward(|images, prompts| images.mean([1, 2, 3]) / 0.0);
    /// broken.score(zeros([1, 3, 4, 4]), ["a"])                    //=> error: NaN or infinity for sample 0 (`a`)
    /// ```
    pub fn scripted_reward(context: NativeCallContext, f: FnPtr) -> Reward {
        let callback = Callback::new(&context, "scripted_reward", f);
        RewardModel::new(Scripted::new(move |images: &Tensor, prompts: &[String]| {
            let prompts: Array = prompts.iter().map(|p| p.clone().into()).collect();
            callback.call::<Tensor>((images.clone(), prompts))
        }))
    }

    /// Scores `[batch]` of images `[batch, 3, height, width]` in `[0, 1]`, one prompt each.
    ///
    /// Prompts are an array of texts, a condition, or one text for all images.
    ///
    /// ```rhai
    /// let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// bright.score(full([2, 3, 4, 4], 0.5), "a ring")             //=> tensor([0.5, 0.5])
    /// bright.score(zeros([2, 3, 4, 4]), ["a"])                    //=> error: one prompt per image, got 1 prompts for 2
    /// ```
    #[rhai_fn(return_raw)]
    pub fn score(r: Reward, images: Tensor, prompts: Dynamic) -> RhaiResultOf<Tensor> {
        let count = images.dims().first().copied().unwrap_or(0);
        Ok(r.score(&images, &texts(prompts, count, "score")?)?)
    }

    /// Scores of all images (rows) against all prompts (columns), of a CLIP or ImageReward; each image is looked at once.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 32, layers: 1, text_width: 32, text_layers: 1, embed: 8 };
    /// let reward_model = clip_reward(["a red ring", "a blue square"], small);
    /// reward_model.similarities(zeros([2, 3, 16, 16]), ["a red ring", "a blue square", "a red square"]).shape   //=> [2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn similarities(r: Reward, images: Tensor, prompts: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(r.similarities(&images, &texts(prompts, 1, "similarities")?)?)
    }

    /// Scores of several rewards for the same images; those that stand on the same CLIP run its image tower once.
    ///
    /// ```rhai
    /// let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// scores(#{ a: bright, b: 2 * bright }, full([1, 3, 4, 4], 0.5), "a ring")   //=> #{"a": tensor([0.5]), "b": tensor([1.0])}
    /// ```
    #[rhai_fn(return_raw)]
    pub fn scores(named: Map, images: Tensor, prompts: Dynamic) -> RhaiResultOf<Map> {
        let count = images.dims().first().copied().unwrap_or(0);
        let prompts = texts(prompts, count, "scores")?;
        let (names, judges): (Vec<_>, Vec<_>) = named.into_iter().unzip();
        let judges = judges.into_iter().map(|reward_model| Ok(option::convert::<Reward>(reward_model, "scores")?.0));
        let all = rewards::score_all(&judges.collect::<Result<Vec<_>>>()?, &images, &prompts)?;
        Ok(names.into_iter().zip(all.into_iter().map(Dynamic::from)).collect())
    }

    /// Unit image features `[batch, d]` of the CLIP that a reward stands on, for `recall`, `coverage` and the like.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 32, layers: 1, text_width: 32, text_layers: 1, embed: 8 };
    /// clip_features(clip_reward(["a ring"], small), zeros([2, 3, 16, 16])).shape       //=> [2, 8]
    /// clip_features(scripted_reward(|i, p| i.mean([1, 2, 3])), zeros([2, 3, 4, 4]))     //=> error: scripted has no CLIP
    /// ```
    #[rhai_fn(return_raw)]
    pub fn clip_features(r: Reward, images: Tensor) -> RhaiResultOf<Tensor> {
        Ok(r.features(&images)?)
    }

    /// The sum of two rewards.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (0.7 * a + 0.3 * a).score(full([1, 3, 4, 4], 0.5), "a")     //=> tensor([0.5])
    /// ```
    #[rhai_fn(name = "+", return_raw)]
    pub fn add(a: Reward, b: Reward) -> RhaiResultOf<Reward> {
        Ok(RewardModel::of_others(Sum::of(a.0).plus(&Sum::of(b.0)))?)
    }

    /// A reward plus a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a + 1).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([1.5])
    /// ```
    #[rhai_fn(name = "+", return_raw)]
    pub fn add_number(a: Reward, b: f64) -> RhaiResultOf<Reward> {
        Ok(RewardModel::of_others(Sum::of(a.0).shifted(b))?)
    }

    /// A number plus a reward.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (1 + a).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([1.5])
    /// ```
    #[rhai_fn(name = "+", return_raw)]
    pub fn number_add(a: f64, b: Reward) -> RhaiResultOf<Reward> {
        add_number(b, a)
    }

    /// The difference of two rewards.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a - 2 * a - 1).score(full([1, 3, 4, 4], 0.5), "a")         //=> tensor([-1.5])
    /// ```
    #[rhai_fn(name = "-", return_raw)]
    pub fn subtract(a: Reward, b: Reward) -> RhaiResultOf<Reward> {
        add(a, multiply(b, -1.0)?)
    }

    /// A reward minus a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a - 1).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([-0.5])
    /// ```
    #[rhai_fn(name = "-", return_raw)]
    pub fn subtract_number(a: Reward, b: f64) -> RhaiResultOf<Reward> {
        add_number(a, -b)
    }

    /// A number minus a reward.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// relu(2 - a).score(full([1, 3, 4, 4], 0.5), "a")             //=> tensor([1.5])
    /// ```
    #[rhai_fn(name = "-", return_raw)]
    pub fn number_subtract(a: f64, b: Reward) -> RhaiResultOf<Reward> {
        add_number(multiply(b, -1.0)?, a)
    }

    /// The opposite of a reward.
    ///
    /// ```rhai
    /// -scripted_reward(|images, prompts| images.mean([1, 2, 3]))  //=> reward(-scripted)
    /// ```
    #[rhai_fn(name = "-", return_raw)]
    pub fn negative(r: Reward) -> RhaiResultOf<Reward> {
        multiply(r, -1.0)
    }

    /// A reward held between two bounds, with no gradient where one holds.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// a.clamp(0, 0.25).score(full([1, 3, 4, 4], 0.5), "a")        //=> tensor([0.25])
    /// a.clamp(1, 0)                                               //=> error: the lower bound must be below the upper
    /// ```
    #[rhai_fn(return_raw)]
    pub fn clamp(r: Reward, low: f64, high: f64) -> RhaiResultOf<Reward> {
        Ok(RewardModel::of_others(Clamped::new(r.0, low, high)?)?)
    }

    /// A reward where it is positive, else 0: `-relu(2 - r)` is ReFL's (arXiv:2304.05977).
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// relu(a - 1).score(full([1, 3, 4, 4], 0.5), "a")             //=> tensor([0.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn relu(r: Reward) -> RhaiResultOf<Reward> {
        clamp(r, 0.0, f64::INFINITY)
    }

    /// A number times a reward.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// 2 * a                                                       //=> reward(2 * scripted)
    /// ```
    #[rhai_fn(name = "*", return_raw)]
    pub fn number_multiply(a: f64, b: Reward) -> RhaiResultOf<Reward> {
        multiply(b, a)
    }

    /// A reward times a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// a * 2                                                       //=> reward(2 * scripted)
    /// ```
    #[rhai_fn(name = "*", return_raw)]
    pub fn multiply(a: Reward, b: f64) -> RhaiResultOf<Reward> {
        Ok(RewardModel::of_others(Sum::of(a.0).scaled(b))?)
    }

    /// A reward over a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a / 4).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([0.125])
    /// ```
    #[rhai_fn(name = "/", return_raw)]
    pub fn divide(a: Reward, b: f64) -> RhaiResultOf<Reward> {
        multiply(a, 1.0 / b)
    }

    /// A random CLIP reward with a tokenizer made for `texts`, to be trained and saved.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 32, layers: 1, text_width: 32, text_layers: 1, embed: 8 };
    /// let reward_model = clip_reward(["a red ring", "a blue square"], small);
    /// reward_model.score(zeros([2, 3, 16, 16]), ["a red ring", "a blue square"]).shape   //=> [2]
    /// adamw(reward_model.trainable().params())                     //=> adamw(37 tensors ..
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn clip_reward(context: NativeCallContext, texts: Dynamic, options: Map) -> RhaiResultOf<Reward> {
        let o = ClipOptions::parse("clip_reward", options)?;
        let texts = super::texts(texts, 1, "clip_reward")?;
        let device = Session::of(&context).device().clone();
        let encoder = Arc::new(ClipEncoder::random(&texts, o.config()?, &Rng::new(o.seed), &device)?);
        Ok(RewardModel::new(Similarity::new(o.kind()?, encoder, similarity::SimilarityOptions::default())?))
    }

    /// A random ImageReward with a tokenizer made for `texts`, to be trained and saved.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 16, layers: 1, text_width: 16, text_layers: 1 };
    /// let reward_model = image_reward(["a red ring", "a blue square"], small);
    /// reward_model.score(zeros([2, 3, 16, 16]), ["a red ring", "a blue square"]).shape          //=> [2]
    /// reward_model.similarities(zeros([2, 3, 16, 16]), ["a ring", "a square", "a dot"]).shape   //=> [2, 3]
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn image_reward(context: NativeCallContext, texts: Dynamic, options: Map) -> RhaiResultOf<Reward> {
        let o = ImageRewardOptions::parse("image_reward", options)?;
        let texts = super::texts(texts, 1, "image_reward")?;
        let device = Session::of(&context).device().clone();
        Ok(RewardModel::new(ImageReward::random(&texts, o.config()?, &Rng::new(o.seed), &device)?))
    }

    /// A random aesthetic predictor: a linear head on the unit image features of another reward's CLIP, which stays as it is.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 32, layers: 1, text_width: 32, text_layers: 1, embed: 8 };
    /// let reward_model = aesthetic_reward(clip_reward(["a ring"], small), #{ hidden: [8, 8, 4, 4] });
    /// reward_model.score(zeros([2, 3, 16, 16]), "").shape   //=> [2]
    /// reward_model.trainable().params().len                 //=> 10
    /// ```
    #[rhai_fn(return_raw)]
    pub fn aesthetic_reward(clip: Reward, options: Map) -> RhaiResultOf<Reward> {
        let o = HeadOptions::parse("aesthetic_reward", options)?;
        Ok(aesthetic::on(&*clip.0, o.hidden, &Rng::new(o.seed))?)
    }

    /// The same reward with trainable weights.
    ///
    /// ```rhai
    /// scripted_reward(|images, prompts| images.mean([1, 2, 3])).trainable()   //=> error: has no weights
    /// ```
    #[rhai_fn(return_raw)]
    pub fn trainable(r: Reward) -> RhaiResultOf<Reward> {
        Ok(r.trainable()?)
    }

    /// The trainable tensors of a reward, for an optimizer; none when it is frozen.
    ///
    /// ```rhai
    /// let bright = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// adamw(bright.params())   //=> error: there must be a trainable tensor
    /// ```
    #[rhai_fn(name = "params", return_raw)]
    pub fn params_of_reward(r: Reward) -> RhaiResultOf<Params> {
        Ok(Params::new(r.params())?)
    }

    /// Writes a reward's weights, config and tokenizer into a folder of the run that `reward(folder)` reads.
    ///
    /// ```rhai no_run
    /// let reward_model = clip_reward(["a red ring", "a blue square"]);
    /// reward_model.save("hpsv2");
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn save(context: NativeCallContext, r: Reward, folder: &str) -> RhaiResultOf<()> {
        Ok(r.save(&Session::of(&context).writable(folder)?, None)?)
    }
}
