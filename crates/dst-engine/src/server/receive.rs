//! What arrives: which copy of a request counts, what is answered at once, where a payload belongs (PROTOCOL.md 5.1, 5.3).

use super::super::proto::{Header, Kind, OpFlags, Outcome, Status, NO_SLOT};
use super::super::rx::Fault;
use super::ending::Close;
use super::lane::ConnId;
use super::session::{Bits, Lanes, Session};
use super::slot::{Pending, Slot, State};

/// What to do with the payload of the frame just handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// There is none.
    Nothing,
    /// It is the data of the WRITE in `slot`: receive it into fresh memory, replacing whatever is kept for that slot, as
    /// long as [`Session::payload_wanted`]; then call [`Session::payload_done`].
    Payload {
        /// The slot.
        slot: u16,
    },
    /// Throw it away.
    Discard,
}

impl Take {
    fn discard(header: &Header) -> Take {
        if header.payload_len > 0 {
            Take::Discard
        } else {
            Take::Nothing
        }
    }
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// Bytes came over `conn`, whatever they are: a sign of life.
    pub fn handle_received(&mut self, conn: ConnId, now: u64) {
        let Some(at) = self.lane_of(conn) else {
            return;
        };
        self.pings.hear(now);
        if let Some(lane) = self.lane_mut(at) {
            lane.hear(now);
        }
    }

    /// A frame's head came over `conn`: anything but the OPEN, JOIN or LIST that a stream begins with. On a fault the driver
    /// sends ERROR, closes the stream and calls [`Session::conn_lost`].
    pub fn handle_request(
        &mut self,
        slots: &mut [Slot],
        conn: ConnId,
        header: &Header,
        options: &[u8],
        now: u64,
    ) -> Result<Take, Fault> {
        let lane = self.lane_of(conn).ok_or(Fault {
            status: Status::SESSION_LOST,
            text: "the connection is not part of the session",
        })?;
        self.handle_received(conn, now);
        if self
            .lane_mut(lane)
            .is_some_and(|lane| lane.receiving.is_some())
        {
            return Err(Fault::protocol("a frame within a payload"));
        }
        if self.ended.is_some() {
            return Ok(Take::discard(header));
        }
        let kind = header.kind;
        if header.reply {
            if kind != Kind::PING {
                return Err(Fault::protocol("a reply to nothing"));
            }
            self.pings.answered(header.id);
            return Ok(Take::Nothing);
        }
        match kind {
            Kind::PING => {
                if let Some(lane) = self.lane_mut(lane) {
                    lane.pong = Some(header.id);
                }
            }
            Kind::ABORT => self.abort(slots, lane, header)?,
            Kind::CLOSE => self.close_asked(lane),
            Kind::REPLAYED => self.replayed = true,
            Kind::ERROR => {
                return Err(Fault {
                    status: header.status(),
                    text: "the client ended the connection",
                })
            }
            _ if kind.has_slot() || !kind.is_known() && header.slot != NO_SLOT => {
                return self.slot_request(slots, lane, header, options);
            }
            _ => return Err(Fault::protocol("a frame in the wrong place")),
        }
        Ok(Take::Nothing)
    }

    fn slot_request(
        &mut self,
        slots: &mut [Slot],
        lane: u16,
        header: &Header,
        options: &[u8],
    ) -> Result<Take, Fault> {
        let (at, id) = (header.slot, header.id);
        self.check_place(at, id)?;
        if at == self.flush_slot() && header.kind != Kind::FLUSH {
            return Err(Fault::protocol("the highest slot is for FLUSH alone"));
        }
        self.note_acked(header.acked)?;
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return Err(NO_SUCH_SLOT);
        };
        if id < slot.id {
            return Ok(Take::discard(header));
        }
        if id > slot.id {
            if !slot.is_finished() {
                return Err(SLOT_IN_USE);
            }
            if self.window.is_finished(id) {
                return Err(ID_USED);
            }
            return self.arrive(slots, lane, header, options);
        }
        let same = slot.kind == header.kind
            && slot.offset == header.offset
            && slot.length == header.length;
        if !same && (slot.in_progress() || slot.state == State::Done) {
            return Err(Fault::protocol("an id used for two requests"));
        }
        if !slot.is_newer(header.attempt) {
            return Ok(Take::discard(header));
        }
        match slot.state {
            State::Empty => return self.arrive(slots, lane, header, options),
            State::Receiving if slot.lane == lane => {
                return Err(Fault::protocol("a request sent twice on one connection"));
            }
            State::Receiving => return self.arrive(slots, lane, header, options),
            State::Executing if slot.abort => {}
            State::Held | State::Ready | State::Executing => {
                slot.lane = lane;
                slot.attempt = header.attempt;
            }
            State::Done if slot.is_reread() && !slot.data => {
                return self.arrive(slots, lane, header, options);
            }
            State::Done => {
                self.unqueue(slots, at);
                if let Some(slot) = slots.get_mut(usize::from(at)) {
                    slot.lane = lane;
                    slot.attempt = header.attempt;
                    slot.sent = 0;
                }
                self.answer(slots, at, Pending::Answer);
            }
            State::Settling | State::Aborted => {}
        }
        Ok(Take::discard(header))
    }

    /// Slot and id of a request or an ABORT are ones that the client may use.
    pub(super) fn check_place(&self, at: u16, id: u64) -> Result<(), Fault> {
        if at >= self.slots {
            return Err(NO_SUCH_SLOT);
        }
        let window = self.window.capacity();
        let window = window.min(u64::from(self.config.limits.window));
        if id == 0 || id > self.window.floor().saturating_add(window) {
            return Err(Fault::protocol("an id outside the window"));
        }
        Ok(())
    }

    /// The client holds the outcome of every id up to `acked`.
    pub(super) fn note_acked(&mut self, acked: u64) -> Result<(), Fault> {
        if acked > self.window.floor() {
            return Err(Fault::protocol("acknowledges what has not finished"));
        }
        self.acked = self.acked.max(acked);
        Ok(())
    }

    /// A copy that counts: a new id, one that has not arrived yet, or a READ to be executed again.
    fn arrive(
        &mut self,
        slots: &mut [Slot],
        lane: u16,
        header: &Header,
        options: &[u8],
    ) -> Result<Take, Fault> {
        if self.close != Close::No {
            return Err(Fault::protocol("a new request after CLOSE"));
        }
        let (at, id) = (header.slot, header.id);
        let after = u64::from(header.after);
        if after >= id {
            return Err(Fault::protocol("a request after none of its session"));
        }
        let mut not_before = 0;
        if after > 0 {
            not_before = id.saturating_sub(after);
        }
        if header.op_flags.contains(OpFlags::BARRIER) {
            not_before = id.saturating_sub(1);
        }
        self.check_credit(slots, at, header.payload_len)?;
        self.vacate(slots, at);
        let refused = self.refusal(header, options);
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return Err(NO_SUCH_SLOT);
        };
        *slot = Slot {
            id,
            offset: header.offset,
            length: header.length,
            not_before,
            payload: header.payload_len,
            kind: header.kind,
            attempt: header.attempt,
            flags: header.op_flags,
            outcome: Outcome::NeverExecuted,
            lane,
            counted: true,
            dropped: slot.dropped,
            ..Slot::default()
        };
        if at != self.flush_slot() {
            self.in_use = self.in_use.saturating_add(1);
        }
        self.bytes = self.bytes.saturating_add(u64::from(header.payload_len));
        if !header.op_flags.contains(OpFlags::REPLAY) {
            self.replayed = true;
        }
        if let Some(status) = refused {
            slot.status = status;
            slot.state = State::Done;
            self.answer(slots, at, Pending::Answer);
            self.finish(slots, id);
            return Ok(Take::discard(header));
        }
        if header.kind == Kind::WRITE {
            slot.state = State::Receiving;
            self.replaced(slot);
            if let Some(lane) = self.lane_mut(lane) {
                lane.receiving = Some(at);
            }
            self.writes.push_back(slots, at);
            return Ok(Take::Payload { slot: at });
        }
        if header.kind.is_write() {
            self.writes.push_back(slots, at);
        }
        self.schedule(slots, at);
        self.release_held(slots);
        Ok(Take::Nothing)
    }

    /// Whether a request in `at`, instead of what is there, keeps within the highest credit ever given.
    fn check_credit(&self, slots: &[Slot], at: u16, payload: u32) -> Result<(), Fault> {
        let counted = slots.get(usize::from(at)).filter(|slot| slot.counted);
        let full = self.in_use >= self.highest_credit.requests;
        if at != self.flush_slot() && full && counted.is_none() {
            return Err(Fault::protocol("more requests than the credit"));
        }
        let before = counted.map_or(0, |slot| u64::from(slot.payload));
        let others = self.bytes.saturating_sub(before);
        let bytes = others.saturating_add(u64::from(payload));
        if payload > 0 && bytes > u64::from(self.highest_credit.bytes) {
            return Err(Fault::protocol("more bytes than the credit"));
        }
        Ok(())
    }

    /// Whether the payload that `conn` is receiving still belongs to a slot. If not, the driver throws the rest of it away and
    /// no longer touches the slot's memory. To be asked before each part is put there.
    pub fn payload_wanted(&self, conn: ConnId) -> bool {
        let lanes = self.lanes.as_ref();
        lanes
            .iter()
            .any(|lane| lane.conn == Some(conn) && lane.receiving.is_some())
    }

    /// The payload of the WRITE that `conn` was receiving is there; `good` tells whether its digests are. Ignored where it
    /// is no longer wanted.
    pub fn payload_done(&mut self, slots: &mut [Slot], conn: ConnId, good: bool) {
        let Some(lane) = self.lane_of(conn) else {
            return;
        };
        let Some(at) = self.lane_mut(lane).and_then(|lane| lane.receiving.take()) else {
            return;
        };
        if good {
            self.schedule(slots, at);
            return;
        }
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        let counted = core::mem::take(&mut slot.counted);
        self.vacate(slots, at);
        if let Some(slot) = slots.get_mut(usize::from(at)) {
            // Counts until the RETRY is handed out.
            slot.counted = counted;
        }
        self.answer(slots, at, Pending::Retry);
        self.release_held(slots);
    }
}

pub(super) const NO_SUCH_SLOT: Fault = Fault::protocol("no such slot");
pub(super) const SLOT_IN_USE: Fault = Fault::protocol("a slot used before its outcome is known");
pub(super) const ID_USED: Fault = Fault::protocol("an id used in two slots");
