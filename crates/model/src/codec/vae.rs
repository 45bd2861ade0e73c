//! Convolutional autoencoders in the diffusers layout: `AutoencoderKL` with a mean and log-variance latent.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::MOST_LAYERS;
use amscript_nn::layout::Piece;
use amscript_nn::linear::Linear;
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::Tensor;
use amscript_tensor::grad::segment;
use amscript_tensor::op::{self, attention, conv2d, group_norm, group_norm_silu, upsampled_conv2d};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct AutoencoderConfig {
    /// `AutoencoderKLFlux2`, or `AutoencoderKL` for Stable Diffusion's.
    #[serde(rename = "_class_name", default = "class_name")]
    pub class_name: String,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub latent_channels: usize,
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    #[serde(default = "batch_norm_eps")]
    pub batch_norm_eps: f64,
    /// What latents of `AutoencoderKL` are multiplied by.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    /// What is taken off them before (Stable Diffusion 3, FLUX.1).
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Side of the images it was made for, in pixels.
    #[serde(default = "sample_size")]
    pub sample_size: usize,
    #[serde(default)]
    pub act_fn: Option<String>,
    /// Statistics of single channels, which are not done.
    #[serde(default)]
    pub latents_mean: Option<Value>,
    #[serde(default)]
    pub latents_std: Option<Value>,
}

fn class_name() -> String {
    "AutoencoderKLFlux2".into()
}

fn scaling_factor() -> f64 {
    0.18215
}

fn groups() -> usize {
    32
}

fn batch_norm_eps() -> f64 {
    1e-4
}

fn sample_size() -> usize {
    1024
}

/// Epsilon of every group norm.
const EPS: f64 = 1e-6;

impl AutoencoderConfig {
    /// The sizes of weights that have no config beside them, as far as they can be read from the tensors.
    pub fn of(w: &Weights) -> Result<Self> {
        let first = |name: String| w.shape(&name).and_then(|shape| shape.first().copied());
        let resnet = |i, j| first(format!("encoder.down_blocks.{i}.resnets.{j}.conv1.weight"));
        let block_out_channels: Vec<usize> = (0..).map_while(|i| resnet(i, 0)).collect();
        let Some(latent_channels) = first("post_quant_conv.weight".into()).filter(|_| !block_out_channels.is_empty())
        else {
            bail!(File, "{}: expected an autoencoder, found no `encoder` or `post_quant_conv`", w.origin());
        };
        let class_name = if w.has("bn.running_mean") { class_name() } else { "AutoencoderKL".into() };
        Ok(Self {
            class_name,
            block_out_channels,
            layers_per_block: (0..).take_while(|j| resnet(0, *j).is_some()).count(),
            latent_channels,
            norm_num_groups: groups(),
            batch_norm_eps: batch_norm_eps(),
            scaling_factor: scaling_factor(),
            shift_factor: None,
            sample_size: sample_size(),
            act_fn: None,
            latents_mean: None,
            latents_std: None,
        })
    }

    /// Refuses what would change numbers and is not done here.
    fn check_kind(&self) -> Result<()> {
        if let Some(act) = self.act_fn.as_deref().filter(|act| !["silu", "swish"].contains(act)) {
            bail!(Value, "vae: expected act_fn `silu`, got `{act}`");
        }
        for (name, given) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if let Some(given) = given {
                bail!(Value, "vae: expected no `{name}`, got {given}";
                    hint: "latents are scaled by `scaling_factor` and `shift_factor`, or by the tensors `bn` of FLUX.2");
            }
        }
        Ok(())
    }
}

/// Names of the diffusers layout for those of any published one: its own, its older attention names, and that of the
/// original code (BFL, CompVis), whose decoder counts its `levels` from the other end.
pub fn layout(levels: usize) -> impl Fn(&str, &[usize]) -> Vec<Piece> {
    move |stored, shape| {
        let name = rename(stored.strip_prefix("first_stage_model.").unwrap_or(stored), levels);
        let piece = Piece::whole(&name, shape);
        match shape {
            // attention stored as a convolution of one pixel
            [out, inner, 1, 1] if name.contains(".attentions.") => vec![piece.shaped(vec![*out, *inner])],
            _ => vec![piece],
        }
    }
}

/// Levels of the decoder that names of the original code speak of.
pub fn levels<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    let level = |name: &String| name.split_once("decoder.up.")?.1.split('.').next()?.parse::<usize>().ok();
    names.filter_map(level).max().map_or(0, |top| top + 1)
}

fn rename(name: &str, levels: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let up = |level: &str| level.parse::<usize>().ok().and_then(|l| levels.checked_sub(l + 1));
    let inner = |rest: &[&str]| rest.join(".").replace("nin_shortcut", "conv_shortcut");
    match parts.as_slice() {
        ["encoder", "quant_conv", rest] => format!("quant_conv.{rest}"),
        ["decoder", "post_quant_conv", rest] => format!("post_quant_conv.{rest}"),
        ["encoder", "down", l, "block", j, rest @ ..] => format!("encoder.down_blocks.{l}.resnets.{j}.{}", inner(rest)),
        ["encoder", "down", l, "downsample", rest @ ..] => {
            format!("encoder.down_blocks.{l}.downsamplers.0.{}", inner(rest))
        }
        ["decoder", "up", l, kind @ ("block" | "upsample"), rest @ ..] => match (up(l), *kind) {
            (Some(l), "block") => format!("decoder.up_blocks.{l}.resnets.{}", inner(rest)),
            (Some(l), _) => format!("decoder.up_blocks.{l}.upsamplers.0.{}", inner(rest)),
            (None, _) => name.to_string(),
        },
        [side, "mid", "block_1", rest @ ..] => format!("{side}.mid_block.resnets.0.{}", inner(rest)),
        [side, "mid", "block_2", rest @ ..] => format!("{side}.mid_block.resnets.1.{}", inner(rest)),
        [side, "mid", "attn_1", module, rest] => {
            format!("{side}.mid_block.attentions.0.{}.{rest}", attention_name(module))
        }
        [side, "mid_block", "attentions", i, module, rest] => {
            format!("{side}.mid_block.attentions.{i}.{}.{rest}", attention_name(module))
        }
        [side, "norm_out", rest] => format!("{side}.conv_norm_out.{rest}"),
        _ => name.to_string(),
    }
}

fn attention_name(module: &str) -> &str {
    match module {
        "q" | "query" => "to_q",
        "k" | "key" => "to_k",
        "v" | "value" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        "norm" => "group_norm",
        other => other,
    }
}

/// Images in [-1, 1] to latents and back, without any scaling of the latents.
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant: Conv,
    post_quant: Conv,
    latents: usize,
}

impl Autoencoder {
    pub fn new(config: &AutoencoderConfig, w: &Weights) -> Result<Self> {
        config.check_kind()?;
        let z = config.latent_channels;
        let sizes = [config.norm_num_groups, config.block_out_channels.len(), config.layers_per_block, z];
        let most = config.block_out_channels.iter().chain(&sizes).max();
        if sizes.contains(&0) || config.block_out_channels.contains(&0) || most.is_some_and(|n| *n > 1 << 16) {
            bail!(
                Value,
                "vae: norm_num_groups {}, block_out_channels {:?}, layers_per_block {} and latent_channels {z} must be above 0 and at most 65536",
                config.norm_num_groups,
                config.block_out_channels,
                config.layers_per_block
            );
        }
        let (layers, halvings) = (config.layers_per_block, config.block_out_channels.len());
        if layers > MOST_LAYERS || halvings > 30 {
            bail!(
                Value,
                "vae: expected layers_per_block of at most {MOST_LAYERS} and at most 30 block_out_channels, got {layers} and {halvings}"
            );
        }
        if config.block_out_channels.iter().any(|c| c % config.norm_num_groups != 0) {
            bail!(
                Value,
                "vae: norm_num_groups {} must divide block_out_channels {:?}",
                config.norm_num_groups,
                config.block_out_channels
            );
        }
        Ok(Self {
            encoder: Encoder::new(config, &w.pp("encoder"))?,
            decoder: Decoder::new(config, &w.pp("decoder"))?,
            quant: Conv::new(&w.pp("quant_conv"), 2 * z, 2 * z, 1)?,
            post_quant: Conv::new(&w.pp("post_quant_conv"), z, z, 1)?,
            latents: z,
        })
    }

    /// The same; with `checkpoint_blocks`, the decoder's resnets keep only their input for the backward to the latents and run again there.
    pub fn checkpointed(self, checkpoint_blocks: bool) -> Self {
        Self { decoder: Decoder { checkpoint_blocks, ..self.decoder }, ..self }
    }

    /// Mean and log-variance of the latents, each `[batch, latent_channels, h / f, w / f]`, of images in [-1, 1].
    pub fn moments(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let both = self.quant.forward(&self.encoder.forward(images)?)?;
        Ok((both.narrow(1, 0, self.latents)?.contiguous()?, both.narrow(1, self.latents, self.latents)?.contiguous()?))
    }

    /// Images, nominally in [-1, 1], of latents.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.post_quant.forward(latents)?)
    }
}

/// Convolution with bias that keeps the size, or halves it after padding right and bottom.
struct Conv {
    weight: Tensor,
    bias: Tensor,
    halve: bool,
}

impl Conv {
    fn new(w: &Weights, inner: usize, outer: usize, kernel: usize) -> Result<Self> {
        let bound = 1.0 / ((inner * kernel * kernel) as f64).sqrt();
        let weight = w.get("weight", &[outer, inner, kernel, kernel], Init::Uniform(bound * 3f64.sqrt()))?;
        Ok(Self { weight, bias: w.get("bias", &[outer], Init::Zeros)?, halve: false })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.halve {
            let padded = x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
            return conv2d(&padded, &self.weight, Some(&self.bias), 2, 0);
        }
        conv2d(x, &self.weight, Some(&self.bias), 1, self.weight.dim(2)? / 2)
    }
}

struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl GroupNorm {
    fn new(w: &Weights, channels: usize, groups: usize) -> Result<Self> {
        Ok(Self {
            weight: w.get("weight", &[channels], Init::Ones)?,
            bias: w.get("bias", &[channels], Init::Zeros)?,
            groups,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, self.groups, &self.weight, &self.bias, EPS)
    }

    /// With SiLU behind it.
    fn gated(&self, x: &Tensor) -> Result<Tensor> {
        group_norm_silu(x, self.groups, &self.weight, &self.bias, EPS)
    }
}

/// Two convolutions with a shortcut.
struct Resnet {
    norms: [GroupNorm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

impl Resnet {
    fn new(w: &Weights, inner: usize, outer: usize, groups: usize) -> Result<Self> {
        let shortcut = if inner == outer { None } else { Some(Conv::new(&w.pp("conv_shortcut"), inner, outer, 1)?) };
        Ok(Self {
            norms: [GroupNorm::new(&w.pp("norm1"), inner, groups)?, GroupNorm::new(&w.pp("norm2"), outer, groups)?],
            convs: [Conv::new(&w.pp("conv1"), inner, outer, 3)?, Conv::new(&w.pp("conv2"), outer, outer, 3)?],
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = x.clone();
        for (norm, conv) in self.norms.iter().zip(&self.convs) {
            h = conv.forward(&norm.gated(&h)?)?;
        }
        match &self.shortcut {
            Some(conv) => conv.forward(x)? + h,
            None => x + h,
        }
    }
}

/// Resnet, single-head attention over the pixels, resnet.
struct Middle {
    resnets: [Resnet; 2],
    norm: GroupNorm,
    qkv: [Linear; 3],
    out: Linear,
}

impl Middle {
    fn new(w: &Weights, channels: usize, groups: usize) -> Result<Self> {
        let attention = w.pp("attentions.0");
        let linear = |name: &str| attention.pp(name).linear(channels, channels, true);
        Ok(Self {
            resnets: [
                Resnet::new(&w.pp("resnets.0"), channels, channels, groups)?,
                Resnet::new(&w.pp("resnets.1"), channels, channels, groups)?,
            ],
            norm: GroupNorm::new(&attention.pp("group_norm"), channels, groups)?,
            qkv: [linear("to_q")?, linear("to_k")?, linear("to_v")?],
            out: linear("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.resnets[0].forward(x)?;
        let (b, c, h, w) = x.dims4()?;
        let pixels = op::permute(&op::reshape(&self.norm.forward(&x)?, (b, c, h * w))?, &[0, 2, 1])?;
        let part = |i: usize| op::reshape(&self.qkv[i].forward(&pixels)?, (b, h * w, 1, c));
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, (c as f64).powf(-0.5), None)?;
        let change = self.out.forward(&op::reshape(&attended, (b, h * w, c))?)?;
        let change = op::reshape(&op::permute(&change, &[0, 2, 1])?, (b, c, h, w))?;
        self.resnets[1].forward(&(x + change)?)
    }
}

struct Encoder {
    first: Conv,
    levels: Vec<(Vec<Resnet>, Option<Conv>)>,
    middle: Middle,
    norm: GroupNorm,
    last: Conv,
}

impl Encoder {
    fn new(config: &AutoencoderConfig, w: &Weights) -> Result<Self> {
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let top = widths[widths.len() - 1];
        let mut levels = Vec::new();
        for (i, outer) in widths.iter().enumerate() {
            let w = w.pp(format!("down_blocks.{i}"));
            let inner = |j: usize| if j == 0 && i > 0 { widths[i - 1] } else { *outer };
            let resnets = (0..config.layers_per_block)
                .map(|j| Resnet::new(&w.pp(format!("resnets.{j}")), inner(j), *outer, groups))
                .collect::<Result<_>>()?;
            let down = (i + 1 < widths.len()).then(|| Conv::new(&w.pp("downsamplers.0.conv"), *outer, *outer, 3));
            levels.push((resnets, down.transpose()?.map(|conv| Conv { halve: true, ..conv })));
        }
        Ok(Self {
            first: Conv::new(&w.pp("conv_in"), 3, widths[0], 3)?,
            levels,
            middle: Middle::new(&w.pp("mid_block"), top, groups)?,
            norm: GroupNorm::new(&w.pp("conv_norm_out"), top, groups)?,
            last: Conv::new(&w.pp("conv_out"), top, 2 * config.latent_channels, 3)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(images)?;
        for (resnets, down) in &self.levels {
            for resnet in resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(down) = down {
                x = down.forward(&x)?;
            }
        }
        self.last.forward(&self.norm.gated(&self.middle.forward(&x)?)?)
    }
}

struct Decoder {
    first: Conv,
    middle: Middle,
    levels: Vec<(Vec<Arc<Resnet>>, Option<Conv>)>,
    norm: GroupNorm,
    last: Conv,
    checkpoint_blocks: bool,
}

impl Decoder {
    fn new(config: &AutoencoderConfig, w: &Weights) -> Result<Self> {
        let groups = config.norm_num_groups;
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let mut levels = Vec::new();
        for (i, outer) in widths.iter().enumerate() {
            let w = w.pp(format!("up_blocks.{i}"));
            let inner = |j: usize| if j == 0 && i > 0 { widths[i - 1] } else { *outer };
            let resnets = (0..config.layers_per_block + 1)
                .map(|j| Resnet::new(&w.pp(format!("resnets.{j}")), inner(j), *outer, groups).map(Arc::new))
                .collect::<Result<_>>()?;
            let up =
                (i + 1 < widths.len()).then(|| Conv::new(&w.pp("upsamplers.0.conv"), *outer, *outer, 3)).transpose()?;
            levels.push((resnets, up));
        }
        let bottom = widths[widths.len() - 1];
        Ok(Self {
            first: Conv::new(&w.pp("conv_in"), config.latent_channels, widths[0], 3)?,
            middle: Middle::new(&w.pp("mid_block"), widths[0], groups)?,
            levels,
            norm: GroupNorm::new(&w.pp("conv_norm_out"), bottom, groups)?,
            last: Conv::new(&w.pp("conv_out"), bottom, 3, 3)?,
            checkpoint_blocks: false,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.first.forward(latents)?)?;
        for (resnets, up) in &self.levels {
            for resnet in resnets {
                x = match self.checkpoint_blocks {
                    true => {
                        let resnet = resnet.clone();
                        segment(&[&x], &[], move |i| resnet.forward(&i[0]))?
                    }
                    false => resnet.forward(&x)?,
                };
            }
            if let Some(up) = up {
                x = upsampled_conv2d(&x, &up.weight, &up.bias)?;
            }
        }
        self.last.forward(&self.norm.gated(&x)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_changes_numbers_is_refused() {
        let checked = |field: &str, value: Value| {
            let mut config = json!({ "block_out_channels": [8], "layers_per_block": 1, "latent_channels": 4 });
            config[field] = value;
            serde_json::from_value::<AutoencoderConfig>(config).unwrap().check_kind()
        };
        for (field, value, message) in [
            ("act_fn", json!("relu"), "vae: expected act_fn `silu`, got `relu`"),
            ("latents_mean", json!([0.5]), "vae: expected no `latents_mean`, got [0.5]"),
            ("latents_std", json!([2.0]), "vae: expected no `latents_std`, got [2.0]"),
        ] {
            assert_eq!(checked(field, value).unwrap_err().message, message);
        }
        for (field, value) in [("act_fn", json!("silu")), ("latents_mean", Value::Null), ("latents_std", Value::Null)] {
            checked(field, value).unwrap();
        }
    }
}
