//! The data path: one queue of a ublk device, on one io_uring.
//!
//! Commands wait in the ring for requests; a request's descriptor is in memory that the driver shares, its payload moves by
//! `pread` and `pwrite` on `/dev/ublkcN` (`UBLK_F_USER_COPY`): one copy, straight into the pool buffer that is sent, and
//! straight from the one that was received. No buffer is held for a tag that has no request, and what the kernel's page
//! holds later does not matter (guarantee G9). (Zero copy would lend the pages to other calls of the ring; this end has
//! to compute digests over them and keep them, so it would copy all the same.)
//!
//! # Invariants
//! - Every command of the queue is issued by one thread, the one that called [`Queue::begin`]: the driver refuses others.
//! - At most one command per tag is in the ring, so neither of its queues ever overflows.
//! - While there is something to take, `event` is readable: the kernel signals it when it has work for the thread that the
//!   ring belongs to, after it has set the ring's flag that says so; and [`Queue::take`] clears it before it looks at that
//!   flag for the last time. (The ring's own descriptor is no use: with `DEFER_TASKRUN` it wakes nobody for such work.)
//!
//! The states of a tag are in `tags.rs`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use dst_buf::Pool;
use dst_client::{Completion, Op, Reply, Request};
use io_uring::{opcode, types, IoUring};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::abi::{self, IoCmd, IoDesc};
use super::tags::{Asked, Came, Tags};
use crate::Error;

/// How long to wait for `/dev/ublkcN` to be there. Where devtmpfs makes it, it is there at once.
const NODE: Duration = Duration::from_secs(5);

/// The descriptors of all requests, which the driver writes.
#[derive(Debug)]
struct Descriptors {
    memory: NonNull<IoDesc>,
    /// Bytes mapped.
    bytes: usize,
    depth: u16,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is only read through `&self`.
unsafe impl Send for Descriptors {}

impl Descriptors {
    fn map(device: &File, depth: u16) -> io::Result<Descriptors> {
        let bytes = usize::from(depth) * size_of::<IoDesc>();
        let bytes = bytes.next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else refers to it.
        let memory = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                device,
                // `UBLKSRV_CMD_BUF_OFFSET`, queue 0
                0,
            )
        }?;
        let memory = NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?;
        Ok(Descriptors {
            memory,
            bytes,
            depth,
        })
    }

    /// The descriptor of a tag with a request on it.
    fn get(&self, tag: u16) -> IoDesc {
        assert!(tag < self.depth, "no such tag");
        // SAFETY: the mapping holds `depth` descriptors and lives as long as `self`. The driver wrote this one before it
        // completed the command, whose completion has been seen, and does not touch it before the request is answered;
        // any bits make an `IoDesc`.
        unsafe { self.memory.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// See the module. Dropping it ends every command and fails every request, whether the disk is there or not. (Only not
/// between `START_DEV` and the disk's appearance; see `works.rs`.)
pub(super) struct Queue {
    // Dropped in this order: the driver takes the end of the ring for the end of the server.
    ring: IoUring,
    /// There once every tag fetches: see [`Queue::begin`].
    descriptors: Option<Descriptors>,
    device: File,
    event: OwnedFd,
    tags: Tags,
    depth: u16,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("device", &self.device)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Opens the queue of the device `id`. Nothing comes before [`Queue::begin`]. `event`, a non-blocking event descriptor,
    /// becomes readable when [`Queue::take`] has something to do.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn open(id: u32, depth: u16, event: OwnedFd) -> Result<Queue, Error> {
        let path = PathBuf::from(format!("/dev/ublkc{id}"));
        let failed = |error| Error::io(format!("can't open {}", path.display()), error);
        let since = Instant::now();
        let device =
            loop {
                match OpenOptions::new().read(true).write(true).open(&path) {
                    Ok(device) => break device,
                    // Busy: a dead server's is not closed yet.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy
                        ) && since.elapsed() < NODE =>
                    {
                        thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => return Err(failed(error).with_hint(
                        "the kernel makes this node in devtmpfs; a container needs it passed in",
                    )),
                }
            };
        let ring = ring(depth, &event).map_err(|e| Error::io("can't set up io_uring", e))?;
        Ok(Queue {
            ring,
            event,
            descriptors: None,
            device,
            tags: Tags::new(depth),
            depth,
        })
    }

    /// Begins to fetch on every tag. From now on the queue belongs to the calling thread.
    ///
    /// All tags by one system call, which a SIGKILL does not cut in two, and before anything of the device is mapped: a
    /// driver before Linux 6.16 has no way back from a recovery that ends in between (see `recover.rs`).
    ///
    /// # Errors
    /// io_uring takes nothing, or the device can't be mapped.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        for tag in 0..self.depth {
            self.push(abi::io::FETCH_REQ, IoCmd::new(tag, 0));
        }
        self.submit()?;
        self.descriptors = Some(Descriptors::map(&self.device, self.depth)?);
        Ok(())
    }

    /// Takes what has come, as far as there is room for it. Returns false when the disk is gone.
    ///
    /// # Errors
    /// The driver does not do what it says, or io_uring takes nothing.
    pub(super) fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<bool> {
        self.gather()?;
        // One is taken in any case: it may be the news that the disk is gone. What is left stays in the ring.
        while let Some((tag, result)) = self.completion() {
            let came = self.tags.completed(tag, result).map_err(io::Error::other)?;
            if came == Came::Request {
                // In range: it is one of `tags`.
                let tag = tag as u16;
                match self.request(tag, pool) {
                    Ok(op) => out.push(Request {
                        tag: u64::from(tag),
                        op,
                    }),
                    Err(errno) => self.answer(u64::from(tag), Err(errno)),
                }
            }
            if self.tags.is_full() {
                break;
            }
        }
        if !self.ring.completion().is_empty() {
            rustix::io::write(&self.event, &1_u64.to_ne_bytes())?;
        }
        Ok(!self.tags.all_gone())
    }

    /// Has the kernel put into the ring what it has. It does so only when this thread asks for it.
    fn gather(&mut self) -> io::Result<()> {
        loop {
            if self.ring.submission().taskrun() {
                self.enter()?;
            }
            match rustix::io::read(&self.event, &mut [0; 8]) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // What came in between may have signalled before the event was cleared. It ends: a tag comes once.
            if !self.ring.submission().taskrun() {
                return Ok(());
            }
        }
    }

    /// The tag and the result of the next command that has completed.
    fn completion(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    /// Whether there is enough under way.
    pub(super) fn is_full(&self) -> bool {
        self.tags.is_full()
    }

    /// Reads the request on a tag.
    fn request(&mut self, tag: u16, pool: &Pool) -> Result<Op, Errno> {
        let descriptors = self.descriptors.as_ref();
        let descriptors = descriptors.expect("no request comes before `begin` is done");
        let asked = Asked::parse(&descriptors.get(tag))?;
        self.tags.take(tag, &asked);
        Ok(match asked {
            Asked::Read { offset, len } => Op::Read { offset, len },
            Asked::Write { offset, len, fua } => {
                let mut data = pool.get(len as usize);
                self.copy_in(tag, &mut data)?;
                Op::Write {
                    offset,
                    data: data.share(),
                    fua,
                    barrier: false,
                }
            }
            Asked::Flush => Op::Flush,
            Asked::Discard { offset, len } => Op::Discard { offset, len },
            Asked::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => Op::WriteZeroes {
                offset,
                len,
                may_unmap,
                fast_only: false,
                fua,
            },
        })
    }

    /// Answers the request that has this outcome. An unknown tag is ignored.
    pub(super) fn complete(&mut self, completion: &Completion) {
        let result = match &completion.result {
            Ok(Reply::Read(data)) => Ok(&data[..]),
            Ok(_) => Ok(&[][..]),
            Err(error) => Err(error.errno()),
        };
        self.answer(completion.tag, result);
    }

    fn answer(&mut self, tag: u64, result: Result<&[u8], Errno>) {
        let Some((tag, taken)) = self.tags.answer(tag) else {
            return;
        };
        let result = result.and_then(|data| match taken.reads {
            true if data.len() == taken.payload as usize => self.copy_out(tag, data),
            // Fewer bytes than were asked for would leave the reader with whatever its page held before.
            true => Err(Errno::IO),
            false => Ok(()),
        });
        let result = match result {
            Ok(()) => i32::try_from(taken.payload).expect("a payload is at most 32 MiB"),
            Err(errno) => -errno.raw_os_error(),
        };
        self.push(abi::io::COMMIT_AND_FETCH_REQ, IoCmd::new(tag, result));
    }

    /// Copies the payload of a write.
    fn copy_in(&self, tag: u16, mut to: &mut [u8]) -> Result<(), Errno> {
        let mut at = abi::payload_offset(tag);
        while !to.is_empty() {
            match rustix::io::pread(&self.device, &mut *to, at) {
                // The kernel could not pin a page.
                Ok(0) => return Err(Errno::IO),
                Ok(done) => {
                    at += done as u64;
                    to = &mut to[done..];
                }
                Err(Errno::INTR) => {}
                // The disk is going, and has failed the request itself.
                Err(_) => return Err(Errno::IO),
            }
        }
        Ok(())
    }

    /// Copies the payload of a read.
    fn copy_out(&self, tag: u16, mut from: &[u8]) -> Result<(), Errno> {
        let mut at = abi::payload_offset(tag);
        while !from.is_empty() {
            match rustix::io::pwrite(&self.device, from, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(done) => {
                    at += done as u64;
                    from = &from[done..];
                }
                Err(Errno::INTR) => {}
                Err(_) => return Err(Errno::IO),
            }
        }
        Ok(())
    }

    /// Queues a command; it goes out with [`Queue::submit`].
    fn push(&mut self, command: rustix::ioctl::Opcode, cmd: IoCmd) {
        let entry = opcode::UringCmd16::new(types::Fd(self.device.as_raw_fd()), command)
            .cmd(cmd.encode())
            .build()
            .user_data(u64::from(cmd.tag));
        // SAFETY: the command refers to no memory, and its descriptor is open as long as the ring.
        unsafe { self.ring.submission().push(&entry) }
            .expect("at most one command per tag, and the ring has room for all tags");
    }

    /// Hands queued commands to the driver.
    ///
    /// # Errors
    /// io_uring takes nothing.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter()
    }

    /// Goes to the kernel with what is queued, for what it has.
    fn enter(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    // No memory for a command at this moment.
                    Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => thread::yield_now(),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Fails every request that is there.
    pub(super) fn fail_all(&mut self) {
        let taken: Vec<u16> = self.tags.taken().collect();
        for tag in taken {
            self.answer(u64::from(tag), Err(Errno::IO));
        }
        // What does not go out now fails when the ring ends.
        let _ = self.submit();
    }
}

/// A ring for one thread, which runs what the driver has for it only when it asks: `event` becomes readable instead. It is
/// given to the thread that enables it.
fn ring(depth: u16, event: &OwnedFd) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(u32::from(depth))?;
    ring.submitter().register_eventfd(event.as_raw_fd())?;
    Ok(ring)
}
