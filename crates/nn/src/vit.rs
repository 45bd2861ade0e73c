//! The pre-norm image transformer of CLIP and BLIP, under the tensor names of three layouts, and the block that CLIP's text
//! tower shares.

use crate::linear::Linear;
use crate::weights::{Init, Weights};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;
use amscript_tensor::op;

/// What the tensors of a tower are called; shapes are those of the file.
pub struct Names {
    /// Prefix of the blocks, which are numbered.
    pub blocks: &'static str,
    /// Before the attention and before the MLP.
    pub norms: [&'static str; 2],
    /// Weight and bias of queries, keys and values: three pairs, or one with all in a row.
    pub qkv: &'static [[&'static str; 2]],
    pub out: &'static str,
    pub mlp: [&'static str; 2],
    pub class: &'static str,
    pub positions: &'static str,
    /// Class token and positions have a leading axis of one.
    pub batched: bool,
    /// Weight of the patch convolution, and its bias where it has one.
    pub patches: (&'static str, Option<&'static str>),
    /// A norm before the blocks, in CLIP.
    pub norm_pre: Option<&'static str>,
    pub norm_last: &'static str,
}

/// open_clip (and OpenAI's CLIP).
pub const OPEN_CLIP: Names = Names {
    blocks: "transformer.resblocks",
    norms: ["ln_1", "ln_2"],
    qkv: &[["attn.in_proj_weight", "attn.in_proj_bias"]],
    out: "attn.out_proj",
    mlp: ["mlp.c_fc", "mlp.c_proj"],
    class: "class_embedding",
    positions: "positional_embedding",
    batched: false,
    patches: ("conv1.weight", None),
    norm_pre: Some("ln_pre"),
    norm_last: "ln_post",
};

/// `CLIPModel` of transformers, whose spelling of the first norm is kept.
pub const TRANSFORMERS: Names = Names {
    blocks: "encoder.layers",
    norms: ["layer_norm1", "layer_norm2"],
    qkv: &[
        ["self_attn.q_proj.weight", "self_attn.q_proj.bias"],
        ["self_attn.k_proj.weight", "self_attn.k_proj.bias"],
        ["self_attn.v_proj.weight", "self_attn.v_proj.bias"],
    ],
    out: "self_attn.out_proj",
    mlp: ["mlp.fc1", "mlp.fc2"],
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    batched: false,
    patches: ("embeddings.patch_embedding.weight", None),
    norm_pre: Some("pre_layrnorm"),
    norm_last: "post_layernorm",
};

/// timm's vision transformer, as BLIP has it.
pub const TIMM: Names = Names {
    blocks: "blocks",
    norms: ["norm1", "norm2"],
    qkv: &[["attn.qkv.weight", "attn.qkv.bias"]],
    out: "attn.proj",
    mlp: ["mlp.fc1", "mlp.fc2"],
    class: "cls_token",
    positions: "pos_embed",
    batched: true,
    patches: ("patch_embed.proj.weight", Some("patch_embed.proj.bias")),
    norm_pre: None,
    norm_last: "norm",
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Exact, by the error function.
    Gelu,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
}

/// Sizes of a tower of blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TowerConfig {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub hidden: usize,
    /// Of the norms.
    pub eps: f64,
    pub activation: Activation,
}

impl TowerConfig {
    pub fn check(&self) -> Result<()> {
        if self.heads == 0 || self.width == 0 || !self.width.is_multiple_of(self.heads) {
            bail!(Value, "transformer: expected a width divisible by the heads, got {} by {}", self.width, self.heads);
        }
        Ok(())
    }
}

pub struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    pub fn new(w: &Weights, width: usize, eps: f64) -> Result<Self> {
        let (weight, bias) = (w.get("weight", &[width], Init::Ones)?, w.get("bias", &[width], Init::Zeros)?);
        Ok(Self { weight, bias, eps })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        op::layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

/// One pre-norm transformer block.
pub struct Block {
    norms: [Norm; 2],
    /// Queries, keys and values, one layer each or one for all.
    qkv: Vec<Linear>,
    out: Linear,
    grow: Linear,
    shrink: Linear,
    heads: usize,
    activation: Activation,
}

impl Block {
    pub fn new(w: &Weights, z: &TowerConfig, names: &Names) -> Result<Self> {
        let (d, hidden) = (z.width, z.hidden);
        // open_clip's beginnings: residual branches shrink with depth
        let attention = (d as f64).powf(-0.5);
        let residual = attention * (2.0 * z.layers as f64).powf(-0.5);
        let rows = 3 * d / names.qkv.len();
        let qkv = names.qkv.iter().map(|[weight, bias]| {
            let weight = w.get(weight, &[rows, d], Init::Normal(attention))?;
            Ok(Linear::new(weight, Some(w.get(bias, &[rows], Init::Zeros)?)))
        });
        let [grow, shrink] = names.mlp.map(|name| w.pp(name));
        Ok(Self {
            qkv: qkv.collect::<Result<_>>()?,
            norms: [Norm::new(&w.pp(names.norms[0]), d, z.eps)?, Norm::new(&w.pp(names.norms[1]), d, z.eps)?],
            out: w.pp(names.out).linear_from(d, d, true, Init::Normal(residual))?,
            grow: grow.linear_from(d, hidden, true, Init::Normal((2.0 * d as f64).powf(-0.5)))?,
            shrink: shrink.linear_from(hidden, d, true, Init::Normal(residual))?,
            heads: z.heads,
            activation: z.activation,
        })
    }

    /// All blocks of a tower.
    pub fn tower(w: &Weights, z: &TowerConfig, names: &Names) -> Result<Vec<Self>> {
        z.check()?;
        (0..z.layers).map(|i| Self::new(&w.pp(names.blocks).pp(i), z, names)).collect()
    }

    /// `x [b, n, width]`; an additive mask is broadcast to `[b, heads, n, n]`.
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let h = self.norms[0].forward(x)?;
        let part = |i: usize| op::reshape(&self.qkv[i].forward(&h)?, (batch, tokens, self.heads, width / self.heads));
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let attended = match self.qkv.as_slice() {
            [all] => op::self_attention(&all.forward(&h)?, self.heads, scale, mask)?,
            _ => op::reshape(&op::attention(&part(0)?, &part(1)?, &part(2)?, scale, mask)?, (batch, tokens, width))?,
        };
        let x = (x + self.out.forward(&attended)?)?;
        let h = self.grow.forward(&self.norms[1].forward(&x)?)?;
        let h = match self.activation {
            Activation::Gelu => op::gelu_erf(&h)?,
            Activation::QuickGelu => op::quick_gelu(&h)?,
        };
        x + self.shrink.forward(&h)?
    }
}

/// An image tower: pixels to one token for the class and one per patch.
pub struct Vit {
    /// `[width, 3 patch patch]`
    patches: Tensor,
    patch_bias: Option<Tensor>,
    patch: usize,
    /// `[1, 1, width]`
    class: Tensor,
    /// `[1 + patches, width]`
    positions: Tensor,
    norm_pre: Option<Norm>,
    norm_last: Norm,
    blocks: Vec<Block>,
}

impl Vit {
    /// For square images of side `image_size`, cut into squares of side `patch`.
    pub fn new(w: &Weights, image_size: usize, patch: usize, z: &TowerConfig, names: &Names) -> Result<Self> {
        if patch == 0 || image_size == 0 || !image_size.is_multiple_of(patch) {
            bail!(
                Value,
                "image tower: expected an image size divisible by the patch size, got {image_size} and {patch}"
            );
        }
        let (d, n, inner) = (z.width, (image_size / patch).pow(2) + 1, 3 * patch * patch);
        let std = Init::Normal((d as f64).powf(-0.5));
        let [class, positions]: [&[usize]; 2] = if names.batched { [&[1, 1, d], &[1, n, d]] } else { [&[d], &[n, d]] };
        let (weight, bias) = names.patches;
        let norm = |name: &str| Norm::new(&w.pp(name), d, z.eps);
        Ok(Self {
            patches: w
                .get(weight, &[d, 3, patch, patch], Init::Uniform((inner as f64).powf(-0.5)))?
                .reshape((d, inner))?,
            patch_bias: bias.map(|name| w.get(name, &[d], Init::Zeros)).transpose()?,
            patch,
            class: w.get(names.class, class, std)?.reshape((1, 1, d))?,
            positions: w.get(names.positions, positions, std)?.reshape((n, d))?,
            norm_pre: names.norm_pre.map(norm).transpose()?,
            norm_last: norm(names.norm_last)?,
            blocks: Block::tower(w, z, names)?,
        })
    }

    /// Pixels `[b, 3, h, w]` to tokens `[b, 1 + patches, width]` before the last norm; the class token is the first.
    pub fn tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, channels, h, w) = pixels.dims4()?;
        let (rows, columns, patch, width) = (h / self.patch, w / self.patch, self.patch, self.class.dim(2)?);
        let inner = channels * patch * patch;
        // a convolution whose stride is its size is a linear map of patches
        let cut = op::reshape(pixels, &[batch, channels, rows, patch, columns, patch][..])?;
        let cut = op::reshape(&op::permute(&cut, &[0, 2, 4, 1, 3, 5])?, (batch, rows * columns, inner))?;
        let x = op::linear(&cut, &self.patches, self.patch_bias.as_ref(), None)?;
        let class = self.class.expand((batch, 1, width))?.contiguous()?;
        let mut x = op::cat(&[&class, &x], 1)?.broadcast_add(&self.positions)?;
        if let Some(norm) = &self.norm_pre {
            x = norm.forward(&x)?;
        }
        for block in &self.blocks {
            x = block.forward(&x, None)?;
        }
        Ok(x)
    }

    /// The norm behind the blocks, for the class token or all tokens.
    pub fn normed(&self, tokens: &Tensor) -> Result<Tensor> {
        self.norm_last.forward(&tokens.contiguous()?)
    }
}
