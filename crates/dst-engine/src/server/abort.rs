//! ABORT: settling a request that the client has given up (PROTOCOL.md 5.6).
//!
//! | the target | becomes | answered |
//! | --- | --- | --- |
//! | not seen, not arrived, arriving, held, ready, refused | Aborted, a tombstone | *never executed*, at once |
//! | executing | stays until it has finished, then as below | |
//! | a write that was executed | Settling | *kept*, after a flush that began since |
//! | anything else that was executed | Aborted | *kept*, at once |
//! | aborted before | stays | the same again |
//! | an id below the slot's | | not at all: it was answered on another connection |
//!
//! Where the export can undo (GEOMETRY flag *rollback*; none does yet), the outcome of a write is decided in
//! `settle_aborted`, between its execution and the flush.

use super::super::proto::{Header, Outcome};
use super::super::rx::Fault;
use super::receive::{ID_USED, NO_SUCH_SLOT, SLOT_IN_USE};
use super::session::{Bits, Lanes, Session};
use super::slot::{Pending, Slot, State};

impl<W: Bits, L: Lanes> Session<W, L> {
    /// ABORT came over `lane`.
    pub(super) fn abort(
        &mut self,
        slots: &mut [Slot],
        lane: u16,
        header: &Header,
    ) -> Result<(), Fault> {
        let (at, id) = (header.slot, header.id);
        self.check_place(at, id)?;
        self.note_acked(header.acked)?;
        let slot = slots.get_mut(usize::from(at)).ok_or(NO_SUCH_SLOT)?;
        if id < slot.id {
            return Ok(());
        }
        if id > slot.id {
            if !slot.is_finished() {
                return Err(SLOT_IN_USE);
            }
            if self.window.is_finished(id) {
                return Err(ID_USED);
            }
            self.vacate(slots, at);
            if let Some(slot) = slots.get_mut(usize::from(at)) {
                *slot = Slot {
                    id,
                    dropped: slot.dropped,
                    ..Slot::default()
                };
            }
            self.entomb(slots, at, lane);
            return Ok(());
        }
        let started = slot.executed;
        match slot.state {
            State::Executing => {
                slot.abort = true;
                slot.asked(lane);
            }
            State::Done if started => {
                self.vacate(slots, at);
                if let Some(slot) = slots.get_mut(usize::from(at)) {
                    slot.asked(lane);
                }
                self.settle_aborted(slots, at);
            }
            State::Settling => slot.asked(lane),
            State::Aborted => {
                self.unqueue(slots, at);
                if let Some(slot) = slots.get_mut(usize::from(at)) {
                    slot.asked(lane);
                }
                self.answer(slots, at, Pending::Outcome);
            }
            _ => {
                self.vacate(slots, at);
                self.entomb(slots, at, lane);
            }
        }
        Ok(())
    }

    /// `at`, which is Empty, will never be executed.
    fn entomb(&mut self, slots: &mut [Slot], at: u16, lane: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        slot.state = State::Aborted;
        slot.outcome = Outcome::NeverExecuted;
        slot.asked(lane);
        let id = slot.id;
        self.answer(slots, at, Pending::Outcome);
        self.finish(slots, id);
    }

    /// `at` was aborted and its execution has finished.
    pub(super) fn settle_aborted(&mut self, slots: &mut [Slot], at: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        self.uncount(slot, at);
        self.drop_data(slot);
        if slot.kind.is_write() {
            slot.state = State::Settling;
            slot.flushing = false;
            self.settling = self.settling.saturating_add(1);
        } else {
            slot.state = State::Aborted;
            slot.outcome = Outcome::Kept;
            self.answer(slots, at, Pending::Outcome);
        }
    }
}
