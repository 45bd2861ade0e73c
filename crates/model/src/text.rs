//! Prompts to embeddings: chat template, tokenizer, chosen hidden states of a Qwen3 (FLUX.2-Klein's text encoder).

use super::families::ModelOptions;
use crate::qwen3::{Qwen3, Qwen3Config, RopeParameters};
use amscript_align::flow::Condition;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file;
use amscript_base::memory;
use amscript_base::progress::Progress;
use amscript_nn::cost::Part;
use amscript_nn::source::Folder;
use amscript_nn::tokenizer::{Tokenizer, warn_of_cut};
use amscript_nn::weights::Weights;
use amscript_tensor::{D, DType, Device, Rng, Tensor};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// What a prompt becomes before the tokenizer: one user turn, thinking switched off.
pub fn render(prompt: &str) -> String {
    format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
}

/// [`render`] for libraries that read the template from the tokenizer's folder.
const CHAT_TEMPLATE: &str = "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
    + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}";

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Kind::File, format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    file::write_whole(path, text.as_bytes()).map_err(|e| unwritable(path, &e))
}

/// Sizes of a random encoder.
#[derive(Clone, Debug)]
pub struct RandomSizes {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub hidden: usize,
    /// Tokens per prompt.
    pub tokens: usize,
    /// Hidden states to concatenate.
    pub states: Vec<usize>,
}

impl RandomSizes {
    fn config(&self, vocab_size: usize) -> Qwen3Config {
        Qwen3Config {
            vocab_size,
            hidden_size: self.width,
            intermediate_size: self.hidden,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            head_dim: self.width / self.heads.max(1),
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_parameters: Some(RopeParameters { rope_theta: 1e6, rope_type: "default".into() }),
            rope_scaling: None,
            hidden_act: None,
            layer_types: None,
            use_sliding_window: None,
            sliding_window: None,
        }
    }
}

/// Prompts to embeddings, each prompt computed once. The network is read when a prompt first needs it.
pub struct TextEncoder {
    network: Mutex<Option<Arc<Qwen3>>>,
    config: Qwen3Config,
    weights: Weights,
    tokenizer: Tokenizer,
    padding: u32,
    tokens: usize,
    states: Vec<usize>,
    cache: Mutex<HashMap<String, (Tensor, Tensor)>>,
}

/// Tokens computed in one forward pass.
const CHUNK: usize = 1024;
/// Cached prompts are dropped when their embeddings pass this many bytes.
pub const CACHED_BYTES: usize = 2 << 30;

impl TextEncoder {
    /// From the `text_encoder` and `tokenizer` folders of a pipeline; `states` are the hidden states to concatenate, each prompt
    /// is padded or cut to `tokens`. Without a `dtype`: see [`Weights::usual_dtype`].
    pub fn open(
        folder: &Folder,
        tokenizer: &Folder,
        tokens: usize,
        states: &[usize],
        choices: &ModelOptions,
        device: &Device,
    ) -> Result<Self> {
        let archives = folder.archives("model")?;
        let dtype = choices.dtype.unwrap_or_else(|| Weights::usual_dtype(&archives));
        let weights = Weights::open(archives, dtype, device)?;
        let config = folder.json("config.json")?;
        weights.verify(|w| Qwen3::whole(w, &config))?;
        let weights = choices.trace.as_ref().map_or_else(|| weights.clone(), |trace| weights.traced(trace));
        Self::new(&weights, &config, Tokenizer::open(tokenizer)?, tokens, states)
    }

    /// From weights and their config.
    pub fn new(
        weights: &Weights,
        config: &Qwen3Config,
        tokenizer: Tokenizer,
        tokens: usize,
        states: &[usize],
    ) -> Result<Self> {
        if tokenizer.size() > config.vocab_size {
            bail!(Value, "qwen3: the tokenizer has {} tokens, the model {}", tokenizer.size(), config.vocab_size);
        }
        let padding = tokenizer.id("<|endoftext|>")?;
        let (config, weights, states) = (config.clone(), weights.clone(), states.to_vec());
        let encoder = Self {
            network: Mutex::default(),
            config,
            weights,
            tokenizer,
            padding,
            tokens,
            states,
            cache: Mutex::default(),
        };
        encoder.build(&encoder.weights.to_meta())?;
        Ok(encoder)
    }

    /// The layers that the features need.
    fn build(&self, weights: &Weights) -> Result<Qwen3> {
        Qwen3::new(weights, &self.config, self.states.iter().copied().max().unwrap_or(0))
    }

    /// The weights of the layers that the features need.
    pub fn part(&self) -> Result<Part> {
        let meta = self.weights.to_meta();
        self.build(&meta)?;
        Ok(Part { passing: true, ..Part::of("text encoder, layers needed", &meta) })
    }

    fn network(&self) -> Result<Arc<Qwen3>> {
        let mut network = self.network.lock();
        if let Some(network) = &*network {
            return Ok(network.clone());
        }
        Ok(network.insert(Arc::new(self.weights.build(|w| self.build(w))?)).clone())
    }

    /// Frees the network. Prompts seen before stay; a new one reads it again.
    pub fn unload(&self) {
        *self.network.lock() = None;
        self.weights.unload();
    }

    /// A random frozen encoder with a tokenizer trained on `texts`, scaled so that their features have unit deviation.
    pub fn random(texts: &[String], sizes: &RandomSizes, rng: &Rng) -> Result<Self> {
        let tokenizer = || Tokenizer::train_qwen(texts);
        let config = sizes.config(tokenizer()?.size());
        let weights = Qwen3::random(&config, rng)?;
        let encoder = Self::new(&weights, &config, tokenizer()?, sizes.tokens, &sizes.states)?;
        let factor = 1.0 / encoder.deviation(texts)?;
        // what writes to the residual stream; norms inside the layers keep everything else as it is
        let writers = ["embed_tokens.weight", "o_proj.weight", "down_proj.weight"];
        let scaled = weights.map(|name, tensor| match writers.iter().any(|writer| name.ends_with(writer)) {
            true => Ok((tensor * factor)?),
            false => Ok(tensor.clone()),
        })?;
        Self::new(&scaled, &config, tokenizer()?, sizes.tokens, &sizes.states)
    }

    /// Root mean square of the features of real tokens, over at most 256 texts spread evenly.
    fn deviation(&self, texts: &[String]) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        let spread: Vec<&String> = texts.iter().step_by(texts.len().div_ceil(256).max(1)).collect();
        for chunk in spread.chunks(self.chunk()) {
            let features = self.compute(chunk)?.1.sqr()?.mean(D::Minus1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            for (text, row) in chunk.iter().zip(features) {
                let length = self.ids(text)?.1;
                sum += row[..length].iter().sum::<f64>();
                count += length;
            }
        }
        Ok((sum / count.max(1) as f64).sqrt())
    }

    /// Numbers per token.
    pub fn features(&self) -> usize {
        self.states.len() * self.config.hidden_size
    }

    /// Tokens per prompt, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The hidden states that make the features.
    pub fn states(&self) -> &[usize] {
        &self.states
    }

    /// Writes the `text_encoder` and `tokenizer` folders of a pipeline, and what they need at call time in `amscript.json`.
    pub fn save(&self, pipeline: &Path, dtype: Option<DType>) -> Result<()> {
        let (encoder, tokenizer) = (pipeline.join("text_encoder"), pipeline.join("tokenizer"));
        for folder in [&encoder, &tokenizer] {
            file::make_folder(folder).map_err(|e| unwritable(folder, &e))?;
        }
        self.weights.save(&encoder.join("model.safetensors"), dtype)?;
        let mut config = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
            "attention_bias": false, "tie_word_embeddings": true, "max_position_embeddings": 1024});
        let sizes = serde_json::to_value(&self.config).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        if let (Value::Object(config), Value::Object(sizes)) = (&mut config, sizes) {
            config.extend(sizes);
        }
        write(&encoder.join("config.json"), &format!("{config:#}"))?;
        // A pipeline that begins here has dropped no prompts in training, so that there is nothing to guide away from.
        let call = json!({"max_sequence_length": self.tokens, "text_encoder_out_layers": self.states, "steps": 20, "guidance": 1.0});
        write(&pipeline.join("amscript.json"), &format!("{call:#}\n"))?;
        self.tokenizer.save(&tokenizer)?;
        let settings = json!({"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>",
            "eos_token": "<|im_end|>", "unk_token": null, "add_prefix_space": false});
        write(&tokenizer.join("tokenizer_config.json"), &format!("{settings:#}"))?;
        write(&tokenizer.join("chat_template.jinja"), CHAT_TEMPLATE)
    }

    /// Ids of a rendered prompt, right-padded or cut to the fixed length, and how many of them are real.
    pub fn ids(&self, prompt: &str) -> Result<(Vec<u32>, usize)> {
        let mut ids = self.tokenizer.ids(&render(prompt), false)?;
        memory::room(memory::bytes(&[self.tokens, 64], size_of::<f32>()), || {
            format!("{} tokens of a prompt", self.tokens)
        })?;
        warn_of_cut(prompt, ids.len(), self.tokens);
        ids.truncate(self.tokens);
        let length = ids.len();
        ids.resize(self.tokens, self.padding);
        Ok((ids, length))
    }

    /// Text, ids `[b, tokens]` and embeddings `[b, tokens, features]` of the prompts, in order.
    pub fn encode(&self, prompts: &[String]) -> Result<Condition> {
        let mut cache = self.cache.lock();
        let mut fresh: Vec<&String> = Vec::new();
        for prompt in prompts {
            if !cache.contains_key(prompt) && !fresh.contains(&prompt) {
                fresh.push(prompt);
            }
        }
        if let Some((_, row)) = cache.values().next()
            && (cache.len() + fresh.len()) * row.elem_count() * row.dtype().size_in_bytes() > CACHED_BYTES
        {
            cache.clear();
            fresh = prompts.iter().collect();
        }
        let progress = Progress::new("prompts", 0, fresh.len());
        for (done, chunk) in fresh.chunks(self.chunk()).enumerate() {
            progress.tick(done * self.chunk());
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
        let condition = Condition::of_text(prompts).with(Condition::IDS, stack(|r| &r.0)?);
        Ok(condition.with(Condition::EMBEDDINGS, stack(|r| &r.1)?))
    }

    /// Prompts computed in one forward pass.
    fn chunk(&self) -> usize {
        (CHUNK / self.tokens.max(1)).max(1)
    }

    fn compute(&self, prompts: &[&String]) -> Result<(Tensor, Tensor)> {
        let network = self.network()?;
        let rows = prompts.iter().map(|prompt| self.ids(prompt)).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = rows.iter().map(|(_, length)| *length).collect();
        let ids: Vec<u32> = rows.into_iter().flat_map(|(ids, _)| ids).collect();
        let ids = Tensor::from_vec(ids, (prompts.len(), self.tokens), network.device())?;
        let states = network.hidden_states(&ids, &lengths)?;
        let chosen: Vec<&Tensor> = self.states.iter().map(|&i| &states[i]).collect();
        Ok((ids, Tensor::cat(&chosen, 2)?.to_dtype(self.weights.dtype())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(pipeline: &Folder, tokens: usize, states: &[usize]) -> TextEncoder {
        let [encoder, tokenizer] = ["text_encoder", "tokenizer"].map(|part| pipeline.sub(part).unwrap());
        TextEncoder::open(&encoder, &tokenizer, tokens, states, &ModelOptions::default(), &Device::Cpu).unwrap()
    }

    /// Case `flux2`: prompts in `case.json`, ids, mask and embeddings from transformers.
    #[test]
    fn golden_prompts() {
        let folder = Folder::disk(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/flux2"));
        #[derive(serde::Deserialize)]
        struct Case {
            prompts: Vec<String>,
            max_sequence_length: usize,
            text_encoder_out_layers: Vec<usize>,
        }
        let case: Case = folder.json("case.json").unwrap();
        let expected: HashMap<String, Tensor> =
            amscript_tensor::file::load(folder.path().unwrap().join("expected.safetensors"), &Device::Cpu).unwrap();
        let states = &case.text_encoder_out_layers;
        let encoder = open(&folder, case.max_sequence_length, states);
        let got = encoder.encode(&case.prompts).unwrap();
        let ids = got.need("ids").unwrap().to_dtype(DType::I64).unwrap().to_vec2::<i64>().unwrap();
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
        let error = largest(&(got.need("embeddings").unwrap() - wanted).unwrap()) / largest(wanted);
        assert!(error < 1e-5, "relative error {error}");
        encoder.unload();
        let again = encoder.encode(&case.prompts[..1]).unwrap();
        let again = again.need("embeddings").unwrap();
        assert!(largest(&(again - wanted.narrow(0, 0, 1).unwrap()).unwrap()) / largest(wanted) < 1e-5);
        assert!(encoder.network.lock().is_none(), "a prompt seen before needs no network");
        assert!(encoder.encode(&["another".to_string()]).is_ok());
    }

    #[test]
    fn random_encoder_has_unit_features_and_survives_its_files() {
        let texts =
            ["a small red ring at the left on cream", "a large blue square at the right on sky"].map(String::from);
        let sizes = RandomSizes { width: 16, layers: 3, heads: 2, hidden: 24, tokens: 24, states: vec![1, 2] };
        let encoder = TextEncoder::random(&texts, &sizes, &Rng::new(0)).unwrap();
        assert!((encoder.deviation(&texts).unwrap() - 1.0).abs() < 1e-4);
        let folder = tempfile::tempdir().unwrap();
        encoder.save(folder.path(), None).unwrap();
        let read = open(&Folder::disk(folder.path()), 24, &[1, 2]);
        let rows = |e: &TextEncoder| {
            e.encode(&texts).unwrap().need("embeddings").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(rows(&encoder), rows(&read));
        assert_eq!(rows(&read).len(), 2 * 24 * read.features());
    }

    #[test]
    fn the_longest_caption_of_the_shapes_world_fits_the_tiny_encoder() {
        use amscript_nn::data::caption::{EXAMPLE, Scene};
        let mut texts: Vec<String> = Scene::all().iter().map(Scene::caption).collect();
        texts.push(EXAMPLE.into());
        let sizes = RandomSizes { width: 16, layers: 2, heads: 1, hidden: 16, tokens: 32, states: vec![1] };
        let encoder = TextEncoder::random(&texts, &sizes, &Rng::new(0)).unwrap();
        assert_eq!(encoder.ids(EXAMPLE).unwrap().1, 12 + 12); // one token per word, twelve of the template
    }
}
