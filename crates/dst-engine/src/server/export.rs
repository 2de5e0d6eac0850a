//! One export of a server: its sessions by number, its lease and its incarnation (PROTOCOL.md 6.1, 6.2, 7).
//!
//! # Invariants
//!
//! * At most one live session may write, and it is the holder's (`writer`).
//! * With an incarnation end all sessions of the export; the next one serves nobody before those have given everything
//!   back and the driver has been told to go on with the backend ([`Action::Renew`]).
//! * `gate` is set while an earlier incarnation may have lost writes of a holder that has not replayed them.
//! * One thing at a time is done to the lease: an admission or a release.

use super::super::proto::{ExportState, Status};
use super::admission::Attempt;
use super::lease::{Lease, Record};

/// Memory for the sessions of an export: as many as it may have at a time, the one being admitted and those that have
/// ended and not given everything back included.
pub trait Table: AsRef<[Entry]> + AsMut<[Entry]> {}
impl<T: AsRef<[Entry]> + AsMut<[Entry]>> Table for T {}

/// Memory for one session of an [`Export`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub(super) number: u64,
    pub(super) state: EntryState,
    pub(super) writes: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum EntryState {
    #[default]
    Free,
    /// Being admitted.
    Asking,
    Live,
    /// To be settled, the driver has not been told.
    End(Status),
    /// Being settled.
    Ending,
}

/// Something for the driver to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`super::Session::probe`].
    Probe {
        /// Number of the session.
        session: u64,
    },
    /// [`super::Session::settle`] with this reason.
    Settle {
        /// Number of the session.
        session: u64,
        /// Why.
        reason: Status,
    },
    /// Flush the backend, then [`Export::flushed`], or [`Export::sync_failed`] with `None`.
    Flush,
    /// Put this on stable storage, durably, then [`Export::persisted`].
    Persist(Record),
    /// The OPEN for which this number was given is granted: create the session, with [`Export::is_gated`], and answer OK.
    Grant {
        /// Number of the session.
        session: u64,
    },
    /// The OPEN for which this number was given is refused: answer so and close.
    Refuse {
        /// The number.
        session: u64,
        /// Why, and when trying again may help.
        refused: Refused,
    },
    /// [`super::Session::closed`] with this status.
    Released {
        /// Number of the session.
        session: u64,
        /// OK, or why the lease could not be given back.
        status: Status,
    },
    /// Every session of the ended incarnation has given everything back: let the backend begin a new one.
    Renew,
    /// [`super::Session::set_gate`] with false on every session.
    Ungate,
}

/// Why an OPEN was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status of the reply.
    pub status: Status,
    /// Milliseconds for the option WAIT.
    pub wait: Option<u32>,
}

impl Refused {
    pub(super) const fn for_good(status: Status) -> Refused {
        Refused { status, wait: None }
    }

    pub(super) const fn wait(status: Status, wait: u32) -> Refused {
        Refused {
            status,
            wait: Some(wait),
        }
    }
}

/// What is being done to the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Idle,
    Admit(Attempt),
    /// The session of this number gives it back; whether the driver has been told to write that down.
    Release(u64, bool),
    /// That is done, with this status.
    Released(u64, Status),
}

/// What an export is when the server starts to serve it.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// Id of the content.
    pub id: [u8; 16],
    /// The incarnation: random, or the one before where nothing can have been lost since.
    pub incarnation: [u8; 16],
    /// Whether that is a new one.
    pub fresh: bool,
    /// What stable storage says of the lease.
    pub record: Record,
    /// Nobody may write.
    pub read_only: bool,
    /// Nanoseconds that a lease outlives the last sign of life of its holder.
    pub lease_time: u64,
}

/// One export. `T` is memory for its sessions.
#[derive(Debug)]
pub struct Export<T> {
    pub(super) id: [u8; 16],
    pub(super) incarnation: [u8; 16],
    pub(super) read_only: bool,
    pub(super) lease: Lease,
    pub(super) table: T,
    pub(super) work: Work,
    /// A session that gave its lease back while somebody else was being admitted.
    pub(super) release_after: Option<u64>,
    /// The live session of the holder.
    pub(super) writer: Option<u64>,
    /// The writer has replayed what it had.
    pub(super) replayed: bool,
    pub(super) gate: bool,
    pub(super) ungate: bool,
    /// A sync has failed and none has succeeded since.
    suspect: bool,
    /// The backend is still in the incarnation before.
    pub(super) renew: bool,
}

impl<T: Table> Export<T> {
    /// An export that nobody uses yet. The lease time of a recorded holder begins now. Resets the lent memory.
    pub fn new(config: &ExportConfig, mut table: T, now: u64) -> Self {
        table.as_mut().fill(Entry::default());
        Export {
            id: config.id,
            incarnation: config.incarnation,
            read_only: config.read_only,
            lease: Lease::new(config.record, config.lease_time, now),
            table,
            work: Work::Idle,
            release_after: None,
            writer: None,
            replayed: false,
            gate: config.fresh && config.record.held,
            ungate: false,
            suspect: false,
            renew: false,
        }
    }

    /// Id, incarnation and epoch, for OPENED and JOINED.
    pub fn state(&self) -> ExportState {
        ExportState {
            id: self.id,
            incarnation: self.incarnation,
            epoch: self.lease.record.epoch,
        }
    }

    /// The lease as it is on stable storage.
    pub fn record(&self) -> &Record {
        &self.lease.record
    }

    /// The live session that may write.
    pub fn writer(&self) -> Option<u64> {
        self.writer
    }

    /// Sessions that live.
    pub fn sessions(&self) -> usize {
        self.count(|entry| entry.state == EntryState::Live)
    }

    pub(super) fn count(&self, which: impl Fn(&Entry) -> bool) -> usize {
        let entries = self.table.as_ref().iter();
        entries.fold(0, |count: usize, entry| {
            count.saturating_add(usize::from(which(entry)))
        })
    }

    /// Whether the requests of this session must be held: an earlier incarnation may have lost writes that the holder has
    /// not replayed, and this session is not the holder's.
    pub fn is_gated(&self, session: u64) -> bool {
        self.gate && self.writer != Some(session)
    }

    /// Last sign of life of this session ([`super::Session::last_heard`]): to be told before [`Export::open`] and
    /// [`Export::handle_timeout`], and when the session has settled.
    pub fn heard(&mut self, session: u64, at: u64) {
        if self.writer == Some(session) {
            self.lease.heard = self.lease.heard.max(at);
        }
    }

    /// The client of this session has replayed what it had retained.
    pub fn replayed(&mut self, session: u64) {
        if self.writer == Some(session) {
            self.replayed = true;
            self.open_gate();
        }
    }

    pub(super) fn open_gate(&mut self) {
        self.ungate |= core::mem::take(&mut self.gate);
    }

    /// A FLUSH or FUA of this session has succeeded. Where [`super::Session::has_replayed`], [`Export::replayed`] comes first.
    pub fn sync_succeeded(&mut self, session: u64) {
        // One before the replay proves nothing: the writes that failed are not in it.
        if self.writer == Some(session) && self.replayed {
            self.suspect = false;
        }
    }

    /// A sync call has failed, for this session or (`None`) for [`Action::Flush`]. Ends the incarnation; `incarnation` is the
    /// id of the next, random. Answers the status to give to [`super::Session::executed`]: SYNC_FAILED where a sync failed
    /// before and none has succeeded since, else SESSION_LOST, which answers nobody.
    ///
    /// Until [`Action::Renew`] any further failure is one of the incarnation that has ended, and changes nothing.
    pub fn sync_failed(&mut self, session: Option<u64>, incarnation: [u8; 16], now: u64) -> Status {
        if session.is_none() {
            self.flush_over();
        }
        if self.renew {
            return Status::SESSION_LOST;
        }
        let again = core::mem::replace(&mut self.suspect, true);
        self.incarnation = incarnation;
        self.gate = self.lease.record.held;
        self.ungate = false;
        self.renew = true;
        // Its session is gone through no fault of the holder's.
        self.lease.heard = self.lease.heard.max(now);
        for entry in self.table.as_mut() {
            if entry.state == EntryState::Live {
                entry.state = EntryState::End(Status::SESSION_LOST);
            }
        }
        self.replayed = false;
        self.release_after = None;
        self.admission_failed(again, session.is_none(), now);
        if again {
            Status::SYNC_FAILED
        } else {
            Status::SESSION_LOST
        }
    }

    /// The session has ended and the backend has nothing of it any more.
    pub fn settled(&mut self, session: u64) {
        let ended = self
            .table
            .as_mut()
            .iter_mut()
            .find(|entry| entry.is(session));
        if let Some(entry) = ended {
            *entry = Entry::default();
        }
        if self.writer == Some(session) {
            self.writer = None;
            self.replayed = false;
        }
    }

    /// CLOSE of this session has come so far that its lease, if it has one, can be given back. True where there is nothing to
    /// wait for and [`super::Session::closed`] is next; else [`Action::Released`] will tell.
    pub fn release(&mut self, session: u64) -> bool {
        if self.writer != Some(session) {
            return true;
        }
        if self.work == Work::Idle {
            self.work = Work::Release(session, false);
        } else {
            self.release_after = Some(session);
            self.holder_leaves();
        }
        false
    }

    /// The record of [`Action::Persist`] is on stable storage, or could not be put there.
    pub fn persisted(&mut self, ok: bool, now: u64) {
        match self.work {
            Work::Admit(_) => self.admission_persisted(ok, now),
            Work::Release(session, true) => {
                let mut status = Status::IO;
                if ok {
                    status = Status::OK;
                    self.lease.record = self.lease.record.released();
                    self.open_gate();
                }
                self.work = Work::Released(session, status);
            }
            _ => {}
        }
    }

    /// What the driver has to do next. To be asked until there is nothing, after any other call.
    pub fn poll_action(&mut self, now: u64) -> Option<Action> {
        for entry in self.table.as_mut() {
            if let EntryState::End(reason) = entry.state {
                entry.state = EntryState::Ending;
                let session = entry.number;
                return Some(Action::Settle { session, reason });
            }
        }
        if self.renew && !self.is_settling() && !self.is_flushing() {
            self.renew = false;
            return Some(Action::Renew);
        }
        if core::mem::take(&mut self.ungate) {
            return Some(Action::Ungate);
        }
        if let Work::Admit(attempt) = self.work {
            let action = self.admit(attempt, now);
            if action.is_some() || self.work != Work::Idle {
                return action;
            }
        }
        if self.work == Work::Idle {
            let session = self.release_after.take()?;
            self.work = if self.writer == Some(session) {
                Work::Release(session, false)
            } else {
                Work::Released(session, Status::OK)
            };
        }
        match self.work {
            Work::Release(session, false) => {
                self.work = Work::Release(session, true);
                Some(Action::Persist(self.lease.record.released()))
            }
            Work::Released(session, status) => {
                self.work = Work::Idle;
                Some(Action::Released { session, status })
            }
            _ => None,
        }
    }

    /// Whether a session has ended and not given everything back.
    pub(super) fn is_settling(&self) -> bool {
        let ending = |entry: &Entry| matches!(entry.state, EntryState::End(_) | EntryState::Ending);
        self.table.as_ref().iter().any(ending)
    }
}

impl Entry {
    pub(super) fn is(&self, session: u64) -> bool {
        self.number == session && self.state != EntryState::Free
    }
}
