//! The state of a server's session, and what all its rules share.
//!
//! # Invariants
//!
//! * `in_use` and `bytes` are the sums over the slots that are `counted` (the FLUSH slot aside for `in_use`).
//! * `executing` is the number of slots in state Executing; the held, ready and write lists hold what `slot.rs` says.
//! * An id is finished in the window exactly when its slot reached Done, Settling or Aborted once.
//! * Once `ended` is set it stays, nothing starts, and the only replies left are of status SYNC_FAILED.

use super::super::proto::{Credit, DigestChoice, Geometry, Limits, Status};
use super::super::window::IdWindow;
use super::ending::Close;
use super::execute::Flush;
use super::lane::{ConnId, Lane};
use super::list::{List, QUEUE, WRITES};
use super::liveness::Pings;
use super::slot::{Pending, Slot, State};
use super::NONE;

/// Memory for the bitmap of finished ids.
pub trait Bits: AsRef<[u64]> + AsMut<[u64]> {}
impl<T: AsRef<[u64]> + AsMut<[u64]>> Bits for T {}

/// Memory for the connections of a session.
pub trait Lanes: AsRef<[Lane]> + AsMut<[Lane]> {}
impl<T: AsRef<[Lane]> + AsMut<[Lane]>> Lanes for T {}

/// What was granted in OPENED, and how this server behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Public number of the session.
    pub number: u64,
    /// The shape of the export.
    pub geometry: Geometry,
    /// The limits granted. Slots beyond the lent table and a window beyond the lent bitmap are not used.
    pub limits: Limits,
    /// Whether the session was opened to write.
    pub writable: bool,
    /// Digest algorithm and granule of payloads.
    pub digests: DigestChoice,
    /// Most bytes of READ data in one frame; see [`super::PIECE`].
    pub piece: u32,
    /// Silence, in nanoseconds, after which a PING goes out; four times as long ends a connection.
    pub keepalive: u64,
    /// Nanoseconds without a connection after which the session ends.
    pub session_time: u64,
}

/// One client's use of an export. `W` is memory for one bit of each id in the window, `L` for the connections.
#[derive(Debug)]
pub struct Session<W, L> {
    pub(super) config: Config,
    pub(super) window: IdWindow<W>,
    pub(super) lanes: L,
    /// Slots in use: the lent table or what was granted, whichever is less.
    pub(super) slots: u16,
    /// Every id up to this one is acknowledged by the client.
    pub(super) acked: u64,
    pub(super) credit: Credit,
    pub(super) highest_credit: Credit,
    pub(super) in_use: u16,
    pub(super) bytes: u64,
    pub(super) held: List<QUEUE>,
    pub(super) ready: List<QUEUE>,
    pub(super) writes: List<WRITES>,
    pub(super) executing: u16,
    /// Slots in state Settling for which no flush runs yet.
    pub(super) settling: u16,
    /// Slots whose bytes at the driver are of no use, not yet told.
    pub(super) dropped: u16,
    pub(super) flush: Flush,
    pub(super) gate: bool,
    pub(super) replayed: bool,
    pub(super) replayed_told: bool,
    pub(super) close: Close,
    /// Where CLOSE is to be answered; `NONE` where that connection is lost.
    pub(super) close_lane: u16,
    pub(super) ended: Option<Status>,
    pub(super) settled_told: bool,
    pub(super) over_told: bool,
    pub(super) pings: Pings,
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// A fresh session whose first connection, index 0 and generation 1, is `conn`. Resets the lent memory.
    pub fn new(
        config: Config,
        window: W,
        mut lanes: L,
        slots: &mut [Slot],
        conn: ConnId,
        now: u64,
    ) -> Self {
        slots.fill(Slot::default());
        lanes.as_mut().fill(Lane::default());
        if let Some(first) = lanes.as_mut().first_mut() {
            first.start(conn, 1, now);
        }
        let table = u16::try_from(slots.len()).unwrap_or(u16::MAX);
        let slots = table.min(config.limits.slots);
        let credit = Credit {
            requests: slots.saturating_sub(1),
            bytes: config.limits.credit_bytes,
        };
        Session {
            config,
            window: IdWindow::new(window),
            lanes,
            slots,
            acked: 0,
            credit,
            highest_credit: credit,
            in_use: 0,
            bytes: 0,
            held: List::EMPTY,
            ready: List::EMPTY,
            writes: List::EMPTY,
            executing: 0,
            settling: 0,
            dropped: 0,
            flush: Flush::None,
            gate: false,
            replayed: false,
            replayed_told: false,
            close: Close::No,
            close_lane: NONE,
            ended: None,
            settled_told: false,
            over_told: false,
            pings: Pings::new(now),
        }
    }

    /// Public number of the session.
    pub fn number(&self) -> u64 {
        self.config.number
    }

    /// Whether the client has replayed what it had retained.
    pub fn has_replayed(&self) -> bool {
        self.replayed
    }

    /// Whether the session may write.
    pub fn is_writable(&self) -> bool {
        self.config.writable
    }

    /// The shape of the export as the client was told last.
    pub fn geometry(&self) -> &Geometry {
        &self.config.geometry
    }

    /// Digest algorithm and granule of payloads.
    pub fn digests(&self) -> DigestChoice {
        self.config.digests
    }

    /// The credit that replies carry; what the reply to OPEN should carry too.
    pub fn credit(&self) -> Credit {
        self.credit
    }

    /// Changes the credit that replies carry from now on; at least one request. What was granted before stays allowed.
    pub fn set_credit(&mut self, credit: Credit) {
        self.credit = Credit {
            requests: credit
                .requests
                .clamp(1, self.slots.saturating_sub(1).max(1)),
            bytes: credit.bytes,
        };
    }

    /// Requests that have been received and not been answered.
    pub fn unanswered(&self) -> u16 {
        self.in_use
    }

    /// Bytes of WRITE payload that are here or arriving and have not been answered.
    pub fn unanswered_bytes(&self) -> u64 {
        self.bytes
    }

    /// Requests that the backend has.
    pub fn executing(&self) -> u16 {
        self.executing
    }

    /// Requests that wait for a barrier, an overlapping write or the gate, or to be taken by `poll_execute`.
    pub fn is_waiting(&self) -> bool {
        !self.held.is_empty() || !self.ready.is_empty()
    }

    /// Connections that live.
    pub fn connections(&self) -> u16 {
        let lanes = self.lanes.as_ref().iter();
        lanes.fold(0, |live: u16, lane| {
            live.saturating_add(u16::from(lane.conn.is_some()))
        })
    }

    /// The size or the flags of the export have changed: every connection is sent CHANGED. Never smaller.
    pub fn set_geometry(&mut self, geometry: Geometry) {
        self.config.geometry = geometry;
        for lane in self.lanes.as_mut() {
            lane.changed = lane.conn.is_some();
        }
    }

    /// The server is about to stop: every connection is sent DRAINING, and what comes is still served.
    pub fn drain(&mut self) {
        for lane in self.lanes.as_mut() {
            lane.draining = lane.conn.is_some();
        }
    }

    /// Whether nothing is in progress and nothing is left to send: a drained session can be closed.
    pub fn is_idle(&self) -> bool {
        let quiet = |lane: &Lane| {
            lane.receiving.is_none() && lane.replies.is_empty() && !lane.has_control()
        };
        let waits = self.is_waiting() || self.settling > 0 || !self.settled();
        !waits && !self.is_closing() && self.lanes.as_ref().iter().all(quiet)
    }

    /// The highest slot is for FLUSH alone.
    pub(super) fn flush_slot(&self) -> u16 {
        self.slots.wrapping_sub(1)
    }

    /// The index of the lane that `conn` uses.
    pub(super) fn lane_of(&self, conn: ConnId) -> Option<u16> {
        let found = |lane: &Lane| lane.conn == Some(conn);
        let at = self.lanes.as_ref().iter().position(found)?;
        u16::try_from(at).ok()
    }

    pub(super) fn lane_mut(&mut self, at: u16) -> Option<&mut Lane> {
        self.lanes.as_mut().get_mut(usize::from(at))
    }

    /// The request in `at` has a new way to be answered, or none: then the outcome is kept for a resend or JOIN.
    pub(super) fn answer(&mut self, slots: &mut [Slot], at: u16, pending: Pending) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        let lane = self.lanes.as_mut().get_mut(usize::from(slot.lane));
        match lane.filter(|lane| lane.conn.is_some()) {
            Some(lane) => {
                slot.pending = pending;
                lane.replies.push_back(slots, at);
            }
            None => {
                self.uncount(slot, at);
                self.drop_data(slot);
            }
        }
    }

    /// Takes back what `at` was going to say.
    pub(super) fn unqueue(&mut self, slots: &mut [Slot], at: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if core::mem::take(&mut slot.pending) == Pending::None {
            return;
        }
        let lane = slot.lane;
        if let Some(lane) = self.lanes.as_mut().get_mut(usize::from(lane)) {
            lane.replies.remove(slots, at);
        }
    }

    /// Makes `at` Empty, whatever it was but Executing: out of every list, out of the credit, its bytes of no use.
    pub(super) fn vacate(&mut self, slots: &mut [Slot], at: u16) {
        self.unqueue(slots, at);
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        let (state, lane, write) = (slot.state, slot.lane, slot.kind.is_write());
        let unfinished = matches!(state, State::Receiving | State::Held | State::Ready);
        if state == State::Executing {
            return;
        }
        self.uncount(slot, at);
        if unfinished && slot.payload > 0 {
            self.mark_dropped(slot);
        }
        self.drop_data(slot);
        if state == State::Settling && !slot.flushing {
            self.settling = self.settling.saturating_sub(1);
        }
        slot.state = State::Empty;
        match state {
            State::Receiving => {
                if let Some(lane) = self.lane_mut(lane) {
                    lane.receiving = None;
                }
            }
            State::Held => self.held.remove(slots, at),
            State::Ready => self.ready.remove(slots, at),
            _ => {}
        }
        if unfinished && write {
            self.writes.remove(slots, at);
        }
    }

    /// The request counts against the credit no more.
    pub(super) fn uncount(&mut self, slot: &mut Slot, at: u16) {
        if !core::mem::take(&mut slot.counted) {
            return;
        }
        if at != self.flush_slot() {
            self.in_use = self.in_use.saturating_sub(1);
        }
        self.bytes = self.bytes.saturating_sub(u64::from(slot.payload));
    }

    /// What was read is of no use any more.
    pub(super) fn drop_data(&mut self, slot: &mut Slot) {
        if core::mem::take(&mut slot.data) {
            self.mark_dropped(slot);
        }
    }

    fn mark_dropped(&mut self, slot: &mut Slot) {
        if !slot.dropped {
            slot.dropped = true;
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// The driver is about to replace what it keeps for the slot.
    pub(super) fn replaced(&mut self, slot: &mut Slot) {
        if core::mem::take(&mut slot.dropped) {
            self.dropped = self.dropped.saturating_sub(1);
        }
    }

    /// A slot whose bytes at the driver are of no use, once.
    pub(super) fn take_dropped(&mut self, slots: &mut [Slot]) -> Option<u16> {
        if self.dropped == 0 {
            return None;
        }
        let mut all = (0..u16::MAX).zip(slots.iter_mut());
        let found = all.find(|(_, slot)| slot.dropped);
        let Some((at, slot)) = found else {
            self.dropped = 0;
            return None;
        };
        self.replaced(slot);
        Some(at)
    }
}
