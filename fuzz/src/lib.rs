//! Fuzz targets of DST: one module for each, run by the binary of the same name in `targets/` (see `run`).
//!
//! Each takes one input and panics where a rule is broken. What an input of a structured target means can be read with
//! `DST_FUZZ_TRACE=1`.

pub mod both_ends;
pub mod client_engine;
pub mod digests;
pub mod export_lease;
pub mod frames;
pub mod input;
pub mod proto_header;
pub mod proto_hello;
pub mod proto_options;
pub mod receiver;
pub mod server_engine;
pub mod trace;
pub mod urls_and_specs;
