//! The only folder that knows Rhai: one file per manual chapter, and what reads the chapters back as help.
