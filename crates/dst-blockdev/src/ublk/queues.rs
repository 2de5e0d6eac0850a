//! The data path: all queues of a ublk device, on one io_uring of one thread.
//!
//! There are several queues so that processors which submit requests do not wait for one another. One thread serves them all,
//! since one thread serves the connections that their requests go to.
//!
//! Commands wait in the ring for requests; a request's descriptor is in memory that the driver shares, its payload moves by
//! `pread` and `pwrite` on `/dev/ublkcN` (`UBLK_F_USER_COPY`): one copy, straight into the pool buffer that is sent, and
//! straight from the one that was received. No buffer is held for a tag that has no request, and what the kernel's page
//! holds later does not matter (guarantee G9). (Zero copy would lend the pages to other calls of the ring, never to us, who
//! have to read them for the digests and to keep them longer than they are lent; so it would be a copy all the same. Batches,
//! `UBLK_F_BATCH_IO`, are not safe for the rest of the machine when a server is killed: see docs/ARCHITECTURE.md.)
//!
//! # Invariants
//! - Every command is issued by one thread, the one that called [`Queues::begin`]: the driver refuses others.
//! - At most one command per tag is in the ring, so neither of the ring's queues ever overflows.
//! - While there is something to take, `event` is readable: the kernel signals it when it has work for the thread that the
//!   ring belongs to, after it has set the ring's flag that says so; and [`Queues::take`] clears it before it looks at that
//!   flag. (The ring's own descriptor is no use: with `DEFER_TASKRUN` it wakes nobody for such work.)
//! - Nothing waits for that flag to be clear: the kernel queues the work, then sets the flag, and if we do the work in between
//!   the flag stays until there is other work. That may never come, when all who could cause it wait for us.
//! - The flag is believed as long as there may be work behind it. In Linux 7.3 the queue can hold work that the kernel
//!   can't reach yet, because whoever adds it has been interrupted halfway, and for which it signals nothing more: it leaves
//!   the flag set. So [`Queues::gather`] asks in the way in which the kernel comes back with nothing only from an empty queue.
//!   Whoever adds to an empty queue signals.
//!
//! The states of a tag are in `tags.rs`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dst_buf::Pool;
use dst_client::{Completion, Op, Reply, Request};
use io_uring::{opcode, types, IoUring};
use rustix::io::Errno;

use super::abi::{self, IoCmd};
use super::descriptors::Descriptors;
use super::place::{Place, Shape};
use super::tags::{Asked, Came, Tags};
use crate::Error;

/// How long to wait for `/dev/ublkcN` to be there. Where devtmpfs makes it, it is there at once.
const NODE: Duration = Duration::from_secs(5);

/// See the module. Dropping it ends every command and fails every request, whether the disk is there or not. (Only not
/// between `START_DEV` and the disk's appearance; see `works.rs`.)
pub(super) struct Queues {
    // Dropped in this order: the driver takes the end of the ring for the end of the server.
    ring: IoUring,
    /// There once every tag fetches: see [`Queues::begin`].
    descriptors: Option<Descriptors>,
    device: File,
    event: OwnedFd,
    tags: Tags,
    shape: Shape,
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queues")
            .field("device", &self.device)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl Queues {
    /// Opens the queues of the device `id`. Nothing comes before [`Queues::begin`]. `event`, a non-blocking event descriptor,
    /// becomes readable when [`Queues::take`] has something to do.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn open(id: u32, shape: Shape, event: OwnedFd) -> Result<Queues, Error> {
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
        let ring = ring(shape, &event).map_err(|e| Error::io("can't set up io_uring", e))?;
        Ok(Queues {
            ring,
            event,
            descriptors: None,
            device,
            tags: Tags::new(shape),
            shape,
        })
    }

    /// Begins to fetch on every tag of every queue. From now on the queues belong to the calling thread.
    ///
    /// All tags of all queues by one system call, which a SIGKILL does not cut in two, and before anything of the device is
    /// mapped: a driver before Linux 6.16 has no way back from a recovery that ends in between (see `recover.rs`).
    ///
    /// # Errors
    /// io_uring takes nothing, or the device can't be mapped.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        for place in self.shape.iter() {
            self.push(abi::io::FETCH_REQ, place, 0);
        }
        self.submit()?;
        self.descriptors = Some(Descriptors::map(&self.device, self.shape)?);
        Ok(())
    }

    /// Takes what has come, as far as there is room for it. Returns false when the disk is gone.
    ///
    /// # Errors
    /// The driver does not do what it says, or io_uring takes nothing.
    pub(super) fn take(&mut self, out: &mut Vec<Request>, pool: &Pool) -> io::Result<bool> {
        self.gather()?;
        // One is taken in any case: it may be the news that the disk is gone. What is left stays in the ring.
        while let Some((number, result)) = self.completion() {
            let came = self.tags.completed(number, result);
            if let Came::Request(place) = came.map_err(io::Error::other)? {
                match self.request(place, pool) {
                    Ok(op) => out.push(Request { tag: number, op }),
                    Err(errno) => self.answer(number, Err(errno)),
                }
            }
            if self.tags.is_full() {
                break;
            }
        }
        if !self.ring.completion().is_empty() {
            self.look_again()?;
        }
        Ok(!self.tags.all_gone())
    }

    /// Has the kernel put into the ring what it has. It does so only when this thread asks for it.
    fn gather(&mut self) -> io::Result<()> {
        // First, so that whatever sets the flag from now on is signalled anew.
        match rustix::io::read(&self.event, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut there = self.ring.completion().len();
        while self.ring.submission().taskrun() {
            self.run_work()?;
            // One call may leave some of it for the next, but not all. If it did nothing the flag is about what an earlier
            // call has done already.
            let before = std::mem::replace(&mut there, self.ring.completion().len());
            if there == before {
                break;
            }
        }
        Ok(())
    }

    /// Goes to the kernel for at least one completion of what it has queued, if there is anything.
    fn run_work(&self) -> io::Result<()> {
        // Before it looks at the time the kernel does what is there, and while it has done nothing it waits for what is being
        // added. Every such piece of work is at least one command's completion.
        let no_time = types::Timespec::new();
        let arguments = types::SubmitArgs::new().timespec(&no_time);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIME) => Ok(()),
                // Then it may not have looked.
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => self.look_again(),
                _ => Err(error),
            },
        }
    }

    /// Has [`Queues::take`] called once more.
    fn look_again(&self) -> io::Result<()> {
        rustix::io::write(&self.event, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// The number of the place, and the result, of the next command that has completed.
    fn completion(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    /// Whether there is enough under way.
    pub(super) fn is_full(&self) -> bool {
        self.tags.is_full()
    }

    /// Reads the request at a place.
    fn request(&mut self, place: Place, pool: &Pool) -> Result<Op, Errno> {
        let descriptors = self.descriptors.as_ref();
        let descriptors = descriptors.expect("no request comes before `begin` is done");
        let asked = Asked::parse(&descriptors.get(place))?;
        self.tags.take(place, &asked);
        Ok(match asked {
            Asked::Read { offset, len } => Op::Read { offset, len },
            Asked::Write { offset, len, fua } => {
                let mut data = pool.get(len as usize);
                self.copy_in(place, &mut data)?;
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

    fn answer(&mut self, number: u64, result: Result<&[u8], Errno>) {
        let Some((place, taken)) = self.tags.answer(number) else {
            return;
        };
        let result = result.and_then(|data| match taken.reads {
            true if data.len() == taken.payload as usize => self.copy_out(place, data),
            // Fewer bytes than were asked for would leave the reader with whatever its page held before.
            true => Err(Errno::IO),
            false => Ok(()),
        });
        let result = match result {
            Ok(()) => i32::try_from(taken.payload).expect("a payload is at most 32 MiB"),
            Err(errno) => -errno.raw_os_error(),
        };
        self.push(abi::io::COMMIT_AND_FETCH_REQ, place, result);
    }

    /// Copies the payload of a write.
    fn copy_in(&self, place: Place, mut to: &mut [u8]) -> Result<(), Errno> {
        let mut at = abi::payload_offset(place);
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
    fn copy_out(&self, place: Place, mut from: &[u8]) -> Result<(), Errno> {
        let mut at = abi::payload_offset(place);
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

    /// Queues a command for a place; it goes out with [`Queues::submit`].
    fn push(&mut self, command: rustix::ioctl::Opcode, place: Place, result: i32) {
        let entry = opcode::UringCmd16::new(types::Fd(self.device.as_raw_fd()), command)
            .cmd(IoCmd::new(place, result).encode())
            .build()
            .user_data(place.number());
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
        let taken: Vec<Place> = self.tags.taken().collect();
        for place in taken {
            self.answer(place.number(), Err(Errno::IO));
        }
        // What does not go out now fails when the ring ends.
        let _ = self.submit();
    }
}

/// A ring for one thread, which runs what the driver has for it only when it asks: `event` becomes readable instead. It is
/// given to the thread that enables it.
fn ring(shape: Shape, event: &OwnedFd) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(shape.places())?;
    ring.submitter().register_eventfd(event.as_raw_fd())?;
    Ok(ring)
}
