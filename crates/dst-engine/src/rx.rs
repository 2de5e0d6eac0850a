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
mod tests {
    extern crate std;

    use super::super::proto::Kind;
    use super::super::proto::{digest, HELLO_LEN, HELLO_MAX, MAX_OPTIONS};
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const GRANULE: u32 = 512;

    fn hello_bytes(role: Role) -> Vec<u8> {
        let mut bytes = [0; HELLO_LEN];
        Hello::new(role, [7; 16], "test").encode(&mut bytes);
        bytes.to_vec()
    }

    fn receiver() -> Receiver<Vec<u8>> {
        let mut receiver = Receiver::new(vec![0; HELLO_MAX + 2048], Role::Client);
        receiver.accept_payload(4096, Algorithm::Crc32c, GRANULE);
        receiver
    }

    fn frame(mut header: Header, options: &[u8], payload: &[u8]) -> Vec<u8> {
        header.options_len = options.len() as u16;
        header.payload_len = payload.len() as u32;
        let area = digest::area_len(
            Algorithm::Crc32c,
            GRANULE,
            header.offset,
            header.payload_len,
        );
        header.digest_len = area.unwrap();
        let mut digests = vec![0; header.digest_len as usize];
        digest::write(
            Algorithm::Crc32c,
            GRANULE,
            header.offset,
            payload,
            &mut digests,
        );
        header.area_crc = frame::area_crc(options, &digests);
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        [&bytes, options, &digests, payload].concat()
    }

    fn write(payload: &[u8]) -> Vec<u8> {
        let header = Header {
            slot: 3,
            id: 9,
            offset: 512,
            length: payload.len() as u64,
            ..Header::new(Kind::WRITE)
        };
        frame(header, &[], payload)
    }

    /// What came of a stream: heads with their options and digests, and the payloads.
    type Seen = Vec<(Head, Vec<u8>, Vec<u8>)>;

    /// Feeds `stream` in parts of the given sizes, over and over.
    fn run(stream: &[u8], parts: &[usize]) -> (Seen, Vec<u8>, Option<Fault>) {
        let mut receiver = receiver();
        let (mut seen, mut payload) = (Vec::new(), Vec::new());
        let mut parts = parts.iter().cycle();
        let mut stream = stream;
        while !stream.is_empty() {
            let len = stream.len().min(1 + parts.next().unwrap());
            let mut part = &stream[..len];
            stream = &stream[len..];
            while !part.is_empty() {
                let left = receiver.payload_left() as usize;
                if left > 0 {
                    let n = left.min(part.len());
                    payload.extend_from_slice(&part[..n]);
                    receiver.payload_received(n as u32);
                    part = &part[n..];
                    continue;
                }
                match receiver.feed(part) {
                    Ok((used, head)) => {
                        assert!(used > 0 || head.is_some());
                        part = &part[used..];
                        if let Some(head) = head {
                            let options = receiver.options().to_vec();
                            seen.push((head, options, receiver.digests().to_vec()));
                        }
                    }
                    Err(fault) => {
                        assert_eq!(receiver.feed(part), Err(fault));
                        return (seen, payload, Some(fault));
                    }
                }
            }
        }
        (seen, payload, None)
    }

    fn good_stream() -> Vec<u8> {
        let option = [20, 0, 4, 0, b'a', b'b', b'c', b'd'];
        let mut stream = hello_bytes(Role::Client);
        stream.extend(frame(Header::new(Kind::PING), &option, &[]));
        stream.extend(write(&[1; 1000]));
        stream.extend(frame(Header::new(Kind::CLOSE), &[], &[]));
        stream
    }

    #[test]
    fn a_stream_in_one_piece_gives_every_head() {
        let (seen, payload, fault) = run(&good_stream(), &[usize::MAX - 1]);
        assert_eq!(fault, None);
        assert_eq!(payload, [1; 1000]);
        let kinds: Vec<_> = seen
            .iter()
            .map(|(head, ..)| match head {
                Head::Hello(_) => None,
                Head::Frame(header) => Some(header.kind),
            })
            .collect();
        let expected = [None, Some(Kind::PING), Some(Kind::WRITE), Some(Kind::CLOSE)];
        assert_eq!(kinds, expected);
        assert_eq!(seen[1].1.len(), 8);
        assert_eq!(seen[2].2.len(), 8);
    }

    #[test]
    fn the_hello_stays_beside_the_first_frame_until_forgotten() {
        let mut receiver = receiver();
        let mut stream = hello_bytes(Role::Client);
        let hello = stream.clone();
        stream.extend(frame(
            Header::new(Kind::PING),
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[],
        ));
        let (used, _) = receiver.feed(&stream).unwrap();
        receiver.feed(&stream[used..]).unwrap();
        assert_eq!(receiver.hello_bytes(), hello);
        assert_eq!(receiver.options(), [9, 0, 0, 0, 0, 0, 0, 0]);
        receiver.forget_hello();
        assert_eq!(receiver.hello_bytes(), []);
    }

    #[test]
    fn a_hello_of_the_wrong_role_is_refused() {
        let (_, _, fault) = run(&hello_bytes(Role::Server), &[30]);
        assert_eq!(fault.unwrap().text, HelloError::Role.text());
    }

    #[test]
    fn a_stranger_is_refused_at_the_first_byte() {
        let mut receiver = receiver();
        assert!(receiver.feed(b"G").is_err());
        assert!(receiver.feed(&hello_bytes(Role::Client)).is_err());
    }

    #[test]
    fn nothing_is_parsed_while_payload_is_left() {
        let mut receiver = receiver();
        let hello = hello_bytes(Role::Client);
        receiver.feed(&hello).unwrap();
        let write = write(&[2; 512]);
        receiver.feed(&write).unwrap();
        assert_eq!(receiver.payload_left(), 512);
        assert_eq!(receiver.feed(&write), Err(MISUSE));
    }

    #[test]
    fn payload_is_refused_before_a_session_allows_it() {
        let mut receiver = Receiver::new(vec![0; 4096], Role::Client);
        receiver.feed(&hello_bytes(Role::Client)).unwrap();
        assert!(receiver.feed(&write(&[2; 512])).is_err());
    }

    #[test]
    fn an_area_beyond_the_lent_memory_is_refused_before_it_arrives() {
        let mut receiver = Receiver::new(vec![0; HELLO_LEN + 64], Role::Client);
        receiver.feed(&hello_bytes(Role::Client)).unwrap();
        let long = frame(
            Header::new(Kind::PING),
            &vec![0; usize::from(MAX_OPTIONS)],
            &[],
        );
        assert_eq!(receiver.feed(&long[..HEADER_LEN]), Err(SHORT_MEMORY));
    }

    #[test]
    fn a_flipped_bit_in_head_or_area_is_a_fault() {
        let stream = good_stream();
        let head = HELLO_LEN + HEADER_LEN + 8 + HEADER_LEN + 8;
        for at in 0..head {
            let mut bad = stream.clone();
            bad[at] ^= 0x10;
            assert!(run(&bad, &[63]).2.is_some(), "byte {at}");
        }
    }

    #[test]
    fn a_digest_area_of_another_length_is_a_fault() {
        let mut stream = hello_bytes(Role::Client);
        let header = Header {
            digest_len: 8,
            payload_len: 2048,
            length: 2048,
            ..Header::new(Kind::WRITE)
        };
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        stream.extend(bytes);
        assert!(run(&stream, &[500]).2.is_some());
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_makes_no_difference(
            parts in proptest::collection::vec(0usize..200, 1..20),
            flip in proptest::option::of(0usize..1300),
        ) {
            let mut stream = good_stream();
            if let Some(at) = flip {
                let len = stream.len();
                stream[at % len] ^= 1;
            }
            prop_assert_eq!(run(&stream, &parts), run(&stream, &[usize::MAX - 1]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            with_hello: bool,
            parts in proptest::collection::vec(0usize..100, 1..8),
        ) {
            let mut stream = if with_hello { hello_bytes(Role::Client) } else { Vec::new() };
            stream.extend(bytes);
            run(&stream, &parts);
        }

        #[test]
        fn arbitrary_headers_with_a_good_crc_never_panic(
            raw in proptest::array::uniform32(any::<u8>()),
            raw2 in proptest::array::uniform28(any::<u8>()),
        ) {
            let mut header = [0; HEADER_LEN];
            header[..4].copy_from_slice(b"DST1");
            header[4..32].copy_from_slice(&raw[4..]);
            header[32..60].copy_from_slice(&raw2);
            let crc = super::super::proto::crc32c::of(&header[..60]);
            header[60..].copy_from_slice(&crc.to_le_bytes());
            let mut stream = hello_bytes(Role::Client);
            stream.extend(header);
            stream.extend([0; 5000]);
            run(&stream, &[70]);
        }
    }
}
