//! PROTOCOL.md 5.2, 5.4 and the gate of 6.2: what may start when.

use super::*;

fn after(header: Header, distance: u32) -> Header {
    Header {
        after: distance,
        ..header
    }
}

#[test]
fn a_barrier_waits_for_every_lower_id_to_arrive_and_finish() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.send(A, Kind::WRITE, 0, 1);
    // The barrier overtakes id 2 on another connection.
    rig.take(B, &barrier(request(Kind::WRITE, 2, 3, 30, 1)));
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.start(), []);
    rig.send(A, Kind::READ, 1, 2);
    assert_eq!(rig.start(), [2]);
    assert_eq!(rig.start(), []);
    rig.done(1, 2);
    assert_eq!(rig.start(), [3]);
}

#[test]
fn what_follows_a_barrier_waits_until_it_is_done() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    // Both arrive before the barrier does.
    rig.take(B, &after(request(Kind::WRITE, 2, 3, 30, 1), 1));
    rig.take(B, &after(request(Kind::READ, 3, 4, 30, 1), 2));
    assert_eq!(rig.start(), []);
    rig.take(A, &barrier(request(Kind::FLUSH, 1, 2, 0, 0)));
    assert_eq!(rig.start(), []);
    rig.send(A, Kind::WRITE, 0, 1);
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.start(), [2]);
    assert_eq!(rig.start(), []);
    rig.done(1, 2);
    assert_eq!(rig.start(), [3, 4]);
}

#[test]
fn an_aborted_id_does_not_hold_a_barrier() {
    let mut rig = rig();
    rig.take(A, &barrier(request(Kind::FLUSH, 1, 2, 0, 0)));
    assert_eq!(rig.start(), []);
    rig.abort(A, 0, 1);
    assert_eq!(rig.start(), [2]);
}

#[test]
fn after_beyond_the_beginning_of_the_session_is_a_fault() {
    let mut rig = rig();
    assert!(rig
        .handle(A, &after(request(Kind::READ, 0, 3, 0, 1), 3))
        .is_err());
    assert!(rig
        .handle(A, &after(request(Kind::READ, 0, 3, 0, 1), u32::MAX))
        .is_err());
    assert!(rig
        .handle(A, &after(request(Kind::READ, 0, 3, 0, 1), 2))
        .is_ok());
}

#[test]
fn overlapping_writes_run_one_after_another_in_order_of_id() {
    let mut rig = rig();
    rig.take(A, &request(Kind::WRITE, 0, 1, 0, 4));
    rig.take(A, &request(Kind::DISCARD, 1, 2, 3, 4));
    rig.take(A, &request(Kind::WRITE_ZEROES, 2, 3, 6, 2));
    rig.take(A, &request(Kind::WRITE, 3, 4, 100, 1));
    // 3 overlaps 2, which has not started, but not 1.
    assert_eq!(rig.start(), [1, 4]);
    rig.done(0, 1);
    assert_eq!(rig.start(), [2]);
    rig.done(1, 2);
    assert_eq!(rig.start(), [3]);
}

#[test]
fn a_write_waits_for_an_overlapping_lower_one_that_is_still_arriving() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.take(B, &request(Kind::WRITE, 1, 2, 0, 1));
    assert_eq!(rig.start(), []);
    rig.session.payload_done(&mut rig.slots, A, true);
    assert_eq!(rig.start(), [1]);
    rig.done(0, 1);
    assert_eq!(rig.start(), [2]);
}

#[test]
fn a_write_whose_predecessor_was_lost_on_the_way_goes_on() {
    let mut rig = rig();
    rig.join(B, 1, 1).unwrap();
    rig.handle(A, &request(Kind::WRITE, 0, 1, 0, 1)).unwrap();
    rig.take(B, &request(Kind::WRITE, 1, 2, 0, 1));
    rig.lose(A);
    assert_eq!(rig.start(), [2]);
    // The lower id comes again and must not run beside it.
    rig.take(B, &request(Kind::WRITE, 0, 1, 0, 1));
    assert_eq!(rig.start(), []);
    rig.done(1, 2);
    assert_eq!(rig.start(), [1]);
}

#[test]
fn a_lower_id_passes_a_held_higher_one() {
    let mut rig = rig();
    rig.take(A, &after(request(Kind::WRITE, 3, 4, 0, 1), 1));
    rig.take(A, &request(Kind::WRITE, 0, 1, 0, 1));
    assert_eq!(rig.start(), [1]);
}

#[test]
fn reads_wait_for_no_write() {
    let mut rig = rig();
    rig.take(A, &request(Kind::WRITE, 0, 1, 0, 1));
    rig.take(A, &request(Kind::READ, 1, 2, 0, 1));
    assert_eq!(rig.start(), [1, 2]);
}

#[test]
fn the_gate_holds_everything_until_it_opens() {
    let mut rig = rig();
    rig.send(A, Kind::READ, 0, 1);
    rig.session.set_gate(&mut rig.slots, true);
    rig.send(A, Kind::READ, 2, 3);
    rig.send(A, Kind::READ, 1, 2);
    assert_eq!(rig.start(), []);
    rig.session.set_gate(&mut rig.slots, false);
    assert_eq!(rig.start(), [1, 2, 3]);
}

#[test]
fn abort_passes_the_gate() {
    let mut rig = rig();
    rig.session.set_gate(&mut rig.slots, true);
    rig.send(A, Kind::READ, 0, 1);
    rig.abort(A, 0, 1);
    assert_eq!(rig.out(A), [Out::Outcome(0, 1, Outcome::NeverExecuted)]);
}

#[test]
fn replays_do_not_count_as_replayed_and_anything_else_does() {
    let mut rig = rig();
    let replay = Header {
        op_flags: OpFlags::REPLAY,
        ..request(Kind::WRITE, 0, 1, 0, 1)
    };
    rig.take(A, &replay);
    assert_eq!(rig.events(), []);
    rig.handle(A, &Header::new(Kind::REPLAYED)).unwrap();
    assert_eq!(rig.events(), [Event::Replayed]);
    rig.send(A, Kind::READ, 1, 2);
    assert_eq!(rig.events(), []);
}
