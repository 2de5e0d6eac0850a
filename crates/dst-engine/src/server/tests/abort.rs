//! PROTOCOL.md 5.6: ABORT of a request in each of its states.

use super::*;

fn never(slot: u16, id: u64) -> Out {
    Out::Outcome(slot, id, Outcome::NeverExecuted)
}

fn kept(slot: u16, id: u64) -> Out {
    Out::Outcome(slot, id, Outcome::Kept)
}

#[test]
fn an_id_not_seen_leaves_a_tombstone() {
    let mut rig = rig();
    rig.run(Kind::WRITE, 0, 1);
    rig.abort(A, 0, 2);
    assert_eq!(rig.out(A), [never(0, 2)]);
    // The request itself comes late.
    assert_eq!(rig.send(A, Kind::WRITE, 0, 2), Take::Discard);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
    rig.run(Kind::WRITE, 0, 3);
}

#[test]
fn a_request_that_is_arriving_is_never_executed() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.abort(B, 0, 1);
    assert_eq!(rig.out(B), [never(0, 1)]);
    assert!(!rig.session.payload_wanted(A));
    rig.session.payload_done(&mut rig.slots, A, true);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.session.unanswered(), 0);
    assert_eq!(rig.events(), [Event::Drop { slot: 0 }, Event::Replayed]);
}

#[test]
fn a_held_request_is_never_executed_and_lets_others_go() {
    let mut rig = rig();
    rig.take(A, &request(Kind::WRITE, 0, 1, 0, 1));
    rig.take(A, &request(Kind::WRITE, 1, 2, 0, 1));
    rig.take(A, &request(Kind::WRITE, 2, 3, 0, 1));
    assert_eq!(rig.start(), [1]);
    rig.abort(A, 1, 2);
    assert_eq!(rig.out(A), [never(1, 2)]);
    rig.done(0, 1);
    assert_eq!(rig.start(), [3]);
}

#[test]
fn a_ready_request_is_never_executed() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.abort(A, 0, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), [never(0, 1)]);
}

#[test]
fn one_answered_retry_is_never_executed() {
    let mut rig = rig();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.session.payload_done(&mut rig.slots, A, false);
    rig.abort(A, 0, 1);
    assert_eq!(rig.out(A), [never(0, 1)]);
}

#[test]
fn a_refused_request_was_never_executed() {
    let mut rig = rig();
    rig.handle(A, &request(Kind::DISCARD, 0, 1, 2048, 1))
        .unwrap();
    rig.abort(A, 0, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), [never(0, 1)]);
}

#[test]
fn a_write_that_executes_is_kept_after_a_flush_that_follows_it() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.abort(A, 0, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
    rig.done(0, 1);
    // The answer to the write itself is not sent any more.
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.start(), [0]);
    assert_eq!(rig.out(A), []);
    rig.flushed();
    assert_eq!(rig.out(A), [kept(0, 1)]);
}

#[test]
fn a_flush_that_began_before_the_write_had_finished_does_not_count() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.send(A, Kind::WRITE, 1, 2);
    rig.start();
    rig.abort(A, 0, 1);
    rig.abort(A, 1, 2);
    rig.done(0, 1);
    assert_eq!(rig.start(), [0]);
    rig.done(1, 2);
    assert_eq!(rig.start(), []);
    rig.flushed();
    assert_eq!(rig.out(A), [kept(0, 1)]);
    assert_eq!(rig.start(), [0]);
    rig.flushed();
    assert_eq!(rig.out(A), [kept(1, 2)]);
}

#[test]
fn a_write_that_is_done_is_kept_and_its_pending_answer_taken_back() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.send(A, Kind::WRITE_ZEROES, 0, 1);
    rig.start();
    rig.done(0, 1);
    rig.abort(B, 0, 1);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.start(), [0]);
    rig.flushed();
    assert_eq!(rig.out(B), [kept(0, 1)]);
}

#[test]
fn a_read_is_kept_without_a_flush() {
    let mut rig = rig();
    rig.send(A, Kind::READ, 0, 1);
    rig.start();
    rig.abort(A, 0, 1);
    rig.done(0, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), [kept(0, 1)]);
    assert_eq!(rig.events(), [Event::Drop { slot: 0 }, Event::Replayed]);
}

#[test]
fn the_pieces_of_a_read_stop_when_it_is_aborted() {
    let mut rig = rig();
    rig.take(A, &request(Kind::READ, 0, 1, 0, 256));
    rig.start();
    rig.done(0, 1);
    assert_eq!(rig.out_one(A), Some(Out::Piece(0, 1, 0, 65536, false)));
    rig.abort(A, 0, 1);
    assert_eq!(rig.out(A), [kept(0, 1)]);
    assert_eq!(rig.session.unanswered(), 0);
}

#[test]
fn a_flush_is_kept() {
    let mut rig = rig();
    rig.send(A, Kind::FLUSH, FLUSH_SLOT, 1);
    rig.start();
    rig.abort(A, FLUSH_SLOT, 1);
    rig.done(FLUSH_SLOT, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), [kept(FLUSH_SLOT, 1)]);
}

#[test]
fn the_same_abort_has_the_same_answer_over_any_connection() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.abort(A, 0, 1);
    rig.lose(A);
    rig.join(B, 0, 2).unwrap();
    rig.abort(B, 0, 1);
    rig.done(0, 1);
    rig.start();
    rig.abort(B, 0, 1);
    rig.flushed();
    assert_eq!(rig.out(B), [kept(0, 1)]);
    rig.abort(B, 0, 1);
    assert_eq!(rig.out(B), [kept(0, 1)]);
    assert_eq!(rig.start(), []);
}

#[test]
fn a_delayed_copy_of_an_abort_does_not_take_the_answer_along() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.join(C, 2, 1).unwrap();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    for conn in [B, C, A] {
        rig.abort(conn, 0, 1);
    }
    rig.done(0, 1);
    rig.start();
    // The client has given A up, the server learns of it before or after.
    rig.lose(A);
    rig.flushed();
    assert_eq!(rig.out(B), [kept(0, 1)]);
    rig.lose(B);
    assert_eq!(rig.out(C), [kept(0, 1)]);
    assert_eq!(rig.out(C), []);
}

#[test]
fn an_answer_to_an_abort_waiting_on_a_connection_that_breaks_goes_to_the_other() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.abort(B, 0, 1);
    rig.abort(A, 0, 1);
    rig.lose(A);
    assert_eq!(rig.out(B), [never(0, 1)]);
}

#[test]
fn a_copy_of_an_aborted_request_is_not_answered() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.abort(A, 0, 1);
    assert_eq!(rig.send(A, Kind::WRITE, 0, 1), Take::Discard);
    rig.done(0, 1);
    assert_eq!(rig.send(A, Kind::WRITE, 0, 1), Take::Discard);
    rig.start();
    rig.flushed();
    assert_eq!(rig.out(A), [kept(0, 1)]);
    assert_eq!(rig.send(A, Kind::WRITE, 0, 1), Take::Discard);
    assert_eq!(rig.out(A), []);
}

#[test]
fn an_abort_that_was_overtaken_is_not_answered() {
    let mut rig = rig();
    rig.run(Kind::WRITE, 0, 1);
    rig.run(Kind::WRITE, 0, 2);
    rig.abort(A, 0, 1);
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
}

#[test]
fn an_abort_outside_the_window_or_of_a_slot_in_use_is_a_fault() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    for (slot, id) in [(0, 2), (1, 65), (1, 0), (SLOTS, 2)] {
        let header = Header {
            slot,
            id,
            ..Header::new(Kind::ABORT)
        };
        assert!(rig.handle(A, &header).is_err(), "{slot} {id}");
    }
}

#[test]
fn what_the_backend_failed_is_kept_too() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done_with(0, 1, Status::IO);
    rig.out(A);
    rig.abort(A, 0, 1);
    assert_eq!(rig.start(), [0]);
    rig.flushed();
    assert_eq!(rig.out(A), [kept(0, 1)]);
}
