#![no_main]
//! See `dst_fuzz::urls_and_specs`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::urls_and_specs::run(data));
