//! One connection of a session: the link, the reassembly of its frames, the payload that is arriving.

use std::io;
use std::os::fd::AsRawFd as _;

use dst_buf::Buf;
use dst_engine::rx::Receiver;
use dst_net::{Interest, Link, Poller};

use crate::worker::WRITE_SIDE;

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
    id: u32,
    watched: Watched,
}

/// What the poller has been told to watch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// One descriptor for both directions.
    Both(Interest),
    /// Two; that to read from only as long as anything is read, for its hang-up would be reported without end.
    Apart { read: bool, write: Interest },
}

impl Conn {
    /// Has `poller` watch a link under `id`, and with [`WRITE_SIDE`] its write side where that is another descriptor.
    pub fn new(
        link: Link,
        receiver: Receiver<Box<[u8]>>,
        session: u64,
        poller: &Poller,
        id: u32,
    ) -> io::Result<Self> {
        poller.add(link.fd(), u64::from(id), Interest::READ)?;
        let watched = if link.fd().as_raw_fd() == link.write_fd().as_raw_fd() {
            Watched::Both(Interest::READ)
        } else {
            let write = Interest::NONE;
            poller.add(link.write_fd(), WRITE_SIDE | u64::from(id), write)?;
            Watched::Apart { read: true, write }
        };
        Ok(Self {
            link,
            receiver,
            session,
            body: None,
            leaving: None,
            id,
            watched,
        })
    }

    /// Whether more may be queued.
    pub fn has_room(&self) -> bool {
        self.link.queued_bytes() < QUEUE_LIMIT
    }

    /// Sends what is queued, and has the poller watch for what is left to do.
    pub fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        let write = !self.link.flush()?;
        let read = self.leaving.is_none();
        let token = u64::from(self.id);
        match &mut self.watched {
            Watched::Both(watched) => {
                let wanted = Interest { read, write };
                if *watched != wanted {
                    poller.modify(self.link.fd(), token, wanted)?;
                    *watched = wanted;
                }
            }
            Watched::Apart {
                read: reads,
                write: watched,
            } => {
                if *reads && !read {
                    poller.remove(self.link.fd())?;
                    *reads = false;
                }
                let wanted = Interest { read: false, write };
                if *watched != wanted {
                    poller.modify(self.link.write_fd(), WRITE_SIDE | token, wanted)?;
                    *watched = wanted;
                }
            }
        }
        Ok(())
    }

    /// Takes the stream back from `poller`.
    pub fn forget(&self, poller: &Poller) {
        // An error means that it is not there any more.
        let _ = poller.remove(self.link.fd());
        if let Watched::Apart { .. } = self.watched {
            let _ = poller.remove(self.link.write_fd());
        }
    }
}
