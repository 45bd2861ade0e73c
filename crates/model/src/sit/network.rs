//! The SiT transformer: class labels, patches of latents, adaptive layer norms; tensors named as in the published checkpoints.
//!
//! Time runs from noise to data, as here, and is not scaled. With `learn_sigma` the output has twice the channels; the velocity
//! is the first half.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::MOST_LAYERS;
use amscript_nn::linear::Linear;
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::grad::segment;
use amscript_tensor::op::{self, cast, gated_add, gelu_tanh, modulated_norm, self_attention, silu};
use amscript_tensor::{DType, Device, Rng, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes: `config.json` beside the weights, or read from the tensors' shapes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SitConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub num_heads: usize,
    pub patch_size: usize,
    /// Side of the latents.
    pub input_size: usize,
    /// Without the null class, whose label is this number.
    pub num_classes: usize,
    #[serde(default = "learn_sigma")]
    pub learn_sigma: bool,
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
    #[serde(default = "in_channels")]
    pub in_channels: usize,
}

fn learn_sigma() -> bool {
    true
}

fn mlp_ratio() -> f64 {
    4.0
}

fn in_channels() -> usize {
    4
}

/// Widths of the published models and their numbers of heads.
const PUBLISHED_HEADS: [(usize, usize); 4] = [(384, 6), (768, 12), (1024, 16), (1152, 16)];

/// Sinusoids of the time embedding.
const TIME_CHANNELS: usize = 256;
/// Epsilon of every layer norm.
const EPS: f64 = 1e-6;

impl SitConfig {
    /// The sizes of stored weights; shapes do not tell the number of heads of other widths than the published ones.
    pub fn of(w: &Weights, heads: Option<usize>) -> Result<Self> {
        let shape = |name: &str, rank: usize| match w.shape(name) {
            Some(shape) if shape.len() == rank => Ok(shape),
            Some(shape) => bail!(Shape, "{}: tensor `{name}` must have {rank} dimensions, got {shape:?}", w.origin()),
            None => bail!(Missing, "{}: tensor `{name}` is missing, so these are not the weights of a SiT", w.origin()),
        };
        let embed = shape("x_embedder.proj.weight", 4)?;
        let (hidden_size, in_channels, patch_size) = (embed[0], embed[1], embed[2].max(1));
        let published = PUBLISHED_HEADS.iter().find(|(width, _)| *width == hidden_size).map(|(_, heads)| *heads);
        let Some(num_heads) = heads.or(published) else {
            bail!(Value, "{}: expected a published width ({:?}), got {hidden_size}",
                w.origin(), PUBLISHED_HEADS.map(|(width, _)| width);
                hint: "give the number of heads: in `config.json` beside the weights, or as the option `num_heads`")
        };
        let depth = (0..).take_while(|i| w.has(&format!("blocks.{i}.attn.qkv.weight"))).count();
        let hidden = if depth == 0 { 0 } else { shape("blocks.0.mlp.fc1.weight", 2)?[0] };
        Ok(Self {
            depth,
            hidden_size,
            num_heads,
            patch_size,
            input_size: shape("pos_embed", 3)?[1].isqrt() * patch_size,
            num_classes: shape("y_embedder.embedding_table.weight", 2)?[0].saturating_sub(1),
            learn_sigma: shape("final_layer.linear.weight", 2)?[0] == 2 * in_channels * patch_size * patch_size,
            mlp_ratio: hidden as f64 / hidden_size as f64,
            in_channels,
        })
    }

    fn hidden(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    /// Patches per side.
    fn side(&self) -> usize {
        self.input_size / self.patch_size
    }

    fn check(&self) -> Result<()> {
        if self.depth > MOST_LAYERS {
            bail!(Value, "sit: depth must be at most {MOST_LAYERS}, got {}", self.depth);
        }
        if self.num_heads == 0
            || !self.hidden_size.is_multiple_of(self.num_heads)
            || !self.hidden_size.is_multiple_of(4)
        {
            bail!(
                Value,
                "sit: hidden_size must be a multiple of 4 and of num_heads {}, got {}",
                self.num_heads,
                self.hidden_size
            );
        }
        if self.patch_size == 0 || !self.input_size.is_multiple_of(self.patch_size) {
            bail!(Value, "sit: patch_size must divide input_size {}, got {}", self.input_size, self.patch_size);
        }
        Ok(())
    }
}

/// Modules that LoRA adapts unless told otherwise: attention and MLP of every block.
pub fn lora_target(module: &str) -> bool {
    [".attn.qkv", ".attn.proj", ".mlp.fc1", ".mlp.fc2"].iter().any(|end| module.ends_with(end))
}

/// Whether training changes this tensor; the positions stay.
pub fn trained(name: &str) -> bool {
    name != "pos_embed"
}

/// New weights as SiT begins: gates and output closed, positions as sines and cosines.
pub fn random(config: &SitConfig, rng: &Rng, dtype: DType, device: &Device) -> Result<Weights> {
    let weights = Weights::random(rng, dtype, device);
    Transformer::new(config, &weights, false)?;
    let at = positions(config)?.to_dtype(dtype)?.to_device(device)?;
    weights.map(|name, tensor| Ok(if name == "pos_embed" { at.clone() } else { tensor.clone() }))
}

/// Positions `[1, tokens, width]`: of the column, then of the row, each as sines, then cosines.
fn positions(config: &SitConfig) -> Result<Tensor> {
    let (side, quarter) = (config.side(), config.hidden_size / 4);
    let frequency = |j: usize| 1e4f64.powf(-(j as f64) / quarter as f64);
    let mut values = Vec::new();
    for (row, column) in (0..side * side).map(|i| (i / side, i % side)) {
        for at in [column, row] {
            values.extend((0..quarter).map(|j| (at as f64 * frequency(j)).sin()));
            values.extend((0..quarter).map(|j| (at as f64 * frequency(j)).cos()));
        }
    }
    Tensor::from_vec(values, (1, side * side, config.hidden_size), &Device::Cpu)
}

/// The transformer: latents, time and class labels to a velocity.
pub struct Transformer {
    config: SitConfig,
    embed: Linear,
    positions: Tensor,
    time: [Linear; 2],
    /// `[num_classes + 1, width]`, the null class last.
    classes: Tensor,
    /// Each with the variables in it when it is to be recomputed in the backward.
    blocks: Vec<(Arc<Block>, Option<Vec<Tensor>>)>,
    modulation: Linear,
    project: Linear,
    compute: DType,
}

impl Transformer {
    /// With `checkpoint_blocks`, blocks keep only their inputs for the backward and run again there: memory for compute.
    pub fn new(config: &SitConfig, w: &Weights, checkpoint_blocks: bool) -> Result<Self> {
        config.check()?;
        let (d, c, p) = (config.hidden_size, config.in_channels, config.patch_size);
        let (outputs, embed, time) =
            (if config.learn_sigma { 2 * c } else { c }, w.pp("x_embedder.proj"), w.pp("t_embedder.mlp"));
        let kernel = embed.get("weight", &[d, c, p, p], glorot(c * p * p, d))?;
        let last = w.pp("final_layer");
        Ok(Self {
            embed: Linear::new(kernel.flatten_from(1)?, Some(embed.get("bias", &[d], Init::Zeros)?)),
            positions: w.get("pos_embed", &[1, config.side() * config.side(), d], Init::Zeros)?,
            time: [
                time.pp(0).linear_from(TIME_CHANNELS, d, true, Init::Normal(0.02))?,
                time.pp(2).linear_from(d, d, true, Init::Normal(0.02))?,
            ],
            classes: w.get("y_embedder.embedding_table.weight", &[config.num_classes + 1, d], Init::Normal(0.02))?,
            blocks: (0..config.depth)
                .map(|i| w.pp(format!("blocks.{i}")))
                .map(|w| Ok((Arc::new(Block::new(config, &w)?), checkpoint_blocks.then(|| w.variables()))))
                .collect::<Result<_>>()?,
            modulation: gates(&last, d, 2)?,
            project: last.pp("linear").linear_from(d, p * p * outputs, true, Init::Zeros)?,
            compute: w.compute(),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &SitConfig {
        &self.config
    }

    /// Velocity at `x [batch, channels, side, side]`, `t [batch]` and one label per sample, in `x`'s type whatever the network
    /// computes in; the null class is `num_classes`.
    pub fn velocity(&self, x: &Tensor, t: &Tensor, labels: &[u32]) -> Result<Tensor> {
        let (batch, channels, h, w) = x.dims4()?;
        let (size, classes) = (self.config.input_size, self.config.num_classes);
        if [channels, h, w] != [self.config.in_channels, size, size] || labels.len() != batch {
            bail!(
                Shape,
                "sit: expected latents [{}, {}, {size}, {size}] for {} labels, got {:?}",
                labels.len(),
                self.config.in_channels,
                labels.len(),
                x.dims()
            );
        }
        if let Some(label) = labels.iter().find(|label| **label as usize > classes) {
            bail!(Value, "sit: labels must be below {classes}, or {classes} for the null class, got {label}");
        }
        let labels = Tensor::new(labels, x.device())?;
        let class = cast(&self.classes.index_select(&labels, 0)?, self.compute)?;
        let vector = silu(&(self.time_vector(t)? + class)?)?;
        let positions = self.positions.to_dtype(self.compute)?;
        let embedded = self.embed.forward(&cast(&self.patches(x)?, self.compute)?)?;
        let mut tokens = embedded.broadcast_add(&positions)?;
        for (block, params) in &self.blocks {
            tokens = match params {
                None => block.forward(&tokens, &vector)?,
                Some(params) => {
                    let block = block.clone();
                    segment(&[&tokens, &vector], params, move |i| block.forward(&i[0], &i[1]))?
                }
            };
        }
        let last = op::chunk(&self.modulation.forward(&vector)?, 2)?;
        let out = self.project.forward(&modulated_norm(&tokens, &last[0], &last[1], EPS)?)?;
        let out = cast(&out, x.dtype())?;
        // tokens by (patch row, patch column, channel), the velocity's channels first
        let (p, side) = (self.config.patch_size, self.config.side());
        let out = op::reshape(&out, &[batch, side, side, p, p, out.dim(2)? / (p * p)][..])?;
        let out = op::permute(&op::narrow(&out, 5, 0, channels)?, &[0, 5, 1, 3, 2, 4])?;
        op::reshape(&out, (batch, channels, size, size))
    }

    /// `[batch, channels, side, side]` to `[batch, tokens, channels p p]`, row by row.
    fn patches(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, c, _, _) = x.dims4()?;
        let (p, side) = (self.config.patch_size, self.config.side());
        let x = op::permute(&op::reshape(x, &[batch, c, side, p, side, p][..])?, &[0, 2, 4, 1, 3, 5])?;
        op::reshape(&x, (batch, side * side, c * p * p))
    }

    /// Sinusoids of the time, cosines first, through the time MLP: `[batch, width]`.
    fn time_vector(&self, t: &Tensor) -> Result<Tensor> {
        let half = TIME_CHANNELS / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| (-(1e4f64.ln()) * i as f64 / half as f64).exp()).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), &Device::Cpu)?.to_dtype(t.dtype())?;
        let angles = t.constant().unsqueeze(1)?.broadcast_mul(&frequencies.to_device(t.device())?)?;
        let waves = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(self.compute)?;
        self.time[1].forward(&silu(&self.time[0].forward(&waves)?)?)
    }
}

/// Uniform with the deviation `sqrt(2 / (inner + outer))`.
fn glorot(inner: usize, outer: usize) -> Init {
    Init::Uniform((6.0 / (inner + outer) as f64).sqrt())
}

/// The linear layer that makes `n` shifts, scales and gates of width `d`.
fn gates(w: &Weights, d: usize, n: usize) -> Result<Linear> {
    w.pp("adaLN_modulation.1").linear_from(d, n * d, true, Init::Zeros)
}

/// Attention, then MLP, each modulated and gated by time and class.
struct Block {
    modulation: Linear,
    qkv: Linear,
    out: Linear,
    mlp: [Linear; 2],
    heads: usize,
}

impl Block {
    fn new(config: &SitConfig, w: &Weights) -> Result<Self> {
        let (d, hidden) = (config.hidden_size, config.hidden());
        let linear = |name: &str, inner, outer| w.pp(name).linear_from(inner, outer, true, glorot(inner, outer));
        Ok(Self {
            modulation: gates(w, d, 6)?,
            qkv: linear("attn.qkv", d, 3 * d)?,
            out: linear("attn.proj", d, d)?,
            mlp: [linear("mlp.fc1", d, hidden)?, linear("mlp.fc2", hidden, d)?],
            heads: config.num_heads,
        })
    }

    fn forward(&self, x: &Tensor, vector: &Tensor) -> Result<Tensor> {
        // (shift, scale, gate) of attention, then of the MLP
        let m = op::chunk(&self.modulation.forward(vector)?, 6)?;
        let modulated = |x: &Tensor, i: usize| modulated_norm(x, &m[i], &m[i + 1], EPS);
        let scale = ((x.dim(2)? / self.heads) as f64).powf(-0.5);
        let attended = self_attention(&self.qkv.forward(&modulated(x, 0)?)?, self.heads, scale, None)?;
        let x = gated_add(x, &m[2], &self.out.forward(&attended)?)?;
        let h = gelu_tanh(&self.mlp[0].forward(&modulated(&x, 3)?)?)?;
        gated_add(&x, &m[5], &self.mlp[1].forward(&h)?)
    }
}
