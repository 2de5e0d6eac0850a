//! The DST wire format: headers, messages, options, digests. No I/O, no allocation, no dependency.
//!
//! `docs/PROTOCOL.md` specifies every byte; `vectors/` has examples of each structure for other implementations. Nothing
//! here panics, on any input. The same sources are compiled into the kernel module, so `modules.rs` is the real root and
//! this file holds the crate attributes only.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[path = "modules.rs"]
mod proto;
pub use proto::*;
