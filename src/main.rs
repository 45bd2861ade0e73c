//! The command: arguments in, one report out, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    amscript::cli::main(std::env::args_os())
}
