//! Prompts and the shapes world: scenes, captions, and the oracle that knows the truth.

pub mod caption;
pub mod prompts;
pub mod shapes;

pub use prompts::Prompts;
