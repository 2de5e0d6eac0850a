//! How a file's system calls are made without blocking the caller: the interface of the I/O engines.
//!
//! A [`Call`] is one system call with the memory it needs, which the engine owns from `push` until it hands the call back.
//! Calls come back in any order, each once. What a result means is decided above, in `disk.rs`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use dst_buf::{Buf, Shared};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::open::{EngineChoice, OpenError};
use crate::request::Extent;
use crate::threads::ThreadEngine;
use crate::uring::UringEngine;

/// One system call on the engine's file.
#[derive(Debug)]
pub(crate) enum Call {
    /// Reads into `buf` from `filled` on; `offset` is that of the buffer's start.
    Read {
        offset: u64,
        buf: Buf,
        filled: usize,
    },
    /// Writes `data` from `written` on; `offset` is that of the data's start.
    Write {
        offset: u64,
        data: Shared,
        written: usize,
    },
    /// `fdatasync` of a range; the whole file if both are 0. Where the system has no ranged sync, of the whole file.
    Sync { offset: u64, len: u32 },
    /// `fallocate`.
    Allocate {
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
    /// Finds data and holes by `lseek` and leaves them in `extents`.
    Seek {
        offset: u64,
        len: u64,
        block: u32,
        extents: Vec<Extent>,
    },
    /// `ioctl(BLKDISCARD)`.
    DiscardDevice { offset: u64, len: u64 },
    /// Syncs, whatever comes of it, and drops the page cache.
    Forget,
}

impl Call {
    /// Whether io_uring can do it; the others go to a thread.
    pub(crate) fn has_opcode(&self) -> bool {
        match self {
            Call::Read { .. } | Call::Write { .. } | Call::Sync { .. } | Call::Allocate { .. } => {
                true
            }
            Call::Seek { .. } | Call::DiscardDevice { .. } | Call::Forget => false,
        }
    }
}

/// A call that has returned.
#[derive(Debug)]
pub(crate) struct Finished {
    /// As given to `push`.
    pub(crate) key: u64,
    /// The call with its memory.
    pub(crate) call: Call,
    /// What the system call returned: bytes for reads and writes, else 0.
    pub(crate) result: Result<usize, Errno>,
}

/// See the [module](self). No method blocks; dropping waits for the calls that are out.
pub(crate) trait Engine: Send {
    /// Queues a call.
    fn push(&mut self, key: u64, call: Call);
    /// Starts what is queued.
    fn kick(&mut self);
    /// Appends what has returned.
    fn reap(&mut self, finished: &mut Vec<Finished>);
    /// Makes `wake_fd` readable once.
    fn nudge(&mut self);
    /// Readable when `reap` may find something.
    fn wake_fd(&self) -> BorrowedFd<'_>;
    /// For people.
    fn name(&self) -> &'static str;
}

/// Makes the engine that was chosen. io_uring may be missing, or forbidden by `kernel.io_uring_disabled` or a seccomp filter,
/// as in containers.
///
/// # Errors
/// No memory, threads or descriptors; with [`EngineChoice::Uring`] also that io_uring can't be used.
pub(crate) fn start(
    choice: EngineChoice,
    file: Arc<OwnedFd>,
) -> Result<Box<dyn Engine>, OpenError> {
    let failed = |error| OpenError::io("start I/O threads")(error);
    match choice {
        EngineChoice::Threads => Ok(Box::new(ThreadEngine::start(file).map_err(failed)?)),
        EngineChoice::Uring => match UringEngine::start(file) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) => Err(OpenError::io("use io_uring")(error)),
        },
        EngineChoice::Auto => match UringEngine::start(file.clone()) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(_) => Ok(Box::new(ThreadEngine::start(file).map_err(failed)?)),
        },
    }
}
