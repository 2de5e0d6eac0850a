#![no_main]
//! See `dst_fuzz::server_engine`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::server_engine::run(data));
