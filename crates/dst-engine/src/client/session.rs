//! The state of a client's session, its phases and its events.

use super::super::proto::{Algorithm, Credit, ExportState, Geometry, Holder, Limits, Status};
use super::super::window::IdWindow;
use super::list::List;
use super::liveness::Conn;
use super::retained::{Entries, Retained};
use super::slot::{Failure, Slot, State};
use super::{user_slots, MAX_CONNECTIONS, NONE};

/// What the driver decides once for a device.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether to ask for the right to write.
    pub writable: bool,
    /// Who writes: identity, boot id and instance.
    pub holder: Holder,
    /// What this end can use. `slots` is the length of the slot table; the server must grant all of them.
    pub limits: Limits,
    /// Digest algorithms that the driver can compute, as a mask of `1 << code`.
    pub digests: u32,
    /// Granule asked for, bytes.
    pub granule: u32,
    /// Nanoseconds after which a request fails; `None` to wait without limit.
    pub deadline: Option<u64>,
    /// Times that a request is sent again for a bad digest before it fails.
    pub retries: u8,
}

/// Where the session stands; see the module's diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No session; OPEN goes out with the next connection.
    Opening,
    /// Retained writes are going out again.
    Replaying,
    /// Requests flow, or wait for a connection.
    Live,
    /// CLOSE is out.
    Closing,
    /// Ended by CLOSE.
    Closed,
    /// Every request gets an error until the device is detached.
    Failed(FailReason),
}

/// Why a device failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailReason {
    /// Another export id under the same name: not the same disk any more.
    ExportChanged,
    /// Another client was let in to write.
    LeaseLost,
    /// The server does not admit this client any more.
    NotAdmitted,
    /// Acknowledged writes may be lost and can't be replayed: retention is off.
    WritesLost,
    /// A replayed write was refused with this status.
    ReplayFailed(Status),
    /// A sync failed again before one had succeeded.
    SyncFailed,
    /// The export came back smaller, with other block sizes, or with fewer slots.
    GeometryChanged,
    /// The driver asked for it (forced detach).
    Forced,
}

/// Why a connection has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Nothing heard for too long.
    Silent,
    /// A READ arrived with a bad digest.
    BadDigest,
    /// It refers to the memory of a request whose deadline has passed.
    Deadline,
    /// The session that it belonged to is over.
    Superseded,
    /// The server refused OPEN or JOIN.
    Refused,
}

/// What the driver has to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The request in `slot` is done; the slot is free again. Where `retained` is there, the driver keeps the bytes of the
    /// request at that index of its table until [`Event::Released`] names it.
    Completed {
        /// The slot, free again.
        slot: u16,
        /// Success or why not.
        result: Result<(), Failure>,
        /// Index in the driver's table of retained bytes.
        retained: Option<usize>,
    },
    /// What the driver keeps at this index of its table of retained bytes is durable.
    Released {
        /// The index.
        index: usize,
    },
    /// Close the stream of connection `index`, then report [`Session::handle_lost`].
    Close {
        /// Index of the connection.
        index: u16,
        /// Why.
        reason: CloseReason,
    },
    /// A session is open; geometry is known. `fresh` tells a new session from a first one.
    Opened {
        /// The session replaces a lost one.
        fresh: bool,
    },
    /// The server announced another size.
    Changed,
    /// The server is about to stop: reconnect at once when the stream ends.
    Draining {
        /// Index of the connection.
        index: u16,
    },
    /// OPEN or JOIN was refused. Fatal before the first session; later the session tries again.
    Refused {
        /// The server's status.
        status: Status,
    },
    /// The device failed for good.
    Failed(FailReason),
    /// The session ended by CLOSE, with the status of the server's last flush.
    Closed(Status),
}

/// Counters for `dst status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections lost after they had been live.
    pub reconnects: u64,
    /// Sessions opened anew after one was lost.
    pub fresh_sessions: u64,
    /// Requests sent again.
    pub resent: u64,
    /// Retained writes sent again.
    pub replayed: u64,
    /// Requests failed at their deadline.
    pub expired: u64,
    /// Requests answered RETRY and READs with a bad digest.
    pub bad_digests: u64,
}

/// What is to be told to the driver, each at most once at a time.
#[derive(Debug, Default)]
pub(super) struct Notices {
    pub opened: Option<bool>,
    pub changed: bool,
    pub refused: Option<Status>,
    pub failed: Option<FailReason>,
    pub closed: Option<Status>,
}

/// One client session. `W` is the memory of the id window.
#[derive(Debug)]
pub struct Session<W> {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) conns: [Conn; MAX_CONNECTIONS],
    /// Connections granted; 1 before the first OPENED.
    pub(super) granted_connections: u16,
    pub(super) number: u64,
    pub(super) secret: [u8; 16],
    pub(super) export: Option<ExportState>,
    pub(super) geometry: Option<Geometry>,
    pub(super) algorithm: Algorithm,
    pub(super) granule: u32,
    pub(super) keepalive: u64,
    pub(super) credit: Credit,
    pub(super) next_id: u64,
    pub(super) window: IdWindow<W>,
    /// The newest barrier that took an id; it is unfinished while above the window's floor.
    pub(super) barrier: u64,
    pub(super) waiting: List,
    pub(super) ready: List,
    pub(super) done: List,
    /// Requests with an id and no outcome acted upon.
    pub(super) open_requests: u16,
    pub(super) open_bytes: u64,
    pub(super) out: u16,
    pub(super) answered: u16,
    pub(super) failing: u16,
    pub(super) aborts: u16,
    pub(super) suspects: u16,
    /// No deadline lies before this time.
    pub(super) deadline_floor: u64,
    pub(super) replay: super::replay::Cursor,
    /// [`Session::close`] was called during a replay.
    pub(super) close_wanted: bool,
    pub(super) close_sent: bool,
    pub(super) notices: Notices,
    pub(super) stats: Stats,
}

impl<W: AsRef<[u64]> + AsMut<[u64]>> Session<W> {
    /// A session that has not been opened. `window` holds one bit for each id of the window in `config.limits`.
    pub fn new(config: Config, window: W) -> Self {
        Self {
            granule: config.granule,
            config,
            phase: Phase::Opening,
            conns: core::array::from_fn(|_| Conn::default()),
            granted_connections: 1,
            number: 0,
            secret: [0; 16],
            export: None,
            geometry: None,
            algorithm: Algorithm::None,
            keepalive: u64::MAX,
            credit: Credit::default(),
            next_id: 1,
            window: IdWindow::new(window),
            barrier: 0,
            waiting: List::new(),
            ready: List::new(),
            done: List::new(),
            open_requests: 0,
            open_bytes: 0,
            out: 0,
            answered: 0,
            failing: 0,
            aborts: 0,
            suspects: 0,
            deadline_floor: u64::MAX,
            replay: super::replay::Cursor::default(),
            close_wanted: false,
            close_sent: false,
            notices: Notices::default(),
            stats: Stats::default(),
        }
    }

    /// The export's geometry, once a session has been open.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// Export id, incarnation and epoch, once a session has been open.
    pub fn export(&self) -> Option<&ExportState> {
        self.export.as_ref()
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The session's public number; 0 while there is none.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Limits granted by the server; before the first session, those asked for.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Requests that have an id and no outcome.
    pub fn in_flight(&self) -> u16 {
        self.open_requests
    }

    /// Digest algorithm and granule of payloads.
    pub fn digest(&self) -> (Algorithm, u32) {
        (self.algorithm, self.granule)
    }

    /// Requests that are sent one at a time because connections broke under them again and again.
    pub fn suspects(&self) -> u16 {
        self.suspects
    }

    /// Connections over which requests can flow now.
    pub fn live_connections(&self) -> u16 {
        let live = |sum: u16, conn: &Conn| sum.wrapping_add(u16::from(conn.is_live()));
        self.conns.iter().fold(0, live)
    }

    /// Whether the driver should have a stream for connection `index` (it decides when to try).
    pub fn wants_connection(&self, index: u16) -> bool {
        let useful = match self.phase {
            Phase::Opening => index == 0 && self.all_down(),
            Phase::Replaying | Phase::Live | Phase::Closing => index < self.granted_connections,
            Phase::Closed | Phase::Failed(_) => false,
        };
        useful && self.conn(index).is_some_and(Conn::is_down)
    }

    /// What the driver has to act on next.
    pub fn poll_event<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
    ) -> Option<Event> {
        // Before completions: one of those may use the index anew.
        if let Some(index) = retained.poll_release() {
            return Some(Event::Released { index });
        }
        if let Some(slot) = self.done.pop_front(slots) {
            let done = slots.get_mut(usize::from(slot))?;
            let event = Event::Completed {
                slot,
                result: done.failure.map_or(Ok(()), Err),
                // What became durable meanwhile need not be kept at all.
                retained: done
                    .retained
                    .filter(|seq| *seq >= retained.head())
                    .map(|seq| retained.index(seq)),
            };
            *done = Slot {
                abort: done.abort,
                ..Slot::default()
            };
            return Some(event);
        }
        for (index, conn) in (0..u16::MAX).zip(self.conns.iter_mut()) {
            if let Some(reason) = conn.take_close() {
                return Some(Event::Close { index, reason });
            }
            if conn.take_draining_notice() {
                return Some(Event::Draining { index });
            }
        }
        let notices = &mut self.notices;
        if let Some(fresh) = notices.opened.take() {
            return Some(Event::Opened { fresh });
        }
        if core::mem::take(&mut notices.changed) {
            return Some(Event::Changed);
        }
        if let Some(status) = notices.refused.take() {
            return Some(Event::Refused { status });
        }
        if let Some(reason) = notices.failed.take() {
            return Some(Event::Failed(reason));
        }
        notices.closed.take().map(Event::Closed)
    }

    /// Ends the session in good order: CLOSE goes out once nothing is open. The driver flushes before and submits nothing
    /// after. Where no session is open there is nothing to end.
    pub fn close(&mut self) {
        match self.phase {
            Phase::Opening => {
                self.phase = Phase::Closed;
                self.notices.closed = Some(Status::OK);
            }
            Phase::Live => self.phase = Phase::Closing,
            // What is being replayed is not durable: the end waits until it is there again.
            Phase::Replaying => self.close_wanted = true,
            Phase::Closing | Phase::Closed | Phase::Failed(_) => {}
        }
    }

    /// Fails the device for good: every request gets an error, as soon as no socket refers to its memory.
    pub fn fail<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
        reason: FailReason,
    ) {
        if matches!(self.phase, Phase::Failed(_)) {
            return;
        }
        self.phase = Phase::Failed(reason);
        self.notices.failed = Some(reason);
        self.close_all(super::CloseReason::Superseded);
        self.forget_aborts(slots);
        for at in indices(slots) {
            if slot_ref(slots, at).is_some_and(Slot::is_pending) {
                self.start_failing(slots, retained, at, Failure::DeviceFailed);
            }
        }
    }

    pub(super) fn conn(&self, index: u16) -> Option<&Conn> {
        self.conns.get(usize::from(index))
    }

    pub(super) fn conn_mut(&mut self, index: u16) -> Option<&mut Conn> {
        self.conns.get_mut(usize::from(index))
    }

    pub(super) fn close_all(&mut self, reason: CloseReason) {
        for conn in &mut self.conns {
            conn.close(reason);
        }
    }

    /// Whether `at` is one of the engine's own slots: for replays, or for its FLUSH.
    pub(super) fn is_internal(&self, at: u16) -> bool {
        at >= user_slots(self.config.limits.slots)
    }

    /// The highest slot, for the engine's own FLUSH.
    pub(super) fn flush_slot(&self) -> u16 {
        self.config.limits.slots.wrapping_sub(1)
    }

    /// The unfinished barrier that a request taking its id now must follow; 0 for none.
    pub(super) fn open_barrier(&self) -> u64 {
        if self.barrier > self.window.floor() {
            self.barrier
        } else {
            0
        }
    }

    /// Whether the next id keeps within the window.
    pub(super) fn has_id(&self) -> bool {
        let distance = self.next_id.wrapping_sub(self.window.floor());
        self.window.admits(self.next_id) && distance <= u64::from(self.config.limits.window)
    }

    /// Takes an open slot out of what is in flight, whatever its state. Its credit comes back.
    pub(super) fn close_slot(&mut self, slots: &mut [Slot], at: u16) {
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        match slot.state {
            State::Ready => {
                self.ready.remove(slots, at);
            }
            State::Out => self.out = self.out.saturating_sub(1),
            State::Answered => self.answered = self.answered.saturating_sub(1),
            State::Free | State::Waiting | State::Failing | State::Done => return,
        }
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        self.open_requests = self.open_requests.saturating_sub(1);
        self.open_bytes = self
            .open_bytes
            .saturating_sub(u64::from(slot.request.payload()));
        if slot.breaks >= super::send::SUSPECT_BREAKS {
            self.suspects = self.suspects.saturating_sub(1);
        }
    }

    /// Puts a slot on the list of completions; one of the engine's own is free at once.
    pub(super) fn finish_slot(&mut self, slots: &mut [Slot], at: u16, failure: Option<Failure>) {
        let internal = self.is_internal(at);
        let Some(slot) = slots.get_mut(usize::from(at)) else {
            return;
        };
        if internal {
            *slot = Slot {
                abort: slot.abort,
                ..Slot::default()
            };
            return;
        }
        slot.failure = failure;
        slot.conn = NONE;
        slot.pins = 0;
        slot.id = 0;
        slot.state = State::Done;
        self.done.push_back(slots, at);
    }
}

/// Every slot's number.
pub(super) fn indices(slots: &[Slot]) -> core::ops::Range<u16> {
    0..u16::try_from(slots.len()).unwrap_or(u16::MAX)
}

pub(super) fn slot_ref(slots: &[Slot], at: u16) -> Option<&Slot> {
    slots.get(usize::from(at))
}
