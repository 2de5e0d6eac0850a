#![no_main]
//! See `dst_fuzz::export_lease`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| dst_fuzz::export_lease::run(data));
