#![no_main]
//! See `dst_fuzz::digests`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::digests::run(data));
