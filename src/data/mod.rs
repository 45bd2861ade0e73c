//! Prompts and the shapes world: scenes, captions, and the oracle that knows the truth.
