//! The state of a client's session and its ends.

use super::super::proto::{Algorithm, Credit, ExportState, Geometry, Limits, Status};
use super::super::window::IdWindow;
use super::config::Config;
use super::conn::Conn;
use super::event::{CloseReason, Event, FailReason, Notices, Phase, Stats};
use super::list::List;
use super::retained::{Entries, Retained};
use super::slot::{Failure, Slot, State};
use super::{user_slots, MAX_CONNECTIONS, NONE};

/// One client session. `W` is the memory of the id window.
#[derive(Debug)]
pub struct Session<W> {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) conns: [Conn; MAX_CONNECTIONS],
    /// Connections granted; 1 before the first OPENED.
    pub(super) granted_connections: u16,
    pub(super) granted_credit_bytes: u32,
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
    /// A write failed whose fate its lost session took along: old, new or mixed, it must never change again.
    pub(super) unsettled: bool,
    /// [`Session::close`] was called before the session was live.
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
            granted_credit_bytes: 0,
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
            unsettled: false,
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

    /// Limits granted by the server, but for connections and credit, which are as asked for; before the first session, all are.
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
    /// after. A lost session is opened anew first, so that nothing retained is lost and the lease is given back.
    pub fn close(&mut self) {
        match self.phase {
            Phase::Opening if self.export.is_none() => {
                self.phase = Phase::Closed;
                self.notices.closed = Some(Status::OK);
            }
            Phase::Live => self.phase = Phase::Closing,
            // What is to be replayed is not durable: the end waits until it is there again.
            Phase::Opening | Phase::Replaying => self.close_wanted = true,
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
        self.fail_pending(slots, retained);
    }

    /// Fails everything that has not completed.
    pub(super) fn fail_pending<E: Entries>(
        &mut self,
        slots: &mut [Slot],
        retained: &mut Retained<E>,
    ) {
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
