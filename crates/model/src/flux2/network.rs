//! The FLUX.2 transformer in the diffusers layout.
//!
//! The published model predicts `noise - data` at noise level `1 - t`; here time runs from noise to data, so the level is
//! `1 - t`, the velocity is minus the output. Tokens are text first, then image, row by row.

use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_nn::MOST_LAYERS;
use amscript_nn::linear::Linear;
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::grad::segment;
use amscript_tensor::op::{self, attention, cast, cat_swiglu, gated_add, modulated_norm, rms_norm_rope, silu, swiglu};
use amscript_tensor::{DType, Device, Tensor};
use parking_lot::Mutex;
use serde::Deserialize;
use std::sync::Arc;

/// `transformer/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flux2Config {
    pub in_channels: usize,
    pub num_layers: usize,
    pub num_single_layers: usize,
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub joint_attention_dim: usize,
    pub mlp_ratio: f64,
    pub axes_dims_rope: Vec<usize>,
    #[serde(default = "theta")]
    pub rope_theta: f64,
    #[serde(default = "time_channels")]
    pub timestep_guidance_channels: usize,
    #[serde(default = "eps")]
    pub eps: f64,
    #[serde(default)]
    pub guidance_embeds: bool,
}

fn theta() -> f64 {
    2000.0
}

fn time_channels() -> usize {
    256
}

fn eps() -> f64 {
    1e-6
}

impl Flux2Config {
    /// The sizes of weights that have no config beside them. Heads are as wide as the norms of their queries; the four axes
    /// of the rotation share a head equally, as published.
    pub fn of(w: &Weights) -> Result<Self> {
        let dims = |name: &str| {
            let missing =
                || Error::new(Kind::Missing, format!("{}: not a FLUX.2 transformer, `{name}` is missing", w.origin()));
            w.shape(name).filter(|shape| shape.len() == if name.contains("norm") { 1 } else { 2 }).ok_or_else(missing)
        };
        let count = |kind: &str, one: &str| (0..).take_while(|i| w.has(&format!("{kind}.{i}.{one}.weight"))).count();
        let (image, text) = (dims("x_embedder.weight")?, dims("context_embedder.weight")?);
        let (width, head) = (image[0], dims("transformer_blocks.0.attn.norm_q.weight")?[0]);
        let hidden = dims("transformer_blocks.0.ff.linear_out.weight")?[1];
        Ok(Self {
            in_channels: image[1],
            num_layers: count("transformer_blocks", "attn.to_q"),
            num_single_layers: count("single_transformer_blocks", "attn.to_out"),
            num_attention_heads: width / head.max(1),
            attention_head_dim: head,
            joint_attention_dim: text[1],
            mlp_ratio: hidden as f64 / width as f64,
            axes_dims_rope: vec![head / 4; 4],
            rope_theta: theta(),
            timestep_guidance_channels: dims("time_guidance_embed.timestep_embedder.linear_1.weight")?[1],
            eps: eps(),
            guidance_embeds: w.has("time_guidance_embed.guidance_embedder.linear_1.weight"),
        })
    }

    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn hidden(&self) -> usize {
        (self.width() as f64 * self.mlp_ratio) as usize
    }

    fn check(&self) -> Result<()> {
        let layers = self.num_layers.max(self.num_single_layers);
        if layers > MOST_LAYERS {
            bail!(Value, "flux2: num_layers and num_single_layers must be at most {MOST_LAYERS}, got {layers}");
        }
        if self.axes_dims_rope.iter().sum::<usize>() != self.attention_head_dim
            || self.axes_dims_rope.iter().any(|d| d % 2 != 0)
            || self.axes_dims_rope.len() != 4
        {
            bail!(
                Value,
                "flux2: axes_dims_rope must be four even numbers that add up to attention_head_dim {}, got {:?}",
                self.attention_head_dim,
                self.axes_dims_rope
            );
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            bail!(Value, "flux2: rope_theta must be above 0 and finite, got {}", self.rope_theta);
        }
        if self.guidance_embeds {
            bail!(Value, "flux2: guidance_embeds must be false (the Klein models), got true");
        }
        Ok(())
    }
}

/// The transformer: latents, time and prompt embeddings to a velocity.
pub struct Transformer {
    config: Flux2Config,
    embed_image: Linear,
    embed_text: Linear,
    time: [Linear; 2],
    modulation_image: Linear,
    modulation_text: Linear,
    modulation_single: Linear,
    double: Vec<Block<DoubleBlock>>,
    single: Vec<Block<SingleBlock>>,
    norm_out: Linear,
    project: Linear,
    compute: DType,
    /// Of the last numbers of prompt tokens, rows and columns.
    rotations: Mutex<Option<([usize; 3], Rotations)>>,
}

/// A block, and the variables in it when it is to be recomputed in the backward.
struct Block<T> {
    inner: Arc<T>,
    params: Option<Vec<Tensor>>,
}

impl<T> Block<T> {
    fn new(inner: T, w: &Weights, checkpoint_blocks: bool) -> Self {
        Self { inner: Arc::new(inner), params: checkpoint_blocks.then(|| w.variables()) }
    }
}

impl Transformer {
    /// With `checkpoint_blocks`, blocks keep only their inputs for the backward and run again there: memory for compute.
    pub fn new(config: &Flux2Config, w: &Weights, checkpoint_blocks: bool) -> Result<Self> {
        config.check()?;
        let (d, channels) = (config.width(), config.in_channels);
        let time = w.pp("time_guidance_embed.timestep_embedder");
        // Random networks begin with closed gates and a zero output.
        let gates = |name: &str, n: usize| w.pp(name).linear_from(d, n * d, false, Init::Zeros);
        Ok(Self {
            embed_image: w.pp("x_embedder").linear(channels, d, false)?,
            embed_text: w.pp("context_embedder").linear(config.joint_attention_dim, d, false)?,
            time: [
                time.pp("linear_1").linear(config.timestep_guidance_channels, d, false)?,
                time.pp("linear_2").linear(d, d, false)?,
            ],
            modulation_image: gates("double_stream_modulation_img.linear", 6)?,
            modulation_text: gates("double_stream_modulation_txt.linear", 6)?,
            modulation_single: gates("single_stream_modulation.linear", 3)?,
            double: (0..config.num_layers)
                .map(|i| w.pp(format!("transformer_blocks.{i}")))
                .map(|w| Ok(Block::new(DoubleBlock::new(config, &w)?, &w, checkpoint_blocks)))
                .collect::<Result<_>>()?,
            single: (0..config.num_single_layers)
                .map(|i| w.pp(format!("single_transformer_blocks.{i}")))
                .map(|w| Ok(Block::new(SingleBlock::new(config, &w.pp("attn"))?, &w, checkpoint_blocks)))
                .collect::<Result<_>>()?,
            norm_out: gates("norm_out.linear", 2)?,
            project: w.pp("proj_out").linear_from(d, channels, false, Init::Zeros)?,
            config: config.clone(),
            compute: w.compute(),
            rotations: Mutex::default(),
        })
    }

    pub fn config(&self) -> &Flux2Config {
        &self.config
    }

    /// Velocity at `x [batch, channels, h, w]`, `t [batch]` and prompt embeddings `[batch, tokens, features]`, in `x`'s type
    /// whatever the network computes in.
    pub fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        let (batch, channels, h, w) = x.dims4()?;
        let (text_batch, text_tokens, features) = text.dims3()?;
        if channels != self.config.in_channels || text_batch != batch || features != self.config.joint_attention_dim {
            bail!(
                Shape,
                "flux2: expected latents [batch, {}, h, w] and embeddings [batch, tokens, {}], got {:?} and {:?}",
                self.config.in_channels,
                self.config.joint_attention_dim,
                x.dims(),
                text.dims()
            );
        }
        let rope = self.rotations(text_tokens, h, w, x.device())?;
        let vector = silu(&self.time_vector(t)?)?;
        let tokens = op::permute(&op::reshape(x, (batch, channels, h * w))?, &[0, 2, 1])?;
        let mut image = self.embed_image.forward(&cast(&tokens, self.compute)?)?;
        let mut text = self.embed_text.forward(&text.to_dtype(self.compute)?)?;
        let of_image = op::chunk(&self.modulation_image.forward(&vector)?, 6)?;
        let of_text = op::chunk(&self.modulation_text.forward(&vector)?, 6)?;
        for block in &self.double {
            (image, text) = block.forward(&image, &text, &of_image, &of_text, &rope)?;
        }
        let mut all = op::cat(&[&text, &image], 1)?;
        let of_single = op::chunk(&self.modulation_single.forward(&vector)?, 3)?;
        for block in &self.single {
            all = block.forward(&all, &of_single, &rope)?;
        }
        let image = op::narrow(&all, 1, text_tokens, h * w)?;
        let last = op::chunk(&self.norm_out.forward(&vector)?, 2)?; // (scale, shift) in the diffusers layout
        let image = modulated_norm(&image, &last[1], &last[0], self.config.eps)?;
        let out = op::permute(&cast(&self.project.forward(&image)?, x.dtype())?, &[0, 2, 1])?;
        op::reshape(&out, (batch, channels, h, w))?.neg()
    }

    /// Sinusoids of 1000 times the noise level, cosines first, through the time MLP: `[batch, width]`. Frequencies and angles are
    /// rounded to f32 as in diffusers: at 1000 radians the rounding shows.
    fn time_vector(&self, t: &Tensor) -> Result<Tensor> {
        let half = self.config.timestep_guidance_channels / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| (-(1e4f64.ln() as f32) * i as f32 / half as f32).exp()).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
        let level = t.constant().to_dtype(DType::F64)?.affine(-1.0, 1.0)?.to_dtype(DType::F32)?;
        let angles = (level * 1000.0)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
        let waves = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(self.compute)?;
        self.time[1].forward(&silu(&self.time[0].forward(&waves)?)?)
    }

    /// Cosines and sines `[tokens, head / 2]` of the positions (0, row, column, text index), text first.
    fn rotations(&self, text: usize, h: usize, w: usize, device: &Device) -> Result<Rotations> {
        let mut kept = self.rotations.lock();
        if let Some((sizes, known)) = &*kept
            && *sizes == [text, h, w]
            && known.0.device().same_device(device)
        {
            return Ok(known.clone());
        }
        let frequencies = |dim: &usize| -> Vec<f64> {
            (0..dim / 2).map(|i| self.config.rope_theta.powf(-2.0 * i as f64 / *dim as f64)).collect()
        };
        let frequencies: Vec<Vec<f64>> = self.config.axes_dims_rope.iter().map(frequencies).collect();
        let mut angles = Vec::new();
        let positions = (0..text).map(|j| [0, 0, 0, j]).chain((0..h * w).map(|i| [0, i / w, i % w, 0]));
        for position in positions {
            for (at, frequencies) in position.iter().zip(&frequencies) {
                angles.extend(frequencies.iter().map(|frequency| *at as f64 * frequency));
            }
        }
        let angles = Tensor::from_vec(angles, (text + h * w, self.config.attention_head_dim / 2), &Device::Cpu)?;
        // In the type that ops compute in, so that none casts them.
        let dtype = if self.compute == DType::F64 { DType::F64 } else { DType::F32 };
        let there = |x: Tensor| x.to_dtype(dtype)?.to_device(device);
        let made = (there(angles.cos()?)?, there(angles.sin()?)?);
        *kept = Some(([text, h, w], made.clone()));
        Ok(made)
    }
}

/// Cosines and sines by token.
type Rotations = (Tensor, Tensor);

impl Block<DoubleBlock> {
    fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        of_image: &[Tensor],
        of_text: &[Tensor],
        rope: &Rotations,
    ) -> Result<(Tensor, Tensor)> {
        let Some(params) = &self.params else { return self.inner.forward(image, text, of_image, of_text, rope) };
        let (block, rope, tokens) = (self.inner.clone(), rope.clone(), text.dim(1)?);
        let inputs: Vec<&Tensor> = [image, text].into_iter().chain(of_image).chain(of_text).collect();
        let both = segment(&inputs, params, move |i| {
            let (image, text) = block.forward(&i[0], &i[1], &i[2..8], &i[8..14], &rope)?;
            op::cat(&[&text, &image], 1)
        })?;
        Ok((op::narrow(&both, 1, tokens, image.dim(1)?)?, op::narrow(&both, 1, 0, tokens)?))
    }
}

impl Block<SingleBlock> {
    fn forward(&self, x: &Tensor, m: &[Tensor], rope: &Rotations) -> Result<Tensor> {
        let Some(params) = &self.params else { return self.inner.forward(x, m, rope) };
        let (block, rope) = (self.inner.clone(), rope.clone());
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(m).collect();
        segment(&inputs, params, move |i| block.forward(&i[0], &i[1..], &rope))
    }
}

/// Queries, keys and values of one stream, with the normalisation of queries and keys.
struct Projection {
    parts: [Linear; 3],
    norms: [Tensor; 2],
    heads: usize,
    eps: f64,
}

impl Projection {
    fn new(config: &Flux2Config, parts: [Linear; 3], w: &Weights, norms: [&str; 2]) -> Result<Self> {
        let norm = |name: &str| w.get(&format!("{name}.weight"), &[config.attention_head_dim], Init::Ones);
        Ok(Self {
            parts,
            norms: [norm(norms[0])?, norm(norms[1])?],
            heads: config.num_attention_heads,
            eps: config.eps,
        })
    }

    /// `[batch, tokens, width]` to three of `[batch, tokens, heads, head]`; queries and keys are normalised and turned.
    fn forward(&self, x: &Tensor, (cos, sin): &Rotations) -> Result<[Tensor; 3]> {
        let (batch, tokens, _) = x.dims3()?;
        let split = |i: usize| {
            let y = self.parts[i].forward(x)?;
            let head = y.dim(2)? / self.heads;
            op::reshape(&y, (batch, tokens, self.heads, head))
        };
        let turned = |i: usize| rms_norm_rope(&split(i)?, &self.norms[i], cos, sin, self.eps);
        Ok([turned(0)?, turned(1)?, split(2)?])
    }
}

/// Attention over all tokens: `[batch, tokens, width]`.
fn attend([q, k, v]: [Tensor; 3]) -> Result<Tensor> {
    let (batch, tokens, heads, head) = q.dims4()?;
    op::reshape(&attention(&q, &k, &v, (head as f64).powf(-0.5), None)?, (batch, tokens, heads * head))
}

/// Image and text stream with joint attention.
struct DoubleBlock {
    image: TokenStream,
    text: TokenStream,
}

/// One stream of a double block.
struct TokenStream {
    project: Projection,
    out: Linear,
    mlp: [Linear; 2],
    eps: f64,
}

impl TokenStream {
    fn new(config: &Flux2Config, w: &Weights, [q, k, v, out, ff]: [&str; 5], norms: [&str; 2]) -> Result<Self> {
        let (d, hidden, attn) = (config.width(), config.hidden(), w.pp("attn"));
        let linear = |name: &str| attn.pp(name).linear(d, d, false);
        Ok(Self {
            project: Projection::new(config, [linear(q)?, linear(k)?, linear(v)?], &attn, norms)?,
            out: linear(out)?,
            mlp: [
                w.pp(ff).pp("linear_in").linear(d, 2 * hidden, false)?,
                w.pp(ff).pp("linear_out").linear(hidden, d, false)?,
            ],
            eps: config.eps,
        })
    }

    fn qkv(&self, x: &Tensor, m: &[Tensor], rope: &Rotations) -> Result<[Tensor; 3]> {
        self.project.forward(&modulated_norm(x, &m[0], &m[1], self.eps)?, rope)
    }

    /// Adds the attention output and the gated MLP; `m` is (shift, scale, gate) of attention, then of the MLP.
    fn finish(&self, x: &Tensor, attended: &Tensor, m: &[Tensor]) -> Result<Tensor> {
        let x = gated_add(x, &m[2], &self.out.forward(attended)?)?;
        let h = modulated_norm(&x, &m[3], &m[4], self.eps)?;
        gated_add(&x, &m[5], &self.mlp[1].forward(&swiglu(&self.mlp[0].forward(&h)?)?)?)
    }
}

impl DoubleBlock {
    fn new(config: &Flux2Config, w: &Weights) -> Result<Self> {
        let image = ["to_q", "to_k", "to_v", "to_out.0", "ff"];
        let text = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"];
        Ok(Self {
            image: TokenStream::new(config, w, image, ["norm_q", "norm_k"])?,
            text: TokenStream::new(config, w, text, ["norm_added_q", "norm_added_k"])?,
        })
    }

    fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        of_image: &[Tensor],
        of_text: &[Tensor],
        rope: &Rotations,
    ) -> Result<(Tensor, Tensor)> {
        let (text_tokens, image_tokens) = (text.dim(1)?, image.dim(1)?);
        let turns = |start: usize, len: usize| -> Result<Rotations> {
            Ok((rope.0.narrow(0, start, len)?, rope.1.narrow(0, start, len)?))
        };
        let a = self.text.qkv(text, of_text, &turns(0, text_tokens)?)?;
        let b = self.image.qkv(image, of_image, &turns(text_tokens, image_tokens)?)?;
        let joined = |i: usize| op::cat(&[&a[i], &b[i]], 1);
        let attended = attend([joined(0)?, joined(1)?, joined(2)?])?;
        let part = |start: usize, len: usize| op::narrow(&attended, 1, start, len);
        let image = self.image.finish(image, &part(text_tokens, image_tokens)?, of_image)?;
        Ok((image, self.text.finish(text, &part(0, text_tokens)?, of_text)?))
    }
}

/// Attention and MLP in parallel on the joint sequence.
struct SingleBlock {
    project: Projection,
    up: Linear,
    out: Linear,
    eps: f64,
}

impl SingleBlock {
    fn new(config: &Flux2Config, w: &Weights) -> Result<Self> {
        let (d, hidden) = (config.width(), config.hidden());
        // Rows: q, k, v, then both halves of the gated MLP.
        let all = w.pp("to_qkv_mlp_proj").linear(d, 3 * d + 2 * hidden, false)?;
        let parts = [all.rows(0, d)?, all.rows(d, d)?, all.rows(2 * d, d)?];
        Ok(Self {
            project: Projection::new(config, parts, w, ["norm_q", "norm_k"])?,
            up: all.rows(3 * d, 2 * hidden)?,
            out: w.pp("to_out").linear(d + hidden, d, false)?,
            eps: config.eps,
        })
    }

    fn forward(&self, x: &Tensor, m: &[Tensor], rope: &Rotations) -> Result<Tensor> {
        let h = modulated_norm(x, &m[0], &m[1], self.eps)?;
        let attended = attend(self.project.forward(&h, rope)?)?;
        let both = cat_swiglu(&attended, &self.up.forward(&h)?)?;
        gated_add(x, &m[2], &self.out.forward(&both)?)
    }
}
