//! What may start when: barriers, overlapping writes, the gate (PROTOCOL.md 5.2, 5.4, 6.2).
//!
//! A request that has arrived starts when three things are true; until then it is held:
//!
//! * every id up to its `not_before` has finished: for a barrier all lower ids, for a request with *after* all up to that
//!   barrier, the barrier itself included, so that one that is held holds those behind it;
//! * for a write: no overlapping write of a lower id is unfinished, arriving ones included, and none of a higher id has
//!   started;
//! * the gate is open.
//!
//! Nothing waits in a circle: a request waits for lower ids or for what has started. A write that waits for a lower id that
//! is still arriving starts when that one's connection is lost and its payload forgotten.

use super::list::{List, QUEUE, WRITES};
use super::session::{Bits, Lanes, Session};
use super::slot::{Slot, State};
use super::NONE;

impl<W: Bits, L: Lanes> Session<W, L> {
    /// Sends `at`, which has arrived, on its way.
    pub(super) fn schedule(&mut self, slots: &mut [Slot], at: u16) {
        let start = self.may_start(slots, at);
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if start {
            slot.state = State::Ready;
            self.ready.push_back(slots, at);
        } else {
            slot.state = State::Held;
            self.held.insert_by_id(slots, at);
        }
    }

    /// `id` will never change anything again. What waited for it goes on.
    pub(super) fn finish(&mut self, slots: &mut [Slot], id: u64) {
        self.window.finish(id);
        self.release_held(slots);
    }

    /// Looks through the held requests, in order of id, for such as may start now.
    pub(super) fn release_held(&mut self, slots: &mut [Slot]) {
        let mut cursor = self.held.head();
        while let Some(at) = cursor {
            cursor = List::<QUEUE>::next(slots, at);
            if self.may_start(slots, at) {
                self.held.remove(slots, at);
                if let Some(slot) = slots.get_mut(usize::from(at)) {
                    slot.state = State::Ready;
                }
                self.ready.push_back(slots, at);
            }
        }
    }

    /// Holds every request that has not started, or lets them go: while another client's writes of an earlier incarnation
    /// have not been replayed.
    pub fn set_gate(&mut self, slots: &mut [Slot], on: bool) {
        self.gate = on;
        if on {
            while let Some(at) = self.ready.pop_front(slots) {
                if let Some(slot) = slots.get_mut(usize::from(at)) {
                    slot.state = State::Held;
                }
                self.held.insert_by_id(slots, at);
            }
        } else if self.ended.is_none() {
            self.release_held(slots);
        }
    }

    fn may_start(&self, slots: &mut [Slot], at: u16) -> bool {
        let Some(slot) = slots.get(usize::from(at)) else {
            return false;
        };
        if self.gate || self.window.floor() < slot.not_before {
            return false;
        }
        if !slot.kind.is_write() {
            return true;
        }
        // Mostly what was in the way last time still is.
        if in_the_way(slots, slot.blocker, slot) {
            return false;
        }
        let mut cursor = self.writes.head();
        let mut blocker = NONE;
        while let Some(other) = cursor {
            if other != at && in_the_way(slots, other, slot) {
                blocker = other;
                break;
            }
            cursor = List::<WRITES>::next(slots, other);
        }
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            slot.blocker = blocker;
        }
        blocker == NONE
    }
}

/// Whether the write in `other` keeps `slot` from starting.
fn in_the_way(slots: &[Slot], other: u16, slot: &Slot) -> bool {
    let Some(other) = slots.get(usize::from(other)) else {
        return false;
    };
    let started = matches!(other.state, State::Ready | State::Executing);
    let waiting = matches!(other.state, State::Receiving | State::Held);
    (started || waiting && other.id < slot.id) && other.overlaps(slot)
}
