//! The session rules of DST for both ends, sans I/O.
//!
//! This crate does no I/O, reads no clock, spawns nothing and allocates nothing. It takes events (a header came, a
//! request was submitted, the time is now T, a connection broke) and gives back what to do (send this, complete that,
//! wake me at T). The same source runs in user space, in the kernel module and in the simulation (`sim/`).
//!
//! * [`frame`]: putting frames together, for both ends;
//! * [`rx`]: reassembly of the frames of one connection, for both ends;
//! * [`window`]: which ids of a session have finished;
//! * [`client`]: slots, connections, barriers, retention, replay and deadlines of a client;
//! * [`server`]: dedup, order, ABORT, leases and incarnations of a server.
//!
//! The engine never holds payload: it names ranges of slots, and the driver moves the bytes.
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub use dst_proto as proto;

#[path = "modules.rs"]
mod engine;
pub use engine::*;
