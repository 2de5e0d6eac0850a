//! One connection of the driver: the link, the reassembly of its frames, the payload that is arriving.

use dst_engine::rx::Receiver;
use dst_net::{Interest, Link, Poller};

use std::io;

/// Bytes that a connection may have queued before the next one gets its turn: enough to keep a socket busy, little enough
/// that a new request is not behind too much.
const QUEUE_LIMIT: usize = 2 << 20;

/// Where an arriving payload goes.
pub(crate) enum Body {
    /// Into a READ's buffer.
    Into {
        /// The slot.
        slot: u16,
        /// First byte of this piece within the request.
        start: usize,
        /// Next byte within the request.
        at: usize,
        /// End of this piece within the request.
        end: usize,
        /// Offset of the piece in the export, for its digests.
        offset: u64,
    },
    /// Nowhere.
    Discard(usize),
}

/// A connection with a stream.
pub(crate) struct Conn {
    pub link: Link,
    pub receiver: Receiver<Box<[u8]>>,
    /// The session's number of this stream.
    pub stream: u32,
    pub body: Option<Body>,
    token: u64,
    writing: bool,
    /// The write side is another descriptor than the read side.
    split: bool,
}

impl Conn {
    /// Takes over a stream and has `poller` watch it under `token`.
    pub fn new(
        link: Link,
        receiver: Receiver<Box<[u8]>>,
        stream: u32,
        poller: &Poller,
        token: u64,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        poller.add(link.fd(), token, Interest::READ)?;
        let split = link.fd().as_raw_fd() != link.write_fd().as_raw_fd();
        if split {
            poller.add(link.write_fd(), token, Interest::NONE)?;
        }
        Ok(Self {
            link,
            receiver,
            stream,
            body: None,
            token,
            writing: false,
            split,
        })
    }

    /// Whether more may be queued.
    pub fn has_room(&self) -> bool {
        self.link.queued_bytes() < QUEUE_LIMIT
    }

    /// Sends what is queued, and asks to be woken when the rest can go.
    pub fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        let blocked = !self.link.flush()?;
        if blocked != self.writing {
            self.writing = blocked;
            if self.split {
                let interest = if blocked {
                    Interest::WRITE
                } else {
                    Interest::NONE
                };
                poller.modify(self.link.write_fd(), self.token, interest)?;
            } else {
                let interest = if blocked {
                    Interest::BOTH
                } else {
                    Interest::READ
                };
                poller.modify(self.link.fd(), self.token, interest)?;
            }
        }
        Ok(())
    }

    /// Takes the stream back from `poller`; nothing of it is left there.
    pub fn forget(&self, poller: &Poller) {
        // An error means that it is not there any more.
        let _ = poller.remove(self.link.fd());
        if self.split {
            let _ = poller.remove(self.link.write_fd());
        }
    }
}
