#![no_main]
//! See `dst_fuzz::proto_options`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::proto_options::run(data));
