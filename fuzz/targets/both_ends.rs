#![no_main]
//! See `dst_fuzz::both_ends`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::both_ends::run(data));
