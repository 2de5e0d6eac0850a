//! The place of one transaction at the client.
//!
//! # States
//!
//! ```text
//! Free -> Waiting -> Ready -> Out -> Answered -> Done -> Free
//!            ^         ^_______|        |          ^
//!            |__________________________|          |      (fresh session: all that is open waits anew, in old order)
//!            '-------- Failing ---------------------'      (deadline, retry limit, device failed)
//! ```
//!
//! * *Waiting*: submitted, has no id yet. In the waiting list, in order of submission.
//! * *Ready*: has an id, is to be sent (again). In the ready list, in order of id.
//! * *Out*: handed to connection `conn`, the answer is not there yet.
//! * *Answered*: the outcome is known but must not be acted upon before lower ids have theirs (barriers).
//! * *Failing*: will complete with `failure` as soon as no socket refers to its memory.
//! * *Done*: in the list of completions that the driver has not taken yet.
//!
//! Invariants: a slot is in at most one list, the one its state names; `id` is 0 in Free and Waiting; `pins` is 0 unless the
//! state is Out, Answered or Failing; `abort` outlives the state: a wire slot whose aborted id the server has not
//! settled keeps it while the slot is already used for a new (waiting) request.

use super::super::proto::{Kind, OpFlags, Status};
use super::NONE;

/// A block request as the front end sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// READ, WRITE, FLUSH, DISCARD, WRITE ZEROES or BLOCK STATUS.
    pub kind: Kind,
    /// Flags allowed for `kind`; REPLAY is the engine's own.
    pub flags: OpFlags,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes; 0 for FLUSH.
    pub length: u64,
}

impl Request {
    /// The end of the range, saturating.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    pub(super) fn overlaps(&self, other: &Request) -> bool {
        self.kind.is_write()
            && other.kind.is_write()
            && self.offset < other.end()
            && other.offset < self.end()
    }

    /// Bytes of payload that the request carries to the server.
    pub(super) fn payload(&self) -> u32 {
        if self.kind == Kind::WRITE {
            u32::try_from(self.length).unwrap_or(u32::MAX)
        } else {
            0
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server answered so.
    Status(Status),
    /// The deadline that the user set has passed.
    Deadline,
    /// The device is failed for good; see [`super::FailReason`].
    DeviceFailed,
}

/// Where the bytes of a transaction come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// The driver's request in this slot.
    #[default]
    Slot,
    /// A retained write that is replayed: part of the entry with this sequence number, from this byte of it on.
    Retained {
        /// Sequence number of the entry.
        seq: u64,
        /// First byte within the entry.
        from: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum State {
    #[default]
    Free,
    Waiting,
    Ready,
    Out,
    Answered,
    Failing,
    Done,
}

/// An ABORT that the server has not answered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Abort {
    /// The id to abort; 0 for none.
    pub id: u64,
    /// The connection on which it went out, while that lives.
    pub conn: Option<u16>,
    /// The target was a write: what was retained below `mark` is durable once it is settled other than by not being
    /// executed.
    pub write: bool,
    /// Where the retention stood when the ABORT was sent first: the server flushes for the first that it gets.
    pub mark: Option<u64>,
}

/// A socket refers to the memory of the slot because it is being sent.
pub(super) const PIN_SENDING: u8 = 1;
/// A connection is putting received bytes into the memory of the slot.
pub(super) const PIN_RECEIVING: u8 = 2;

/// One transaction. Lent by the driver, one for each wire slot; the kernel keeps it in the request.
#[derive(Debug, Clone)]
pub struct Slot {
    pub(super) state: State,
    pub(super) request: Request,
    pub(super) source: Source,
    pub(super) id: u64,
    /// The barrier that this request follows; 0 for none.
    pub(super) after: u64,
    /// Time at which it fails; `u64::MAX` for never.
    pub(super) deadline: u64,
    /// The connection it is out on.
    pub(super) conn: u16,
    pub(super) pins: u8,
    /// Sent so often in this session, modulo 256.
    pub(super) attempt: u8,
    /// Answered RETRY, or bad digest of a READ, so often.
    pub(super) retries: u8,
    /// Connections in a row that broke with this request on them.
    pub(super) breaks: u8,
    /// Bytes of a READ that have arrived with good digests.
    pub(super) received: u32,
    /// For a FLUSH: what was retained below this sequence number is durable when it succeeds.
    pub(super) mark: u64,
    pub(super) status: Status,
    pub(super) failure: Option<Failure>,
    /// The retained entry that a completed write became.
    pub(super) retained: Option<u64>,
    /// It was open in a session that is lost, and may have been executed there.
    pub(super) carried: bool,
    pub(super) abort: Abort,
    pub(super) next: u16,
}

impl Slot {
    /// A place that no request is in.
    pub const FREE: Slot = Slot {
        state: State::Free,
        request: Request {
            kind: Kind::FLUSH,
            flags: OpFlags::NONE,
            offset: 0,
            length: 0,
        },
        source: Source::Slot,
        id: 0,
        after: 0,
        deadline: u64::MAX,
        conn: NONE,
        pins: 0,
        attempt: 0,
        retries: 0,
        breaks: 0,
        received: 0,
        mark: 0,
        status: Status::OK,
        failure: None,
        retained: None,
        carried: false,
        abort: Abort {
            id: 0,
            conn: None,
            write: false,
            mark: None,
        },
        next: NONE,
    };

    /// Whether the driver may submit a request in this slot.
    pub fn is_free(&self) -> bool {
        self.state == State::Free
    }

    /// Whether the request has an id and no final outcome.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Ready | State::Out | State::Answered)
    }

    /// Whether the request has been handed in and not been completed, with or without an id.
    pub(super) fn is_pending(&self) -> bool {
        self.state == State::Waiting || self.is_open()
    }

    pub(super) fn is_barrier(&self) -> bool {
        self.request.flags.contains(OpFlags::BARRIER)
    }
}

impl Default for Slot {
    fn default() -> Self {
        Slot::FREE
    }
}
