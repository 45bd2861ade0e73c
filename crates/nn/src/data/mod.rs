//! Prompts, class names, and the shapes world: scenes, captions, and the oracle that knows the truth.

pub mod caption;
pub mod class;
pub mod distort;
pub mod font;
pub mod image;
mod lines;
pub mod oracle;
pub mod prompts;
pub mod shapes;

pub use prompts::Prompts;
