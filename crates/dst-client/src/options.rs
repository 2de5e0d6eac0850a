//! What a device is opened with.

use std::time::Duration;

use dst_net::Endpoint;
use dst_proto::{Algorithm, MAX_PAYLOAD};

/// What a device is opened with. [`Options::new`] has defaults for all but the endpoint.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the server is and which export is meant.
    pub endpoint: Endpoint,
    /// Only read, and take no lease.
    pub read_only: bool,
    /// Fail a request after so long; `None` to wait without limit.
    pub deadline: Option<Duration>,
    /// Connections, 1 to 8.
    pub connections: u16,
    /// Most bytes of acknowledged writes to keep until they are durable; `None` to keep none, and to fail the device where
    /// they would have been needed.
    pub retain: Option<u64>,
    /// Set the memory for all that is retained aside before the session is opened, and so much more, bytes, for requests
    /// in flight: then nothing is allocated on the way of a request, as long as those in flight need no more. `None`:
    /// memory is allocated as it is needed.
    pub reserve: Option<u64>,
    /// Keep a record in this directory by which a successor can settle what a killed process has left: see
    /// [`crate::record`]. It has all the memory for retained writes and, unless [`Options::reserve`] says another amount,
    /// [`Options::IN_FLIGHT`] for requests in flight.
    pub record: Option<std::path::PathBuf>,
    /// Send plaintext beyond this machine.
    pub insecure: bool,
    /// The lasting part of the lease holder, see [`crate::identity`].
    pub identity: [u8; 16],
    /// Name of this client, for people.
    pub name: String,
    /// How long [`crate::Driver::open`] tries; `None` for ever.
    pub connect_timeout: Option<Duration>,
    /// Digest of payloads.
    pub digest: Algorithm,
    /// Granule of digests, bytes.
    pub granule: u32,
    /// Requests in flight, 1 to 512.
    pub depth: u16,
    /// Largest payload of one request, bytes.
    pub max_transfer: u32,
}

impl Options {
    /// Memory of a record for requests in flight, bytes.
    pub const IN_FLIGHT: u64 = 64 << 20;

    /// The defaults. The identity is a passing one: a device that is to be taken over after a crash wants
    /// [`crate::identity::identity`].
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            read_only: false,
            deadline: None,
            connections: 1,
            retain: Some(256 << 20),
            reserve: None,
            record: None,
            insecure: false,
            identity: dst_ids::random(),
            name: host_name(),
            connect_timeout: Some(Duration::from_secs(10)),
            digest: Algorithm::Crc32c,
            granule: dst_proto::digest::DEFAULT_GRANULE,
            depth: 128,
            max_transfer: 1 << 20,
        }
    }

    /// The largest payload as it may be asked for: a multiple of the largest logical block.
    pub(crate) fn max_payload(&self) -> u32 {
        self.max_transfer.clamp(65536, MAX_PAYLOAD) & !65535
    }
}

/// The name of this machine, as far as a name of a client may hold it.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.chars().filter(|c| !c.is_control()).take(16).collect()
}
