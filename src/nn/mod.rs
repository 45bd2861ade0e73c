//! The only copies of the building blocks; models are written with these and `tensor::op` only.

pub mod archive;
pub mod bert;
pub mod clip;
pub mod clip_config;
pub mod clip_text;
pub mod cost;
pub mod digest;
pub mod files;
pub mod inventory;
pub mod layout;
pub mod linear;
pub mod lora;
pub mod module;
pub mod opener;
mod pickle;
pub mod preprocess;
pub mod source;
pub mod tokenizer;
pub mod vit;
pub mod weights;
