//! Reassembly of the frames of one connection, for both ends.
//!
//! A stream is a HELLO and then frames: header, options, digest area, payload. The [`Receiver`] takes whatever bytes have
//! come and gives back *heads*, which is everything of a frame but its payload, whole and checked. The payload is not its
//! business: the driver moves it to where the session says and reports how much of it has passed.
//!
//! # States
//!
//! ```text
//! Hello --whole and good--> Header --whole and good--> Area --whole and good--> Payload --all passed--> Header
//!                             |  ^_________________________|                       |
//!                             |_______________(no area) _______________(no payload)|
//! any --fault--> Broken
//! ```
//!
//! # Invariants
//!
//! * No field of a header is used before its CRC has been found good, and no byte is taken beyond a head's end.
//! * An area is taken in only when it fits the lent memory beside the kept HELLO; what is accepted is bounded by it.
//! * In state Payload nothing is parsed; in state Broken nothing is taken ever again.

use super::proto::{
    frame, Algorithm, Header, HeaderError, Hello, HelloError, Role, Status, HEADER_LEN,
};

/// Why a connection has to be closed. The session that it belongs to lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What an ERROR frame says before the stream is closed.
    pub status: Status,
    /// What is wrong, for logs.
    pub text: &'static str,
}

impl Fault {
    /// The peer broke the protocol.
    pub const fn protocol(text: &'static str) -> Fault {
        Fault {
            status: Status::PROTOCOL,
            text,
        }
    }
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text)
    }
}

impl core::error::Error for Fault {}

impl From<HeaderError> for Fault {
    fn from(error: HeaderError) -> Fault {
        Fault::protocol(error.text())
    }
}

impl From<HelloError> for Fault {
    fn from(error: HelloError) -> Fault {
        Fault::protocol(error.text())
    }
}

/// Something that has arrived whole, its payload aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The peer's HELLO, always the first.
    Hello(Hello),
    /// A frame.
    Frame(Header),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hello,
    Header,
    Area,
    Payload,
    Broken(Fault),
}

/// The receiving half of one connection. `B` is memory for the HELLO and the options and digests of one frame.
#[derive(Debug)]
pub struct Receiver<B> {
    area: B,
    peer: Role,
    state: State,
    /// A header that came in parts.
    partial: [u8; HEADER_LEN],
    /// Bytes there of the HELLO, of `partial`, or of the area, whichever the state names.
    have: usize,
    /// Bytes at the front of `area` that hold the HELLO.
    kept: usize,
    /// The frame whose area or payload is being received; else the one before.
    header: Header,
    algorithm: Algorithm,
    granule: u32,
    max_payload: u32,
    payload_left: u32,
}

const SHORT_MEMORY: Fault = Fault::protocol("options and digests longer than this end accepts");
const MISUSE: Fault = Fault::protocol("bytes parsed while payload is left");

impl<B: AsRef<[u8]> + AsMut<[u8]>> Receiver<B> {
    /// For a stream on which nothing has been received, whose other end is a `peer`.
    ///
    /// `area` bounds what is accepted: the longest HELLO (`HELLO_MAX`) while it is kept, plus the options and the digests of
    /// one frame. Until [`Receiver::accept_payload`] no frame may have a payload.
    pub fn new(area: B, peer: Role) -> Self {
        Receiver {
            area,
            peer,
            state: State::Hello,
            partial: [0; HEADER_LEN],
            have: 0,
            kept: 0,
            header: Header::new(super::proto::Kind::PING),
            algorithm: Algorithm::None,
            granule: super::proto::digest::DEFAULT_GRANULE,
            max_payload: 0,
            payload_left: 0,
        }
    }

    /// From now on frames may have payloads of at most `max_payload` bytes, with the digests that the session uses.
    pub fn accept_payload(&mut self, max_payload: u32, algorithm: Algorithm, granule: u32) {
        self.max_payload = max_payload;
        self.algorithm = algorithm;
        self.granule = granule;
    }

    /// Takes bytes from `input`, at most up to the end of one head; tells how many, and the head if it is whole.
    ///
    /// To be called again with the rest until it takes nothing more; after a frame with a payload only when that has
    /// passed ([`Receiver::payload_received`]). A fault is for ever.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Head>), Fault> {
        let fed = match self.state {
            State::Hello => self.feed_hello(input),
            State::Header => self.feed_header(input),
            State::Area => self.feed_area(input),
            State::Payload => Err(MISUSE),
            State::Broken(fault) => Err(fault),
        };
        if let Err(fault) = fed {
            self.state = State::Broken(fault);
        }
        fed
    }

    fn feed_hello(&mut self, input: &[u8]) -> Result<(usize, Option<Head>), Fault> {
        let mut used = 0usize;
        loop {
            let needed = Hello::needed(self.area.as_ref().get(..self.have).unwrap_or_default())?;
            let rest = input.get(used..).unwrap_or_default();
            let missing = needed.saturating_sub(self.have);
            if missing > 0 && rest.is_empty() {
                return Ok((used, None));
            }
            if missing > 0 {
                let taken = self.take(self.have, missing, rest)?;
                self.have = self.have.saturating_add(taken);
                used = used.saturating_add(taken);
                continue;
            }
            let hello = Hello::decode(self.area.as_ref().get(..self.have).unwrap_or_default())?;
            if hello.role != self.peer {
                return Err(HelloError::Role.into());
            }
            self.kept = self.have;
            self.have = 0;
            self.state = State::Header;
            return Ok((used, Some(Head::Hello(hello))));
        }
    }

    fn feed_header(&mut self, input: &[u8]) -> Result<(usize, Option<Head>), Fault> {
        let (header, used) = match input.first_chunk::<HEADER_LEN>() {
            Some(whole) if self.have == 0 => (Header::decode(whole)?, HEADER_LEN),
            _ => {
                let room = self.partial.get_mut(self.have..).unwrap_or_default();
                let used = copy(room, input);
                self.have = self.have.saturating_add(used);
                if self.have < HEADER_LEN {
                    return Ok((used, None));
                }
                (Header::decode(&self.partial)?, used)
            }
        };
        self.have = 0;
        if header.payload_len > self.max_payload {
            return Err(Fault::protocol("payload longer than the session allows"));
        }
        if !frame::digest_len_ok(&header, self.algorithm, self.granule) {
            return Err(HeaderError::DigestLength.into());
        }
        self.header = header;
        let area = to_usize(header.area_len());
        if area == 0 {
            if header.area_crc != 0 {
                return Err(Fault::protocol("CRC of an empty area"));
            }
            return Ok((used, Some(self.head_done())));
        }
        let room = self.area.as_ref().len().saturating_sub(self.kept);
        if area > room {
            return Err(SHORT_MEMORY);
        }
        self.state = State::Area;
        let (more, head) = self.feed_area(input.get(used..).unwrap_or_default())?;
        Ok((used.saturating_add(more), head))
    }

    fn feed_area(&mut self, input: &[u8]) -> Result<(usize, Option<Head>), Fault> {
        let missing = to_usize(self.header.area_len()).saturating_sub(self.have);
        let used = self.take(self.kept.saturating_add(self.have), missing, input)?;
        self.have = self.have.saturating_add(used);
        if used < missing {
            return Ok((used, None));
        }
        self.have = 0;
        if !frame::area_ok(&self.header, self.frame_area()) {
            return Err(Fault::protocol("CRC mismatch of options and digests"));
        }
        Ok((used, Some(self.head_done())))
    }

    fn head_done(&mut self) -> Head {
        self.payload_left = self.header.payload_len;
        self.state = if self.payload_left > 0 {
            State::Payload
        } else {
            State::Header
        };
        Head::Frame(self.header)
    }

    /// Copies up to `len` bytes of `input` into the area from `at` on.
    fn take(&mut self, at: usize, len: usize, input: &[u8]) -> Result<usize, Fault> {
        let end = at.saturating_add(len);
        let room = self.area.as_mut().get_mut(at..end).ok_or(SHORT_MEMORY)?;
        Ok(copy(room, input))
    }

    fn frame_area(&self) -> &[u8] {
        let end = self.kept.saturating_add(to_usize(self.header.area_len()));
        self.area.as_ref().get(self.kept..end).unwrap_or_default()
    }

    /// The peer's HELLO as it came, extension included, for the proof of JOIN; nothing before it has come whole and after
    /// [`Receiver::forget_hello`].
    pub fn hello_bytes(&self) -> &[u8] {
        self.area.as_ref().get(..self.kept).unwrap_or_default()
    }

    /// The HELLO is not needed any more; its memory goes to the frames. To be called once a frame with options has been
    /// handled: that frame's options are void afterwards.
    pub fn forget_hello(&mut self) {
        if !matches!(self.state, State::Area | State::Hello) {
            self.kept = 0;
        }
    }

    /// Options of the frame returned last; until the next `feed`.
    pub fn options(&self) -> &[u8] {
        frame::split_area(&self.header, self.frame_area()).map_or(&[], |(options, _)| options)
    }

    /// Digest area of the frame returned last; until the next `feed`.
    pub fn digests(&self) -> &[u8] {
        frame::split_area(&self.header, self.frame_area()).map_or(&[], |(_, digests)| digests)
    }

    /// Bytes of payload that come before the next head.
    pub fn payload_left(&self) -> u32 {
        self.payload_left
    }

    /// `n` bytes of payload have passed. Answers whether that was the last of it.
    pub fn payload_received(&mut self, n: u32) -> bool {
        self.payload_left = self.payload_left.saturating_sub(n);
        if self.payload_left == 0 && self.state == State::Payload {
            self.state = State::Header;
        }
        self.payload_left == 0
    }
}

fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
        to.copy_from_slice(from);
    }
    len
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
