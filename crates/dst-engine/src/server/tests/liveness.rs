//! PROTOCOL.md 5.7: PING, dead connections, sessions left alone.

use super::*;

impl Rig {
    fn at(&mut self, now: u64) {
        self.now = now;
        self.session.handle_timeout(&mut self.slots, now);
    }
}

#[test]
fn silence_is_asked_about_once_each_keepalive_time_and_ends_after_four() {
    let mut rig = rig();
    assert_eq!(rig.session.next_timeout(), Some(KEEPALIVE));
    rig.at(KEEPALIVE - 1);
    assert_eq!(rig.out(A), []);
    for times in 1..4 {
        rig.at(times * KEEPALIVE);
        assert_eq!(rig.out(A), [Out::Frame(Kind::PING, 1)]);
        assert_eq!(rig.session.next_timeout(), Some((times + 1) * KEEPALIVE));
    }
    rig.at(4 * KEEPALIVE);
    let reason = CloseReason::Silent;
    assert_eq!(rig.events(), [Event::Close { conn: A, reason }]);
    assert_eq!(rig.session.connections(), 0);
}

#[test]
fn any_byte_is_a_sign_of_life() {
    let mut rig = rig();
    rig.at(3 * KEEPALIVE);
    rig.session.handle_received(A, 3 * KEEPALIVE + 500);
    rig.out(A);
    rig.at(4 * KEEPALIVE);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.out(A), []);
    assert_eq!(rig.session.next_timeout(), Some(4 * KEEPALIVE + 500));
    assert_eq!(rig.session.last_heard(), 3 * KEEPALIVE + 500);
}

#[test]
fn a_clock_that_jumps_ends_a_silent_connection_at_once() {
    let mut rig = rig();
    rig.at(100 * KEEPALIVE);
    assert_eq!(rig.events().len(), 1);
}

#[test]
fn a_session_left_alone_ends_after_its_time_and_not_before() {
    let mut rig = rig();
    rig.send(A, Kind::WRITE, 0, 1);
    rig.start();
    rig.now = 100;
    rig.lose(A);
    assert_eq!(rig.session.next_timeout(), Some(100 + SESSION_TIME));
    rig.at(99 + SESSION_TIME);
    assert!(!rig.session.is_ended());
    rig.at(100 + SESSION_TIME);
    assert!(rig.session.is_ended());
    assert_eq!(rig.events(), [Event::Replayed]);
    rig.done(0, 1);
    assert_eq!(rig.events(), [Event::Settled, Event::Over]);
    assert_eq!(rig.session.next_timeout(), None);
}

#[test]
fn a_session_that_somebody_came_back_to_lives_on() {
    let mut rig = rig();
    rig.lose(A);
    rig.now = SESSION_TIME - 1;
    rig.join(B, 0, 2).unwrap();
    rig.at(SESSION_TIME);
    assert!(!rig.session.is_ended());
}

#[test]
fn only_an_answer_to_a_ping_since_the_probe_answers_it() {
    let mut rig = rig();
    rig.at(KEEPALIVE);
    assert_eq!(rig.out(A), [Out::Frame(Kind::PING, 1)]);
    rig.session.probe();
    let answer = |id| Header {
        id,
        ..Header::reply(Kind::PING, NO_SLOT, 0, Status::OK, Credit::default())
    };
    // The answer to the first, late.
    rig.handle(A, &answer(1)).unwrap();
    rig.handle(A, &answer(9)).unwrap();
    assert_eq!(rig.events(), []);
    assert_eq!(rig.out(A), [Out::Frame(Kind::PING, 2)]);
    rig.handle(A, &answer(2)).unwrap();
    assert_eq!(rig.events(), [Event::ProbeAnswered]);
}

#[test]
fn a_connection_that_joins_during_a_probe_is_asked_too() {
    let mut rig = rig();
    rig.session.probe();
    rig.lose(A);
    rig.join(B, 0, 2).unwrap();
    assert_eq!(rig.out(B), [Out::Frame(Kind::PING, 2)]);
}
