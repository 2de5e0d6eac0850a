//! Connections of a session: JOIN, what the client learns from it, and their loss (PROTOCOL.md 6.3).
//!
//! From an accepted JOIN on the older connection of its index is none of the session's: its frames are faults, its payload
//! is not wanted, and what was to be sent over it is forgotten. Outcomes stay in their slots: the client learns them from
//! SLOTS or by sending the request again.

use super::super::proto::{SlotEntry, SlotState, Status};
use super::lane::{CloseReason, ConnId};
use super::session::{Bits, Lanes, Session};
use super::slot::{Pending, Slot, State};
use super::NONE;

/// The entries of SLOTS for one JOIN.
#[derive(Clone, Debug)]
pub struct Entries<'s> {
    slots: &'s [Slot],
    next: u16,
    above: u64,
}

impl Iterator for Entries<'_> {
    type Item = SlotEntry;

    fn next(&mut self) -> Option<SlotEntry> {
        loop {
            let slot = self.slots.get(usize::from(self.next))?;
            let at = self.next;
            self.next = self.next.checked_add(1)?;
            // What has not arrived is as if it had never been sent.
            if slot.id <= self.above || slot.state == State::Empty {
                continue;
            }
            let (state, status) = if slot.keeps_outcome() {
                (SlotState::Done, slot.status)
            } else {
                (SlotState::InProgress, Status::OK)
            };
            return Some(SlotEntry {
                id: slot.id,
                slot: at,
                state,
                status,
            });
        }
    }
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// A stream whose JOIN has proved to know the session's secret takes the place of connection `index`. `acked` is the
    /// JOIN's *acknowledged up to*. On success the driver sends JOINED, with [`Session::slot_entries`], before anything that
    /// `poll_reply` gives; on failure it answers with the status and closes the stream.
    pub fn join(
        &mut self,
        slots: &mut [Slot],
        conn: ConnId,
        index: u16,
        generation: u32,
        acked: u64,
        now: u64,
    ) -> Result<(), Status> {
        if self.ended.is_some() {
            return Err(Status::SESSION_LOST);
        }
        let limit = self.config.limits.connections;
        if index >= limit || self.lane_of(conn).is_some() {
            return Err(Status::PROTOCOL);
        }
        let lane = self.lanes.as_ref().get(usize::from(index));
        let highest = lane.ok_or(Status::LIMIT)?.generation;
        if generation <= highest {
            return Err(Status::STALE_GENERATION);
        }
        self.note_acked(acked).map_err(|fault| fault.status)?;
        self.detach(slots, index, Some(CloseReason::Superseded), now);
        let probing = self.pings.is_probing();
        if let Some(lane) = self.lane_mut(index) {
            lane.start(conn, generation, now);
            lane.ping = probing;
        }
        self.pings.joined(now);
        // The client takes these from SLOTS, so they count as answered.
        for at in 0..self.slots {
            let Some(slot) = slots.get_mut(usize::from(at)) else {
                break;
            };
            if slot.id > acked && slot.keeps_outcome() {
                self.uncount(slot, at);
            }
        }
        Ok(())
    }

    /// What JOINED says: every slot whose id has arrived and is above `acked`. A READ that succeeded is listed as in progress,
    /// since it has to be sent again for its bytes.
    pub fn slot_entries<'s>(&self, slots: &'s [Slot], acked: u64) -> Entries<'s> {
        let slots = slots.get(..usize::from(self.slots)).unwrap_or(slots);
        Entries {
            slots,
            next: 0,
            above: acked,
        }
    }

    /// The stream `conn` is gone. What was arriving over it is forgotten, what has arrived goes on.
    pub fn conn_lost(&mut self, slots: &mut [Slot], conn: ConnId, now: u64) {
        if let Some(at) = self.lane_of(conn) {
            self.detach(slots, at, None, now);
        }
    }

    /// Takes the stream off lane `at`, if there is one.
    pub(super) fn detach(
        &mut self,
        slots: &mut [Slot],
        at: u16,
        reason: Option<CloseReason>,
        now: u64,
    ) {
        let Some(lane) = self.lane_mut(at).filter(|lane| lane.conn.is_some()) else {
            return;
        };
        if let Some(receiving) = lane.receiving {
            self.vacate(slots, receiving);
        }
        for index in 0..self.slots {
            let Some(slot) = slots.get_mut(usize::from(index)) else {
                break;
            };
            let next = slot.answered(at);
            if slot.lane != at {
                continue;
            }
            let waits = slot.pending;
            self.unqueue(slots, index);
            let Some(slot) = slots.get_mut(usize::from(index)) else {
                break;
            };
            slot.lane = next;
            if waits == Pending::Outcome && next != NONE {
                self.answer(slots, index, Pending::Outcome);
            } else if waits != Pending::None {
                self.uncount(slot, index);
                self.drop_data(slot);
            }
        }
        if let Some(lane) = self.lane_mut(at) {
            lane.stop(reason);
        }
        if self.close_lane == at {
            self.close_lane = NONE;
            self.close_unheard();
        }
        if self.connections() == 0 {
            self.pings.left_alone(now);
        }
        if self.ended.is_none() {
            self.release_held(slots);
        }
    }
}

impl Slot {
    /// Whether the client may take the outcome from SLOTS.
    fn keeps_outcome(&self) -> bool {
        self.state == State::Done && (!self.is_reread() || !self.status.is_ok())
    }
}
