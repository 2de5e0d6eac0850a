//! An eventfd that a backend makes readable when a poll may find something.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{eventfd, EventfdFlags};
use rustix::io;

/// The file descriptor. Raising it again while it is raised does no harm.
pub(crate) struct Wake(OwnedFd);

impl Wake {
    /// # Errors
    /// Out of descriptors or memory.
    pub(crate) fn new() -> io::Result<Wake> {
        Ok(Wake(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Makes it readable.
    pub(crate) fn raise(&self) {
        // The only error possible is EAGAIN at 2^64 - 2 unread raises, and then it is readable anyway.
        let _ = io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable.
    pub(crate) fn lower(&self) {
        let mut count = [0; 8];
        // EAGAIN: it was not raised.
        let _ = io::read(&self.0, &mut count);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
