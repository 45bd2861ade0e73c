//! BERT whose every layer also attends to an image, as in BLIP (arXiv:2201.12086) and ImageReward; norms follow the sums.

use crate::linear::Linear;
use crate::vit::Norm;
use crate::weights::{Init, Weights};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::op;
use amscript_tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

/// What is added to the scores of padding.
const HIDDEN: f32 = -10000.0;

/// `med_config.json`; the fields without a default are BERT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    #[serde(default = "BertConfig::eps")]
    pub layer_norm_eps: f64,
    /// Published files say 768 whatever the image tower is: the tower's width counts, and is written when a model is saved.
    #[serde(default)]
    pub encoder_width: usize,
}

impl BertConfig {
    fn eps() -> f64 {
        1e-12
    }

    /// BERT base with the two tokens that BLIP adds, the size of the published ImageReward.
    pub fn base() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            vocab_size: 30524,
            max_position_embeddings: 512,
            layer_norm_eps: Self::eps(),
            encoder_width: 1024,
        }
    }
}

/// Attention with what follows it: the sum and its norm.
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm: Norm,
    heads: usize,
}

impl Attention {
    /// Of queries of BERT's width to keys and values made from `inner` features.
    fn new(w: &Weights, c: &BertConfig, inner: usize) -> Result<Self> {
        let (own, output, d) = (w.pp("self"), w.pp("output"), c.hidden_size);
        Ok(Self {
            query: own.pp("query").linear(d, d, true)?,
            key: own.pp("key").linear(inner, d, true)?,
            value: own.pp("value").linear(inner, d, true)?,
            out: output.pp("dense").linear(d, d, true)?,
            norm: Norm::new(&output.pp("LayerNorm"), d, c.layer_norm_eps)?,
            heads: c.num_attention_heads,
        })
    }

    /// `x [b, n, width]` looks at `at [b, m, inner]`.
    fn forward(&self, x: &Tensor, at: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let heads = |y: Tensor| -> Result<Tensor> {
            let (batch, tokens, width) = y.dims3()?;
            op::reshape(&y, (batch, tokens, self.heads, width / self.heads))
        };
        let (q, k, v) =
            (heads(self.query.forward(x)?)?, heads(self.key.forward(at)?)?, heads(self.value.forward(at)?)?);
        let scale = (q.dim(3)? as f64).powf(-0.5);
        let seen = op::reshape(&op::attention(&q, &k, &v, scale, mask)?, x.dims())?;
        self.norm.forward(&(self.out.forward(&seen)? + x)?)
    }
}

struct Layer {
    text: Attention,
    image: Attention,
    grow: Linear,
    shrink: Linear,
    norm: Norm,
}

impl Layer {
    fn new(w: &Weights, c: &BertConfig, image_width: usize) -> Result<Self> {
        let (d, output) = (c.hidden_size, w.pp("output"));
        Ok(Self {
            text: Attention::new(&w.pp("attention"), c, d)?,
            image: Attention::new(&w.pp("crossattention"), c, image_width)?,
            grow: w.pp("intermediate.dense").linear(d, c.intermediate_size, true)?,
            shrink: output.pp("dense").linear(c.intermediate_size, d, true)?,
            norm: Norm::new(&output.pp("LayerNorm"), d, c.layer_norm_eps)?,
        })
    }

    /// Some or all tokens `x [b k, q, width]` of texts `[b k, n, width]` beside `image [b, m, image width]`: k texts in a row
    /// belong to one image.
    fn forward(&self, x: &Tensor, texts: &Tensor, mask: &Tensor, image: &Tensor) -> Result<Tensor> {
        let x = self.text.forward(x, texts, Some(mask))?;
        // every token sees the whole image, so the texts of one image are one sequence to it
        let (rows, tokens, width) = x.dims3()?;
        let images = image.dim(0)?;
        let joined = op::reshape(&x, (images, rows * tokens / images, width))?;
        let x = op::reshape(&self.image.forward(&joined, image, None)?, (rows, tokens, width))?;
        let h = self.shrink.forward(&op::gelu_erf(&self.grow.forward(&x)?)?)?;
        self.norm.forward(&(h + x)?)
    }
}

/// `embeddings.*` and `encoder.layer.N.*`; no token types, no pooler.
pub struct Bert {
    /// `[vocabulary, width]`
    words: Tensor,
    /// `[most positions, width]`
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Bert {
    pub fn new(w: &Weights, c: &BertConfig, image_width: usize) -> Result<Self> {
        if c.num_attention_heads == 0 || !c.hidden_size.is_multiple_of(c.num_attention_heads) {
            bail!(
                Value,
                "bert: expected a hidden size divisible by the heads, got {} and {}",
                c.hidden_size,
                c.num_attention_heads
            );
        }
        let (d, at) = (c.hidden_size, w.pp("embeddings"));
        let init = Init::Normal((d as f64).powf(-0.5));
        at.skip("position_ids"); // 0, 1, 2, ..
        Ok(Self {
            words: at.get("word_embeddings.weight", &[c.vocab_size, d], init)?,
            positions: at.get("position_embeddings.weight", &[c.max_position_embeddings, d], init)?,
            norm: Norm::new(&at.pp("LayerNorm"), d, c.layer_norm_eps)?,
            layers: (0..c.num_hidden_layers)
                .map(|i| Layer::new(&w.pp("encoder.layer").pp(i), c, image_width))
                .collect::<Result<_>>()?,
        })
    }

    /// Last states `[b k, width]` of the first tokens of texts, given as rows of ids, beside image tokens
    /// `[b, m, image width]`: k texts in a row belong to one image. Shorter texts are padded and their padding is not seen.
    pub fn first_states(&self, texts: &[Vec<u32>], image: &Tensor) -> Result<Tensor> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        if longest == 0 || longest > self.positions.dim(0)? {
            bail!(Shape, "bert: expected texts of 1 to {} tokens, got {longest}", self.positions.dim(0)?);
        }
        let ids: Vec<u32> =
            texts.iter().flat_map(|text| (0..longest).map(|i| text.get(i).copied().unwrap_or(0))).collect();
        let (rows, width) = (texts.len(), self.words.dim(1)?);
        let ids = Tensor::new(ids, image.device())?;
        let x = self.words.index_select(&ids, 0)?.reshape((rows, longest, width))?;
        let x = x.broadcast_add(&self.positions.narrow(0, 0, longest)?)?.to_dtype(image.dtype())?;
        let mut x = self.norm.forward(&x)?;
        let mask = padding(texts, longest, x.dtype(), x.device())?;
        for (i, layer) in self.layers.iter().enumerate() {
            // of the last layer's states one is asked for
            let tokens = if i + 1 == self.layers.len() { 1 } else { longest };
            let asked = op::narrow(&x, 1, 0, tokens)?;
            x = layer.forward(&asked, &x, &mask.narrow(2, 0, tokens)?.contiguous()?, image)?;
        }
        op::reshape(&op::narrow(&x, 1, 0, 1)?, (rows, width))
    }
}

/// Additive mask `[rows, 1, n, n]` that hides what follows the end of each text.
fn padding(texts: &[Vec<u32>], n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let keys = texts.iter().flat_map(|text| (0..n).map(|i| if i < text.len() { 0.0 } else { HIDDEN })).collect();
    let keys = Tensor::from_vec(keys, (texts.len(), 1, 1, n), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
    keys.expand((texts.len(), 1, n, n))?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Rng;
    use amscript_tensor::grad::gradcheck;

    fn small() -> (Bert, Tensor) {
        let weights = Weights::random(&Rng::new(0), DType::F64, &Device::Cpu);
        let sizes = BertConfig {
            hidden_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 12,
            vocab_size: 9,
            max_position_embeddings: 6,
            ..BertConfig::base()
        };
        let image = Rng::new(1).normal(&[2, 5, 6], DType::F64, &Device::Cpu).unwrap();
        (Bert::new(&weights, &sizes, 6).unwrap(), image)
    }

    fn largest(x: &Tensor) -> f64 {
        x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn gradients_to_the_image_match_finite_differences() {
        let (bert, image) = small();
        let texts = [vec![2, 5, 3], vec![2, 6, 7, 4, 3]];
        let error = gradcheck(|image: &Tensor| bert.first_states(&texts, image), &image, 0).unwrap();
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn texts_do_not_see_each_other_nor_padding() {
        let (bert, image) = small();
        let texts = [vec![2, 5, 3], vec![2, 6, 7, 4, 3], vec![2, 3], vec![2, 8, 8, 3]];
        let all = bert.first_states(&texts, &image).unwrap(); // two texts for each image
        for (i, text) in texts.iter().enumerate() {
            let one = bert.first_states(std::slice::from_ref(text), &image.narrow(0, i / 2, 1).unwrap()).unwrap();
            assert!(largest(&(one - all.narrow(0, i, 1).unwrap()).unwrap()) < 1e-12, "text {i}");
        }
        let long = bert.first_states(&[vec![2; 7]], &image.narrow(0, 0, 1).unwrap()).err().unwrap();
        assert_eq!(long.message, "bert: expected texts of 1 to 6 tokens, got 7");
    }
}
