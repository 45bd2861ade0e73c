//! Chapter `text`: prompts to embeddings.

use super::reward::texts;
use super::*;
use crate::options;
use amscript_align::flow::Condition;
use amscript_model::text::{RandomSizes, TextEncoder};
use amscript_tensor::{DType, Rng};

options! {
    /// Sizes of a random text encoder.
    pub struct EncoderOptions {
        /// Numbers per token in each hidden state.
        width: usize = 48,
        /// Layers.
        layers: usize = 4,
        /// Attention heads.
        heads: usize = 3,
        /// Width inside the MLPs.
        hidden: usize = 96,
        /// Tokens per prompt, chat template and padding included.
        tokens: usize = 32,
        /// Hidden states that make the features.
        states: Vec<usize> = vec![1, 2, 3],
        /// Seed of the weights.
        seed: u64 = 0,
    }
}

/// A text encoder as scripts hold it.
#[derive(Clone)]
pub struct Encoder(Arc<TextEncoder>);

/// Text encoders outside a flow: what pretraining needs.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod text {
    use super::*;

    pub type TextEncoder = super::Encoder;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_encoder(encoder: &mut TextEncoder) -> String {
        format!("text_encoder({} tokens, {} features)", encoder.0.tokens(), encoder.0.features())
    }

    /// A random frozen Qwen3 with a tokenizer made for `texts`; its features have unit deviation.
    ///
    /// Random features are enough for a flow to learn a small language, so no language model needs training.
    ///
    /// ```rhai
    /// random_text_encoder(["a red ring", "a blue square"])   //=> text_encoder(32 tokens, 144 features)
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn random_text_encoder(texts: Dynamic, options: Map) -> RhaiResultOf<TextEncoder> {
        let o = EncoderOptions::parse("random_text_encoder", options)?;
        let layers = option::layers("random_text_encoder", "layers", o.layers)?;
        let (width, heads, hidden) = (o.width, o.heads, o.hidden);
        let sizes = RandomSizes { width, layers, heads, hidden, tokens: o.tokens, states: o.states };
        let texts = super::texts(texts, 1, "random_text_encoder")?;
        Ok(super::Encoder(Arc::new(amscript_model::text::TextEncoder::random(&texts, &sizes, &Rng::new(o.seed))?)))
    }

    /// The condition of prompts: their texts, token ids `[n, tokens]` and embeddings `[n, tokens, features]`.
    ///
    /// ```rhai
    /// let encoder = random_text_encoder(["a red ring", "a blue square"]);
    /// let c = encoder.encode(["a blue ring"]);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn encode(encoder: TextEncoder, prompts: Dynamic) -> RhaiResultOf<Condition> {
        Ok(encoder.0.encode(&texts(prompts, 1, "encode")?)?)
    }

    /// How many of a prompt's tokens are real.
    ///
    /// ```rhai
    /// random_text_encoder(["a red ring"]).count("a red ring")   //=> 15
    /// ```
    #[rhai_fn(return_raw)]
    pub fn count(encoder: TextEncoder, prompt: &str) -> RhaiResultOf<i64> {
        Ok(encoder.0.ids(prompt)?.1 as i64)
    }

    /// Writes the `text_encoder` and `tokenizer` folders of a pipeline, in f16, below a folder of the run.
    ///
    /// ```rhai no_run
    /// random_text_encoder(["a red ring", "a blue square"]).save(".");
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn save(context: NativeCallContext, encoder: TextEncoder, pipeline: &str) -> RhaiResultOf<()> {
        Ok(encoder.0.save(&Session::of(&context).writable(pipeline)?, Some(DType::F16))?)
    }
}
