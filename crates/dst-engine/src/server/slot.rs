//! The place of one transaction at the server: the highest id seen in it and what became of it.
//!
//! # States
//!
//! ```text
//!                    +-- bad digest, connection lost --+
//!                    v                                 |
//! Empty --WRITE--> Receiving --payload good--> Held or Ready --> Executing --> Done
//!   |                                             ^                 |
//!   +-------------- any other request ------------+   aborted write |---> Settling --flushed--> Aborted
//!                                                     aborted other +------------------------> Aborted
//! Empty, Receiving, Held, Ready, unseen --ABORT--> Aborted           Done --ABORT--> Settling or Aborted
//! Done --resent READ or BLOCK STATUS--> Held or Ready       Done, Aborted --higher id--> as from Empty
//! ```
//!
//! * *Empty*: `id` is the highest seen, and has not arrived (0: none has been seen).
//! * *Receiving*: the payload is arriving on connection `lane`.
//! * *Held*: arrived, waits for a barrier, an overlapping write or the replay gate. In the held list, by id.
//! * *Ready*: to be handed out by `poll_execute`. In the ready list.
//! * *Executing*: the backend has it. With `abort`, an ABORT waits for it.
//! * *Done*: finished with `status`. A READ or BLOCK STATUS with `data` still has it at the driver.
//! * *Settling*: an aborted write that has finished and waits for a backend flush begun since (`flushing`: it runs).
//! * *Aborted*: settled with `outcome`; a tombstone where nothing of the id was ever seen.
//!
//! # Invariants
//!
//! * The queue links are in use in Held and Ready (the session's lists) and where `pending` is not `None` (the list of
//!   connection `lane`), nowhere else; so `pending` is `None` in Held and Ready.
//! * The write links are in use exactly for a write in Receiving, Held, Ready or Executing.
//! * `lane` names a connection that lives, or none.
//! * `counted` is set while the request counts against the credit: from its arrival until its answer is handed out,
//!   it is settled by ABORT, or there is nobody to answer.

use super::super::proto::{Kind, OpFlags, Outcome, Status};
use super::list::Links;
use super::NONE;

/// See the module's diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Empty,
    Receiving,
    Held,
    Ready,
    Executing,
    Done,
    Settling,
    Aborted,
}

/// What a slot has to say to its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pending {
    #[default]
    None,
    /// The status, and with it the data of a READ that succeeded.
    Answer,
    /// The payload had a bad digest.
    Retry,
    /// What became of the aborted request.
    Outcome,
}

/// One transaction. The driver lends one for each slot of the session and never looks inside.
#[derive(Clone, Debug)]
pub struct Slot {
    pub(super) id: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Starts only when every id up to this one has finished.
    pub(super) not_before: u64,
    pub(super) payload: u32,
    /// Bytes of a READ that have been handed out.
    pub(super) sent: u32,
    pub(super) kind: Kind,
    pub(super) state: State,
    pub(super) pending: Pending,
    pub(super) outcome: Outcome,
    pub(super) flags: OpFlags,
    pub(super) status: Status,
    pub(super) lane: u16,
    /// Of the newest copy of the id.
    pub(super) attempt: u8,
    /// For a held write: a slot whose write was found in the way.
    pub(super) blocker: u16,
    pub(super) links: [Links; 2],
    pub(super) counted: bool,
    pub(super) abort: bool,
    /// Lanes, as a mask, that wait for the answer to an ABORT; `lane` is one of them.
    pub(super) askers: u16,
    /// The backend has had it.
    pub(super) executed: bool,
    pub(super) flushing: bool,
    /// The driver keeps what was read until it has been handed out.
    pub(super) data: bool,
    /// What the driver keeps for the slot is of no use any more, and it has not been told.
    pub(super) dropped: bool,
}

impl Slot {
    /// A place that no transaction is in.
    pub const EMPTY: Slot = Slot {
        id: 0,
        offset: 0,
        length: 0,
        not_before: 0,
        payload: 0,
        sent: 0,
        kind: Kind::FLUSH,
        state: State::Empty,
        pending: Pending::None,
        outcome: Outcome::NeverExecuted,
        flags: OpFlags::NONE,
        status: Status::OK,
        lane: NONE,
        attempt: 0,
        blocker: NONE,
        links: [Links::FREE; 2],
        counted: false,
        abort: false,
        askers: 0,
        executed: false,
        flushing: false,
        data: false,
        dropped: false,
    };

    /// Whether the id has arrived and is on its way to an outcome.
    pub(super) fn in_progress(&self) -> bool {
        matches!(self.state, State::Held | State::Ready | State::Executing)
    }

    /// Whether a higher id may take the slot: the client can hold the outcome of the one in it.
    pub(super) fn is_finished(&self) -> bool {
        match self.state {
            State::Empty => self.id == 0,
            State::Done | State::Aborted => true,
            _ => false,
        }
    }

    /// Whether a copy of the id was sent after the newest seen, by serial number arithmetic (RFC 1982): a delayed copy from a
    /// connection that its client has given up must not take the answer along.
    pub(super) fn is_newer(&self, attempt: u8) -> bool {
        matches!(attempt.wrapping_sub(self.attempt), 1..=127)
    }

    /// An ABORT came over `lane`. A copy may have been delayed on a connection that the client has given up, so whoever asks
    /// is answered.
    pub(super) fn asked(&mut self, lane: u16) {
        self.lane = lane;
        self.askers |= mask(lane);
    }

    /// `lane` waits for the answer to an ABORT no more. Gives the next that does, or `NONE`.
    pub(super) fn answered(&mut self, lane: u16) -> u16 {
        self.askers &= !mask(lane);
        if self.askers == 0 {
            NONE
        } else {
            // Less than 16.
            self.askers.trailing_zeros() as u16
        }
    }

    /// Whether a resend is executed again rather than answered from the kept status.
    pub(super) fn is_reread(&self) -> bool {
        matches!(self.kind, Kind::READ | Kind::BLOCK_STATUS)
    }

    /// Whether both are writes and share a byte.
    pub(super) fn overlaps(&self, other: &Slot) -> bool {
        self.kind.is_write()
            && other.kind.is_write()
            && self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length)
    }
}

impl Default for Slot {
    fn default() -> Self {
        Slot::EMPTY
    }
}

fn mask(lane: u16) -> u16 {
    1u16.checked_shl(u32::from(lane)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, length: u64) -> Slot {
        Slot {
            kind: Kind::DISCARD,
            offset,
            length,
            ..Slot::default()
        }
    }

    #[test]
    fn writes_overlap_only_where_they_share_a_byte() {
        assert!(write(0, 512).overlaps(&write(511, 1)));
        assert!(!write(0, 512).overlaps(&write(512, 512)));
        assert!(!write(512, 512).overlaps(&write(0, 512)));
        assert!(write(0, 4096).overlaps(&write(512, 512)));
        let read = Slot {
            kind: Kind::READ,
            ..write(0, 4096)
        };
        assert!(!read.overlaps(&write(0, 4096)));
    }

    #[test]
    fn a_slot_is_small() {
        assert!(core::mem::size_of::<Slot>() <= 80);
    }
}
