//! What a killed process leaves, and what its successor makes of it.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::super::super::proto::{Kind, Outcome, SlotEntry, SlotState, Status};
use super::super::*;
use super::rig::*;
use proptest::prelude::*;

/// Cells that stop taking stores after so many: the process was killed there.
#[derive(Debug, Clone)]
struct Memory {
    cells: Vec<u64>,
    left: usize,
}

impl Cells for Memory {
    fn count(&self) -> usize {
        self.cells.len()
    }

    fn load(&self, at: usize) -> u64 {
        self.cells.get(at).copied().unwrap_or(0)
    }

    fn store(&mut self, at: usize, value: u64) {
        if self.left > 0 {
            self.left -= 1;
            self.cells[at] = value;
        }
    }
}

const ENTRIES: u32 = 64;

/// A rig that keeps a record.
struct Process {
    rig: Rig,
    record: Record<Memory>,
    places: Vec<u64>,
}

impl Process {
    fn new(rig: Rig) -> Self {
        let memory = Memory {
            cells: vec![0; Record::<Memory>::size(SLOTS, ENTRIES)],
            left: usize::MAX,
        };
        let holder = rig.session.config.holder;
        Self {
            rig,
            record: Record::make(memory, SLOTS, ENTRIES, &holder).unwrap(),
            places: (1000..1000 + u64::from(ENTRIES)).collect(),
        }
    }

    /// Live, and recorded so.
    fn live() -> Self {
        let mut process = Self::new(Rig::live());
        process.record();
        process
    }

    fn record(&mut self) {
        let rig = &self.rig;
        rig.session
            .record(&rig.slots, &rig.retained, &mut self.record, &self.places);
    }

    /// Is killed here; a successor adopts what is there.
    fn succeed(self) -> Result<Process, Unfit> {
        let memory = self.record.into_cells();
        let mut record = Record::open(Memory {
            left: usize::MAX,
            ..memory
        })?;
        let mut rig = Rig::new();
        rig.incarnation = self.rig.incarnation;
        let config = rig.session.config.clone();
        let entries = vec![Entry::default(); ENTRIES as usize];
        let adopted = Session::adopt(
            config,
            vec![0; 2],
            &mut rig.slots,
            entries,
            1 << 20,
            &mut record,
        );
        (rig.session, rig.retained) = adopted?;
        Ok(Process {
            rig,
            record,
            places: self.places,
        })
    }
}

/// What goes out over a connection until it pauses.
fn all_sent(rig: &mut Rig) -> Vec<Sent> {
    core::iter::from_fn(|| rig.send(0)).collect()
}

fn kinds(sent: &[Sent]) -> Vec<Kind> {
    sent.iter().map(|sent| sent.header.kind).collect()
}

#[test]
fn orphans_are_settled_and_flushed_over_before_anything_gets_an_id() {
    let mut first = Process::live();
    first.rig.write_through(0, write(0, 1));
    first.rig.submit(1, write(0, 1));
    first.rig.submit(2, read(9, 1));
    let out = all_sent(&mut first.rig);
    assert_eq!(out.len(), 2);
    first.record();

    let mut next = first.succeed().unwrap();
    let rig = &mut next.rig;
    assert_eq!(rig.retained.entries(), 1);
    rig.submit(3, write(0, 1));
    assert_eq!(rig.connect(0), Kind::JOIN);
    rig.joined(0, &[]);
    let aborts = all_sent(rig);
    let targets: Vec<_> = aborts.iter().map(|sent| sent.header.id).collect();
    assert_eq!(kinds(&aborts), [Kind::ABORT, Kind::ABORT, Kind::REPLAYED]);
    assert_eq!(targets[..2], [out[0].header.id, out[1].header.id]);
    rig.outcome(0, 1, out[0].header.id, Outcome::Kept);
    assert_eq!(all_sent(rig), []);
    rig.outcome(0, 2, out[1].header.id, Outcome::NeverExecuted);
    // Whatever the ABORTs proved, older retained writes may lie under the orphan.
    assert_eq!(rig.retained.entries(), 1);
    let flush = all_sent(rig);
    assert_eq!(kinds(&flush), [Kind::FLUSH]);
    assert!(!rig.session.is_settled());
    rig.reply(0, flush[0], Status::OK);
    assert!(rig.session.is_settled());
    let again = rig.send(0).unwrap().header;
    assert_eq!((again.kind, again.id), (Kind::WRITE, 5));
}

#[test]
fn the_outcome_of_an_orphan_is_nobodys_business() {
    let mut first = Process::live();
    first.rig.submit(1, write(0, 1));
    let out = first.rig.send(0).unwrap();
    first.record();
    let mut next = first.succeed().unwrap();
    next.rig.connect(0);
    let done = SlotEntry {
        id: out.header.id,
        slot: 1,
        state: SlotState::Done,
        status: Status::OK,
    };
    next.rig.joined(0, &[done]);
    assert_eq!(next.rig.completed(), []);
    assert_eq!(next.rig.send(0).unwrap().header.kind, Kind::ABORT);
}

#[test]
fn a_write_whose_bytes_have_no_place_yet_is_an_orphan_still() {
    let mut first = Process::live();
    first.rig.submit(0, write(0, 1));
    let sent = first.rig.send(0).unwrap();
    first.record();
    first.rig.reply(0, sent, Status::OK);
    // Its completion has not been polled.
    first.record();
    let next = first.succeed().unwrap();
    assert_eq!(next.rig.retained.entries(), 0);
    assert_eq!(next.rig.session.stats().orphans, 1);
}

#[test]
fn a_generation_is_never_used_twice() {
    let mut first = Process::live();
    first.rig.connect(1);
    first.record();
    let used = first.rig.session.conns[1].generation;
    let mut next = first.succeed().unwrap();
    next.rig.connect(1);
    assert_eq!(next.rig.session.conns[1].generation, used + 1);
}

#[test]
fn what_is_retained_is_replayed_where_the_session_is_lost() {
    let mut first = Process::live();
    first.rig.write_through(0, write(0, 1));
    first.rig.write_through(0, write(4, 2));
    first.rig.submit(1, write(8, 1));
    first.rig.send(0).unwrap();
    first.record();
    let mut next = first.succeed().unwrap();
    let payload = |index| next.rig.retained.payload(index);
    assert_eq!(
        (payload(0), payload(1), payload(2)),
        (Some(512), Some(1024), None)
    );
    assert_eq!((next.record.place(0), next.record.place(1)), (1000, 1001));
    let rig = &mut next.rig;
    rig.connect(0);
    rig.refuse(Kind::JOIN, 0, Status::SESSION_LOST);
    rig.events();
    rig.lose(0);
    rig.incarnation = 2;
    assert_eq!(rig.connect(0), Kind::OPEN);
    rig.opened();
    let replays = all_sent(rig);
    assert_eq!(kinds(&replays), [Kind::WRITE, Kind::WRITE]);
    rig.reply(0, replays[0], Status::OK);
    rig.reply(0, replays[1], Status::OK);
    // What is there now must not change once more.
    let flush = all_sent(rig);
    assert_eq!(kinds(&flush), [Kind::FLUSH]);
    rig.reply(0, flush[0], Status::OK);
    assert_eq!(kinds(&all_sent(rig)), [Kind::REPLAYED]);
    assert!(rig.session.is_settled());
}

#[test]
fn a_session_that_was_replaying_is_opened_anew() {
    let mut first = Process::live();
    first.rig.write_through(0, write(0, 1));
    first.record();
    first.rig.lose(0);
    first.rig.connect(0);
    first.rig.refuse(Kind::JOIN, 0, Status::SESSION_LOST);
    first.rig.events();
    first.rig.lose(0);
    first.rig.connect(0);
    first.rig.opened();
    // A replay is out when it dies.
    first.rig.send(0).unwrap();
    first.record();
    let mut next = first.succeed().unwrap();
    assert_eq!(next.rig.connect(0), Kind::OPEN);
    next.rig.opened();
    assert_eq!(next.rig.send(0).unwrap().header.kind, Kind::WRITE);
}

#[test]
fn the_successor_is_the_same_holder_with_the_same_terms() {
    let mut first = Process::live();
    first.rig.session.config.limits.max_payload = 4096;
    first.rig.lose(0);
    first.record();
    let holder = first.rig.session.config.holder;
    let next = first.succeed().unwrap().rig.session;
    assert_eq!(next.config.holder, holder);
    assert_eq!(next.number(), 77);
    assert_eq!(next.geometry().unwrap().size, 1 << 20);
}

#[test]
fn what_can_not_be_adopted_says_why() {
    let fresh = Process::new(Rig::new());
    assert_eq!(fresh.succeed().err(), Some(Unfit::NeverOpened));

    let mut failed = Process::live();
    let rig = &mut failed.rig;
    rig.session
        .fail(&mut rig.slots, &mut rig.retained, FailReason::Forced);
    failed.record();
    assert_eq!(failed.succeed().err(), Some(Unfit::Failed));

    let mut closed = Process::live();
    closed.rig.session.phase = Phase::Closed;
    closed.record();
    assert_eq!(closed.succeed().err(), Some(Unfit::Closed));

    let mut other = Process::live();
    other.record.cells_mut().cells[0] += 1;
    assert_eq!(other.succeed().err(), Some(Unfit::Layout));

    let mut shape = Process::live();
    shape.record.cells_mut().cells[1] += 1 << 32;
    assert_eq!(shape.succeed().err(), Some(Unfit::Damaged));

    // No id is left above the last.
    let mut last = Process::live();
    last.rig.write_through(1, write(0, 1));
    last.record();
    let issued = last.rig.session.next_id - 1;
    let cells = &mut last.record.cells_mut().cells;
    let cell = cells.iter_mut().take(8).rfind(|cell| **cell == issued);
    *cell.unwrap() = u64::MAX;
    assert_eq!(last.succeed().err(), Some(Unfit::Damaged));
}

#[test]
fn an_id_that_never_went_out_is_no_gap() {
    // Two take an id at once; the process dies with the higher one in the table and the lower one not.
    let mut first = Process::live();
    first.rig.write_through(1, write(0, 1));
    first.record();
    let before = first.rig.session.next_id;
    first.rig.submit(3, write(4, 1));
    first.rig.submit(0, write(8, 1));
    first.record.cells_mut().left = 1;
    first.record();
    let mut next = first.succeed().unwrap();
    let rig = &mut next.rig;
    assert_eq!(rig.session.stats().orphans, 0);
    assert_eq!(rig.session.next_id, before);
    rig.connect(0);
    rig.joined(0, &[]);
    let flush = rig.send(0).unwrap();
    assert_eq!((flush.header.kind, flush.header.id), (Kind::FLUSH, before));
}

/// What was let out of the process, and so must be known to a successor.
#[derive(Default)]
struct Outside {
    acknowledged: Vec<Request>,
    sent: Vec<(u16, u64)>,
    generation: u32,
    fresh: bool,
}

/// A life in which everything happens that the record has to follow, ending at the `stores`th store. None: it survived.
fn die_after(stores: usize) -> Option<(Process, Outside)> {
    let mut process = Process::new(Rig::new());
    let mut outside = Outside::default();
    process.record.cells_mut().left = stores;
    let recorded = |process: &mut Process| {
        process.record();
        process.record.cells_mut().left > 0
    };
    process.rig.connect(0);
    process.rig.opened();
    for round in 0u8..3 {
        if !recorded(&mut process) {
            return Some((process, outside));
        }
        outside.generation = process.rig.session.conns[0].generation;
        for at in 0..4 {
            let blocks = u64::from(at) + 1;
            process.rig.submit(at, write(u64::from(at) * 8, blocks));
        }
        process.rig.submit(4, fua(write(1, 2)));
        let sent = all_sent(&mut process.rig);
        if !recorded(&mut process) {
            return Some((process, outside));
        }
        let requests = sent.iter().filter(|sent| sent.header.kind == Kind::WRITE);
        outside.fresh = false;
        outside.sent.extend(
            requests
                .clone()
                .map(|sent| (sent.header.slot, sent.header.id)),
        );
        for sent in requests.clone().take(3 + usize::from(round)) {
            process.rig.reply(0, *sent, Status::OK);
            // From now on it may have finished.
            outside.sent.retain(|(_, id)| *id != sent.header.id);
        }
        let done = process.rig.completed();
        if !recorded(&mut process) {
            return Some((process, outside));
        }
        for (slot, _) in done {
            let mut done = requests.clone().filter(|sent| sent.header.slot == slot);
            let header = done.next().unwrap().header;
            if slot != 4 {
                outside.acknowledged.push(Request {
                    kind: header.kind,
                    flags: header.op_flags,
                    offset: header.offset,
                    length: header.length,
                });
            }
        }
        if round == 1 {
            // The session is lost, and with it what was open.
            process.rig.lose(0);
            process.rig.connect(0);
            process.rig.refuse(Kind::JOIN, 0, Status::SESSION_LOST);
            process.rig.events();
            process.rig.lose(0);
            process.rig.connect(0);
            process.rig.opened();
            process.rig.session.number = 78;
            if !recorded(&mut process) {
                return Some((process, outside));
            }
            outside.fresh = true;
            outside.sent.clear();
        }
        if !outside.fresh {
            for sent in requests.clone().skip(3 + usize::from(round)) {
                process.rig.reply(0, *sent, Status::OK);
            }
            outside.sent.clear();
        }
        while process.rig.session.in_flight() > 0 || process.rig.session.phase() != Phase::Live {
            for sent in all_sent(&mut process.rig) {
                if sent.header.kind.has_slot() {
                    process.rig.reply(0, sent, Status::OK);
                }
            }
            process.rig.events();
            outside.sent.clear();
            if !recorded(&mut process) {
                outside.fresh = true;
                return Some((process, outside));
            }
        }
        process.rig.submit(0, flush());
        let sent = process.rig.send(0).unwrap();
        process.rig.reply(0, sent, Status::OK);
        process.rig.events();
        // It may be told now: nothing is left to keep, whatever the record still has.
        outside.acknowledged.clear();
    }
    None
}

#[test]
fn killed_between_any_two_stores_it_leaves_what_a_successor_needs() {
    let mut stores = 1;
    let mut adopted = 0;
    while let Some((process, outside)) = die_after(stores) {
        stores += 1;
        let opened = process.record.last().is_ok();
        if !opened {
            assert!(outside.sent.is_empty() && outside.acknowledged.is_empty());
            continue;
        }
        let next = process.succeed().unwrap();
        adopted += 1;
        let rig = &next.rig;
        let kept: Vec<Request> = (rig.retained.head()..rig.retained.tail())
            .map(|seq| *rig.retained.entry(seq).request())
            .collect();
        for request in &outside.acknowledged {
            assert!(
                kept.contains(request),
                "store {stores}: {request:?} is lost"
            );
        }
        if rig.session.phase() == Phase::Live && !outside.fresh {
            assert!(rig.session.conns[0].generation >= outside.generation);
            for (slot, id) in &outside.sent {
                let open = rig.slots[usize::from(*slot)].abort.id == *id;
                assert!(open, "store {stores}: id {id} in slot {slot} is forgotten");
            }
        }
        // Every id below the next is open or finished.
        for id in 1..rig.session.next_id {
            let open = rig.slots.iter().any(|slot| slot.abort.id == id);
            assert_ne!(open, rig.session.window.is_finished(id), "store {stores}");
        }
    }
    assert!(adopted > 100, "{adopted}");
}

proptest! {
    #[test]
    fn a_damaged_record_is_refused_or_adopted_and_never_worse(
        damage in proptest::collection::vec((0usize..500, any::<u64>(), any::<bool>()), 1..6),
    ) {
        let mut first = Process::live();
        first.rig.write_through(0, write(0, 1));
        first.rig.submit(1, write(8, 1));
        first.rig.send(0).unwrap();
        first.record();
        let cells = &mut first.record.cells_mut().cells;
        for (at, value, low) in damage {
            let count = cells.len();
            cells[at % count] = if low { value & 0xffff } else { value };
        }
        if let Ok(mut next) = first.succeed() {
            next.rig.connect(0);
            next.rig.submit(2, write(0, 1));
            next.record();
        }
    }
}
