//! How a session ends: by CLOSE, which finishes what has arrived, or by being settled, which starts nothing more.
//!
//! ```text
//! CLOSE: No -> Finishing -(nothing executes)-> Flushing -(flush done)-> Releasing -(lease given back)-> Answer -> Answered
//!                                                  |__________(flush failed)___________________________^
//! ```
//!
//! A settled session keeps its slots until the backend has given back everything; [`Event::Settled`] says when that is. Its
//! connections are closed, and what they send meanwhile is thrown away.

use super::super::proto::Status;
use super::execute::Flush;
use super::lane::{CloseReason, ConnId};
use super::session::{Bits, Lanes, Session};
use super::slot::{Pending, Slot, State};
use super::NONE;

/// How far CLOSE has come; see the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    No,
    Finishing,
    Flushing,
    /// The driver has been told to release the lease, or (false) is to be.
    Releasing(bool),
    /// To be sent to the connection that asked last.
    Answer(Status),
    Answered,
}

/// Something for the driver to do beside executing and sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Close this stream, and take nothing more from it. [`Session::conn_lost`] may follow and does nothing.
    Close {
        /// The stream.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// What the driver keeps for this slot, received or read, is of no use any more.
    Drop {
        /// The slot.
        slot: u16,
    },
    /// The client has replayed what it had retained: [`super::Export::replayed`].
    Replayed,
    /// The client answered a PING sent since [`Session::probe`]: [`super::Export::probe_answered`].
    ProbeAnswered,
    /// CLOSE has come so far: [`super::Export::release`], then [`Session::closed`].
    Release,
    /// The session has ended and nothing of it executes: [`super::Export::settled`].
    Settled,
    /// Nothing refers to the session any more: it can be forgotten.
    Over,
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// Starts nothing more: the lease was taken, the incarnation has ended, or nobody has come back for too long. What the
    /// backend has goes on to its end; nothing is answered any more, but for a status SYNC_FAILED. Connections are closed
    /// with `reason`.
    pub fn settle(&mut self, slots: &mut [Slot], reason: Status) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(reason);
        if self.close != Close::Answer(Status::SYNC_FAILED) {
            self.close = Close::No;
        }
        for at in 0..self.slots {
            let Some(slot) = slots.get(usize::from(at)) else {
                break;
            };
            let sync_failed = slot.pending == Pending::Answer && slot.status == Status::SYNC_FAILED;
            if slot.state != State::Executing && !sync_failed {
                self.vacate(slots, at);
            }
        }
    }

    /// Whether the session has ended.
    pub fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether the backend has nothing of this session.
    pub fn settled(&self) -> bool {
        self.executing == 0 && self.flush == Flush::None
    }

    /// What the driver has to do next, beside executing and sending. To be asked until there is nothing, after any other
    /// call; where streams are to be closed, after what `poll_reply` has for them.
    pub fn poll_event(&mut self, slots: &mut [Slot]) -> Option<Event> {
        if let Some(slot) = self.take_dropped(slots) {
            return Some(Event::Drop { slot });
        }
        let mut stale = self
            .lanes
            .as_mut()
            .iter_mut()
            .filter_map(|lane| lane.stale.take());
        if let Some((conn, reason)) = stale.next() {
            return Some(Event::Close { conn, reason });
        }
        if self.replayed && !core::mem::replace(&mut self.replayed_told, true) {
            return Some(Event::Replayed);
        }
        if self.pings.take_answered() {
            return Some(Event::ProbeAnswered);
        }
        if self.close == Close::Releasing(false) {
            self.close = Close::Releasing(true);
            return Some(Event::Release);
        }
        let reason = self.ended?;
        if let Some(conn) = self.next_to_end(slots) {
            let reason = CloseReason::Ended(reason);
            return Some(Event::Close { conn, reason });
        }
        if !self.settled() {
            return None;
        }
        if !core::mem::replace(&mut self.settled_told, true) {
            return Some(Event::Settled);
        }
        let over = self.connections() == 0 && !core::mem::replace(&mut self.over_told, true);
        over.then_some(Event::Over)
    }

    /// Takes a connection of the ended session that has nothing left to be told off its lane.
    fn next_to_end(&mut self, slots: &mut [Slot]) -> Option<ConnId> {
        let answering = match self.close {
            Close::Answer(_) => self.close_lane,
            _ => NONE,
        };
        let mut lanes = (0..u16::MAX).zip(self.lanes.as_ref());
        let (at, conn) = lanes.find_map(|(at, lane)| {
            let told = at != answering && lane.replies.is_empty();
            Some((at, lane.conn.filter(|_| told)?))
        })?;
        self.detach(slots, at, None, self.last_heard());
        Some(conn)
    }

    /// CLOSE came over `lane`.
    pub(super) fn close_asked(&mut self, lane: u16) {
        self.close_lane = lane;
        if self.close == Close::No {
            self.close = Close::Finishing;
        }
    }

    /// Whether CLOSE has been received and not been answered.
    pub fn is_closing(&self) -> bool {
        !matches!(self.close, Close::No | Close::Answered)
    }

    pub(super) fn close_flushed(&mut self, status: Status) {
        self.close = if status.is_ok() {
            Close::Releasing(false)
        } else {
            Close::Answer(status)
        };
    }

    /// The lease is released, durably where `status` is OK: CLOSE is answered.
    pub fn closed(&mut self, status: Status) {
        if self.close == Close::Releasing(true) {
            self.close = Close::Answer(status);
            self.close_unheard();
        }
    }

    /// An answer to CLOSE that nobody waits for any more counts as given.
    pub(super) fn close_unheard(&mut self) {
        if self.close_lane == NONE && matches!(self.close, Close::Answer(_)) {
            self.close_answered();
        }
    }

    pub(super) fn has_close_answer(&self, lane: u16) -> bool {
        self.close_lane == lane && matches!(self.close, Close::Answer(_))
    }

    pub(super) fn take_close_answer(&mut self, lane: u16) -> Option<Status> {
        let Close::Answer(status) = self.close else {
            return None;
        };
        if self.close_lane != lane {
            return None;
        }
        self.close_answered();
        Some(status)
    }

    fn close_answered(&mut self) {
        self.close = Close::Answered;
        if self.ended.is_none() {
            self.ended = Some(Status::OK);
        }
    }
}
