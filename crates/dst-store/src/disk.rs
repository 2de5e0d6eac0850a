//! The backend over a descriptor: what a regular file and a block device have in common. Turns each request into system
//! calls on an I/O engine (`engine.rs`), continues short ones, and applies the rules about sync, space and truncation.
//!
//! # States of a task (one per request that needs a call)
//! ```text
//! READ          reading ──────────────> answered
//! WRITE         writing ──────────────> answered          with FUA: writing ──> syncing ──> answered by the sync rule
//! FLUSH         syncing ──────────────> answered by the sync rule
//! DISCARD       discarding ───────────> answered
//! WRITE ZEROES  punching ─unsupported─> zeroing range ─unsupported─> writing zeroes ──> answered, or syncing with FUA
//! BLOCK STATUS  seeking ──────────────> answered
//! ```
//!
//! # Invariants
//! - A task has exactly one call at its engine, or none while it waits for the sync rule ([`SyncTracker`]).
//! - Nothing is answered durable but by the sync rule. The sync mark, if there is one, counts calls that have begun.
//! - `end` never grows but with `info.size`, while the file was never seen shorter: what was once truncated answers
//!   [`StoreError::Truncated`] as long as the backend is open, rather than showing zeroes when a write makes the file long
//!   again.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use dst_buf::{Pool, Shared};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::backend::{Backend, Identity, Info};
use crate::engine::{self, Call, Engine, Finished};
use crate::open::{EngineChoice, OpenError};
use crate::request::{Completion, Extent, ExtentKind, Op, Outcome, Request, StoreError};
use crate::sync::{SyncAnswer, SyncId, SyncTracker};
use crate::target::{Abilities, Target};

/// Bytes of zeroes written by one call.
const ZERO_PIECE: usize = 256 << 10;

/// An export kept in a regular file or on a block device. See the [module](self).
pub struct DiskBackend {
    info: Info,
    target: Box<dyn Target>,
    abilities: Abilities,
    engine: Box<dyn Engine>,
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    sync: SyncTracker,
    answers: Vec<SyncAnswer>,
    ready: Vec<Completion>,
    finished: Vec<Finished>,
    zeroes: Option<Shared>,
    /// Where the file ends for requests: `info.size`, or less once it was seen truncated.
    end: u64,
    /// The smallest size that `refresh` has complained about.
    complained: Option<u64>,
    /// The size has been looked at for the batch being submitted.
    size_checked: bool,
    in_flight: usize,
}

struct Task {
    token: u64,
    offset: u64,
    len: u64,
    fua: bool,
    work: Work,
}

#[derive(Clone, Copy)]
enum Work {
    Read,
    Write,
    Sync(SyncId),
    /// The sync was refused; the answer comes by the sync rule.
    Refused,
    Discard,
    Punch {
        fast_only: bool,
    },
    ZeroRange {
        fast_only: bool,
    },
    /// Zeroes are written from `offset` on, `done` bytes so far.
    WriteZeroes {
        done: u64,
    },
    Seek,
}

impl DiskBackend {
    pub(crate) fn start(
        file: Arc<OwnedFd>,
        mut info: Info,
        target: Box<dyn Target>,
        abilities: Abilities,
        choice: EngineChoice,
    ) -> Result<DiskBackend, OpenError> {
        let engine = engine::start(choice, file)?;
        info.description = format!("{}, {}", info.description, engine.name());
        Ok(DiskBackend {
            end: info.size,
            info,
            target,
            abilities,
            engine,
            tasks: Vec::new(),
            free: Vec::new(),
            sync: SyncTracker::new(),
            answers: Vec::new(),
            ready: Vec::new(),
            finished: Vec::new(),
            zeroes: None,
            complained: None,
            size_checked: false,
            in_flight: 0,
        })
    }

    fn answer(&mut self, token: u64, result: Result<Outcome, StoreError>) {
        self.ready.push(Completion { token, result });
    }

    /// Checks a request against the size announced and the size that is there.
    fn check(&mut self, op: &Op) -> Result<(), StoreError> {
        self.info.check(op)?;
        let end = match op {
            Op::Flush => return Ok(()),
            Op::Read { offset, buf } => offset + buf.len() as u64,
            Op::Write { offset, data, .. } => offset + data.len() as u64,
            Op::Discard { offset, len }
            | Op::WriteZeroes { offset, len, .. }
            | Op::BlockStatus { offset, len } => offset + len,
        };
        // A read finds out by itself. A write would make a truncated file long again and so hide the loss.
        if !self.size_checked && !matches!(op, Op::Read { .. }) {
            self.size_checked = true;
            if let Some(size) = self.target.cheap_size() {
                self.end = self.end.min(size);
            }
        }
        match end <= self.end {
            true => Ok(()),
            false => Err(StoreError::Truncated),
        }
    }

    /// Makes a task for a request and says which call it starts with, or answers at once.
    fn plan(&mut self, token: u64, op: Op) {
        let task = |offset, len, fua, work| Task {
            token,
            offset,
            len,
            fua,
            work,
        };
        match op {
            Op::Read { buf, .. } if buf.is_empty() => self.answer(token, Ok(Outcome::Read(buf))),
            Op::Read { offset, buf } => {
                let len = buf.len() as u64;
                let call = Call::Read {
                    offset,
                    buf,
                    filled: 0,
                };
                self.begin(task(offset, len, false, Work::Read), call);
            }
            Op::Write { fua: true, .. } | Op::WriteZeroes { fua: true, .. }
                if self.sync.is_latched() =>
            {
                // It can't succeed in this incarnation, so it does nothing.
                let slot = self.slot(task(0, 0, true, Work::Refused));
                self.sync_begin(slot);
            }
            Op::Write { offset, data, fua } if !data.is_empty() => {
                let len = data.len() as u64;
                let call = Call::Write {
                    offset,
                    data,
                    written: 0,
                };
                self.begin(task(offset, len, fua, Work::Write), call);
            }
            Op::Flush => {
                let slot = self.slot(task(0, 0, true, Work::Refused));
                self.sync_begin(slot);
            }
            Op::Discard { .. } if !self.info.discard => {
                self.answer(token, Err(StoreError::Unsupported))
            }
            Op::Discard { offset, len } if len > 0 => {
                let call = self.target.discard(offset, len);
                self.begin(task(offset, len, false, Work::Discard), call);
            }
            Op::WriteZeroes {
                offset,
                len,
                may_unmap,
                fast_only,
                fua,
            } if len > 0 => {
                let work = if may_unmap && self.abilities.punch {
                    Work::Punch { fast_only }
                } else {
                    Work::ZeroRange { fast_only }
                };
                let slot = self.slot(task(offset, len, fua, work));
                self.make_zeroes(slot);
            }
            Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } => {
                self.answer(token, Ok(Outcome::Done));
            }
            Op::BlockStatus { len, .. } if !self.target.has_holes() => {
                let kind = ExtentKind::Data;
                self.answer(token, Ok(Outcome::Extents(vec![Extent { len, kind }])));
            }
            Op::BlockStatus { offset, len } => {
                let call = Call::Seek {
                    offset,
                    len,
                    block: self.info.logical_block,
                    extents: Vec::new(),
                };
                self.begin(task(offset, len, false, Work::Seek), call);
            }
        }
    }

    fn slot(&mut self, task: Task) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.tasks.push(None);
            self.tasks.len() - 1
        });
        self.tasks[slot] = Some(task);
        slot
    }

    fn begin(&mut self, task: Task, call: Call) {
        let slot = self.slot(task);
        self.engine.push(slot as u64, call);
    }

    fn task(&mut self, slot: usize) -> &mut Task {
        self.tasks[slot].as_mut().expect("a call belongs to a task")
    }

    fn end_task(&mut self, slot: usize, result: Result<Outcome, StoreError>) {
        let task = self.tasks[slot].take().expect("a task ends once");
        self.free.push(slot);
        self.answer(task.token, result);
    }

    /// Starts the sync call of a FLUSH or FUA, if the sync rule lets it.
    fn sync_begin(&mut self, slot: usize) {
        let begun = self.sync.begin(slot as u64, &mut self.answers);
        let task = self.task(slot);
        match begun {
            Some(id) => {
                task.work = Work::Sync(id);
                // A ranged sync flushes the range and its metadata, not the world. Length 0 means everything.
                let (offset, len) = match u32::try_from(task.len) {
                    Ok(len) => (task.offset, len),
                    Err(_) => (0, 0),
                };
                self.target.sync_begins();
                self.engine.push(slot as u64, Call::Sync { offset, len });
            }
            None => task.work = Work::Refused,
        }
        self.pass_sync_answers();
    }

    fn pass_sync_answers(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        for answer in answers.drain(..) {
            let result = match answer.durable {
                true => Ok(Outcome::Done),
                false => Err(StoreError::SyncFailed),
            };
            self.end_task(answer.owner as usize, result);
        }
        self.answers = answers;
    }

    /// The next way to make zeroes that this task may use.
    fn make_zeroes(&mut self, slot: usize) {
        let abilities = self.abilities;
        let task = self.task(slot);
        let (offset, len) = (task.offset, task.len);
        let keep = FallocateFlags::KEEP_SIZE;
        let call = match task.work {
            Work::Punch { .. } => Call::Allocate {
                mode: FallocateFlags::PUNCH_HOLE | keep,
                offset,
                len,
            },
            Work::ZeroRange { .. } if abilities.zero_range => Call::Allocate {
                mode: FallocateFlags::ZERO_RANGE | keep,
                offset,
                len,
            },
            Work::ZeroRange { fast_only: true } => {
                return self.end_task(slot, Err(StoreError::Unsupported));
            }
            _ => {
                task.work = Work::WriteZeroes { done: 0 };
                return self.write_zero_piece(slot);
            }
        };
        self.engine.push(slot as u64, call);
    }

    fn write_zero_piece(&mut self, slot: usize) {
        let zeroes = self.zeroes.get_or_insert_with(|| {
            let mut zeroes = Pool::new(0).get(ZERO_PIECE);
            zeroes.fill(0);
            zeroes.share()
        });
        let zeroes = zeroes.clone();
        let task = self.task(slot);
        let Work::WriteZeroes { done } = task.work else {
            unreachable!("only a task that writes zeroes gets here")
        };
        let len = (task.len - done).min(ZERO_PIECE as u64) as usize;
        let call = Call::Write {
            offset: task.offset + done,
            data: zeroes.slice(..len),
            written: 0,
        };
        self.engine.push(slot as u64, call);
    }

    /// A write in the wide sense has its data in place: syncs it if that was asked.
    fn written(&mut self, slot: usize) {
        match self.task(slot).fua {
            true => self.sync_begin(slot),
            false => self.end_task(slot, Ok(Outcome::Done)),
        }
    }

    /// A call has returned.
    fn advance(&mut self, finished: Finished) {
        let Finished { key, call, result } = finished;
        let slot = key as usize;
        match (self.task(slot).work, call, result) {
            (Work::Sync(id), _, result) => {
                if result.is_ok() {
                    self.target.sync_succeeded();
                }
                self.sync.end(id, result.is_ok(), &mut self.answers);
                self.pass_sync_answers();
            }
            // Nothing has been done: again.
            (_, call, Err(Errno::INTR | Errno::AGAIN)) => self.engine.push(key, call),
            (Work::Read, call, Ok(n)) => self.read_returned(slot, call, n),
            (_, call @ Call::Write { .. }, Ok(n)) => self.write_returned(slot, call, n),
            (Work::Seek, Call::Seek { extents, .. }, Ok(_)) => {
                self.end_task(slot, Ok(Outcome::Extents(extents)));
            }
            (Work::Seek, _, Err(Errno::NXIO)) => self.end_task(slot, Err(StoreError::Truncated)),
            (Work::Discard, _, Ok(_)) => self.end_task(slot, Ok(Outcome::Done)),
            (Work::Punch { fast_only }, _, Err(Errno::OPNOTSUPP | Errno::NOSYS)) => {
                self.abilities.punch = false;
                self.task(slot).work = Work::ZeroRange { fast_only };
                self.make_zeroes(slot);
            }
            (Work::ZeroRange { .. }, _, Err(Errno::OPNOTSUPP | Errno::NOSYS)) => {
                self.abilities.zero_range = false;
                self.make_zeroes(slot);
            }
            (Work::Punch { .. } | Work::ZeroRange { .. }, _, Ok(_)) => self.written(slot),
            (_, _, Err(errno)) => self.end_task(slot, Err(StoreError::from_errno(errno))),
            (_, _, Ok(_)) => unreachable!("a task gets back the call that it made"),
        }
    }

    fn read_returned(&mut self, slot: usize, call: Call, n: usize) {
        let Call::Read {
            offset,
            buf,
            filled,
        } = call
        else {
            unreachable!("a reading task gets back its read")
        };
        let filled = filled + n;
        if filled == buf.len() {
            self.end_task(slot, Ok(Outcome::Read(buf)));
        } else if n == 0 {
            self.end = self.end.min(offset + filled as u64);
            self.end_task(slot, Err(StoreError::Truncated));
        } else {
            self.engine.push(
                slot as u64,
                Call::Read {
                    offset,
                    buf,
                    filled,
                },
            );
        }
    }

    fn write_returned(&mut self, slot: usize, call: Call, n: usize) {
        let Call::Write {
            offset,
            data,
            written,
        } = call
        else {
            unreachable!("a writing task gets back its write")
        };
        let written = written + n;
        if n == 0 {
            self.end_task(slot, Err(StoreError::Io(Errno::IO)));
        } else if written < data.len() {
            let rest = Call::Write {
                offset,
                data,
                written,
            };
            self.engine.push(slot as u64, rest);
        } else {
            let task = self.task(slot);
            match &mut task.work {
                Work::WriteZeroes { done } => {
                    *done += written as u64;
                    match *done < task.len {
                        true => self.write_zero_piece(slot),
                        false => self.written(slot),
                    }
                }
                _ => self.written(slot),
            }
        }
    }
}

impl Backend for DiskBackend {
    fn info(&self) -> &Info {
        &self.info
    }

    fn identity(&self) -> Identity {
        self.target.identity()
    }

    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        match self.check(&request.op) {
            Ok(()) => self.plan(request.token, request.op),
            Err(error) => self.answer(request.token, Err(error)),
        }
    }

    fn kick(&mut self) {
        self.size_checked = false;
        self.engine.kick();
        if !self.ready.is_empty() {
            self.engine.nudge();
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut finished = std::mem::take(&mut self.finished);
        self.engine.reap(&mut finished);
        let any = !finished.is_empty();
        for finished in finished.drain(..) {
            self.advance(finished);
        }
        self.finished = finished;
        if any {
            self.engine.kick();
        }
        self.in_flight -= self.ready.len();
        done.append(&mut self.ready);
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.engine.wake_fd()
    }

    fn refresh(&mut self) -> io::Result<Option<u64>> {
        let size = self.target.size()?;
        if size < self.info.size {
            self.end = self.end.min(size);
            if self.complained.is_none_or(|before| size < before) {
                self.complained = Some(size);
                return Err(io::Error::other(format!(
                    "{} has shrunk underneath from {} to {size} bytes: what lay beyond is lost",
                    self.info.description, self.info.size
                )));
            }
            return Ok(None);
        }
        let usable = size - size % u64::from(self.info.logical_block);
        if usable == self.info.size || self.end < self.info.size {
            return Ok(None);
        }
        self.info.size = usable;
        self.end = usable;
        Ok(Some(usable))
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn new_incarnation(&mut self) {
        self.target.new_incarnation(self.sync.running());
        self.sync.new_incarnation(&mut self.answers);
        self.pass_sync_answers();
        if !self.ready.is_empty() {
            self.engine.nudge();
        }
    }
}
