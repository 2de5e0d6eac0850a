//! What a server is started with, and why it may not start.

use std::path::PathBuf;
use std::time::Duration;

use dst_net::Endpoint;

use crate::budget;
use crate::handover::HandOver;

/// One export to offer.
#[derive(Debug, Clone)]
pub struct ExportConfig {
    /// The name that clients use, and where the bytes are.
    pub spec: dst_store::Spec,
    /// Refuse writes.
    pub read_only: bool,
    /// Logical block in bytes; `None` for the backend's own.
    pub block_size: Option<u32>,
    /// Make a sparse file of so many bytes where none is.
    pub create_size: Option<u64>,
}

/// What a server is started with. [`Config::new`] has defaults for all but exports and addresses.
#[derive(Debug, Clone)]
pub struct Config {
    /// What to offer.
    pub exports: Vec<ExportConfig>,
    /// Where to listen.
    pub listen: Vec<Endpoint>,
    /// Where holders, epochs and incarnations are kept.
    pub state_dir: PathBuf,
    /// What outlives a process but not a boot; `None` for the state directory.
    pub runtime_dir: Option<PathBuf>,
    /// Take plaintext connections from other machines.
    pub insecure: bool,
    /// How long a session without a connection is kept; that of a reader 30 s at most.
    pub session_time: Duration,
    /// After so long without a sign of life another client may take the lease.
    pub lease_time: Duration,
    /// Silence after which a peer is asked for a sign of life; it has four times that long.
    pub keepalive: Duration,
    /// How long a stop waits for what is in flight.
    pub drain_timeout: Duration,
    /// Bytes that all sessions together may take: of buffers, tables and payload, not of exports that are memory. At least
    /// [`Config::LEAST_MEMORY`].
    pub memory: u64,
    /// Take streams over from commands, if at all.
    pub hand_over: Option<HandOver>,
}

impl Config {
    /// The least [`Config::memory`], bytes.
    pub const LEAST_MEMORY: u64 = budget::LEAST;

    /// The defaults; of memory, a quarter of what this process may use of the machine's.
    pub fn new(exports: Vec<ExportConfig>, listen: Vec<Endpoint>, state_dir: PathBuf) -> Self {
        Self {
            exports,
            listen,
            state_dir,
            runtime_dir: None,
            insecure: false,
            session_time: Duration::from_secs(600),
            lease_time: Duration::from_secs(30),
            keepalive: Duration::from_millis(2500),
            drain_timeout: Duration::from_secs(10),
            memory: budget::of_this_machine(),
            hand_over: None,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An export can't be opened.
    #[error("export {name}: {source}")]
    Export {
        /// The export.
        name: String,
        /// Why.
        source: dst_store::OpenError,
    },
    /// Two exports have one name, or a name can't be one.
    #[error("{0}")]
    Name(String),
    /// Two exports carry the same id.
    #[error(
        "exports {name} and {other} carry the same id: one is a copy of the other, made with its extended attributes; \
         give the copy an id of its own by removing it: setfattr -x user.dst.id FILE"
    )]
    SameId {
        /// One.
        name: String,
        /// The other.
        other: String,
    },
    /// An address can't be listened at.
    #[error("cannot listen at {url}: {source}")]
    Listen {
        /// The address.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// An address that other machines can reach, without `insecure`.
    #[error("{0} can be reached from other machines, and connections are not encrypted; give --insecure to allow that")]
    Insecure(String),
    /// The state directory can't be used.
    #[error("the state of export {name} in {dir}: {source}")]
    State {
        /// The export.
        name: String,
        /// The directory.
        dir: String,
        /// Why.
        source: std::io::Error,
    },
    /// Commands can't hand streams over, for which alone it was to run.
    #[error("streams can't be handed over in {dir}: {source}")]
    HandOver {
        /// The directory.
        dir: String,
        /// Why.
        source: std::io::Error,
    },
    /// The memory that it may use is too little.
    #[error("{} MiB of memory are too little for a server; it needs {} MiB", .0 >> 20, Config::LEAST_MEMORY >> 20)]
    Memory(u64),
    /// Something on this machine failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
