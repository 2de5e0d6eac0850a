//! Failing requests: deadlines, retry limits, ABORT.
//!
//! A request that has to fail completes as soon as no socket refers to its memory; a connection that does is reset. Where
//! it had an id in a session that is still known, the server is told by ABORT, over any connection or first thing on the
//! next, and nothing else is sent until it has answered: so nothing submitted after the failure can be served before
//! the failed request is settled. When the session is lost, the old server settles everything before it grants a fresh
//! one, and the ABORT is forgotten.

use super::super::proto::{Outcome, Status};
use super::event::{CloseReason, Phase};
use super::retained::{Entries, Retained};
use super::session::{indices, slot_ref, Session};
use super::slot::{Abort, Failure, Slot, State};

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// What is due at `now`: deadlines, keepalive.
    pub fn handle_timeout<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        now: u64,
    ) {
        self.check_liveness(now);
        if now < self.deadline_floor {
            return;
        }
        let mut floor = u64::MAX;
        for at in indices(slots) {
            let Some(slot) = slot_ref(slots, at) else {
                break;
            };
            if !slot.is_pending() || self.is_internal(at) {
                continue;
            }
            if slot.deadline <= now {
                self.stats.expired = self.stats.expired.saturating_add(1);
                self.settle_failed(slots, retained, at, Failure::Deadline);
            } else {
                floor = floor.min(slot.deadline);
            }
        }
        self.deadline_floor = floor;
        self.admit(slots, retained);
    }

    /// When [`Self::handle_timeout`] wants to be called next; `None` for never.
    pub fn next_timeout(&self) -> Option<u64> {
        let due = self.deadline_floor.min(self.next_liveness());
        (due != u64::MAX).then_some(due)
    }

    /// Fails a pending request for good and, where the server may know it, has it settled.
    pub(super) fn settle_failed<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
        failure: Failure,
    ) {
        let session_known = matches!(self.phase, Phase::Replaying | Phase::Live | Phase::Closing);
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            // It may have been executed in a session that is lost, where no ABORT reaches it.
            let lost = slot.carried || slot.is_open() && !session_known;
            self.unsettled |= lost && slot.request.kind.is_write();
            if slot.is_open() && session_known {
                slot.abort = Abort {
                    id: slot.id,
                    conn: None,
                    write: slot.request.kind.is_write(),
                    mark: None,
                };
                self.aborts = self.aborts.saturating_add(1);
            }
        }
        self.start_failing(slots, retained, at, failure);
    }

    /// Completes a pending request with `failure`, once no socket refers to its memory.
    pub(super) fn start_failing<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
        failure: Failure,
    ) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        let (pins, conn) = (slot.pins, slot.conn);
        if slot.state == State::Waiting {
            self.waiting.remove(slots, at);
        } else {
            if !self.is_internal(at) {
                retained.unreserve(&slot.request);
            }
            self.close_slot(slots, at);
        }
        if pins == 0 {
            return self.finish_slot(slots, at, Some(failure));
        }
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            slot.state = State::Failing;
            slot.failure = Some(failure);
        }
        self.failing = self.failing.saturating_add(1);
        if let Some(conn) = self.conn_mut(conn) {
            conn.close(CloseReason::Deadline);
        }
    }

    /// No socket refers to the memory of slot `at` any more.
    pub(super) fn finish_failing(&mut self, slots: &mut [Slot], at: u16) {
        let Some(failure) = slot_ref(slots, at).map(|slot| slot.failure) else {
            return;
        };
        self.failing = self.failing.saturating_sub(1);
        self.finish_slot(slots, at, failure);
    }

    /// The next ABORT to send, as its slot.
    pub(super) fn next_abort(&self, slots: &[Slot]) -> Option<u16> {
        if self.aborts == 0 {
            return None;
        }
        let unsent = |slot: &Slot| slot.abort.id != 0 && slot.abort.conn.is_none();
        (0..u16::MAX)
            .zip(slots)
            .find_map(|(at, slot)| unsent(slot).then_some(at))
    }

    /// The server has settled an aborted id.
    pub(super) fn abort_settled<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
        id: u64,
        outcome: Outcome,
    ) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if slot.abort.id == 0 || slot.abort.id != id {
            return;
        }
        let abort = core::mem::take(&mut slot.abort);
        self.aborts = self.aborts.saturating_sub(1);
        self.window.finish(id);
        // Its answer came after a flush that began after the ABORT.
        if abort.write && outcome != Outcome::NeverExecuted {
            retained.durable_below(abort.mark.unwrap_or(0));
        }
        self.act(slots, retained);
        self.admit(slots, retained);
    }

    /// ABORTs never cross into another session.
    pub(super) fn forget_aborts(&mut self, slots: &mut [Slot]) {
        if self.aborts > 0 {
            for slot in slots {
                self.unsettled |= slot.abort.id != 0 && slot.abort.write;
                slot.abort = Abort::default();
            }
            self.aborts = 0;
        }
    }

    /// A request was answered RETRY, or the digest of what it read was bad, for the last time: give up.
    pub(super) fn give_up<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
    ) {
        if self.is_internal(at) {
            let reason = super::FailReason::ReplayFailed(Status::RETRY);
            return self.fail(slots, retained, reason);
        }
        self.settle_failed(slots, retained, at, Failure::Status(Status::RETRY));
    }
}
