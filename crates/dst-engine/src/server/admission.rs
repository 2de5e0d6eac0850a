//! The way of an OPEN to its session, and of the lease to another holder (PROTOCOL.md 6.1).
//!
//! ```text
//! open --> Probe -(3 s without an answer)-> Fence -(settled)-> Flush -(done)-> Persist -(done)-> granted
//!            |        (holder itself,          ^                  |          (record unchanged) ----^
//!            |         lease free or expired)__|                  |                |
//!            '------(answered)---> refused <----------------(failed)---------------'
//! ```
//!
//! A reader is admitted at once. A writer passes these steps, one writer at a time; the others are told LEASE_BUSY:
//!
//! * *Probe*: the same identity asks with another boot or instance, and the holder's session is asked whether it lives.
//! * *Fence*: the holder's old session, if there is one, starts nothing more; what the backend has of it goes on to its end.
//! * *Flush*: so that what is settled stays settled through power loss.
//! * *Persist*: holder and epoch are put on stable storage, unless they are there already.
//!
//! A sync that fails meanwhile refuses the admission: the client asks again in the new incarnation.

use super::super::proto::{Holder, Mode, OpenRequest, Status};
use super::export::{Action, Entry, EntryState, Export, Refused, Table, Work};
use super::lease::Claim;

/// Nanoseconds that the holder's connections have to answer.
const PROBE_TIME: u64 = 3_000_000_000;
/// Milliseconds to wait while another client is being admitted.
const WAIT_ATTEMPT: u32 = 1000;
/// Milliseconds to wait while an incarnation ends.
const WAIT_RENEW: u32 = 200;
const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// What becomes of an OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Create the session, with [`Export::is_gated`], and answer OK.
    Granted,
    /// [`Export::poll_action`] will tell: [`Action::Grant`] or [`Action::Refuse`] with the number given.
    Pending,
    /// Answer so and close the stream.
    Refused(Refused),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Until this time; whether the driver has been told.
    Probe(u64, bool),
    Fence,
    Flush,
    /// Whether the driver has been told.
    Persist(bool),
    Decided(Result<(), Refused>),
}

/// A writer being admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    number: u64,
    holder: Holder,
    step: Step,
    /// To be refused when the driver has finished the step it is at.
    doomed: Option<Refused>,
    /// Its connection is lost.
    gone: bool,
}

impl<T: Table> Export<T> {
    /// An OPEN came, its nonce and name checked. `session` is the number that the session will have if it is granted: random,
    /// never used before.
    pub fn open(&mut self, session: u64, request: &OpenRequest<'_>, now: u64) -> Admission {
        match self.try_open(session, request, now) {
            Ok(admission) => admission,
            Err(refused) => Admission::Refused(refused),
        }
    }

    fn try_open(
        &mut self,
        session: u64,
        request: &OpenRequest<'_>,
        now: u64,
    ) -> Result<Admission, Refused> {
        if request
            .expect
            .is_some_and(|expect| expect.export != self.id)
        {
            return Err(Refused::for_good(Status::EXPORT_CHANGED));
        }
        let holder = match (request.mode, request.holder) {
            (Mode::ReadOnly, _) => return self.open_reader(session),
            (Mode::SharedWriters, _) => return Err(Refused::for_good(Status::UNSUPPORTED)),
            (Mode::SoleWriter, None) => return Err(Refused::for_good(Status::PROTOCOL)),
            (Mode::SoleWriter, Some(holder)) => holder,
        };
        if self.read_only {
            return Err(Refused::for_good(Status::READ_ONLY));
        }
        let epoch = self.lease.record.granted_to(&holder).epoch;
        if request.expect.is_some_and(|expect| expect.epoch != epoch) {
            return Err(Refused::for_good(Status::LEASE_LOST));
        }
        if self.work != Work::Idle {
            return Err(Refused::wait(Status::LEASE_BUSY, WAIT_ATTEMPT));
        }
        let asked = self.writer.is_some_and(|writer| self.is_live(writer));
        let step = match self.lease.claim(&holder, asked, now) {
            Claim::Granted => Step::Fence,
            Claim::Probe => Step::Probe(now.saturating_add(PROBE_TIME), false),
            Claim::Busy(until) => return Err(busy_until(until, now)),
        };
        self.enter(session, EntryState::Asking, true)?;
        self.work = Work::Admit(Attempt {
            number: session,
            holder,
            step,
            doomed: None,
            gone: false,
        });
        Ok(Admission::Pending)
    }

    fn open_reader(&mut self, session: u64) -> Result<Admission, Refused> {
        if self.renew {
            return Err(Refused::wait(Status::LEASE_BUSY, WAIT_RENEW));
        }
        self.enter(session, EntryState::Live, false)?;
        Ok(Admission::Granted)
    }

    /// Takes a free place in the table. Readers leave room for two writers: the holder and the next one.
    fn enter(&mut self, number: u64, state: EntryState, writes: bool) -> Result<(), Refused> {
        let writers = self.count(|entry| entry.writes && entry.state != EntryState::Free);
        let reserved = if writes {
            0
        } else {
            2usize.saturating_sub(writers)
        };
        let free = |entry: &&mut Entry| entry.state == EntryState::Free;
        match self.table.as_mut().iter_mut().filter(free).nth(reserved) {
            Some(entry) => {
                *entry = Entry {
                    number,
                    state,
                    writes,
                };
                Ok(())
            }
            None => Err(Refused::wait(Status::LIMIT, WAIT_ATTEMPT)),
        }
    }

    fn is_live(&self, session: u64) -> bool {
        let mut entries = self.table.as_ref().iter();
        entries.any(|entry| entry.is(session) && entry.state == EntryState::Live)
    }

    /// The connection of an OPEN that is [`Admission::Pending`] is lost. A lease that is changing hands does so nevertheless:
    /// the client comes back as its holder.
    pub fn cancel(&mut self, session: u64) {
        let Some(attempt) = self.attempt().filter(|attempt| attempt.number == session) else {
            return;
        };
        attempt.gone = true;
        if let Step::Probe(..) = attempt.step {
            self.leave(session);
        }
    }

    /// A connection of this session has answered a PING sent since [`Action::Probe`].
    pub fn probe_answered(&mut self, session: u64, now: u64) {
        if self.writer != Some(session) {
            return;
        }
        self.heard(session, now);
        let refused = busy_until(self.lease.expiry(), now);
        if let Some(attempt) = self.attempt() {
            if let Step::Probe(..) = attempt.step {
                attempt.step = Step::Decided(Err(refused));
            }
        }
    }

    /// The flush of [`Action::Flush`] has succeeded.
    pub fn flushed(&mut self) {
        self.flush_over();
        let before = self.lease.record;
        if let Some(attempt) = self.attempt() {
            if attempt.step == Step::Flush {
                let unchanged = before.granted_to(&attempt.holder) == before;
                attempt.step = if unchanged {
                    Step::Decided(Ok(()))
                } else {
                    Step::Persist(false)
                };
            }
        }
    }

    /// When [`Export::handle_timeout`] is to be called next, if nothing else happens.
    pub fn next_timeout(&self) -> Option<u64> {
        match self.work {
            Work::Admit(Attempt {
                step: Step::Probe(until, _),
                ..
            }) => Some(until),
            _ => None,
        }
    }

    /// The time is now `now`.
    pub fn handle_timeout(&mut self, now: u64) {
        if self.next_timeout().is_some_and(|until| now >= until) {
            self.holder_leaves();
        }
    }

    fn attempt(&mut self) -> Option<&mut Attempt> {
        match &mut self.work {
            Work::Admit(attempt) => Some(attempt),
            _ => None,
        }
    }

    /// Nobody has to be asked any more.
    pub(super) fn holder_leaves(&mut self) {
        if let Some(attempt) = self.attempt() {
            if let Step::Probe(..) = attempt.step {
                attempt.step = Step::Fence;
            }
        }
    }

    pub(super) fn is_flushing(&self) -> bool {
        matches!(
            self.work,
            Work::Admit(Attempt {
                step: Step::Flush,
                ..
            })
        )
    }

    /// The driver's flush has come back: an admission that was only waiting for that is refused.
    pub(super) fn flush_over(&mut self) {
        if let Some(attempt) = self.attempt() {
            if attempt.step == Step::Flush {
                if let Some(refused) = attempt.doomed {
                    attempt.step = Step::Decided(Err(refused));
                }
            }
        }
    }

    /// A sync has failed, for the second time or more in a row where `again`; it was the flush of the admission where
    /// `flush`.
    pub(super) fn admission_failed(&mut self, again: bool, flush: bool, now: u64) {
        let busy = busy_until(self.lease.expiry(), now);
        let status = if again {
            Status::SYNC_FAILED
        } else {
            Status::IO
        };
        let failed = Refused::wait(status, WAIT_RENEW);
        let Some(attempt) = self.attempt() else {
            return;
        };
        match attempt.step {
            Step::Probe(..) => attempt.step = Step::Decided(Err(busy)),
            Step::Flush if !flush => attempt.doomed = Some(failed),
            Step::Persist(true) => attempt.doomed = Some(failed),
            _ => attempt.step = Step::Decided(Err(failed)),
        }
    }

    /// The next action on the way of `attempt`.
    pub(super) fn admit(&mut self, attempt: Attempt, now: u64) -> Option<Action> {
        let Attempt { number, holder, .. } = attempt;
        match attempt.step {
            Step::Probe(until, false) => {
                self.attempt()?.step = Step::Probe(until, true);
                let session = self.writer?;
                Some(Action::Probe { session })
            }
            Step::Fence => self.fence(&holder),
            Step::Persist(false) => {
                self.attempt()?.step = Step::Persist(true);
                Some(Action::Persist(self.lease.record.granted_to(&holder)))
            }
            Step::Probe(_, true) | Step::Flush | Step::Persist(true) => None,
            Step::Decided(Ok(())) => {
                self.grant(number, now);
                self.work = Work::Idle;
                if attempt.gone {
                    self.settled(number);
                    return None;
                }
                Some(Action::Grant { session: number })
            }
            Step::Decided(Err(refused)) => {
                self.leave(number);
                let refuse = Action::Refuse {
                    session: number,
                    refused,
                };
                (!attempt.gone).then_some(refuse)
            }
        }
    }

    /// Ends the holder's old session; once nothing of it is left, the flush is next.
    fn fence(&mut self, holder: &Holder) -> Option<Action> {
        let same = self.lease.record.holder == *holder;
        let old = self.writer.filter(|old| self.release_after != Some(*old));
        let live = |entry: &&mut Entry| {
            old.is_some_and(|old| entry.is(old)) && entry.state == EntryState::Live
        };
        if let Some(entry) = self.table.as_mut().iter_mut().find(live) {
            entry.state = EntryState::Ending;
            let reason = if same {
                Status::SESSION_LOST
            } else {
                Status::LEASE_LOST
            };
            let session = entry.number;
            return Some(Action::Settle { session, reason });
        }
        if self.is_settling() || self.renew {
            return None;
        }
        self.attempt()?.step = Step::Flush;
        Some(Action::Flush)
    }

    pub(super) fn admission_persisted(&mut self, ok: bool, now: u64) {
        let before = self.lease.record;
        let Some(attempt) = self.attempt() else {
            return;
        };
        if attempt.step != Step::Persist(true) {
            return;
        }
        if !ok {
            let refused = Refused::wait(Status::IO, WAIT_ATTEMPT);
            attempt.step = Step::Decided(Err(attempt.doomed.unwrap_or(refused)));
            return;
        }
        attempt.step = Step::Decided(attempt.doomed.map_or(Ok(()), Err));
        let record = before.granted_to(&attempt.holder);
        self.lease.record = record;
        self.lease.heard = now;
        if record.epoch != before.epoch {
            // What the holder before had not flushed is lost for good, or has been flushed.
            self.open_gate();
            self.writer = None;
        }
    }

    fn grant(&mut self, number: u64, now: u64) {
        if let Some(entry) = self
            .table
            .as_mut()
            .iter_mut()
            .find(|entry| entry.is(number))
        {
            entry.state = EntryState::Live;
        }
        self.writer = Some(number);
        self.replayed = false;
        self.lease.heard = self.lease.heard.max(now);
    }

    /// The admission is over without a session.
    fn leave(&mut self, number: u64) {
        self.settled(number);
        self.work = Work::Idle;
    }
}

fn busy_until(until: u64, now: u64) -> Refused {
    let wait = until
        .saturating_sub(now)
        .div_ceil(NANOSECONDS_PER_MILLISECOND);
    let wait = u32::try_from(wait).unwrap_or(u32::MAX);
    Refused::wait(Status::LEASE_BUSY, wait)
}
