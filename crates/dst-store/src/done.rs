//! Completions of a backend that does its work in memory, with the wake-up that belongs to them.
//!
//! Invariant: after `kick` and until the next `take`, the descriptor is readable if and only if completions wait.

use std::os::fd::BorrowedFd;

use crate::request::{Completion, Outcome, StoreError};
use crate::wake::Wake;

/// The list of completions not taken yet.
pub(crate) struct DoneList {
    list: Vec<Completion>,
    wake: Wake,
    raised: bool,
}

impl DoneList {
    /// # Errors
    /// Out of descriptors or memory.
    pub(crate) fn new() -> rustix::io::Result<DoneList> {
        Ok(DoneList {
            list: Vec::new(),
            wake: Wake::new()?,
            raised: false,
        })
    }

    pub(crate) fn push(&mut self, token: u64, result: Result<Outcome, StoreError>) {
        self.list.push(Completion { token, result });
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Makes the descriptor readable if something waits (or `more` work is left that a poll must do).
    pub(crate) fn kick(&mut self, more: bool) {
        if (more || !self.list.is_empty()) && !self.raised {
            self.wake.raise();
            self.raised = true;
        }
    }

    /// Hands everything over; the descriptor stays readable if `more` work is left.
    pub(crate) fn take(&mut self, done: &mut Vec<Completion>, more: bool) {
        done.append(&mut self.list);
        if self.raised && !more {
            self.wake.lower();
            self.raised = false;
        }
        self.kick(more);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.fd()
    }
}
