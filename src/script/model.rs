//! Chapter `model`: flow models, their conditions, and the autoencoders below them.

use super::*;
use crate::flow::{Condition, Velocity};
use crate::model::Flow;
use crate::model::codec::latents::{Latents, patchify};
use crate::model::families::{Choices, families, open_of};
use crate::nn::cost::Part;
use crate::nn::module::Module;
use crate::nn::source::Folder;
use crate::nn::weights::Weights;
use crate::optim::Params;
use crate::options;
use crate::tensor::{DType, Tensor};
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};

options! {
    /// How to open a model; what else a family can be told is in the table of families.
    pub struct OpenOptions {
        /// The family, where what lies there does not tell: `flux2`, `sit`, or one that a program registered.
        family: Option<String> = None,
        /// The type weights are held in, such as `bf16()`; () means f32, or bf16 above a billion numbers.
        dtype: Option<DType> = None,
        /// The type the transformer computes in; () means that of the weights, on the CPU f32 for half precision.
        compute: Option<DType> = None,
        /// Blocks run again in the backward instead of keeping what they computed; () means: above a billion numbers.
        recompute: Option<bool> = None,
        /// File or folder of the network's weights, when they are not in the model's folder.
        weights: Option<String> = None,
        /// Sizes of a new, random transformer (the keys of its `config.json`) instead of the stored one.
        transformer: Option<Map> = None,
        /// A LoRA file to apply, frozen.
        lora: Option<String> = None,
    }
}

/// The options of `flow`, for the manual.
pub struct FlowOptions;

impl FlowOptions {
    pub fn fields() -> Vec<option::Field> {
        registry::fields(OpenOptions::fields(), &families())
    }
}

options! {
    /// How weights are written.
    pub struct SaveOptions {
        /// The type to store, such as `f16()`; () means that in which they are held.
        dtype: Option<DType> = None,
    }
}

/// An autoencoder as scripts hold it: its weights, and the network built from them.
#[derive(Clone)]
pub struct Autoencoder {
    config: serde_json::Value,
    weights: Weights,
    latents: Arc<Latents>,
}

impl Autoencoder {
    fn new(config: serde_json::Value, weights: Weights) -> Result<Self> {
        let latents = Latents::new(&parse_config("autoencoder", config.clone())?, &weights)?;
        Ok(Self { config, weights, latents: Arc::new(latents) })
    }

    fn random(config: Map, rng: &crate::tensor::Rng, session: &Session) -> Result<Self> {
        Self::new(json(&config, "autoencoder")?, Weights::random(rng, DType::F32, session.device()))
    }

    fn open(folder: &Folder, session: &Session) -> Result<Self> {
        let weights = folder.weights("diffusion_pytorch_model", DType::F32, session.device())?;
        let opened = Self::new(folder.json("config.json")?, weights)?;
        opened.weights.finish()?;
        Ok(opened)
    }

    /// The same network, its latents brought to unit size by raw ones `[n, c, h, w]`.
    fn normalised(&self, raw: &Tensor) -> Result<Self> {
        if self.latents.config.class_name == "AutoencoderKL" {
            let variance = raw.flatten_all()?.var(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let mut config = self.config.clone();
            config["scaling_factor"] = serde_json::json!(variance.sqrt().recip());
            return Self::new(config, self.weights.map(|_, tensor| Ok(tensor.detach()))?);
        }
        let patches = patchify(raw)?.transpose(0, 1)?.flatten_from(1)?; // [4 c, n h w / 4]
        let (mean, variance) = (patches.mean(1)?, patches.var(1)?);
        let weights = self.weights.map(|name, tensor| {
            Ok(match name {
                "bn.running_mean" => mean.clone(),
                "bn.running_var" => variance.clone(),
                _ => tensor.detach(),
            })
        })?;
        Self::new(self.config.clone(), weights)
    }
}

impl Module for Autoencoder {
    type Trained = Self;

    /// All but the statistics of the latents.
    fn trainable(&self) -> Result<Self> {
        Self::new(self.config.clone(), self.weights.trainable(|name| !name.starts_with("bn."))?)
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.weights.params()
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![self.latents.part()])
    }

    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("save: {}: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(refused)?;
        self.weights.save(&folder.join("diffusion_pytorch_model.safetensors"), dtype)?;
        let text = format!("{:#}\n", self.config);
        crate::nn::files::write_whole(&folder.join("config.json"), text.as_bytes()).map_err(refused)
    }
}

impl fmt::Display for Autoencoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "autoencoder({} latent channels, {} pixels)", self.latents.channels(), self.latents.pixels())
    }
}

/// An object map as JSON.
fn json(map: &Map, place: &str) -> Result<serde_json::Value> {
    rhai::format_map_as_json(map)
        .parse()
        .map_err(|e| Error::new(Kind::Option, format!("{place}: expected numbers, text, arrays and maps, got {e}")))
}

fn parse_config<T: DeserializeOwned>(place: &str, value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::new(Kind::Option, format!("{place}: config: {e}")))
}

fn open_flow(context: &NativeCallContext, name: &str, options: Map) -> Result<Flow> {
    let session = Session::of(context);
    let families = session.registry().families.clone();
    let (common, own) = registry::split(options, &OpenOptions::fields(), &families, "flow", &session)?;
    let options = OpenOptions::parse("flow", common)?;
    let seed = session.request().seed.unwrap_or(0);
    let sizes = options.transformer.as_ref().map(|map| json(map, "flow: transformer")).transpose()?;
    let weights = options.weights.map(|path| readable(context, &path, "flow: option `weights`")).transpose()?;
    let choices = Choices {
        family: options.family,
        fresh: sizes.map(|sizes| (sizes, seed)),
        dtype: options.dtype,
        compute: options.compute,
        recompute: options.recompute,
        weights,
        options: own,
        hollow: session.planner().is_some(),
    };
    let flow = open_of(&families, name, &session.sources(), &choices, session.device())?;
    if let Some(planner) = session.planner() {
        planner.plan().parts.extend(flow.parts()?);
    }
    match options.lora {
        Some(path) => flow.load_lora(&readable(context, &path, "flow: option `lora`")?, false),
        None => Ok(flow),
    }
}

fn readable(context: &NativeCallContext, path: &str, place: &str) -> Result<PathBuf> {
    Session::of(context).readable(path).map_err(|e| e.within(place))
}

fn writable(context: &NativeCallContext, path: &str, place: &str) -> Result<PathBuf> {
    Session::of(context).writable(path).map_err(|e| e.within(place))
}

/// The condition of a prompt or label, or of an array of either, or of a tensor of labels.
fn encode(flow: &Flow, given: Dynamic) -> Result<Condition> {
    if let Some(labels) = labels(&given)? {
        return flow.encode_labels(&labels);
    }
    match String::from_script(given.clone()) {
        Some(prompt) => flow.encode(&[prompt]),
        None => flow.encode(&option::convert::<Vec<String>>(given, "encode: prompts")?),
    }
}

fn labels(given: &Dynamic) -> Result<Option<Vec<u32>>> {
    let whole = match (i64::from_script(given.clone()), Tensor::from_script(given.clone())) {
        (Some(label), _) => Some(vec![label]),
        (_, Some(tensor)) => Some(tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?),
        _ => Vec::<i64>::from_script(given.clone()).filter(|labels| !labels.is_empty()),
    };
    let small = |label: i64| {
        u32::try_from(label)
            .map_err(|_| Error::new(Kind::Value, format!("encode: labels must be 0 or more, got {label}")))
    };
    whole.map(|labels| labels.into_iter().map(small).collect()).transpose()
}

use option::FromScript;

/// Flow models (`flow(name)`), what they are conditioned on, and autoencoders.
#[export_module(manifest)]
pub mod model {
    use super::*;

    pub type Flow = crate::model::Flow;
    pub type Condition = crate::flow::Condition;
    pub type Autoencoder = super::Autoencoder;

    /// A flow model by name or path.
    ///
    /// Names are looked up in `--models`, `AMSCRIPT_MODELS`, the Hugging Face cache, then the embedded tiny family. A path is a
    /// pipeline folder in the diffusers layout (FLUX.2), or the weights of a SiT: a `.pt` or `.safetensors` file, or a folder with one,
    /// and beside it, if they are not as published, `config.json`, `classes.txt` and the autoencoder in `vae`.
    ///
    /// ```rhai
    /// flow("tiny/flux2")    //=> flow(tiny/flux2)
    /// flow("tiny/sit")      //=> flow(tiny/sit)
    /// flow("tiny/flux")     //=> error: the nearest name is `tiny/flux2`
    /// ```
    #[rhai_fn(return_raw)]
    pub fn flow(context: NativeCallContext, name: &str, options: Map) -> RhaiResultOf<Flow> {
        Ok(open_flow(&context, name, options)?)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_flow(flow: &mut Flow) -> String {
        flow.to_string()
    }

    /// The velocity at latents `x`, time `t` (a number or `[batch]`; 0 noise, 1 data) and a condition.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// let x = base.noise(2, rng(0));
    /// base.velocity(x, 0.5, base.encode(["a small red ring on cream", "a large blue square on cream"])).shape   //=> [2, 32, 8, 8]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn velocity(flow: Flow, x: Tensor, t: Dynamic, condition: Dynamic) -> RhaiResultOf<Tensor> {
        let times = super::flow::times(t, &x, "velocity")?;
        Ok(flow.velocity(&x, &times, &super::flow::condition(condition, "velocity")?)?)
    }

    /// Prompts, or class labels, as a condition.
    ///
    /// Prompts give text, token ids and embeddings; repeated ones are computed once. A class-conditional model takes labels (integers,
    /// or a tensor of them) or sentences of its `classes`.
    ///
    /// ```rhai
    /// flow("tiny/flux2").encode(["a small red ring on cream"]).text   //=> ["a small red ring on cream"]
    /// flow("tiny/sit").encode([3, 7]).text[0]    //=> "a small red circle at the center on charcoal"
    /// flow("tiny/sit").encode([300])             //=> error: labels must be below 256, or 256 for the null class, got 300
    /// flow("tiny/flux2").encode([3])             //=> error: takes prompts, got 1 labels
    /// ```
    #[rhai_fn(return_raw)]
    pub fn encode(flow: Flow, prompts: Dynamic) -> RhaiResultOf<Condition> {
        Ok(super::encode(&flow, prompts)?)
    }

    /// The sentence of every class of a class-conditional model, by label; empty for other models.
    ///
    /// ```rhai
    /// flow("tiny/sit").classes[7]       //=> "a small red square at the center on charcoal"
    /// flow("tiny/sit").classes.len()    //=> 256
    /// flow("tiny/flux2").classes        //=> []
    /// ```
    #[rhai_fn(get = "classes", pure)]
    pub fn classes(flow: &mut Flow) -> Array {
        flow.classes().iter().cloned().map(Dynamic::from).collect()
    }

    /// A condition from prompt embeddings `[batch, tokens, features]`.
    ///
    /// ```rhai
    /// condition(zeros([2, 24, 144])).embeddings.shape   //=> [2, 24, 144]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn condition(embeddings: Tensor) -> RhaiResultOf<Condition> {
        if embeddings.rank() != 3 {
            return Err(Error::new(
                Kind::Shape,
                format!("condition: expected embeddings [batch, tokens, features], got {:?}", embeddings.dims()),
            )
            .into());
        }
        Ok(Condition::default().with(Condition::EMBEDDINGS, embeddings))
    }

    /// A condition of named tensors `[batch, ..]`, for families that read others than prompt embeddings.
    ///
    /// ```rhai
    /// condition(#{ embeddings: zeros([2, 24, 8]), pooled: zeros([2, 8]) })   //=> condition(embeddings [2, 24, 8], pooled [2, 8])
    /// condition(#{ pooled: 3 })   //=> error: condition: `pooled`: expected a tensor
    /// ```
    #[rhai_fn(name = "condition", return_raw)]
    pub fn condition_of(tensors: Map) -> RhaiResultOf<Condition> {
        let tensor = |(name, value)| {
            let place = format!("condition: `{name}`");
            Ok::<_, Error>((String::from(name), option::convert::<Tensor>(value, &place)?))
        };
        let tensors = tensors.into_iter().map(tensor).collect::<Result<_>>()?;
        Ok(Condition { tensors, ..Condition::default() })
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_condition(condition: &mut Condition) -> String {
        let tensors: Vec<_> = condition.tensors.iter().map(|(name, t)| format!("{name} {:?}", t.dims())).collect();
        match condition.text.first() {
            Some(first) => format!("condition({} prompts, {first:?}, ..)", condition.text.len()),
            None => format!("condition({})", tensors.join(", ")),
        }
    }

    /// The prompts of a condition.
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).text   //=> []
    /// ```
    #[rhai_fn(get = "text", pure)]
    pub fn condition_text(condition: &mut Condition) -> Array {
        condition.text.iter().map(|t| Dynamic::from(t.clone())).collect()
    }

    /// The class labels of a condition, or ().
    ///
    /// ```rhai
    /// flow("tiny/sit").encode(tensor([3, 7])).labels   //=> [3, 7]
    /// condition(zeros([1, 4, 2])).labels               //=> ()
    /// ```
    #[rhai_fn(get = "labels", pure)]
    pub fn condition_labels(condition: &mut Condition) -> Dynamic {
        let array = |labels: &Vec<u32>| labels.iter().map(|label| Dynamic::from(*label as i64)).collect::<Array>();
        condition.labels.as_ref().map_or(Dynamic::UNIT, |labels| array(labels).into())
    }

    /// The token ids `[batch, tokens]` of a condition, or ().
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).ids   //=> ()
    /// ```
    #[rhai_fn(get = "ids", pure)]
    pub fn condition_ids(condition: &mut Condition) -> Dynamic {
        condition.get(Condition::IDS).cloned().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// The embeddings `[batch, tokens, features]` of a condition, or ().
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).embeddings.shape   //=> [1, 4, 2]
    /// ```
    #[rhai_fn(get = "embeddings", pure)]
    pub fn condition_embeddings(condition: &mut Condition) -> Dynamic {
        condition.get(Condition::EMBEDDINGS).cloned().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// The tensors of a condition by name, each `[batch, ..]`: what the network of a family reads.
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).tensors.keys()                    //=> ["embeddings"]
    /// flow("tiny/flux2").encode("a small red ring").tensors.keys()  //=> ["embeddings", "ids"]
    /// ```
    #[rhai_fn(get = "tensors", pure)]
    pub fn condition_tensors(condition: &mut Condition) -> Map {
        condition.tensors.iter().map(|(name, tensor)| (name.into(), Dynamic::from(tensor.clone()))).collect()
    }

    /// A tensor of a condition by name, or ().
    ///
    /// ```rhai
    /// condition(#{ pooled: zeros([2, 8]) })["pooled"].shape   //=> [2, 8]
    /// condition(#{ pooled: zeros([2, 8]) })["ids"]            //=> ()
    /// ```
    #[rhai_fn(index_get, pure)]
    pub fn condition_tensor(condition: &mut Condition, name: &str) -> Dynamic {
        condition.get(name).cloned().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// The condition of some samples, by their places; one may come several times.
    ///
    /// ```rhai
    /// flow("tiny/sit").encode([3, 7, 9]).rows([2, 0, 0]).labels   //=> [9, 3, 3]
    /// flow("tiny/sit").encode([3, 7, 9]).rows([3])                //=> error: rows must be below 3, got 3
    /// ```
    #[rhai_fn(name = "rows", return_raw)]
    pub fn condition_rows(condition: Condition, rows: Array) -> RhaiResultOf<Condition> {
        let rows: Vec<usize> = option::list(rows, "rows")?;
        Ok(condition.rows(&rows.into_iter().map(|row| row as u32).collect::<Vec<_>>())?)
    }

    /// The condition with each sample `times` in a row: groups of samples for the same prompt.
    ///
    /// ```rhai
    /// flow("tiny/sit").encode([3, 7]).repeat(2).labels   //=> [3, 3, 7, 7]
    /// ```
    #[rhai_fn(name = "repeat", return_raw)]
    pub fn condition_repeat(condition: Condition, times: i64) -> RhaiResultOf<Condition> {
        Ok(condition.repeat(option::convert(times.into(), "repeat: times")?)?)
    }

    /// One condition behind another that holds the same things.
    ///
    /// ```rhai
    /// (flow("tiny/sit").encode([3]) + flow("tiny/sit").encode([7])).labels   //=> [3, 7]
    /// ```
    #[rhai_fn(name = "+", return_raw)]
    pub fn condition_cat(a: Condition, b: Condition) -> RhaiResultOf<Condition> {
        Ok(a.cat(&b)?)
    }

    /// How a model is sampled unless told otherwise: `steps`, and the scale of the `guidance`.
    ///
    /// ```rhai
    /// flow("tiny/flux2").defaults   //=> #{"guidance": 1.0, "steps": 20}
    /// ```
    #[rhai_fn(get = "defaults", pure)]
    pub fn defaults(flow: &mut Flow) -> Map {
        let defaults = flow.defaults();
        Map::from([
            ("steps".into(), Dynamic::from(defaults.steps as i64)),
            ("guidance".into(), Dynamic::from(defaults.guidance)),
        ])
    }

    /// Images `[batch, 3, height, width]` in [0, 1] of latents.
    ///
    /// The gradient passes the clamp to [0, 1], so that an out-of-range pixel can be pulled back.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// base.decode(base.noise(1, rng(0))).shape   //=> [1, 3, 64, 64]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn decode(flow: Flow, latents: Tensor) -> RhaiResultOf<Tensor> {
        Ok(flow.decode(&latents)?)
    }

    /// Latents of images `[batch, 3, height, width]` in [0, 1].
    ///
    /// ```rhai
    /// flow("tiny/flux2").encode_image(full([1, 3, 64, 64], 0.5)).shape   //=> [1, 32, 8, 8]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn encode_image(flow: Flow, images: Tensor) -> RhaiResultOf<Tensor> {
        Ok(flow.encode_image(&images)?)
    }

    /// Standard normal latents of `n` images of the model's size, or of `size`: a side in pixels or `[height, width]`.
    ///
    /// ```rhai
    /// flow("tiny/flux2").noise(4, rng(0)).shape   //=> [4, 32, 8, 8]
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn noise(flow: Flow, n: i64, rng: crate::tensor::Stream) -> RhaiResultOf<Tensor> {
        let n: usize = option::convert(n.into(), "noise: n")?;
        Ok(rng.draw(|rng| flow.noise(n, None, rng))?)
    }

    /// The same for images of another size.
    ///
    /// ```rhai
    /// flow("tiny/flux2").noise(1, rng(0), [32, 96]).shape   //=> [1, 32, 4, 12]
    /// flow("tiny/flux2").noise(1, rng(0), 30)               //=> error: must be multiples of 8
    /// ```
    #[rhai_fn(name = "noise", return_raw, volatile)]
    pub fn noise_of_size(flow: Flow, n: i64, rng: crate::tensor::Stream, size: Dynamic) -> RhaiResultOf<Tensor> {
        let n: usize = option::convert(n.into(), "noise: n")?;
        let sides = match usize::from_script(size.clone()) {
            Some(side) => vec![side],
            None => option::convert::<Vec<usize>>(size, "noise: size")?,
        };
        Ok(rng.draw(|rng| flow.noise(n, Some(&sides), rng))?)
    }

    /// Frees the weights of the text encoder. Prompts that were encoded before stay at hand; a new one reads the weights again.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// base.unload_text_encoder();
    /// base.encode("a small red ring on cream").text   //=> ["a small red ring on cream"]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn unload_text_encoder(flow: Flow) -> RhaiResultOf<()> {
        Ok(flow.unload_text_encoder()?)
    }

    /// The same model with classifier-free guidance: its velocity away from that of the empty prompt (or the null class), by `scale`.
    ///
    /// Each velocity is two forwards; at scale 1 the flow itself comes back. In training, guidance is a choice in three places:
    /// what is rolled out, what carries the adjoint, and the control that is matched (`adjoint_matching`).
    ///
    /// ```rhai
    /// guided(flow("tiny/flux2"), 4)   //=> flow(tiny/flux2, guided 4)
    /// guided(flow("tiny/flux2"), 1)   //=> flow(tiny/flux2)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn guided(flow: Flow, scale: f64) -> RhaiResultOf<Flow> {
        Ok(flow.guided(scale)?)
    }

    /// The same model with every weight of its network trainable.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// base.trainable().params().len > base.lora().params().len   //=> true
    /// ```
    #[rhai_fn(name = "trainable", return_raw)]
    pub fn trainable_flow(context: NativeCallContext, flow: Flow) -> RhaiResultOf<Flow> {
        if let Some(planner) = Session::of(&context).planner() {
            return Ok(plan::whole(planner, &flow)?);
        }
        Ok(flow.trainable()?)
    }

    /// The trainable tensors, for an optimizer.
    ///
    /// ```rhai
    /// flow("tiny/flux2").params().len   //=> 0
    /// ```
    #[rhai_fn(name = "params", return_raw)]
    pub fn params_of_flow(flow: Flow) -> RhaiResultOf<Params> {
        Ok(Params::new(flow.params())?)
    }

    /// Writes the network into a pipeline folder.
    ///
    /// ```rhai no_run
    /// flow("tiny/flux2").save("my_model")
    /// ```
    #[rhai_fn(name = "save", return_raw, volatile)]
    pub fn save_flow(context: NativeCallContext, flow: Flow, folder: &str, options: Map) -> RhaiResultOf<()> {
        let dtype = SaveOptions::parse("save", options)?.dtype;
        Ok(flow.save(&writable(&context, folder, "save")?, dtype)?)
    }

    /// Every model and reward that can be found now, and where.
    ///
    /// ```rhai
    /// models()["tiny/flux2"]   //=> "embedded"
    /// ```
    #[rhai_fn(volatile)]
    pub fn models(context: NativeCallContext) -> Map {
        let known = Session::of(&context).sources().known();
        known.into_iter().map(|(name, place)| (name.into(), place.into())).collect()
    }

    /// A new autoencoder of the given sizes (the keys of `vae/config.json`), with random weights.
    ///
    /// ```rhai
    /// autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0))   //=> autoencoder(8 latent channels, 4 pixels)
    /// ```
    #[rhai_fn(name = "autoencoder", return_raw)]
    pub fn autoencoder_random(
        context: NativeCallContext,
        config: Map,
        rng: crate::tensor::Stream,
    ) -> RhaiResultOf<Autoencoder> {
        Ok(rng.draw(|rng| super::Autoencoder::random(config, rng, &Session::of(&context)))?)
    }

    /// An autoencoder from a `vae` folder.
    ///
    /// ```rhai
    /// autoencoder("nowhere")   //=> error: nowhere
    /// ```
    #[rhai_fn(name = "autoencoder", return_raw)]
    pub fn autoencoder_open(context: NativeCallContext, folder: &str) -> RhaiResultOf<Autoencoder> {
        Ok(Autoencoder::open(&Folder::disk(readable(&context, folder, "autoencoder")?), &Session::of(&context))?)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_autoencoder(autoencoder: &mut Autoencoder) -> String {
        autoencoder.to_string()
    }

    /// The same autoencoder with every weight trainable; the normalisation statistics stay fixed.
    #[rhai_fn(name = "trainable", return_raw)]
    pub fn trainable_autoencoder(autoencoder: Autoencoder) -> RhaiResultOf<Autoencoder> {
        Ok(autoencoder.trainable()?)
    }

    /// The trainable tensors of an autoencoder, for an optimizer.
    #[rhai_fn(name = "params", return_raw)]
    pub fn params_of_autoencoder(autoencoder: Autoencoder) -> RhaiResultOf<Params> {
        Ok(Params::new(autoencoder.params())?)
    }

    /// Mean and log-variance `[batch, c, h, w]` of the raw latents of images in [0, 1], as an array of the two.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.moments(full([1, 3, 8, 8], 0.5))[0].shape   //=> [1, 2, 4, 4]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn moments(autoencoder: Autoencoder, images: Tensor) -> RhaiResultOf<Array> {
        let (mean, log_variance) = autoencoder.latents.moments(&images)?;
        Ok(vec![Dynamic::from(mean), Dynamic::from(log_variance)])
    }

    /// Images, nominally in [0, 1] and not clamped, of raw latents.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.reconstruct(zeros([1, 2, 4, 4])).shape   //=> [1, 3, 8, 8]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn reconstruct(autoencoder: Autoencoder, raw: Tensor) -> RhaiResultOf<Tensor> {
        Ok(autoencoder.latents.reconstruct(&raw)?)
    }

    /// The same autoencoder, its latents normalised by the statistics of these raw ones `[n, c, h, w]`.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.normalised(rng(1).normal([2, 2, 4, 4]))   //=> autoencoder(8 latent channels, 4 pixels)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn normalised(autoencoder: Autoencoder, raw: Tensor) -> RhaiResultOf<Autoencoder> {
        Ok(autoencoder.normalised(&raw)?)
    }

    /// Writes an autoencoder as a `vae` folder.
    #[rhai_fn(name = "save", return_raw, volatile)]
    pub fn save_autoencoder(
        context: NativeCallContext,
        autoencoder: Autoencoder,
        folder: &str,
        options: Map,
    ) -> RhaiResultOf<()> {
        let dtype = SaveOptions::parse("save", options)?.dtype;
        Ok(autoencoder.save(&writable(&context, folder, "save")?, dtype)?)
    }
}
