//! What is kept, and until when.

extern crate std;

use std::vec::Vec;

use super::super::super::proto::{Kind, Status};
use super::super::Event;
use super::rig::*;

#[test]
fn a_flush_frees_what_was_acknowledged_before_it_was_submitted() {
    let mut rig = Rig::live();
    rig.write_through(0, write(0, 1));
    rig.submit(1, flush());
    let flush = rig.send(0).unwrap();
    rig.write_through(0, write(1, 1));
    rig.reply(0, flush, Status::OK);
    assert_eq!(rig.retained.entries(), 1);
    let released = |event: &&Event| matches!(event, Event::Released { .. });
    let events = rig.events();
    let released: Vec<_> = events.iter().filter(released).collect();
    assert_eq!(released, [&Event::Released { index: 0 }]);
}

#[test]
fn a_failed_write_is_not_kept() {
    let mut rig = Rig::live();
    rig.submit(0, write(0, 1));
    let sent = rig.send(0).unwrap();
    rig.reply(0, sent, Status::NO_SPACE);
    assert_eq!(rig.retained.entries(), 0);
    assert!(!rig.retained.is_dirty());
}

#[test]
fn a_fua_write_is_durable_and_not_kept() {
    let mut rig = Rig::live();
    rig.write_through(0, fua(write(0, 1)));
    assert!(!rig.retained.is_dirty());
}

#[test]
fn half_full_the_session_flushes_by_itself_and_full_writes_wait() {
    let mut rig = Rig::with(None, 4);
    rig.open();
    rig.write_through(0, write(0, 1));
    rig.write_through(0, write(1, 1));
    rig.submit(0, write(2, 1));
    rig.submit(1, write(3, 1));
    rig.submit(2, write(4, 1));
    let sent: Vec<_> = core::iter::from_fn(|| rig.send(0)).collect();
    let own = sent.iter().find(|s| s.header.kind == Kind::FLUSH).unwrap();
    assert_eq!(own.header.slot, SLOTS - 1);
    let writes = sent.iter().filter(|s| s.header.kind == Kind::WRITE);
    assert_eq!(writes.count(), 2);
    rig.reply(0, *own, Status::OK);
    // The flush did not cover the writes that came after it, but it made room.
    for write in sent.iter().filter(|s| s.header.kind == Kind::WRITE) {
        rig.reply(0, *write, Status::OK);
    }
    assert!(core::iter::from_fn(|| rig.send(0)).any(|s| s.header.slot == 2));
}
