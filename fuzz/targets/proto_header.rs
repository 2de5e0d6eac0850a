#![no_main]
//! See `dst_fuzz::proto_header`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::proto_header::run(data));
