//! The command: arguments in, one report out, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // candle's own thread pool spins while it waits. The work worth sharing, matrix products and our kernels, runs on rayon.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    amscript::cli::main(std::env::args_os())
}
