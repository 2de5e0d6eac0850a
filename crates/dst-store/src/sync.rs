//! When a FLUSH or FUA may be answered: the rule of guarantee G6 about sync calls. No I/O happens here.
//!
//! Linux reports a writeback error once per open file description and leaves the pages clean. Of two sync calls
//! (`fdatasync`, a ranged sync for FUA) that run at the same time, one may get the error and the other nothing, though the
//! writes of both are gone. So the success of a call counts only when every call that overlapped it in time has returned
//! without error, too.
//!
//! # States
//!
//! A call:
//! ```text
//! begin ──> running ──ok──> returned ──all that overlapped it ok──> answered: success
//!              │                └──any call fails──┐
//!              └──error───────────────────────────>├──> failing ──no call running──> answered: failure
//! begin while latched ────────────────────────────>┘
//! ```
//! The tracker: *good* or *latched*. Any error latches; [`SyncTracker::new_incarnation`] unlatches.
//!
//! # Invariants
//! - No success is answered while latched, and none for a call that was begun in an earlier incarnation.
//! - A returned call waits for exactly those that were running at some time between its begin and its return: they have an
//!   id below its `until`. A call begun later can't have taken an error that this one should have seen. So the wait is
//!   bounded however many calls follow.
//! - Failures are answered only when no call is running. Whoever starts a new incarnation because of one therefore meets
//!   no call of the old, whose error would be about writes of either incarnation, and whose failure would look like a
//!   second one.
//! - Every owner is answered exactly once.

use std::collections::VecDeque;

/// Names one sync call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SyncId(u64);

/// What to tell the owner of a sync call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncAnswer {
    /// As given to [`SyncTracker::begin`].
    pub owner: u64,
    /// Whether the writes that the call was for are on stable storage.
    pub durable: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct SyncTracker {
    latched: bool,
    next: u64,
    /// Running and returned calls, ascending by id.
    calls: VecDeque<Call>,
    /// Owners to be told of a failure once nothing is running.
    failing: Vec<u64>,
}

#[derive(Debug)]
struct Call {
    id: SyncId,
    owner: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// Begun in an earlier incarnation: still counts for those it overlaps, can't succeed itself.
    Doomed,
    /// Returned without error; waits for the calls below `until`.
    Returned {
        until: SyncId,
    },
}

impl SyncTracker {
    /// A tracker with no call and no error.
    pub fn new() -> SyncTracker {
        SyncTracker::default()
    }

    /// Must be called before a sync call is handed to the system. `None`: don't make the call, a failure is or will be
    /// among the answers.
    pub fn begin(&mut self, owner: u64, answers: &mut Vec<SyncAnswer>) -> Option<SyncId> {
        if self.latched {
            self.failing.push(owner);
            self.answer(answers);
            return None;
        }
        let id = SyncId(self.next);
        self.next += 1;
        self.calls.push_back(Call {
            id,
            owner,
            state: State::Running,
        });
        Some(id)
    }

    /// Must be called when a sync call has returned; `ok` if without error. Anything doubtful is an error. Appends what can
    /// be answered now, in order of begin.
    ///
    /// # Panics
    /// If the call was not begun, or has ended before.
    pub fn end(&mut self, id: SyncId, ok: bool, answers: &mut Vec<SyncAnswer>) {
        let index = self
            .calls
            .binary_search_by_key(&id, |call| call.id)
            .expect("a sync call ends once, after it has begun");
        let state = self.calls[index].state;
        match (state, ok) {
            (State::Returned { .. }, _) => panic!("a sync call ends once"),
            (State::Running, true) if !self.latched => {
                let until = SyncId(self.next);
                self.calls[index].state = State::Returned { until };
            }
            _ => {
                self.failing.push(self.calls[index].owner);
                self.calls.remove(index);
            }
        }
        if !ok {
            self.latch();
        }
        self.answer(answers);
    }

    /// Whether an error has been seen in this incarnation.
    pub fn is_latched(&self) -> bool {
        self.latched
    }

    /// Calls that have begun and not ended.
    pub fn running(&self) -> usize {
        self.calls.iter().filter(|call| call.is_running()).count()
    }

    /// Starts a new incarnation. Calls that are out can't succeed any more (there are none if this is the reaction to an
    /// answered failure); should one of them fail, that latches the new incarnation, since the writes lost may be its own.
    pub fn new_incarnation(&mut self, answers: &mut Vec<SyncAnswer>) {
        self.fail_returned();
        for call in &mut self.calls {
            call.state = State::Doomed;
        }
        self.latched = false;
        self.answer(answers);
    }

    fn latch(&mut self) {
        self.latched = true;
        self.fail_returned();
    }

    fn fail_returned(&mut self) {
        let failing = &mut self.failing;
        self.calls.retain(|call| {
            if !call.is_running() {
                failing.push(call.owner);
            }
            call.is_running()
        });
    }

    fn answer(&mut self, answers: &mut Vec<SyncAnswer>) {
        let oldest = self
            .calls
            .iter()
            .find(|call| call.is_running())
            .map(|call| call.id);
        self.calls.retain(|call| match (call.state, oldest) {
            (State::Returned { until }, Some(oldest)) if oldest < until => true,
            (State::Returned { .. }, _) => {
                answers.push(SyncAnswer {
                    owner: call.owner,
                    durable: true,
                });
                false
            }
            (State::Running | State::Doomed, _) => true,
        });
        if oldest.is_none() {
            answers.extend(self.failing.drain(..).map(|owner| SyncAnswer {
                owner,
                durable: false,
            }));
        }
    }
}

impl Call {
    fn is_running(&self) -> bool {
        matches!(self.state, State::Running | State::Doomed)
    }
}

#[cfg(test)]
#[path = "sync_tests.rs"]
mod tests;
