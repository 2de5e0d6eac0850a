//! The end that the driver asks for, and sessions that are lost just then.

use super::super::super::proto::{Header, Kind, Status, NO_SLOT};
use super::super::{Event, FailReason, Phase};
use super::rig::*;
use super::sessions::lose_session;

#[test]
fn close_waits_for_what_is_open() {
    let mut rig = Rig::live();
    rig.submit(0, flush());
    let sent = rig.send(0).unwrap();
    rig.session.close();
    assert_eq!(rig.send(0), None);
    rig.reply(0, sent, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::CLOSE);
    let header = Header::reply(Kind::CLOSE, NO_SLOT, 0, Status::OK, rig.credit);
    rig.frame(0, header, &[]).unwrap();
    assert!(rig.events().contains(&Event::Closed(Status::OK)));
}

#[test]
fn what_waits_when_the_end_begins_is_still_served() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    rig.submit(1, write(0, 1));
    let first = rig.send(0).unwrap();
    rig.session.close();
    assert_eq!(rig.send(0), None);
    rig.reply(0, first, Status::OK);
    let second = rig.send(0).unwrap();
    assert_eq!(second.header.slot, 1);
    assert_eq!(rig.send(0), None);
    rig.reply(0, second, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::CLOSE);
}

/// A session that CLOSE was asked for is lost, and OPEN is out.
fn lose_at_its_end(rig: &mut Rig) {
    rig.session.close();
    while rig.send(0).is_some() {}
    lose_session(rig);
}

#[test]
fn a_session_lost_at_its_end_is_opened_anew_and_closed() {
    let mut rig = Rig::live();
    lose_at_its_end(&mut rig);
    rig.incarnation += 1;
    rig.opened();
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    let close = rig.send(0).unwrap();
    assert_eq!(close.header.kind, Kind::CLOSE);
    rig.reply(0, close, Status::OK);
    assert!(rig.events().contains(&Event::Closed(Status::OK)));
}

#[test]
fn what_is_not_durable_when_a_session_is_lost_at_its_end_is_replayed() {
    let mut rig = Rig::live();
    rig.write_through(0, write(0, 1));
    lose_at_its_end(&mut rig);
    rig.opened();
    let replay = rig.send(0).unwrap();
    assert_eq!(replay.header.kind, Kind::WRITE);
    rig.reply(0, replay, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::CLOSE);
}

#[test]
fn a_lease_that_another_has_got_need_not_be_given_back() {
    let mut rig = Rig::live();
    // The answer to CLOSE was lost, and the next writer was there before its second.
    lose_at_its_end(&mut rig);
    rig.refuse(Kind::OPEN, 0, Status::LEASE_LOST);
    assert_eq!(rig.session.phase(), Phase::Closed);
    assert!(rig.events().contains(&Event::Closed(Status::OK)));

    let mut granted = Rig::live();
    lose_at_its_end(&mut granted);
    granted.export_id += 1;
    granted.opened();
    assert_eq!(granted.session.phase(), Phase::Closed);

    let mut dirty = Rig::live();
    dirty.write_through(0, write(0, 1));
    lose_at_its_end(&mut dirty);
    dirty.refuse(Kind::OPEN, 0, Status::LEASE_LOST);
    assert_eq!(dirty.session.phase(), Phase::Failed(FailReason::LeaseLost));
}

#[test]
fn what_is_open_when_a_session_is_lost_at_its_end_is_served_before_the_end() {
    let mut rig = Rig::live();
    rig.submit(0, flush());
    rig.send(0).unwrap();
    lose_at_its_end(&mut rig);
    rig.opened();
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    let again = rig.send(0).unwrap();
    assert_eq!(again.header.kind, Kind::FLUSH);
    assert_eq!(rig.send(0), None);
    rig.reply(0, again, Status::OK);
    assert_eq!(rig.completed(), [(0, Ok(()))]);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::CLOSE);
}

#[test]
fn an_end_that_meets_a_lost_session_opens_it_anew_first() {
    let mut rig = Rig::live();
    rig.write_through(0, write(0, 1));
    lose_session(&mut rig);
    rig.session.close();
    rig.opened();
    let replay = rig.send(0).unwrap();
    assert_eq!(replay.header.kind, Kind::WRITE);
    rig.reply(0, replay, Status::OK);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::REPLAYED);
    assert_eq!(rig.send(0).unwrap().header.kind, Kind::CLOSE);
}

#[test]
fn a_reader_whose_session_is_lost_at_its_end_needs_no_other() {
    let mut rig = Rig::reader();
    rig.session.close();
    while rig.send(0).is_some() {}
    rig.lose(0);
    rig.connect(0);
    rig.refuse(Kind::JOIN, 0, Status::SESSION_LOST);
    assert!(rig.events().contains(&Event::Closed(Status::OK)));

    let mut busy = Rig::reader();
    busy.submit(0, read(0, 1));
    busy.session.close();
    while busy.send(0).is_some() {}
    lose_session(&mut busy);
    busy.opened();
    assert_eq!(busy.send(0).unwrap().header.kind, Kind::REPLAYED);
    assert_eq!(busy.send(0).unwrap().header.kind, Kind::READ);
}
