//! Tensors by name in safetensors files, as tests and scripts read and write them; models have readers of their own.

use super::{Array, Device, Tensor};
use amscript_base::error::Result;
use std::collections::HashMap;
use std::path::Path;

/// All tensors of a file.
pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<HashMap<String, Tensor>> {
    let arrays = candle_core::safetensors::load(path, device)?;
    Ok(arrays.into_iter().map(|(name, array)| (name, Tensor::from(array))).collect())
}

/// Writes a file.
pub fn save<K: AsRef<str> + Ord + std::fmt::Display>(
    tensors: &HashMap<K, Tensor>,
    path: impl AsRef<Path>,
) -> Result<()> {
    let arrays: HashMap<&str, Array> = tensors.iter().map(|(name, x)| (name.as_ref(), x.array().clone())).collect();
    Ok(candle_core::safetensors::save(&arrays, path)?)
}
