//! One connection of a session: its frames, and the poller's interest in them.

use std::io;

use dst_buf::Buf;
use dst_net::{Framed, Interest, Memory, Poller, Watch};

use crate::worker::WRITE_SIDE;

/// Where the payload of a WRITE goes: memory of its own until it has arrived whole.
pub(crate) struct Incoming {
    pub slot: u16,
    pub buffer: Buf,
    /// Offset in the export, for the digests.
    pub offset: u64,
}

/// Finds the memory of an [`Incoming`]: with itself.
pub(crate) struct Own;

impl Memory<Incoming> for Own {
    fn room<'a>(&'a mut self, place: &'a mut Incoming) -> Option<&'a mut [u8]> {
        Some(&mut place.buffer)
    }
}

/// A connection that has joined a session.
pub(crate) struct Conn {
    pub framed: Framed<Incoming>,
    /// The session's number.
    pub session: u64,
    /// Last words are queued: nothing more is read, and it goes when they have left, or at this time.
    pub leaving: Option<u64>,
    watch: Watch,
}

impl Conn {
    /// Has `poller` watch a stream under `id`, and with [`WRITE_SIDE`] its write side where that is another descriptor.
    pub fn new(
        framed: Framed<Incoming>,
        session: u64,
        poller: &Poller,
        id: u32,
    ) -> io::Result<Self> {
        let token = u64::from(id);
        let watch = Watch::add(poller, &framed.link, token, WRITE_SIDE | token)?;
        Ok(Self {
            framed,
            session,
            leaving: None,
            watch,
        })
    }

    /// Sends what is queued, and has the poller watch for what is left to do.
    pub fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        let write = !self.framed.link.flush()?;
        let read = self.leaving.is_none();
        self.watch
            .update(poller, &self.framed.link, Interest { read, write })
    }

    /// Takes the stream back from `poller`.
    pub fn forget(&self, poller: &Poller) {
        self.watch.remove(poller, &self.framed.link);
    }
}
