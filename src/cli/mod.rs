//! Commands: parse, call, print one error, exit code. Nothing here computes.
