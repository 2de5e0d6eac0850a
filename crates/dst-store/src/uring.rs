//! The io_uring engine: one system call starts a batch, none is needed to take its completions.
//!
//! # States of a call
//! `waiting` (pushed; no room in the submission queue) → entered (in the submission queue or the kernel) → reaped. A call
//! that has no opcode goes to a small thread pool instead, whose wake descriptor the ring itself watches while calls are
//! there, so that the ring's descriptor is the only one to wait for: it is readable while completions are in the ring.
//!
//! # Invariants
//! - A call stays in its slot, and so its memory allocated and untouched, from entry until its completion was seen.
//! - At most [`MAX_ENTERED`] calls are entered, so that the completion queue never overflows.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::{cqueue, opcode, squeue, types, IoUring, Probe};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::engine::{Call, Engine, Finished};
use crate::syscalls::MAX_TRANSFER;
use crate::threads::ThreadEngine;

const SUBMISSIONS: u32 = 128;
const COMPLETIONS: u32 = 1024;
/// Leaves room for the nudge and for the watch on the thread pool.
const MAX_ENTERED: usize = COMPLETIONS as usize - 16;

/// `user_data` of what is no call.
const NUDGE: u64 = u64::MAX;
const HELPERS_WOKE: u64 = u64::MAX - 1;

/// See the [module](self).
pub(crate) struct UringEngine {
    ring: IoUring,
    file: Arc<OwnedFd>,
    slots: Vec<Option<(u64, Call)>>,
    free: Vec<usize>,
    waiting: VecDeque<usize>,
    entered: usize,
    helpers: ThreadEngine,
    helpers_busy: usize,
    helpers_watched: bool,
    nudge: Nudge,
}

impl UringEngine {
    /// # Errors
    /// io_uring is missing, forbidden or lacks an operation; no memory.
    pub(crate) fn start(file: Arc<OwnedFd>) -> io::Result<UringEngine> {
        let ring = build_ring()?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::PollAdd::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(Errno::NOSYS.into());
        }
        Ok(UringEngine {
            ring,
            helpers: ThreadEngine::start(file.clone())?,
            file,
            slots: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            entered: 0,
            helpers_busy: 0,
            helpers_watched: false,
            nudge: Nudge::None,
        })
    }

    /// The submission queue entry of the call in a slot.
    fn entry(&mut self, slot: usize) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let (_, call) = self.slots[slot]
            .as_mut()
            .expect("a waiting slot has its call");
        let entry = match call {
            Call::Read {
                offset,
                buf,
                filled,
            } => {
                let at = *offset + *filled as u64;
                let rest = &mut buf[*filled..];
                let len = rest.len().min(MAX_TRANSFER) as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), len)
                    .offset(at)
                    .build()
            }
            Call::Write {
                offset,
                data,
                written,
            } => {
                let at = *offset + *written as u64;
                let rest = &data[*written..];
                let len = rest.len().min(MAX_TRANSFER) as u32;
                opcode::Write::new(fd, rest.as_ptr(), len)
                    .offset(at)
                    .build()
            }
            Call::Sync { offset, len } => opcode::Fsync::new(fd)
                .offset(*offset)
                .len(*len)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Call::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(mode.bits() as i32)
                .build(),
            Call::Seek { .. } | Call::DiscardDevice { .. } | Call::Forget => {
                unreachable!("calls without an opcode go to the threads")
            }
        };
        entry.user_data(slot as u64)
    }

    /// Puts an entry into the submission queue; false if that is full.
    fn enter(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the memory an entry points to belongs to the call in its slot, where it stays until the completion has
        // been seen (invariant above); the descriptors are open as long as the engine. Nudges and watches use no memory.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Moves waiting calls into the submission queue as far as there is room.
    fn fill(&mut self) {
        if self.helpers_busy > 0 && !self.helpers_watched {
            let fd = types::Fd(self.helpers.wake_fd().as_raw_fd());
            let watch = opcode::PollAdd::new(fd, u32::from(PollFlags::IN.bits()))
                .build()
                .user_data(HELPERS_WOKE);
            self.helpers_watched = self.enter(&watch);
        }
        if self.nudge == Nudge::Wanted && self.enter(&opcode::Nop::new().build().user_data(NUDGE)) {
            self.nudge = Nudge::Entered;
        }
        while self.entered < MAX_ENTERED {
            let Some(slot) = self.waiting.front().copied() else {
                return;
            };
            let entry = self.entry(slot);
            if !self.enter(&entry) {
                return;
            }
            self.waiting.pop_front();
            self.entered += 1;
        }
    }

    /// Hands the submission queue to the kernel until there is nothing left to hand over, or no more room.
    fn submit_all(&mut self) {
        loop {
            self.fill();
            let queued = self.ring.submission().len();
            if queued == 0 {
                return;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                // The kernel has no memory for requests. If some are out, their completions bring us back here.
                Err(_) if self.entered > queued => return,
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Takes completions out of the ring.
    fn drain(&mut self, finished: &mut Vec<Finished>) {
        let mut helpers_woke = false;
        for completion in self.ring.completion() {
            match completion.user_data() {
                NUDGE => self.nudge = Nudge::None,
                HELPERS_WOKE => helpers_woke = true,
                slot => {
                    let slot = slot as usize;
                    let (key, call) = self.slots[slot].take().expect("a call completes once");
                    self.free.push(slot);
                    self.entered -= 1;
                    let result = result_of(&completion);
                    finished.push(Finished { key, call, result });
                }
            }
        }
        if helpers_woke {
            self.helpers_watched = false;
            let before = finished.len();
            self.helpers.reap(finished);
            self.helpers_busy -= finished.len() - before;
        }
    }
}

/// The operation that does nothing but make the ring's descriptor readable. At most one is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nudge {
    None,
    Wanted,
    Entered,
}

/// A ring whose completions don't interrupt a thread that runs: they are taken when it next enters the kernel, which it does
/// before it sleeps. Older kernels know only the plain sort.
fn build_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_coop_taskrun()
        .build(SUBMISSIONS)
        .or_else(|_| {
            IoUring::builder()
                .setup_cqsize(COMPLETIONS)
                .build(SUBMISSIONS)
        })
}

fn result_of(completion: &cqueue::Entry) -> Result<usize, Errno> {
    let result = completion.result();
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result))
}

impl Engine for UringEngine {
    fn push(&mut self, key: u64, call: Call) {
        if !call.has_opcode() {
            self.helpers.push(key, call);
            self.helpers_busy += 1;
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some((key, call));
        self.waiting.push_back(slot);
    }

    fn kick(&mut self) {
        self.helpers.kick();
        self.submit_all();
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.drain(finished);
        // What waited for room can go now; what the kernel refused for lack of memory is tried again.
        if !self.waiting.is_empty()
            || (self.helpers_busy > 0 && !self.helpers_watched)
            || !self.ring.submission().is_empty()
        {
            self.submit_all();
        }
    }

    fn nudge(&mut self) {
        if self.nudge == Nudge::None {
            self.nudge = Nudge::Wanted;
            self.submit_all();
        }
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor, and the borrow does not outlive the ring.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        let mut finished = Vec::new();
        self.submit_all();
        while self.entered > 0 {
            let waited = self.ring.submit_and_wait(1);
            self.drain(&mut finished);
            finished.clear();
            self.fill();
            match waited {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Err(_) => {
                    // The kernel may still use the memory: it is better lost than given to somebody else.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
        }
    }
}
