//! Requests out of the stream that comes from the kernel.
//!
//! | state | bytes go | next |
//! | --- | --- | --- |
//! | header | into the staging area | payload, after a WRITE; otherwise header again |
//! | payload | what is staged already by a copy, the rest straight from the socket into the buffer | header; payload of the next piece, if a WRITE is longer than a transfer |
//!
//! A WRITE that is longer than a transfer is given as several, in order: each looks like a request of its own.
//!
//! One `readv` takes the rest of a payload and, behind it, whatever else has come into the staging area. So a long write is
//! not copied but for its beginning, many short requests take one system call, and no byte is ever moved twice: what is
//! staged is used up before more is read, except for the beginning of a header.
//!
//! Invariants: the staged bytes are the next ones of the stream; while a payload is incomplete nothing is staged.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;

use dst_buf::{Buf, Pool};
use rustix::io::Errno;

use super::wire::{Header, Kind, REQUEST_LEN};

/// Bytes that can be staged: about 500 requests without payload, or 4 writes of 4 KiB.
const STAGING: usize = 16384;

/// What was received.
#[derive(Debug)]
pub(super) enum Event {
    /// A request, or a piece of a WRITE; with the payload, if it is a WRITE of something.
    Request {
        header: Header,
        payload: Option<Buf>,
        /// Bytes of the same WRITE that are still to come.
        left: u32,
    },
    /// Nothing more is there now.
    Empty,
    /// The kernel has closed the connection.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    staging: Box<[u8]>,
    /// The staged bytes.
    start: usize,
    end: usize,
    state: State,
    /// Payloads longer than this are given in pieces.
    longest: u32,
}

#[derive(Debug)]
enum State {
    Header,
    Payload {
        /// Of this piece.
        header: Header,
        buf: Buf,
        filled: usize,
        /// Bytes of the pieces behind this.
        left: u32,
    },
}

/// The state for the first piece of `header` and `left` bytes behind it.
fn piece(header: Header, left: u32, longest: u32, pool: &Pool) -> State {
    let whole = header.len.saturating_add(left);
    let len = whole.min(longest);
    State::Payload {
        header: Header { len, ..header },
        buf: pool.get(len as usize),
        filled: 0,
        left: whole - len,
    }
}

impl Input {
    /// For pieces of at most `longest` bytes.
    pub(super) fn new(longest: u32) -> Input {
        Input {
            staging: vec![0; STAGING].into_boxed_slice(),
            start: 0,
            end: 0,
            state: State::Header,
            longest,
        }
    }

    /// The next request of the stream from `socket`, which does not block.
    ///
    /// # Errors
    /// `InvalidData` if the stream makes no sense; whatever else the socket says.
    pub(super) fn next(&mut self, socket: BorrowedFd<'_>, pool: &Pool) -> io::Result<Event> {
        loop {
            if let Some(request) = self.take_staged(pool)? {
                return Ok(request);
            }
            match self.fill(socket) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(Event::Closed),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Event::Empty),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Goes on with what is staged; gives a request that is complete.
    fn take_staged(&mut self, pool: &Pool) -> io::Result<Option<Event>> {
        loop {
            let staged = self.staging.get(self.start..self.end).unwrap_or_default();
            match &mut self.state {
                State::Header => {
                    let Some(bytes) = staged.first_chunk::<REQUEST_LEN>() else {
                        return Ok(None);
                    };
                    let header = Header::decode(bytes).ok_or_else(|| {
                        io::Error::new(io::ErrorKind::InvalidData, "no request of the nbd driver")
                    })?;
                    self.start += REQUEST_LEN;
                    if header.kind != Kind::Write || header.len == 0 {
                        return Ok(Some(Event::Request {
                            header,
                            payload: None,
                            left: 0,
                        }));
                    }
                    self.state = piece(header, 0, self.longest, pool);
                }
                State::Payload { buf, filled, .. } => {
                    let rest = buf.get_mut(*filled..).unwrap_or_default();
                    let now = rest.len().min(staged.len());
                    let (to, later) = rest.split_at_mut(now);
                    to.copy_from_slice(&staged[..now]);
                    let complete = later.is_empty();
                    self.start += now;
                    *filled += now;
                    if !complete {
                        return Ok(None);
                    }
                    return Ok(self.finish(pool));
                }
            }
        }
    }

    /// The request whose payload is complete.
    fn finish(&mut self, pool: &Pool) -> Option<Event> {
        let State::Payload {
            header, buf, left, ..
        } = std::mem::replace(&mut self.state, State::Header)
        else {
            return None;
        };
        if left > 0 {
            let next = Header {
                offset: header.offset.saturating_add(u64::from(header.len)),
                len: 0,
                ..header
            };
            self.state = piece(next, left, self.longest, pool);
        }
        Some(Event::Request {
            header,
            payload: Some(buf),
            left,
        })
    }

    /// Reads once. Returns how many bytes came.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        // Nothing is staged, or less than a header.
        self.staging.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let (_, room) = self.staging.split_at_mut(self.end);
        let read = match &mut self.state {
            State::Payload { buf, filled, .. } => {
                let rest = buf.get_mut(*filled..).unwrap_or_default();
                let wanted = rest.len();
                let mut parts = [IoSliceMut::new(rest), IoSliceMut::new(room)];
                let read = rustix::io::readv(socket, &mut parts)?;
                *filled += read.min(wanted);
                self.end += read.saturating_sub(wanted);
                return Ok(read);
            }
            State::Header => rustix::io::read(socket, room)?,
        };
        self.end += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn header(kind: Kind, cookie: u64, len: u32) -> Header {
        Header {
            kind,
            flags: 0,
            cookie,
            offset: cookie * 512,
            len,
        }
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, kernel) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, kernel)
    }

    fn payload(cookie: u64, len: u32) -> Vec<u8> {
        (0..len)
            .map(|at| (u64::from(at) * 31 + cookie) as u8)
            .collect()
    }

    #[test]
    fn the_end_of_the_stream_and_garbage_are_told_apart() {
        let pool = Pool::new(1 << 20);
        let (ours, kernel) = pair();
        let mut input = Input::new(4096);
        assert!(matches!(input.next(ours.as_fd(), &pool), Ok(Event::Empty)));
        drop(kernel);
        assert!(matches!(input.next(ours.as_fd(), &pool), Ok(Event::Closed)));

        let (ours, mut kernel) = pair();
        kernel.write_all(&[0xff; 28]).unwrap();
        let error = Input::new(4096).next(ours.as_fd(), &pool).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        /// Whatever the pieces in which the stream arrives.
        #[test]
        fn every_request_arrives_whole_and_in_order(
            requests in prop::collection::vec((any::<bool>(), 1..40_000_u32), 1..12),
            cuts in prop::collection::vec(1..30_000_usize, 1..20),
            longest in prop::sample::select(vec![4096_u32, 16_384, 1 << 20]),
        ) {
            let mut stream = Vec::new();
            for (cookie, &(write, len)) in requests.iter().enumerate() {
                let kind = if write { Kind::Write } else { Kind::Read };
                stream.extend(header(kind, cookie as u64, len).encode());
                if write {
                    stream.extend(payload(cookie as u64, len));
                }
            }
            let pool = Pool::new(1 << 20);
            let (ours, mut kernel) = pair();
            let mut input = Input::new(longest);
            let mut rest = &stream[..];
            let mut next_cut = cuts.iter().cycle();
            for (cookie, &(write, len)) in requests.iter().enumerate() {
                let mut bytes = Vec::new();
                loop {
                    match input.next(ours.as_fd(), &pool).unwrap() {
                        Event::Request { header, payload, left } => {
                            let done = bytes.len() as u32;
                            prop_assert_eq!(header.cookie, cookie as u64);
                            prop_assert_eq!(header.offset, cookie as u64 * 512 + u64::from(done));
                            if !write {
                                prop_assert!(payload.is_none() && left == 0);
                                prop_assert_eq!(header.len, len);
                                break;
                            }
                            let data = payload.expect("a WRITE has data");
                            prop_assert_eq!(data.as_ptr() as usize % 4096, 0);
                            prop_assert_eq!(data.len() as u32, header.len);
                            prop_assert_eq!(left, len - done - header.len);
                            prop_assert_eq!(header.len, longest.min(len - done));
                            bytes.extend_from_slice(&data);
                            if left == 0 {
                                break;
                            }
                        }
                        Event::Empty => {
                            let now = (*next_cut.next().unwrap()).min(rest.len());
                            prop_assert!(now > 0, "all has been sent");
                            kernel.write_all(&rest[..now]).unwrap();
                            rest = &rest[now..];
                        }
                        Event::Closed => panic!("closed"),
                    }
                }
                if write {
                    prop_assert!(bytes == payload(cookie as u64, len));
                }
            }
        }
    }
}
