//! The data path: requests of the nbd driver become block requests, their outcomes become replies.
//!
//! | state | `take` | `complete` | ends by |
//! | --- | --- | --- | --- |
//! | open | gives requests | queues a reply | DISC, the end of the stream, nonsense in it |
//! | closed | gives nothing | does nothing | dropping it |
//!
//! A [`Queue`] that nobody serves any more is refused by [`Queue::refuse`], which answers everything with an error until the
//! kernel closes the connection: see the module above for why closing the socket would not do.
//!
//! A READ or WRITE that is longer than a transfer (where the driver's limit could not be set, or was changed since) is given as
//! several requests, its *pieces*, and answered when all of them are done: with an error if one failed.
//!
//! Invariants: a request is in `pending` from the moment it is given until its outcome is taken; exactly one reply is queued
//! for each, or for all pieces together; the set of descriptors asks for room to write if and only if replies are queued.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Arc;

use dst_buf::{Buf, Pool, Shared};
use dst_client::{Completion, Geometry, IoError, Op, Reply, Request};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};

use super::input::{Event, Input};
use super::output::{Output, Pushed};
use super::wire::{request_flag, Header, Kind, NbdError};
use crate::slots::Slots;

/// Requests that one call of `take` reads at most, so that replies don't wait for an endless stream of requests.
const TAKE_BUDGET: usize = 256;
/// What `blk_mq` lets the driver have under way on one connection (`queue_depth` in `drivers/block/nbd.c`).
const DEPTH: usize = 128;
/// Bytes of reads and writes under way from which on no more requests are taken.
const FULL: u64 = 32 << 20;

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    of: Of,
    /// Bytes of data, either way.
    bytes: u32,
    /// The reply must carry them.
    read: bool,
    /// How many were given before.
    number: u64,
}

/// What a request under way is to the kernel.
#[derive(Debug, Clone, Copy)]
enum Of {
    /// All of the request with this cookie.
    All(u64),
    /// A piece.
    Piece {
        /// The tag in `Queue::split` of what it is a piece of.
        of: u64,
        /// How many are before it.
        at: usize,
    },
}

/// A request in pieces.
#[derive(Debug)]
struct Split {
    cookie: u64,
    /// Not done, or not come yet.
    left: usize,
    failed: Option<NbdError>,
    /// Of a READ, as far as they have come.
    data: Vec<Option<Shared>>,
}

/// Somebody who waits until what was under way when he came is done.
#[derive(Debug)]
struct Waiter {
    /// Requests with lower numbers.
    before: u64,
    tell: Sender<()>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    socket: OwnedFd,
    /// Holds the socket, and is what others wait for: so that waiting for room to write is nobody else's concern.
    epoll: Arc<OwnedFd>,
    /// `epoll` waits for room to write.
    blocked: bool,
    input: Input,
    output: Output,
    pending: Slots<Pending>,
    /// How many requests were given.
    given: u64,
    /// As a rule there is none.
    split: Slots<Split>,
    /// The one in `split` whose pieces are arriving.
    arriving: Option<u64>,
    waiters: Vec<Waiter>,
    /// The data of what is pending.
    bytes: u64,
    /// Bytes, the longest READ and WRITE.
    longest: u32,
    closed: bool,
}

impl Queue {
    /// For a socket that does not block and that `epoll` waits for. `longest`: bytes, the longest READ and WRITE that is given.
    pub(super) fn new(socket: OwnedFd, epoll: Arc<OwnedFd>, longest: u32) -> Queue {
        Queue {
            socket,
            epoll,
            blocked: false,
            input: Input::new(longest),
            output: Output::new(DEPTH),
            pending: Slots::new(DEPTH),
            given: 0,
            split: Slots::new(0),
            arriving: None,
            waiters: Vec::new(),
            bytes: 0,
            longest,
            closed: false,
        }
    }

    /// The kernel has closed the connection, or said that it will.
    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    /// The socket, for whoever wants to end what uses it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Appends the requests that are there to `out`.
    ///
    /// # Errors
    /// The stream makes no sense, or the socket fails. The queue is closed then.
    pub(super) fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<()> {
        for taken in 0..TAKE_BUDGET {
            if self.closed {
                return Ok(());
            }
            // One is read in any case: it may be the news that the connection is gone.
            if taken > 0 && self.is_full() {
                break;
            }
            match self.input.next(self.socket.as_fd(), pool) {
                Ok(Event::Request {
                    header,
                    payload,
                    left,
                }) => self.request(header, payload, left, out),
                Ok(Event::Empty) => break,
                Ok(Event::Closed) => self.close(),
                Err(error) => {
                    self.close();
                    return Err(error);
                }
            }
        }
        // Replies to what is refused at once, and what had to wait for room.
        self.flush()
    }

    /// Whether there is enough under way.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= FULL
    }

    /// `left`: bytes of the same WRITE that are still to come.
    fn request(&mut self, header: Header, payload: Option<Buf>, left: u32, out: &mut Vec<Request>) {
        let Header { offset, len, .. } = header;
        let fua = header.flags & request_flag::FUA != 0;
        let op = match header.kind {
            Kind::Disconnect => return self.close(),
            Kind::Read if len > self.longest => return self.read_in_pieces(header, out),
            Kind::Read => Op::Read { offset, len },
            Kind::Write => match payload {
                Some(payload) => Op::Write {
                    offset,
                    data: payload.share(),
                    fua,
                    barrier: false,
                },
                // A WRITE of nothing.
                None => return self.output.push(header.cookie, Err(NbdError::Inval)),
            },
            Kind::Flush => Op::Flush,
            Kind::Trim => Op::Discard {
                offset,
                len: u64::from(len),
            },
            Kind::WriteZeroes => Op::WriteZeroes {
                offset,
                len: u64::from(len),
                may_unmap: header.flags & request_flag::NO_HOLE == 0,
                fast_only: false,
                fua,
            },
            Kind::Unknown(_) => return self.output.push(header.cookie, Err(NbdError::Inval)),
        };
        let of = match (self.arriving, left) {
            (None, 0) => Of::All(header.cookie),
            (arriving, _) => self.piece_of_write(arriving, header.cookie, left),
        };
        let bytes = match header.kind {
            Kind::Read | Kind::Write => len,
            _ => 0,
        };
        self.give(of, bytes, header.kind == Kind::Read, op, out);
    }

    /// Gives a READ that is longer than a transfer.
    fn read_in_pieces(&mut self, header: Header, out: &mut Vec<Request>) {
        let starts = (0..header.len).step_by(self.longest as usize);
        let of = self.split(header.cookie, starts.len(), starts.len());
        for (at, start) in starts.enumerate() {
            let len = self.longest.min(header.len - start);
            let op = Op::Read {
                offset: header.offset.saturating_add(u64::from(start)),
                len,
            };
            self.give(Of::Piece { of, at }, len, true, op, out);
        }
    }

    /// What the next piece of a WRITE is, behind which `left` bytes are to come.
    fn piece_of_write(&mut self, arriving: Option<u64>, cookie: u64, left: u32) -> Of {
        let behind = left.div_ceil(self.longest) as usize;
        let of = match arriving {
            Some(of) => of,
            None => self.split(cookie, behind + 1, 0),
        };
        self.arriving = (left > 0).then_some(of);
        // Only the pieces of a READ have to be put in order.
        Of::Piece { of, at: 0 }
    }

    /// A place for a request in so many pieces, some of which come with data.
    fn split(&mut self, cookie: u64, pieces: usize, with_data: usize) -> u64 {
        self.split.insert(Split {
            cookie,
            left: pieces,
            failed: None,
            data: vec![None; with_data],
        })
    }

    fn give(&mut self, of: Of, bytes: u32, read: bool, op: Op, out: &mut Vec<Request>) {
        let pending = Pending {
            of,
            bytes,
            read,
            number: self.given,
        };
        self.given += 1;
        self.bytes += u64::from(bytes);
        let tag = self.pending.insert(pending);
        out.push(Request { tag, op });
    }

    /// Queues the reply to a request; an unknown tag is ignored.
    pub(super) fn complete(&mut self, completion: Completion) {
        let Some(pending) = self.pending.remove(completion.tag) else {
            return;
        };
        self.bytes -= u64::from(pending.bytes);
        let result = match completion.result {
            Err(error) => Err(error.into()),
            Ok(Reply::Read(data)) if pending.read && data.len() == pending.bytes as usize => {
                Ok(Some(data))
            }
            Ok(Reply::Done) if !pending.read => Ok(None),
            // The kernel would take what follows for the rest of the data.
            Ok(_) => Err(NbdError::Io),
        };
        match pending.of {
            Of::All(cookie) => self.output.push(cookie, result),
            Of::Piece { of, at } => self.complete_piece(of, at, result),
        }
        if !self.waiters.is_empty() {
            self.tell_waiters();
        }
    }

    fn complete_piece(&mut self, of: u64, at: usize, result: Result<Option<Shared>, NbdError>) {
        let Some(split) = self.split.get_mut(of) else {
            return;
        };
        match result {
            Ok(data) => {
                if let Some(place) = split.data.get_mut(at) {
                    *place = data;
                }
            }
            Err(error) => {
                split.failed.get_or_insert(error);
            }
        }
        split.left -= 1;
        if split.left > 0 {
            return;
        }
        let Some(split) = self.split.remove(of) else {
            return;
        };
        match split.failed {
            Some(error) => self.output.push(split.cookie, Err(error)),
            None => self
                .output
                .push_pieces(split.cookie, split.data.into_iter().flatten()),
        }
    }

    /// Tells when all that is under way now is done: something is received then, or the sender is gone because the queue is.
    pub(super) fn when_done(&mut self) -> Receiver<()> {
        let (tell, told) = mpsc::channel();
        self.waiters.push(Waiter {
            before: self.given,
            tell,
        });
        self.tell_waiters();
        told
    }

    fn tell_waiters(&mut self) {
        let oldest = self.pending.iter().map(|pending| pending.number);
        let oldest = oldest.min().unwrap_or(u64::MAX);
        self.waiters.retain(|waiter| {
            let done = waiter.before <= oldest;
            if done {
                // Who does not wait any more need not be told.
                let _ = waiter.tell.send(());
            }
            !done
        });
    }

    /// Writes replies, as far as the kernel takes them.
    ///
    /// # Errors
    /// The socket fails. The queue is closed then.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let blocked = match self.output.write(self.socket.as_fd()) {
            Ok(Pushed::All) => false,
            Ok(Pushed::Blocked) => true,
            Ok(Pushed::Closed) => {
                self.close();
                return Ok(());
            }
            Err(error) => {
                self.close();
                return Err(error);
            }
        };
        if blocked != self.blocked {
            let mut wanted = EventFlags::IN;
            wanted.set(EventFlags::OUT, blocked);
            epoll::modify(&*self.epoll, &self.socket, EventData::new_u64(0), wanted)?;
            self.blocked = blocked;
        }
        Ok(())
    }

    /// Nobody waits for anything any more.
    fn close(&mut self) {
        self.closed = true;
        self.output.clear();
        self.pending.clear();
        self.split.clear();
        self.arriving = None;
        self.waiters.clear();
        self.bytes = 0;
    }

    /// Answers everything with an error, what is under way and what comes, until the kernel closes the connection. Blocks.
    pub(super) fn refuse(mut self) {
        // Where payloads land that nobody wants.
        let pool = Pool::new(1 << 20);
        let mut requests = Vec::new();
        let tags: Vec<u64> = self.pending.tags().collect();
        for tag in tags {
            self.complete(refused(tag));
        }
        while !self.closed {
            if self.take(&mut requests, &pool).is_err() {
                return;
            }
            for request in requests.drain(..) {
                self.complete(refused(request.tag));
            }
            if self.flush().is_err() || self.closed {
                return;
            }
            let mut fds = [PollFd::new(&*self.epoll, PollFlags::IN)];
            // An error here is an interruption.
            let _ = rustix::event::poll(&mut fds, None);
        }
    }
}

fn refused(tag: u64) -> Completion {
    Completion {
        tag,
        result: Err(IoError::Stopped),
    }
}

/// `NBD_ATTR_SERVER_FLAGS`: what the device can do (`NBD_FLAG_*`).
pub(super) fn server_flags(geometry: &Geometry) -> u64 {
    const HAS_FLAGS: u64 = 1 << 0;
    const READ_ONLY: u64 = 1 << 1;
    const SEND_FLUSH: u64 = 1 << 2;
    const SEND_FUA: u64 = 1 << 3;
    const ROTATIONAL: u64 = 1 << 4;
    const SEND_TRIM: u64 = 1 << 5;
    const SEND_WRITE_ZEROES: u64 = 1 << 6;
    let writable = !geometry.read_only;
    let flags = [
        (geometry.read_only, READ_ONLY),
        (geometry.write_cache && writable, SEND_FLUSH),
        (geometry.write_cache && geometry.fua && writable, SEND_FUA),
        (geometry.rotational, ROTATIONAL),
        (geometry.discard && writable, SEND_TRIM),
        (geometry.write_zeroes && writable, SEND_WRITE_ZEROES),
    ];
    flags
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(HAS_FLAGS, |all, (_, flag)| all | flag)
}

#[cfg(test)]
mod tests;
