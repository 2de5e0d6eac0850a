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
//! `disk/plan.rs` chooses the first call, `disk/advance.rs` the next, `disk/zeroes.rs` knows how zeroes are made,
//! `disk/durable.rs` when FLUSH and FUA are answered. `disk/renew.rs` is the change to a new incarnation, with states of
//! its own, during which requests wait.
//!
//! # Invariants
//! - A task has exactly one call at its engine, or none while it waits for the sync rule ([`SyncTracker`]).
//! - Nothing is answered durable but by the sync rule. The sync mark, if there is one, counts calls that have begun.
//! - `end` never grows but with `info.size`, while the file was never seen shorter: what was once truncated answers
//!   [`StoreError::Truncated`](crate::StoreError::Truncated) as long as the backend is open, rather than showing zeroes
//!   when a write makes the file long again.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use dst_buf::Shared;

use crate::backend::{Backend, Identity, Info};
use crate::engine::{self, Engine, Finished};
use crate::key::FileKey;
use crate::open::{EngineChoice, OpenError};
use crate::request::{Completion, Request};
use crate::sync::{SyncAnswer, SyncTracker};
use crate::syscalls::forget_cached;
use crate::target::{Abilities, Target};

mod advance;
mod durable;
mod plan;
mod renew;
mod task;
mod zeroes;

use renew::Renewal;
use task::Task;

/// An export kept in a regular file or on a block device. See the [module](self).
pub struct DiskBackend {
    info: Info,
    key: Option<FileKey>,
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
    /// Calls at the engine.
    calls: usize,
    renewal: Renewal,
    /// Submitted during a renewal.
    held: Vec<Request>,
}

impl DiskBackend {
    pub(crate) fn start(
        file: Arc<OwnedFd>,
        mut info: Info,
        target: Box<dyn Target>,
        abilities: Abilities,
        choice: EngineChoice,
    ) -> Result<DiskBackend, OpenError> {
        if target.cache_is_doubtful() {
            forget_cached(&file);
            target.sync_succeeded();
        }
        let key = FileKey::of(&*file).map_err(OpenError::io("look at an open file"))?;
        let engine = engine::start(choice, file)?;
        info.description = format!("{}, {}", info.description, engine.name());
        Ok(DiskBackend {
            end: info.size,
            info,
            key,
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
            calls: 0,
            renewal: Renewal::Over,
            held: Vec::new(),
        })
    }
}

impl Backend for DiskBackend {
    fn info(&self) -> &Info {
        &self.info
    }

    fn identity(&self) -> Identity {
        self.target.identity()
    }

    fn file(&self) -> Option<FileKey> {
        self.key
    }

    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        match self.renewal {
            Renewal::Over => self.start_request(request),
            Renewal::Draining | Renewal::Dropping => self.held.push(request),
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
            self.calls -= 1;
            self.advance(finished);
        }
        self.step_renewal();
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
        self.renew();
        self.engine.kick();
        if !self.ready.is_empty() {
            self.engine.nudge();
        }
    }
}
