//! Image codecs: an autoencoder, how its latents are brought to unit size, and both as the codec of a family.
//!
//! Decoded images are clamped to [0, 1] and their gradient is not, so that a reward can pull a pixel back that is out of range.

pub mod latents;
pub mod vae;

use super::parts::Codec;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::file;
use amscript_nn::opener::{Field, Takes, field};
use amscript_nn::source::{Component, Sources};
use amscript_tensor::meta::Trace;
use amscript_tensor::op::clamp_through;
use amscript_tensor::{DType, Device, Tensor};
use latents::Latents;
use std::path::Path;
use std::sync::Arc;

/// The option that says where the autoencoder lies.
pub const VAE: Field = field(
    "vae",
    Takes::Model,
    "Name, folder or file of the autoencoder, for weights that have none beside them; () means the published one.",
);
/// The option for an autoencoder without a config.
pub const NORM_NUM_GROUPS: Field =
    field("norm_num_groups", Takes::Count, "Groups of the group norms of an autoencoder in a single file.");

/// An autoencoder at images of some size.
pub struct ImageCodec {
    pub latents: Latents,
    /// Height and width of the images, in pixels.
    size: [usize; 2],
}

impl ImageCodec {
    /// `name` stands in errors.
    pub fn new(name: &str, latents: Latents, size: [usize; 2]) -> Result<Self> {
        latents.grid(size).map_err(|e| e.within(name))?;
        Ok(Self { latents, size })
    }
}

impl Codec for ImageCodec {
    fn latent_shape(&self, size: Option<&[usize]>) -> Result<Vec<usize>> {
        let size = match size {
            None => self.size,
            Some([side]) => [*side; 2],
            Some([height, width]) => [*height, *width],
            Some(_) => bail!(Value, "size: expected a side or [height, width]"),
        };
        let [h, w] = self.latents.grid(size)?;
        Ok(vec![self.latents.channels(), h, w])
    }

    fn encode(&self, images: &Tensor) -> Result<Tensor> {
        self.latents.encode(images)
    }

    /// The gradient passes the clamp to [0, 1], so that an out-of-range pixel can be pulled back.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        clamp_through(&self.latents.decode(latents)?, 0.0, 1.0)
    }
}

/// Where the autoencoder lies that was named: a path, or the name of its folder.
pub fn named(vae: &str, sources: &Sources) -> Result<Component> {
    match file::exists(Path::new(vae)) {
        true => Component::at(Path::new(vae)),
        false => sources.find(vae).map(Component::Folder),
    }
}

/// The autoencoder in a folder or file, in f32; from headers alone for a run without numbers.
pub fn open(vae: &Component, groups: Option<usize>, trace: Option<&Arc<Trace>>, device: &Device) -> Result<Latents> {
    match trace {
        Some(trace) => Latents::traced(vae, groups, DType::F32, trace),
        None => Latents::open(vae, groups, DType::F32, device),
    }
}
