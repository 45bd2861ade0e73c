//! Chapter `model`: flow models, opened, asked, saved.

use super::*;
use crate::options;
use amscript_align::flow::{Condition, Velocity};
use amscript_align::optim::Params;
use amscript_base::bail;
use amscript_model::Flow;
use amscript_model::families::{ModelOptions, families, open_of};
use amscript_nn::module::Module;
use amscript_tensor::{DType, Tensor};
use std::path::PathBuf;

options! {
    /// How to open a model; what else a family can be told is in the table of families.
    pub struct OpenOptions {
        /// The family, where what lies there does not tell: `flux2`, `sit`, or one that a program registered.
        family: Option<String> = None,
        /// The type weights are held in, such as `bf16()`; () means f32, or bf16 above a billion numbers.
        dtype: Option<DType> = None,
        /// The type the transformer computes in; () means that of the weights, on the CPU f32 for half precision. bf16() takes 0.6 of the time where the processor has AVX512-BF16.
        compute: Option<DType> = None,
        /// Blocks run again in the backward instead of keeping what they computed; () means: above a billion numbers.
        checkpoint_blocks: Option<bool> = None,
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

/// An object map as JSON.
pub fn json(map: &Map, place: &str) -> Result<serde_json::Value> {
    rhai::format_map_as_json(map)
        .parse()
        .map_err(|e| Error::new(Kind::Option, format!("{place}: expected numbers, text, arrays and maps, got {e}")))
}

fn open_flow(context: &NativeCallContext, name: &str, options: Map) -> Result<Flow> {
    let session = Session::of(context);
    let families = session.registry().families.clone();
    let (common, own) = registry::split(options, &OpenOptions::fields(), &families, "flow", &session)?;
    let options = OpenOptions::parse("flow", common)?;
    for (name, dtype) in [("dtype", options.dtype), ("compute", options.compute)] {
        if let Some(dtype) = dtype.filter(|dtype| !dtype.is_float()) {
            let dtype = dtype.as_str();
            bail!(Dtype, "flow: option `{name}`: expected a type of floats such as `bf16()`, got {dtype}");
        }
    }
    let seed = session.seed().unwrap_or(0);
    let sizes = options.transformer.as_ref().map(|map| json(map, "flow: transformer")).transpose()?;
    let weights = options.weights.map(|path| readable(context, &path, "flow: option `weights`")).transpose()?;
    let choices = ModelOptions {
        family: options.family,
        fresh: sizes.map(|sizes| (sizes, seed)),
        dtype: options.dtype,
        compute: options.compute,
        checkpoint_blocks: options.checkpoint_blocks,
        weights,
        options: own,
        trace: session.planner().map(|planner| planner.trace.clone()),
    };
    let place = registry::model_place(name.into(), &session).map_err(|e| e.within("flow"))?;
    let flow = open_of(&families, &place, &session.sources(), &choices, session.device())?;
    if let Some(planner) = session.planner() {
        planner.opens(flow.parts()?);
    }
    match options.lora {
        Some(path) => flow.load_lora(&readable(context, &path, "flow: option `lora`")?, false),
        None => Ok(flow),
    }
}

pub fn readable(context: &NativeCallContext, path: &str, place: &str) -> Result<PathBuf> {
    Session::of(context).readable(path).map_err(|e| e.within(place))
}

pub fn writable(context: &NativeCallContext, path: &str, place: &str) -> Result<PathBuf> {
    Session::of(context).writable(path).map_err(|e| e.within(place))
}

/// The condition of a prompt or label, or of an array of either, or of a tensor of labels.
fn encode(flow: &Flow, given: Dynamic) -> Result<Condition> {
    if let Some(labels) = labels(&given)? {
        return flow.encode_labels(&labels);
    }
    match String::from_script(given.clone()) {
        Some(prompt) => flow.encode(&[prompt]),
        None if given.is::<amscript_nn::data::Prompts>() => {
            bail!(Type, "encode: expected prompts as an array of texts, got a prompt set";
                hint: "write `set.texts` for all of them, `set.sample(8, rng(0))` for some")
        }
        None => flow.encode(&option::convert::<Vec<String>>(given, "encode: prompts")?),
    }
}

fn whole_label(x: f64) -> Result<i64> {
    if x.fract() == 0.0 {
        return Ok(x as i64);
    }
    let shown = amscript_tensor::show::number(x);
    Err(Error::new(Kind::Value, format!("encode: labels must be whole numbers, got {shown}")))
}

fn labels(given: &Dynamic) -> Result<Option<Vec<u32>>> {
    let whole = match (i64::from_script(given.clone()), Tensor::from_script(given.clone())) {
        (Some(label), _) => Some(vec![label]),
        (_, Some(tensor)) => {
            let numbers = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            Some(numbers.into_iter().map(whole_label).collect::<Result<_>>()?)
        }
        _ => Vec::<i64>::from_script(given.clone()).filter(|labels| !labels.is_empty()),
    };
    let small = |label: i64| {
        u32::try_from(label)
            .map_err(|_| Error::new(Kind::Value, format!("encode: labels must be 0 or more, got {label}")))
    };
    whole.map(|labels| labels.into_iter().map(small).collect()).transpose()
}

use option::FromScript;

/// Flow models (`flow(name)`): what they are asked and give.
#[export_module(manifest)]
pub mod model {
    use super::*;

    pub type Flow = amscript_model::Flow;

    /// A flow model by name or path.
    ///
    /// Names are looked up in `--models`, `AMSCRIPT_MODELS`, the Hugging Face cache, then the embedded tiny family; `org/name@revision`
    /// is a branch, a tag or the beginning of a commit in that cache. A path is a
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
    /// base.velocity(x, 500, ())   //=> error: velocity: time runs from 0 (noise) to 1 (data), got 500
    /// base.velocity(x, tensor([0.5, -0.1]), ())   //=> error: velocity: time runs from 0 (noise) to 1 (data), got -0.1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn velocity(flow: Flow, x: Tensor, t: Dynamic, condition: Dynamic) -> RhaiResultOf<Tensor> {
        let times = super::flow::times_for(&flow, t, &x, "velocity")?;
        Ok(flow.velocity(&x, &times, &super::flow::condition(condition, "velocity")?)?)
    }

    /// Prompts, or class labels, as a condition.
    ///
    /// Prompts give text, token ids and embeddings; repeated ones are computed once. A class-conditional model takes labels (integers,
    /// or a tensor of them) or sentences of its `classes`.
    ///
    /// ```rhai
    /// flow("tiny/flux2").encode(["a small red ring on cream"]).text   //=> ["a small red ring on cream"]
    /// flow("tiny/sit").encode([3, 7]).text[0]    //=> "a small red circle on charcoal"
    /// flow("tiny/sit").encode([500])             //=> error: labels must be below 480, or 480 for the null class, got 500
    /// flow("tiny/flux2").encode([3])             //=> error: takes prompts, got 1 labels
    /// flow("tiny/flux2").encode(prompts("shapes/test"))   //=> error: an array of texts, got a prompt set
    /// ```
    #[rhai_fn(return_raw)]
    pub fn encode(context: NativeCallContext, flow: Flow, prompts: Dynamic) -> RhaiResultOf<Condition> {
        let condition = super::encode(&flow, prompts)?;
        Session::of(&context).planner().inspect(|planner| planner.encodes(&condition));
        Ok(condition)
    }

    /// The sentence of every class of a class-conditional model, by label; empty for other models.
    ///
    /// ```rhai
    /// flow("tiny/sit").classes[7]       //=> "a small red square on charcoal"
    /// flow("tiny/sit").classes.len()    //=> 480
    /// flow("tiny/flux2").classes        //=> []
    /// ```
    #[rhai_fn(get = "classes", pure)]
    pub fn classes(flow: &mut Flow) -> Array {
        flow.classes().iter().cloned().map(Dynamic::from).collect()
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
    /// base.decode(zeros([1, 16, 8, 8]))          //=> error: decode: expected latents [batch, 32, height, width], got [1, 16, 8, 8]
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
    pub fn noise(flow: Flow, n: i64, rng: amscript_tensor::Stream) -> RhaiResultOf<Tensor> {
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
    pub fn noise_of_size(flow: Flow, n: i64, rng: amscript_tensor::Stream, size: Dynamic) -> RhaiResultOf<Tensor> {
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
    pub fn trainable_flow(flow: Flow) -> RhaiResultOf<Flow> {
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
}
