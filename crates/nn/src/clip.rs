//! CLIP in the layouts of open_clip and transformers: an image tower, differentiable to the pixels, and a text tower.

use crate::clip_config::{ClipConfig, Layout};
use crate::vit::{self, Block, Names, Norm, Vit};
use crate::weights::{Init, Weights};
use amscript_base::error::Result;
use amscript_tensor::op;
use amscript_tensor::{D, DType, Device, Tensor};

/// Both towers; features are as projected, not normalised.
pub struct Clip {
    pub config: ClipConfig,
    vision: Vit,
    /// `[embed, width]`
    projection: Tensor,
    text: Text,
    logit_scale: Tensor,
}

struct Text {
    embedding: Tensor,
    positions: Tensor,
    norm: Norm,
    blocks: Vec<Block>,
    /// `[embed, width]`
    projection: Tensor,
}

/// Names outside the blocks.
struct Parts {
    names: &'static Names,
    vision: &'static str,
    vision_projection: &'static str,
    text: &'static str,
    embedding: &'static str,
    positions: &'static str,
    norm: &'static str,
    text_projection: &'static str,
    /// Projections are stored `[width, embed]`.
    transposed: bool,
}

const OPEN_CLIP: Parts = Parts {
    names: &vit::OPEN_CLIP,
    vision: "visual",
    vision_projection: "visual.proj",
    text: "",
    embedding: "token_embedding.weight",
    positions: "positional_embedding",
    norm: "ln_final",
    text_projection: "text_projection",
    transposed: true,
};

const TRANSFORMERS: Parts = Parts {
    names: &vit::TRANSFORMERS,
    vision: "vision_model",
    vision_projection: "visual_projection.weight",
    text: "text_model",
    embedding: "embeddings.token_embedding.weight",
    positions: "embeddings.position_embedding.weight",
    norm: "final_layer_norm",
    text_projection: "text_projection.weight",
    transposed: false,
};

impl Parts {
    fn of(layout: Layout) -> &'static Self {
        match layout {
            Layout::OpenClip => &OPEN_CLIP,
            Layout::Transformers => &TRANSFORMERS,
        }
    }

    /// `[embed, width]`
    fn projection(&self, w: &Weights, name: &str, width: usize, embed: usize) -> Result<Tensor> {
        let init = Init::Normal((width as f64).powf(-0.5));
        match self.transposed {
            true => Ok(w.get(name, &[width, embed], init)?.t()?),
            false => w.get(name, &[embed, width], init),
        }
    }
}

impl Clip {
    /// From the layout's tensor names; refuses tensors that are not part of the model.
    pub fn new(w: &Weights, config: &ClipConfig) -> Result<Self> {
        let parts = Parts::of(config.layout);
        for tower in ["vision_model", "text_model"] {
            w.skip(&format!("{tower}.embeddings.position_ids")); // in files of older transformers
        }
        let vision = &w.pp(parts.vision);
        let clip = Self {
            config: *config,
            vision: Vit::new(vision, config.image_size, config.patch, &config.vision, parts.names)?,
            projection: parts.projection(w, parts.vision_projection, config.vision.width, config.embed)?,
            text: Text::new(w, config, parts)?,
            logit_scale: w.get("logit_scale", &[], Init::Constant((1.0 / 0.07_f64).ln()))?,
        };
        w.finish()?;
        Ok(clip)
    }

    /// Pixels `[b, 3, size, size]` to features `[b, embed]`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let tokens = self.vision.tokens(pixels)?;
        let (batch, _, width) = tokens.dims3()?;
        let class = op::reshape(&op::narrow(&tokens, 1, 0, 1)?, (batch, width))?;
        op::linear(&self.vision.normed(&class)?, &self.projection, None, None)
    }

    /// Token ids `[b, n]` to features `[b, embed]`; `ends[i]` is the position of the end token in row i, what follows is ignored.
    pub fn text_features(&self, ids: &Tensor, ends: &[usize]) -> Result<Tensor> {
        self.text.forward(ids, ends)
    }

    /// The factor that was trained with the features, `exp(logit_scale)`.
    pub fn logit_scale(&self) -> Result<Tensor> {
        self.logit_scale.exp()
    }

    pub fn dtype(&self) -> DType {
        self.logit_scale.dtype()
    }

    pub fn device(&self) -> &Device {
        self.logit_scale.device()
    }
}

/// Rows of `x [b, n]` over their Euclidean norm; a row of zeros stays one.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    // a norm of zero becomes one before the root, whose gradient at zero is infinite
    let norm = (&squares + squares.eq(0.0)?.to_dtype(x.dtype())?)?.sqrt()?;
    x.broadcast_div(&norm)
}

impl Text {
    fn new(w: &Weights, config: &ClipConfig, parts: &Parts) -> Result<Self> {
        let (text, c) = (if parts.text.is_empty() { w.clone() } else { w.pp(parts.text) }, &config.text);
        Ok(Self {
            embedding: text.get(parts.embedding, &[config.vocabulary, c.width], Init::Normal(0.02))?,
            positions: text.get(parts.positions, &[config.context, c.width], Init::Normal(0.01))?,
            norm: Norm::new(&text.pp(parts.norm), c.width, c.eps)?,
            blocks: Block::tower(&text, c, parts.names)?,
            projection: parts.projection(w, parts.text_projection, c.width, config.embed)?,
        })
    }

    fn forward(&self, ids: &Tensor, ends: &[usize]) -> Result<Tensor> {
        let (batch, _) = ids.dims2()?;
        // the mask is causal, so nothing behind the last end token matters
        let tokens = ends.iter().max().map_or(0, |end| end + 1);
        let width = self.positions.dim(1)?;
        let ids = ids.narrow(1, 0, tokens)?.contiguous()?.flatten_all()?;
        let x = self.embedding.index_select(&ids, 0)?.reshape((batch, tokens, width))?;
        let mut x = x.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mask = causal(tokens, x.dtype(), x.device())?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&mask))?;
        }
        let at: Vec<u32> = ends.iter().enumerate().map(|(row, end)| (row * tokens + end) as u32).collect();
        let at = Tensor::new(at, x.device())?;
        let last = self.norm.forward(&x.reshape((batch * tokens, width))?.index_select(&at, 0)?)?;
        op::linear(&last, &self.projection, None, None)
    }
}

/// Additive mask `[1, 1, n, n]` that hides later tokens.
fn causal(tokens: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let hidden = |n: usize| if n % tokens > n / tokens { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..tokens * tokens).map(hidden).collect();
    Tensor::from_vec(values, (1, 1, tokens, tokens), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::Preprocess;
    use crate::vit::{Activation, TowerConfig};
    use amscript_tensor::Rng;
    use amscript_tensor::grad::gradcheck;

    fn small(layout: Layout) -> ClipConfig {
        let sizes = |width, layers| {
            let activation = Activation::QuickGelu;
            TowerConfig { width, layers, heads: 2, hidden: 2 * width, eps: 1e-5, activation }
        };
        let (vision, text) = (sizes(12, 2), sizes(8, 1));
        ClipConfig { layout, embed: 5, image_size: 8, patch: 4, vision, context: 6, vocabulary: 9, text }
    }

    fn random() -> Weights {
        Weights::random(&Rng::new(0), DType::F64, &Device::Cpu)
    }

    #[test]
    fn gradients_match_finite_differences() {
        let images = Rng::new(1).uniform(&[2, 3, 11, 9], DType::F64, &Device::Cpu).unwrap();
        let ids = Tensor::new(&[[1u32, 2, 8, 0, 0, 0], [1, 3, 4, 5, 8, 0]], &Device::Cpu).unwrap();
        let attention =
            ["transformer.resblocks.0.attn.in_proj_weight", "text_model.encoder.layers.0.self_attn.k_proj.weight"];
        for (layout, at) in [Layout::OpenClip, Layout::Transformers].into_iter().zip(attention) {
            let weights = random();
            let clip = Clip::new(&weights, &small(layout)).unwrap();
            let score = |x: &Tensor| unit(&clip.image_features(&Preprocess::clip(8).apply(x)?)?);
            let error = gradcheck(score, &images, 0).unwrap();
            assert!(error < 1e-5, "{error}");
            // towards a weight of the text tower
            let loss = |x: &Tensor| {
                let replaced = weights.map(|name, t| Ok(if name == at { x.clone() } else { t.clone() }))?;
                Clip::new(&replaced, &small(layout))?.text_features(&ids, &[2, 4])
            };
            let weight = weights.tensors().unwrap()[at].clone();
            let error = gradcheck(loss, &weight, 0).unwrap();
            assert!(error < 1e-5, "{error}");
        }
    }

    #[test]
    fn what_follows_the_end_token_is_ignored() {
        let clip = Clip::new(&random(), &small(Layout::OpenClip)).unwrap();
        let row = |ids: [u32; 6]| clip.text_features(&Tensor::new(&[ids], &Device::Cpu).unwrap(), &[2]).unwrap();
        let apart = (row([1, 2, 8, 0, 0, 0]) - row([1, 2, 8, 7, 3, 8])).unwrap().abs().unwrap().max_all().unwrap();
        assert!(apart.to_scalar::<f64>().unwrap() < 1e-12);
    }

    #[test]
    fn bad_sizes_and_extra_tensors_are_refused() {
        let weights = random();
        let mut config = small(Layout::OpenClip);
        Clip::new(&weights, &config).unwrap();
        let mut tensors = weights.tensors().unwrap();
        tensors.insert("extra".into(), Tensor::new(0f32, &Device::Cpu).unwrap());
        let stored = Weights::from_tensors("file", tensors);
        assert!(Clip::new(&stored, &config).err().unwrap().message.contains("the first is `extra`"));
        config.patch = 3;
        assert!(Clip::new(&random(), &config).err().unwrap().message.contains("divisible by the patch size"));
        config.text.heads = 3;
        config.patch = 4;
        assert!(Clip::new(&random(), &config).err().unwrap().message.contains("got 8 by 3"));
    }

    #[test]
    fn rows_of_zeros_stay_zero_and_have_a_finite_gradient() {
        let x = Tensor::new(&[[3f64, 4.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(unit(&x).unwrap().to_vec2::<f64>().unwrap(), [[0.6, 0.8], [0.0, 0.0]]);
        let (_, gradient) = amscript_tensor::grad::value_and_grad(|x| unit(x)?.sum_all(), &x).unwrap();
        assert!(gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().all(|g| g.is_finite()));
    }
}
