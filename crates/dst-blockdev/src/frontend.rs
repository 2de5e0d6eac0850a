//! The front-end trait: what a device's one data-path thread needs to know about the way to the kernel.
//!
//! # States
//!
//! | state | entered by | `take` | ends by |
//! | --- | --- | --- | --- |
//! | open | [`crate::open`] | serves the kernel's set-up requests | the work of [`FrontEnd::start`] succeeds |
//! | up | the work of `start` | serves requests | `stop`, or the kernel side goes away |
//! | stopped | [`FrontEnd::stopped`] is true | gives nothing | dropping it |
//!
//! In every state the loop goes on calling `take` when [`FrontEnd::fd`] is readable: also while the work of `start`,
//! `resize`, `in_use` and `stop` runs on another thread, which it can't finish without.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use dst_buf::Pool;
use dst_client::{Completion, Geometry, Request};

use crate::Error;

/// Bytes of buffers that the requests under way take at most, whatever the front end: for
/// [`dst_client::Options::reserve`]. What a front end takes until it is full, and half as much again for the last request,
/// the one that is being read, and edges between buffers where no other fits.
pub const IN_FLIGHT: u64 = 48 << 20;

/// Blocking work for a thread other than the one that serves the device: it does I/O on the device itself.
pub type Work<T> = Box<dyn FnOnce() -> Result<T, Error> + Send>;

/// What kind of thing the local system gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A block device.
    BlockDevice,
    /// A regular file of the device's size.
    File,
}

/// What `start` made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The path to use: `/dev/dst/NAME` for a block device, the file itself otherwise.
    pub path: PathBuf,
    /// What is there.
    pub kind: NodeKind,
    /// What the path leads to: `/dev/loop3`; the same as `path` for a file.
    pub device: PathBuf,
    /// Queues that a block device was made with, which the block layer spreads the processors over; 0 for a file.
    pub queues: u16,
    /// What is not quite as the geometry says, in words, for the log and `dst status`.
    pub notes: Vec<String>,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct Config {
    /// The device's name; see [`crate::valid_name`].
    pub name: String,
    /// The device as the server announced it.
    pub geometry: Geometry,
    /// A block device or a file; `None`: a block device where the caller may make one, a file otherwise.
    pub node: Option<NodeKind>,
    /// Show partitions of a block device as devices of their own.
    pub partitions: bool,
    /// Let the device survive the death of this process, where the kernel can, so that [`crate::recover`] can take it over;
    /// until then its I/O waits. Only for who keeps what a successor needs.
    pub survives: bool,
}

/// One way for a device to reach the local system.
///
/// Getters: [`name`](Self::name), [`fd`](Self::fd), [`stopped`](Self::stopped). Data path, never blocking:
/// [`take`](Self::take), [`is_full`](Self::is_full), [`complete`](Self::complete), [`flush`](Self::flush). Control path: [`start`](Self::start),
/// [`resize`](Self::resize), [`in_use`](Self::in_use), [`stop`](Self::stop), each of which answers at once with [`Work`]
/// to be run elsewhere while the data path goes on.
pub trait FrontEnd: Send {
    /// The name of the kind of front end: `fuse`, ...
    fn name(&self) -> &'static str;

    /// Readable (level-triggered) when [`take`](Self::take) has something to do, from the moment the front end exists. The
    /// number stays the same for its whole life. Take it out of the epoll set once [`stopped`](Self::stopped).
    fn fd(&self) -> BorrowedFd<'_>;

    /// Appends the requests that are there to `out`, taking buffers from `pool`. Never blocks. It may leave some for the
    /// next call when there are very many; `fd` stays readable then. Tags are the front end's.
    ///
    /// # Errors
    /// The kernel interface broke in a way that is not an end of the device. The front end is `stopped` then.
    fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<()>;

    /// There is so much under way that no more should be taken until something of it is complete, and `fd` not be polled
    /// for reading meanwhile: so what a device needs of memory is bounded. A [`take`](Self::take) all the same is no
    /// mistake, and takes little. (Never so for one whose kernel side has no more requests than fit [`IN_FLIGHT`].)
    fn is_full(&self) -> bool {
        false
    }

    /// Takes the outcome of a request that [`take`](Self::take) or this gave. Appends to `out` what has to follow (the
    /// second half of an unaligned write, a write that had to wait for it); an unknown tag is ignored.
    fn complete(&mut self, completion: Completion, out: &mut Vec<Request>);

    /// Pushes the answers out. Call it after a batch of [`complete`](Self::complete).
    ///
    /// # Errors
    /// As [`take`](Self::take).
    fn flush(&mut self) -> io::Result<()>;

    /// The work that makes the device usable; to be taken once. If it fails it has undone what it did, and the front end
    /// is to be dropped.
    fn start(&mut self) -> Work<Node>;

    /// Shows another size from now on. The work makes everybody notice.
    ///
    /// # Errors
    /// `Geometry` if the new size is smaller, or no multiple of the logical block.
    fn resize(&mut self, new_size: u64) -> Result<Work<()>, Error>;

    /// Finds out who uses the device: `Some(text)` if it is mounted, open or has something stacked on it.
    fn in_use(&self) -> Work<Option<String>>;

    /// The work that removes the device.
    ///
    /// Without `force` the work fails with `Busy`, having changed nothing, while somebody uses the device; otherwise it
    /// writes back what is cached, so the loop must go on serving until it is done.
    ///
    /// With `force` every request in the front end has failed with an I/O error before this method returns, completions
    /// for them are ignored, and the work needs nobody to serve. A node that somebody still has open stays until the last
    /// one closes it.
    fn stop(&mut self, force: bool) -> Work<()>;

    /// The kernel's side is gone: nothing comes any more.
    fn stopped(&self) -> bool;

    /// The device waits when this process dies, for [`crate::recover`].
    fn survives(&self) -> bool {
        false
    }
}
