//! Chapter `reward`: judges of images, their arithmetic, and what trains them.

use super::*;
use crate::data::Prompts;
use crate::model::Condition;
use crate::model::source::{Folder, Sources};
use crate::nn::clip::{Config, ModelConfig, Preprocess, TextConfig, VisionConfig};
use crate::optim::Params;
use crate::reward::hpsv2::{self, Hpsv2};
use crate::reward::{Judge, clamped::Clamped, scripted::Scripted, sum::Sum};
use crate::tensor::{Rng, Tensor};
use crate::{bail, options, script_value};

script_value!(Judge, "a reward such as `reward(\"tiny/hpsv2\")`");

options! {
    /// Where a reward is read from.
    pub struct RewardOptions {
        /// The weight file in the folder, when there are several.
        weights: Option<String> = None,
        /// A folder or model name with a `tokenizer.json`, when none lies beside the weights.
        tokenizer: Option<String> = None,
    }
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
        /// Seed of the weights.
        seed: u64 = 0,
    }
}

impl ClipOptions {
    fn config(&self) -> Config {
        let (head_width, mlp_ratio) = (32, 4.0);
        let vision_cfg = VisionConfig {
            image_size: self.image_size,
            layers: self.layers,
            width: self.width,
            head_width,
            patch_size: self.patch,
            mlp_ratio,
        };
        let text_cfg = TextConfig {
            context_length: self.context,
            vocab_size: 0, // set by the tokenizer
            width: self.text_width,
            heads: self.text_width / head_width,
            layers: self.text_layers,
            mlp_ratio,
        };
        let model_cfg = ModelConfig { embed_dim: self.embed, quick_gelu: false, vision_cfg, text_cfg };
        Config { model_cfg, preprocess_cfg: Preprocess::default() }
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
        return Ok(vec![option::convert(value, place)?; n]);
    }
    match value.is_array() {
        true => option::list(option::convert(value, place)?, place),
        false => bail!(Type, "{place}: expected texts, a prompt set or a condition, got {}", option::show(&value)),
    }
}

/// A folder, and a weight file in it, from a path that the script may read or from a model's name.
fn place(name: &str, session: &Session, sources: &Sources) -> Result<(Folder, Option<String>)> {
    let path = match session.readable(name) {
        Ok(path) => path,
        Err(refused) if refused.kind == Kind::File => return Err(refused),
        Err(_) => return Ok((sources.named(name)?, None)),
    };
    match (path.parent(), path.file_name().and_then(|file| file.to_str())) {
        (Some(parent), Some(file)) if path.is_file() => Ok((Folder::disk(parent), Some(file.to_string()))),
        _ => Ok((Folder::disk(path), None)),
    }
}

/// Judges of images: `reward(..)` reads a trained one, `scripted_reward(..)` makes one from a closure, arithmetic mixes them.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod reward {
    use super::*;

    pub type Reward = Judge;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_reward(r: &mut Reward) -> String {
        r.to_string()
    }

    /// A reward by name, folder or weight file.
    ///
    /// HPSv2 (arXiv:2306.09341) scores by the cosine of a CLIP's image and text features; the tiny one is trained on choices
    /// of the shapes world's oracle. Names are looked up as `flow` does.
    ///
    /// ```rhai no_run
    /// let judge = reward("tiny/hpsv2");
    /// let published = reward("hpsv2", #{ weights: "HPS_v2_compressed.pt" });
    /// ```
    /// ```rhai
    /// reward("no/such")   //=> error: expected a model folder or name, got `no/such`
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn reward(context: NativeCallContext, name: &str, options: Map) -> RhaiResultOf<Reward> {
        let options = RewardOptions::parse("reward", options)?;
        let session = Session::of(&context);
        let sources = Sources::new(session.request.models.as_deref());
        let (folder, file) = place(name, &session, &sources)?;
        let (weights, hollow) = (options.weights.or(file), session.planner().is_some());
        let options = hpsv2::Options { weights, tokenizer: options.tokenizer, hollow };
        let judge = Hpsv2::open(name, &folder, &options, &sources, session.device())?;
        session.planner().inspect(|planner| planner.plan().parts.extend(crate::reward::Reward::parts(&judge)));
        Ok(Judge::new(judge))
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
        Judge::new(Scripted::new(move |images: &Tensor, prompts: &[String]| {
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

    /// Scores of all images (rows) against all prompts (columns), of a reward that compares features.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 32, layers: 1, text_width: 32, text_layers: 1, embed: 8 };
    /// let judge = clip_reward(["a red ring", "a blue square"], small);
    /// judge.similarities(zeros([2, 3, 16, 16]), ["a red ring", "a blue square", "a red square"]).shape   //=> [2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn similarities(r: Reward, images: Tensor, prompts: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(r.similarities(&images, &texts(prompts, 1, "similarities")?)?)
    }

    /// The sum of two rewards.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (0.7 * a + 0.3 * a).score(full([1, 3, 4, 4], 0.5), "a")     //=> tensor([0.5])
    /// ```
    #[rhai_fn(name = "+")]
    pub fn add(a: Reward, b: Reward) -> Reward {
        Judge::new(Sum::of(a.0).plus(&Sum::of(b.0)))
    }

    /// A reward plus a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a + 1).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([1.5])
    /// ```
    #[rhai_fn(name = "+")]
    pub fn add_number(a: Reward, b: f64) -> Reward {
        Judge::new(Sum::of(a.0).shifted(b))
    }

    /// A number plus a reward.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (1 + a).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([1.5])
    /// ```
    #[rhai_fn(name = "+")]
    pub fn number_add(a: f64, b: Reward) -> Reward {
        add_number(b, a)
    }

    /// The difference of two rewards.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a - 2 * a - 1).score(full([1, 3, 4, 4], 0.5), "a")         //=> tensor([-1.5])
    /// ```
    #[rhai_fn(name = "-")]
    pub fn subtract(a: Reward, b: Reward) -> Reward {
        add(a, multiply(b, -1.0))
    }

    /// A reward minus a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a - 1).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([-0.5])
    /// ```
    #[rhai_fn(name = "-")]
    pub fn subtract_number(a: Reward, b: f64) -> Reward {
        add_number(a, -b)
    }

    /// A number minus a reward.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// relu(2 - a).score(full([1, 3, 4, 4], 0.5), "a")             //=> tensor([1.5])
    /// ```
    #[rhai_fn(name = "-")]
    pub fn number_subtract(a: f64, b: Reward) -> Reward {
        add_number(multiply(b, -1.0), a)
    }

    /// The opposite of a reward.
    ///
    /// ```rhai
    /// -scripted_reward(|images, prompts| images.mean([1, 2, 3]))  //=> reward(-1 * scripted)
    /// ```
    #[rhai_fn(name = "-")]
    pub fn negative(r: Reward) -> Reward {
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
        Ok(Judge::new(Clamped::new(r.0, low, high)?))
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
    #[rhai_fn(name = "*")]
    pub fn number_multiply(a: f64, b: Reward) -> Reward {
        multiply(b, a)
    }

    /// A reward times a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// a * 2                                                       //=> reward(2 * scripted)
    /// ```
    #[rhai_fn(name = "*")]
    pub fn multiply(a: Reward, b: f64) -> Reward {
        Judge::new(Sum::of(a.0).scaled(b))
    }

    /// A reward over a number.
    ///
    /// ```rhai
    /// let a = scripted_reward(|images, prompts| images.mean([1, 2, 3]));
    /// (a / 4).score(full([1, 3, 4, 4], 0.5), "a")                 //=> tensor([0.125])
    /// ```
    #[rhai_fn(name = "/")]
    pub fn divide(a: Reward, b: f64) -> Reward {
        multiply(a, 1.0 / b)
    }

    /// A random CLIP reward with a tokenizer made for `texts`, to be trained and saved.
    ///
    /// ```rhai
    /// let small = #{ image_size: 16, width: 32, layers: 1, text_width: 32, text_layers: 1, embed: 8 };
    /// let judge = clip_reward(["a red ring", "a blue square"], small);
    /// judge.score(zeros([2, 3, 16, 16]), ["a red ring", "a blue square"]).shape   //=> [2]
    /// adamw(judge.trainable().params())                     //=> adamw(37 tensors ..
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn clip_reward(context: NativeCallContext, texts: Dynamic, options: Map) -> RhaiResultOf<Reward> {
        let options = ClipOptions::parse("clip_reward", options)?;
        let texts = super::texts(texts, 1, "clip_reward")?;
        let device = Session::of(&context).device().clone();
        Ok(Judge::new(Hpsv2::random(&texts, options.config(), &Rng::new(options.seed), &device)?))
    }

    /// The same reward with trainable weights.
    ///
    /// ```rhai
    /// scripted_reward(|images, prompts| images.mean([1, 2, 3])).trainable()   //=> error: has no weights
    /// ```
    #[rhai_fn(return_raw)]
    pub fn trainable(r: Reward) -> RhaiResultOf<Reward> {
        Ok(Judge(r.trainable()?))
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
    /// let judge = clip_reward(["a red ring", "a blue square"]);
    /// judge.save("hpsv2");
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn save(context: NativeCallContext, r: Reward, folder: &str) -> RhaiResultOf<()> {
        Ok(r.save(&Session::of(&context).writable(folder)?)?)
    }
}
