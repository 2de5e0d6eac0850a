//! What each FUSE request means for a block device: sans I/O, requests in, block requests and answers out.
//!
//! The file system is one regular file, which is its own root. It behaves like a block device: its size is fixed, a
//! truncation at open is ignored, a write at the end fails with ENOSPC, one across the end is short.
//!
//! - FSYNC is a flush of the device. (A front end that does not know it would be asked once and never again: the kernel
//!   takes ENOSYS for "nothing to do, for ever".) FLUSH is `close(2)` and means nothing here.
//! - A WRITE through a descriptor with O_DSYNC carries that flag, and the kernel sends no FSYNC after it: it becomes FUA, or
//!   a write with a flush after it.
//! - FALLOCATE with PUNCH_HOLE promises zeroes to whoever calls it on a file, and the loop driver makes both discards and
//!   "write zeroes, may unmap" of it without telling which. So it is never a discard, whose content is undefined, but
//!   write zeroes that may unmap; and only if that is fast, since nobody wants a discard of a whole disk to write it.
//! - INTERRUPT is answered ENOSYS, which turns it off: a request to a disk has an outcome.
//!
//! Reads and writes that are not on block boundaries are widened; `mutate.rs` has the writing half.

use std::collections::VecDeque;

use dst_buf::{Pool, Shared};
use dst_client::{Completion, Extent, ExtentKind, Geometry, IoError, Op, Reply, Request};
use rustix::io::Errno;

use super::device::Answer;
use super::mutate::{Held, Job, Mutation};
use super::proto::{self, init_flag, set_attr, Header, Message};
use super::reply::{open_flag, Attr, Body, Init};
use crate::slots::Slots;

/// How long the kernel may believe attributes, in seconds; a resize invalidates them.
const ATTR_SECONDS: u64 = 3600;
/// Requests that the kernel may have under way in the background, and from where on it calls itself congested.
const MAX_BACKGROUND: (u16, u16) = (256, 192);
/// Bytes of reads and writes under way from which on no more requests are taken: what a server gives credit for, and more.
/// Without it the kernel's queues would decide how much memory the agent needs.
const FULL: u64 = 32 << 20;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Everything the file needs to know besides the geometry.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileInfo {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970, shown as all three times.
    pub(super) time_seconds: u64,
    /// Largest READ and WRITE in bytes.
    pub(super) transfer: u32,
    /// The memory page, in bytes.
    pub(super) page: u32,
}

/// A block request under way, and what its answer is to become.
#[derive(Debug)]
pub(super) enum Pending {
    /// A read: `len` bytes of it from `skip` on go to the reader.
    Read {
        unique: u64,
        skip: u32,
        len: u32,
        /// What was asked of the device.
        whole: u32,
    },
    /// A flush for FSYNC, or one that makes a finished write durable; `body` is the answer.
    Flush { unique: u64, body: Body },
    /// A block status for LSEEK.
    Status {
        unique: u64,
        /// Looking for data, not for a hole.
        data: bool,
        /// The block status began here.
        from: u64,
        /// LSEEK began here.
        at: u64,
    },
    /// A write, write zeroes or the like that is one block request.
    Direct(Mutation),
    /// The read of an edge of the job with this tag; the edge begins at `at`.
    Edge { job: u64, at: u64 },
    /// One of the last requests of the job with this tag.
    Part { job: u64 },
}

/// Where what follows from an event goes.
pub(super) struct Sink<'a> {
    pub(super) requests: &'a mut Vec<Request>,
    pub(super) answers: &'a mut VecDeque<Answer>,
}

impl Sink<'_> {
    pub(super) fn fail(&mut self, unique: u64, errno: Errno) {
        self.answers.push_back(Answer {
            unique,
            result: Err(errno),
        });
    }

    pub(super) fn done(&mut self, unique: u64, body: Body) {
        self.answers.push_back(Answer {
            unique,
            result: Ok((body, None)),
        });
    }

    fn data(&mut self, unique: u64, data: Shared) {
        self.answers.push_back(Answer {
            unique,
            result: Ok((Body::EMPTY, Some(data))),
        });
    }
}

/// The file.
///
/// Call order: [`request`](Self::request) for each FUSE request, [`complete`](Self::complete) for each outcome of a block
/// request; both leave what follows in the [`Sink`].
#[derive(Debug)]
pub(super) struct Ops {
    pub(super) geometry: Geometry,
    info: FileInfo,
    pub(super) pending: Slots<Pending>,
    /// Read-modify-writes under way.
    pub(super) jobs: Slots<Job>,
    /// Mutations that wait for one that overlaps, oldest first.
    pub(super) held: VecDeque<Held>,
    /// Bytes that the reads and writes under way or held take or will take.
    pub(super) bytes: u64,
}

impl Ops {
    pub(super) fn new(geometry: Geometry, info: FileInfo) -> Ops {
        Ops {
            geometry,
            info,
            // Synchronous requests come on top of those in the background.
            pending: Slots::new(2 * usize::from(MAX_BACKGROUND.0)),
            jobs: Slots::new(usize::from(MAX_BACKGROUND.0)),
            held: VecDeque::with_capacity(usize::from(MAX_BACKGROUND.0)),
            bytes: 0,
        }
    }

    /// Whether there is enough under way.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= FULL
    }

    /// Takes one FUSE request; `payload` is that of a WRITE.
    pub(super) fn request(
        &mut self,
        header: Header,
        message: Message,
        payload: Option<Shared>,
        pool: &Pool,
        sink: &mut Sink<'_>,
    ) {
        let unique = header.unique;
        match message {
            Message::Forget => {}
            Message::Init { .. } | Message::StatFs | Message::Interrupt | Message::Destroy => {
                self.connection_request(unique, message, sink);
            }
            // There is one inode. The kernel can't ask for another without having been told of it.
            _ if header.node != proto::ROOT_ID => sink.fail(unique, Errno::NOENT),
            Message::GetAttr => sink.done(unique, self.attributes()),
            Message::SetAttr { valid, size } => match self.check_set_attr(valid, size) {
                Ok(()) => sink.done(unique, self.attributes()),
                Err(errno) => sink.fail(unique, errno),
            },
            Message::Open { flags } => {
                const O_ACCMODE: u32 = 3;
                if self.geometry.read_only && flags & O_ACCMODE != 0 {
                    sink.fail(unique, Errno::ROFS);
                } else {
                    let flags = open_flag::DIRECT_IO
                        | open_flag::NOFLUSH
                        | open_flag::PARALLEL_DIRECT_WRITES;
                    sink.done(unique, Body::open(flags));
                }
            }
            Message::Release | Message::Flush => sink.done(unique, Body::EMPTY),
            Message::Fsync => self.flush(unique, Body::EMPTY, sink),
            Message::Read { offset, size } => self.read(unique, offset, size, sink),
            Message::Write { offset, flags, .. } => match payload {
                Some(data) => self.write(unique, offset, data, flags, pool, sink),
                None => sink.fail(unique, Errno::IO),
            },
            Message::Fallocate {
                offset,
                length,
                mode,
            } => self.fallocate(unique, offset, length, mode, pool, sink),
            Message::Lseek { offset, whence } => self.lseek(unique, offset, whence, sink),
            Message::Other(_) => sink.fail(unique, Errno::NOSYS),
        }
    }

    /// Requests that concern the file system as a whole.
    fn connection_request(&self, unique: u64, message: Message, sink: &mut Sink<'_>) {
        match message {
            Message::Init {
                major,
                minor,
                max_readahead,
                flags,
            } => match self.init(major, minor, max_readahead, flags) {
                Ok(init) => sink.done(unique, Body::init(&init)),
                Err(errno) => sink.fail(unique, errno),
            },
            Message::StatFs => sink.done(
                unique,
                Body::statfs(self.geometry.size, self.hole_granularity()),
            ),
            Message::Destroy => sink.done(unique, Body::EMPTY),
            _ => sink.fail(unique, Errno::NOSYS),
        }
    }

    /// The answer to INIT.
    fn init(&self, major: u32, minor: u32, max_readahead: u32, flags: u32) -> Result<Init, Errno> {
        let wanted = init_flag::ASYNC_READ
            | init_flag::BIG_WRITES
            | init_flag::ASYNC_DIO
            | init_flag::ABORT_ERROR
            | init_flag::MAX_PAGES;
        let old = major == proto::MAJOR && minor < proto::OLDEST_MINOR;
        if major < proto::MAJOR || old || flags & wanted != wanted {
            return Err(Errno::PROTO);
        }
        let pages = (self.info.transfer / self.info.page.max(1)).max(1);
        Ok(Init {
            minor: minor.min(proto::MINOR),
            max_readahead,
            flags: wanted,
            max_background: MAX_BACKGROUND.0,
            congestion_threshold: MAX_BACKGROUND.1,
            max_write: self.info.transfer,
            max_pages: u16::try_from(pages).unwrap_or(u16::MAX),
        })
    }

    /// What `statfs` calls a block: the loop driver announces it as discard granularity.
    fn hole_granularity(&self) -> u32 {
        self.geometry
            .discard_granularity
            .max(self.geometry.logical_block)
    }

    fn attributes(&self) -> Body {
        const S_IFREG: u32 = 0o100_000;
        Body::attr(&Attr {
            valid_seconds: ATTR_SECONDS,
            size: self.geometry.size,
            time_seconds: self.info.time_seconds,
            mode: S_IFREG
                | if self.geometry.read_only {
                    0o400
                } else {
                    0o600
                },
            uid: self.info.uid,
            gid: self.info.gid,
            block_size: self.geometry.physical_block.max(4096),
        })
    }

    /// Size: to what it is, or 0 as O_TRUNC asks for, which changes nothing. Times: accepted and not kept.
    fn check_set_attr(&self, valid: u32, size: u64) -> Result<(), Errno> {
        if valid & (set_attr::MODE | set_attr::UID | set_attr::GID) != 0 {
            return Err(Errno::PERM);
        }
        if valid & set_attr::SIZE == 0 || size == 0 || size == self.geometry.size {
            return Ok(());
        }
        Err(if size > self.geometry.size {
            Errno::FBIG
        } else {
            Errno::INVAL
        })
    }

    /// A flush whose success is answered with `body`.
    pub(super) fn flush(&mut self, unique: u64, body: Body, sink: &mut Sink<'_>) {
        if !self.geometry.write_cache {
            // Whatever has been acknowledged is durable.
            return sink.done(unique, body);
        }
        let tag = self.pending.insert(Pending::Flush { unique, body });
        sink.requests.push(Request { tag, op: Op::Flush });
    }

    /// The block boundaries round a range that lies inside the device.
    pub(super) fn widen(&self, from: u64, to: u64) -> (u64, u64) {
        let mask = u64::from(self.geometry.logical_block) - 1;
        // The size is a multiple of the block, so that rounding up stays inside.
        (from & !mask, to.saturating_add(mask) & !mask)
    }

    /// How much of `len` bytes from `from` on one request can carry once it is widened.
    pub(super) fn fit(&self, from: u64, len: u32) -> u32 {
        let mask = u64::from(self.geometry.logical_block) - 1;
        let (start, end) = self.widen(from, from.saturating_add(u64::from(len)));
        if end - start <= u64::from(self.geometry.max_transfer) {
            return len;
        }
        // Only an unaligned request gets here, since no FUSE request is longer than a transfer.
        self.geometry.max_transfer - (from & mask) as u32
    }

    fn read(&mut self, unique: u64, offset: u64, size: u32, sink: &mut Sink<'_>) {
        let left = self.geometry.size.saturating_sub(offset);
        let len = u64::from(size).min(left) as u32;
        if len == 0 {
            return sink.done(unique, Body::EMPTY);
        }
        let len = self.fit(offset, len);
        let (from, to) = self.widen(offset, offset + u64::from(len));
        let whole = (to - from) as u32;
        self.bytes += u64::from(whole);
        let tag = self.pending.insert(Pending::Read {
            unique,
            skip: (offset - from) as u32,
            len,
            whole,
        });
        sink.requests.push(Request {
            tag,
            op: Op::Read {
                offset: from,
                len: whole,
            },
        });
    }

    fn lseek(&mut self, unique: u64, offset: u64, whence: u32, sink: &mut Sink<'_>) {
        if !matches!(whence, SEEK_DATA | SEEK_HOLE) {
            // The kernel does the others itself.
            return sink.fail(unique, Errno::INVAL);
        }
        if offset >= self.geometry.size {
            return sink.fail(unique, Errno::NXIO);
        }
        let (from, _) = self.widen(offset, offset);
        self.status(unique, whence == SEEK_DATA, from, offset, sink);
    }

    fn status(&mut self, unique: u64, data: bool, from: u64, at: u64, sink: &mut Sink<'_>) {
        let tag = self.pending.insert(Pending::Status {
            unique,
            data,
            from,
            at,
        });
        sink.requests.push(Request {
            tag,
            op: Op::BlockStatus {
                offset: from,
                len: self.geometry.size - from,
            },
        });
    }

    /// Takes the outcome of a block request. One that is not known is ignored.
    pub(super) fn complete(&mut self, completion: Completion, sink: &mut Sink<'_>) {
        let Some(pending) = self.pending.remove(completion.tag) else {
            return;
        };
        let result = completion.result;
        match pending {
            Pending::Read {
                unique,
                skip,
                len,
                whole,
            } => {
                self.bytes -= u64::from(whole);
                match read_data(result, whole) {
                    Ok(data) if len == whole => sink.data(unique, data),
                    Ok(data) => sink.data(unique, data.slice(skip as usize..(skip + len) as usize)),
                    Err(errno) => sink.fail(unique, errno),
                }
            }
            Pending::Flush { unique, body } => match result {
                Ok(_) => sink.done(unique, body),
                Err(error) => sink.fail(unique, error.errno()),
            },
            Pending::Status {
                unique,
                data,
                from,
                at,
            } => self.status_done(unique, data, from, at, result, sink),
            Pending::Direct(mutation) => {
                let outcome = result.map(drop).map_err(|error| error.errno());
                self.mutation_done(mutation, outcome, sink);
            }
            Pending::Edge { job, at } => {
                let edge = read_data(result, self.geometry.logical_block);
                self.edge_done(job, at, edge, sink);
            }
            Pending::Part { job } => {
                self.part_done(job, result.map(drop).map_err(|error| error.errno()), sink);
            }
        }
    }

    fn status_done(
        &mut self,
        unique: u64,
        data: bool,
        from: u64,
        at: u64,
        result: Result<Reply, IoError>,
        sink: &mut Sink<'_>,
    ) {
        let extents = match result {
            Ok(Reply::Extents(extents)) => extents,
            // ENOSYS is remembered by the kernel, which then takes everything for data.
            Err(IoError::Unsupported) => return sink.fail(unique, Errno::NOSYS),
            Err(error) => return sink.fail(unique, error.errno()),
            Ok(_) => return sink.fail(unique, Errno::IO),
        };
        match seek_in(&extents, data, from, at) {
            Ok(found) if found < self.geometry.size => sink.done(unique, Body::lseek(found)),
            Err(end) if end > from && end < self.geometry.size => {
                self.status(unique, data, end, at.max(end), sink);
            }
            // An answer that covers nothing would be asked for ever.
            Err(end) if end <= from => sink.fail(unique, Errno::IO),
            // Nothing more: every file has a hole at its end, and no data after it.
            _ if data => sink.fail(unique, Errno::NXIO),
            _ => sink.done(unique, Body::lseek(self.geometry.size)),
        }
    }

    /// Forgets everything under way: nobody waits for it any more.
    pub(super) fn forget_all(&mut self) {
        self.pending.clear();
        self.jobs.clear();
        self.held.clear();
        self.bytes = 0;
    }
}

/// The bytes of a read that must have `len`.
fn read_data(result: Result<Reply, IoError>, len: u32) -> Result<Shared, Errno> {
    match result {
        Ok(Reply::Read(data)) if data.len() == len as usize => Ok(data),
        Ok(_) => Err(Errno::IO),
        Err(error) => Err(error.errno()),
    }
}

/// The first offset from `at` on that is data (or not), in extents that begin at `from`; else where they end.
fn seek_in(extents: &[Extent], data: bool, from: u64, at: u64) -> Result<u64, u64> {
    let mut start = from;
    for extent in extents {
        let end = start.saturating_add(extent.len);
        if (extent.kind == ExtentKind::Data) == data && end > at {
            return Ok(start.max(at));
        }
        start = end;
    }
    Err(start)
}
