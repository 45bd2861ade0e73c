//! Latents that a flow moves in: an autoencoder, and how its raw latents are brought to unit size.

use super::vae::{self, Autoencoder};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_nn::cost::Part;
use amscript_nn::source::Component;
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::meta::Trace;
use amscript_tensor::{DType, Device, Tensor, op};
use std::sync::Arc;

/// An autoencoder and the normalisation of its latents.
pub struct Latents {
    pub config: vae::AutoencoderConfig,
    autoencoder: Autoencoder,
    scaling: Scaling,
    part: Part,
}

/// From raw latents to those of the flow.
enum Scaling {
    /// Patches of 2 x 2 become channels, each brought to zero mean and unit deviation by stored statistics (FLUX.2).
    Patches { mean: Tensor, variance: Tensor },
    /// All about `shift_factor`, times `scaling_factor` (Stable Diffusion).
    Factor { shift: f64, factor: f64 },
}

impl Latents {
    pub fn new(config: &vae::AutoencoderConfig, w: &Weights) -> Result<Self> {
        let autoencoder = Autoencoder::new(config, w)?;
        let scaling = match config.class_name.as_str() {
            "AutoencoderKLFlux2" => {
                let (channels, bn) = (4 * config.latent_channels, w.pp("bn"));
                bn.skip("num_batches_tracked");
                Scaling::Patches {
                    mean: bn.get("running_mean", &[channels], Init::Zeros)?,
                    variance: bn.get("running_var", &[channels], Init::Ones)?,
                }
            }
            "AutoencoderKL" => {
                Scaling::Factor { shift: config.shift_factor.unwrap_or_default(), factor: config.scaling_factor }
            }
            other => {
                bail!(Value, "vae: _class_name must be AutoencoderKLFlux2 or AutoencoderKL, got {other}")
            }
        };
        let part = Part::of("autoencoder", w);
        Ok(Self { config: config.clone(), autoencoder, scaling, part })
    }

    /// From a `vae` folder or a single file; `groups` are those of the group norms where no config says so.
    pub fn open(part: &Component, groups: Option<usize>, dtype: DType, device: &Device) -> Result<Self> {
        let (config, weights) = Self::stored(part, groups, dtype, device)?;
        weights.build(|w| Self::new(&config, w))
    }

    /// The same from headers alone, for a run without numbers.
    pub fn traced(part: &Component, groups: Option<usize>, dtype: DType, trace: &Arc<Trace>) -> Result<Self> {
        let (config, weights) = Self::stored(part, groups, dtype, &Device::Cpu)?;
        Self::new(&config, &weights.traced(trace))
    }

    fn stored(
        part: &Component,
        groups: Option<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<(vae::AutoencoderConfig, Weights)> {
        let archives = part.archives()?;
        let layout = vae::layout(vae::levels(archives.iter().flat_map(|archive| archive.entries().keys())));
        let weights = Weights::open_as(archives, &layout, &[], dtype, device)?;
        let mut config = part.config()?.map_or_else(|| vae::AutoencoderConfig::of(&weights), Ok)?;
        config.norm_num_groups = groups.unwrap_or(config.norm_num_groups);
        weights.verify(|w| Self::new(&config, w))?;
        Ok((config, weights))
    }

    /// Its weights.
    pub fn part(&self) -> Part {
        self.part.clone()
    }

    /// See [`Autoencoder::checkpointed`].
    pub fn checkpointed(self, checkpoint_blocks: bool) -> Self {
        Self { autoencoder: self.autoencoder.checkpointed(checkpoint_blocks), ..self }
    }

    /// Mean and log-variance `[batch, c, h, w]` of raw latents of images in [0, 1].
    pub fn moments(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        self.autoencoder.moments(&images.affine(2.0, -1.0)?)
    }

    /// Images, nominally in [0, 1] and not clamped, of raw latents `[batch, c, h, w]`.
    pub fn reconstruct(&self, raw: &Tensor) -> Result<Tensor> {
        self.autoencoder.decode(raw)?.affine(0.5, 0.5)
    }

    /// Normalised latents `[batch, channels, h, w]` of images in [0, 1]: the mean, without sampling.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, h, w) = images.dims4()?;
        let side = self.pixels();
        if channels != 3 || h % side != 0 || w % side != 0 {
            bail!(
                Shape,
                "encode_image: expected images [batch, 3, h, w] with sides that are multiples of {side}, got {:?}",
                images.dims()
            );
        }
        let raw = self.moments(images)?.0;
        match &self.scaling {
            Scaling::Factor { shift, factor } => (raw - *shift)? * *factor,
            Scaling::Patches { mean, variance } => {
                let (mean, deviation) = self.statistics(mean, variance)?;
                Ok(patchify(&raw)?.broadcast_sub(&mean)?.broadcast_div(&deviation)?)
            }
        }
    }

    /// Images, nominally in [0, 1] and not clamped, of normalised latents `[batch, channels, h, w]`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        if latents.rank() != 4 || latents.dim(1)? != self.channels() {
            let (channels, dims) = (self.channels(), latents.dims());
            bail!(Shape, "decode: expected latents [batch, {channels}, height, width], got {dims:?}");
        }
        let latents = &op::cast(latents, DType::F32)?; // of states in f64 too
        match &self.scaling {
            Scaling::Factor { shift, factor } => self.reconstruct(&((latents / *factor)? + *shift)?),
            Scaling::Patches { mean, variance } => {
                let (mean, deviation) = self.statistics(mean, variance)?;
                let raw = latents.broadcast_mul(&deviation)?.broadcast_add(&mean)?;
                self.reconstruct(&unpatchify(&raw)?)
            }
        }
    }

    /// Refuses a network that moves in other channels than these.
    pub fn serve(&self, name: &str, in_channels: usize) -> Result<()> {
        if in_channels != self.channels() {
            bail!(
                Value,
                "{name}: the transformer's in_channels must be the {} latent channels of the vae, got {in_channels}",
                self.channels()
            );
        }
        Ok(())
    }

    /// Channels of the normalised latents.
    pub fn channels(&self) -> usize {
        match self.scaling {
            Scaling::Patches { .. } => 4 * self.config.latent_channels,
            Scaling::Factor { .. } => self.config.latent_channels,
        }
    }

    /// Pixels per side of one normalised latent.
    pub fn pixels(&self) -> usize {
        let raw = 1 << (self.config.block_out_channels.len() - 1);
        match self.scaling {
            Scaling::Patches { .. } => 2 * raw,
            Scaling::Factor { .. } => raw,
        }
    }

    /// Height and width of the latents of images of this height and width in pixels.
    pub fn grid(&self, size: [usize; 2]) -> Result<[usize; 2]> {
        let pixels = self.pixels();
        if size.iter().any(|side| *side == 0 || side % pixels != 0) {
            bail!(Value, "height and width must be multiples of {pixels}, got {size:?}");
        }
        Ok(size.map(|side| side / pixels))
    }

    fn statistics(&self, mean: &Tensor, variance: &Tensor) -> Result<(Tensor, Tensor)> {
        let deviation = (variance + self.config.batch_norm_eps)?.sqrt()?;
        Ok((mean.reshape((1, (), 1, 1))?, deviation.reshape((1, (), 1, 1))?))
    }
}

/// `[b, c, 2 h, 2 w]` to `[b, 4 c, h, w]`, channel = 4 c + 2 row + column.
pub fn patchify(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape((b, c, h / 2, 2, w / 2, 2))?.permute((0, 1, 3, 5, 2, 4))?;
    x.contiguous()?.reshape((b, 4 * c, h / 2, w / 2))
}

/// The inverse of [`patchify`].
pub fn unpatchify(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = op::permute(&op::reshape(x, &[b, c / 4, 2, 2, h, w][..])?, &[0, 1, 4, 2, 5, 3])?;
    op::reshape(&x, (b, c / 4, 2 * h, 2 * w))
}
