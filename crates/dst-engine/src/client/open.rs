//! The start of a connection, and of a session.
//!
//! A new stream carries HELLO and then OPEN, where there is no session, or JOIN. OPEN asks for the export that the device
//! already is, once it is one: its id, and for a writer its epoch, must be unchanged. A fresh session ends what the lost one
//! knew: ids begin anew, ABORTs are forgotten, and every open request waits for a new id in its old order, behind the
//! replay of what is retained.

use super::super::frame::seal;
use super::super::proto::{
    proof, ClientName, Digests, Expect, ExportName, ExportState, Geometry, Header, Hello, Join,
    JoinRequest, Joined, Kind, Limits, Mode, OpenRequest, Opened, Role, SlotState, Status,
    HELLO_LEN, HELLO_MAX,
};
use super::super::rx::Fault;
use super::conn::{Conn, Link};
use super::event::{CloseReason, FailReason, Phase};
use super::retained::{Entries, Retained};
use super::session::{indices, slot_ref, Session};
use super::slot::{Slot, State};
use super::NONE;

/// Nanoseconds in a millisecond.
const MILLISECOND: u64 = 1_000_000;

/// What a client calls things, for OPEN.
#[derive(Debug, Clone, Copy)]
pub struct Names<'n> {
    /// The export.
    pub export: ExportName<'n>,
    /// The client, for people.
    pub client: ClientName<'n>,
    /// The implementation.
    pub implementation: &'n str,
}

/// The server's HELLO and what this end adds to answer it.
#[derive(Debug, Clone, Copy)]
pub struct Greeting<'g> {
    /// The server's HELLO as it came.
    pub hello: &'g [u8],
    /// Random, new for each stream.
    pub nonce: [u8; 16],
    /// The exporter of the secure channel (RFC 9266), zeroes without one.
    pub binding: [u8; 32],
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// A stream for connection `index` is there. Answers its number, which later calls name. The next thing to come is the
    /// server's HELLO.
    pub fn handle_connected(&mut self, index: u16, now: u64) -> u32 {
        self.conn_mut(index).map_or(0, |conn| conn.start(now))
    }

    /// The server's HELLO came. Writes what to send in answer (HELLO, then OPEN or JOIN) to `out`, which should hold 2 KiB, and
    /// tells its length.
    pub fn handle_hello<E: Entries>(
        &mut self,
        retained: &Retained<E>,
        index: u16,
        stream: u32,
        greeting: &Greeting<'_>,
        names: &Names<'_>,
        out: &mut [u8],
    ) -> Result<usize, Fault> {
        let opening = self.phase == Phase::Opening;
        let Some(conn) = self.conns.get_mut(usize::from(index)) else {
            return Err(Fault::protocol("no such connection"));
        };
        if !conn.is_current(stream) || conn.link != Link::Hello {
            return Err(Fault::protocol("HELLO in the wrong place"));
        }
        if opening && index != 0 {
            // It was on its way to a session that is lost.
            return Err(Fault::protocol("no session for this connection"));
        }
        if greeting.hello.len() > HELLO_MAX {
            return Err(Fault::protocol("HELLO too long"));
        }
        let theirs = Hello::decode(greeting.hello).map_err(Fault::from)?;
        if theirs.role != Role::Server {
            return Err(Fault::protocol("the other end is a client too"));
        }
        let ours = Hello::new(Role::Client, greeting.nonce, names.implementation);
        Hello::negotiate(&ours, &theirs).map_err(Fault::from)?;
        conn.link = Link::Opening;
        conn.joining = !opening;
        conn.generation = if opening {
            1
        } else {
            conn.generation.wrapping_add(1)
        };
        let generation = conn.generation;

        const SHORT: Fault = Fault::protocol("no room for the handshake");
        let (hello, rest) = out.split_first_chunk_mut::<HELLO_LEN>().ok_or(SHORT)?;
        ours.encode(hello);
        let options = rest
            .get_mut(super::super::proto::HEADER_LEN..)
            .ok_or(SHORT)?;
        let (kind, written) = if opening {
            let open = self.open_request(retained, theirs.nonce, names);
            (Kind::OPEN, open.encode(options))
        } else {
            let join = Join {
                session: self.number,
                generation,
                index,
            };
            let transcript = proof::Transcript {
                server_hello: greeting.hello,
                client_hello: hello,
                binding: &greeting.binding,
            };
            let request = JoinRequest {
                nonce: theirs.nonce,
                join,
                proof: proof::join_proof(&self.secret, &transcript, &join).ok_or(SHORT)?,
            };
            (Kind::JOIN, request.encode(options))
        };
        let written = written.map_err(|_| SHORT)?;
        let header = Header {
            acked: self.window.floor(),
            options_len: u16::try_from(written).map_err(|_| SHORT)?,
            ..Header::new(kind)
        };
        Ok(HELLO_LEN.saturating_add(seal(&header, rest)))
    }

    fn open_request<'n, E: Entries>(
        &self,
        retained: &Retained<E>,
        nonce: [u8; 16],
        names: &Names<'n>,
    ) -> OpenRequest<'n> {
        let writable = self.config.writable;
        OpenRequest {
            name: names.export,
            nonce,
            mode: if writable {
                Mode::SoleWriter
            } else {
                Mode::ReadOnly
            },
            limits: self.config.limits,
            digests: Digests {
                mask: self.config.digests,
                granule: self.config.granule,
            },
            holder: writable.then_some(self.config.holder),
            client: names.client,
            expect: self.export.map(|export| Expect {
                export: export.id,
                epoch: export.epoch,
            }),
            retained: self.export.map(|_| super::super::proto::Retained {
                entries: u32::try_from(retained.entries()).unwrap_or(u32::MAX),
                bytes: retained.bytes(),
            }),
        }
    }

    pub(super) fn handle_opened<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        header: &Header,
        options: &[u8],
    ) -> Result<(), Fault> {
        if header.status() != Status::OK {
            self.refused(slots, retained, index, header.status());
            return Ok(());
        }
        let opened = Opened::decode(options).map_err(|_| Fault::protocol("malformed OPENED"))?;
        self.check_terms(&opened)?;
        let before = self.export.replace(opened.export);
        if let Some(reason) = self.unusable(retained, before.as_ref(), &opened) {
            self.end_for_good(slots, retained, reason);
            return Ok(());
        }
        let grown = |old: Geometry| old.size < opened.geometry.size;
        self.notices.changed |= self.geometry.is_some_and(grown);
        self.geometry = Some(opened.geometry);
        self.number = opened.session.number;
        self.secret = opened.session.secret;
        // From the first session on, what was granted is what is asked; but for what may change from one to the next.
        self.config.limits = Limits {
            connections: self.config.limits.connections,
            credit_bytes: self.config.limits.credit_bytes,
            ..opened.limits
        };
        self.granted_connections = opened.limits.connections;
        self.granted_credit_bytes = opened.limits.credit_bytes;
        self.algorithm = opened.digests.algorithm;
        self.granule = opened.digests.granule;
        self.keepalive = u64::from(opened.times.keepalive_ms).saturating_mul(MILLISECOND);
        self.credit = header.credit();
        self.start_anew(slots, retained);
        for conn in &mut self.conns {
            conn.generation = 0;
        }
        if let Some(conn) = self.conn_mut(index) {
            conn.generation = 1;
            conn.link = Link::Live;
        }
        let fresh = before.is_some();
        if fresh {
            self.stats.fresh_sessions = self.stats.fresh_sessions.saturating_add(1);
        }
        self.notices.opened = Some(fresh);
        self.start_replay(retained);
        Ok(())
    }

    /// Terms that no server may give.
    fn check_terms(&self, opened: &Opened) -> Result<(), Fault> {
        let asked = &self.config.limits;
        let limits = &opened.limits;
        let within = limits.slots <= asked.slots
            && limits.connections >= 1
            && limits.connections <= asked.connections
            && limits.max_payload <= asked.max_payload
            && limits.window <= asked.window
            && limits.slots >= super::REPLAY_SLOTS.saturating_add(2)
            && limits.window > 0;
        let digest = opened.digests.algorithm.mask_bit() & self.config.digests != 0;
        if within && digest {
            Ok(())
        } else {
            Err(Fault::protocol("OPENED with terms beyond what was asked"))
        }
    }

    /// Why the device can't go on with what it was granted.
    fn unusable<E: Entries>(
        &self,
        retained: &Retained<E>,
        before: Option<&ExportState>,
        opened: &Opened,
    ) -> Option<FailReason> {
        let before = before?;
        let (known, granted) = (&self.config.limits, &opened.limits);
        // What the front end announced, and the requests under way, rest on these.
        if granted.slots != known.slots
            || granted.max_payload != known.max_payload
            || granted.window != known.window
        {
            return Some(FailReason::GeometryChanged);
        }
        if before.id != opened.export.id {
            return Some(FailReason::ExportChanged);
        }
        if self.config.writable && before.epoch != opened.export.epoch {
            return Some(FailReason::LeaseLost);
        }
        let lost = before.incarnation != opened.export.incarnation;
        if lost && retained.is_dirty() && !retained.is_enabled() {
            return Some(FailReason::WritesLost);
        }
        let changed = |old: &Geometry, new: &Geometry| {
            old.size > new.size || old.logical_block != new.logical_block
        };
        match &self.geometry {
            Some(old) if changed(old, &opened.geometry) => Some(FailReason::GeometryChanged),
            _ => None,
        }
    }

    /// Every open request waits for an id of the new session, in its old order and ahead of those that had none.
    fn start_anew<E: Entries>(&mut self, slots: &mut [Slot], retained: &mut Retained<E>) {
        self.forget_aborts(slots);
        for at in indices(slots) {
            let internal = self.is_internal(at);
            let Some(slot) = slots.get_mut(usize::from(at)) else {
                break;
            };
            match slot.state {
                State::Out | State::Answered if !internal => {
                    slot.state = State::Ready;
                    self.ready.insert_by_id(slots, at);
                }
                State::Ready | State::Out | State::Answered if internal => {
                    if slot.state == State::Ready {
                        self.ready.remove(slots, at);
                    }
                    if let Some(slot) = slots.get_mut(usize::from(at)) {
                        *slot = Slot::default();
                    }
                }
                _ => {}
            }
        }
        let mut previous = NONE;
        while let Some(at) = self.ready.pop_front(slots) {
            let Some(slot) = slots.get_mut(usize::from(at)) else {
                break;
            };
            retained.unreserve(&slot.request);
            slot.state = State::Waiting;
            slot.carried = true;
            slot.id = 0;
            slot.after = 0;
            slot.conn = NONE;
            slot.pins = 0;
            slot.received = 0;
            slot.attempt = 0;
            slot.retries = 0;
            self.waiting.insert_after(slots, previous, at);
            previous = at;
        }
        self.open_requests = 0;
        self.open_bytes = 0;
        self.out = 0;
        self.answered = 0;
        self.suspects = 0;
        self.barrier = 0;
        self.next_id = 1;
        self.window.reset();
    }

    pub(super) fn handle_joined<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        header: &Header,
        options: &[u8],
    ) -> Result<(), Fault> {
        if header.status() != Status::OK {
            self.refused(slots, retained, index, header.status());
            return Ok(());
        }
        let joined = Joined::decode(options).map_err(|_| Fault::protocol("malformed JOINED"))?;
        let same = |known: ExportState| {
            known.id == joined.export.id && known.incarnation == joined.export.incarnation
        };
        if !self.export.is_some_and(same) {
            return Err(Fault::protocol("JOINED another incarnation of the export"));
        }
        self.export = Some(joined.export);
        if header.credit_requests() > 0 {
            self.credit = header.credit();
        }
        let live = self.phase == Phase::Live;
        if let Some(conn) = self.conn_mut(index) {
            conn.link = Link::Live;
            // The first may have been lost with its connection.
            conn.replayed_owed = live && index == 0;
        }
        for entry in joined.slots {
            let matches = slot_ref(slots, entry.slot).is_some_and(|slot| {
                slot.state == State::Ready && slot.id == entry.id && slot.attempt > 0
            });
            // What read has to be read again; what is in progress is sent again and waits there.
            let keeps_outcome = slot_ref(slots, entry.slot).is_some_and(|slot| {
                slot.request.kind.is_write() || slot.request.kind == Kind::FLUSH
            });
            if matches && keeps_outcome && entry.state == SlotState::Done {
                self.answered(slots, retained, entry.slot, entry.status);
            }
        }
        let grown = self.geometry.filter(|old| old.size < joined.geometry.size);
        if grown.is_some() {
            self.geometry = Some(joined.geometry);
            self.notices.changed = true;
        }
        self.admit(slots, retained);
        Ok(())
    }

    /// OPEN or JOIN was refused. The stream is closed; most refusals are tried again.
    fn refused<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        index: u16,
        status: Status,
    ) {
        let had_session = self.export.is_some();
        if status != Status::SESSION_LOST {
            self.notices.refused = Some(status);
        }
        match status {
            // A reader has no lease to give back.
            Status::SESSION_LOST
                if self.phase == Phase::Closing && !self.config.writable && !self.has_open() =>
            {
                self.end_well(slots);
            }
            Status::SESSION_LOST => {
                // Only the CLOSE of a session that is known gives the lease back.
                self.close_wanted |= self.phase == Phase::Closing;
                // A fresh session only when nothing of the lost one is under way any more.
                self.phase = Phase::Opening;
                self.close_all(CloseReason::Refused);
            }
            Status::EXPORT_CHANGED if had_session => {
                self.end_for_good(slots, retained, FailReason::ExportChanged);
            }
            Status::LEASE_LOST if had_session => {
                self.end_for_good(slots, retained, FailReason::LeaseLost);
            }
            Status::SYNC_FAILED if had_session && self.config.writable => {
                self.end_for_good(slots, retained, FailReason::SyncFailed);
            }
            Status::NOT_ADMITTED if had_session => {
                self.end_for_good(slots, retained, FailReason::NotAdmitted);
            }
            Status::READ_ONLY | Status::UNSUPPORTED | Status::INVALID | Status::PROTOCOL
                if had_session =>
            {
                self.end_for_good(slots, retained, FailReason::Refused(status));
            }
            _ => {
                if let Some(conn) = self.conn_mut(index) {
                    conn.close(CloseReason::Refused);
                }
            }
        }
    }

    /// The device can't go on. One that is to be closed, and has nothing open and nothing that is not durable, need not.
    fn end_for_good<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        reason: FailReason,
    ) {
        let closing = self.close_wanted || self.phase == Phase::Closing;
        if self.has_open() || !closing || retained.is_dirty() {
            return self.fail(slots, retained, reason);
        }
        self.end_well(slots);
    }

    /// Whether any request has not been answered.
    fn has_open(&self) -> bool {
        self.open_requests > 0 || !self.waiting.is_empty()
    }

    /// Closed, with nothing that could be lost.
    fn end_well(&mut self, slots: &mut [Slot]) {
        self.phase = Phase::Closed;
        self.notices.closed = Some(Status::OK);
        self.close_all(CloseReason::Superseded);
        self.forget_aborts(slots);
    }

    /// Whether no stream is left of any connection.
    pub(super) fn all_down(&self) -> bool {
        self.conns.iter().all(Conn::is_down)
    }
}
