//! The only copies of the building blocks; models are written with these and `tensor::op` only.

pub mod archive;
pub mod bert;
pub mod clip;
pub mod clip_config;
pub mod layout;
pub mod linear;
pub mod lora;
mod pickle;
pub mod preprocess;
pub mod vit;
pub mod weights;
