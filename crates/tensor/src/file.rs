//! Tensors by name in safetensors files, as tests read them; models have readers of their own.

use super::{Device, Tensor};
use amscript_base::error::Result;
use amscript_base::file;
use std::collections::HashMap;
use std::path::Path;

/// All tensors of a file.
pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<HashMap<String, Tensor>> {
    let bytes = file::read_within(path.as_ref(), u64::MAX).map_err(candle_core::Error::from)?;
    let arrays = candle_core::safetensors::load_buffer(&bytes, device)?;
    Ok(arrays.into_iter().map(|(name, array)| (name, Tensor::from(array))).collect())
}
