//! The receiving half of a link: one buffer, filled by large reads, and reads past it for large payloads.
//!
//! Small frames are cheapest when one read brings many of them; large payloads when they go straight to where they
//! belong, and what was read ahead of them has to be copied once more. So the amount read ahead follows the traffic:
//! a large payload brings it down to [`LEAST_AHEAD`], and each read that fills it doubles it, up to the buffer.
//!
//! Invariants: `start <= end <= buffer.len()`; the bytes between are received and not consumed;
//! `LEAST_AHEAD <= ahead <= buffer.len()`.

use std::io::{self, IoSliceMut};

use crate::Stream;

/// Size of the receive buffer, in bytes. No frame without its payload may be longer.
pub(crate) const BUFFER: usize = 256 * 1024;

/// Read ahead of a frame while payloads are large, in bytes.
const LEAST_AHEAD: usize = 4096;

/// From here on a payload is large: copying it once more costs more than the system call that avoids it.
const LARGE: usize = 32 * 1024;

pub(crate) struct Rx {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    ahead: usize,
    drained: bool,
}

impl Rx {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            ahead: BUFFER,
            drained: false,
        }
    }

    pub(crate) fn peek(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, n: usize) {
        assert!(
            n <= self.end - self.start,
            "consumed more than was received"
        );
        self.start += n;
    }

    pub(crate) fn drained(&self) -> bool {
        self.drained
    }

    pub(crate) fn fill(&mut self, stream: &mut dyn Stream) -> io::Result<usize> {
        self.drained = false;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buffer.len() - self.end < self.ahead {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = self.ahead.min(self.buffer.len() - self.end);
        if room == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame is longer than the receive buffer",
            ));
        }
        let n = stream
            .read(&mut self.buffer[self.end..self.end + room])
            .inspect_err(|e| self.note(e))?;
        if n == 0 {
            return Err(end_of_stream());
        }
        self.end += n;
        self.adapt(n, room);
        self.drained = n < room;
        Ok(n)
    }

    pub(crate) fn read_into(
        &mut self,
        stream: &mut dyn Stream,
        dst: &mut [u8],
    ) -> io::Result<usize> {
        if dst.len() >= LARGE {
            self.ahead = LEAST_AHEAD;
        }
        let taken = dst.len().min(self.end - self.start);
        let (from_buffer, rest) = dst.split_at_mut(taken);
        from_buffer.copy_from_slice(&self.buffer[self.start..self.start + taken]);
        self.start += taken;
        if rest.is_empty() {
            return Ok(taken);
        }
        self.drained = false;
        // All that was buffered is taken.
        self.start = 0;
        self.end = 0;
        let wanted = rest.len();
        let mut parts = [
            IoSliceMut::new(rest),
            IoSliceMut::new(&mut self.buffer[..self.ahead]),
        ];
        match stream.read_vectored(&mut parts) {
            Ok(0) if taken == 0 => Err(end_of_stream()),
            // The end comes again with the next read.
            Ok(0) => Ok(taken),
            Ok(n) => {
                self.end = n.saturating_sub(wanted);
                self.drained = n < wanted + self.ahead;
                self.adapt(self.end, self.ahead);
                Ok(taken + n.min(wanted))
            }
            Err(e) => {
                self.note(&e);
                if taken > 0 && self.drained {
                    return Ok(taken);
                }
                Err(e)
            }
        }
    }

    fn adapt(&mut self, n: usize, room: usize) {
        if n == room {
            self.ahead = (self.ahead * 2).min(self.buffer.len());
        }
    }

    fn note(&mut self, error: &io::Error) {
        self.drained = error.kind() == io::ErrorKind::WouldBlock;
    }
}

fn end_of_stream() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer closed the connection",
    )
}
