//! Transports of DST, the buffered link over them, and the frames on it.
//!
//! A transport is any reliable ordered byte stream; each is one small file behind [`Transport`] (the connecting side,
//! blocking, for threads of the control path), [`Listener`] and [`Stream`] (non-blocking, for event loops):
//! [`tcp`], [`unix`], [`exec`] with [`stdio`] as its server side. [`url`] names them. A new one is one more such file
//! and a line in [`url`].
//!
//! [`Link`] puts batched input and a vectored output queue round a stream, [`Framed`] the frames of the protocol round a
//! link; [`Poller`], [`Watch`] and [`Waker`] are the event loop's part; [`Connector`] takes blocking connects off its hands and [`Backoff`] paces them.
//!
//! ```no_run
//! use dst_net::{Endpoint, Link};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint: Endpoint = "dst://storage/disk".parse()?;
//! let stream = endpoint.transport().connect(std::time::Duration::from_secs(5))?;
//! let mut link = Link::new(stream);
//! link.push_bytes(b"hello");
//! let all_gone = link.flush()?;
//! # Ok(()) }
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub mod backoff;
pub mod connector;
pub mod exec;
pub mod framed;
pub mod link;
pub mod poller;
pub mod stdio;
pub mod tcp;
pub mod unix;
pub mod url;
pub mod watch;

mod rx;
mod socket;
mod tx;

pub use backoff::Backoff;
pub use connector::Connector;
pub use framed::{Came, End, Framed, Memory, NoMemory, Share};
pub use link::Link;
pub use poller::{Event, Interest, Poller, Waker};
pub use stdio::StdioStream;
pub use url::{Address, Endpoint, UrlError};
pub use watch::Watch;

/// A connected byte stream, non-blocking. Dropping it closes it.
///
/// Reads answer `Ok(0)` at the end of the stream (or an error of kind `UnexpectedEof` that says more) and
/// `WouldBlock` when nothing is there; writes `WouldBlock` when there is no room. No signal is raised for a peer
/// that has gone.
pub trait Stream: Send {
    /// The side to wait on for reading, and for writing too where [`Stream::write_fd`] is the same.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The side to wait on for writing.
    fn write_fd(&self) -> BorrowedFd<'_>;

    /// Reads what is there, at most `buf.len()` bytes.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buf)])
    }

    /// Reads what is there into `bufs`, one after the other, with one system call.
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Writes as much of `bufs` as there is room for, with one system call.
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends the outgoing direction: the peer reads the end of the stream after everything written so far. Reading
    /// goes on.
    fn shutdown(&mut self);

    /// Who is at the other end, for messages.
    fn peer(&self) -> String;

    /// Whether the peer is, or may be, on this machine, so that memory pressure there is memory pressure here
    /// (`PR_SET_IO_FLUSHER`). Commands count as local, since nobody knows where they lead.
    fn is_local(&self) -> bool;

    /// Whether plaintext is fine on this stream: loopback, a Unix socket, or a command whose channel is its own
    /// security. Everything else needs `--insecure` or encryption.
    fn is_trusted(&self) -> bool;
}

/// The connecting side of a transport.
pub trait Transport: Send + Sync {
    /// Connects; blocks for `timeout` at most (a local command may take longer to start). For the control path:
    /// it resolves names, allocates and may start threads and processes.
    fn connect(&self, timeout: Duration) -> io::Result<Box<dyn Stream>>;

    /// Where it leads, for messages.
    fn describe(&self) -> String;

    /// As [`Stream::is_local`], as far as is known before connecting.
    fn is_local(&self) -> bool;

    /// As [`Stream::is_trusted`], as far as is known before connecting: `true` only where every stream will be.
    fn is_trusted(&self) -> bool;
}

/// The accepting side of a transport. Dropping it stops listening.
pub trait Listener: Send {
    /// Takes a waiting connection; `WouldBlock` when none is there. Errors that concern one connection only are
    /// skipped; the others (out of descriptors or memory) may last, with [`Listener::fd`] readable all the while:
    /// wait a moment before the next attempt.
    fn accept(&mut self) -> io::Result<Box<dyn Stream>>;

    /// Readable when a connection waits.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The URL that clients on this machine can use, without an export; ports that the system chose are filled in.
    fn local_url(&self) -> String;
}
