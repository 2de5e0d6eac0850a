#![no_main]
//! See `dst_fuzz::receiver`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::receiver::run(data));
