//! Chapter `adapter`: low-rank adapters of a flow.

use super::*;
use crate::{options, script_value};
use amscript_model::Flow;
use amscript_model::adapter::Targets;
use amscript_nn::archive;
use amscript_nn::lora::Form;
use amscript_tensor::{DType, Rng};
use option::FromScript;
use std::path::PathBuf;

options! {
    /// Low-rank adapters.
    pub struct LoraOptions {
        /// Rank of the change of each weight.
        rank: usize = 16,
        /// The change is multiplied by alpha / rank; () means alpha = rank.
        alpha: Option<f64> = None,
        /// The modules to adapt; () means those that the family's users adapt by default.
        targets: Targets = Targets::Usual,
        /// What the first factors are drawn from; () means `--seed`, else 0.
        seed: Option<u64> = None,
    }
}

options! {
    /// How adapters are read.
    pub struct LoadLoraOptions {
        /// Whether they can be trained on.
        trainable: bool = false,
    }
}

options! {
    /// How adapters are written.
    pub struct SaveLoraOptions {
        /// In kohya's names and BFL's layout, instead of diffusers'.
        kohya: bool = false,
        /// Kind of number in the file; () means as they are.
        dtype: Option<DType> = None,
    }
}

script_value!(TargetChoice, "a choice such as `all_linears()`");

/// [`Targets`] that a script can hold.
#[derive(Clone)]
pub struct TargetChoice(Targets);

impl std::fmt::Display for TargetChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.show())
    }
}

impl FromScript for Targets {
    fn expected() -> String {
        "an array of ends of module names, or a choice such as `all_linears()`".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        if value.is_unit() {
            return Some(Self::Usual);
        }
        let choice = TargetChoice::from_script(value.clone()).map(|choice| choice.0);
        choice.or_else(|| Vec::from_script(value).map(Self::Named))
    }
    fn show(&self) -> String {
        match self {
            Self::Usual => "()".into(),
            Self::Blocks => "all_linears()".into(),
            Self::Named(names) => names.show(),
        }
    }
}

/// Times closer than this are the same: states and times are f32.
const SAME_TIME: f64 = 1e-6;

fn readable(context: &NativeCallContext, path: &str) -> Result<PathBuf> {
    let found = Session::of(context).readable(path).map_err(|e| e.within("load_lora"));
    found.map_err(|e| if e.kind == Kind::Missing && is_elsewhere(path) { e.hint(ELSEWHERE) } else { e })
}

const ELSEWHERE: &str =
    "fetch it with `hf download` first, and give the path of the file or folder; nothing is fetched here";

/// Whether a path looks like an address, or like the name of a repository on the Hugging Face hub.
fn is_elsewhere(path: &str) -> bool {
    let names = || path.split('/').all(|name| !name.is_empty() && !name.starts_with('.'));
    path.contains("://") || path.matches('/').count() == 1 && names() && !path.ends_with(".safetensors")
}

/// Low-rank adapters (LoRA): made, loaded, saved, made weaker or stronger, merged.
#[export_module(manifest)]
pub mod adapter {
    use super::*;

    pub type TargetChoice = super::TargetChoice;

    /// The same model with trainable low-rank adapters; it starts equal to this one and shares its weights.
    ///
    /// By default those modules are adapted that the family's users adapt: for FLUX.2 attention on the image side, and the single
    /// blocks.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// base.lora(#{ rank: 2 }).params().len > 0                                                              //=> true
    /// base.lora(#{ targets: all_linears() }).params().len > base.lora(#{ targets: ["to_q"] }).params().len   //=> true
    /// base.lora(#{ rnk: 2 })                   //=> error: did you mean `rank`?
    /// base.lora(#{ alpha: infinity() })        //=> error: lora: `alpha` must be finite, got inf
    /// base.lora(#{ targets: ["to_p"] })        //=> error: ends of names of linear modules, got `to_p`
    /// base.lora().lora()                       //=> error: merge() first
    /// ```
    #[rhai_fn(return_raw)]
    pub fn lora(context: NativeCallContext, flow: Flow, options: Map) -> RhaiResultOf<Flow> {
        let o = LoraOptions::parse("lora", options)?;
        let seed = o.seed.or_else(|| Session::of(&context).seed()).unwrap_or(0);
        if let Some(alpha) = o.alpha.filter(|alpha| !alpha.is_finite()) {
            return Err(Error::new(Kind::Value, format!("lora: `alpha` must be finite, got {alpha}")).into());
        }
        let scale = o.alpha.map_or(1.0, |alpha| alpha / o.rank.max(1) as f64);
        Ok(flow.lora(o.rank, scale, &o.targets, &Rng::new(seed).split("lora"))?)
    }

    /// Targets of `lora`: every linear module inside a block; not embedders, modulation, the last layer.
    ///
    /// ```rhai
    /// all_linears()   //=> all_linears()
    /// ```
    pub fn all_linears() -> TargetChoice {
        super::TargetChoice(Targets::Blocks)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_targets(targets: &mut TargetChoice) -> String {
        targets.to_string()
    }

    /// The same model with the adapters of a file.
    ///
    /// Read are the files of diffusers and PEFT, of ai-toolkit (BFL's names) and of kohya, with their alphas. Every tensor must
    /// belong to a module of the model.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// base.lora(#{ rank: 2 }).save_lora("lora.safetensors");
    /// base.load_lora("lora.safetensors").params().len                            //=> 0
    /// base.load_lora("lora.safetensors", #{ trainable: true }).params().len > 0   //=> true
    /// base.load_lora("nowhere.safetensors")                                      //=> error: nowhere.safetensors
    /// base.load_lora("somebody/lora")                                            //=> error: fetch it with `hf download` first
    /// ```
    #[rhai_fn(return_raw)]
    pub fn load_lora(context: NativeCallContext, flow: Flow, path: &str, options: Map) -> RhaiResultOf<Flow> {
        let trainable = LoadLoraOptions::parse("load_lora", options)?.trainable;
        Ok(flow.load_lora(&readable(&context, path)?, trainable)?)
    }

    /// Writes the adapters in the form that diffusers and ComfyUI load, or in kohya's; alpha is folded in.
    ///
    /// In kohya's form diffusers loads only what lies inside blocks, and the embedders.
    ///
    /// ```rhai
    /// let policy = flow("tiny/flux2").lora(#{ rank: 2, targets: ["transformer_blocks.0.attn.to_q"] });
    /// policy.save_lora("lora.safetensors");
    /// load_tensors("lora.safetensors").keys()[0]   //=> "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    /// policy.save_lora("kohya.safetensors", #{ kohya: true, dtype: bf16() });
    /// load_tensors("kohya.safetensors").keys()[0]  //=> "lora_unet_double_blocks_0_img_attn_qkv.alpha"
    /// policy.save_lora("lora.pt")                  //=> error: save_lora: file must end in .safetensors
    /// let all = flow("tiny/flux2").load_lora("lora.safetensors").trainable();
    /// all.save_lora("all.safetensors")             //=> error: own weights are trained too, and a LoRA file holds none of them
    /// all.merge().save("all");
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn save_lora(context: NativeCallContext, flow: Flow, path: &str, options: Map) -> RhaiResultOf<()> {
        let o = SaveLoraOptions::parse("save_lora", options)?;
        let path = Session::of(&context).writable(path).map_err(|e| e.within("save_lora"))?;
        archive::check_ending(&path).map_err(|e| e.within("save_lora"))?;
        Ok(flow.save_lora(&path, if o.kohya { Form::Kohya } else { Form::Diffusers }, o.dtype)?)
    }

    /// Whether a model has adapters.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// [base.adapted, base.lora(#{ rank: 2 }).adapted]   //=> [false, true]
    /// ```
    #[rhai_fn(get = "adapted", pure)]
    pub fn adapted(flow: &mut Flow) -> bool {
        flow.is_adapted()
    }

    /// The same model, what its adapters change multiplied by a factor; 0 is the base.
    ///
    /// The parameters are shared: what is trained later shows.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// let policy = base.lora(#{ rank: 2 });
    /// let x = base.noise(1, rng(0));
    /// let c = base.encode("a small red ring on cream");
    /// policy.strength(0).velocity(x, 0.5, c) == base.velocity(x, 0.5, c)   //=> true
    /// policy.strength(0.5)   //=> flow(tiny/flux2, 13312 trainable)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn strength(flow: Flow, factor: f64) -> RhaiResultOf<Flow> {
        Ok(flow.strength(factor)?)
    }

    /// The same model, what its adapters change multiplied by a factor that depends on the time, as a closure.
    ///
    /// ```rhai
    /// let policy = flow("tiny/flux2").lora(#{ rank: 2 });
    /// let late = policy.strength(|t| t * t);
    /// late.velocity(late.noise(1, rng(0)), 0.5, late.encode("a small red ring on cream")).shape   //=> [1, 32, 8, 8]
    /// ```
    #[rhai_fn(name = "strength", return_raw)]
    pub fn strength_by_time(context: NativeCallContext, flow: Flow, factor: FnPtr) -> RhaiResultOf<Flow> {
        let callback = Callback::new(&context, "strength", factor);
        Ok(flow.strength_by_time(Arc::new(move |t| callback.call::<f64>((t,))))?)
    }

    /// The same model with its adapters before a time, and without them from then on: `up_to(k / n)` tunes the first `k` of `n`
    /// uniform steps.
    ///
    /// ```rhai
    /// let base = flow("tiny/flux2");
    /// let early = base.lora(#{ rank: 2 }).up_to(3 / 10);
    /// let x = base.noise(1, rng(0));
    /// let c = base.encode("a small red ring on cream");
    /// early.velocity(x, 0.3, c) == base.velocity(x, 0.3, c)   //=> true
    /// early.up_to(2)                                          //=> error: between 0 and 1, got 2
    /// ```
    #[rhai_fn(return_raw)]
    pub fn up_to(flow: Flow, time: f64) -> RhaiResultOf<Flow> {
        if !(0.0..=1.0).contains(&time) {
            let message = format!("up_to: the time must be between 0 and 1, got {time}");
            return Err(Error::new(Kind::Value, message).into());
        }
        Ok(flow.strength_by_time(Arc::new(move |t| Ok(if t < time - SAME_TIME { 1.0 } else { 0.0 })))?)
    }

    /// The same model with the adapters added into the weights, constant.
    ///
    /// ```rhai
    /// let policy = flow("tiny/flux2").lora(#{ rank: 2 });
    /// policy.merge()   //=> flow(tiny/flux2)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn merge(flow: Flow) -> RhaiResultOf<Flow> {
        Ok(flow.merge()?)
    }
}
