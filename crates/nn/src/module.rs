//! What flows, autoencoders and rewards have in common: weights that are trained, counted and written.

use super::cost::Part;
use amscript_base::error::Result;
use amscript_tensor::{DType, Tensor};
use std::path::Path;

/// Something with weights.
pub trait Module {
    /// What it is when its weights are variables.
    type Trained;

    /// The same with variables for weights.
    fn trainable(&self) -> Result<Self::Trained>;

    /// The variables by name, in order; none while it is frozen.
    fn params(&self) -> Vec<(String, Tensor)>;

    /// Its weights by part.
    fn parts(&self) -> Result<Vec<Part>>;

    /// Writes weights and config into a folder that opens as the same thing; without a `dtype`, in the type its files usually have.
    fn save(&self, folder: &Path, dtype: Option<DType>) -> Result<()>;
}
