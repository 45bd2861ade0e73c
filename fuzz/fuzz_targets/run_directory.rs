#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| amscript_fuzz::run_directory(data));
