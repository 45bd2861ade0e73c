//! The only copies of the building blocks; models are written with these and `tensor::op` only.
//!
//! Decisions:
//! * **Models are rebuilt, not mutated.** A network is sizes and [`weights::Weights`]. Adapters and full training make new weights that share
//!   every frozen tensor, and the network is built again; building only looks tensors up. It holds views of weights, never copies: what is
//!   copied while a network is built no longer follows the optimizer.
//! * **Headers first.** Weights know names, shapes and types before a number is read. A model is built once from weights without numbers,
//!   which finds everything missing, extra, misshaped or of a wrong type; then the mapped files are read tensor by tensor.
//! * **Layouts are tables of pieces** (`layout.rs`): a stored tensor is rows, halves or shapes of the tensors that models ask for. There is no
//!   second copy of a model for a second layout, and files are read and written without renaming.
//! * **Two types per network**: that in which weights are held and that in which it computes. On the processor half-precision weights are
//!   cast to f32 for each product and not kept. States, times, adjoints, adapters and trained weights stay f32.
//! * **LoRA files: every tensor is used or the file is refused** (`lora.rs`). A module's names in other layouts and its place among stacked
//!   matrices are one table. Alpha is folded in when saving. A strength is a factor of the adapters' scale over the same variables.
//! * **Doors are tables** (`opener.rs`): a line says what it recognises, which options it takes, and how it opens. Where two lines recognise a
//!   folder the script says which; an option of another line is refused, not ignored. A host adds lines of its own.

pub mod data;

pub mod archive;
pub mod bert;
pub mod clip;
pub mod clip_config;
pub mod clip_text;
pub mod cost;
pub mod digest;
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

/// Layers of one kind that a network may have: memory would be full long before more were made.
pub const MOST_LAYERS: usize = 1000;
