#![no_main]
//! See `dst_fuzz::proto_hello`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::proto_hello::run(data));
