//! The only copies of the building blocks; models are written with these and `tensor::op` only.
