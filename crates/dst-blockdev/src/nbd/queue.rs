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
//! Invariants: a request is in `pending` from the moment it is given until its outcome is taken; exactly one reply is queued
//! for each; the set of descriptors asks for room to write if and only if replies are queued.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dst_buf::{Buf, Pool};
use dst_client::{Completion, Geometry, IoError, Op, Reply, Request};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};

use super::input::{Event, Input};
use super::output::{Output, Pushed};
use super::wire::{request_flag, Header, Kind, NbdError};

/// Requests that one call of `take` reads at most, so that replies don't wait for an endless stream of requests.
const TAKE_BUDGET: usize = 256;
/// What `blk_mq` lets the driver have under way on one connection (`queue_depth` in `drivers/block/nbd.c`).
const DEPTH: usize = 128;
/// Bytes of reads and writes under way from which on no more requests are taken.
const FULL: u64 = 32 << 20;

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    cookie: u64,
    /// Bytes of data, either way.
    bytes: u32,
    /// The reply must carry them.
    read: bool,
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
    /// By tag.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// The data of what is pending.
    bytes: u64,
    /// Bytes, the longest READ and WRITE.
    longest: u32,
    closed: bool,
}

impl Queue {
    /// For a socket that does not block. `longest`: bytes, the longest READ and WRITE.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn new(socket: OwnedFd, longest: u32) -> io::Result<Queue> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &socket, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Queue {
            socket,
            epoll: Arc::new(epoll),
            blocked: false,
            input: Input::new(longest as usize),
            output: Output::new(DEPTH),
            pending: Vec::with_capacity(DEPTH),
            free: Vec::with_capacity(DEPTH),
            bytes: 0,
            longest,
            closed: false,
        })
    }

    /// Readable when [`take`](Self::take) has something to do, which is also to write what had to wait.
    pub(super) fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
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
                Ok(Event::Request(header, payload)) => self.request(header, payload, out),
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

    fn request(&mut self, header: Header, payload: Option<Buf>, out: &mut Vec<Request>) {
        let Header { offset, len, .. } = header;
        let fua = header.flags & request_flag::FUA != 0;
        let op = match header.kind {
            Kind::Disconnect => return self.close(),
            Kind::Read | Kind::Write if len > self.longest => {
                return self.output.push(header.cookie, Err(NbdError::Overflow));
            }
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
        let pending = Pending {
            cookie: header.cookie,
            bytes: match header.kind {
                Kind::Read | Kind::Write => len,
                _ => 0,
            },
            read: header.kind == Kind::Read,
        };
        self.bytes += u64::from(pending.bytes);
        let tag = match self.free.pop() {
            Some(place) => {
                self.pending[place] = Some(pending);
                place
            }
            None => {
                self.pending.push(Some(pending));
                self.pending.len() - 1
            }
        };
        out.push(Request {
            tag: tag as u64,
            op,
        });
    }

    /// Queues the reply to a request; an unknown tag is ignored.
    pub(super) fn complete(&mut self, completion: Completion) {
        let Some(pending) = self.remove(completion.tag) else {
            return;
        };
        let result = match completion.result {
            Err(error) => Err(error.into()),
            Ok(Reply::Read(data)) if pending.read && data.len() == pending.bytes as usize => {
                Ok(Some(data))
            }
            Ok(Reply::Done) if !pending.read => Ok(None),
            // The kernel would take what follows for the rest of the data.
            Ok(_) => Err(NbdError::Io),
        };
        self.output.push(pending.cookie, result);
    }

    fn remove(&mut self, tag: u64) -> Option<Pending> {
        let place = usize::try_from(tag).ok()?;
        let pending = self.pending.get_mut(place)?.take()?;
        self.free.push(place);
        self.bytes -= u64::from(pending.bytes);
        Some(pending)
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
        self.free.clear();
        self.bytes = 0;
    }

    /// Answers everything with an error, what is under way and what comes, until the kernel closes the connection. Blocks.
    pub(super) fn refuse(mut self) {
        // Where payloads land that nobody wants.
        let pool = Pool::new(1 << 20);
        let mut requests = Vec::new();
        for tag in 0..self.pending.len() as u64 {
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
