//! The test backend: a disk with a volatile write cache that can lose or tear everything that was not flushed.
//!
//! Writes go into a [`Volatile`] layer in memory and reach the medium, a file or memory, at a flush. Some sectors of some
//! writes reach it at once (early writeback, by a seeded random choice). So killing the process at any moment is a power
//! cut: what was unflushed is gone or torn, and there is nothing that would have to be done at the kill. In process,
//! [`LossyBackend::power_cut`] does the same on command; syncs can be made to fail, too.
//!
//! # States
//! *good* or *latched*. A failed sync and a power cut latch: every FLUSH and FUA answers
//! [`StoreError::SyncFailed`] until [`Backend::new_incarnation`]. Requests are executed one after another, in the order of
//! submission, on one thread, so that no two syncs ever overlap.
//!
//! Invariant: an incarnation never outlives the process (`continuity` is always `None`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::backend::{Backend, Identity, Info};
use crate::chunks::Chunks;
use crate::dice::Dice;
use crate::file::open_locked;
use crate::identity;
use crate::medium::Medium;
use crate::memory::in_memory_info;
use crate::open::{check_geometry, OpenError, OpenOptions};
use crate::request::{Completion, Extent, ExtentKind, Op, Outcome, Request, StoreError};
use crate::size::format_size;
use crate::volatile::{ToMedium, Volatile};
use crate::wake::Wake;

/// Zeroes over more than this many bytes go straight to the medium.
const MAX_VOLATILE_ZEROES: u64 = 1 << 20;

/// How the test backend misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossyOptions {
    /// Start of the random choices; a random one if not given.
    pub seed: Option<u64>,
    /// In how many of 100 cases a sector reaches the medium at once, in writes that are torn. (One write in four is not
    /// written back early at all, one in four in full.)
    pub early_percent: u32,
    /// Every so-manieth sync fails and loses what was unflushed; 0: none.
    pub fail_sync: u64,
}

impl Default for LossyOptions {
    fn default() -> LossyOptions {
        LossyOptions {
            seed: None,
            early_percent: 30,
            fail_sync: 0,
        }
    }
}

/// See the [module](self).
pub struct LossyBackend {
    info: Info,
    identity: Identity,
    work: Sender<Work>,
    thread: Option<JoinHandle<()>>,
    answers: Arc<Answers>,
    in_flight: usize,
}

enum Work {
    Request(Request),
    PowerCut(u64),
    NewIncarnation,
    Stop,
}

struct Answers {
    list: Mutex<Vec<Completion>>,
    wake: Wake,
}

impl LossyBackend {
    /// Over a file that is there.
    ///
    /// # Errors
    /// As for the file backend.
    pub fn open(
        path: &Path,
        lossy: &LossyOptions,
        options: &OpenOptions,
    ) -> Result<LossyBackend, OpenError> {
        let (file, stat) = open_locked(path, options.read_only)?;
        let export = identity::of_file(file.as_fd(), path, stat.st_ino, options)?;
        let identity = Identity {
            export_id: export.id,
            continuity: None,
            note: export.note,
        };
        let name = format!("file {}", path.display());
        let size = stat.st_size as u64;
        LossyBackend::start(&name, size, Medium::File(file), identity, lossy, options)
    }

    /// Over memory, of `size` bytes.
    ///
    /// # Errors
    /// As for the memory backend.
    pub fn memory(
        size: u64,
        lossy: &LossyOptions,
        options: &OpenOptions,
    ) -> Result<LossyBackend, OpenError> {
        let mut export_id = [0; 16];
        dst_ids::fill(&mut export_id).map_err(OpenError::io("get random bytes"))?;
        let identity = Identity {
            export_id,
            continuity: None,
            note: None,
        };
        let medium = Medium::Memory(Chunks::new(size));
        LossyBackend::start("memory", size, medium, identity, lossy, options)
    }

    fn start(
        name: &str,
        size: u64,
        medium: Medium,
        identity: Identity,
        lossy: &LossyOptions,
        options: &OpenOptions,
    ) -> Result<LossyBackend, OpenError> {
        let block = options.block_size.unwrap_or(512);
        check_geometry(name, size, block)?;
        let seed = match lossy.seed {
            Some(seed) => seed,
            None => {
                let mut bytes = [0; 8];
                dst_ids::fill(&mut bytes).map_err(OpenError::io("get random bytes"))?;
                u64::from_le_bytes(bytes)
            }
        };
        let description = format!("lossy (seed {seed}), {name}, {}", format_size(size));
        let answers = Arc::new(Answers {
            list: Mutex::default(),
            wake: Wake::new().map_err(OpenError::io("make an eventfd"))?,
        });
        let cache = Cache {
            medium,
            layer: Volatile::new(),
            dice: Dice::new(seed),
            options: *lossy,
            syncs: 0,
            latched: false,
            to_medium: Vec::new(),
        };
        let (work, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("dst-lossy".to_owned())
            .spawn({
                let answers = answers.clone();
                move || serve(cache, &queue, &answers)
            })
            .map_err(OpenError::io("start a thread"))?;
        Ok(LossyBackend {
            info: in_memory_info(size, block, options.read_only, description),
            identity,
            work,
            thread: Some(thread),
            answers,
            in_flight: 0,
        })
    }

    /// Cuts the power after everything submitted so far has been executed: each unflushed sector is lost or shows any of the
    /// versions written since the last flush. Every FLUSH and FUA fails until [`Backend::new_incarnation`].
    pub fn power_cut(&mut self, seed: u64) {
        self.send(Work::PowerCut(seed));
    }

    fn send(&self, work: Work) {
        self.work
            .send(work)
            .expect("the thread receives until it is told to stop, at drop");
    }
}

fn serve(mut cache: Cache, queue: &Receiver<Work>, answers: &Answers) {
    while let Ok(work) = queue.recv() {
        match work {
            Work::Request(Request { token, op }) => {
                let result = cache.execute(op);
                let mut list = answers.list.lock().unwrap_or_else(PoisonError::into_inner);
                list.push(Completion { token, result });
                if list.len() == 1 {
                    answers.wake.raise();
                }
            }
            Work::PowerCut(seed) => cache.power_cut(&mut Dice::new(seed)),
            Work::NewIncarnation => cache.latched = false,
            Work::Stop => return,
        }
    }
}

/// The disk itself, without its thread.
struct Cache {
    medium: Medium,
    layer: Volatile,
    dice: Dice,
    options: LossyOptions,
    syncs: u64,
    latched: bool,
    to_medium: Vec<ToMedium>,
}

impl Cache {
    /// The request's range has been checked.
    fn execute(&mut self, op: Op) -> Result<Outcome, StoreError> {
        match op {
            Op::Read { offset, mut buf } => {
                self.medium.read(offset, &mut buf)?;
                self.layer.overlay(offset, &mut buf);
                return Ok(Outcome::Read(buf));
            }
            Op::Write { offset, data, fua } => {
                self.may_sync(fua)?;
                self.layer.write(offset, &data);
                self.settle(offset, data.len() as u64, fua)?;
            }
            Op::WriteZeroes {
                offset, len, fua, ..
            } => {
                self.may_sync(fua)?;
                if len <= MAX_VOLATILE_ZEROES {
                    self.layer.zero(offset, len);
                } else {
                    self.layer.forget(offset, len);
                    self.medium.clear(offset, len)?;
                }
                self.settle(offset, len, fua)?;
            }
            Op::Discard { offset, len } => {
                self.layer.forget(offset, len);
                self.medium.clear(offset, len)?;
            }
            Op::Flush => {
                self.may_sync(true)?;
                self.sync(Volatile::flush)?;
            }
            Op::BlockStatus { len, .. } => {
                let kind = ExtentKind::Data;
                return Ok(Outcome::Extents(vec![Extent { len, kind }]));
            }
        }
        Ok(Outcome::Done)
    }

    fn may_sync(&self, sync: bool) -> Result<(), StoreError> {
        match sync && self.latched {
            true => Err(StoreError::SyncFailed),
            false => Ok(()),
        }
    }

    /// A write is in the layer: with FUA it goes through to the medium, without some of it may.
    fn settle(&mut self, offset: u64, len: u64, fua: bool) -> Result<(), StoreError> {
        let mut dice = self.dice.clone();
        let percent = match dice.below(4) {
            _ if fua => 100,
            0 => 0,
            1 => 100,
            _ => self.options.early_percent,
        };
        let mut take = |layer: &mut Volatile, to: &mut Vec<ToMedium>| {
            layer.write_back_some(offset, len, percent, &mut dice, to);
        };
        let settled = match fua {
            true => self.sync(take),
            false => {
                take(&mut self.layer, &mut self.to_medium);
                self.write_back()
            }
        };
        self.dice = dice;
        settled
    }

    /// Moves what `take` takes out of the layer to the medium and makes it durable, or fails as told.
    fn sync(
        &mut self,
        mut take: impl FnMut(&mut Volatile, &mut Vec<ToMedium>),
    ) -> Result<(), StoreError> {
        self.syncs += 1;
        if self.options.fail_sync > 0 && self.syncs.is_multiple_of(self.options.fail_sync) {
            let mut dice = Dice::new(self.dice.next_u64());
            self.power_cut(&mut dice);
            return Err(StoreError::SyncFailed);
        }
        take(&mut self.layer, &mut self.to_medium);
        let synced = self.write_back().and_then(|()| self.medium.sync());
        synced.map_err(|_| {
            self.latched = true;
            self.layer.drop_all();
            StoreError::SyncFailed
        })
    }

    fn power_cut(&mut self, dice: &mut Dice) {
        self.latched = true;
        self.layer.power_cut(dice, &mut self.to_medium);
        // A medium that can't be written to has lost even more, which is no contradiction to a power cut.
        let _ = self.write_back();
    }

    /// Writes `to_medium` out, neighbours together.
    fn write_back(&mut self) -> Result<(), StoreError> {
        let mut run: Vec<u8> = Vec::new();
        let mut start = 0;
        let mut result = Ok(());
        for ToMedium { offset, data } in self.to_medium.drain(..) {
            if start + run.len() as u64 != offset && !run.is_empty() {
                result = result.and(self.medium.write(start, &run));
                run.clear();
            }
            if run.is_empty() {
                start = offset;
            }
            run.extend_from_slice(&data[..]);
        }
        if !run.is_empty() {
            result = result.and(self.medium.write(start, &run));
        }
        result
    }
}

impl Backend for LossyBackend {
    fn info(&self) -> &Info {
        &self.info
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        match self.info.check(&request.op) {
            Ok(()) => self.send(Work::Request(request)),
            Err(error) => {
                let mut list = self
                    .answers
                    .list
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                list.push(Completion {
                    token: request.token,
                    result: Err(error),
                });
                self.answers.wake.raise();
            }
        }
    }

    fn kick(&mut self) {}

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.answers.wake.lower();
        let mut list = self
            .answers
            .list
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.in_flight -= list.len();
        done.append(&mut list);
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.answers.wake.fd()
    }

    fn refresh(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn new_incarnation(&mut self) {
        self.send(Work::NewIncarnation);
    }
}

impl Drop for LossyBackend {
    fn drop(&mut self) {
        self.send(Work::Stop);
        if let Some(thread) = self.thread.take() {
            // If it panicked there is nothing more to wait for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "lossy_tests.rs"]
mod tests;
