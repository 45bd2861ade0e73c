//! Qwen3 as a text encoder: chosen hidden states of a chat-formatted prompt, concatenated per token (FLUX.2-Klein).

use crate::bail;
use crate::error::Result;
use crate::model::Condition;
use crate::model::source::Folder;
use crate::model::tokenizer::Tokenizer;
use crate::nn::linear::Linear;
use crate::nn::weights::{Init, Weights};
use crate::tensor::{DType, Device, Tensor, op};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// `config.json` of a transformers folder; the rope base stands at the top level or, from transformers 5 on, one level down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<RopeParameters>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RopeParameters {
    pub rope_theta: f64,
    pub rope_type: String,
}

fn default_eps() -> f64 {
    1e-6
}

impl Config {
    fn theta(&self) -> Result<f64> {
        match (&self.rope_parameters, self.rope_theta) {
            (Some(rope), _) if rope.rope_type != "default" => {
                bail!(Value, "qwen3: expected rope type `default`, got `{}`", rope.rope_type)
            }
            (Some(rope), _) => Ok(rope.rope_theta),
            (None, Some(theta)) => Ok(theta),
            (None, None) => bail!(Missing, "qwen3: the config must give `rope_theta`"),
        }
    }

    fn check(&self) -> Result<()> {
        let (heads, shared) = (self.num_attention_heads, self.num_key_value_heads);
        if shared == 0 || !heads.is_multiple_of(shared) || !self.head_dim.is_multiple_of(2) {
            bail!(
                Value,
                "qwen3: expected heads divisible by key-value heads and an even head size, got {heads}, {shared}, {}",
                self.head_dim
            );
        }
        Ok(())
    }
}

struct Layer {
    norm_1: Tensor,
    norm_2: Tensor,
    norm_q: Tensor,
    norm_k: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The layers of a Qwen3 up to the last hidden state that is asked for.
pub struct Qwen3 {
    config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
}

impl Qwen3 {
    /// The first `layers` layers; later ones, the final norm and the head are not read.
    pub fn new(weights: &Weights, config: &Config, layers: usize) -> Result<Self> {
        config.check()?;
        if layers >= config.num_hidden_layers {
            bail!(
                Value,
                "qwen3: hidden states 1 to {} can be had before the final norm, got {layers}",
                config.num_hidden_layers.saturating_sub(1)
            );
        }
        let model = weights.pp("model");
        let embedding =
            model.get("embed_tokens.weight", &[config.vocab_size, config.hidden_size], Init::Normal(1.0))?;
        let layers = (0..layers).map(|i| Layer::new(&model.pp("layers").pp(i), config)).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), embedding, layers })
    }

    /// Hidden state 0 (the embeddings) and the residual stream after each layer, `[b, s, width]` each, for ids `[b, s]` whose
    /// first `lengths[i]` are real. Keys are hidden from earlier tokens, and padding from all; padded positions are computed.
    pub fn hidden_states(&self, ids: &Tensor, lengths: &[usize]) -> Result<Vec<Tensor>> {
        let (batch, tokens) = ids.dims2()?;
        let width = self.config.hidden_size;
        let mut x = self.embedding.index_select(&ids.flatten_all()?, 0)?.reshape((batch, tokens, width))?;
        let mask = mask(lengths, tokens, x.dtype(), x.device())?;
        let (cos, sin) = rotation(&self.config, tokens, x.dtype(), x.device())?;
        let mut states = vec![x.clone()];
        for layer in &self.layers {
            x = layer.forward(&x, &mask, (&cos, &sin), &self.config)?;
            states.push(x.clone());
        }
        Ok(states)
    }
}

impl Layer {
    fn new(w: &Weights, c: &Config) -> Result<Self> {
        let (heads, shared) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (attention, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let norm = |w: &Weights, name: &str, width| w.get(&format!("{name}.weight"), &[width], Init::Ones);
        let linear = |w: &Weights, name: &str, inner, out| {
            w.pp(name).linear_from(inner, out, false, Init::Normal(1.0 / (inner as f64).sqrt()))
        };
        Ok(Self {
            norm_1: norm(w, "input_layernorm", c.hidden_size)?,
            norm_2: norm(w, "post_attention_layernorm", c.hidden_size)?,
            norm_q: norm(&attention, "q_norm", c.head_dim)?,
            norm_k: norm(&attention, "k_norm", c.head_dim)?,
            query: linear(&attention, "q_proj", c.hidden_size, heads)?,
            key: linear(&attention, "k_proj", c.hidden_size, shared)?,
            value: linear(&attention, "v_proj", c.hidden_size, shared)?,
            out: linear(&attention, "o_proj", heads, c.hidden_size)?,
            gate: linear(&mlp, "gate_proj", c.hidden_size, c.intermediate_size)?,
            up: linear(&mlp, "up_proj", c.hidden_size, c.intermediate_size)?,
            down: linear(&mlp, "down_proj", c.intermediate_size, c.hidden_size)?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, (cos, sin): (&Tensor, &Tensor), c: &Config) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let eps = c.rms_norm_eps;
        let h = op::rms_norm(x, &self.norm_1, eps)?;
        let heads = |y: Tensor, n: usize| y.reshape((batch, tokens, n, c.head_dim));
        let turned = |y: Tensor, norm: &Tensor| op::rope_halves(&op::rms_norm(&y, norm, eps)?, cos, sin);
        let q = turned(heads(self.query.forward(&h)?, c.num_attention_heads)?, &self.norm_q)?;
        let k = turned(heads(self.key.forward(&h)?, c.num_key_value_heads)?, &self.norm_k)?;
        let v = heads(self.value.forward(&h)?, c.num_key_value_heads)?;
        let attended = op::attention(&q, &k, &v, 1.0 / (c.head_dim as f64).sqrt(), Some(mask))?;
        let attended = attended.reshape((batch, tokens, c.num_attention_heads * c.head_dim))?;
        let x = (x + self.out.forward(&attended)?)?;
        let h = op::rms_norm(&x, &self.norm_2, eps)?;
        let inner = (op::silu(&self.gate.forward(&h)?)? * self.up.forward(&h)?)?;
        Ok((&x + self.down.forward(&inner)?)?)
    }
}

/// Additive mask `[b, 1, s, s]`: query i sees the real keys up to i.
fn mask(lengths: &[usize], tokens: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mut values = Vec::with_capacity(lengths.len() * tokens * tokens);
    for &length in lengths {
        for i in 0..tokens {
            values.extend((0..tokens).map(|j| if j <= i && j < length { 0f32 } else { f32::NEG_INFINITY }));
        }
    }
    Ok(Tensor::from_vec(values, (lengths.len(), 1, tokens, tokens), &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)?)
}

/// Cosine and sine of position times frequency, `[s, head / 2]` each.
fn rotation(config: &Config, tokens: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
    let (half, theta) = (config.head_dim / 2, config.theta()?);
    let angle = |n: usize| (n / half) as f64 * theta.powf(-((n % half) as f64) / half as f64);
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = (0..tokens * half).map(|n| f(angle(n))).collect();
        Ok(Tensor::from_vec(values, (tokens, half), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

/// What a prompt becomes before the tokenizer: one user turn, thinking switched off.
pub fn render(prompt: &str) -> String {
    format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
}

/// Prompts to embeddings, each prompt computed once.
pub struct TextEncoder {
    model: Qwen3,
    tokenizer: Tokenizer,
    padding: u32,
    tokens: usize,
    states: Vec<usize>,
    cache: Mutex<HashMap<String, (Tensor, Tensor)>>,
}

/// Prompts computed in one forward pass.
const CHUNK: usize = 32;
/// Cached prompts are dropped when their embeddings pass this many numbers.
const CACHED_NUMBERS: usize = 1 << 28;

impl TextEncoder {
    /// From the pipeline's `text_encoder` and `tokenizer` folders; `states` are the hidden states to concatenate, each prompt is
    /// padded or cut to `tokens`.
    pub fn open(pipeline: &Folder, tokens: usize, states: &[usize], dtype: DType, device: &Device) -> Result<Self> {
        let folder = pipeline.sub("text_encoder")?;
        let weights = folder.weights("model", dtype, device)?;
        Self::new(&weights, &folder.json("config.json")?, Tokenizer::open(&pipeline.sub("tokenizer")?)?, tokens, states)
    }

    /// From weights and their config.
    pub fn new(
        weights: &Weights,
        config: &Config,
        tokenizer: Tokenizer,
        tokens: usize,
        states: &[usize],
    ) -> Result<Self> {
        let model = Qwen3::new(weights, config, states.iter().copied().max().unwrap_or(0))?;
        if tokenizer.size() > config.vocab_size {
            bail!(Value, "qwen3: the tokenizer has {} tokens, the model {}", tokenizer.size(), config.vocab_size);
        }
        let padding = tokenizer.id("<|endoftext|>")?;
        Ok(Self { model, tokenizer, padding, tokens, states: states.to_vec(), cache: Mutex::default() })
    }

    /// Ids of a rendered prompt, right-padded or cut to the fixed length, and how many of them are real.
    pub fn ids(&self, prompt: &str) -> Result<(Vec<u32>, usize)> {
        let mut ids = self.tokenizer.ids(&render(prompt), false)?;
        ids.truncate(self.tokens);
        let length = ids.len();
        ids.resize(self.tokens, self.padding);
        Ok((ids, length))
    }

    /// Text, ids `[b, tokens]` and embeddings `[b, tokens, features]` of the prompts, in order.
    pub fn encode(&self, prompts: &[String]) -> Result<Condition> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh: Vec<&String> = Vec::new();
        for prompt in prompts {
            if !cache.contains_key(prompt) && !fresh.contains(&prompt) {
                fresh.push(prompt);
            }
        }
        if let Some((_, row)) = cache.values().next()
            && (cache.len() + fresh.len()) * row.elem_count() > CACHED_NUMBERS
        {
            cache.clear();
            fresh = prompts.iter().collect();
        }
        for chunk in fresh.chunks(CHUNK) {
            let (ids, features) = self.compute(chunk)?;
            for (i, prompt) in chunk.iter().enumerate() {
                cache.insert(prompt.to_string(), (ids.get(i)?, features.get(i)?));
            }
        }
        let rows: Vec<&(Tensor, Tensor)> = prompts.iter().filter_map(|prompt| cache.get(prompt)).collect();
        let stack = |pick: fn(&(Tensor, Tensor)) -> &Tensor| {
            Tensor::stack(&rows.iter().map(|row| pick(row)).collect::<Vec<_>>(), 0)
        };
        if rows.is_empty() {
            bail!(Value, "encode: expected at least one prompt, got none");
        }
        Ok(Condition {
            text: prompts.to_vec(),
            ids: Some(stack(|r| &r.0)?),
            embeddings: Some(stack(|r| &r.1)?),
            labels: None,
        })
    }

    fn compute(&self, prompts: &[&String]) -> Result<(Tensor, Tensor)> {
        let rows = prompts.iter().map(|prompt| self.ids(prompt)).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = rows.iter().map(|(_, length)| *length).collect();
        let ids: Vec<u32> = rows.into_iter().flat_map(|(ids, _)| ids).collect();
        let ids = Tensor::from_vec(ids, (prompts.len(), self.tokens), self.model.embedding.device())?;
        let states = self.model.hidden_states(&ids, &lengths)?;
        let chosen: Vec<&Tensor> = self.states.iter().map(|&i| &states[i]).collect();
        Ok((ids, Tensor::cat(&chosen, 2)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Case `flux2`: prompts in `case.json`, ids, mask and embeddings from transformers.
    #[test]
    fn golden_prompts() {
        let folder = Folder::disk(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/flux2"));
        #[derive(Deserialize)]
        struct Case {
            prompts: Vec<String>,
            max_sequence_length: usize,
            text_encoder_out_layers: Vec<usize>,
        }
        let case: Case = folder.json("case.json").unwrap();
        let expected: HashMap<String, Tensor> =
            candle_core::safetensors::load(folder.path().unwrap().join("expected.safetensors"), &Device::Cpu).unwrap();
        let states = &case.text_encoder_out_layers;
        let encoder = TextEncoder::open(&folder, case.max_sequence_length, states, DType::F32, &Device::Cpu).unwrap();
        let got = encoder.encode(&case.prompts).unwrap();
        let ids = got.ids.unwrap().to_dtype(DType::I64).unwrap().to_vec2::<i64>().unwrap();
        assert_eq!(ids, expected["out.prompt_ids"].to_vec2::<i64>().unwrap());
        let mask: Vec<Vec<i64>> = case
            .prompts
            .iter()
            .map(|p| encoder.ids(p).unwrap().1)
            .map(|n| (0..64).map(|i| i64::from(i < n)).collect())
            .collect();
        assert_eq!(mask, expected["out.prompt_mask"].to_vec2::<i64>().unwrap());
        let wanted = &expected["out.prompt_embeds"];
        let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let error = largest(&(got.embeddings.unwrap() - wanted).unwrap()) / largest(wanted);
        assert!(error < 1e-5, "relative error {error}");
    }
}
