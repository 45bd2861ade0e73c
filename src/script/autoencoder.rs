//! Chapter `autoencoder`: image codecs that are made and trained on their own.

use super::model::{SaveOptions, json, readable, writable};
use super::*;
use amscript_align::optim::Params;
use amscript_base::file;
use amscript_model::codec::latents::{Latents, patchify};
use amscript_nn::cost::Part;
use amscript_nn::module::Module;
use amscript_nn::source::Folder;
use amscript_nn::weights::Weights;
use amscript_tensor::{DType, Tensor};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// An autoencoder as scripts hold it: its weights, and the network built from them.
#[derive(Clone)]
pub struct Autoencoder {
    config: Value,
    weights: Weights,
    latents: Arc<Latents>,
}

impl Autoencoder {
    fn new(config: Value, weights: Weights) -> Result<Self> {
        let wrong = |e| Error::new(Kind::Option, format!("autoencoder: config: {e}"));
        let latents = Latents::new(&serde_json::from_value(config.clone()).map_err(wrong)?, &weights)?;
        Ok(Self { config, weights, latents: Arc::new(latents) })
    }

    fn random(config: Map, rng: &amscript_tensor::Rng, session: &Session) -> Result<Self> {
        Self::new(json(&config, "autoencoder")?, Weights::random(rng, DType::F32, session.device()))
    }

    fn open(folder: &Folder, session: &Session) -> Result<Self> {
        let weights = folder.weights("diffusion_pytorch_model", DType::F32, session.device())?;
        let opened = Self::new(folder.json("config.json")?, weights)?;
        opened.weights.finish()?;
        Ok(opened)
    }

    /// The same network, its latents brought to unit size by raw ones `[n, c, h, w]`.
    fn normalised(&self, raw: &Tensor) -> Result<Self> {
        if self.latents.config.class_name == "AutoencoderKL" {
            let variance = raw.flatten_all()?.var(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let mut config = self.config.clone();
            config["scaling_factor"] = serde_json::json!(variance.sqrt().recip());
            return Self::new(config, self.weights.map(|_, tensor| tensor.detach())?);
        }
        let patches = patchify(raw)?.transpose(0, 1)?.flatten_from(1)?; // [4 c, n h w / 4]
        let (mean, variance) = (patches.mean(1)?, patches.var(1)?);
        let weights = self.weights.map(|name, tensor| {
            Ok(match name {
                "bn.running_mean" => mean.clone(),
                "bn.running_var" => variance.clone(),
                _ => tensor.detach()?,
            })
        })?;
        Self::new(self.config.clone(), weights)
    }
}

impl Module for Autoencoder {
    type Trained = Self;

    /// All but the statistics of the latents.
    fn trainable(&self) -> Result<Self> {
        Self::new(self.config.clone(), self.weights.trainable(|name| !name.starts_with("bn."))?)
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.weights.params()
    }

    fn parts(&self) -> Result<Vec<Part>> {
        Ok(vec![self.latents.part()])
    }

    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("save: {}: {e}", folder.display()));
        file::make_folder(folder).map_err(refused)?;
        self.weights.save(&folder.join("diffusion_pytorch_model.safetensors"), dtype)?;
        let text = format!("{:#}\n", self.config);
        file::write_whole(&folder.join("config.json"), text.as_bytes()).map_err(refused)
    }
}

impl fmt::Display for Autoencoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "autoencoder({} latent channels, {} pixels)", self.latents.channels(), self.latents.pixels())
    }
}

/// Autoencoders (`autoencoder(..)`) that are made and trained on their own; a model's own is part of `flow(..)`.
#[export_module(manifest)]
pub mod autoencoder {
    use super::*;

    pub type Autoencoder = super::Autoencoder;

    /// A new autoencoder of the given sizes (the keys of `vae/config.json`), with random weights.
    ///
    /// ```rhai
    /// autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0))   //=> autoencoder(8 latent channels, 4 pixels)
    /// ```
    #[rhai_fn(name = "autoencoder", return_raw)]
    pub fn autoencoder_random(
        context: NativeCallContext,
        config: Map,
        rng: amscript_tensor::Stream,
    ) -> RhaiResultOf<Autoencoder> {
        Ok(rng.draw(|rng| super::Autoencoder::random(config, rng, &Session::of(&context)))?)
    }

    /// An autoencoder from a `vae` folder.
    ///
    /// ```rhai
    /// autoencoder("nowhere")   //=> error: nowhere
    /// ```
    #[rhai_fn(name = "autoencoder", return_raw)]
    pub fn autoencoder_open(context: NativeCallContext, folder: &str) -> RhaiResultOf<Autoencoder> {
        Ok(Autoencoder::open(&Folder::disk(readable(&context, folder, "autoencoder")?), &Session::of(&context))?)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_autoencoder(autoencoder: &mut Autoencoder) -> String {
        autoencoder.to_string()
    }

    /// The same autoencoder with every weight trainable; the normalisation statistics stay fixed.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// adamw(small.trainable().params())   //=> adamw(120 tensors ..
    /// ```
    #[rhai_fn(name = "trainable", return_raw)]
    pub fn trainable_autoencoder(autoencoder: Autoencoder) -> RhaiResultOf<Autoencoder> {
        Ok(autoencoder.trainable()?)
    }

    /// The trainable tensors of an autoencoder, for an optimizer; none when it is frozen.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// adamw(small.params())   //=> error: there must be a trainable tensor
    /// ```
    #[rhai_fn(name = "params", return_raw)]
    pub fn params_of_autoencoder(autoencoder: Autoencoder) -> RhaiResultOf<Params> {
        Ok(Params::new(autoencoder.params())?)
    }

    /// Mean and log-variance `[batch, c, h, w]` of the raw latents of images in [0, 1], as an array of the two.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.moments(full([1, 3, 8, 8], 0.5))[0].shape   //=> [1, 2, 4, 4]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn moments(autoencoder: Autoencoder, images: Tensor) -> RhaiResultOf<Array> {
        let (mean, log_variance) = autoencoder.latents.moments(&images)?;
        Ok(vec![Dynamic::from(mean), Dynamic::from(log_variance)])
    }

    /// Images, nominally in [0, 1] and not clamped, of raw latents.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.reconstruct(zeros([1, 2, 4, 4])).shape   //=> [1, 3, 8, 8]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn reconstruct(autoencoder: Autoencoder, raw: Tensor) -> RhaiResultOf<Tensor> {
        Ok(autoencoder.latents.reconstruct(&raw)?)
    }

    /// The same autoencoder, its latents normalised by the statistics of these raw ones `[n, c, h, w]`.
    ///
    /// ```rhai
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.normalised(rng(1).normal([2, 2, 4, 4]))   //=> autoencoder(8 latent channels, 4 pixels)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn normalised(autoencoder: Autoencoder, raw: Tensor) -> RhaiResultOf<Autoencoder> {
        Ok(autoencoder.normalised(&raw)?)
    }

    /// Writes an autoencoder as a `vae` folder.
    ///
    /// ```rhai no_run
    /// let small = autoencoder(#{ block_out_channels: [8, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 4 }, rng(0));
    /// small.save("vae", #{ dtype: f16() });
    /// ```
    #[rhai_fn(name = "save", return_raw, volatile)]
    pub fn save_autoencoder(
        context: NativeCallContext,
        autoencoder: Autoencoder,
        folder: &str,
        options: Map,
    ) -> RhaiResultOf<()> {
        let dtype = SaveOptions::parse("save", options)?.dtype;
        Ok(autoencoder.save(&writable(&context, folder, "save")?, dtype)?)
    }
}
