//! Arbitrary events in arbitrary order: no panic, no broken invariant, no rule of order or of dedup broken.

use super::super::super::window::IdWindow;
use super::super::list::{List, QUEUE, WRITES};
use super::super::slot::{Pending, State};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Step {
    Frame { conn: u32, header: Header },
    Payload { conn: u32, good: bool },
    Execute,
    Executed { nth: usize, status: u16 },
    Reply { conn: u32 },
    Lose { conn: u32 },
    Join { index: u16 },
    Gate(bool),
    Time(u64),
    Settle,
}

fn kind() -> impl Strategy<Value = Kind> {
    let kinds = [
        Kind::READ,
        Kind::WRITE,
        Kind::WRITE,
        Kind::WRITE,
        Kind::FLUSH,
        Kind::DISCARD,
        Kind::WRITE_ZEROES,
        Kind::BLOCK_STATUS,
        Kind::ABORT,
        Kind::ABORT,
        Kind::PING,
        Kind(200),
    ];
    prop::sample::select(kinds.to_vec())
}

/// Mostly frames that a client might send.
fn header() -> impl Strategy<Value = Header> {
    let place = (kind(), 0..SLOTS + 1, 1u64..24, 0u64..12, 1u64..4);
    let extras = (any::<bool>(), 0u32..4, 0u32..40);
    (place, extras).prop_map(|((kind, slot, id, at, blocks), (is_barrier, after, odd))| {
        let header = request(kind, slot, id, at, blocks);
        let header = if is_barrier && odd < 8 {
            barrier(header)
        } else {
            header
        };
        Header {
            after: if odd >= 30 { after } else { 0 },
            length: if odd == 9 { u64::MAX } else { header.length },
            kind: if odd == 10 { Kind::CLOSE } else { kind },
            ..header
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1u32..8, header()).prop_map(|(conn, header)| Step::Frame { conn, header }),
        8 => (1u32..8, 0..8u8).prop_map(|(conn, n)| Step::Payload { conn, good: n > 0 }),
        8 => Just(Step::Execute),
        8 => (any::<usize>(), prop::sample::select(std::vec![0u16, 0, 0, 0, 2, 3]))
            .prop_map(|(nth, status)| Step::Executed { nth, status }),
        8 => (1u32..8).prop_map(|conn| Step::Reply { conn }),
        1 => (1u32..8).prop_map(|conn| Step::Lose { conn }),
        1 => (0u16..3).prop_map(|index| Step::Join { index }),
        1 => (0..4u8).prop_map(|n| Step::Gate(n == 0)),
        1 => (0..2000u64).prop_map(Step::Time),
        1 => (0..60u8).prop_map(|n| if n == 0 { Step::Settle } else { Step::Execute }),
    ]
}

/// What must be true between any two events.
fn check(rig: &Rig) {
    let (session, slots) = (&rig.session, &rig.slots);
    let counted: Vec<u16> = (0..SLOTS)
        .filter(|at| slots[usize::from(*at)].counted)
        .collect();
    let in_use = counted.iter().filter(|at| **at != FLUSH_SLOT).count();
    assert_eq!(usize::from(session.in_use), in_use);
    let bytes: u64 = counted
        .iter()
        .map(|at| u64::from(slots[usize::from(*at)].payload))
        .sum();
    assert_eq!(session.bytes, bytes);
    let count = |state| slots.iter().filter(|slot| slot.state == state).count();
    assert_eq!(usize::from(session.executing), count(State::Executing));
    let unflushed = slots
        .iter()
        .filter(|slot| slot.state == State::Settling && !slot.flushing);
    if !session.is_ended() {
        assert_eq!(usize::from(session.settling), unflushed.count());
    }
    let dropped = slots.iter().filter(|slot| slot.dropped).count();
    assert_eq!(usize::from(session.dropped), dropped);

    let members = |list: &List<QUEUE>| -> BTreeSet<u16> {
        let next = |at: &u16| List::<QUEUE>::next(slots, *at);
        std::iter::successors(list.head(), next).collect()
    };
    let in_state = |state| -> BTreeSet<u16> {
        (0..SLOTS)
            .filter(|at| slots[usize::from(*at)].state == state)
            .collect()
    };
    assert_eq!(members(&session.held), in_state(State::Held));
    assert_eq!(members(&session.ready), in_state(State::Ready));
    let next = |at: &u16| List::<WRITES>::next(slots, *at);
    let writes: BTreeSet<u16> = std::iter::successors(session.writes.head(), next).collect();
    let unfinished: BTreeSet<u16> = (0..SLOTS)
        .filter(|at| {
            let slot = &slots[usize::from(*at)];
            slot.kind.is_write() && (slot.in_progress() || slot.state == State::Receiving)
        })
        .collect();
    assert_eq!(writes, unfinished);

    for (at, lane) in (0u16..).zip(session.lanes.iter()) {
        let mine = |slot: &Slot| slot.lane == at;
        let pending: BTreeSet<u16> = (0..SLOTS)
            .filter(|at| {
                let slot = &slots[usize::from(*at)];
                mine(slot) && slot.pending != Pending::None
            })
            .collect();
        assert_eq!(members(&lane.replies), pending);
        let receiving = (0..SLOTS).find(|at| {
            let slot = &slots[usize::from(*at)];
            mine(slot) && slot.state == State::Receiving
        });
        assert_eq!(lane.receiving, receiving);
        assert!(lane.conn.is_some() || !slots.iter().any(mine));
    }

    let executing: Vec<&Slot> = slots
        .iter()
        .filter(|slot| slot.state == State::Executing)
        .collect();
    for (n, one) in executing.iter().enumerate() {
        assert!(executing[n + 1..].iter().all(|other| !one.overlaps(other)));
    }
}

/// What the rules say about executions, kept beside the session.
#[derive(Default)]
struct Model {
    /// At the backend: slot, and what was said about it.
    running: Vec<(u16, u64)>,
    flush: bool,
    /// By slot and id, since nothing keeps a client from using an id twice before it has finished.
    writes_run: BTreeSet<(u16, u64)>,
    never: BTreeSet<(u16, u64)>,
    outcomes: BTreeMap<(u16, u64), Outcome>,
    kept: BTreeMap<u16, Kept>,
}

/// The one thing that a driver keeps for a slot, with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Payload(u64),
    Read(u64),
}

impl Model {
    fn executes(&mut self, rig: &Rig, execute: &Execute) {
        if execute.slot == NO_SLOT {
            assert!(!self.flush, "one flush of the session's own at a time");
            self.flush = true;
            return;
        }
        let floor = rig.session.window.floor();
        if execute.flags.contains(OpFlags::BARRIER) {
            assert!(floor >= execute.id - 1, "a barrier before a lower id");
        }
        assert!(floor >= rig.slots[usize::from(execute.slot)].not_before);
        let place = (execute.slot, execute.id);
        assert!(!self.never.contains(&place), "executed after all");
        if execute.kind.is_write() || execute.kind == Kind::FLUSH {
            assert!(self.writes_run.insert(place), "executed twice");
        }
        let kept = self.kept.remove(&execute.slot);
        if execute.kind == Kind::WRITE {
            assert_eq!(kept, Some(Kept::Payload(execute.id)));
        }
        self.running.push(place);
    }

    fn executed(&mut self, kind: Kind, slot: u16, id: u64, status: Status) {
        if matches!(kind, Kind::READ | Kind::BLOCK_STATUS) && status.is_ok() {
            self.kept.insert(slot, Kept::Read(id));
        }
    }

    fn sent(&mut self, out: Out) {
        if let Out::Outcome(slot, id, outcome) = out {
            let before = self.outcomes.insert((slot, id), outcome);
            assert!(
                before.is_none_or(|before| before == outcome),
                "another outcome"
            );
            if outcome == Outcome::NeverExecuted {
                self.never.insert((slot, id));
                assert!(!self.writes_run.contains(&(slot, id)));
            }
        }
        if let Out::Piece(slot, id, ..) | Out::Extents(slot, id) = out {
            assert_eq!(self.kept.get(&slot), Some(&Kept::Read(id)));
        }
        if let Out::Piece(slot, .., true) | Out::Extents(slot, _) = out {
            self.kept.remove(&slot);
        }
    }

    fn events(&mut self, rig: &mut Rig) {
        for event in rig.events() {
            if let Event::Drop { slot } = event {
                assert!(
                    self.kept.remove(&slot).is_some(),
                    "nothing is kept for {slot}"
                );
            }
        }
        // Nothing is kept that the session has no use for.
        for (slot, kept) in &self.kept {
            let slot = &rig.slots[usize::from(*slot)];
            let used = match kept {
                Kept::Payload(_) => {
                    slot.kind == Kind::WRITE
                        && matches!(slot.state, State::Receiving | State::Held | State::Ready)
                }
                Kept::Read(_) => slot.data,
            };
            assert!(used, "{kept:?} of {slot:?}");
        }
    }
}

fn run(steps: Vec<Step>) {
    let mut rig = rig();
    let mut model = Model::default();
    let (mut next_conn, mut next_generation) = (2, 2);
    for step in steps {
        let floor = rig.session.window.floor();
        match step {
            Step::Frame { conn, header } => match rig.handle(ConnId(conn), &header) {
                Ok(Take::Payload { slot }) => {
                    model.kept.insert(slot, Kept::Payload(header.id));
                }
                Ok(_) => {}
                Err(_) => rig.lose(ConnId(conn)),
            },
            Step::Payload { conn, good } => {
                rig.session.payload_done(&mut rig.slots, ConnId(conn), good);
            }
            Step::Execute => {
                if let Some(execute) = rig.session.poll_execute(&mut rig.slots) {
                    model.executes(&rig, &execute);
                }
            }
            Step::Executed { nth, status } => {
                if model.flush && nth % 4 == 0 {
                    model.flush = false;
                    rig.flushed();
                } else if !model.running.is_empty() {
                    let (slot, id) = model.running.swap_remove(nth % model.running.len());
                    let kind = rig.slots[usize::from(slot)].kind;
                    model.executed(kind, slot, id, Status(status));
                    rig.done_with(slot, id, Status(status));
                }
            }
            Step::Reply { conn } => {
                if let Some(out) = rig.out_one(ConnId(conn)) {
                    model.sent(out);
                }
            }
            Step::Lose { conn } => rig.lose(ConnId(conn)),
            Step::Join { index } => {
                if rig.join(ConnId(next_conn), index, next_generation).is_ok() {
                    next_conn += 1;
                    next_generation += 1;
                }
                // At most one entry a slot, and none that was never seen.
                assert!(rig
                    .session
                    .slot_entries(&rig.slots, 0)
                    .all(|entry| entry.id > 0));
            }
            Step::Gate(on) => rig.session.set_gate(&mut rig.slots, on),
            Step::Time(by) => {
                rig.now += by;
                rig.session.handle_timeout(&mut rig.slots, rig.now);
            }
            Step::Settle => rig.session.settle(&mut rig.slots, Status::LEASE_LOST),
        }
        model.events(&mut rig);
        check(&rig);
        assert!(rig.session.window.floor() >= floor);
        let busy = !model.running.is_empty() || model.flush;
        assert_eq!(rig.session.settled(), !busy);
    }
    // Whatever it was: once the backend is through, the session can be settled.
    rig.session.settle(&mut rig.slots, Status::SESSION_LOST);
    assert!(rig.start().is_empty());
    for (slot, id) in model.running {
        rig.done(slot, id);
    }
    if model.flush {
        rig.flushed();
    }
    check(&rig);
    assert!(rig.session.settled());
}

/// Any header that the decoder lets through, and some that it doesn't.
fn any_header() -> impl Strategy<Value = Header> {
    let first = (
        any::<u8>(),
        any::<bool>(),
        any::<u16>(),
        any::<[u8; 2]>(),
        any::<u32>(),
    );
    let second = (
        any::<u64>(),
        0u64..4,
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
    );
    (first, second).prop_map(
        |((kind, reply, slot, [flags, attempt], payload), (id, acked, offset, length, after))| {
            Header {
                kind: Kind(kind % 40),
                reply,
                slot: slot % (SLOTS + 2),
                op_flags: OpFlags(flags),
                attempt,
                payload_len: payload,
                id: if after % 2 == 0 { id % 70 } else { id },
                acked,
                offset,
                length,
                after,
                ..Header::new(Kind::PING)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_sequence_of_events_breaks_a_rule(steps in prop::collection::vec(step(), 1..300)) {
        run(steps);
    }

    #[test]
    fn no_frame_breaks_a_session(
        headers in prop::collection::vec(any_header(), 1..60),
        options in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut rig = rig();
        let mut model = Model::default();
        for header in headers {
            let now = rig.now;
            let taken = rig.session.handle_request(&mut rig.slots, A, &header, &options, now);
            if let Ok(Take::Payload { slot }) = taken {
                model.kept.insert(slot, Kept::Payload(header.id));
                rig.session.payload_done(&mut rig.slots, A, true);
            }
            check(&rig);
            while let Some(execute) = rig.session.poll_execute(&mut rig.slots) {
                model.executes(&rig, &execute);
                rig.session.executed(&mut rig.slots, execute.slot, execute.id, Status::OK);
                model.flush = false;
            }
            rig.out(A);
            rig.events();
            check(&rig);
        }
    }

    #[test]
    fn the_gaps_of_a_window_are_all_that_holds_a_barrier(
        order in Just((1u64..8).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        // Ids arrive in any order over slots of their own; the highest is a barrier.
        let mut rig = rig();
        rig.take(A, &barrier(request(Kind::FLUSH, FLUSH_SLOT, 8, 0, 0)));
        let mut window = IdWindow::new([0u64; 1]);
        for id in order {
            prop_assert_eq!(rig.start(), []);
            rig.send(A, Kind::WRITE, id as u16 - 1, id);
            prop_assert_eq!(rig.start(), [id]);
            rig.done(id as u16 - 1, id);
            window.finish(id);
            prop_assert_eq!(rig.session.window.floor(), window.floor());
        }
        prop_assert_eq!(rig.start(), [8]);
    }
}
