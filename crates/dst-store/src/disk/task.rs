//! Tasks: the requests that need system calls, and the table of them. The module above has their states.

use crate::disk::DiskBackend;
use crate::engine::Call;
use crate::request::{Completion, Outcome, StoreError};
use crate::sync::SyncId;

pub(super) struct Task {
    pub(super) token: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) fua: bool,
    pub(super) work: Work,
}

#[derive(Clone, Copy)]
pub(super) enum Work {
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
    pub(super) fn answer(&mut self, token: u64, result: Result<Outcome, StoreError>) {
        self.ready.push(Completion { token, result });
    }

    pub(super) fn slot(&mut self, task: Task) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.tasks.push(None);
            self.tasks.len() - 1
        });
        self.tasks[slot] = Some(task);
        slot
    }

    pub(super) fn begin(&mut self, task: Task, call: Call) {
        let slot = self.slot(task);
        self.push(slot as u64, call);
    }

    pub(super) fn task(&mut self, slot: usize) -> &mut Task {
        self.tasks[slot].as_mut().expect("a call belongs to a task")
    }

    pub(super) fn end_task(&mut self, slot: usize, result: Result<Outcome, StoreError>) {
        let task = self.tasks[slot].take().expect("a task ends once");
        self.free.push(slot);
        self.answer(task.token, result);
    }

    /// Hands the engine a call, under a key that comes back with it.
    pub(super) fn push(&mut self, key: u64, call: Call) {
        self.calls += 1;
        self.engine.push(key, call);
    }
}
