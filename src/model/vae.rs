//! Convolutional autoencoders in the diffusers layout: `AutoencoderKL` with a mean and log-variance latent.

use crate::bail;
use crate::error::Result;
use crate::nn::linear::Linear;
use crate::nn::weights::{Init, Weights};
use crate::tensor::Tensor;
use crate::tensor::op::{attention, conv2d, group_norm, silu, upsample_nearest2x};
use serde::Deserialize;

/// `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
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
    /// Side of the images it was made for, in pixels.
    #[serde(default = "sample_size")]
    pub sample_size: usize,
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

/// Images in [-1, 1] to latents and back, without any scaling of the latents.
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant: Conv,
    post_quant: Conv,
    latents: usize,
}

impl Autoencoder {
    pub fn new(config: &Config, w: &Weights) -> Result<Self> {
        let z = config.latent_channels;
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

struct Norm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl Norm {
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
}

/// Two convolutions with a shortcut.
struct Resnet {
    norms: [Norm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

impl Resnet {
    fn new(w: &Weights, inner: usize, outer: usize, groups: usize) -> Result<Self> {
        let shortcut = if inner == outer { None } else { Some(Conv::new(&w.pp("conv_shortcut"), inner, outer, 1)?) };
        Ok(Self {
            norms: [Norm::new(&w.pp("norm1"), inner, groups)?, Norm::new(&w.pp("norm2"), outer, groups)?],
            convs: [Conv::new(&w.pp("conv1"), inner, outer, 3)?, Conv::new(&w.pp("conv2"), outer, outer, 3)?],
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = x.clone();
        for (norm, conv) in self.norms.iter().zip(&self.convs) {
            h = conv.forward(&silu(&norm.forward(&h)?)?)?;
        }
        match &self.shortcut {
            Some(conv) => Ok((conv.forward(x)? + h)?),
            None => Ok((x + h)?),
        }
    }
}

/// Resnet, single-head attention over the pixels, resnet.
struct Middle {
    resnets: [Resnet; 2],
    norm: Norm,
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
            norm: Norm::new(&attention.pp("group_norm"), channels, groups)?,
            qkv: [linear("to_q")?, linear("to_k")?, linear("to_v")?],
            out: linear("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.resnets[0].forward(x)?;
        let (b, c, h, w) = x.dims4()?;
        let pixels = self.norm.forward(&x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [b, h w, c]
        let part = |i: usize| -> Result<Tensor> { Ok(self.qkv[i].forward(&pixels)?.unsqueeze(2)?) };
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, (c as f64).powf(-0.5), None)?.squeeze(2)?;
        let change = self.out.forward(&attended)?.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?;
        self.resnets[1].forward(&(x + change)?)
    }
}

struct Encoder {
    first: Conv,
    levels: Vec<(Vec<Resnet>, Option<Conv>)>,
    middle: Middle,
    norm: Norm,
    last: Conv,
}

impl Encoder {
    fn new(config: &Config, w: &Weights) -> Result<Self> {
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
            norm: Norm::new(&w.pp("conv_norm_out"), top, groups)?,
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
        self.last.forward(&silu(&self.norm.forward(&self.middle.forward(&x)?)?)?)
    }
}

struct Decoder {
    first: Conv,
    middle: Middle,
    levels: Vec<(Vec<Resnet>, Option<Conv>)>,
    norm: Norm,
    last: Conv,
}

impl Decoder {
    fn new(config: &Config, w: &Weights) -> Result<Self> {
        let groups = config.norm_num_groups;
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let mut levels = Vec::new();
        for (i, outer) in widths.iter().enumerate() {
            let w = w.pp(format!("up_blocks.{i}"));
            let inner = |j: usize| if j == 0 && i > 0 { widths[i - 1] } else { *outer };
            let resnets = (0..config.layers_per_block + 1)
                .map(|j| Resnet::new(&w.pp(format!("resnets.{j}")), inner(j), *outer, groups))
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
            norm: Norm::new(&w.pp("conv_norm_out"), bottom, groups)?,
            last: Conv::new(&w.pp("conv_out"), bottom, 3, 3)?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.first.forward(latents)?)?;
        for (resnets, up) in &self.levels {
            for resnet in resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(up) = up {
                x = up.forward(&upsample_nearest2x(&x)?)?;
            }
        }
        self.last.forward(&silu(&self.norm.forward(&x)?)?)
    }
}
