#![no_main]
//! See `dst_fuzz::client_engine`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::client_engine::run(data));
