//! Deadlines and ABORT.

extern crate std;

use super::super::super::proto::{Kind, Outcome, Status};
use super::super::{Event, Failure};
use super::rig::*;

const DEADLINE: Option<u64> = Some(100);

#[test]
fn at_its_deadline_a_request_fails_and_nothing_else_goes_out_until_it_is_settled() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.submit(0, write(0, 1));
    let late = rig.send(0).unwrap();
    rig.timeout(50);
    rig.submit(1, read(5, 1));
    let other = rig.send(0).unwrap();
    rig.timeout(100);
    assert_eq!(rig.completed(), [(0, Err(Failure::Deadline))]);
    rig.submit(0, read(0, 1));
    let abort = rig.send(0).unwrap();
    assert_eq!(abort.header.kind, Kind::ABORT);
    assert_eq!((abort.header.slot, abort.header.id), (0, late.header.id));
    assert_eq!(rig.send(0), None);
    // What was out before goes on.
    rig.reply(0, other, Status::IO);
    assert_eq!(rig.completed().len(), 1);
    assert_eq!(rig.send(0), None);
    rig.outcome(0, 0, late.header.id, Outcome::NeverExecuted);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::READ);
}

#[test]
fn memory_that_a_socket_refers_to_is_freed_by_a_reset() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.submit(0, write(0, 1));
    rig.send_pinned(0).unwrap();
    rig.timeout(100);
    assert!(matches!(rig.event(), Some(Event::Close { index: 0, .. })));
    assert_eq!(rig.completed(), []);
    rig.lose(0);
    assert_eq!(rig.completed(), [(0, Err(Failure::Deadline))]);
    rig.connect(0);
    rig.joined(0, &[]);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::ABORT);
}

#[test]
fn an_abort_is_sent_again_over_the_next_connection() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.submit(0, write(0, 1));
    let late = rig.send(0).unwrap();
    rig.timeout(100);
    rig.events();
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::ABORT);
    rig.lose(0);
    rig.connect(0);
    rig.joined(0, &[]);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::ABORT);
    rig.outcome(0, 0, late.header.id, Outcome::Kept);
    rig.outcome(0, 0, late.header.id, Outcome::Kept);
    rig.submit(1, read(0, 1));
    assert!(core::iter::from_fn(|| rig.send(0)).any(|sent| sent.header.kind == Kind::READ));
}

#[test]
fn a_request_without_an_id_fails_without_an_abort() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.submit(0, write(0, 1));
    rig.timeout(100);
    assert_eq!(rig.completed(), [(0, Err(Failure::Deadline))]);
    rig.open();
    rig.submit(1, read(0, 1));
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::READ);
}

#[test]
fn an_aborted_write_that_was_kept_makes_durable_what_was_acknowledged_before() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.write_through(1, write(8, 1));
    rig.submit(0, write(0, 1));
    let late = rig.send(0).unwrap();
    rig.timeout(100);
    rig.events();
    rig.send(0).unwrap();
    assert_eq!(rig.retained.entries(), 1);
    rig.outcome(0, 0, late.header.id, Outcome::Kept);
    assert_eq!(rig.retained.entries(), 0);
}

#[test]
fn an_aborted_write_that_never_ran_proves_nothing() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.write_through(1, write(8, 1));
    rig.submit(0, write(0, 1));
    let late = rig.send(0).unwrap();
    rig.timeout(100);
    rig.events();
    rig.send(0).unwrap();
    rig.outcome(0, 0, late.header.id, Outcome::NeverExecuted);
    assert_eq!(rig.retained.entries(), 1);
}

#[test]
fn bad_digests_are_tried_a_few_times_and_then_given_up() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    for _ in 0..3 {
        let sent = rig.send(0).unwrap();
        assert_eq!(sent.header.kind, Kind::WRITE);
        assert_eq!(rig.completed(), []);
        rig.reply(0, sent, Status::RETRY);
    }
    assert_eq!(rig.completed(), [(0, Err(Failure::Status(Status::RETRY)))]);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::ABORT);
}

#[test]
fn an_aborted_barrier_lets_what_follows_go() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.submit(0, barrier(flush()));
    let late = rig.send(0).unwrap();
    rig.timeout(50);
    rig.submit(1, flush());
    let follower = rig.send(0).unwrap();
    assert_eq!(follower.header.after, 1);
    rig.timeout(100);
    rig.events();
    rig.reply(0, follower, Status::OK);
    assert_eq!(rig.completed(), []);
    rig.send(0).unwrap();
    rig.outcome(0, 0, late.header.id, Outcome::NeverExecuted);
    assert_eq!(rig.completed(), [(1, Ok(()))]);
}

#[test]
fn an_abort_sent_again_proves_no_more_than_the_first() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.submit(0, write(0, 1));
    let late = rig.send(0).unwrap();
    rig.timeout(50);
    rig.submit(1, write(8, 1));
    let other = rig.send(0).unwrap();
    rig.timeout(100);
    rig.events();
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::ABORT);
    // Acknowledged after the server may have begun the flush for the first ABORT.
    rig.reply(0, other, Status::OK);
    rig.lose(0);
    rig.connect(0);
    rig.joined(0, &[]);
    assert!(core::iter::from_fn(|| rig.send(0)).any(|sent| sent.header.kind == Kind::ABORT));
    rig.outcome(0, 0, late.header.id, Outcome::Kept);
    assert_eq!(rig.retained.entries(), 1);
}

#[test]
fn an_abort_stays_out_when_another_connection_breaks() {
    let mut rig = Rig::with(DEADLINE, 64);
    rig.open();
    rig.connect(1);
    rig.joined(1, &[]);
    rig.submit(0, write(0, 1));
    rig.send(0).unwrap();
    rig.timeout(100);
    rig.events();
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::ABORT);
    rig.lose(1);
    assert_eq!(rig.send(0), None);
}
