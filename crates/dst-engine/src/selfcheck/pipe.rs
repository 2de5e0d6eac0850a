//! Bytes on their way from one end to the other.

use super::{copy, ensure, Checked};

/// Bytes that may be on their way.
const ROOM: usize = 1536;
/// What is read comes in parts of so many bytes, so that frames come in pieces.
const PART: usize = 61;

/// One direction of a stream. What has been written and not been read is `bytes[taken..end]`.
#[derive(Debug)]
pub(super) struct Pipe {
    bytes: [u8; ROOM],
    taken: usize,
    end: usize,
}

impl Pipe {
    pub const fn new() -> Pipe {
        Pipe {
            bytes: [0; ROOM],
            taken: 0,
            end: 0,
        }
    }

    /// Nothing is on its way any more.
    pub fn clear(&mut self) {
        self.taken = 0;
        self.end = 0;
    }

    /// Bytes that are on their way.
    pub fn len(&self) -> usize {
        self.end.saturating_sub(self.taken)
    }

    /// The stream breaks behind the first `len` of them.
    pub fn cut(&mut self, len: usize) {
        self.end = self.end.min(self.taken.saturating_add(len));
    }

    /// Memory to write to; then [`Self::written`].
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `len` bytes of the room have been written.
    pub fn written(&mut self, len: usize) {
        self.end = self.end.saturating_add(len).min(ROOM);
    }

    /// Writes `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Checked {
        let len = copy(self.room(), bytes);
        self.written(len);
        ensure(len == bytes.len(), "the link is too short")
    }

    /// The next bytes to read; then [`Self::take`].
    pub fn readable(&self) -> &[u8] {
        let end = self.end.min(self.taken.saturating_add(PART));
        self.bytes.get(self.taken..end).unwrap_or_default()
    }

    /// `len` bytes have been read.
    pub fn take(&mut self, len: usize) {
        self.taken = self.taken.saturating_add(len).min(self.end);
        if self.taken == self.end {
            self.clear();
        }
    }
}
