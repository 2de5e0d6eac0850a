//! One connection of a session, as the session sees it.
//!
//! A lane is the place of a connection index: it outlives the streams that use it, because the highest generation seen must.
//!
//! Invariants: `receiving` names a slot exactly while that slot is in state Receiving with this lane; `replies` holds
//! the slots whose `pending` is not `None` and whose `lane` is this one; where `conn` is `None` both are empty.

use super::super::proto::Status;
use super::list::{List, QUEUE};

/// The driver's name for one stream: never used twice within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub u32);

/// Why the driver has to close a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// A newer connection of its index has joined.
    Superseded,
    /// Nothing was received for four times the keepalive time.
    Silent,
    /// The session has ended: with OK by CLOSE, else the status says why.
    Ended(Status),
}

/// Memory for one connection index of a session. The driver lends as many as it grants connections.
#[derive(Clone, Debug)]
pub struct Lane {
    pub(super) conn: Option<ConnId>,
    /// Highest generation seen; 0 before any.
    pub(super) generation: u32,
    /// A stream that the driver has not been told to close yet.
    pub(super) stale: Option<(ConnId, CloseReason)>,
    pub(super) receiving: Option<u16>,
    pub(super) replies: List<QUEUE>,
    /// When something was received last.
    pub(super) heard: u64,
    /// PINGs sent since.
    pub(super) pings: u8,
    pub(super) ping: bool,
    /// Id of a PING to answer.
    pub(super) pong: Option<u64>,
    pub(super) changed: bool,
    pub(super) draining: bool,
}

impl Default for Lane {
    fn default() -> Self {
        Lane {
            conn: None,
            generation: 0,
            stale: None,
            receiving: None,
            replies: List::EMPTY,
            heard: 0,
            pings: 0,
            ping: false,
            pong: None,
            changed: false,
            draining: false,
        }
    }
}

impl Lane {
    /// Gives the place to a stream that has just joined.
    pub(super) fn start(&mut self, conn: ConnId, generation: u32, now: u64) {
        *self = Lane {
            conn: Some(conn),
            generation,
            stale: self.stale,
            heard: now,
            ..Lane::default()
        };
    }

    /// Takes the stream off the place. `reason` is there where the driver must be told to close it.
    pub(super) fn stop(&mut self, reason: Option<CloseReason>) {
        let stale = match (self.conn, reason) {
            (Some(conn), Some(reason)) => Some((conn, reason)),
            _ => self.stale,
        };
        *self = Lane {
            generation: self.generation,
            stale,
            ..Lane::default()
        };
    }

    /// Something was received.
    pub(super) fn hear(&mut self, now: u64) {
        self.heard = self.heard.max(now);
        self.pings = 0;
    }

    /// Whether a frame that belongs to no slot waits to be sent.
    pub(super) fn has_control(&self) -> bool {
        self.pong.is_some() || self.ping || self.changed || self.draining
    }
}
