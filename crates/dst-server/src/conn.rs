//! One connection of a session: the link, the reassembly of its frames, the payload that is arriving.

use std::io;
use std::os::fd::AsRawFd as _;

use dst_buf::Buf;
use dst_engine::rx::Receiver;
use dst_net::{Interest, Link, Poller};

/// Bytes that a connection may have queued: enough to keep a socket busy, and all that a peer that never reads can hold.
const QUEUE_LIMIT: usize = 2 << 20;

/// Where an arriving payload goes.
pub(crate) enum Body {
    /// Into fresh memory, for a WRITE.
    Into {
        slot: u16,
        buffer: Buf,
        at: usize,
        /// Offset in the export, for the digests.
        offset: u64,
    },
    /// Nowhere.
    Discard(usize),
}

/// A connection that has joined a session.
pub(crate) struct Conn {
    pub link: Link,
    pub receiver: Receiver<Box<[u8]>>,
    /// The session's number.
    pub session: u64,
    pub body: Option<Body>,
    /// Last words are queued: nothing more is read, and it goes when they have left, or at this time.
    pub leaving: Option<u64>,
    token: u64,
    interest: (Interest, Interest),
    /// The write side is another descriptor than the read side.
    split: bool,
}

impl Conn {
    /// Has `poller` watch a link under `token`.
    pub fn new(
        link: Link,
        receiver: Receiver<Box<[u8]>>,
        session: u64,
        poller: &Poller,
        token: u64,
    ) -> io::Result<Self> {
        let split = link.fd().as_raw_fd() != link.write_fd().as_raw_fd();
        poller.add(link.fd(), token, Interest::READ)?;
        if split {
            poller.add(link.write_fd(), token, Interest::NONE)?;
        }
        Ok(Self {
            link,
            receiver,
            session,
            body: None,
            leaving: None,
            token,
            interest: (Interest::READ, Interest::NONE),
            split,
        })
    }

    /// Whether more may be queued.
    pub fn has_room(&self) -> bool {
        self.link.queued_bytes() < QUEUE_LIMIT
    }

    /// Sends what is queued, and has the poller watch for what is left to do.
    pub fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        let blocked = !self.link.flush()?;
        let wanted = Interest {
            read: self.leaving.is_none(),
            write: blocked,
        };
        if self.split {
            let sides = (
                Interest {
                    write: false,
                    ..wanted
                },
                Interest {
                    read: false,
                    ..wanted
                },
            );
            if sides != self.interest {
                poller.modify(self.link.fd(), self.token, sides.0)?;
                poller.modify(self.link.write_fd(), self.token, sides.1)?;
                self.interest = sides;
            }
        } else if (wanted, Interest::NONE) != self.interest {
            poller.modify(self.link.fd(), self.token, wanted)?;
            self.interest = (wanted, Interest::NONE);
        }
        Ok(())
    }

    /// Takes the stream back from `poller`.
    pub fn forget(&self, poller: &Poller) {
        // An error means that it is not there any more.
        let _ = poller.remove(self.link.fd());
        if self.split {
            let _ = poller.remove(self.link.write_fd());
        }
    }
}
