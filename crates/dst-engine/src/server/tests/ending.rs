//! PROTOCOL.md 6.4 and the ends of a session that the server makes.

use super::*;

fn close() -> Header {
    Header::new(Kind::CLOSE)
}

fn ended(conn: ConnId, status: Status) -> Event {
    let reason = CloseReason::Ended(status);
    Event::Close { conn, reason }
}

#[test]
fn close_finishes_flushes_releases_and_answers_in_this_order() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.handle(A, &close()).unwrap();
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.out(A), [ok(Kind::WRITE, 0, 1)]);
    assert_eq!(rig.start(), [0]);
    assert_eq!(rig.events(), [Event::Replayed]);
    rig.flushed();
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.events(), [Event::Release]);
    rig.session.closed(Status::OK);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.out(A), [ok(Kind::CLOSE, NO_SLOT, 0)]);
    let expected = [ended(A, Status::OK), Event::Settled, Event::Over];
    assert_eq!(rig.events(), expected);
}

#[test]
fn close_runs_the_chain_of_held_writes_and_drops_what_can_never_start() {
    let mut rig = rig();
    rig.take(A, &request(Kind::WRITE, 0, 1, 0, 1));
    rig.take(A, &request(Kind::WRITE, 1, 2, 0, 1));
    rig.take(A, &barrier(request(Kind::WRITE, 2, 4, 9, 1)));
    rig.handle(A, &close()).unwrap();
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.start(), [2]);
    rig.done(1, 2);
    // Id 3 will not come any more.
    assert_eq!(rig.start(), [0]);
}

#[test]
fn close_waits_for_the_flush_of_an_abort() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done(0, 1);
    rig.abort(A, 0, 1);
    rig.handle(A, &close()).unwrap();
    assert_eq!(rig.start(), [0]);
    assert_eq!(rig.start(), []);
    rig.flushed();
    assert_eq!(rig.start(), [0]);
    rig.flushed();
    assert_eq!(rig.events(), [Event::Replayed, Event::Release]);
}

#[test]
fn a_reader_closes_without_a_flush() {
    let mut config = config();
    config.writable = false;
    let mut rig = rig_with(config);
    rig.handle(A, &close()).unwrap();
    assert_eq!(rig.start(), []);
    assert_eq!(rig.events(), [Event::Release]);
}

#[test]
fn no_new_request_is_taken_after_close() {
    let mut rig = rig();
    rig.handle(A, &close()).unwrap();
    assert!(rig.handle(A, &request(Kind::READ, 0, 1, 0, 1)).is_err());
}

#[test]
fn nothing_starts_after_the_flush_of_close() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    let refused = request(Kind::WRITE, 0, 1, 0, 1);
    rig.handle(B, &refused).unwrap();
    rig.session.payload_done(&mut rig.slots, B, false);
    rig.run(Kind::READ, 1, 2);
    let arriving = request(Kind::WRITE, 2, 3, 9, 1);
    rig.handle(B, &arriving).unwrap();
    rig.handle(A, &close()).unwrap();
    assert_eq!(rig.start(), [0]);
    rig.session.payload_done(&mut rig.slots, B, true);
    assert!(rig.handle(A, &refused).is_err());
    assert!(rig.handle(A, &arriving).is_err());
    assert!(rig.handle(A, &request(Kind::READ, 1, 2, 20, 1)).is_err());
    assert_eq!(rig.start(), []);
    rig.flushed();
    assert_eq!(rig.start(), []);
}

#[test]
fn close_whose_connection_broke_is_answered_to_the_next_that_asks() {
    let mut rig = rig();
    rig.handle(A, &close()).unwrap();
    rig.lose(A);
    assert_eq!(rig.start(), [0]);
    rig.join(B, 0, 2).unwrap();
    rig.handle(B, &close()).unwrap();
    rig.flushed();
    assert_eq!(rig.events(), [Event::Release]);
    rig.session.closed(Status::OK);
    assert_eq!(rig.out(B), [ok(Kind::CLOSE, NO_SLOT, 0)]);
}

#[test]
fn close_that_nobody_waits_for_ends_the_session_all_the_same() {
    let mut rig = rig();
    rig.handle(A, &close()).unwrap();
    rig.start();
    rig.lose(A);
    rig.flushed();
    assert_eq!(rig.events(), [Event::Release]);
    rig.session.closed(Status::OK);
    assert_eq!(rig.events(), [Event::Settled, Event::Over]);
}

#[test]
fn a_failed_flush_of_close_is_answered_so_when_it_failed_before() {
    let mut rig = rig();
    rig.handle(A, &close()).unwrap();
    rig.start();
    rig.done_with(NO_SLOT, 0, Status::SYNC_FAILED);
    let answer = Out::Reply(Kind::CLOSE, NO_SLOT, 0, Status::SYNC_FAILED);
    assert_eq!(rig.events(), [Event::Settled]);
    assert_eq!(rig.out(A), [answer]);
    assert_eq!(rig.events(), [ended(A, Status::SESSION_LOST), Event::Over]);
}

#[test]
fn a_failed_flush_of_close_ends_the_session_without_an_answer_the_first_time() {
    let mut rig = rig();
    rig.handle(A, &close()).unwrap();
    rig.start();
    rig.done_with(NO_SLOT, 0, Status::SESSION_LOST);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.events()[0], ended(A, Status::SESSION_LOST));
}

#[test]
fn a_settled_session_starts_nothing_and_answers_nothing() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done(0, 1);
    rig.send(A, Kind::WRITE, 1, 2);
    rig.start();
    rig.send(A, Kind::WRITE, 2, 3);
    rig.handle(B, &request(Kind::WRITE, 3, 4, 90, 1)).unwrap();
    rig.session.settle(&mut rig.slots, Status::LEASE_LOST);
    assert!(!rig.session.settled());
    assert_eq!(rig.start(), []);
    assert_eq!(rig.out(A), []);
    assert!(!rig.session.payload_wanted(B));
    // What still comes is thrown away.
    assert_eq!(
        rig.handle(A, &request(Kind::WRITE, 4, 5, 70, 1)),
        Ok(Take::Discard)
    );
    let expected = [
        Event::Drop { slot: 2 },
        Event::Drop { slot: 3 },
        Event::Replayed,
        ended(A, Status::LEASE_LOST),
        ended(B, Status::LEASE_LOST),
    ];
    assert_eq!(rig.events(), expected);
    rig.done(1, 2);
    assert!(rig.session.settled());
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.events(), [Event::Settled, Event::Over]);
}

#[test]
fn a_session_with_an_abort_flush_under_way_is_settled_when_it_is_back() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done(0, 1);
    rig.abort(A, 0, 1);
    rig.start();
    rig.session.settle(&mut rig.slots, Status::LEASE_LOST);
    assert!(!rig.session.settled());
    rig.flushed();
    assert!(rig.session.settled());
    assert_eq!(rig.out(A), []);
}

#[test]
fn a_sync_that_failed_again_is_answered_before_the_connection_is_closed() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.done(0, 1);
    rig.send(A, Kind::FLUSH, FLUSH_SLOT, 2);
    rig.start();
    rig.done_with(FLUSH_SLOT, 2, Status::SYNC_FAILED);
    assert_eq!(rig.events(), [Event::Replayed, Event::Settled]);
    // And nothing else of that incarnation.
    let answer = Out::Reply(Kind::FLUSH, FLUSH_SLOT, 2, Status::SYNC_FAILED);
    assert_eq!(rig.out(A), [answer]);
    assert_eq!(rig.events(), [ended(A, Status::SESSION_LOST), Event::Over]);
}

#[test]
fn a_sync_that_failed_for_the_first_time_answers_nobody() {
    let mut rig = rig();
    rig.send(A, Kind::FLUSH, FLUSH_SLOT, 1);
    rig.start();
    rig.done_with(FLUSH_SLOT, 1, Status::SESSION_LOST);
    assert_eq!(rig.out(A), []);
    assert!(rig.session.is_ended());
}
