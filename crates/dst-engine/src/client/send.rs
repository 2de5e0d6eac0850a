//! What goes out over a live connection, in this order: answers to PING, ABORT, replays and REPLAYED, requests in order of id,
//! PING, CLOSE.

use super::super::frame::seal;
use super::super::proto::{digest, Header, Kind};
use super::event::Phase;
use super::retained::{Entries, Retained};
use super::session::{indices, Session};
use super::slot::{Slot, Source, State, PIN_SENDING};

/// A request with so many broken connections behind it is sent alone: it may be what breaks them.
pub(super) const SUSPECT_BREAKS: u8 = 3;

/// After so many copies of one request the session is given up for a fresh one, before *attempt* could be taken for an older.
const MOST_ATTEMPTS: u8 = 100;

/// Bytes of a WRITE and where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// The slot of the request.
    pub slot: u16,
    /// The slot's own bytes, or a part of a retained write (by its index in the driver's table).
    pub source: Source,
    /// Bytes.
    pub length: u32,
    /// Where they belong in the export: the seed of their digests.
    pub offset: u64,
}

/// Something to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transmit {
    /// The first so many bytes of the buffer, whole as they are.
    Bytes(usize),
    /// A WRITE: the driver puts the digests of `payload` at `out[HEADER_LEN..HEADER_LEN + header.digest_len]`, calls
    /// [`seal`], sends what that says and then the payload, and reports [`Session::handle_sent`] when its socket no
    /// longer refers to the payload's memory.
    Write {
        /// The header, still without CRCs.
        header: Header,
        /// What follows it.
        payload: Payload,
    },
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// The next thing to send over connection `index`, or nothing. `out` must have room for a header, the options of OPEN
    /// and the largest digest area.
    pub fn poll_transmit<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        out: &mut [u8],
    ) -> Option<Transmit> {
        let conn = self.conn_mut(index)?;
        if !conn.is_live() {
            return None;
        }
        if let Some(id) = conn.pong_owed.take() {
            let pong = Header {
                reply: true,
                id,
                ..Header::new(Kind::PING)
            };
            return bytes(&pong, out);
        }
        if let Some(at) = self.next_abort(slots) {
            return self.send_abort(slots, retained, index, at, out);
        }
        if self.aborts == 0 {
            if let Some(transmit) = self.send_request(slots, retained, index, out) {
                return Some(transmit);
            }
        }
        let conn = self.conn_mut(index)?;
        if core::mem::take(&mut conn.replayed_owed) {
            return bytes(&Header::new(Kind::REPLAYED), out);
        }
        if core::mem::take(&mut conn.ping_owed) {
            let ping = Header {
                id: u64::from(conn.stream),
                ..Header::new(Kind::PING)
            };
            return bytes(&ping, out);
        }
        let settled = self.open_requests == 0 && self.failing == 0 && self.aborts == 0;
        let idle = settled && self.waiting.is_empty();
        if self.phase == Phase::Closing && index == 0 && idle && !self.close_sent {
            self.close_sent = true;
            return bytes(&Header::new(Kind::CLOSE), out);
        }
        None
    }

    fn send_abort<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &Retained<E>,
        index: u16,
        at: u16,
        out: &mut [u8],
    ) -> Option<Transmit> {
        let acked = self.window.floor();
        let abort = &mut slots.get_mut(usize::from(at))?.abort;
        abort.conn = Some(index);
        abort.mark = abort.mark.or(Some(retained.tail()));
        let header = Header {
            slot: at,
            id: abort.id,
            acked,
            ..Header::new(Kind::ABORT)
        };
        bytes(&header, out)
    }

    fn send_request<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        out: &mut [u8],
    ) -> Option<Transmit> {
        if self.conn(index)?.draining {
            return None;
        }
        if self.suspects > 0 && self.out > 0 && !self.must_go_first(slots) {
            return None;
        }
        if self.ready.is_empty() && self.phase == Phase::Replaying {
            if self.replay_complete(retained) && !self.flush_replayed(slots, retained) {
                self.phase = if self.close_wanted {
                    Phase::Closing
                } else {
                    Phase::Live
                };
                self.conn_mut(index)?.replayed_owed = false;
                self.admit(slots, retained);
                return bytes(&Header::new(Kind::REPLAYED), out);
            }
            self.prepare_replay(slots, retained);
        }
        let at = self.ready.pop_front(slots)?;
        let acked = self.window.floor();
        let slot = slots.get_mut(usize::from(at))?;
        slot.state = State::Out;
        slot.conn = index;
        slot.received = 0;
        if slot.breaks > 0 || slot.retries > 0 {
            self.stats.resent = self.stats.resent.saturating_add(1);
        }
        let attempt = slot.attempt;
        slot.attempt = attempt.wrapping_add(1);
        self.out = self.out.saturating_add(1);
        let request = slot.request;
        let after = if slot.after == 0 {
            0
        } else {
            u32::try_from(slot.id.saturating_sub(slot.after)).unwrap_or(u32::MAX)
        };
        let header = Header {
            slot: at,
            op_flags: request.flags,
            attempt,
            id: slot.id,
            acked,
            offset: request.offset,
            length: request.length,
            after,
            ..Header::new(request.kind)
        };
        if request.kind != Kind::WRITE {
            return bytes(&header, out);
        }
        if slot.source == Source::Slot {
            slot.pins |= PIN_SENDING;
        }
        let length = request.payload();
        let area = digest::area_len(self.algorithm, self.granule, request.offset, length);
        Some(Transmit::Write {
            header: Header {
                payload_len: length,
                digest_len: area.unwrap_or(0),
                ..header
            },
            payload: Payload {
                slot: at,
                source: slot.source,
                length,
                offset: request.offset,
            },
        })
    }

    /// Whether what is out may wait, at the server, for the next request to send: a barrier does, for every lower id.
    fn must_go_first(&self, slots: &[Slot]) -> bool {
        let next = self.ready.head().and_then(|at| slots.get(usize::from(at)));
        let out = slots.iter().filter(|slot| slot.state == State::Out);
        let lowest = out.map(|slot| slot.id).min();
        next.zip(lowest)
            .is_some_and(|(next, lowest)| next.id < lowest)
    }

    /// Puts a slot that is out back among those to send.
    pub(super) fn send_again(&mut self, slots: &mut [Slot], at: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if slot.state != State::Out {
            return;
        }
        slot.state = State::Ready;
        slot.received = 0;
        self.out = self.out.saturating_sub(1);
        self.ready.insert_by_id(slots, at);
    }

    /// Stream of connection `index` is gone: the driver holds nothing of it any more, and its socket refers to no slot.
    pub fn handle_lost<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
    ) {
        let Some(conn) = self.conn_mut(index) else {
            return;
        };
        let was_live = conn.link == super::conn::Link::Live;
        conn.reset();
        if was_live {
            self.stats.reconnects = self.stats.reconnects.saturating_add(1);
        }
        if index == 0 {
            self.close_sent = false;
        }
        for at in indices(slots) {
            let Some(slot) = slots.get_mut(usize::from(at)) else {
                break;
            };
            if slot.abort.conn == Some(index) {
                slot.abort.conn = None;
            }
            if slot.conn != index {
                continue;
            }
            slot.pins = 0;
            match slot.state {
                State::Failing => self.finish_failing(slots, at),
                State::Out => {
                    slot.breaks = slot.breaks.saturating_add(1);
                    if slot.breaks == SUSPECT_BREAKS {
                        self.suspects = self.suspects.saturating_add(1);
                    }
                    self.send_again(slots, at);
                }
                _ => {}
            }
        }
        let worn = slots.iter().any(|slot| slot.attempt >= MOST_ATTEMPTS);
        if worn && matches!(self.phase, Phase::Replaying | Phase::Live) {
            self.phase = Phase::Opening;
            self.close_all(super::CloseReason::Superseded);
        }
        self.act(slots, retained);
        self.admit(slots, retained);
    }

    /// Whether slot `at` waits for payload to go out or come in; for tests and the simulation.
    pub fn is_pinned(&self, slots: &[Slot], at: u16) -> bool {
        super::session::slot_ref(slots, at).is_some_and(|slot| slot.pins != 0)
    }
}

/// A frame without options and payload.
fn bytes(header: &Header, out: &mut [u8]) -> Option<Transmit> {
    let length = seal(header, out);
    (length > 0).then_some(Transmit::Bytes(length))
}
