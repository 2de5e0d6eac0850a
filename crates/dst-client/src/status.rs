//! What a device can tell about itself.

use serde::Serialize;

/// Requests and bytes since the device was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// READs completed.
    pub reads: u64,
    /// WRITEs completed.
    pub writes: u64,
    /// FLUSHes completed, the engine's own not counted.
    pub flushes: u64,
    /// DISCARD, WRITE ZEROES and BLOCK STATUS completed.
    pub others: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests completed with an error.
    pub errors: u64,
}

/// A snapshot for `dst status`.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceStatus {
    /// `opening`, `replaying`, `live`, `reconnecting`, `closing`, `closed` or `failed`.
    pub state: &'static str,
    /// Why, where there is more to say: the last connection error, the server's refusal, why the device failed.
    pub message: Option<String>,
    /// The server's URL.
    pub server: String,
    /// Public number of the session.
    pub session: u64,
    /// Epoch of the lease.
    pub epoch: u64,
    /// The export's id, hexadecimal.
    pub export_id: String,
    /// The incarnation of the export, hexadecimal.
    pub incarnation: String,
    /// Connections that carry requests now, and how many there should be.
    pub connections: [u16; 2],
    /// Requests with the server.
    pub in_flight: u16,
    /// Requests that wait for a slot.
    pub queued: usize,
    /// Acknowledged writes kept because they are not durable yet.
    pub retained_entries: u64,
    /// Their bytes.
    pub retained_bytes: u64,
    /// Requests that are sent one at a time because connections broke under them again and again.
    pub suspects: u16,
    /// Connections lost.
    pub reconnects: u64,
    /// Sessions opened anew.
    pub fresh_sessions: u64,
    /// Requests sent again.
    pub resent: u64,
    /// Retained writes replayed.
    pub replayed: u64,
    /// Requests failed at their deadline.
    pub expired: u64,
    /// Payloads with bad digests, either way.
    pub bad_digests: u64,
    /// Completed requests.
    pub counters: Counters,
}
