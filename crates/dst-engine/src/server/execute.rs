//! Handing requests to the backend and taking their results.

use super::super::proto::{Kind, OpFlags, Outcome, Status, NO_SLOT};
use super::ending::Close;
use super::session::{Bits, Lanes, Session};
use super::slot::{Pending, Slot, State};

/// Something for the backend to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execute {
    /// The slot, or `NO_SLOT` for a FLUSH of the session's own (for ABORT or CLOSE).
    pub slot: u16,
    /// The id, to be given back with the result; 0 with `NO_SLOT`.
    pub id: u64,
    /// READ, WRITE (with what was received for the slot), FLUSH, DISCARD, WRITE ZEROES or BLOCK STATUS.
    pub kind: Kind,
    /// FUA, MAY_UNMAP and FAST_ONLY matter to the backend.
    pub flags: OpFlags,
    /// Bytes from the start of the export; within its size and aligned.
    pub offset: u64,
    /// Bytes; 0 for FLUSH.
    pub length: u64,
}

impl Execute {
    const FLUSH: Execute = Execute {
        slot: NO_SLOT,
        id: 0,
        kind: Kind::FLUSH,
        flags: OpFlags::NONE,
        offset: 0,
        length: 0,
    };
}

/// What the session's own flush, if one runs, is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    None,
    /// Slots in state Settling with `flushing`.
    Abort,
    Close,
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// The next thing for the backend to do; what the driver keeps for the slot, the payload of a WRITE aside, is void.
    /// Every one must be answered by one call of [`Session::executed`]. Writes given out at the same time never overlap.
    pub fn poll_execute(&mut self, slots: &mut [Slot]) -> Option<Execute> {
        if self.ended.is_some() {
            return None;
        }
        if self.settling > 0 && self.flush == Flush::None {
            self.settling = 0;
            self.flush = Flush::Abort;
            let settling = slots
                .iter_mut()
                .filter(|slot| slot.state == State::Settling);
            settling.for_each(|slot| slot.flushing = true);
            return Some(Execute::FLUSH);
        }
        let Some(at) = self.ready.pop_front(slots) else {
            return self.poll_close_flush(slots);
        };
        let slot = slots.get_mut(usize::from(at))?;
        slot.state = State::Executing;
        slot.executed = true;
        self.executing = self.executing.saturating_add(1);
        self.replaced(slot);
        Some(Execute {
            slot: at,
            id: slot.id,
            kind: slot.kind,
            flags: slot.flags,
            offset: slot.offset,
            length: slot.length,
        })
    }

    /// The backend has finished what [`Session::poll_execute`] gave out. The bytes of a READ and the extents of a BLOCK
    /// STATUS stay with the driver until `poll_reply` or [`super::Event::Drop`] says that they are done with.
    ///
    /// For a sync that failed, `status` is what [`super::Export::sync_failed`] answered; it ends the session.
    pub fn executed(&mut self, slots: &mut [Slot], at: u16, id: u64, status: Status) {
        if at == NO_SLOT {
            return self.flushed(slots, status);
        }
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if slot.state != State::Executing || slot.id != id {
            return;
        }
        self.executing = self.executing.saturating_sub(1);
        slot.state = State::Done;
        slot.status = status;
        let (write, aborted) = (slot.kind.is_write(), slot.abort);
        slot.abort = false;
        slot.data = slot.is_reread() && status.is_ok();
        if write {
            self.writes.remove(slots, at);
        }
        if sync_failed(status) || self.ended.is_some() {
            let Some(slot) = slots.get_mut(usize::from(at)) else {
                return;
            };
            self.drop_data(slot);
            if status == Status::SYNC_FAILED {
                self.answer(slots, at, Pending::Answer);
            } else {
                self.uncount(slot, at);
            }
            return self.settle(slots, Status::SESSION_LOST);
        }
        if aborted {
            self.settle_aborted(slots, at);
        } else {
            self.answer(slots, at, Pending::Answer);
        }
        self.finish(slots, id);
    }

    /// The session's own flush has finished.
    fn flushed(&mut self, slots: &mut [Slot], status: Status) {
        let flush = core::mem::replace(&mut self.flush, Flush::None);
        if flush == Flush::Close {
            self.close_flushed(status);
        }
        if !status.is_ok() {
            return self.settle(slots, Status::SESSION_LOST);
        }
        if flush != Flush::Abort || self.ended.is_some() {
            return;
        }
        for at in 0..self.slots {
            let Some(slot) = slots.get_mut(usize::from(at)) else {
                break;
            };
            if slot.state == State::Settling && slot.flushing {
                slot.state = State::Aborted;
                slot.outcome = Outcome::Kept;
                self.answer(slots, at, Pending::Outcome);
            }
        }
    }

    /// CLOSE waits until what has arrived is finished, as far as it can be, then for a flush.
    fn poll_close_flush(&mut self, slots: &mut [Slot]) -> Option<Execute> {
        if self.close != Close::Finishing || self.executing > 0 || self.flush != Flush::None {
            return None;
        }
        // What is still held waits for ids that will not come, and nothing may start after the flush.
        for at in 0..self.slots {
            let Some(slot) = slots.get(usize::from(at)) else {
                break;
            };
            if matches!(slot.state, State::Held | State::Receiving) {
                self.vacate(slots, at);
            }
        }
        if !self.config.writable {
            self.close = Close::Releasing(false);
            return None;
        }
        self.close = Close::Flushing;
        self.flush = Flush::Close;
        Some(Execute::FLUSH)
    }
}

fn sync_failed(status: Status) -> bool {
    matches!(status, Status::SYNC_FAILED | Status::SESSION_LOST)
}
