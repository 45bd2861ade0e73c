//! The Qwen3 language model as far as its hidden states; no head, no sampling.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::linear::Linear;
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::{DType, Device, Rng, Tensor, op};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `config.json` of a transformers folder; the rope base stands at the top level or, from transformers 5 on, one level down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Qwen3Config {
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_act: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_types: Option<Vec<String>>,
    #[serde(default, skip_serializing)]
    pub use_sliding_window: Option<bool>,
    #[serde(default = "default_window", skip_serializing)]
    pub sliding_window: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RopeParameters {
    pub rope_theta: f64,
    #[serde(default = "default_rope")]
    pub rope_type: String,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_rope() -> String {
    "default".into()
}

fn default_window() -> Option<usize> {
    Some(4096)
}

impl Qwen3Config {
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
        self.theta()?;
        self.check_kind()
    }

    /// Refuses what would change numbers and is not done here.
    fn check_kind(&self) -> Result<()> {
        let scaling = self.rope_scaling.as_ref();
        let scaling = scaling.and_then(|scaling| scaling.get("rope_type").or_else(|| scaling.get("type")));
        if let Some(kind) = scaling.filter(|kind| !kind.is_null() && **kind != "default") {
            bail!(Value, "qwen3: expected no `rope_scaling` or one of type `default`, got type {kind}");
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| !["silu", "swish"].contains(act)) {
            bail!(Value, "qwen3: expected hidden_act `silu`, got `{act}`");
        }
        let slides = self.use_sliding_window == Some(true) && self.sliding_window.is_some();
        match &self.layer_types {
            Some(types) => match types.iter().find(|kind| *kind != "full_attention") {
                Some(kind) => bail!(Value, "qwen3: expected layer_types `full_attention`, got `{kind}`"),
                None => Ok(()),
            },
            None if slides => bail!(Value, "qwen3: expected `use_sliding_window` false, got true"),
            None => Ok(()),
        }
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
    config: Qwen3Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    compute: DType,
}

impl Qwen3 {
    /// The first `layers` layers; later ones, the final norm and the head are not read.
    pub fn new(weights: &Weights, config: &Qwen3Config, layers: usize) -> Result<Self> {
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
        Ok(Self { config: config.clone(), embedding, layers, compute: weights.compute() })
    }

    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Draws a whole random model, the layers and norm behind the last used hidden state included, so that its file is complete.
    pub fn random(config: &Qwen3Config, rng: &Rng) -> Result<Weights> {
        let weights = Weights::random(rng, DType::F32, &Device::Cpu);
        Self::whole(&weights, config)?;
        Ok(weights)
    }

    /// Asks for every tensor of a whole model, its head included where it has one of its own.
    pub fn whole(weights: &Weights, config: &Qwen3Config) -> Result<()> {
        Self::new(weights, config, 0)?;
        for i in 0..config.num_hidden_layers {
            Layer::new(&weights.pp("model.layers").pp(i), config)?;
        }
        weights.get("model.norm.weight", &[config.hidden_size], Init::Ones)?;
        weights.skip("lm_head.weight");
        Ok(())
    }

    /// Hidden state 0 (the embeddings) and the residual stream after each layer, `[b, s, width]` each, for ids `[b, s]` whose
    /// first `lengths[i]` are real. Keys are hidden from earlier tokens, and padding from all; padded positions are computed.
    pub fn hidden_states(&self, ids: &Tensor, lengths: &[usize]) -> Result<Vec<Tensor>> {
        let (batch, tokens) = ids.dims2()?;
        let width = self.config.hidden_size;
        let x = self.embedding.index_select(&ids.flatten_all()?, 0)?.to_dtype(self.compute)?;
        let mut x = x.reshape((batch, tokens, width))?;
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
    fn new(w: &Weights, c: &Qwen3Config) -> Result<Self> {
        let (heads, shared) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (attention, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let norm = |w: &Weights, name: &str, width| w.get(&format!("{name}.weight"), &[width], Init::Ones);
        let normal = |gain: f64, inner: usize| Init::Normal(gain * (inner as f64).powf(-0.5));
        let linear =
            |w: &Weights, name: &str, inner, out| w.pp(name).linear_from(inner, out, false, normal(1.0, inner));
        Ok(Self {
            norm_1: norm(w, "input_layernorm", c.hidden_size)?,
            norm_2: norm(w, "post_attention_layernorm", c.hidden_size)?,
            norm_q: norm(&attention, "q_norm", c.head_dim)?,
            norm_k: norm(&attention, "k_norm", c.head_dim)?,
            query: linear(&attention, "q_proj", c.hidden_size, heads)?,
            key: linear(&attention, "k_proj", c.hidden_size, shared)?,
            value: linear(&attention, "v_proj", c.hidden_size, shared)?,
            // random attention averages many tokens; the gain makes up for what that loses
            out: attention.pp("o_proj").linear_from(heads, c.hidden_size, false, normal(3.0, heads))?,
            gate: linear(&mlp, "gate_proj", c.hidden_size, c.intermediate_size)?,
            up: linear(&mlp, "up_proj", c.hidden_size, c.intermediate_size)?,
            down: linear(&mlp, "down_proj", c.intermediate_size, c.hidden_size)?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, (cos, sin): (&Tensor, &Tensor), c: &Qwen3Config) -> Result<Tensor> {
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
        &x + self.down.forward(&inner)?
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
    Tensor::from_vec(values, (lengths.len(), 1, tokens, tokens), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Cosine and sine of position times frequency, `[s, head / 2]` each.
fn rotation(config: &Qwen3Config, tokens: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
    let (half, theta) = (config.head_dim / 2, config.theta()?);
    let angle = |n: usize| (n / half) as f64 * theta.powf(-((n % half) as f64) / half as f64);
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = (0..tokens * half).map(|n| f(angle(n))).collect();
        Tensor::from_vec(values, (tokens, half), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(field: &str, value: Value) -> Result<()> {
        let mut config = json!({ "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "rope_theta": 1e6 });
        config[field] = value;
        serde_json::from_value::<Qwen3Config>(config).unwrap().check()
    }

    #[test]
    fn what_changes_numbers_is_refused() {
        for (field, value, got) in [
            ("rope_scaling", json!({ "type": "yarn", "factor": 4.0 }), "got type \"yarn\""),
            ("rope_scaling", json!({ "rope_type": "linear", "factor": 2.0 }), "got type \"linear\""),
            ("rope_parameters", json!({ "rope_theta": 1e6, "rope_type": "yarn" }), "got `yarn`"),
            ("hidden_act", json!("gelu"), "got `gelu`"),
            ("layer_types", json!(["full_attention", "sliding_attention"]), "got `sliding_attention`"),
            ("use_sliding_window", json!(true), "got true"),
            ("rope_theta", Value::Null, "must give `rope_theta`"),
        ] {
            let error = checked(field, value).unwrap_err();
            assert!(error.message.ends_with(got), "{error}");
        }
        for (field, value) in [
            ("rope_scaling", Value::Null),
            ("rope_scaling", json!({ "rope_type": "default" })),
            ("rope_parameters", json!({ "rope_theta": 1e6 })),
            ("hidden_act", json!("swish")),
            ("layer_types", json!(["full_attention", "full_attention"])),
            ("use_sliding_window", json!(false)),
        ] {
            checked(field, value).unwrap();
        }
    }
}
