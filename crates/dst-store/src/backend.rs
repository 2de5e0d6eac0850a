//! The interface of all backends: submit requests, take completions.
//!
//! # How to drive one
//! 1. [`Backend::submit`] any number of requests.
//! 2. [`Backend::kick`] once: what was submitted starts (one system call for the batch, where there is one).
//! 3. [`Backend::poll`] at once, and again each time [`Backend::wake_fd`] is readable.
//!
//! None of the three blocks. The driver must take `EINTR` from its `epoll_wait` for no error: io_uring completions can
//! cause it.
//!
//! # Rules
//! - Every submitted request gets exactly one completion. Completions come in any order.
//! - A read submitted after a write completed sees what it wrote. Between a read and a write in flight together nothing is
//!   promised.
//! - The caller never has two writes (in the wide sense: write, write zeroes, discard) out at once that overlap.
//! - Dropping a backend waits for what is in flight, since the system may still read or write the buffers.
//! - After [`StoreError::SyncFailed`] every FLUSH and FUA fails the same way until
//!   [`Backend::new_incarnation`]; other operations go on.

use std::io;
use std::os::fd::BorrowedFd;

use crate::key::FileKey;
use crate::request::{Completion, Op, Request, StoreError};

/// What a backend is able to do and what it guarantees; never more than the system under it guarantees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Size in bytes, a multiple of `logical_block`.
    pub size: u64,
    /// The unit of every offset and length in bytes: a power of two from 512 to 4096.
    pub logical_block: u32,
    /// What is read and written without read-modify-write underneath, in bytes: a power of two, at least `logical_block`.
    pub physical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Seeks cost time.
    pub rotational: bool,
    /// [`Op::Discard`] does something.
    pub discard: bool,
    /// The unit in bytes in which space is given back; 0 without `discard`.
    pub discard_granularity: u32,
    /// [`Op::WriteZeroes`] is accepted.
    pub write_zeroes: bool,
    /// [`Op::WriteZeroes`] may take no time in proportion to its length: `fast_only` is accepted, and refused by a request for
    /// which there is no such way, as the one that must not unmap where only holes are fast.
    pub fast_zeroes: bool,
    /// Writes up to this many bytes are there in full or not at all after a power loss; 0: nothing of that kind is
    /// guaranteed.
    pub max_atomic_write: u32,
    /// What it is, for people: "file /srv/disk.img, io_uring".
    pub description: String,
}

impl Info {
    /// Checks what every backend has to check of a request: range and read-only.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`], [`StoreError::ReadOnly`].
    pub fn check(&self, op: &Op) -> Result<(), StoreError> {
        let (offset, len, writes) = match op {
            Op::Read { offset, buf } => (*offset, buf.len() as u64, false),
            Op::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Op::Flush => return Ok(()),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                (*offset, *len, true)
            }
            Op::BlockStatus { offset, len } if *len > 0 => (*offset, *len, false),
            Op::BlockStatus { .. } => return Err(StoreError::OutOfRange),
        };
        if writes && self.read_only {
            return Err(StoreError::ReadOnly);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(StoreError::OutOfRange),
        }
    }
}

/// Which export this is and whether it is still in the state that a former server process left it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Stays with the content for ever.
    pub export_id: [u8; 16],
    /// Hash of everything that must be equal for an incarnation to be kept over a restart of the server process: boot id,
    /// mount, inode and tag, or `diskseq`, and a mark that no sync was cut short. `None`: every start is a new incarnation.
    pub continuity: Option<[u8; 32]>,
    /// What the person who runs the server should know about it, if anything (no room for a tag, for example).
    pub note: Option<String>,
}

/// Where an export keeps its bytes. See the [module](self) for how to drive one.
pub trait Backend: Send {
    /// What it is able to do. `size` changes with [`refresh`](Backend::refresh).
    fn info(&self) -> &Info;

    /// Which export it is. `continuity` changes with [`new_incarnation`](Backend::new_incarnation).
    fn identity(&self) -> Identity;

    /// The open file or device that all of it is on, where there is one.
    fn file(&self) -> Option<FileKey> {
        None
    }

    /// Queues a request. Never blocks.
    fn submit(&mut self, request: Request);

    /// Starts what is queued. Never blocks.
    fn kick(&mut self);

    /// Appends what has completed to `done`. Never blocks.
    fn poll(&mut self, done: &mut Vec<Completion>);

    /// Readable when [`poll`](Backend::poll) may find something. The same descriptor for the life of the backend.
    fn wake_fd(&self) -> BorrowedFd<'_>;

    /// Looks whether the size has changed underneath: `Some(new)` if it has grown and [`info`](Backend::info) says so from
    /// here on. Control path: may cost system calls.
    ///
    /// # Errors
    /// Says once per change in its text that the file has shrunk (requests beyond the new end then answer
    /// [`StoreError::Truncated`] as long as the backend is open), or that looking failed.
    fn refresh(&mut self) -> io::Result<Option<u64>>;

    /// Requests submitted whose completion has not been taken.
    fn in_flight(&self) -> usize;

    /// Starts a new incarnation: lets FLUSH and FUA succeed again after [`StoreError::SyncFailed`]. The caller must have
    /// ended every session that could have relied on unflushed writes, or make them replayed. What is submitted from here on
    /// is executed after everything from before has returned, and reads nothing that is lost (as far as `disk/renew.rs`
    /// says).
    fn new_incarnation(&mut self);
}
