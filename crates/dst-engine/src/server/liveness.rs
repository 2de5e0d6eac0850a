//! Signs of life: PING, dead connections, sessions that nobody comes back to (PROTOCOL.md 5.7).
//!
//! A connection is sent a PING after each keepalive time of silence and is dead after four. A *probe* asks whether any
//! connection of the session still answers; one that joins meanwhile is asked too. Every PING of the session carries a
//! number that only rises, so an answer to one sent before the probe does not count for it.

use super::super::proto::Status;
use super::lane::{CloseReason, Lane};
use super::session::{Bits, Lanes, Session};
use super::slot::Slot;

/// Silence of so many keepalive times ends a connection.
const DEAD: u8 = 4;

/// The session's side of liveness.
#[derive(Clone, Debug)]
pub(super) struct Pings {
    /// Number of the PINGs sent now.
    number: u64,
    /// The first number that answers the probe; 0 without one.
    probe: u64,
    answered: bool,
    /// Last sign of life on any connection.
    heard: u64,
    /// Since when there has been no connection.
    alone: Option<u64>,
}

impl Pings {
    pub(super) fn new(now: u64) -> Self {
        Pings {
            number: 1,
            probe: 0,
            answered: false,
            heard: now,
            alone: None,
        }
    }

    pub(super) fn hear(&mut self, now: u64) {
        self.heard = self.heard.max(now);
    }

    pub(super) fn joined(&mut self, now: u64) {
        self.hear(now);
        self.alone = None;
    }

    pub(super) fn left_alone(&mut self, now: u64) {
        self.alone.get_or_insert(now);
    }

    pub(super) fn id(&self) -> u64 {
        self.number
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probe > 0
    }

    /// An answer to PING `id` came.
    pub(super) fn answered(&mut self, id: u64) {
        if self.probe > 0 && (self.probe..=self.number).contains(&id) {
            self.probe = 0;
            self.answered = true;
        }
    }

    pub(super) fn take_answered(&mut self) -> bool {
        core::mem::take(&mut self.answered)
    }
}

impl<W: Bits, L: Lanes> Session<W, L> {
    /// Asks every connection for a sign of life; see [`super::Event::ProbeAnswered`].
    pub fn probe(&mut self) {
        self.pings.number = self.pings.number.saturating_add(1);
        self.pings.probe = self.pings.number;
        self.pings.answered = false;
        for lane in self.lanes.as_mut() {
            lane.ping = lane.conn.is_some();
        }
    }

    /// When something was received last on any connection: the holder's sign of life, for the lease.
    pub fn last_heard(&self) -> u64 {
        self.pings.heard
    }

    /// Since when the session has had no connection, if it has none.
    pub fn alone_since(&self) -> Option<u64> {
        self.pings.alone
    }

    /// The time is now `now`. Asks silent connections, closes dead ones, ends a session left alone for too long.
    pub fn handle_timeout(&mut self, slots: &mut [Slot], now: u64) {
        let keepalive = self.config.keepalive;
        let lanes = u16::try_from(self.lanes.as_ref().len()).unwrap_or(u16::MAX);
        for at in 0..lanes {
            let Some(lane) = self.lane_mut(at).filter(|lane| lane.conn.is_some()) else {
                continue;
            };
            if now >= silent_until(lane, keepalive, DEAD) {
                self.detach(slots, at, Some(CloseReason::Silent), now);
                continue;
            }
            while lane.pings < DEAD && now >= silent_until(lane, keepalive, next_ping(lane)) {
                lane.pings = next_ping(lane);
                lane.ping = true;
            }
        }
        if now >= self.expiry() {
            self.settle(slots, Status::SESSION_LOST);
        }
    }

    /// When [`Session::handle_timeout`] is to be called next, if nothing else happens.
    pub fn next_timeout(&self) -> Option<u64> {
        let keepalive = self.config.keepalive;
        let lanes = self
            .lanes
            .as_ref()
            .iter()
            .filter(|lane| lane.conn.is_some());
        let due = lanes.map(|lane| silent_until(lane, keepalive, next_ping(lane)));
        let earliest = due.chain([self.expiry()]).min();
        earliest.filter(|at| *at < u64::MAX)
    }

    fn expiry(&self) -> u64 {
        match (self.pings.alone, self.ended) {
            (Some(since), None) => since.saturating_add(self.config.session_time),
            _ => u64::MAX,
        }
    }
}

/// How many keepalive times of silence until the next PING, or the end.
fn next_ping(lane: &Lane) -> u8 {
    lane.pings.saturating_add(1).min(DEAD)
}

fn silent_until(lane: &Lane, keepalive: u64, times: u8) -> u64 {
    let silence = keepalive.saturating_mul(u64::from(times));
    lane.heard.saturating_add(silence)
}
