//! The command: arguments in, one report out, exit code.

use amscript::cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: amscript_base::memory::Counting = amscript_base::memory::Counting;

fn main() -> ExitCode {
    // candle's own thread pool spins while it waits. The work worth sharing, matrix products and our kernels, runs on rayon.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    keep_freed_memory();
    cli::main(std::env::args_os()).unwrap_or_else(|error| cli::fail(&error))
}

/// Large blocks go back to the allocator, not to the system: mapping and clearing their pages anew for each tensor took an
/// eighth of an update. One arena for all threads, because those of other threads than the first give back all the same.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers of the allocator, before other threads run.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
