//! Submission: who takes an id when.
//!
//! Id, credit and room in the retention are taken together and in order of submission, but for one exception: a write that
//! overlaps an open or earlier waiting write waits alone, and others may pass it, unless they are barriers. A
//! barrier that waits stops everything behind it.

use super::super::proto::{Kind, OpFlags};
use super::event::Phase;
use super::list::List;
use super::retained::{Entries, Retained};
use super::session::{slot_ref, Session};
use super::slot::{Failure, Request, Slot, State};
use super::NONE;

/// What became of a look at one waiting request.
enum Verdict {
    Admit,
    /// Waits for an overlapping write; others may pass.
    Pass,
    /// Nothing behind it may take an id now.
    Stop,
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// Hands in the request of slot `at`, which must be free and one of the driver's (see [`super::user_slots`]). Its
    /// completion comes by [`super::Event::Completed`]. False: the slot is not one to submit in, nothing happened.
    pub fn submit<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
        request: Request,
        now: u64,
    ) -> bool {
        if self.is_internal(at) {
            return false;
        }
        let deadline = match self.config.deadline {
            Some(limit) => now.saturating_add(limit),
            None => u64::MAX,
        };
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return false;
        };
        if slot.state != State::Free {
            return false;
        }
        *slot = Slot {
            state: State::Waiting,
            request,
            deadline,
            abort: slot.abort,
            ..Slot::default()
        };
        match self.phase {
            Phase::Failed(_) | Phase::Closed | Phase::Closing => {
                self.finish_slot(slots, at, Some(Failure::DeviceFailed));
            }
            Phase::Opening | Phase::Replaying | Phase::Live => {
                self.deadline_floor = self.deadline_floor.min(deadline);
                self.waiting.push_back(slots, at);
                self.admit(slots, retained);
            }
        }
        true
    }

    /// Gives ids to the waiting requests that may have one.
    pub(super) fn admit<E: Entries>(&mut self, slots: &mut [Slot], retained: &mut Retained<E>) {
        // What was submitted before the end began still goes its way.
        if !matches!(self.phase, Phase::Live | Phase::Closing) || self.aborts > 0 {
            return;
        }
        if self.unsettled && self.flush_replayed(slots, retained) {
            return;
        }
        self.flush_if_due(slots, retained, false);
        let mut previous = NONE;
        let mut cursor = self.waiting.head();
        while let Some(at) = cursor {
            cursor = List::next(slots, at);
            match self.verdict(slots, retained, at, previous != NONE) {
                Verdict::Admit => {
                    self.waiting.unlink(slots, previous, at);
                    self.take_id(slots, retained, at);
                }
                Verdict::Pass => previous = at,
                Verdict::Stop => return,
            }
        }
    }

    /// `passed`: requests submitted earlier still wait.
    fn verdict<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
        passed: bool,
    ) -> Verdict {
        let Some(slot) = slot_ref(slots, at) else {
            return Verdict::Stop;
        };
        let request = slot.request;
        let barrier = slot.is_barrier();
        if barrier && passed {
            return Verdict::Stop;
        }
        if request.kind.is_write() && self.overlaps_earlier(slots, at, &request, passed) {
            return if barrier {
                Verdict::Stop
            } else {
                Verdict::Pass
            };
        }
        if !self.has_credit(&request) || !self.has_id() {
            return Verdict::Stop;
        }
        if !retained.reserve(&request) {
            self.flush_if_due(slots, retained, true);
            return Verdict::Stop;
        }
        Verdict::Admit
    }

    /// Whether an open write, or a waiting one submitted earlier, overlaps.
    fn overlaps_earlier(&self, slots: &[Slot], at: u16, request: &Request, passed: bool) -> bool {
        let open = self.open_requests > 0
            && slots
                .iter()
                .any(|slot| slot.is_open() && slot.request.overlaps(request));
        if open || !passed {
            return open;
        }
        let mut cursor = self.waiting.head();
        while let Some(earlier) = cursor {
            if earlier == at {
                return false;
            }
            if slot_ref(slots, earlier).is_some_and(|slot| slot.request.overlaps(request)) {
                return true;
            }
            cursor = List::next(slots, earlier);
        }
        false
    }

    pub(super) fn has_credit(&self, request: &Request) -> bool {
        let bytes = self.open_bytes.saturating_add(u64::from(request.payload()));
        self.open_requests < self.credit.requests && bytes <= u64::from(self.credit.bytes)
    }

    /// Gives slot `at` the next id and makes it ready to be sent.
    pub(super) fn take_id<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &Retained<E>,
        at: u16,
    ) {
        let after = self.open_barrier();
        let id = self.next_id;
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        slot.id = id;
        slot.after = after;
        slot.mark = retained.tail();
        slot.state = State::Ready;
        self.next_id = id.wrapping_add(1);
        if slot.is_barrier() {
            self.barrier = id;
        }
        if slot.breaks >= super::send::SUSPECT_BREAKS {
            self.suspects = self.suspects.saturating_add(1);
        }
        self.open_requests = self.open_requests.saturating_add(1);
        self.open_bytes = self
            .open_bytes
            .saturating_add(u64::from(slot.request.payload()));
        self.ready.push_back(slots, at);
    }

    /// Sends a FLUSH of the engine's own when so much is retained that one is due, or because a write waits for
    /// room (`short`).
    fn flush_if_due<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        short: bool,
    ) {
        let due = retained.wants_flush() || short && retained.is_dirty() && retained.is_enabled();
        if due {
            self.send_flush(slots, retained);
        }
    }

    /// Gives the engine's own FLUSH an id, unless one is under way.
    pub(super) fn send_flush<E: Entries>(&mut self, slots: &mut [Slot], retained: &Retained<E>) {
        let at = self.flush_slot();
        if !slot_ref(slots, at).is_some_and(Slot::is_free) || !self.has_id() {
            return;
        }
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            slot.request = Request {
                kind: Kind::FLUSH,
                flags: OpFlags::NONE,
                offset: 0,
                length: 0,
            };
            self.take_id(slots, retained, at);
        }
    }
}
