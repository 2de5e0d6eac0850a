//! What arrives: replies, their payload, and what the server says by itself.

use super::super::proto::{Aborted, Changed, Geometry, Header, Kind, Status};
use super::super::rx::Fault;
use super::conn::Link;
use super::event::{CloseReason, FailReason, Phase};
use super::retained::{Entries, Retained};
use super::session::{indices, slot_ref, Session};
use super::slot::{Failure, Slot, Source, State, PIN_RECEIVING, PIN_SENDING};
use super::NONE;

/// What the driver does with a frame after [`Session::handle_frame`] has seen its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// No payload, nothing left to do.
    Nothing,
    /// The payload belongs at byte `at` of slot `slot`; then [`Session::payload_done`].
    Payload {
        /// The slot.
        slot: u16,
        /// First byte within the request.
        at: u32,
    },
    /// The payload belongs to nothing any more: read it and throw it away.
    Discard,
    /// The options of the frame hold the EXTENTS that slot `slot` asked for: take them before the next `poll_event`.
    Extents {
        /// The slot.
        slot: u16,
    },
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// A frame's head came over stream `stream` of connection `index`; the receiver has checked its digest area's length
    /// (see [`super::super::rx::Receiver::accept_payload`], to be called after OPENED and JOINED). An error: close it.
    #[allow(clippy::too_many_arguments)] // The parts are borrowed apart on purpose.
    pub fn handle_frame<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        stream: u32,
        header: &Header,
        options: &[u8],
    ) -> Result<Take, Fault> {
        let Some(conn) = self.conns.get_mut(usize::from(index)) else {
            return Err(Fault::protocol("no such connection"));
        };
        if !conn.is_current(stream) {
            return Err(Fault::protocol("frame of a superseded connection"));
        }
        let live = conn.link == Link::Live;
        let opening = self.phase == Phase::Opening && index == 0;
        match (header.kind, header.reply) {
            (Kind::OPEN, true) if opening && conn.link == Link::Opening && !conn.joining => {
                self.handle_opened(slots, retained, index, header, options)?;
            }
            (Kind::JOIN, true) if conn.link == Link::Opening && conn.joining => {
                self.handle_joined(slots, retained, index, header, options)?;
            }
            (Kind::PING, false) => conn.pong_owed = Some(header.id),
            (Kind::PING, true) => {}
            (Kind::DRAINING, false) => conn.drain(),
            (Kind::ERROR, false) => return Err(Fault::protocol("the server reported an error")),
            (Kind::CHANGED, false) if live => self.handle_changed(options)?,
            (Kind::ABORT, true) if live => {
                let aborted = Aborted::decode(options)
                    .map_err(|_| Fault::protocol("malformed answer to ABORT"))?;
                self.abort_settled(slots, retained, header.slot, header.id, aborted.outcome);
            }
            (Kind::CLOSE, true) if live && self.phase == Phase::Closing && self.close_sent => {
                self.phase = Phase::Closed;
                self.notices.closed = Some(header.status());
                self.close_all(CloseReason::Superseded);
            }
            (kind, true) if live && kind.has_slot() => {
                return self.handle_reply(slots, retained, index, header);
            }
            _ => return Err(Fault::protocol("unexpected frame")),
        }
        Ok(Take::Nothing)
    }

    fn handle_reply<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        header: &Header,
    ) -> Result<Take, Fault> {
        if header.credit_requests() > 0 {
            self.credit = header.credit();
        }
        let unclaimed = if header.payload_len > 0 {
            Take::Discard
        } else {
            Take::Nothing
        };
        let at = header.slot;
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return Err(Fault::protocol("reply to a slot that does not exist"));
        };
        let newest = slot.attempt.wrapping_sub(1);
        if slot.state != State::Out
            || slot.conn != index
            || slot.id != header.id
            || header.attempt != newest
        {
            return Ok(unclaimed);
        }
        if slot.request.kind != header.kind {
            return Err(Fault::protocol("reply of another type than the request"));
        }
        if header.kind == Kind::READ && header.status() == Status::OK {
            if header.payload_len > 0 {
                return self.start_payload(slots, index, header);
            }
            if header.more || u64::from(slot.received) != slot.request.length {
                return Err(Fault::protocol("READ answered without all its data"));
            }
        }
        if header.more || header.payload_len > 0 {
            return Err(Fault::protocol("a reply that can't come in pieces"));
        }
        self.answered(slots, retained, at, header.status());
        self.admit(slots, retained);
        if header.kind == Kind::BLOCK_STATUS && header.status() == Status::OK {
            return Ok(Take::Extents { slot: at });
        }
        Ok(Take::Nothing)
    }

    fn start_payload(
        &mut self,
        slots: &mut [Slot],
        index: u16,
        header: &Header,
    ) -> Result<Take, Fault> {
        let Some(slot) = slots.get_mut(usize::from(header.slot)) else {
            return Err(Fault::protocol("reply to a slot that does not exist"));
        };
        let received = u64::from(slot.received);
        let rest = slot.request.length.saturating_sub(received);
        let length = u64::from(header.payload_len);
        if header.offset != slot.request.offset.saturating_add(received) || length > rest {
            return Err(Fault::protocol("a piece of a READ out of order"));
        }
        if header.more == (length == rest) {
            return Err(Fault::protocol("READ ends too early or too late"));
        }
        slot.pins |= PIN_RECEIVING;
        let at = slot.received;
        if let Some(conn) = self.conn_mut(index) {
            conn.receiving = header.slot;
            conn.receiving_len = header.payload_len;
            conn.receiving_more = header.more;
        }
        Ok(Take::Payload {
            slot: header.slot,
            at,
        })
    }

    /// The payload announced by [`Take::Payload`] has arrived in full; `good`: its digests match.
    pub fn payload_done<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        stream: u32,
        good: bool,
    ) {
        let Some(conn) = self.conns.get_mut(usize::from(index)) else {
            return;
        };
        if !conn.is_current(stream) {
            return;
        }
        let at = core::mem::replace(&mut conn.receiving, NONE);
        let (length, more) = (conn.receiving_len, conn.receiving_more);
        let retries = self.config.retries;
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        slot.pins &= !PIN_RECEIVING;
        match slot.state {
            State::Failing if slot.pins == 0 => return self.finish_failing(slots, at),
            State::Out => {}
            _ => return,
        }
        if !good {
            self.stats.bad_digests = self.stats.bad_digests.saturating_add(1);
            slot.retries = slot.retries.saturating_add(1);
            if slot.retries > retries {
                self.give_up(slots, retained, at);
            } else {
                // What is still under way of this answer names the attempt before.
                self.send_again(slots, at);
            }
            return;
        }
        slot.received = slot.received.saturating_add(length);
        if !more {
            self.answered(slots, retained, at, Status::OK);
            self.admit(slots, retained);
        }
    }

    /// The driver's socket does not refer to the bytes of slot `at` any more (they were handed out by
    /// [`super::Transmit::Write`]).
    pub fn handle_sent<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        stream: u32,
        at: u16,
    ) {
        if self.conn(index).is_none_or(|conn| conn.stream != stream) {
            return;
        }
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if slot.conn != index || slot.pins & PIN_SENDING == 0 {
            return;
        }
        slot.pins &= !PIN_SENDING;
        match slot.state {
            State::Failing if slot.pins == 0 => self.finish_failing(slots, at),
            State::Answered => {
                self.act(slots, retained);
                self.admit(slots, retained);
            }
            _ => {}
        }
    }

    /// The outcome of an open request is known.
    pub(super) fn answered<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        at: u16,
        status: Status,
    ) {
        let retries = self.config.retries;
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if status == Status::RETRY {
            self.stats.bad_digests = self.stats.bad_digests.saturating_add(1);
            slot.retries = slot.retries.saturating_add(1);
            if slot.retries > retries {
                return self.give_up(slots, retained, at);
            }
            if slot.pins == 0 {
                return self.send_again(slots, at);
            }
            // Its socket still has the bytes, and must not while they go out elsewhere.
            let index = slot.conn;
            if let Some(conn) = self.conn_mut(index) {
                conn.close(CloseReason::BadDigest);
            }
            return;
        }
        slot.status = status;
        match slot.state {
            State::Out => self.out = self.out.saturating_sub(1),
            State::Ready => {
                self.ready.remove(slots, at);
            }
            _ => return,
        }
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            slot.state = State::Answered;
        }
        self.answered = self.answered.saturating_add(1);
        if self.may_act(slots, at) {
            self.act_on(slots, retained, at);
            // One more finished id may be what others waited for.
            self.act(slots, retained);
        }
    }

    /// Acts on every known outcome that order and memory permit.
    pub(super) fn act<E: Entries>(&mut self, slots: &mut [Slot], retained: &mut Retained<E>) {
        let mut again = self.answered > 0;
        while again {
            again = false;
            for at in indices(slots) {
                if self.may_act(slots, at) {
                    self.act_on(slots, retained, at);
                    again = self.answered > 0;
                }
            }
        }
    }

    /// Whether the outcome of slot `at` may be acted upon: no socket refers to its memory; a barrier only when all lower
    /// ids have finished here; what follows a barrier only after it.
    fn may_act(&self, slots: &[Slot], at: u16) -> bool {
        let floor = self.window.floor();
        slot_ref(slots, at).is_some_and(|slot| {
            slot.state == State::Answered
                && slot.pins == 0
                && slot.after <= floor
                && (!slot.is_barrier() || slot.id <= floor.wrapping_add(1))
        })
    }

    fn act_on<E: Entries>(&mut self, slots: &mut [Slot], retained: &mut Retained<E>, at: u16) {
        let Some(slot) = slots.get(usize::from(at)) else {
            return;
        };
        let (status, request, source, mark, id) =
            (slot.status, slot.request, slot.source, slot.mark, slot.id);
        self.window.finish(id);
        self.close_slot(slots, at);
        let failure = (status != Status::OK).then_some(Failure::Status(status));
        if let Source::Retained { .. } = source {
            self.finish_slot(slots, at, failure);
            return self.replay_done(slots, retained, status);
        }
        let mut kept = None;
        if request.kind.is_write() {
            if status == Status::OK {
                kept = retained.acknowledge(&request);
            } else {
                retained.unreserve(&request);
            }
        } else if request.kind == Kind::FLUSH && status == Status::OK {
            retained.durable_below(mark);
        }
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            slot.retained = kept;
        }
        self.finish_slot(slots, at, failure);
        let sync_failed =
            status == Status::SYNC_FAILED || request.kind == Kind::FLUSH && status == Status::IO;
        if sync_failed {
            self.fail(slots, retained, FailReason::SyncFailed);
        }
    }

    fn handle_changed(&mut self, options: &[u8]) -> Result<(), Fault> {
        let changed = Changed::decode(options).map_err(|_| Fault::protocol("malformed CHANGED"))?;
        let new = changed.geometry;
        let grown = |old: Geometry| old.size <= new.size && old.logical_block == new.logical_block;
        if !self.geometry.is_some_and(grown) {
            return Err(Fault::protocol(
                "CHANGED to a smaller size or another block size",
            ));
        }
        self.geometry = Some(new);
        self.notices.changed = true;
        Ok(())
    }
}
