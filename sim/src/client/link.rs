//! One connection of a client, and the memory of its requests.

use dst_engine::client::Request;
use dst_engine::rx::Receiver;

use crate::model::RequestId;
use crate::network::StreamId;
use crate::outbox::Outbox;
use crate::queue::MILLI;

/// Whose memory queued payload is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Slot(u16),
    /// A retained write, by its name in the record: it may be released, and its index used anew, while a socket has it.
    Kept(u64),
}

/// The memory of a request, where the engine has its slot.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub request: Option<RequestId>,
    pub bytes: Vec<u8>,
    /// As the engine got it.
    pub handed: Option<Request>,
    /// For [`Plant::OverlappingWritesNotHeldBack`]: how far off the engine believes the write to be.
    pub shift: u64,
    /// A request that has gone out: in the session of this number first.
    pub sent: Option<u64>,
    /// Extents of a BLOCK STATUS: length and whether they read as zeroes.
    pub extents: Vec<(u64, bool)>,
}

/// A retained write.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub bytes: Vec<u8>,
    pub shift: u64,
    pub range: (u64, u64),
    pub live: bool,
    /// Its name in the record.
    pub place: u64,
}

/// A payload on its way in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taking {
    Into {
        slot: u16,
        at: u32,
        len: u32,
        got: u32,
    },
    Nowhere,
}

/// What has been queued since the queue was empty last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sent {
    #[default]
    Other,
    Request,
    Abort,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub stream: Option<StreamId>,
    /// The engine's number of the stream, once it is connected.
    pub number: Option<u32>,
    pub rx: Receiver<Vec<u8>>,
    pub taking: Option<Taking>,
    pub out: Outbox<Place>,
    pub retry_at: u64,
    pub backoff: u64,
    pub deadline: u64,
    /// The end came while the process was frozen.
    pub ended: bool,
    /// Reconnect at once: the server said that it stops.
    pub drained: bool,
    /// The stream breaks when its first frame is on its way.
    pub doomed: bool,
    /// The first frame has been queued.
    pub greeted: bool,
    pub sent_kind: Sent,
}

impl Link {
    pub fn new() -> Link {
        Link {
            stream: None,
            number: None,
            rx: Receiver::new(Vec::new(), dst_proto::Role::Server),
            taking: None,
            out: Outbox::new(),
            retry_at: 0,
            backoff: MILLI,
            deadline: u64::MAX,
            ended: false,
            drained: false,
            doomed: false,
            greeted: false,
            sent_kind: Sent::Other,
        }
    }
}
