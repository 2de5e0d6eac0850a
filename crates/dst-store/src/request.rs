//! What a backend is asked and what it answers.

use dst_buf::{Buf, Shared};
use rustix::io::Errno;

/// One operation. Offsets and lengths are bytes, multiples of the logical block; a backend checks that they are within
/// its size, the caller that they are aligned.
#[derive(Debug)]
pub enum Op {
    /// Fills the whole buffer from `offset`; the buffer comes back in [`Outcome::Read`].
    Read {
        /// Where to start.
        offset: u64,
        /// What to fill, in full.
        buf: Buf,
    },
    /// Writes all of `data`.
    Write {
        /// Where to start.
        offset: u64,
        /// What to write. The backend holds a reference until it has completed.
        data: Shared,
        /// Done means: on stable storage.
        fua: bool,
    },
    /// Done means: every write that completed before this was submitted is on stable storage.
    Flush,
    /// The content is not needed any more. Nothing is promised about what it reads as afterwards, but that it stays the
    /// same until written and is no other export's data.
    Discard {
        /// Where to start.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// Where to start.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The space may be given back, so that a later write may meet [`StoreError::NoSpace`].
        may_unmap: bool,
        /// Answer [`StoreError::Unsupported`] rather than write the zeroes out.
        fast_only: bool,
        /// Done means: on stable storage.
        fua: bool,
    },
    /// Asks which parts are data, zeroes or holes.
    BlockStatus {
        /// Where to start.
        offset: u64,
        /// How many bytes, not 0.
        len: u64,
    },
}

/// An operation with the caller's name for it.
#[derive(Debug)]
pub struct Request {
    /// Comes back in the completion. A backend does not look at it; it need not be unique.
    pub token: u64,
    /// What to do.
    pub op: Op,
}

/// A run of blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub len: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// What a run of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Allocated, any content.
    Data,
    /// Reads as zeroes and has its space.
    Zero,
    /// Reads as zeroes; writing to it may meet [`StoreError::NoSpace`].
    Hole,
}

/// How an operation succeeded.
#[derive(Debug)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The buffer of the read, filled.
    Read(Buf),
    /// Runs from the offset asked on. They may cover less than was asked, never nothing, and never more.
    Extents(Vec<Extent>),
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The system said so. The range of a failed write may be old, new or mixed.
    #[error("I/O error: {0}")]
    Io(Errno),
    /// No room on the file system or in its quota. The range may be old, new or mixed.
    #[error("no space left where the export is kept")]
    NoSpace,
    /// Not within the export.
    #[error("beyond the end of the export")]
    OutOfRange,
    /// The backend was opened read-only.
    #[error("the export is read-only")]
    ReadOnly,
    /// The backend can't do that (or not fast, where that was asked).
    #[error("not supported by the backend")]
    Unsupported,
    /// The file has become shorter underneath and no longer has this range.
    #[error("the file of the export was truncated underneath")]
    Truncated,
    /// A sync call failed: nothing that was acknowledged since the last successful flush is certain any more. Every FLUSH
    /// and FUA gets this until [`new_incarnation`](crate::Backend::new_incarnation).
    #[error("a sync failed: unflushed writes may be lost")]
    SyncFailed,
}

impl StoreError {
    /// The error for an errno of a read, write or allocation (not of a sync).
    pub fn from_errno(errno: Errno) -> StoreError {
        match errno {
            Errno::NOSPC | Errno::DQUOT => StoreError::NoSpace,
            Errno::ROFS => StoreError::ReadOnly,
            Errno::OPNOTSUPP | Errno::NOSYS => StoreError::Unsupported,
            other => StoreError::Io(other),
        }
    }

    /// The errno that names this best to a local caller.
    pub fn errno(self) -> Errno {
        match self {
            StoreError::Io(errno) => errno,
            StoreError::NoSpace => Errno::NOSPC,
            StoreError::OutOfRange => Errno::INVAL,
            StoreError::ReadOnly => Errno::ROFS,
            StoreError::Unsupported => Errno::OPNOTSUPP,
            StoreError::Truncated | StoreError::SyncFailed => Errno::IO,
        }
    }
}

/// The answer to one request.
#[derive(Debug)]
pub struct Completion {
    /// The token of the request.
    pub token: u64,
    /// How it went.
    pub result: Result<Outcome, StoreError>,
}
