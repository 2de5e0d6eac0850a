//! Connections that break, sessions that are lost, devices that fail.

extern crate std;

use std::vec::Vec;

use super::super::super::proto::{
    Header, Kind, OpenRequest, Outcome, SlotEntry, SlotState, Status, HEADER_LEN, HELLO_LEN,
};
use super::super::{Event, FailReason, Failure, Phase, Source};
use super::rig::*;

#[test]
fn after_a_join_known_outcomes_complete_and_the_rest_is_sent_again() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    rig.submit(1, write(1, 1));
    rig.submit(2, read(2, 1));
    while rig.send(0).is_some() {}
    rig.lose(0);
    assert_eq!(rig.connect(0), Kind::JOIN);
    let done = |slot: u16, id| SlotEntry {
        id,
        slot,
        state: SlotState::Done,
        status: Status::OK,
    };
    rig.joined(0, &[done(0, 1), done(2, 3)]);
    assert_eq!(rig.completed(), [(0, Ok(()))]);
    let again: Vec<_> = core::iter::from_fn(|| rig.send(0))
        .filter(|sent| sent.header.kind.has_slot())
        .map(|sent| (sent.header.slot, sent.header.id))
        .collect();
    assert_eq!(again, [(1, 2), (2, 3)]);
}

#[test]
fn what_was_out_on_a_broken_connection_goes_out_on_another() {
    let mut rig = Rig::live();
    assert_eq!(rig.connect(1), Kind::JOIN);
    rig.joined(1, &[]);
    rig.submit(0, write(0, 1));
    let first = rig.send(0).unwrap();
    assert_eq!(rig.send(1), None);
    rig.lose(0);
    let again = rig.send(1).unwrap();
    assert_eq!(again.header.id, first.header.id);
    rig.reply(1, again, Status::OK);
    assert_eq!(rig.completed(), [(0, Ok(()))]);
}

#[test]
fn frames_of_an_older_stream_are_refused() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    let sent = rig.send(0).unwrap();
    let old = rig.streams[0];
    rig.lose(0);
    rig.connect(0);
    let new = rig.streams[0];
    rig.streams[0] = old;
    let header = super::super::super::proto::Header::reply(
        Kind::WRITE,
        0,
        sent.header.id,
        Status::OK,
        rig.credit,
    );
    assert!(rig.frame(0, header, &[]).is_err());
    rig.streams[0] = new;
}

pub(super) fn lose_session(rig: &mut Rig) {
    rig.lose(0);
    assert_eq!(rig.connect(0), Kind::JOIN);
    rig.refuse(Kind::JOIN, 0, Status::SESSION_LOST);
    assert!(rig
        .events()
        .iter()
        .any(|event| matches!(event, Event::Close { index: 0, .. })));
    assert!(!rig.session.wants_connection(0));
    rig.lose(0);
    assert!(rig.session.wants_connection(0));
    assert_eq!(rig.connect(0), Kind::OPEN);
}

#[test]
fn a_fresh_session_replays_first_then_resends_in_the_old_order() {
    let mut rig = Rig::live();
    rig.write_through(0, write(0, 2));
    rig.write_through(0, write(1, 2));
    rig.submit(3, read(9, 1));
    rig.submit(2, write(20, 1));
    while rig.send(0).is_some() {}
    rig.incarnation = 2;
    lose_session(&mut rig);
    rig.opened();
    let first = rig.send(0).unwrap();
    assert_eq!(
        first.payload.unwrap().source,
        Source::Retained { seq: 0, from: 0 }
    );
    // The second overlaps the first.
    assert_eq!(rig.send(0), None);
    rig.reply(0, first, Status::OK);
    let second = rig.send(0).unwrap();
    assert_eq!(
        second.payload.unwrap().source,
        Source::Retained { seq: 1, from: 0 }
    );
    rig.reply(0, second, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    let rest: Vec<_> = core::iter::from_fn(|| rig.send(0))
        .map(|sent| (sent.header.slot, sent.header.id))
        .collect();
    assert_eq!(rest, [(3, 3), (2, 4)]);
    assert_eq!(rig.retained.entries(), 2);
}

#[test]
fn a_replay_that_fails_is_the_end_of_the_device_whatever_it_replays() {
    for kind in [Kind::WRITE, Kind::WRITE_ZEROES, Kind::DISCARD] {
        let mut rig = Rig::live();
        rig.write_through(0, request(kind, 0, 2));
        rig.incarnation = 2;
        lose_session(&mut rig);
        rig.opened();
        let replay = rig.send(0).unwrap();
        assert_eq!(replay.header.kind, kind);
        rig.reply(0, replay, Status::IO);
        let reason = FailReason::ReplayFailed(Status::IO);
        assert!(rig.events().contains(&Event::Failed(reason)), "{kind:?}");
    }
}

#[test]
fn credit_that_was_scarce_is_asked_for_in_full_by_the_next_session() {
    let mut rig = Rig::new();
    let asked = rig.session.config.limits.credit_bytes;
    rig.credit.bytes = asked / 4;
    rig.open();
    assert_eq!(rig.session.credit.bytes, asked / 4);
    lose_session(&mut rig);
    rig.lose(0);
    rig.streams[0] = rig.session.handle_connected(0, rig.now);
    let sent = rig.greet(0, rig.streams[0]).unwrap();
    let header = Header::decode(sent[HELLO_LEN..].first_chunk().unwrap()).unwrap();
    let options = &sent[HELLO_LEN + HEADER_LEN..][..usize::from(header.options_len)];
    let open = OpenRequest::decode(options).unwrap();
    assert_eq!(open.limits.credit_bytes, asked);
    rig.credit.bytes = asked;
    rig.opened();
    assert_eq!(rig.session.credit.bytes, asked);
}

#[test]
fn a_session_lost_during_the_replay_begins_it_anew() {
    let mut rig = Rig::live();
    rig.write_through(0, write(0, 1));
    rig.write_through(0, write(8, 1));
    lose_session(&mut rig);
    rig.opened();
    let first = rig.send(0).unwrap();
    rig.send(0).unwrap();
    rig.reply(0, first, Status::OK);
    lose_session(&mut rig);
    rig.opened();
    let offsets: Vec<_> = core::iter::from_fn(|| rig.send(0))
        .map(|sent| sent.header.offset)
        .collect();
    assert_eq!(offsets, [0, 8 * BLOCK]);
}

#[test]
fn without_retention_lost_writes_fail_the_device() {
    let mut rig = Rig::with(None, 0);
    rig.open();
    rig.write_through(0, write(0, 1));
    rig.submit(1, flush());
    rig.send(0).unwrap();
    rig.incarnation = 2;
    lose_session(&mut rig);
    rig.opened();
    let events = rig.events();
    assert!(events.contains(&Event::Failed(FailReason::WritesLost)));
    let flush = Event::Completed {
        slot: 1,
        result: Err(Failure::DeviceFailed),
        retained: None,
    };
    assert!(events.contains(&flush));
    rig.submit(2, read(0, 1));
    assert_eq!(rig.completed(), [(2, Err(Failure::DeviceFailed))]);
}

#[test]
fn without_retention_a_flushed_device_survives_a_new_incarnation() {
    let mut rig = Rig::with(None, 0);
    rig.open();
    rig.write_through(0, write(0, 1));
    rig.write_through(1, flush());
    rig.incarnation = 2;
    lose_session(&mut rig);
    rig.opened();
    rig.send(0).unwrap();
    assert_eq!(rig.session.phase(), Phase::Live);
}

#[test]
fn another_export_under_the_name_fails_the_device() {
    let mut rig = Rig::live();
    rig.export_id = 10;
    lose_session(&mut rig);
    rig.opened();
    assert_eq!(
        rig.session.phase(),
        Phase::Failed(FailReason::ExportChanged)
    );
    assert!(!rig.session.wants_connection(0));
}

#[test]
fn a_lost_lease_fails_the_device() {
    let mut rig = Rig::live();
    lose_session(&mut rig);
    rig.refuse(Kind::OPEN, 0, Status::LEASE_LOST);
    assert_eq!(rig.session.phase(), Phase::Failed(FailReason::LeaseLost));
}

#[test]
fn a_missing_export_is_waited_for_once_the_device_is_there() {
    let mut rig = Rig::live();
    lose_session(&mut rig);
    rig.refuse(Kind::OPEN, 0, Status::NO_EXPORT);
    assert_eq!(rig.session.phase(), Phase::Opening);
    rig.events();
    rig.lose(0);
    assert_eq!(rig.connect(0), Kind::OPEN);
}

#[test]
fn a_flush_that_can_never_succeed_fails_the_device() {
    let mut rig = Rig::live();
    rig.submit(0, flush());
    let sent = rig.send(0).unwrap();
    rig.reply(0, sent, Status::SYNC_FAILED);
    assert_eq!(rig.session.phase(), Phase::Failed(FailReason::SyncFailed));
}

#[test]
fn a_request_under_which_connections_break_is_sent_alone() {
    let mut rig = Rig::live();
    rig.submit(0, read(0, 1));
    for _ in 0..3 {
        rig.send(0).unwrap();
        rig.lose(0);
        rig.connect(0);
        rig.joined(0, &[]);
    }
    rig.submit(1, read(1, 1));
    assert_eq!(rig.session.suspects(), 1);
    let suspect = rig.send(0).unwrap();
    assert_eq!(suspect.header.slot, 0);
    while let Some(sent) = rig.send(0) {
        assert!(!sent.header.kind.has_slot());
    }
    rig.reply(0, suspect, Status::IO);
    assert_eq!(rig.send(0).unwrap().header.slot, 1);
    assert_eq!(rig.session.suspects(), 0);
}

#[test]
fn silence_is_noticed() {
    const SECOND: u64 = 1_000_000_000;
    let mut rig = Rig::live();
    rig.timeout(SECOND);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::PING);
    rig.timeout(3 * SECOND);
    assert_eq!(rig.events(), []);
    rig.session.handle_alive(0, 3 * SECOND);
    rig.timeout(4 * SECOND);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::PING);
    rig.timeout(7 * SECOND);
    assert!(matches!(rig.event(), Some(Event::Close { index: 0, .. })));
}

#[test]
fn a_settled_abort_is_forgotten_with_its_session() {
    let mut rig = Rig::with(Some(10), 64);
    rig.open();
    rig.submit(0, write(0, 1));
    rig.send(0).unwrap();
    rig.timeout(10);
    assert_eq!(rig.completed(), [(0, Err(Failure::Deadline))]);
    lose_session(&mut rig);
    rig.opened();
    rig.submit(1, read(0, 1));
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::READ);
    // Late news of the old session change nothing.
    rig.outcome(0, 0, 1, Outcome::Kept);
}

#[test]
fn only_the_first_connection_opens_a_session() {
    let mut rig = Rig::live();
    rig.connect(1);
    rig.joined(1, &[]);
    rig.lose(1);
    // Index 1 is connected again, and has not greeted, when the session turns out to be lost.
    let stream = rig.session.handle_connected(1, 0);
    rig.lose(0);
    rig.connect(0);
    rig.refuse(Kind::JOIN, 0, Status::SESSION_LOST);
    rig.lose(0);
    assert!(!rig.session.wants_connection(0), "an older stream is left");
    assert!(rig.greet(1, stream).is_err());
    rig.lose(1);
    assert_eq!(rig.connect(0), Kind::OPEN);
}

#[test]
fn a_join_in_the_middle_of_a_replay_does_not_end_it() {
    let mut rig = Rig::live();
    for at in 0..10 {
        rig.write_through(0, write(2 * at, 1));
    }
    rig.incarnation = 2;
    lose_session(&mut rig);
    rig.opened();
    rig.send(0).unwrap();
    rig.lose(0);
    rig.connect(0);
    rig.joined(0, &[]);
    let sent: Vec<_> = core::iter::from_fn(|| rig.send(0)).collect();
    assert_eq!(sent.len(), 8);
    assert!(sent.iter().all(|sent| sent.header.kind == Kind::WRITE));
}

#[test]
fn a_suspect_that_a_barrier_waits_for_is_sent() {
    let mut rig = Rig::live();
    rig.connect(1);
    rig.joined(1, &[]);
    rig.submit(0, read(0, 1));
    for _ in 0..2 {
        rig.send(0).unwrap();
        rig.lose(0);
        rig.connect(0);
        rig.joined(0, &[]);
    }
    rig.send(0).unwrap();
    rig.submit(1, barrier(flush()));
    assert_eq!(rig.send(1).unwrap().header.slot, 1);
    rig.lose(0);
    assert_eq!(rig.session.suspects(), 1);
    assert_eq!(rig.send(1).unwrap().header.slot, 0);
}

#[test]
fn an_export_that_can_not_be_synced_fails_the_device() {
    let mut rig = Rig::live();
    lose_session(&mut rig);
    rig.refuse(Kind::OPEN, 0, Status::SYNC_FAILED);
    assert_eq!(rig.session.phase(), Phase::Failed(FailReason::SyncFailed));
}

#[test]
fn an_export_that_is_read_only_now_fails_the_device() {
    let mut rig = Rig::live();
    lose_session(&mut rig);
    rig.refuse(Kind::OPEN, 0, Status::READ_ONLY);
    let reason = FailReason::Refused(Status::READ_ONLY);
    assert_eq!(rig.session.phase(), Phase::Failed(reason));
}

#[test]
fn an_export_that_grew_meanwhile_resizes_the_device() {
    let mut rig = Rig::live();
    lose_session(&mut rig);
    rig.size *= 2;
    rig.opened();
    assert!(rig.events().contains(&Event::Changed));
}

#[test]
fn a_write_whose_fate_was_lost_is_settled_for_good_before_anything_is_served() {
    let mut rig = Rig::with(Some(100), 64);
    rig.open();
    rig.write_through(0, write(0, 1));
    rig.submit(1, write(0, 1));
    rig.send(0).unwrap();
    lose_session(&mut rig);
    rig.timeout(100);
    rig.submit(2, read(0, 1));
    rig.opened();
    let replay = rig.send(0).unwrap();
    assert_eq!(replay.header.kind, Kind::WRITE);
    assert_eq!(rig.send(0), None);
    rig.reply(0, replay, Status::OK);
    let flush = rig.send(0).unwrap();
    assert_eq!(flush.header.kind, Kind::FLUSH);
    assert_eq!(rig.send(0), None);
    rig.reply(0, flush, Status::OK);
    assert_eq!(rig.retained.entries(), 0);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::READ);
}

#[test]
fn a_write_carried_over_that_fails_before_it_is_sent_again_is_settled_too() {
    let mut rig = Rig::with(Some(100), 64);
    rig.open();
    rig.write_through(0, write(0, 1));
    rig.submit(1, write(0, 1));
    rig.send(0).unwrap();
    lose_session(&mut rig);
    rig.opened();
    let replay = rig.send(0).unwrap();
    rig.timeout(100);
    assert_eq!(rig.completed(), [(1, Err(Failure::Deadline))]);
    rig.submit(2, read(0, 1));
    rig.reply(0, replay, Status::OK);
    let flush = rig.send(0).unwrap();
    assert_eq!(flush.header.kind, Kind::FLUSH);
    assert_eq!(rig.send(0), None);
    rig.reply(0, flush, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
}
