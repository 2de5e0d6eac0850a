//! The lease of an export: OPEN, CLOSE, expiry, probes, failing syncs, crashes of the server, in any order. At most one writer;
//! let in only when the one before is settled, the backend flushed, and the record on stable storage; the epoch never falls.

mod rules;

use std::collections::BTreeMap;

use dst_engine::server::{Admission, Entry, Export, ExportConfig, Record, Refused};
use dst_proto::{
    Algorithm, ClientName, Digests, Expect, ExportName, Holder, Limits, Mode, OpenRequest, Status,
};

use crate::input::Input;
use crate::trace;

const LEASE: u64 = 30_000_000_000;
const PROBE: u64 = 3_000_000_000;
const ENTRIES: usize = 5;
const STEPS: u32 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    /// CLOSE waits for the lease to be given back.
    Closing,
    /// Starts nothing more; the backend still has something of it.
    Ending,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    writes: bool,
    state: State,
}

/// A writer that waits to be let in.
#[derive(Clone, Copy, Debug)]
struct Asking {
    number: u64,
    holder: Holder,
    expect: Option<u64>,
    /// The lease was another's who was alive: he has to be asked.
    probe: bool,
    /// He has answered.
    answered: bool,
    since: u64,
    /// A flush has succeeded since nobody else writes.
    flushed: bool,
    gone: bool,
}

struct World {
    export: Export<Vec<Entry>>,
    /// Stable storage.
    disk: Record,
    sessions: BTreeMap<u64, Session>,
    asking: Option<Asking>,
    writer: Option<u64>,
    flushing: bool,
    persisting: Option<Record>,
    /// The incarnation has ended, the backend has not been renewed.
    renewing: bool,
    gated: bool,
    now: u64,
    /// Last sign of life of the holder.
    heard: u64,
    next: u64,
    incarnation: u8,
}

/// Each step is a few bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.finish();
}

fn holder(code: u8) -> Holder {
    Holder {
        identity: [1 + code % 3; 16],
        boot: [1 + code / 3 % 2; 16],
        instance: [1 + code / 6 % 2; 16],
    }
}

fn export(disk: Record, incarnation: u8, fresh: bool, now: u64) -> Export<Vec<Entry>> {
    let config = ExportConfig {
        id: [7; 16],
        incarnation: [incarnation; 16],
        fresh,
        record: disk,
        read_only: false,
        lease_time: LEASE,
    };
    Export::new(&config, vec![Entry::default(); ENTRIES], now)
}

impl World {
    fn new() -> World {
        World {
            export: export(Record::NONE, 1, true, 0),
            disk: Record::NONE,
            sessions: BTreeMap::new(),
            asking: None,
            writer: None,
            flushing: false,
            persisting: None,
            renewing: false,
            gated: false,
            now: 0,
            heard: 0,
            next: 1,
            incarnation: 1,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        match op % 20 {
            0..=3 => self.open_writer(holder(input.u8()), input.u8()),
            4 => self.open_reader(),
            5..=7 => self.settled(usize::from(op / 20)),
            8 | 9 => self.flushed(op < 220),
            10 | 11 => self.persisted(op < 220),
            12 => self.sync(input.u8()),
            13 => self.replayed(usize::from(op / 20)),
            14 => self.close(usize::from(op / 20)),
            15 => self.end(usize::from(op / 20)),
            16 => self.answer_probe(),
            17 => self.cancel(),
            18 => self.pass(match op / 20 {
                0..=3 => u64::from(input.u8()) * 10_000_000,
                4 | 5 => PROBE,
                6 | 7 => u64::from(input.u8()) * 150_000_000,
                _ => LEASE,
            }),
            _ => match input.u8() {
                code @ 0..=60 => self.crash(code),
                _ => self.hear(),
            },
        }
        self.act();
        self.check();
    }

    fn nth(&self, nth: usize, which: impl Fn(&Session) -> bool) -> Option<u64> {
        let found: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| which(session))
            .map(|(number, _)| *number)
            .collect();
        let nth = nth.checked_rem(found.len())?;
        Some(found[nth])
    }

    fn request(mode: Mode, holder: Option<Holder>, expect: Option<Expect>) -> OpenRequest<'static> {
        OpenRequest {
            name: ExportName::new("disk").expect("a name"),
            nonce: [0; 16],
            mode,
            limits: Limits {
                slots: 10,
                connections: 1,
                max_payload: 4096,
                window: 64,
                credit_bytes: 4096,
            },
            digests: Digests {
                mask: Algorithm::None.mask_bit(),
                granule: 4096,
            },
            holder,
            client: ClientName::default(),
            expect,
            retained: None,
        }
    }

    fn open_writer(&mut self, holder: Holder, form: u8) {
        let number = self.next;
        self.next += 1;
        let expect = match form {
            0..=99 => None,
            100..=229 => Some(self.disk.granted_to(&holder).epoch),
            other => Some(u64::from(other) - 230),
        };
        let expect = expect.map(|epoch| Expect {
            export: if form == 255 { [8; 16] } else { [7; 16] },
            epoch,
        });
        let request = Self::request(Mode::SoleWriter, Some(holder), expect);
        let admission = self.export.open(number, &request, self.now);
        trace!("open {number} {holder:?} {expect:?}: {admission:?}");
        let record = self.disk;
        let free = !record.held || record.holder == holder || self.now >= self.heard + LEASE;
        match admission {
            Admission::Granted => panic!("a writer let in at once"),
            Admission::Pending => {
                // One whose client has gone is over without a word.
                assert!(self.asking.is_none_or(|asking| asking.gone), "two at once");
                let asks = record.holder.identity == holder.identity && self.writer.is_some();
                assert!(free || asks, "may not have the lease");
                self.asking = Some(Asking {
                    number,
                    holder,
                    expect: expect.map(|expect| expect.epoch),
                    probe: !free,
                    answered: false,
                    since: self.now,
                    flushed: false,
                    gone: false,
                });
            }
            Admission::Refused(Refused { status, wait }) => match status {
                Status::LEASE_BUSY => assert!(wait.is_some()),
                Status::LIMIT => assert!(self.sessions.len() >= ENTRIES - 2),
                Status::LEASE_LOST | Status::EXPORT_CHANGED => assert!(expect.is_some()),
                other => panic!("refused with {other:?}"),
            },
        }
    }

    fn open_reader(&mut self) {
        let number = self.next;
        self.next += 1;
        let request = Self::request(Mode::ReadOnly, None, None);
        let admission = self.export.open(number, &request, self.now);
        trace!("open reader {number}: {admission:?}");
        match admission {
            Admission::Granted => {
                assert!(!self.renewing, "a reader of an incarnation that has ended");
                self.add(number, false);
            }
            Admission::Pending => panic!("a reader has nothing to wait for"),
            Admission::Refused(Refused { wait, .. }) => assert!(wait.is_some()),
        }
    }

    fn add(&mut self, number: u64, writes: bool) {
        let state = State::Live;
        self.sessions.insert(number, Session { writes, state });
    }

    /// The backend has given back everything of a session that has ended.
    fn settled(&mut self, nth: usize) {
        if let Some(number) = self.nth(nth, |session| session.state == State::Ending) {
            trace!("settled {number}");
            self.sessions.remove(&number);
            self.export.settled(number);
            if self.writer == Some(number) {
                self.writer = None;
            }
        }
    }

    fn flushed(&mut self, ok: bool) {
        if !std::mem::take(&mut self.flushing) {
            return;
        }
        trace!("flushed {ok}");
        if ok {
            if let Some(asking) = &mut self.asking {
                asking.flushed = true;
            }
            self.export.flushed();
        } else {
            self.sync_failed(None);
        }
    }

    fn persisted(&mut self, ok: bool) {
        let Some(record) = self.persisting.take() else {
            return;
        };
        trace!("persisted {ok} {record:?}");
        if ok {
            if record.epoch != self.disk.epoch || !record.held {
                self.gated = false;
            }
            assert!(record.epoch >= self.disk.epoch, "the epoch falls");
            let same = record.holder == self.disk.holder && self.disk.epoch > 0;
            assert_eq!(record.epoch, self.disk.epoch + u64::from(!same));
            if record.held {
                self.heard = self.now;
            }
            self.disk = record;
        }
        self.export.persisted(ok, self.now);
    }

    fn sync(&mut self, form: u8) {
        let Some(number) = self.nth(usize::from(form % 8), |_| true) else {
            return;
        };
        if form < 128 {
            self.export.sync_succeeded(number);
        } else {
            trace!("sync of {number} failed");
            self.sync_failed(Some(number));
        }
    }

    fn sync_failed(&mut self, session: Option<u64>) {
        self.incarnation = self.incarnation.wrapping_add(1);
        let next = [self.incarnation; 16];
        let before = self.export.state().incarnation;
        let status = self.export.sync_failed(session, next, self.now);
        if self.renewing {
            assert_eq!(status, Status::SESSION_LOST);
            assert_eq!(self.export.state().incarnation, before);
            return;
        }
        assert!(matches!(status, Status::SESSION_LOST | Status::SYNC_FAILED));
        assert_eq!(self.export.state().incarnation, next);
        self.renewing = true;
        self.gated = self.disk.held;
        self.heard = self.heard.max(self.now);
        assert_eq!(
            self.export.sessions(),
            0,
            "sessions outlive their incarnation"
        );
    }

    fn replayed(&mut self, nth: usize) {
        if let Some(number) = self.nth(nth, |session| session.state == State::Live) {
            self.export.replayed(number);
            if self.writer == Some(number) {
                trace!("replayed {number}");
                self.gated = false;
            }
        }
    }

    fn close(&mut self, nth: usize) {
        let Some(number) = self.nth(nth, |session| session.state == State::Live) else {
            return;
        };
        let at_once = self.export.release(number);
        trace!("close {number}: at once {at_once}");
        assert_eq!(at_once, self.writer != Some(number));
        self.set(
            number,
            if at_once {
                State::Ending
            } else {
                State::Closing
            },
        );
    }

    fn set(&mut self, number: u64, state: State) {
        if let Some(session) = self.sessions.get_mut(&number) {
            session.state = state;
        }
    }

    /// A session ends by itself: nobody has come back.
    fn end(&mut self, nth: usize) {
        if let Some(number) = self.nth(nth, |session| session.state == State::Live) {
            trace!("end {number}");
            self.set(number, State::Ending);
        }
    }

    fn hear(&mut self) {
        if let Some(number) = self.nth(0, |session| session.writes && session.state == State::Live)
        {
            trace!("heard {number}");
            self.export.heard(number, self.now);
            if self.writer == Some(number) {
                self.heard = self.heard.max(self.now);
            }
        }
    }

    fn answer_probe(&mut self) {
        let Some(number) = self.nth(0, |session| session.writes && session.state == State::Live)
        else {
            return;
        };
        trace!("probe answered by {number}");
        self.export.probe_answered(number, self.now);
        if self.writer == Some(number) {
            self.heard = self.heard.max(self.now);
            if let Some(asking) = &mut self.asking {
                let waits = asking.probe && self.now < asking.since + PROBE;
                asking.answered |= waits;
            }
        }
    }

    fn cancel(&mut self) {
        if let Some(asking) = &mut self.asking {
            trace!("cancel {}", asking.number);
            asking.gone = true;
            let number = asking.number;
            self.export.cancel(number);
        }
    }

    fn pass(&mut self, by: u64) {
        self.now += by;
        trace!("time {}", self.now);
        self.export.handle_timeout(self.now);
    }

    /// The server dies and starts again; a record that was being written may be there or not.
    fn crash(&mut self, code: u8) {
        trace!("crash {code}");
        if let (Some(record), true) = (self.persisting.take(), code & 1 != 0) {
            self.disk = record;
        }
        let fresh = code & 2 != 0 || self.renewing;
        self.incarnation = self.incarnation.wrapping_add(u8::from(fresh));
        self.export = export(self.disk, self.incarnation, fresh, self.now);
        self.sessions.clear();
        self.asking = None;
        self.writer = None;
        (self.flushing, self.renewing) = (false, false);
        self.gated = fresh && self.disk.held;
        self.heard = self.now;
    }

    fn round(&mut self) {
        self.act();
        self.flushed(true);
        self.persisted(true);
        while self
            .nth(0, |session| session.state == State::Ending)
            .is_some()
        {
            self.settled(0);
        }
        self.pass(PROBE);
        self.act();
        self.check();
    }

    /// Once everybody has gone and the lease has run out, anybody gets it.
    fn finish(&mut self) {
        trace!("--- finish");
        for _ in 0..8 {
            self.round();
        }
        assert!(
            self.asking.is_none_or(|asking| asking.gone),
            "an OPEN without an answer"
        );
        self.asking = None;
        while self
            .nth(0, |session| session.state == State::Live)
            .is_some()
        {
            self.end(0);
        }
        for _ in 0..4 {
            self.round();
        }
        assert!(
            self.sessions.is_empty(),
            "CLOSE without an answer: {:?}",
            self.sessions
        );
        assert!(!self.renewing, "never renewed");
        self.pass(LEASE + 1);
        let epoch = self.disk.epoch;
        self.open_writer(holder(255), 0);
        let asked = self.asking.is_some();
        assert!(asked, "a free lease is refused");
        for _ in 0..4 {
            self.round();
        }
        assert!(self.writer.is_some() && self.disk.epoch >= epoch);
        assert!(!self.gated || self.disk.epoch == epoch);
    }
}
