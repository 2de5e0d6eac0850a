//! One connection's frames: what both ends do between a stream and their session's rules.
//!
//! Receiving is pulling: [`Framed::next`] says what has come, one thing at a time. After a frame that announces a payload the
//! owner says where that goes ([`Framed::deliver`], [`Framed::discard`]), and `next` reports it when it is whole. Where a
//! payload goes is the owner's own *place*: whatever it needs to find the memory again, through [`Memory`], whenever bytes
//! come. So a place may hold its buffer, or be an index into memory that lives elsewhere.
//!
//! One turn of the owner's loop takes at most a [`Share`] of one connection, so that others get their turn. Only what a read
//! said to be there is asked for: `next` ends a turn as soon as the stream was seen to be empty.
//!
//! ```text
//! head expected --frame without payload--> head expected
//!      |  ^____ Came::Payload, or all discarded ____
//!      |                                            |
//!      '--frame with payload, and deliver/discard--> payload expected
//! ```
//!
//! Nothing is allocated for a frame. After an [`End`] the connection is over.

use std::io;

use dst_buf::Shared;
use dst_engine::rx::{Fault, Head, Receiver};
use dst_proto::{
    DigestChoice, Header, Hello, Role, HEADER_LEN, HELLO_MAX, MAX_DIGEST_AREA, MAX_OPTIONS,
};

use crate::{Link, Stream};

/// Bytes taken from one connection before others get their turn.
const SHARE: usize = 8 << 20;

/// Bytes that a connection may have queued: enough to keep a socket busy, little enough that a new frame is not behind too
/// much, and all that a peer that never reads can hold.
const QUEUE_LIMIT: usize = 2 << 20;

/// Longest head of a frame behind its header, beside a HELLO that is kept. Zeroed memory, which costs nothing until it is used.
const AREA: usize = HELLO_MAX + MAX_OPTIONS as usize + MAX_DIGEST_AREA as usize;

/// Finds the memory of a place.
pub trait Memory<P> {
    /// All of the memory that the payload of `place` goes to, as long as the payload. `None`: it is gone, which ends the
    /// connection.
    fn room<'a>(&'a mut self, place: &'a mut P) -> Option<&'a mut [u8]>;
}

/// For connections on which no payload is expected yet.
pub struct NoMemory;

impl<P> Memory<P> for NoMemory {
    fn room<'a>(&'a mut self, _: &'a mut P) -> Option<&'a mut [u8]> {
        None
    }
}

/// Something that has come whole.
#[derive(Debug)]
pub enum Came<P> {
    /// The peer's HELLO, always the first.
    Hello(Hello),
    /// A frame, its payload aside.
    Frame(Header),
    /// The payload for this place.
    Payload(P),
}

/// Why nothing more comes.
#[derive(Debug)]
pub enum End {
    /// The stream is broken or closed.
    Stream(io::Error),
    /// The peer broke the protocol.
    Fault(Fault),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl End {
    /// In words.
    pub fn text(&self) -> String {
        match self {
            Self::Stream(error) => error.to_string(),
            Self::Fault(fault) => fault.text.to_owned(),
        }
    }
}

/// What one turn may take from one connection.
#[derive(Debug)]
pub struct Share {
    left: usize,
    /// The stream has been asked in this turn. What the last read of an earlier one left is old news.
    asked: bool,
}

impl Share {
    /// All of it.
    pub fn new() -> Self {
        Self {
            left: SHARE,
            asked: false,
        }
    }

    /// Whether any byte has come. Being ready is no sign of life, bytes are.
    pub fn is_touched(&self) -> bool {
        self.left < SHARE
    }

    /// Whether the turn was ended by it, and not for want of bytes. What is buffered makes no descriptor ready: the owner has
    /// to come back by itself.
    pub fn is_used_up(&self) -> bool {
        self.left == 0
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the payload that is expected goes.
enum Body<P> {
    /// There, from byte `at` on.
    Into { place: P, at: usize },
    /// Nowhere.
    Nowhere,
}

/// A link with the reassembly of its frames.
pub struct Framed<P> {
    /// To send, and to be watched. What is received is taken by [`Framed::next`] alone.
    pub link: Link,
    receiver: Receiver<Box<[u8]>>,
    body: Option<Body<P>>,
}

impl<P> Framed<P> {
    /// For a fresh stream whose other end is a `peer`. Until [`Framed::begin`] no frame may have a payload.
    pub fn new(stream: Box<dyn Stream>, peer: Role) -> Self {
        Self {
            link: Link::new(stream),
            receiver: Receiver::new(vec![0; AREA].into_boxed_slice(), peer),
            body: None,
        }
    }

    /// The connection belongs to a session with these terms from now on: frames may have payloads of at most `max_payload`
    /// bytes. The HELLO is forgotten, and the options of the last frame with it.
    pub fn begin(&mut self, max_payload: u32, digests: DigestChoice) {
        self.receiver.forget_hello();
        self.receiver
            .accept_payload(max_payload, digests.algorithm, digests.granule);
    }

    /// The peer's HELLO as it came, until [`Framed::begin`].
    pub fn hello_bytes(&self) -> &[u8] {
        self.receiver.hello_bytes()
    }

    /// Options of the frame that came last.
    pub fn options(&self) -> &[u8] {
        self.receiver.options()
    }

    /// The payload of the frame that came last goes to `place`.
    pub fn deliver(&mut self, place: P) {
        self.body = Some(Body::Into { place, at: 0 });
    }

    /// The payload of the frame that came last goes nowhere.
    pub fn discard(&mut self) {
        self.body = (self.receiver.payload_left() > 0).then_some(Body::Nowhere);
    }

    /// Drops the place of a payload that was expected. For a connection of which nothing is received any more.
    pub fn drop_place(&mut self) {
        self.body = None;
    }

    /// Whether `payload`, which came last and lies at `offset` of the export, has the digests that came with it.
    pub fn is_good(&self, digests: DigestChoice, offset: u64, payload: &[u8]) -> bool {
        let area = self.receiver.digests();
        dst_digest::verify(digests.algorithm, digests.granule, offset, payload, area).is_ok()
    }

    /// What has come, one thing at a time; `None` when there is nothing more now, or `share` is used up.
    ///
    /// # Errors
    /// The connection is over.
    pub fn next(
        &mut self,
        memory: &mut impl Memory<P>,
        share: &mut Share,
    ) -> Result<Option<Came<P>>, End> {
        match self.pull(memory, share) {
            Err(End::Stream(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            came => came,
        }
    }

    fn pull(
        &mut self,
        memory: &mut impl Memory<P>,
        share: &mut Share,
    ) -> Result<Option<Came<P>>, End> {
        loop {
            let drained = share.asked && self.link.peek().is_empty() && self.link.drained();
            if share.is_used_up() || drained {
                return Ok(None);
            }
            share.asked = true;
            if self.body.is_some() {
                if let Some(place) = self.pull_payload(memory, share)? {
                    return Ok(Some(Came::Payload(place)));
                }
                continue;
            }
            if self.link.peek().is_empty() {
                share.take(self.link.fill()?);
            }
            let (used, head) = self.receiver.feed(self.link.peek())?;
            self.link.consume(used);
            match head {
                Some(Head::Hello(hello)) => return Ok(Some(Came::Hello(hello))),
                Some(Head::Frame(header)) => return Ok(Some(Came::Frame(header))),
                None if self.link.peek().is_empty() => {}
                None => share.take(self.link.fill()?),
            }
        }
    }

    /// Takes some of the payload; answers its place when it is whole.
    fn pull_payload(
        &mut self,
        memory: &mut impl Memory<P>,
        share: &mut Share,
    ) -> Result<Option<P>, End> {
        let got = match &mut self.body {
            Some(Body::Into { place, at }) => {
                let room = memory.room(place).and_then(|room| room.get_mut(*at..));
                let room = room.ok_or(Fault::protocol("payload for a request that is gone"))?;
                let got = self.link.read_into(room)?;
                *at += got;
                got
            }
            _ => {
                if self.link.peek().is_empty() {
                    self.link.fill()?;
                }
                let left = self.receiver.payload_left() as usize;
                let got = left.min(self.link.peek().len());
                self.link.consume(got);
                got
            }
        };
        share.take(got);
        if !self.receiver.payload_received(got as u32) {
            return Ok(None);
        }
        match self.body.take() {
            Some(Body::Into { place, .. }) => Ok(Some(place)),
            _ => Ok(None),
        }
    }

    /// Whether more may be queued.
    pub fn has_room(&self) -> bool {
        self.link.queued_bytes() < QUEUE_LIMIT
    }

    /// Queues a frame whose head, options aside, and digests are made here: of `header` and `payload`, which lies at `offset`
    /// of the export. `scratch` is memory for the longest head.
    pub fn push_frame(
        &mut self,
        header: &Header,
        digests: DigestChoice,
        offset: u64,
        payload: Shared,
        scratch: &mut [u8],
    ) {
        let area = &mut scratch[HEADER_LEN..HEADER_LEN + header.digest_len as usize];
        dst_digest::write_digests(digests.algorithm, digests.granule, offset, &payload, area);
        let length = dst_engine::frame::seal(header, scratch);
        self.link.push_bytes(&scratch[..length]);
        self.link.push_payload(payload);
    }
}
