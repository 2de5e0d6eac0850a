//! One connection of the driver: its frames, and the poller's interest in them.

use std::io;

use dst_net::{Framed, Interest, Memory, Poller, Watch};

use crate::driver::{Data, Pending};

/// Where a piece of a READ's answer goes: into the request's buffer.
pub(crate) struct Piece {
    pub slot: u16,
    /// First byte within the request.
    pub start: usize,
    /// Behind the last.
    pub end: usize,
    /// Offset of the piece in the export, for its digests.
    pub offset: u64,
}

impl Memory<Piece> for Vec<Option<Pending>> {
    fn room<'a>(&'a mut self, piece: &'a mut Piece) -> Option<&'a mut [u8]> {
        match self.get_mut(usize::from(piece.slot))? {
            Some(Pending {
                data: Data::Read(Some(buffer)),
                ..
            }) => buffer.get_mut(piece.start..piece.end),
            _ => None,
        }
    }
}

/// A connection with a stream.
pub(crate) struct Conn {
    pub framed: Framed<Piece>,
    /// The session's number of this stream.
    pub stream: u32,
    watch: Watch,
}

impl Conn {
    /// Takes over a stream and has `poller` watch it under `token`.
    pub fn new(
        framed: Framed<Piece>,
        stream: u32,
        poller: &Poller,
        token: u64,
    ) -> io::Result<Self> {
        let watch = Watch::add(poller, &framed.link, token, token)?;
        Ok(Self {
            framed,
            stream,
            watch,
        })
    }

    /// Sends what is queued, and asks to be woken when the rest can go.
    pub fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        let write = !self.framed.link.flush()?;
        let interest = Interest { read: true, write };
        self.watch.update(poller, &self.framed.link, interest)
    }

    /// Takes the stream back from `poller`; nothing of it is left there.
    pub fn forget(&self, poller: &Poller) {
        self.watch.remove(poller, &self.framed.link);
    }
}
