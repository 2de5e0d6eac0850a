//! What a client's session tells: where it stands, what its driver has to act on, what it has counted.

use super::super::proto::Status;
use super::slot::Failure;

/// Where the session stands; see the module's diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No session; OPEN goes out with the next connection.
    Opening,
    /// Retained writes are going out again.
    Replaying,
    /// Requests flow, or wait for a connection.
    Live,
    /// CLOSE is out.
    Closing,
    /// Ended by CLOSE.
    Closed,
    /// Every request gets an error until the device is detached.
    Failed(FailReason),
}

/// Why a device failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailReason {
    /// Another export id under the same name: not the same disk any more.
    ExportChanged,
    /// Another client was let in to write.
    LeaseLost,
    /// The server does not admit this client any more.
    NotAdmitted,
    /// Acknowledged writes may be lost and can't be replayed: retention is off.
    WritesLost,
    /// A replayed write was refused with this status.
    ReplayFailed(Status),
    /// A sync failed again before one had succeeded.
    SyncFailed,
    /// The server no longer gives what the device was opened with: it refused with this status.
    Refused(Status),
    /// The export came back smaller, with other block sizes, or with fewer slots.
    GeometryChanged,
    /// The driver asked for it (forced detach).
    Forced,
}

/// Why a connection has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Nothing heard for too long.
    Silent,
    /// A READ arrived with a bad digest.
    BadDigest,
    /// It refers to the memory of a request whose deadline has passed.
    Deadline,
    /// The session that it belonged to is over.
    Superseded,
    /// The server refused OPEN or JOIN.
    Refused,
}

/// What the driver has to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The request in `slot` is done; the slot is free again. Where `retained` is there, the driver keeps the bytes of the
    /// request at that index of its table until [`Event::Released`] names it.
    Completed {
        /// The slot, free again.
        slot: u16,
        /// Success or why not.
        result: Result<(), Failure>,
        /// Index in the driver's table of retained bytes.
        retained: Option<usize>,
    },
    /// What the driver keeps at this index of its table of retained bytes is durable.
    Released {
        /// The index.
        index: usize,
    },
    /// Close the stream of connection `index`, then report [`super::Session::handle_lost`].
    Close {
        /// Index of the connection.
        index: u16,
        /// Why.
        reason: CloseReason,
    },
    /// A session is open; geometry is known. `fresh` tells a new session from a first one.
    Opened {
        /// The session replaces a lost one.
        fresh: bool,
    },
    /// The server announced another size.
    Changed,
    /// The server is about to stop: reconnect at once when the stream ends.
    Draining {
        /// Index of the connection.
        index: u16,
    },
    /// OPEN or JOIN was refused. Fatal before the first session; later the session tries again.
    Refused {
        /// The server's status.
        status: Status,
    },
    /// The device failed for good.
    Failed(FailReason),
    /// The session ended by CLOSE, with the status of the server's last flush; or with OK where it was to end so, could not go
    /// on, and had nothing to lose.
    Closed(Status),
}

/// Counters for `dst status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections lost after they had been live.
    pub reconnects: u64,
    /// Sessions opened anew after one was lost.
    pub fresh_sessions: u64,
    /// Requests sent again.
    pub resent: u64,
    /// Retained writes sent again.
    pub replayed: u64,
    /// Requests failed at their deadline.
    pub expired: u64,
    /// Requests answered RETRY and READs with a bad digest.
    pub bad_digests: u64,
    /// Open ids of a predecessor that had to be settled.
    pub orphans: u64,
}

/// What is to be told to the driver, each at most once at a time.
#[derive(Debug, Default)]
pub(super) struct Notices {
    pub opened: Option<bool>,
    pub changed: bool,
    pub refused: Option<Status>,
    pub failed: Option<FailReason>,
    pub closed: Option<Status>,
}
