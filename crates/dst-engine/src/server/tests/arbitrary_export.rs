//! Arbitrary events at an export: one writer at a time, and nobody is let in before what has to be done is done.

use super::admission::{export, holder, open, LEASE, SECOND};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Step {
    Open {
        identity: u8,
        instance: u8,
    },
    OpenReader,
    /// The driver does what it was told: settles, flushes, writes the record.
    Settled(usize),
    Flushed(bool),
    Persisted(bool),
    SyncFailed(usize),
    SyncSucceeded(usize),
    Replayed(usize),
    Release(usize),
    Expired(usize),
    Cancel(usize),
    ProbeAnswered,
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let nth = any::<usize>;
    prop_oneof![
        6 => (1u8..3, 1u8..3).prop_map(|(identity, instance)| Step::Open { identity, instance }),
        2 => Just(Step::OpenReader),
        8 => nth().prop_map(Step::Settled),
        8 => (0..8u8).prop_map(|n| Step::Flushed(n > 0)),
        8 => (0..8u8).prop_map(|n| Step::Persisted(n > 0)),
        1 => nth().prop_map(Step::SyncFailed),
        2 => nth().prop_map(Step::SyncSucceeded),
        2 => nth().prop_map(Step::Replayed),
        2 => nth().prop_map(Step::Release),
        1 => nth().prop_map(Step::Expired),
        1 => nth().prop_map(Step::Cancel),
        2 => Just(Step::ProbeAnswered),
        4 => (0..4 * SECOND).prop_map(Step::Time),
        1 => Just(Step::Time(LEASE)),
    ]
}

/// What the driver of the export knows.
struct Driver {
    export: Export<Vec<Entry>>,
    now: u64,
    next: u64,
    /// Sessions that live, and whether they may write.
    live: BTreeMap<u64, bool>,
    /// Told to end, or ended by themselves.
    ending: BTreeMap<u64, bool>,
    releasing: BTreeSet<u64>,
    asking: BTreeSet<u64>,
    flushing: bool,
    persisting: Option<Record>,
    /// A flush has begun and succeeded since the last writer was settled.
    flushed: bool,
    disk: Record,
    renewing: bool,
}

impl Driver {
    fn pick(of: impl ExactSizeIterator<Item = u64>, nth: usize) -> Option<u64> {
        let mut of = of;
        let len = of.len();
        of.nth(nth.checked_rem(len)?)
    }

    fn act(&mut self) {
        while let Some(action) = self.export.poll_action(self.now) {
            match action {
                Action::Probe { session } => {
                    // One that has ended by itself does not answer.
                    let known = self.live.contains_key(&session);
                    assert!(known || self.ending.contains_key(&session));
                }
                Action::Settle { session, .. } => {
                    // A session that has ended by itself is told too, at most.
                    if let Some(writes) = self.live.remove(&session) {
                        self.ending.insert(session, writes);
                    }
                    self.releasing.remove(&session);
                }
                Action::Flush => {
                    assert!(!std::mem::replace(&mut self.flushing, true));
                    let writers = self.ending.values().any(|writes| *writes);
                    assert!(!writers, "flushed before the writer is settled");
                    self.flushed = false;
                }
                Action::Persist(record) => {
                    assert!(self.persisting.replace(record).is_none());
                    assert!(record.epoch >= self.disk.epoch);
                }
                Action::Grant { session } => {
                    assert!(self.asking.remove(&session));
                    self.granted(session, true);
                }
                Action::Refuse { session, .. } => assert!(self.asking.remove(&session)),
                Action::Released { session, .. } => {
                    if self.releasing.remove(&session) {
                        self.live.remove(&session);
                        // It starts nothing more and has flushed.
                        self.ending.insert(session, false);
                    }
                }
                Action::Renew => {
                    assert!(self.ending.is_empty() && !self.flushing);
                    assert!(std::mem::replace(&mut self.renewing, false));
                }
                Action::Ungate => {}
            }
        }
    }

    fn granted(&mut self, session: u64, writes: bool) {
        assert!(!self.renewing, "granted before the backend goes on");
        if writes {
            let writers = self.live.iter().filter(|(_, writes)| **writes);
            let mut others = writers.filter(|(number, _)| !self.releasing.contains(number));
            assert_eq!(others.next(), None, "a second writer");
            assert!(self.flushed, "granted without a flush");
            assert_eq!(*self.export.record(), self.disk);
            assert!(self.disk.held);
            assert_eq!(self.export.writer(), Some(session));
        }
        self.live.insert(session, writes);
    }

    fn opened(&mut self, admission: Admission, writes: bool) {
        match admission {
            Admission::Granted => self.granted(self.next, writes),
            Admission::Pending => {
                self.asking.insert(self.next);
            }
            Admission::Refused(_) => {}
        }
        self.next += 1;
    }

    fn settled(&mut self, nth: usize) {
        if let Some(session) = Self::pick(
            self.ending.keys().copied().collect::<Vec<_>>().into_iter(),
            nth,
        ) {
            self.ending.remove(&session);
            self.export.settled(session);
        }
    }

    fn flush_done(&mut self, good: bool) {
        if !std::mem::replace(&mut self.flushing, false) {
            return;
        }
        // A backend that has not been renewed has no success to tell.
        if good && !self.renewing {
            self.flushed = true;
            self.export.flushed();
        } else {
            self.sync_failed(None);
        }
    }

    fn sync_failed(&mut self, session: Option<u64>) {
        let before = self.export.state().incarnation;
        let incarnation = [self.next as u8; 16];
        self.next += 1;
        self.export.sync_failed(session, incarnation, self.now);
        if self.export.state().incarnation != before {
            assert!(!self.renewing);
            self.renewing = true;
            self.flushed = false;
        }
    }

    fn persist_done(&mut self, good: bool) {
        if let Some(record) = self.persisting.take() {
            if good {
                self.disk = record;
            }
            self.export.persisted(good, self.now);
        }
    }

    fn step(&mut self, step: Step) {
        let live = self.live.keys().copied().collect::<Vec<_>>().into_iter();
        match step {
            Step::Open { identity, instance } => {
                let request = open(Some(holder(identity, instance)));
                let admission = self.export.open(self.next, &request, self.now);
                self.opened(admission, true);
            }
            Step::OpenReader => {
                let admission = self.export.open(self.next, &open(None), self.now);
                self.opened(admission, false);
            }
            Step::Settled(nth) => self.settled(nth),
            Step::Flushed(good) => self.flush_done(good),
            Step::Persisted(good) => self.persist_done(good),
            Step::SyncFailed(nth) => {
                if let Some(session) = Self::pick(live, nth) {
                    self.sync_failed(Some(session));
                }
            }
            Step::SyncSucceeded(nth) => {
                if let Some(session) = Self::pick(live, nth) {
                    self.export.sync_succeeded(session);
                }
            }
            Step::Replayed(nth) => {
                if let Some(session) = Self::pick(live, nth) {
                    self.export.replayed(session);
                    assert!(
                        !self.export.is_gated(session) || self.export.writer() != Some(session)
                    );
                }
            }
            Step::Release(nth) => {
                if let Some(session) = Self::pick(live, nth).filter(|s| !self.releasing.contains(s))
                {
                    if self.export.release(session) {
                        let writes = self.live.remove(&session).unwrap();
                        self.ending.insert(session, writes);
                    } else {
                        self.releasing.insert(session);
                    }
                }
            }
            Step::Expired(nth) => {
                if let Some(session) = Self::pick(live, nth).filter(|s| !self.releasing.contains(s))
                {
                    let writes = self.live.remove(&session).unwrap();
                    self.ending.insert(session, writes);
                    // What it had is settled before anybody hears of it.
                    self.ending.remove(&session);
                    self.export.settled(session);
                }
            }
            Step::Cancel(nth) => {
                let asking = self.asking.iter().copied().collect::<Vec<_>>().into_iter();
                if let Some(session) = Self::pick(asking, nth) {
                    self.asking.remove(&session);
                    self.export.cancel(session);
                }
            }
            Step::ProbeAnswered => {
                if let Some(writer) = self.export.writer() {
                    self.export.probe_answered(writer, self.now);
                }
            }
            Step::Time(by) => {
                self.now += by;
                self.export.handle_timeout(self.now);
            }
        }
        self.act();
        assert_eq!(*self.export.record(), self.disk);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn one_writer_at_a_time_and_none_before_its_time(steps in prop::collection::vec(step(), 1..200)) {
        let mut driver = Driver {
            export: export(),
            now: 0,
            next: 1,
            live: BTreeMap::new(),
            ending: BTreeMap::new(),
            releasing: BTreeSet::new(),
            asking: BTreeSet::new(),
            flushing: false,
            persisting: None,
            flushed: false,
            disk: Record::NONE,
            renewing: false,
        };
        for step in steps {
            driver.step(step);
        }
        // Once the driver has done all that it was told, nobody is left without an answer.
        for _ in 0..40 {
            driver.step(Step::Settled(0));
            driver.step(Step::Flushed(true));
            driver.step(Step::Persisted(true));
            driver.step(Step::Time(3 * SECOND));
        }
        prop_assert!(driver.asking.is_empty(), "{:?}", driver.export);
        prop_assert!(driver.releasing.is_empty());
        prop_assert!(!driver.renewing && !driver.flushing && driver.persisting.is_none());
        prop_assert_eq!(driver.export.sessions(), driver.live.len());
    }
}
