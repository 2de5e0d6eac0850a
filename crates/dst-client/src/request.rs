//! The block request as front ends and the client library exchange it.
//!
//! A [`Request`] goes in, exactly one [`Completion`] with the same tag comes out, in any order. Tags belong to whoever
//! submits: the client hands them back untouched and never interprets them; a tag may be used again once its completion
//! has been taken. Offsets and lengths are in bytes and multiples of [`Geometry::logical_block`].

use std::fmt;

use dst_buf::Shared;
use rustix::io::Errno;

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Op {
    /// Read `len` bytes at `offset`. Answered by [`Reply::Read`] with exactly `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, not 0, at most [`Geometry::max_transfer`].
        len: u32,
    },
    /// Write `data` at `offset`. Answered by [`Reply::Done`].
    Write {
        /// First byte.
        offset: u64,
        /// The bytes, not none, at most [`Geometry::max_transfer`]. They must not change any more (guarantee G9).
        data: Shared,
        /// Answer only when these bytes survive a power loss of the server.
        fua: bool,
        /// Execute after every earlier request and before every later one.
        barrier: bool,
    },
    /// Answer when every write completed before this was submitted survives a power loss of the server.
    Flush,
    /// The content of the range is no longer needed; what it reads as afterwards is not defined.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes, not 0.
        len: u64,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes, not 0.
        len: u64,
        /// The space may be given back.
        may_unmap: bool,
        /// Fail with [`IoError::Unsupported`] rather than write zeroes one by one.
        fast_only: bool,
        /// Answer only when the zeroes survive a power loss of the server.
        fua: bool,
    },
    /// Which parts of the range hold data. Answered by [`Reply::Extents`].
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes, not 0.
        len: u64,
    },
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names the request in its completion.
    pub tag: u64,
    /// What is to be done.
    pub op: Op,
}

/// What a run of bytes on the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// May hold anything.
    Data,
    /// Allocated and reads as zeroes.
    Zero,
    /// Not allocated and reads as zeroes.
    Hole,
}

/// A run of bytes of one kind. The first of a list starts at the offset asked for, each later one where the one before ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, not 0.
    pub len: u64,
    /// What they are.
    pub kind: ExtentKind,
}

/// A successful outcome.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Done, nothing to return.
    Done,
    /// The bytes of a read, all of them.
    Read(Shared),
    /// The answer to a block status: at least one extent; together they may cover less than was asked, never more.
    Extents(Vec<Extent>),
}

/// The outcome of one request.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The tag of the request.
    pub tag: u64,
    /// Its outcome.
    pub result: Result<Reply, IoError>,
}

/// Why a request failed (guarantee G4 lists every reason there may be).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoError {
    /// The deadline or retry limit that the user set has passed.
    Deadline,
    /// The backend failed.
    Backend,
    /// The backend has no space left.
    NoSpace,
    /// The range is not inside the device.
    OutOfRange,
    /// The device is read-only.
    ReadOnly,
    /// The export can't do this operation.
    Unsupported,
    /// The payload arrived damaged again and again.
    Digest,
    /// The lease or the admission is lost: another client may write.
    LeaseLost,
    /// The export is no longer the one that was attached.
    IdentityLost,
    /// Acknowledged writes were lost and can't be replayed.
    WritesLost,
    /// The device is being detached.
    Stopped,
}

impl IoError {
    /// The errno for the local system. Everything that is no plain misuse is an I/O error there.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoSpace => Errno::NOSPC,
            Self::OutOfRange => Errno::INVAL,
            Self::ReadOnly => Errno::ROFS,
            Self::Unsupported => Errno::OPNOTSUPP,
            Self::Deadline
            | Self::Backend
            | Self::Digest
            | Self::LeaseLost
            | Self::IdentityLost
            | Self::WritesLost
            | Self::Stopped => Errno::IO,
        }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "the deadline has passed",
            Self::Backend => "the backend failed",
            Self::NoSpace => "the backend has no space left",
            Self::OutOfRange => "the range is not inside the device",
            Self::ReadOnly => "the device is read-only",
            Self::Unsupported => "the export can't do this operation",
            Self::Digest => "the payload arrived damaged again and again",
            Self::LeaseLost => "the lease is lost, another client may write",
            Self::IdentityLost => "the export is no longer the one that was attached",
            Self::WritesLost => "acknowledged writes were lost and can't be replayed",
            Self::Stopped => "the device is being detached",
        })
    }
}

impl std::error::Error for IoError {}

/// What a device looks like: the limits that the server announced, bounded by what the client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of `logical_block`.
    pub size: u64,
    /// Smallest unit of I/O in bytes, a power of two of at least 512.
    pub logical_block: u32,
    /// Unit in bytes that the backend writes without read-modify-write, a power of two of at least `logical_block`.
    pub physical_block: u32,
    /// Largest payload of one request in bytes, a multiple of `logical_block`.
    pub max_transfer: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Seeks cost time.
    pub rotational: bool,
    /// Discard is there.
    pub discard: bool,
    /// Unit in bytes in which a discard takes effect; 0 without discard.
    pub discard_granularity: u32,
    /// Write zeroes is there.
    pub write_zeroes: bool,
    /// Completed writes may be lost by a power loss until a flush.
    pub write_cache: bool,
    /// Writes with FUA are there.
    pub fua: bool,
}
