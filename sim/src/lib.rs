//! The deterministic simulation of DST: both engines, and the sans-I/O parts of the store, against each other from one seed.
//!
//! A scenario is a server with a disk, one or more clients with users, a network, and faults. Everything happens on one
//! simulated clock ([`queue`]) and everything random comes from the seed ([`rng`], [`scenario`]). The drivers ([`client`],
//! [`server`]) do what the real ones do round the same engines; [`network`] and [`disk`] do the worst that they may. Four
//! books are kept and compared at every step: [`model`] (what a disk may show), [`check`] (what devices may answer),
//! [`wirebook`] (what the server may execute), and [`world`]'s own clock (everything completes). [`plant`] breaks things on
//! purpose to see that the books notice.
#![forbid(unsafe_code)]

pub mod check;
pub mod client;
pub mod content;
pub mod ctx;
pub mod disk;
pub mod faults;
pub mod model;
pub mod network;
pub mod outbox;
pub mod plant;
pub mod queue;
pub mod rng;
pub mod runner;
pub mod scenario;
pub mod server;
pub mod stats;
pub mod trace;
pub mod wirebook;
pub mod workload;
pub mod world;

/// Something happened that the contract does not permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What.
    pub text: String,
}

impl Violation {
    /// With these words.
    pub fn new(text: impl Into<String>) -> Violation {
        Violation { text: text.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Violation {}
