//! The only copies of the building blocks; models are written with these and `tensor::op` only.

pub mod archive;
pub mod clip;
pub mod linear;
pub mod lora;
pub mod weights;
