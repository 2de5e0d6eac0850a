//! A stream with batched input and a vectored output queue: what an event loop drives.
//!
//! **Input.** [`Link::fill`] brings up to 256 KiB with one read; [`Link::peek`] and [`Link::consume`] walk through it.
//! When a header announces a payload, [`Link::read_into`] puts that where it belongs, from the buffer first and then
//! from the socket straight into the destination, with what follows going into the buffer in the same system call.
//! After each call [`Link::drained`] says whether it is worth asking again before the next event.
//!
//! **Output.** `push_*` queue, [`Link::flush`] writes; it returns `false` when the socket is full, and then the loop
//! waits for room on [`Link::write_fd`] and calls it again. A mark pushed behind something is reported by
//! [`Link::take_marks`] once all of that has left user space, so that its memory is free of this link.
//!
//! Memory is bounded by the fixed receive buffer and by what the owner pushes ([`Link::queued_bytes`]): it is the
//! owner's business to push no more than the peer's credit admits. Nothing is allocated per frame once the queue has
//! grown to what the traffic needs.
//!
//! After any error other than `WouldBlock` the connection is over: drop the link. Marks that were not reported by
//! then may be taken as reached, since nothing refers to the memory any more.

use std::io;
use std::os::fd::BorrowedFd;

use dst_buf::Shared;

use crate::rx::Rx;
use crate::tx::Tx;
use crate::Stream;

/// A stream and its two halves.
pub struct Link {
    stream: Box<dyn Stream>,
    rx: Rx,
    tx: Tx,
}

impl Link {
    /// Bytes that [`Link::peek`] can hold: no frame, its payload apart, may be longer.
    pub const RECEIVE_BUFFER: usize = crate::rx::BUFFER;

    /// A link over a fresh stream.
    pub fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            rx: Rx::new(),
            tx: Tx::default(),
        }
    }

    /// Reads once into the receive buffer and says how many bytes came, at least one. `WouldBlock` when there are
    /// none, `UnexpectedEof` when there will be none, `InvalidData` when the buffer is full of one unfinished frame.
    pub fn fill(&mut self) -> io::Result<usize> {
        self.rx.fill(&mut *self.stream)
    }

    /// What is received and not consumed.
    pub fn peek(&self) -> &[u8] {
        self.rx.peek()
    }

    /// Drops the first `n` bytes of [`Link::peek`]. Panics if there are fewer.
    pub fn consume(&mut self, n: usize) {
        self.rx.consume(n);
    }

    /// Puts the next bytes of the stream into `dst` and says how many; fewer than `dst.len()` means that no more are
    /// there now. Buffered bytes come first; the rest is read from the socket with one system call, which also fills
    /// the receive buffer. `WouldBlock` and `UnexpectedEof` as for [`Link::fill`], only when no byte came.
    pub fn read_into(&mut self, dst: &mut [u8]) -> io::Result<usize> {
        self.rx.read_into(&mut *self.stream, dst)
    }

    /// Whether the last [`Link::fill`] or [`Link::read_into`] took all that the socket had, so that another would
    /// most likely answer `WouldBlock`. What comes later raises an event again.
    pub fn drained(&self) -> bool {
        self.rx.drained()
    }

    /// Queues a copy of `bytes`.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.tx.push_bytes(bytes);
    }

    /// Queues a payload without copying it.
    pub fn push_payload(&mut self, data: Shared) {
        self.tx.push_payload(data);
    }

    /// Asks for `mark` to be reported once everything pushed so far has left user space.
    pub fn push_mark(&mut self, mark: u64) {
        self.tx.push_mark(mark);
    }

    /// Writes as much of the queue as there is room for; `true` when all of it is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.tx.flush(&mut *self.stream)
    }

    /// Appends the marks reached since the last call to `out`, in the order of their pushes.
    pub fn take_marks(&mut self, out: &mut Vec<u64>) {
        self.tx.take_marks(out);
    }

    /// Bytes pushed and not yet written.
    pub fn queued_bytes(&self) -> usize {
        self.tx.queued()
    }

    /// Whether anything is left to write.
    pub fn wants_write(&self) -> bool {
        self.tx.queued() > 0
    }

    /// To wait on for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }

    /// To wait on for writing; often the same descriptor as [`Link::fd`].
    pub fn write_fd(&self) -> BorrowedFd<'_> {
        self.stream.write_fd()
    }

    /// The stream below.
    pub fn stream(&self) -> &dyn Stream {
        &*self.stream
    }

    /// Ends the outgoing direction ([`Stream::shutdown`]); what is still queued is not written.
    pub fn shutdown(&mut self) {
        self.stream.shutdown();
    }
}
