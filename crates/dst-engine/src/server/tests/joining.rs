//! PROTOCOL.md 6.3: what a JOIN shows and what it ends.

use super::super::super::proto::SlotState;
use super::super::super::proto::SlotState::{Done, InProgress};
use super::*;

fn entries(rig: &Rig, acked: u64) -> Vec<(u16, u64, SlotState, Status)> {
    let entries = rig.session.slot_entries(&rig.slots, acked);
    entries
        .map(|entry| (entry.slot, entry.id, entry.state, entry.status))
        .collect()
}

#[test]
fn a_generation_not_above_the_highest_is_refused() {
    let mut rig = rig();
    assert_eq!(rig.join(B, 0, 1), Err(Status::STALE_GENERATION));
    assert_eq!(rig.join(B, 0, 5), Ok(()));
    // A delayed attempt, made before that one.
    assert_eq!(rig.join(C, 0, 4), Err(Status::STALE_GENERATION));
    assert_eq!(rig.join(C, 0, 5), Err(Status::STALE_GENERATION));
    rig.lose(B);
    assert_eq!(rig.join(C, 0, 5), Err(Status::STALE_GENERATION));
    assert_eq!(rig.join(C, 0, 6), Ok(()));
}

#[test]
fn generations_count_for_each_index_alone() {
    let mut rig = rig();
    assert_eq!(rig.join(B, 1, 0), Err(Status::STALE_GENERATION));
    assert_eq!(rig.join(B, 1, 1), Ok(()));
    assert_eq!(rig.join(C, 3, 1), Err(Status::PROTOCOL));
    assert_eq!(rig.join(C, 2, 1), Ok(()));
    assert_eq!(rig.session.connections(), 3);
}

#[test]
fn a_join_ends_the_older_connection_of_its_index_only() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.join(C, 0, 2).unwrap();
    let reason = CloseReason::Superseded;
    let expected = [
        Event::Drop { slot: 0 },
        Event::Close { conn: A, reason },
        Event::Replayed,
    ];
    assert_eq!(rig.events(), expected);
    // Nothing of it counts any more.
    assert!(!rig.session.payload_wanted(A));
    rig.session.payload_done(&mut rig.slots, A, true);
    assert_eq!(rig.start(), []);
    assert!(rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).is_err());
    rig.lose(A);
    assert_eq!(rig.session.connections(), 2);
    rig.send(B, Kind::READ, 1, 2);
    assert_eq!(rig.start(), [2]);
}

#[test]
fn a_payload_of_a_superseded_connection_does_not_end_that_of_the_new_one() {
    let mut rig = rig();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.join(B, 0, 2).unwrap();
    rig.handle(B, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.session.payload_done(&mut rig.slots, A, true);
    assert_eq!(rig.start(), []);
    rig.session.payload_done(&mut rig.slots, B, true);
    assert_eq!(rig.start(), [1]);
}

#[test]
fn slots_shows_what_became_of_each_request() {
    let mut rig = rig();
    rig.run(Kind::WRITE, 0, 1);
    rig.run(Kind::WRITE, 1, 2);
    rig.send(A, Kind::WRITE, 2, 3);
    rig.start();
    rig.done_with(2, 3, Status::IO);
    rig.send(A, Kind::READ, 3, 4);
    rig.start();
    rig.done(3, 4);
    rig.send(A, Kind::WRITE, 4, 5);
    rig.start();
    rig.take(A, &barrier(request(Kind::FLUSH, FLUSH_SLOT, 7, 0, 0)));
    rig.handle(A, &request(Kind::WRITE, 5, 6, 60, 1)).unwrap();
    rig.lose(A);
    let expected = [
        (1, 2, Done, Status::OK),
        (2, 3, Done, Status::IO),
        (3, 4, InProgress, Status::OK),
        (4, 5, InProgress, Status::OK),
        (FLUSH_SLOT, 7, InProgress, Status::OK),
    ];
    assert_eq!(entries(&rig, 1), expected);
}

#[test]
fn an_executed_write_is_learnt_from_slots_and_not_executed_again() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.lose(A);
    rig.done(0, 1);
    rig.join(B, 0, 2).unwrap();
    assert_eq!(entries(&rig, 0), [(0, 1, Done, Status::OK)]);
    assert_eq!(rig.out(B), []);
    assert_eq!(rig.session.unanswered(), 0);
    // A client that sends it again all the same is answered.
    assert_eq!(rig.send(B, Kind::WRITE, 0, 1), Take::Discard);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(B), [ok(Kind::WRITE, 0, 1)]);
}

#[test]
fn outcomes_in_slots_give_their_credit_back() {
    let mut config = config();
    config.limits.credit_bytes = BLOCK as u32;
    let mut rig = rig_with(config);
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done(0, 1);
    // The answer waits on A, which is slow, while the client joins with B and learns the outcome there.
    rig.join(B, 1, 1).unwrap();
    rig.send(B, Kind::WRITE, 1, 2);
    assert_eq!(rig.start(), [2]);
}

#[test]
fn a_request_in_progress_when_its_connection_broke_is_answered_to_the_resend() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.join(B, 0, 2).unwrap();
    rig.send(B, Kind::WRITE, 0, 1);
    rig.done(0, 1);
    assert_eq!(rig.out(B), [ok(Kind::WRITE, 0, 1)]);
    assert_eq!(rig.session.unanswered(), 0);
}

#[test]
fn a_lost_connection_drops_what_was_read_for_it_and_a_resend_reads_again() {
    let mut rig = rig();
    rig.send(A, Kind::READ, 0, 1);
    rig.start();
    rig.done(0, 1);
    rig.lose(A);
    assert_eq!(rig.events(), [Event::Drop { slot: 0 }, Event::Replayed]);
    rig.join(B, 0, 2).unwrap();
    rig.send(B, Kind::READ, 0, 1);
    assert_eq!(rig.start(), [1]);
}

#[test]
fn a_read_resent_over_another_connection_begins_there_anew_without_a_second_execution() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.take(A, &request(Kind::READ, 0, 1, 0, 256));
    rig.start();
    rig.done(0, 1);
    assert_eq!(rig.out_one(A), Some(Out::Piece(0, 1, 0, 65536, false)));
    rig.take(B, &request(Kind::READ, 0, 1, 0, 256));
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
    let pieces = [
        Out::Piece(0, 1, 0, 65536, false),
        Out::Piece(0, 1, 65536, 65536, true),
    ];
    assert_eq!(rig.out(B), pieces);
}

#[test]
fn a_join_of_an_ended_session_is_session_lost() {
    let mut rig = rig();
    rig.session.settle(&mut rig.slots, Status::LEASE_LOST);
    assert_eq!(rig.join(B, 0, 2), Err(Status::SESSION_LOST));
}

#[test]
fn a_join_that_acknowledges_too_much_is_refused_and_changes_nothing() {
    let mut rig = rig();
    let joined = rig.session.join(&mut rig.slots, B, 0, 2, 1, 0);
    assert_eq!(joined, Err(Status::PROTOCOL));
    rig.send(A, Kind::READ, 0, 1);
    assert_eq!(rig.start(), [1]);
}
