//! What the export wants done, and the rules for it.

use dst_engine::server::Action;

use super::{Session, State, World, ENTRIES, PROBE};
use crate::trace;

impl World {
    pub(super) fn act(&mut self) {
        for _ in 0..100 {
            let Some(action) = self.export.poll_action(self.now) else {
                return;
            };
            trace!("  action {action:?}");
            match action {
                Action::Probe { session } => {
                    assert_eq!(self.writer, Some(session));
                    assert!(self.asking.is_some_and(|asking| asking.probe));
                }
                Action::Settle { session, .. } => {
                    assert!(
                        self.sessions.contains_key(&session),
                        "settles what is not there"
                    );
                    self.set(session, State::Ending);
                }
                Action::Flush => {
                    assert!(!self.flushing, "flushes twice at once");
                    let writers = self.sessions.values().filter(|session| session.writes);
                    // One that has given its lease back has flushed, and starts nothing more.
                    let mut busy = writers.filter(|session| session.state != State::Closing);
                    assert!(
                        busy.next().is_none(),
                        "flushes before the writer is settled"
                    );
                    self.flushing = true;
                }
                Action::Persist(record) => {
                    assert!(self.persisting.is_none(), "writes two records at once");
                    self.persisting = Some(record);
                }
                Action::Grant { session } => self.granted(session),
                Action::Refuse { session, .. } => {
                    let asking = self.asking.take().expect("refuses nobody");
                    assert_eq!(asking.number, session);
                    assert!(!asking.gone);
                }
                Action::Released { session, status } => {
                    let closing = self.sessions.get(&session).map(|session| session.state);
                    if closing == Some(State::Closing) {
                        let passed_on = self.writer != Some(session) || self.asking.is_some();
                        assert!(!status.is_ok() || !self.disk.held || passed_on);
                        // It has flushed, and starts nothing more.
                        let writes = !status.is_ok();
                        let state = State::Ending;
                        self.sessions.insert(session, Session { writes, state });
                    }
                }
                Action::Renew => {
                    assert!(std::mem::take(&mut self.renewing), "renews for nothing");
                    assert!(self.sessions.is_empty(), "renews while sessions are there");
                    assert!(!self.flushing);
                }
                Action::Ungate => assert!(!self.gated, "ungates too early"),
            }
        }
        panic!("actions without end");
    }

    fn granted(&mut self, session: u64) {
        let asking = self.asking.take().expect("lets nobody in");
        assert_eq!(asking.number, session);
        assert!(!asking.gone && !self.renewing);
        assert!(!asking.answered, "the holder has answered the probe");
        assert!(asking.flushed, "let in without a flush");
        assert_eq!(
            (self.disk.holder, self.disk.held),
            (asking.holder, true),
            "not persisted"
        );
        assert_eq!(*self.export.record(), self.disk);
        assert!(asking.expect.is_none_or(|epoch| epoch == self.disk.epoch));
        let writers = self.sessions.values().filter(|session| session.writes);
        let mut others = writers.filter(|session| session.state == State::Live);
        assert!(others.next().is_none(), "a second writer");
        assert_eq!(self.export.writer(), Some(session));
        self.writer = Some(session);
        self.heard = self.heard.max(self.now);
        self.add(session, true);
    }

    pub(super) fn check(&self) {
        let live = |session: &&Session| session.state == State::Live;
        let writers = self.sessions.values().filter(|session| session.writes);
        assert!(writers.filter(live).count() <= 1, "two writers");
        if self.persisting.is_none() {
            assert_eq!(
                *self.export.record(),
                self.disk,
                "not what is on stable storage"
            );
        }
        assert_eq!(self.export.state().epoch, self.export.record().epoch);
        for (number, session) in &self.sessions {
            if session.state == State::Live && self.writer != Some(*number) {
                assert_eq!(
                    self.export.is_gated(*number),
                    self.gated,
                    "the gate of {number}"
                );
            }
        }
        assert!(self.sessions.len() <= ENTRIES);
        if let Some(at) = self.export.next_timeout() {
            assert!(self.asking.is_some_and(|asking| at <= asking.since + PROBE));
        }
    }
}
